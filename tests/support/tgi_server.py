"""A second implementation of TGI's public API (its OpenAPI document, version 2.4), made without the plugin's code.

No package of TGI can be installed without its images, so that this stands in for it: what the plugin is held to is the
published contract, not the server itself. Parameters that the contract does not name are refused here; TGI ignores them.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

from llama_orch.plugins.engines._mock_script import KnobError, tokenize

from .stand_in import Reply, StandIn, StruckError, speech_of

BOS, BOS_ID, EOS_ID = "<s>", 1, 2
PARAMETERS = frozenset({
    "adapter_id", "best_of", "decoder_input_details", "details", "do_sample", "frequency_penalty", "grammar",
    "max_new_tokens", "repetition_penalty", "return_full_text", "seed", "stop", "temperature", "top_k", "top_n_tokens",
    "top_p", "truncate", "typical_p", "watermark",
})  # fmt: skip


class InvalidError(Exception):
    """A request that TGI's validation refuses; the message is TGI's."""


class TgiServer(StandIn):
    """One model.

    Args:
        fault: of those that the contract of engines names; "" = none.
        chats: the model has a chat template, which writes the token that begins a sequence.
    """

    def __init__(self, *, fault: str = "", chats: bool = True) -> None:
        super().__init__(fault=fault)
        self.chats = chats
        self.max_stop_sequences = 4
        self.max_top_n_tokens = 5

    async def answer(self, reply: Reply, method: str, path: str, body: Any) -> None:
        match method, path:
            case "GET", "/health":
                await (
                    self.error(reply, 503, "Model is loading") if self.fault == "loading" else reply.whole(200, None)
                )
            case "GET", "/info":
                await reply.whole(200, self._info())
            case "GET", "/metrics":
                lines = f"tgi_batch_current_size {self.busy}\ntgi_queue_size 0\ntgi_request_count {self.completed}\n"
                await reply.whole(200, lines, "text/plain")
            case "POST", "/tokenize":
                await reply.whole(200, tokens_of(body["inputs"]))
            case "POST", "/chat_tokenize":
                await self._chat_tokenize(reply, body)
            case "POST", "/generate_stream":
                await self._generate(reply, body)
            case _:
                await reply.whole(404, "", "text/plain")

    def _info(self) -> dict[str, Any]:
        return {
            "model_id": "made/up",
            "model_sha": "0123456789abcdef",
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 3,
            "max_best_of": 2,
            "max_stop_sequences": self.max_stop_sequences,
            "max_input_tokens": self.ctx - 1,
            "max_total_tokens": self.ctx,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": "2.4.1",
            "sha": "fedcba9876543210",
            "docker_label": None,
        }

    async def _chat_tokenize(self, reply: Reply, body: dict[str, Any]) -> None:
        if not self.chats:
            await reply.whole(422, {"error": "Template error: template not found", "error_type": "template_error"})
            return
        text = BOS + "".join(f"[{m['role']}] {m['content']}\n" for m in body["messages"]) + "[assistant]"
        await reply.whole(200, {"tokenize_response": tokens_of(text), "templated_text": text})

    # --- streams

    async def _generate(self, reply: Reply, body: dict[str, Any]) -> None:
        if not await self.takes(reply):
            return
        try:
            parameters = self._valid(body)
        except InvalidError as error:
            # A stream has begun by then: the status is 200, and the error is an event of it.
            await reply.begin()
            told = {"error": f"Input validation error: {error}", "error_type": "validation"}
            await reply.chunk(b"data:" + json.dumps(told).encode() + b"\n\n")
            await reply.end()
            return
        self.busy += 1
        try:
            await reply.begin()
            frames = [frame async for frame in self._frames(reply, body["inputs"], parameters)]
            assert frames
            await reply.end()
        except StruckError:
            pass
        finally:
            self.busy -= 1
            self.completed += 1

    def _valid(self, body: dict[str, Any]) -> dict[str, Any]:
        found = body.get("parameters", {})
        unknown = found.keys() - PARAMETERS
        count = len(tokens_of(body["inputs"]))
        more = found["max_new_tokens"]
        if more is None:
            more = self.ctx - count
        grammar = found.get("grammar")
        checks = [
            (not unknown, f"unknown {unknown}"),
            (bool(body["inputs"]), "`inputs` cannot be empty"),
            (found.get("temperature", 1) > 0, "`temperature` must be strictly positive"),
            (found.get("repetition_penalty", 1) > 0, "`repetition_penalty` must be strictly positive"),
            (-2 <= found.get("frequency_penalty", 0) <= 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            (0 < found.get("top_p", 0.5) < 1, "`top_p` must be > 0.0 and < 1.0"),
            (found.get("top_k", 1) > 0, "`top_k` must be strictly positive"),
            (found.get("top_n_tokens", 0) <= self.max_top_n_tokens, "`top_n_tokens` must be >= 0 and <= 5"),
            (len(found.get("stop", [])) <= self.max_stop_sequences, "`stop` supports up to 4 stop sequences"),
            (more != 0, "`max_new_tokens` must be strictly positive"),
            (count < self.ctx, f"`inputs` must have less than {self.ctx - 1} tokens. Given: {count}"),
            (
                count + more <= self.ctx,
                f"`inputs` tokens + `max_new_tokens` must be <= {self.ctx}. Given: {count} `inputs` tokens and {more}",
            ),
            (grammar is None or "properties" in grammar["value"], "Grammar must have a 'properties' field"),
        ]
        for fine, message in checks:
            if not fine:
                raise InvalidError(message)
        return {**found, "max_new_tokens": more, "input_length": count}

    async def _frames(self, reply: Reply, prompt: str, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            speech, rate = speech_of(prompt, seed=asked["seed"], limit=asked["max_new_tokens"], room=self.ctx, stop=[])
        except KnobError as error:
            told = {"error": f"Input validation error: {error}", "error_type": "validation"}
            await reply.chunk(b"data:" + json.dumps(told).encode() + b"\n\n")
            yield b""
            return
        texts = ["{", '"done"', ":", "true", "}"]
        said_so_far, tokens, held = "", 0, None
        async for said in self.words(reply, speech, rate):
            if "grammar" in asked and tokens < len(texts):
                said = type(said)(texts[tokens], 1, 50 + tokens)
            for n in range(said.tokens):
                last = n == said.tokens - 1
                if held is not None:
                    await reply.chunk(held)
                    yield held
                tokens += 1
                held = self._token(tokens, said.text if last else "", said.id if last and said.id >= 0 else 3, asked)
                said_so_far += said.text if last else ""
            if any(stop in said_so_far for stop in asked.get("stop", [])):
                async for frame in self._last(reply, held, tokens, "stop_sequence", said_so_far, asked):
                    yield frame
                return
            if "grammar" in asked and tokens == len(texts):
                break
        if speech.stop_type != "limit" and tokens < asked["max_new_tokens"]:
            if held is not None:
                await reply.chunk(held)
                yield held
            tokens += 1
            held = self._token(tokens, "</s>", EOS_ID, asked, special=True)
            reason = "eos_token"
        else:
            reason = "length"
        async for frame in self._last(reply, held, tokens, reason, said_so_far, asked):
            yield frame

    async def _last(
        self, reply: Reply, held: bytes | None, tokens: int, reason: str, text: str, asked: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        assert held is not None
        frame = json.loads(held.removeprefix(b"data:"))
        frame["generated_text"] = text
        frame["details"] = {
            "finish_reason": reason,
            "generated_tokens": tokens,
            "input_length": asked["input_length"],
            "seed": asked["seed"],
        }
        whole = b"data:" + json.dumps(frame, ensure_ascii=False).encode() + b"\n\n"
        await reply.chunk(whole)
        yield whole

    def _token(self, index: int, text: str, token: int, asked: dict[str, Any], *, special: bool = False) -> bytes:
        frame: dict[str, Any] = {
            "index": index,
            "token": {"id": token, "text": text, "logprob": -0.25, "special": special},
        }
        if asked.get("top_n_tokens"):
            frame["top_tokens"] = [
                {"id": token + n, "text": f"{text}{n}", "logprob": -0.25 - n, "special": False}
                for n in range(asked["top_n_tokens"])
            ]
        frame |= {"generated_text": None, "details": None}
        return b"data:" + json.dumps(frame, ensure_ascii=False).encode() + b"\n\n"

    # --- StandIn

    async def error(self, reply: Reply, status: int, message: str) -> None:
        kind = {"refused": "overloaded", "server-error": "incomplete_generation"}.get(self.fault, "loading")
        await reply.whole({"overloaded": 429}.get(kind, status), {"error": message, "error_type": kind})

    def error_frame(self, message: str) -> bytes:
        told = {"error": f"Request failed during generation: {message}", "error_type": "generation"}
        return b"data:" + json.dumps(told).encode() + b"\n\n"

    def text_frame(self, text: str) -> bytes:
        return self._token(1, text, 3, {})


def tokens_of(text: str) -> list[dict[str, Any]]:
    """The tokens of a text, with the one that begins a sequence before them."""
    found = [{"id": BOS_ID, "text": "", "start": 0, "stop": 0}]
    at = 0
    if text.startswith(BOS):
        at = len(BOS)
        found.append({"id": BOS_ID, "text": BOS, "start": 0, "stop": at})
    ids = tokenize(text[at:], add_special=False)
    for token, piece in zip(ids, re.finditer(r"\s*\w+|\s*[^\w\s]|\s+", text[at:]), strict=True):
        found.append({"id": token, "text": piece.group(), "start": at + piece.start(), "stop": at + piece.end()})
    return found
