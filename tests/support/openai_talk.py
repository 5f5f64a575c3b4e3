"""What the stand-in for servers of OpenAI's API says in a stream, frame by frame, until a fault strikes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from llama_orch.plugins.engines._mock_script import Said, Speech, knobs_of

if TYPE_CHECKING:
    from .openai_server import StandIn

#: tokens of a text before a fault strikes
AFTER = 3
CALL_NAME = "get_weather"
ARGUMENTS = ('{"city": ', '"Bern"', ', "days": ', "2}")
THOUGHTS = ("first", " this", ", then", " that")


class Reply:
    """Writes one answer, as the fault has it."""

    def __init__(self, writer: asyncio.StreamWriter, fault: str) -> None:
        self.writer = writer
        self._split = fault == "split"

    async def raw(self, data: bytes) -> None:
        pieces = [data[n : n + 1] for n in range(len(data))] if self._split else [data]
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def whole(self, status: int, value: object) -> None:
        data = b"" if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        await self.raw(head.encode() + data)

    async def error(self, status: int, message: str) -> None:
        await self.whole(status, {"error": {"message": message, "type": "Error", "param": None, "code": status}})

    async def begin(self) -> None:
        await self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def frame(self, payload: bytes) -> None:
        data = b"data: " + payload + b"\n\n"
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")


class Struck(Exception):
    """A fault ended the stream."""


class Talk:
    """One stream."""

    def __init__(
        self, server: StandIn, reply: Reply, body: dict[str, Any], prompt: str, prompt_tokens: int, *, chat: bool
    ) -> None:
        self._server = server
        self._reply = reply
        self._body = body
        self._prompt = prompt
        self._prompt_tokens = prompt_tokens
        self._chat = chat
        self._said = 0
        self._first = True
        self._knobs = knobs_of(prompt, {})

    async def say(self) -> None:
        body = self._body
        limit = int(body.get("max_tokens") or (16 if not self._chat else 0))
        try:
            for index in range(int(body.get("n", 1))):
                await self._choice(index, limit)
            usage = {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._said}
            if (body.get("stream_options") or {}).get("include_usage"):
                await self._frame([], usage=usage)
            await self._reply.frame(b"[DONE]")
            await self._reply.end()
        except Struck:
            pass

    async def _choice(self, index: int, limit: int) -> None:
        body, chat = self._body, self._chat
        if chat:
            await self._delta(index, {"role": "assistant", "content": ""}, 0)
        if chat and body.get("tools") and body.get("tool_choice") not in (None, "none", "auto"):
            function: dict[str, Any] = {"name": CALL_NAME, "arguments": ""}
            await self._tokens(2)
            await self._delta(index, {"tool_calls": [{"index": 0, "id": "call-x", "function": function}]}, 2)
            for piece in ARGUMENTS:
                await self._tokens(1)
                await self._delta(index, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}, 1)
            await self._finish(index, "tool_calls")
            return
        used = 0
        effort = body.get("reasoning_effort", "")
        if chat and self._server.thinks and effort != "none":
            for piece in THOUGHTS[: limit or None]:
                await self._tokens(1)
                name = "reasoning" if self._server.vllm else "reasoning_content"
                await self._delta(index, {name: piece}, 1, logprobs=self._probabilities(piece))
                used += 1
        if limit and used == limit:
            await self._finish(index, "length")
            return
        speech = self._speech(index, limit - used if limit else 0)
        for said in iter(speech.next, None):
            await self._tokens(said.tokens)
            await self._text(index, said)
        await self._finish(index, "length" if speech.stop_type == "limit" else "stop")

    def _speech(self, index: int, limit: int) -> Speech:
        body = self._body
        seed = int(body.get("seed", 0)) + index
        banned = {int(number) for number, bias in (body.get("logit_bias") or {}).items() if bias <= -100}
        while True:
            room = self._server.ctx - self._prompt_tokens
            stop = body.get("stop") or ()
            speech, trial = (
                Speech(self._knobs, self._prompt, seed=seed, limit=limit, room=room, stop=stop) for _ in range(2)
            )
            first = trial.next()
            if first is None or first.id not in banned:
                return speech
            seed += 1

    async def _tokens(self, count: int) -> None:
        """So many tokens are about to be told, unless a fault strikes before."""
        fault = self._server.fault
        if self._knobs.rate or fault == "slow":
            await asyncio.sleep(count / (self._knobs.rate or 200))
        if self._said >= AFTER:
            await self._strike(fault)
        self._said += count

    async def _strike(self, fault: str) -> None:
        match fault:
            case "cut":
                self._reply.writer.transport.abort()
            case "dies":
                self._server.die()
            case "garbage":
                await self._reply.frame(b'{"choices": <<<')
            case "bad-utf8":
                await self._reply.frame(b'{"choices":[{"index":0,"text":"\xff\xc3"}]}')
            case "error-frame":
                error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
                await self._reply.frame(json.dumps({"error": error}).encode())
                await self._reply.frame(b"[DONE]")
                await self._reply.end()
            case "unfinished":
                await self._reply.end()
            case "silent":
                await asyncio.Event().wait()
            case _:
                return
        raise Struck

    async def _text(self, index: int, said: Said) -> None:
        if self._server.vllm:
            for _ in range(said.tokens - 1):
                await self._piece(index, "", 3)
            if said.id >= 0 or said.text:
                await self._piece(index, said.text, said.id if said.id >= 0 else 3, 1 if said.id >= 0 else 0)
        elif said.text:
            await self._piece(index, said.text, said.id)

    async def _piece(self, index: int, text: str, number: int, tokens: int = 1) -> None:
        logprobs = self._probabilities(text) if tokens else None
        if self._chat:
            await self._delta(index, {"content": text}, tokens, number, logprobs)
        else:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
            await self._frame([self._with_ids(choice, [number] * tokens)])

    def _probabilities(self, text: str) -> dict[str, Any] | None:
        top = self._body.get("top_logprobs") if self._chat else self._body.get("logprobs")
        if top is None:
            return None
        words = [text, " else", " other", " more"][: top + 1]
        if self._chat:
            infos = [{"token": w, "logprob": -0.5 - n, "bytes": list(w.encode())} for n, w in enumerate(words)]
            return {"content": [{**infos[0], "top_logprobs": infos}]}
        tops = {word: -0.5 - n for n, word in enumerate(words)}
        return {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [tops], "text_offset": [0]}

    async def _delta(
        self, index: int, delta: dict[str, Any], tokens: int, number: int = 5, logprobs: dict[str, Any] | None = None
    ) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        await self._frame([self._with_ids(choice, [number] * tokens)])

    async def _finish(self, index: int, reason: str) -> None:
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        await self._frame([{"index": index, **said, "finish_reason": reason}])

    def _with_ids(self, choice: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        if not self._body.get("return_token_ids"):
            return choice
        prompt = {"prompt_token_ids": [7] * self._prompt_tokens} if self._first else {}
        return {**choice, "token_ids": ids, **prompt}

    async def _frame(self, choices: list[dict[str, Any]], **more: Any) -> None:
        self._first = False
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        await self._reply.frame(json.dumps({"id": "x", "object": kind, "choices": choices, **more}).encode())
