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

from llama_orch.plugins.engines._mock_script import KnobError, knobs_of, tokenize

from .openai_talk import Reply, Talk


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
                answer = asyncio.create_task(self._answer(Reply(writer, self.fault), method, path, head, body))
                gone = asyncio.create_task(reader.read(1))
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    self.left.set()
                answer.cancel()
                gone.cancel()
                answered, byte = await asyncio.gather(answer, gone, return_exceptions=True)
                if self.left.is_set() and isinstance(answered, asyncio.CancelledError):
                    break
                if isinstance(answered, BaseException):
                    raise answered
                first = byte if isinstance(byte, bytes) else b""
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reply: Reply, method: str, path: str, head: str, raw: bytes) -> None:
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

    async def _get(self, reply: Reply, path: str) -> None:
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

    async def _post(self, reply: Reply, path: str, body: dict[str, Any]) -> None:
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

    async def _vectors(self, reply: Reply, body: dict[str, Any]) -> None:
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

    async def _ranks(self, reply: Reply, body: dict[str, Any]) -> None:
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

    async def _whole_fault(self, reply: Reply, texts: list[str]) -> bool:
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

    async def _early_fault(self, reply: Reply) -> bool:
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

    async def _too_long(self, reply: Reply) -> None:
        message = f"This model's maximum context length is {self.ctx} tokens. Please reduce the length of the input."
        code = 400 if self.vllm else "context_length_exceeded"
        await reply.whole(400, {"error": {"message": message, "type": "BadRequestError", "code": code}})

    # --- texts

    async def _generate(self, reply: Reply, body: dict[str, Any], *, chat: bool) -> None:
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
            await Talk(self, reply, body, text, count, chat=chat).say()
        finally:
            self.busy -= 1


def _chat_text(body: dict[str, Any]) -> str:
    """The prompt that its template makes of a chat."""
    tools = "".join(f"tool {tool['function']['name']}\n" for tool in body.get("tools") or ())
    turns = (f"{message['role']}: {message.get('content') or ''}\n" for message in body["messages"])
    return tools + "".join(turns) + "assistant:"
