"""What a run of the mock looks like on llama.cpp's wires: completions, chats, and results in one piece."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from .. import CALL, REASONING, TOOL, ChatJob, TokenLogprob
from ._mock_machine import BAN, Request, Run
from ._mock_script import Said
from ._mock_words import embedding, likelihood, score

_encode = msgspec.json.Encoder().encode
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LAST: Final = b"0\r\n\r\n"
#: faults that are answers of their own: status and type of the error
_REFUSALS: Final = {
    "refuse": (503, "unavailable_error"),
    "500": (500, "server_error"),
    "invalid": (400, "invalid_request_error"),
    "context": (400, "exceed_context_size_error"),
}


class Wire(Protocol):
    """The connection that an answer goes to."""

    def write(self, data: bytes) -> None: ...

    def reply(self, status: int, value: Any) -> None: ...

    def refuse(self, status: int, kind: str, message: str, **more: Any) -> None: ...

    def over(self) -> None: ...

    def abort(self) -> None: ...

    def die(self) -> None: ...


def completion_request(asked: Mapping[str, Any]) -> Request:
    """The body of `/completion` as the machine takes it."""
    prompt = asked["prompt"]
    parts = [prompt] if isinstance(prompt, str) else list(prompt)
    return msgspec.structs.replace(
        _request(asked, "n_predict"),
        prompt="".join(part for part in parts if isinstance(part, str)),
        prompt_ids=[part for part in parts if isinstance(part, int)],
    )


def chat_request(asked: Mapping[str, Any], prompt: str) -> Request:
    """The body of `/v1/chat/completions` as the machine takes it, with its prompt as rendered."""
    wanted = asked.get("response_format") or {}
    chat = ChatJob(
        messages=asked["messages"],
        tools=asked.get("tools") or (),
        tool_choice=asked.get("tool_choice") or "",
        parallel_tool_calls=asked.get("parallel_tool_calls"),
        reasoning_effort=asked.get("reasoning_effort") or "",
        template_kwargs=asked.get("chat_template_kwargs") or {},
    )
    schema = (wanted.get("json_schema") or {}).get("schema")
    return msgspec.structs.replace(_request(asked, "max_tokens"), prompt=prompt, chat=chat, json_schema=schema)


def _request(asked: Mapping[str, Any], bound: str) -> Request:
    stop = asked.get("stop") or ()
    return Request(
        prompt="",
        slot=int(asked.get("id_slot", -1)),
        seed=int(asked.get("seed", 0)),
        max_tokens=max(int(asked.get(bound, -1)), 0),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        banned=frozenset(int(token) for token, bias in asked.get("logit_bias") or () if bias <= -BAN),
        cache_prompt=bool(asked.get("cache_prompt", True)),
    )


class Answer:
    """One run, told as an answer of llama.cpp."""

    def __init__(self, wire: Wire, ctx: int) -> None:
        self._wire = wire
        self._ctx = ctx
        self._prompt_tokens = 0
        self._counted = 0
        #: the connection takes no more for now
        self.full = False
        self.run: Run | None = None

    def left(self) -> None:
        """The client is gone."""
        if self.run is not None:
            self.run.cancel()

    def drained(self) -> None:
        """The client reads again."""
        self.full = False
        if self.run is not None:
            self.run.resume()

    # --- Outlet

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        progress = {"total": prompt_tokens, "cache": cached_tokens, "processed": cached_tokens, "time_ms": 0}
        self._wire.write(_HEAD + _chunk(self.opening(progress)))

    def said(self, frames: list[Said]) -> None:
        out: list[bytes] = []
        for frame in frames:
            self._counted += frame.tokens
            if frame.text or frame.id >= 0:  # else it is a part of a character: the last frame's count tells
                out.append(_chunk(self.piece(frame)))
        self._wire.write(b"".join(out))

    def ended(self, run: Run) -> None:
        self._wire.write(b"".join(map(_chunk, self.closing(run))) + _LAST)
        self._wire.over()

    def broke(self, kind: str, message: str) -> None:
        wire = self._wire
        if kind in _REFUSALS:
            status, name = _REFUSALS[kind]
            more = {"n_prompt_tokens": self._prompt_tokens, "n_ctx": self._ctx} if kind == "context" else {}
            wire.refuse(status, name, message, **more)
        elif kind == "cut":
            wire.abort()
        elif kind in ("die", "gone"):
            wire.die()
        else:
            wire.write(self.broken(kind, message) + _LAST)
            wire.over()

    def blocked(self) -> bool:
        return self.full

    def broken(self, kind: str, message: str) -> bytes:
        """Bytes of a fault in the middle of a stream."""
        if kind == "garbage":
            return _chunk(b'{"content": <<<')
        if kind == "utf8":
            return _chunk(self.piece(Said("@", 1, 3)).replace(b'"@"', b'"\xff\xc3"'))
        if kind == "error":
            return _chunk(_encode({"error": {"code": 500, "message": message, "type": "server_error"}}))
        return b""  # unfinished

    # --- what the wires differ in

    def opening(self, progress: Mapping[str, int]) -> bytes:
        """The first frame."""
        raise NotImplementedError

    def piece(self, frame: Said) -> bytes:
        """A frame with something said."""
        raise NotImplementedError

    def closing(self, run: Run) -> list[bytes]:
        """The last frames."""
        raise NotImplementedError

    def timings(self, run: Run) -> dict[str, Any]:
        """How long it took, as llama.cpp tells it."""
        return {
            "cache_n": run.cached_tokens,
            "prompt_n": run.prompt_tokens - run.cached_tokens,
            "prompt_ms": run.knobs.prefill_ms,
            "predicted_n": self._counted,
            "predicted_ms": run.decode_ms,
        }


class CompletionAnswer(Answer):
    """Told as `/completion` tells it."""

    def __init__(self, wire: Wire, ctx: int, asked: Mapping[str, Any]) -> None:
        super().__init__(wire, ctx)
        self._top = int(asked.get("n_probs", 0))

    def opening(self, progress: Mapping[str, int]) -> bytes:
        return self._frame("", [0], prompt_progress=progress)

    def piece(self, frame: Said) -> bytes:
        more: dict[str, Any] = {}
        if self._top:
            likely = likelihood(frame.text, max(frame.id, 0), self._top)
            more["completion_probabilities"] = [_probability(likely, frame.id)]
        return self._frame(frame.text, [] if frame.id < 0 else [frame.id], **more)

    def closing(self, run: Run) -> list[bytes]:
        speech = run.ends[-1]
        last = {
            "content": "",
            "tokens": [],
            "id_slot": run.slot,
            "stop": True,
            "tokens_predicted": self._counted,
            "tokens_evaluated": self._prompt_tokens,
            "truncated": False,
            "stop_type": speech.stop_type,
            "stopping_word": speech.stop_word,
            "timings": self.timings(run),
        }
        return [_encode(last)]

    def _frame(self, text: str, ids: list[int], **more: Any) -> bytes:
        return _encode(
            {
                "index": 0,
                "content": text,
                "tokens": ids,
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": self._counted,
                "tokens_evaluated": self._prompt_tokens,
                **more,
            }
        )


class ChatAnswer(Answer):
    """Told as `/v1/chat/completions` tells it."""

    def __init__(self, wire: Wire, ctx: int, asked: Mapping[str, Any]) -> None:
        super().__init__(wire, ctx)
        self._top = int(asked.get("top_logprobs") or 0) if asked.get("logprobs") else -1
        self._verbose = bool(asked.get("verbose"))

    def opening(self, progress: Mapping[str, int]) -> bytes:
        return self._frame({"role": "assistant", "content": None}, prompt_progress=progress)

    def piece(self, frame: Said) -> bytes:
        channel, text = frame.channel, frame.text
        delta: dict[str, Any]
        if channel == REASONING:
            delta = {"reasoning_content": text}
        elif channel.startswith(CALL):
            index = int(channel.removeprefix(CALL))
            function = {"name": text, "arguments": ""}
            delta = {"tool_calls": [{"index": index, "id": f"id{index}", "type": "function", "function": function}]}
        elif channel.startswith(TOOL):
            delta = {"tool_calls": [{"index": int(channel.removeprefix(TOOL)), "function": {"arguments": text}}]}
        else:
            delta = {"content": text}
        logprobs = None
        if self._top >= 0 and frame.tokens:
            logprobs = {"content": [_probability(likelihood(text, max(frame.id, 0), self._top), frame.id)]}
        return self._frame(delta, logprobs=logprobs, timings={"predicted_n": self._counted})

    def closing(self, run: Run) -> list[bytes]:
        usage = {
            "completion_tokens": self._counted,
            "prompt_tokens": run.prompt_tokens,
            "total_tokens": self._counted + run.prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": run.cached_tokens},
        }
        last = {"choices": [], "usage": usage, "timings": self.timings(run), "object": "chat.completion.chunk"}
        speech, more = run.ends[-1], {}
        if self._verbose:
            more["__verbose"] = {"stop_type": speech.stop_type, "stopping_word": speech.stop_word}
        return [self._frame({}, finish_reason=speech.finish_reason, **more), _encode(last), b"[DONE]"]

    @staticmethod
    def _frame(
        delta: Mapping[str, Any], *, finish_reason: str | None = None, logprobs: Any = None, **more: Any
    ) -> bytes:
        choice: dict[str, Any] = {"finish_reason": finish_reason, "index": 0, "delta": delta}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return _encode({"choices": [choice], "object": "chat.completion.chunk", **more})


class ResultAnswer(Answer):
    """Told as `/v1/embeddings` and `/v1/rerank` tell it: all at once."""

    def __init__(self, wire: Wire, ctx: int, query: str | None) -> None:
        super().__init__(wire, ctx)
        self._query = query

    def ended(self, run: Run) -> None:
        inputs, query = run.request.inputs, self._query
        usage = {"prompt_tokens": run.prompt_tokens, "total_tokens": run.prompt_tokens}
        found: dict[str, Any] = {"object": "list", "usage": usage}
        if query is None:
            vectors = [base64.b64encode(embedding(text)).decode() for text in inputs]
            found["data"] = [{"index": n, "object": "embedding", "embedding": v} for n, v in enumerate(vectors)]
        else:
            scores = [{"index": n, "relevance_score": score(query, text)} for n, text in enumerate(inputs)]
            found["results"] = sorted(scores, key=lambda one: -one["relevance_score"])
        self._wire.over()
        self._wire.reply(200, found)

    def broke(self, kind: str, message: str) -> None:
        if kind in ("garbage", "utf8"):
            self._wire.over()
            self._wire.reply(200, {"data": [], "results": "?"})
        elif kind in ("error", "unfinished"):
            super().broke("500" if kind == "error" else "cut", message)
        else:
            super().broke(kind, message)


def _probability(likely: TokenLogprob, token: int) -> dict[str, Any]:
    return {
        "id": token,
        "token": likely.token,
        "bytes": list(likely.raw),
        "logprob": float(likely.logprob),
        "top_logprobs": [_probability(other, 0) for other in likely.top],
    }


def _chunk(payload: bytes) -> bytes:
    frame = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(frame), frame)
