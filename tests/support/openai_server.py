"""A stand-in for servers that speak OpenAI's API, and for vLLM, which acts faults as it is told.

What it says is the mock's made-up text: ``[[mock tokens=100 rate=500]]`` in a prompt rules it. As vLLM it has vLLM's
routes and fields beside OpenAI's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from llama_orch.plugins.engines._mock_script import KnobError, Said, Speech, knobs_of, tokenize

#: tokens of a text before a fault strikes
AFTER = 3
CALL_NAME = "get_weather"
ARGUMENTS = ('{"city": ', '"Bern"', ', "days": ', "2}")
THOUGHTS = ("first", " this", ", then", " that")


class StandIn:
    """What it was asked, and how it will fail.

    Args:
        fault: of those that the contract names; "" = none.
        vllm: it is vLLM.
        thinks: chats begin with thoughts, which it tells apart.
        key: what has to stand behind ``Bearer``; "" = nothing.
        lacks: routes that it does not have.
        owner: who is said to own the model.
    """

    def __init__(
        self,
        *,
        fault: str = "",
        vllm: bool = False,
        thinks: bool = False,
        key: str = "",
        lacks: tuple[str, ...] = (),
        owner: str = "somebody",
    ) -> None:
        self.fault = fault
        self.vllm = vllm
        self.thinks = thinks
        self.key = key
        self.lacks = lacks
        self.owner = "vllm" if vllm else owner
        self.ctx = 4096
        #: requests with a body, as ``(path, body)``
        self.asked: list[tuple[str, dict[str, Any]]] = []
        #: heads of all requests
        self.heads: list[str] = []
        #: streams that go on
        self.busy = 0
        #: set whenever a client leaves a stream before its end
        self.left = asyncio.Event()
        self.port = 0
        self._pieces: dict[int, str] = {}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[StandIn]:
        """Listen on a free port of loopback; options are those of ``asyncio.start_server``."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, **options)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.die()

    def die(self) -> None:
        """Nobody answers any more, and every connection is reset."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    # --- connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        first = b""
        try:
            while True:
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                length = next(
                    (
                        int(line.split(":")[1])
                        for line in head.split("\r\n")
                        if line.lower().startswith("content-length")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                method, path, _ = head.split(" ", 2)
                answer = asyncio.create_task(self._answer(_Reply(writer, self.fault), method, path, head, body))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                    self.left.set()
                    break
                answer.result()
                gone.cancel()
                results = await asyncio.gather(gone, return_exceptions=True)
                first = results[0] if isinstance(results[0], bytes) else b""
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reply: _Reply, method: str, path: str, head: str, raw: bytes) -> None:
        if self.key and f"Authorization: Bearer {self.key}\r\n" not in head:
            said = next((line for line in head.split("\r\n") if line.startswith("Authorization")), "none")
            await reply.error(401, f"Incorrect API key provided: {said}")
        elif method == "GET":
            await self._get(reply, path)
        elif path in self.lacks or path not in self._routes():
            await reply.whole(404, {"detail": "Not Found"})
        else:
            body = json.loads(raw)
            self.asked.append((path, body))
            try:
                await self._post(reply, path, body)
            except KnobError as error:
                await reply.error(400, str(error))

    def _routes(self) -> tuple[str, ...]:
        routes = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/rerank")
        return (*routes, "/tokenize", "/detokenize") if self.vllm else routes

    async def _get(self, reply: _Reply, path: str) -> None:
        if self.fault == "loading":
            await reply.error(503, "Loading model")
        elif path == "/v1/models":
            item: dict[str, Any] = {"id": "made-up", "object": "model", "owned_by": self.owner}
            await reply.whole(200, {"object": "list", "data": [{**item, "max_model_len": self.ctx}]})
        elif self.vllm and path == "/health":
            await reply.whole(200, None)
        elif self.vllm and path == "/version":
            await reply.whole(200, {"version": "0.0.1"})
        elif self.vllm and path == "/metrics":
            lines = [
                'vllm:num_requests_running{engine="0",model_name="made-up"} %.1f' % self.busy,  # noqa: UP031
                'vllm:num_requests_waiting{engine="0",model_name="made-up"} 0.0',
                'vllm:kv_cache_usage_perc{engine="0",model_name="made-up"} 0.25',
                'vllm:request_success_total{engine="0",finished_reason="stop",model_name="made-up"} 3.0',
                'vllm:request_success_created{engine="0",finished_reason="stop",model_name="made-up"} 1.7e+09',
            ]
            await reply.whole(200, "\n".join(lines) + "\n")
        else:
            await reply.whole(404, {"detail": "Not Found"})

    async def _post(self, reply: _Reply, path: str, body: dict[str, Any]) -> None:
        match path:
            case "/v1/completions" | "/v1/chat/completions":
                await self._generate(reply, body, chat="chat" in path)
            case "/v1/embeddings":
                await self._vectors(reply, body)
            case "/v1/rerank":
                await self._ranks(reply, body)
            case "/tokenize":
                text = body.get("prompt")
                if text is None:
                    ids = self._tokens(_chat_text(body), add_special=False)
                else:
                    ids = self._tokens(text, add_special=body["add_special_tokens"])
                await reply.whole(200, {"count": len(ids), "max_model_len": self.ctx, "tokens": ids})
            case _:
                await reply.whole(200, {"prompt": "".join(self._pieces.get(number, "") for number in body["tokens"])})

    def _tokens(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of a text; their texts are remembered."""
        ids = tokenize(text, add_special=False)
        self._pieces.update(zip(ids, re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text), strict=True))
        return [1, *ids] if add_special else ids

    # --- results in one piece

    async def _vectors(self, reply: _Reply, body: dict[str, Any]) -> None:
        texts = body.get("input")
        if not texts:
            await reply.error(400, "input: Field required")
            return
        if not await self._whole_fault(reply, texts):
            return
        vectors = [[(zlib.crc32(f"{n} {text}".encode()) % 2000 - 1000) / 1000 for n in range(8)] for text in texts]
        data: list[dict[str, Any]] = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        if body.get("encoding_format") == "base64":
            data = [
                {**item, "embedding": base64.b64encode(struct.pack("<8f", *item["embedding"])).decode()}
                for item in data
            ]
        count = sum(len(tokenize(text, add_special=True)) for text in texts)
        await reply.whole(200, {"data": data[::-1], "usage": {"prompt_tokens": count, "total_tokens": count}})

    async def _ranks(self, reply: _Reply, body: dict[str, Any]) -> None:
        texts = body.get("documents")
        if not texts:
            await reply.error(400, "documents: Field required")
            return
        if not await self._whole_fault(reply, texts):
            return
        scores = [zlib.crc32(f"{body['query']} {text}".encode()) / 2**32 for text in texts]
        ranks = [{"index": n, "relevance_score": score} for n, score in enumerate(scores)]
        count = sum(len(tokenize(text, add_special=True)) for text in texts)
        ranks.sort(key=lambda rank: -rank["relevance_score"])
        await reply.whole(200, {"results": ranks, "usage": {"total_tokens": count}})

    async def _whole_fault(self, reply: _Reply, texts: list[str]) -> bool:
        """Whether there is an answer after all."""
        if any(len(tokenize(text, add_special=True)) >= self.ctx for text in texts):
            await self._too_long(reply)
            return False
        if not await self._early_fault(reply):
            return False
        match self.fault:
            case "cut" | "dies":
                await reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                if self.fault == "dies":
                    self.die()
                reply.writer.transport.abort()
            case "garbage" | "unfinished":
                await reply.whole(200, '{"data": <<<')
            case "bad-utf8":
                await reply.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"data":"\xff"}')
            case "error-frame":
                await reply.whole(200, {"error": {"message": "it failed", "code": 500}})
            case "silent":
                await asyncio.Event().wait()
            case _:
                return True
        return False

    async def _early_fault(self, reply: _Reply) -> bool:
        """Whether the request is taken."""
        match self.fault:
            case "refused" | "loading":
                await reply.error(503, "The server is overloaded")
            case "server-error":
                await reply.error(500, "it failed")
            case "cut-early":
                reply.writer.transport.abort()
            case _:
                return True
        return False

    async def _too_long(self, reply: _Reply) -> None:
        message = f"This model's maximum context length is {self.ctx} tokens. Please reduce the length of the input."
        code = 400 if self.vllm else "context_length_exceeded"
        await reply.whole(400, {"error": {"message": message, "type": "BadRequestError", "code": code}})

    # --- texts

    async def _generate(self, reply: _Reply, body: dict[str, Any], *, chat: bool) -> None:
        prompt = _chat_text(body) if chat and "messages" in body else body.get("prompt")
        if not prompt:
            await reply.error(400, "Either prompt or messages must be provided and non-empty.")
            return
        if not body.get("stream"):
            await reply.whole(200, {"choices": []})  # a look at what it can do
            return
        count = len(prompt) if isinstance(prompt, list) else len(tokenize(prompt, add_special=not chat))
        text = " ".join(map(str, prompt)) if isinstance(prompt, list) else prompt
        knobs_of(text, {})
        if count >= self.ctx:
            await self._too_long(reply)
            return
        if self.vllm and body.get("max_tokens", 16) > self.ctx:
            await reply.error(400, f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={self.ctx}.")
            return
        if not await self._early_fault(reply):
            return
        self.busy += 1
        try:
            await reply.begin()
            await _Talk(self, reply, body, text, count, chat=chat).say()
        finally:
            self.busy -= 1


class _Reply:
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


class _Struck(Exception):
    """A fault ended the stream."""


class _Talk:
    """One stream."""

    def __init__(
        self, server: StandIn, reply: _Reply, body: dict[str, Any], prompt: str, prompt_tokens: int, *, chat: bool
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
        except _Struck:
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
        raise _Struck

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


def _chat_text(body: dict[str, Any]) -> str:
    """The prompt that its template makes of a chat."""
    tools = "".join(f"tool {tool['function']['name']}\n" for tool in body.get("tools") or ())
    turns = (f"{message['role']}: {message.get('content') or ''}\n" for message in body["messages"])
    return tools + "".join(turns) + "assistant:"
