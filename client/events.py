"""What a stream says, typed (STR-1). Frames that this version does not know are left out."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from .errors import LlamaOrchError, TaskFailedError
from .sse import Frame
from .types import TokenLogprob, Usage

#: frames that the reader itself puts between the server's
RECONNECTED, RESTARTED = "reconnected", "resume_lost"


class Event(Struct, frozen=True, kw_only=True):
    """Root of what a stream says."""

    #: id of its frame, from which a stream can be taken up again; "" for what has no place in the stream
    frame_id: str = ""


class Queued(Event, frozen=True, kw_only=True):
    """The task waits; told again when its place changes."""

    queue_position: int = 0
    predicted_start_ms: int | None = None


class Started(Event, frozen=True, kw_only=True):
    """An engine has begun."""

    task_id: str = ""
    queue_position: int = 0
    predicted_start_ms: int = 0
    queue_time_ms: int = 0
    engine: str = ""
    engine_version: str = ""
    pool_id: str = ""
    replica_id: str = ""
    model_digest: str = ""
    sampler_profile_version: str = ""
    seed: int = 0
    #: of a session's task: whether the engine still held what was said before; ``None`` = it is of none
    kv_warmth: bool | None = None
    #: ``False``: what the session had elsewhere is read again here
    kv_migrated: bool | None = None


class Token(Event, frozen=True, kw_only=True):
    """A piece of an answer."""

    #: empty while a part of a character is held back
    text: str = msgspec.field(name="t", default="")
    #: index of its (first) token
    index: int = msgspec.field(name="i", default=0)
    #: tokens that it stands for
    tokens: int = msgspec.field(name="n", default=1)
    #: the token's id, where it is one token whose id is known
    id: int | None = None
    #: ids of several
    ids: list[int] = []
    logprob: float | list[TokenLogprob] | None = None
    #: which answer, where more than one was asked for
    choice: int = 0
    #: "" = said aloud, "reasoning", "call:<n>" = a function's name, "tool:<n>" = a piece of its arguments
    channel: str = ""


class Metrics(Event, frozen=True, kw_only=True):
    """How things are just now."""

    queue_depth: int = 0
    queue_position: int | None = None
    on_time_probability: float | None = None
    tokens_per_second: float | None = None
    kv_warmth: bool | None = None
    gpus: list[dict[str, Any]] = []


class End(Event, frozen=True, kw_only=True):
    """The one end of a task that did not fail."""

    tokens_out: int = 0
    decode_ms: int = 0
    #: stop, length, tool_calls or cancelled
    finish_reason: str = ""
    usage: Usage = Usage()
    recovery_used: str = ""


class Reconnected(Event, frozen=True, kw_only=True):
    """The connection broke; the stream goes on after the frame ``after``, with no gap."""

    after: str = ""
    attempt: int = 0


class Restarted(Event, frozen=True, kw_only=True):
    """The server lost what it had sent last: drop what came after ``last_id_held``; the stream goes on from there."""

    last_id_held: str = ""
    seen: str = ""


_KINDS: dict[str, type[Event]] = {
    "queued": Queued,
    "started": Started,
    "token": Token,
    "metrics": Metrics,
    "end": End,
    RECONNECTED: Reconnected,
    RESTARTED: Restarted,
}
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _KINDS.items()}
_ids = msgspec.structs.replace


def event_of(frame: Frame, task_id: str) -> Event | None:
    """A frame as what it says; ``None`` when it is of a kind that this version does not know.

    :raises TaskFailedError: it is the end of a task that failed.
    :raises LlamaOrchError: its data is none of ours.
    """
    try:
        if frame.event == "error":
            raise TaskFailedError(msgspec.json.decode(frame.data, type=dict), task_id=task_id)
        decoder = _DECODERS.get(frame.event)
        if decoder is None:
            return None
        return _ids(decoder.decode(frame.data), frame_id=frame.id)
    except (msgspec.MsgspecError, ValueError) as error:
        raise LlamaOrchError(f"a frame is not what a llama-orch server sends: {frame.data[:80]!r}: {error}") from error
