"""Brings one file here: again from where a connection broke off, never more than was announced."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Final, Protocol, TypeVar

import msgspec

from .digests import PIECE_BYTES, Digester
from .errors import BrokenOffError, StagingError
from .partial import PartialFile

#: seconds to wait before each further attempt; one that brought enough begins anew
WAITS_S: Final = (0.5, 2.0, 5.0, 10.0)
_ENOUGH_BYTES: Final = 1024 * 1024
_REPORT_EVERY_S: Final = 0.1
#: room is asked for in such steps where nobody tells how large a file will be
_ROOM_BYTES: Final = 64 * 1024 * 1024
#: what the system answers when there is no room for more
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


T = TypeVar("T")


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file as its source describes it, before any of it was fetched."""

    #: within the model, checked
    path: str
    #: -1 = not known
    size_bytes: int = -1
    #: what the source calls this content; "" = it does not
    etag: str = ""
    #: 64 hex digits where the source tells them
    sha256: str = ""
    #: git's object id where the source tells it
    git_sha1: str = ""
    #: where it is fetched from; known to its source alone
    locator: str = ""

    @property
    def content(self) -> str:
        """Names the content, so that parts of it can be put together; "" = nothing does."""
        return self.sha256 or self.git_sha1 or self.etag


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has under a reference now."""

    #: without credentials
    source_url: str
    files: list[RemoteFile]
    revision: str = ""
    #: the revision can never be another content
    immutable: bool = False


class Stream(Protocol):
    """The bytes of a file from somewhere on."""

    #: of the first byte that comes
    offset: int
    #: of the whole file, -1 = not told
    total: int
    #: what the source calls the content that comes; "" = it does not, or not comparably
    etag: str

    def read(self, size: int) -> bytes:
        """The next bytes; b"" at the end. :raises BrokenOffError: the connection failed."""
        ...

    def interrupt(self) -> None:
        """Make a read in another thread end soon."""
        ...

    def close(self) -> None:
        """Done with it."""
        ...


class Source(Protocol):
    """A kind of place that models are fetched from."""

    def listing(self) -> Listing:
        """What is there now.

        Raises:
            StagingError: nothing, or nothing that could be used.
            BrokenOffError: it cannot be asked at the moment.
        """
        ...

    def open(self, file: RemoteFile, offset: int) -> Stream:
        """A file, if possible from ``offset`` on. :raises StagingError, BrokenOffError: as :meth:`listing`."""
        ...


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is."""

    #: "fetch" | "verify"
    phase: str
    #: the file that is worked on, within the model
    file: str
    #: of all files together
    done_bytes: int
    #: 0 = not known
    total_bytes: int
    #: bytes per second, of what was fetched in this call
    rate: int


class Meter:
    """Counts what passes and tells it, ten times a second at most."""

    def __init__(
        self, tell: Callable[[Progress], None] | None, total_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._total = total_bytes
        self._clock = clock
        self._begin = clock()
        self._last = self._begin - _REPORT_EVERY_S
        self._before = 0
        self.fetched_bytes = 0

    def file(self, name: str, here_bytes: int, *, phase: str = "fetch") -> None:
        """This file is worked on now, and so much of it was here."""
        self._file, self._phase = name, phase
        self._before += here_bytes
        self._report(now=self._clock())

    def forget(self, count: int) -> None:
        """So many bytes have to come again."""
        self._before -= count

    def passed(self, count: int) -> None:
        """Bytes came."""
        self.fetched_bytes += count
        now = self._clock()
        if now - self._last >= _REPORT_EVERY_S:
            self._report(now)

    def finish(self) -> None:
        """All is here."""
        self._report(self._clock())

    def _report(self, now: float) -> None:
        self._last = now
        if self._tell is not None:
            passed_s = now - self._begin
            self._tell(
                Progress(
                    phase=self._phase,
                    file=self._file,
                    done_bytes=self._before + self.fetched_bytes,
                    total_bytes=self._total,
                    rate=int(self.fetched_bytes / passed_s) if passed_s > 0 else 0,
                )
            )

    _file = ""
    _phase = "fetch"


def retried(
    attempt: Callable[[], T],
    *,
    cancel: Event,
    waits_s: Sequence[float] = WAITS_S,
    progressed: Callable[[], bool] = lambda: False,
) -> T:
    """Do something that may break off, again and again while it gets on.

    Raises:
        StagingError: ``interrupted`` or ``unreachable``: too many failures in a row; ``cancelled``.
    """
    failures = 0
    while True:
        refuse_cancelled(cancel)
        try:
            return attempt()
        except BrokenOffError as error:
            refuse_cancelled(cancel)
            failures = 1 if progressed() else failures + 1
            if failures > len(waits_s):
                raise StagingError(error.cause, f"{error} (tried {failures} times)") from error
            cancel.wait(max(waits_s[failures - 1], error.retry_after_s))


def fetch(
    source: Source,
    file: RemoteFile,
    partial: PartialFile,
    *,
    meter: Meter,
    cancel: Event,
    room: Callable[[int], object],
    waits_s: Sequence[float] = WAITS_S,
) -> None:
    """Complete a part of a file. It stays as it is when this fails, to be taken up again.

    Args:
        source: where it comes from.
        file: as the source lists it.
        partial: what is here of it.
        meter: counts what comes.
        cancel: set it to end this soon.
        room: of a file whose size its source did not list, hears how large it becomes before it does; it may raise.
        waits_s: see :func:`retried`.

    Raises:
        StagingError: ``wrong-length``, ``interrupted``, ``unreachable``, ``disk-full``, ``cancelled``, or what the
            source says.
    """
    mark = partial.size
    etag = file.etag

    def progressed() -> bool:
        nonlocal mark
        got, mark = partial.size - mark, partial.size
        return got >= _ENOUGH_BYTES

    def attempt() -> None:
        nonlocal etag
        if 0 <= file.size_bytes == partial.size:
            return
        if partial.size and not (file.content or etag):  # nothing says that what comes would go with what is here
            meter.forget(partial.size)
            partial.restart()
        stream = source.open(file, partial.size)
        with contextlib.closing(stream), _interrupted_by(cancel, stream):
            changed = bool(partial.size and stream.etag and etag and stream.etag != etag)
            etag = stream.etag or etag
            _copy(stream, file, partial, meter, cancel, room, changed=changed)

    retried(attempt, cancel=cancel, waits_s=waits_s, progressed=progressed)


def digest_in_pieces(path: Path, meter: Meter, cancel: Event) -> str:
    """``sha256:…`` of a file that is here.

    Raises:
        StagingError: ``cancelled``.
        OSError: it cannot be read.
    """
    digester = Digester()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            refuse_cancelled(cancel)
            digester.update(piece)
            meter.passed(len(piece))
    return f"sha256:{digester.sha256}"


def refuse_cancelled(cancel: Event) -> None:
    """Stop here when somebody said so. :raises StagingError: ``cancelled``."""
    if cancel.is_set():
        raise StagingError("cancelled", "cancelled")


def _copy(
    stream: Stream,
    file: RemoteFile,
    partial: PartialFile,
    meter: Meter,
    cancel: Event,
    room: Callable[[int], object],
    *,
    changed: bool,
) -> None:
    if stream.offset != partial.size or changed:
        meter.forget(partial.size)
        partial.restart()
        if stream.offset:
            raise BrokenOffError(f"{file.path}: the source sends another part than was asked for")
    total = file.size_bytes if file.size_bytes >= 0 else stream.total
    if 0 <= stream.total != total:
        raise StagingError("wrong-length", f"{file.path}: announced with {total} bytes, and now it is {stream.total}")
    if file.size_bytes < 0 <= total:
        room(total)
    asked = partial.size
    while total < 0 or partial.size < total:
        piece = stream.read(PIECE_BYTES if total < 0 else min(PIECE_BYTES, total - partial.size))
        refuse_cancelled(cancel)
        if not piece:
            break
        if total < 0 and partial.size + len(piece) > asked:
            asked = partial.size + _ROOM_BYTES
            room(asked)
        try:
            partial.write(piece)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StagingError("disk-full", f"{file.path}: the disk is full after {partial.size} bytes") from error
            raise
        meter.passed(len(piece))
    if partial.size < total:
        raise BrokenOffError(f"{file.path}: the connection ended after {partial.size} of {total} bytes")
    if total >= 0 and stream.read(1):
        raise StagingError(
            "wrong-length", f"{file.path}: the source sends more than the {total} bytes that it announced"
        )


@contextmanager
def _interrupted_by(cancel: Event, stream: Stream) -> Iterator[None]:
    """A read that waits for bytes ends when somebody cancels."""
    done = Event()

    def watch() -> None:
        while not done.wait(0.1):
            if cancel.is_set():
                stream.interrupt()
                return

    watcher = threading.Thread(target=watch, name="cancel-fetch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
