"""Logs that never grow beyond their bound: the one of pool-managerd, and the engines', to be read and followed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, TextIO

import msgspec

from .identity import seat_names

#: a log is cut to its newer half beyond this
LOG_BYTES: Final = 4 * 1024 * 1024
#: the log of pool-managerd itself
OWN_LOG_BYTES: Final = 1024 * 1024
#: as much of the end of a log is looked at for its last lines
_TAIL_BYTES: Final = 512 * 1024


def cut(path: Path, limit: int = LOG_BYTES) -> None:
    """Cut a log that has grown too long to its newer part; its writer, which appends, does not notice."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            file.seek(size - limit // 2)
            rest = file.read(limit)
            file.seek(0)
            file.truncate()
            file.write(rest[rest.find(b"\n") + 1 :])


def newest_log(folder: Path, pool_id: str) -> Path:
    """The log of a pool's engine that was written to last: one that is reloaded has several. It may not exist."""
    logs = [folder / f"{name}.log" for name in seat_names(pool_id)]
    return max((path for path in logs if path.exists()), key=lambda path: path.stat().st_mtime, default=logs[0])


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, oldest first; none when there is no log."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            told = file.read()
    except OSError:
        return []
    return told.decode("utf-8", "replace").splitlines()[-count:] if count > 0 else []


def follow(path: Path, count: int, *, wait: Callable[[], bool]) -> Iterator[str]:
    """The last lines of a log, and what comes after them.

    Args:
        path: of the log; it may come to be later.
        count: lines from before.
        wait: called when there is nothing new; returns whether to go on.
    """
    yield from last_lines(path, count)
    offset, rest = _size(path), b""
    while wait():
        size = _size(path)
        if size < offset:
            yield "... (the log was cut to its newer part)"
            offset, rest = size, b""
            continue
        if size == offset:
            continue
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(_TAIL_BYTES)
        except OSError:
            continue
        offset += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class BoundedLog:
    """What pool-managerd says of itself.

    Args:
        form: ``json`` lines, or ``human`` sentences.
        path: the file that ``stream`` leads to, to be bounded; ``None`` = none of ours.
    """

    def __init__(
        self, stream: TextIO = sys.stderr, *, form: Literal["json", "human"] = "json", path: Path | None = None
    ) -> None:
        self._stream = stream
        self._form = form
        self._path = path

    def say(self, level: Literal["info", "warning", "error"], event: str, human: str, **fields: str | int) -> None:
        """One line."""
        now = time.time_ns()
        if self._form == "human":
            line = f"{time.strftime('%H:%M:%S', time.localtime(now // 10**9))} {human}"
        else:
            told = {"ts_ms": now // 10**6, "level": level, "event": f"managerd.{event}", **fields, "human": human}
            line = msgspec.json.encode(told).decode()
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or the disk is full
            self._stream.write(line + "\n")
            self._stream.flush()

    def tend(self) -> None:
        """Keep it within its bound."""
        if self._path is not None:
            cut(self._path, OWN_LOG_BYTES)
