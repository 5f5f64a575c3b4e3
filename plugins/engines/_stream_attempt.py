"""One attempt whose answer is a body pushed over HTTP: from the request to the sink, whatever the frames look like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from .. import AttemptEnd, AttemptFailure, AttemptSink, AttemptStart, EntryBatch
from ._http import HttpClient, HttpError, StreamRequest

#: as much of an error's body is read
MAX_REFUSAL_BYTES: Final = 65_536


class RefusedError(Exception):
    """The attempt cannot be sent; says as what it fails."""

    def __init__(self, kind: str, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.failure = AttemptFailure(kind=kind, message=message, retriable=retriable)


def failed_plugin(error: Exception) -> AttemptFailure:
    """What an exception that nobody expected means for an attempt."""
    return AttemptFailure(kind="invalid", message=f"the engine's plugin failed: {error!r}", retriable=False)


class Frames(Protocol):
    """Reads one answer. After ``end`` or ``failure`` bytes are ignored."""

    start: AttemptStart | None
    end: AttemptEnd | None
    failure: AttemptFailure | None
    #: it ended although the engine has more to say: the connection has to be closed
    early: bool

    def feed(self, data: bytes) -> EntryBatch | None:
        """Take the next bytes of the body; ``None`` when they completed no entry."""
        ...

    def finish(self) -> EntryBatch | None:
        """The body ended as HTTP says it must: ``end`` or ``failure`` is known now."""
        ...

    def refusal(self, status: int, body: bytes) -> AttemptFailure:
        """What an answer means that is no stream."""
        ...


class Owner(Protocol):
    """The engine of attempts."""

    #: attempts that may rightly occupy a slot
    live: set[Any]
    #: requests that the engine got of it so far
    sent: int

    async def slot_free(self, attempt: object) -> str:
        """Wait until the slot of a broken-off attempt is free."""
        ...


class StreamAttempt:
    """A running attempt: the handler of its stream, and the handle of who asked for it."""

    __slots__ = ("_frames", "_owner", "_refusal", "_request", "_sink", "_status", "_task", "vacated")

    def __init__(self, owner: Owner, sink: AttemptSink, frames: Frames) -> None:
        self._owner = owner
        self._sink: AttemptSink | None = sink
        self._frames = frames
        self._request: StreamRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._status = 0
        self._refusal = b""
        #: the engine itself said that it is done with it, or never took it
        self.vacated = False
        owner.live.add(self)

    @property
    def asked(self) -> bool:
        """Whether the engine may have got it."""
        return self._request is not None

    # --- AttemptHandle

    def cancel(self) -> None:
        if self._sink is None:
            return
        self._leave()
        if self._task is not None:
            self._task.cancel()
        if self._request is None:
            self.vacated = True
        else:
            self._request.cancel()

    async def slot_free(self) -> str:
        return "slot-free" if self.vacated else await self._owner.slot_free(self)

    def resume(self) -> None:
        if self._request is not None:
            self._request.resume()

    # --- sending

    def send(self, http: HttpClient, path: str, body: bytes) -> None:
        """Ask for the stream."""
        if self._sink is not None:
            self._owner.sent += 1
            self._request = http.stream("POST", path, body, self)

    def prepare(self, sending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do first what is needed to send it; that calls :meth:`send`, or raises :class:`RefusedError`."""
        self._task = asyncio.get_running_loop().create_task(self._prepare(sending))

    async def _prepare(self, sending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await sending()
        except RefusedError as error:
            self.vacated = True
            self._fail(error.failure)
        except Exception as error:
            # Nobody waits for this task: whatever it raises, the attempt must not be left without an end.
            self.vacated = True
            self._fail(failed_plugin(error))

    # --- StreamHandler

    def on_head(self, status: int) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        if self._status != 200:
            if len(self._refusal) < MAX_REFUSAL_BYTES:
                self._refusal += data
            return
        frames = self._frames
        begun = frames.start is not None
        batch = frames.feed(data)
        self._tell(sink, batch, begun=begun)
        if frames.end is not None:
            self._end(frames.end)
            if frames.early and self._request is not None:
                self._request.cancel()
        elif frames.failure is not None:
            self._fail(frames.failure)
            if self._request is not None:
                self._request.cancel()

    def on_done(self) -> None:
        sink = self._sink
        if sink is None:
            return
        if self._status != 200:
            self.vacated = True
            if not self._refusal.startswith(b"data:"):  # an event is the word of a model that got the request
                self._owner.sent -= 1
            self._fail(self._frames.refusal(self._status, self._refusal))
            return
        begun = self._frames.start is not None
        self._tell(sink, self._frames.finish(), begun=begun)
        if self._frames.end is not None:
            self._end(self._frames.end)
        elif self._frames.failure is not None:
            self._fail(self._frames.failure)

    def on_lost(self, error: HttpError) -> None:
        if error.kind == "unreachable":
            self.vacated = True
            self._owner.sent -= 1
        self._fail(AttemptFailure(kind=error.kind, message=error.message))

    # --- inside

    def _tell(self, sink: AttemptSink, batch: EntryBatch | None, *, begun: bool) -> None:
        start = self._frames.start
        if start is not None and not begun:
            sink.started(start)
        if batch is not None and self._sink is not None:
            sink.entries(batch)
            if sink.pressure() and self._request is not None:
                self._request.pause()

    def _end(self, end: AttemptEnd) -> None:
        sink = self._sink
        if sink is not None:
            # An engine that is told to stop is not done at once.
            self.vacated = not self._frames.early
            self._leave()
            self.resume()  # nobody else does: HTTP's own end may still be on its way, behind what was read
            sink.ended(end)

    def _fail(self, failure: AttemptFailure) -> None:
        sink = self._sink
        if sink is not None:
            self._leave()
            sink.failed(failure)

    def _leave(self) -> None:
        self._sink = None
        self._owner.live.discard(self)
