"""Traces: the tasks of a simulation, one JSON object a line.

A task arrives at a time (``at_ms``), or some time after another one ended (``after`` and ``delay_ms``), as an agent's
next step does. Tokens are given, texts are not: a simulation needs only their lengths.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Milliseconds = Annotated[int, Meta(ge=0, le=31_536_000_000)]


class TraceError(ValueError):
    """A trace that cannot be used: says the line, what it got, and what a line takes."""


class TraceTask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One task of a trace."""

    #: its number; lines are in the order of their numbers
    n: Count
    #: arrival from the start of the simulation; of a task that follows another one: not before this
    at_ms: Milliseconds = 0
    #: the number of the task whose end it follows; -1 = none
    after: Annotated[int, Meta(ge=-1)] = -1
    #: from that end to its arrival
    delay_ms: Milliseconds = 0
    #: name of the model, as a client would ask for it
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    prompt_tokens: Count = 256
    output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 128
    #: 0 = the client gives no bound
    max_tokens: Count = 0
    priority: Literal["interactive", "batch"] = "interactive"
    #: tasks with one name are turns of a session: each prompt begins with what came before
    session: str = ""
    #: tokens at the beginning of the prompt that its session's previous turn had already
    shared_tokens: Count = 0


_decode = msgspec.json.Decoder(TraceTask)
_encode = msgspec.json.Encoder(order="deterministic")


def read_trace(path: Path) -> list[TraceTask]:
    """The tasks of a trace file. :raises TraceError: a line is no task, or its order or references are wrong.
    :raises OSError: it cannot be read."""
    tasks: list[TraceTask] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            task = _decode.decode(line)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            msg = f"{path}: line {number} is no task of a trace: {error}"
            raise TraceError(msg) from None
        if task.n != len(tasks):
            msg = f"{path}: line {number} has n = {task.n}; tasks are numbered from 0 in the order of their lines"
            raise TraceError(msg)
        if task.after >= task.n:
            msg = f"{path}: line {number} follows task {task.after}; a task can only follow an earlier one"
            raise TraceError(msg)
        tasks.append(task)
    if not tasks:
        msg = f"{path} holds no task"
        raise TraceError(msg)
    return tasks


def trace_bytes(tasks: Iterable[TraceTask]) -> bytes:
    """A trace as its file."""
    return b"".join(_encode.encode(task) + b"\n" for task in tasks)


def built_in() -> dict[str, Path]:
    """The committed traces by their names, the most telling first."""
    folder = Path(__file__).with_name("traces")
    return {name: folder / f"{name}.jsonl" for name in ("agents", "poisson", "bursts", "abcabc")}
