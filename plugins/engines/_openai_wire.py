"""What servers that speak OpenAI's API send: frames, results, errors; and what an error means for an attempt."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from .. import AttemptFailure

#: a count or an id; larger ones must not reach the journal
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
#: where the tool's call stands among its like; no answer has more
CallIndex = Annotated[int, msgspec.Meta(ge=0, le=1023)]
#: so much of an error's text is kept
MAX_MESSAGE: Final = 2000
#: how servers say that a prompt does not fit; by code or type where they have one, else by words
_CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error", "CONTEXT_EXCEEDED"})
_CONTEXT_WORDS: Final = re.compile(
    r"maximum context length|context (?:length|size|window)|max_model_len"
    r"|larger than the max(?:imum)? (?:context|batch)|longer than the (?:maximum )?(?:context|model)",
    re.IGNORECASE,
)
#: llama.cpp of an input that has to be read at once; it calls that its own mistake, with 500
_TOO_LARGE: Final = "is too large to process"
_BUSY: Final = frozenset({408, 425, 429, 503})


class Alternative(msgspec.Struct, gc=False):
    """A token that could have been."""

    token: str = ""
    logprob: float | None = None
    bytes: list[Byte] | None = None


class TokenInfo(msgspec.Struct, gc=False):
    """A token and how likely it was, as chats have it."""

    token: str = ""
    logprob: float | None = None
    bytes: list[Byte] | None = None
    top_logprobs: list[Alternative] = []
    #: llama.cpp tells it
    id: Int32 | None = None


class Logprobs(msgspec.Struct, gc=False):
    """Both shapes: ``content`` of chats, and the parallel lists of completions."""

    content: list[TokenInfo] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Function(msgspec.Struct, gc=False):
    """A piece of a call."""

    name: str | None = None
    arguments: str | None = None


class ToolDelta(msgspec.Struct, gc=False):
    """A piece of one of the calls."""

    index: CallIndex | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    """What a frame of a chat adds to a message."""

    content: str | None = None
    refusal: str | None = None
    #: its name at llama.cpp, DeepSeek and others
    reasoning_content: str | None = None
    #: its name at vLLM and others
    reasoning: str | None = None
    tool_calls: list[ToolDelta] | None = None


class ChoiceDelta(msgspec.Struct, gc=False):
    """What a frame adds to one of the answers."""

    index: Int32 = 0
    #: of a completion
    text: str | None = None
    #: of a chat
    delta: Delta | None = None
    finish_reason: str | None = None
    #: vLLM's: the stop string or the token that ended it
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None
    #: vLLM's, on demand
    token_ids: list[Int32] | None = None
    prompt_token_ids: list[Int32] | None = None


class PromptDetails(msgspec.Struct, gc=False):
    """Of a prompt's tokens, the cached ones."""

    cached_tokens: Int32 | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens by the server's count."""

    prompt_tokens: Int32 | None = None
    completion_tokens: Int32 | None = None
    total_tokens: Int32 | None = None
    prompt_tokens_details: PromptDetails | None = None


class Timings(msgspec.Struct, gc=False):
    """llama.cpp's own account."""

    cache_n: Int32 = 0
    prompt_n: Int32 = 0
    prompt_ms: float | None = None
    predicted_n: Int32 | None = None
    predicted_ms: float | None = None


class Chunk(msgspec.Struct, gc=False):
    """Any frame of a stream."""

    choices: list[ChoiceDelta] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_token_ids: list[Int32] | None = None
    error: Any = None
    #: "error" where an error stands in the frame itself
    object: str = ""
    message: Any = None
    code: Any = None
    type: Any = None


class VectorItem(msgspec.Struct, gc=False):
    """One embedding."""

    embedding: list[float] | str
    index: Int32 | None = None


class Vectors(msgspec.Struct, gc=False):
    """Answer of ``/embeddings``."""

    data: list[VectorItem]
    usage: Usage | None = None


class RankItem(msgspec.Struct, gc=False):
    """One text's score."""

    index: Int32
    relevance_score: float | None = None
    score: float | None = None


class Ranks(msgspec.Struct, gc=False):
    """Answer of ``/rerank``."""

    results: list[RankItem]
    usage: Usage | None = None


class ModelMeta(msgspec.Struct, gc=False, omit_defaults=True):
    """What llama.cpp tells of the weights."""

    vocab_type: int = 0
    n_vocab: int = 0
    n_ctx: int = 0
    n_ctx_train: int = 0
    n_embd: int = 0
    n_params: int = 0
    size: int = 0
    ftype: str = ""


class ModelItem(msgspec.Struct, gc=False):
    """One of ``/models``, with what several kinds of servers add."""

    id: str = ""
    owned_by: str = ""
    #: vLLM: where it came from
    root: str | None = None
    #: vLLM
    max_model_len: int | None = None
    #: gateways
    context_length: int | None = None
    context_window: int | None = None
    max_context_length: int | None = None
    meta: ModelMeta | None = None
    aliases: list[str] = []

    @property
    def ctx(self) -> int:
        """Its context in tokens; 0 where that is not told."""
        told = (self.max_model_len, self.context_length, self.context_window, self.max_context_length)
        return next((number for number in told if number), 0) or (self.meta.n_ctx if self.meta else 0)


class Models(msgspec.Struct, gc=False):
    """Answer of ``/models``."""

    data: list[ModelItem] = []


class WireError(msgspec.Struct, gc=False):
    """An error, whatever shape it came in."""

    message: str = ""
    type: str = ""
    code: str = ""
    #: status by the error's own word; 0 = it does not say
    status: int = 0


class _ErrorBody(msgspec.Struct, gc=False):
    error: Any = None
    #: FastAPI's
    detail: Any = None
    message: Any = None
    code: Any = None
    type: Any = None


_decode_error = msgspec.json.Decoder(_ErrorBody).decode
decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_vectors = msgspec.json.Decoder(Vectors).decode
decode_ranks = msgspec.json.Decoder(Ranks).decode
decode_models = msgspec.json.Decoder(Models).decode


def wire_error(told: Any, *, otherwise: str = "") -> WireError:
    """An error from what stands under ``error``: an object or a text."""
    if isinstance(told, str):
        return WireError(message=told[:MAX_MESSAGE] or otherwise)
    if not isinstance(told, dict):
        return WireError(message=otherwise)
    code = told.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 0
    message = told.get("message") or told.get("detail") or otherwise
    return WireError(
        message=str(message)[:MAX_MESSAGE],
        type=str(told.get("type") or ""),
        code="" if code is None else str(code),
        status=status,
    )


def failure_of(status: int, error: WireError) -> AttemptFailure:
    """What an error means for the attempt, whether it came as a status or inside a stream."""
    message = error.message or f"HTTP {status}"
    if status in _BUSY:
        return AttemptFailure(kind="refused", message=message)
    in_words = _TOO_LARGE in message or (400 <= status < 500 and _CONTEXT_WORDS.search(message) is not None)
    if in_words or not _CONTEXT_CODES.isdisjoint((error.code, error.type)):
        return AttemptFailure(kind="context", message=message, retriable=False)
    if 300 <= status < 500 or status == 501:
        return AttemptFailure(kind="invalid", message=message, retriable=False)
    return AttemptFailure(kind="server-error", message=message)


def failure_of_body(status: int, body: bytes, *, route: str) -> AttemptFailure:
    """The same for the body of an answer that is no stream.

    Args:
        status: of the answer.
        body: as far as it was read.
        route: what was asked for, so that a server which lacks it is told by name.
    """
    error = error_of_body(status, body)
    if status in (401, 403):
        error.message = f"the server refused the key (HTTP {status}): {error.message}"
    elif 300 <= status < 400:
        error.message = f"the server answers {route} with HTTP {status} and sends elsewhere: correct the pool's url"
    elif status in (404, 405, 501) and error.type != "exceed_context_size_error":
        error.message = f"the server has no {route} for this model (HTTP {status}): {error.message}"
        return AttemptFailure(kind="invalid", message=error.message, retriable=False)
    return failure_of(status, error)


def error_of_body(status: int, body: bytes) -> WireError:
    """The error that a body holds, in any of the shapes."""
    try:
        told = _decode_error(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return WireError(message=f"HTTP {status}{f': {text}' if text else ''}")
    if told.error is not None:
        return wire_error(told.error, otherwise=f"HTTP {status}")
    if told.message is not None:
        return wire_error(msgspec.structs.asdict(told), otherwise=f"HTTP {status}")
    return WireError(message=f"HTTP {status}" if told.detail is None else str(told.detail)[:MAX_MESSAGE])
