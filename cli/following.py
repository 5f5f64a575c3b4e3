"""Prints a task's stream as it comes: text on standard output, the progress line on standard error."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import exits
from .exits import CliError
from .shell import Shell

if TYPE_CHECKING:
    from ..client.sse import Frame

_PROGRESS_EVERY_S = 0.1


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""


@dataclass(slots=True)
class Follower:
    """Follows one stream; afterwards it holds what came."""

    shell: Shell
    clock: Callable[[], float] = time.monotonic
    #: a JSON object per frame instead of text
    frames_as_json: bool = False
    #: show the text as it comes (else only keep it)
    show_text: bool = True
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    started: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    last_id: str = ""
    #: the last metrics, where they were asked for
    metrics: dict[str, Any] = field(default_factory=dict)
    _first_token_s: float = 0.0
    _shown_s: float = 0.0
    _line_open: bool = False

    def follow(self, frames: Iterable[Frame]) -> None:
        """Print all frames.

        :raises CliError: the task failed (status 5), or what the client raised.
        """
        for frame in frames:
            self.last_id = frame.id or self.last_id
            try:
                data = json.loads(frame.data)
            except ValueError as error:
                raise CliError(
                    f"the server sent a frame that is no JSON: {frame.data[:80]!r}", remedy="Is it a llama-orch server?"
                ) from error
            if self.frames_as_json:
                self.shell.json_line({"event": frame.event, "id": frame.id or None, "data": data})
            getattr(self, f"_on_{frame.event}", self._on_other)(data)

    def finish_line(self) -> None:
        """End the last line of the text, so that what follows begins on its own."""
        self.shell.clear_status()
        if self._line_open and not self.frames_as_json:
            self.shell.piece("\n")
            self._line_open = False

    def rate(self) -> str:
        """Tokens per second, as the server measured them, else as they arrived."""
        decode_ms = int(self.end.get("decode_ms") or 0)
        seconds = decode_ms / 1000 if decode_ms else self.clock() - self._first_token_s if self._first_token_s else 0
        return f"{self.tokens / seconds:.1f} tok/s" if seconds > 0 and self.tokens else ""

    def summary(self) -> str:
        """One line about how it went."""
        parts = [f"{self.end.get('tokens_out', self.tokens)} tokens", self.rate()]
        if self.started.get("queue_time_ms"):
            parts.append(f"queued {_seconds(int(self.started['queue_time_ms']))}")
        if self.started.get("pool_id"):
            parts.append(f"on {self.started['pool_id']}")
        if "seed" in self.started:
            parts.append(f"seed {self.started['seed']}")
        if self.end.get("finish_reason") not in {None, "stop"}:
            parts.append(f"ended by {self.end['finish_reason']}")
        if self.end.get("recovery_used"):
            parts.append(f"recovered ({self.end['recovery_used']})")
        return " · ".join(part for part in parts if part)

    def _on_queued(self, data: dict[str, Any]) -> None:
        position, start_ms = data.get("queue_position", data.get("position")), data.get("predicted_start_ms")
        if self.started or position is None:
            return
        eta = f" · starts in about {_seconds(int(start_ms))}" if start_ms is not None else ""
        self.shell.status(f"queue position {position}{eta}")

    def _on_metrics(self, data: dict[str, Any]) -> None:
        self.metrics = data
        self._on_queued(data)

    def _on_started(self, data: dict[str, Any]) -> None:
        self.started = data
        self.shell.status(f"started on {data.get('pool_id', '?')} ({data.get('engine', '?')})")

    def _on_token(self, data: dict[str, Any]) -> None:
        now = self.clock()
        self._first_token_s = self._first_token_s or now
        text = str(data.get("t", ""))
        self.tokens = int(data.get("i", self.tokens)) + int(data.get("n", 1))
        if data.get("channel") or data.get("choice"):
            return
        self.text.append(text)
        if self.show_text and not self.frames_as_json and text:
            if self.shell.at_terminal:
                self.shell.clear_status()
            self.shell.piece(text)
            self._line_open = not text.endswith("\n")
        if not (self.show_text and self.shell.at_terminal) and now - self._shown_s >= _PROGRESS_EVERY_S:
            self._shown_s = now
            loads = [gpu["utilization_percent"] for gpu in self.metrics.get("gpus", [])]
            busy = [f"GPU {load} %" for load in loads if load is not None]
            waiting = self.metrics.get("queue_depth")
            more = [*busy, f"{waiting} waiting"] if waiting else busy
            self.shell.status(" · ".join([f"{self.tokens} tokens", self.rate(), *more]))

    def _on_end(self, data: dict[str, Any]) -> None:
        self.end = data
        self.finish_line()

    def _on_error(self, data: dict[str, Any]) -> None:
        self.finish_line()
        raise CliError(
            f"the task failed: {data.get('message', data.get('code', 'no reason given'))}",
            remedy=str(data.get("remedy") or ("It may work when tried again." if data.get("retriable") else "")),
            status=exits.TASK_FAILED,
            code=str(data.get("code", "")),
            retriable=bool(data.get("retriable")),
        )

    def _on_reconnected(self, data: dict[str, Any]) -> None:
        self.shell.status(f"the connection broke; trying again ({data.get('attempt')})")

    def _on_resume_lost(self, data: dict[str, Any]) -> None:
        self.finish_line()
        self.shell.note(
            "The server lost what it had sent last (a power loss?): text may repeat or differ from here, "
            f"after frame {data.get('last_id_held') or 'none'}."
        )

    def _on_other(self, data: dict[str, Any]) -> None:
        """Frames of a newer server are no error."""


@contextmanager
def terminations() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise :class:`Terminated`, so that a running task can be cancelled."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = {number: signal.signal(number, raise_it) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seconds(ms: int) -> str:
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.1f} s" if ms < 120_000 else f"{ms // 60_000} min"
