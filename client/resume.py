"""Where a reader stands in a task's stream, and what it does when the connection breaks: no socket, no clock, no threads.

A :class:`Cursor` is fed bytes and told of what went wrong; it hands out each frame once, in order, and says what to ask
for next and how long to wait before. The server numbers a task's frames ``<epoch>.<ordinal>``: a frame that was seen is
dropped when it comes again, and one that comes too early (something between swallowed a part) is asked for again.
"""

from __future__ import annotations

import json

from . import calls
from .calls import Backoff, Call
from .errors import ApiError, LlamaOrchError, ResumeLostError, StreamBrokenError, UnreachableError, api_error
from .events import RECONNECTED, RESTARTED
from .sse import Frame, FrameReader

#: ends of a task
_LAST = frozenset({"end", "error"})
_RETRIED = frozenset({429, 502, 503, 504})


class Cursor:
    """One reader of one stream.

    :param after: id of the last frame that was seen; "" = from the start.
    :param backoff: pauses between attempts; counted anew after each frame.
    :param restart_lost: when the server has lost what it sent last, go on from what it holds, and say so in a frame.
    """

    def __init__(
        self,
        task_id: str,
        *,
        after: str = "",
        progress: bool = False,
        metrics: bool = False,
        restart_lost: bool = False,
        backoff: Backoff,
    ) -> None:
        self._task_id = task_id
        #: id of the last frame that was handed out
        self.last_id = after
        self._progress, self._metrics = progress, metrics
        self._restart_lost = restart_lost
        self._backoff = backoff
        self._reader = FrameReader()
        #: the task's last frame was handed out
        self.ended = False
        #: why the connection has to be given up although it stands
        self.broken: LlamaOrchError | None = None

    def request(self) -> Call[None]:
        """What to ask for on a new connection."""
        self._reader = FrameReader()
        self.broken = None
        return calls.stream(self._task_id, after=self.last_id, progress=self._progress, metrics=self._metrics)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that a chunk completes and that were not handed out before.

        Look at :attr:`ended` and :attr:`broken` behind it: then nothing more is to be read from this connection.
        """
        if self.ended or self.broken is not None:
            return []
        try:
            came = self._reader.feed(chunk)
        except ValueError as error:
            self.broken = UnreachableError(str(error))
            return []
        new: list[Frame] = []
        for frame in came:
            if not self._take(frame, new):
                break
        return new

    def failed(self, error: LlamaOrchError) -> tuple[float, list[Frame]]:
        """The connection broke, or was refused: seconds to wait before the next :meth:`request`, and what to tell the reader.

        :raises StreamBrokenError: it broke too often without a new frame in between.
        :raises ResumeLostError: the server lost what it had sent last, and the reader did not ask to go on.
        :raises ApiError: there is no use in asking again.
        """
        if isinstance(error, ResumeLostError):
            error.seen = self.last_id
            held = error.last_id_held
            if not self._restart_lost or held == self.last_id:
                raise error
            told = Frame(RESTARTED, json.dumps({"last_id_held": held, "seen": self.last_id}))
            self.last_id = held
            self._wait(error)
            return 0.0, [told]
        if not isinstance(error, UnreachableError) and not (isinstance(error, ApiError) and error.status in _RETRIED):
            raise error
        pause_s = self._wait(error)
        told = Frame(RECONNECTED, json.dumps({"after": self.last_id, "attempt": self._backoff.failures}))
        return pause_s, [told]

    def _wait(self, error: LlamaOrchError) -> float:
        pause_s = self._backoff.again(error)
        if pause_s is None:
            raise StreamBrokenError(
                f"{error.message} (tried {self._backoff.failures - 1} times again)",
                task_id=self._task_id,
                last_id=self.last_id,
            ) from error
        return pause_s

    def _take(self, frame: Frame, new: list[Frame]) -> bool:
        """Whether the connection is worth reading on."""
        if not frame.id:
            if frame.event == "error":  # of the connection; the task goes on
                self.broken = api_error(503, frame.data.encode())
                return False
            self._backoff.failures = 0
            new.append(frame)
            return True
        ordinal = _ordinal(frame.id)
        last = _ordinal(self.last_id) if self.last_id else -1
        if ordinal is not None and last is not None:
            if ordinal <= last:
                return True
            never_started = last == -1 and ordinal == 1 and frame.event in _LAST
            if ordinal != last + 1 and not never_started:
                self.broken = UnreachableError(f"there is a gap: frame {frame.id} came after {self.last_id or 'none'}")
                return False
        self._backoff.failures = 0
        self.last_id = frame.id
        new.append(frame)
        self.ended = frame.event in _LAST
        return not self.ended


def _ordinal(frame_id: str) -> int | None:
    """The number of a frame in its task; ``None`` where the id does not tell."""
    number = frame_id.rpartition(".")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 20 else None
