"""Facts that wait for the journal: on disk before anybody hears of them, there until they were acknowledged (RCV-3).

A fact is named by host, boot, incarnation (of the program) and number. It is written to a segment, a file of lines with
a checksum each, and synced; only then is it sent. After a crash the segments tell what is still to be delivered, those of
older incarnations first; a torn last line was never sent and is left out. Facts that were acknowledged a moment before
the crash may come again: the journal knows their numbers.

What cannot be written (a full disk) waits in memory, where the newest of a kind takes the place of the one before, and
is tried again: the engines are not concerned. The same happens to segments that nobody fetched for too long.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from .files import sync_directory
from .protocol import Fact

#: a segment that is longer is followed by a new one
SEGMENT_BYTES: Final = 262_144
#: what waits for an acknowledgement is thinned out beyond this
MOST_BYTES: Final = 8_388_608
#: facts that wait in memory for a disk that takes nothing
MOST_WAITING: Final = 1_000


class Files(Protocol):
    """The directory of segments."""

    def names(self) -> list[str]:
        """The files, in the order of their names."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Append, and return when it survives a crash. :raises OSError: any part of it may be there, or none."""
        ...

    def remove(self, name: str) -> None:
        """Forget one, if it is there."""
        ...


class DirectoryFiles:
    """Files of one directory, for their owner alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in self._directory.iterdir())
        return []

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def append(self, name: str, data: bytes) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / name
        new = not path.exists()
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)
        if new:
            sync_directory(self._directory)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)


class Entry(msgspec.Struct):
    """One fact, and where it stands."""

    fact: Fact
    #: facts of one kind about one thing: a later one makes an earlier one void
    kind: str
    size: int = 0
    #: file that it stands in; "" = none yet
    segment: str = ""


class Work(msgspec.Struct):
    """What is to be done to the files; :meth:`Outbox.perform` may do it in another thread."""

    write: list[Entry]
    segment: str
    remove: list[str]


class Outbox:
    """The facts of one host that are not acknowledged yet.

    ``begin``, ``perform`` and ``finish`` belong together and are called one after the other, ``perform`` in any thread;
    everything else happens in the event loop's.

    Args:
        files: where segments are.
        boot_id: of the running system.
        incarnation: of this run of the program; sorts behind all before it.
    """

    def __init__(
        self,
        files: Files,
        *,
        boot_id: str,
        incarnation: str,
        segment_bytes: int = SEGMENT_BYTES,
        most_bytes: int = MOST_BYTES,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._files = files
        self._boot_id = boot_id
        self.incarnation = incarnation
        self._segment_bytes = segment_bytes
        self._most_bytes = most_bytes
        self._most_waiting = most_waiting
        self.next_n = 1
        #: durable and not acknowledged, in the order of delivery
        self.pending: list[Entry] = []
        #: not durable yet
        self._waiting: list[Entry] = []
        #: the disk took nothing the last time
        self._refused = False
        #: segments with something in them, and how long each is
        self._segments: dict[str, int] = {}
        self._count = 0
        self._segment = ""
        self._load()

    def __bool__(self) -> bool:
        """There is work for :meth:`begin`."""
        return bool(self._waiting) or any(self._is_over(name) for name in self._segments)

    def add(self, facts: Sequence[tuple[str, Fact]]) -> None:
        """Facts, each with its kind, that belong into one batch; they get their numbers, and wait to be written."""
        for position, (kind, fact) in enumerate(facts, 1):
            numbered = msgspec.structs.replace(
                fact,
                incarnation=self.incarnation,
                n=self.next_n,
                boot_id=self._boot_id,
                more=position < len(facts),
            )
            self.next_n += 1
            self._waiting.append(Entry(numbered, kind))
        if len(self._waiting) > self._most_waiting:
            self._waiting = newest(self._waiting)[-self._most_waiting :]

    def ack(self, incarnation: str, n: int) -> None:
        """The journal has the facts of an incarnation up to this number."""
        self.pending = [e for e in self.pending if e.fact.incarnation != incarnation or e.fact.n > n]

    def drop(self, entry: Entry) -> None:
        """It can never be delivered."""
        self.pending = [e for e in self.pending if e is not entry]

    def forget(self) -> None:
        """Nobody will ever ask for what waits here: it belonged to another journal."""
        self.pending.clear()
        self._waiting.clear()

    def begin(self) -> Work:
        """What is to be done now."""
        write, self._waiting = newest(self._waiting) if self._refused else self._waiting, []
        if sum(entry.size for entry in self.pending) > self._most_bytes:
            # Nobody came for long: what still matters is written together, and takes the place of all segments.
            write = newest([*self.pending, *write])
            kept = {(e.fact.incarnation, e.fact.n) for e in write}
            self.pending = [e for e in self.pending if (e.fact.incarnation, e.fact.n) in kept]
            self._segment = ""
        if not self._segment or self._segments.get(self._segment, 0) > self._segment_bytes:
            self._count += 1
            self._segment = f"{self.incarnation}.{self._count:08d}"
        return Work(write, self._segment, [name for name in self._segments if self._is_over(name)])

    def perform(self, work: Work) -> None:
        """Do it. :raises OSError: the disk took nothing, or not all.

        What is written may take the place of what is removed, so it has to be there first.
        """
        if work.write:
            self._files.append(work.segment, b"".join(_line(entry.fact) for entry in work.write))
        for name in work.remove:
            self._files.remove(name)

    def finish(self, work: Work, error: OSError | None) -> list[Entry]:
        """It was done, or not; the entries that are durable now and were not before."""
        self._refused = error is not None
        if error is None:
            for name in work.remove:
                self._segments.pop(name, None)
        if error is not None:
            # What of the lines is there is unknown: nothing is ever written behind them.
            self._segments.setdefault(self._segment, 0)
            self._segment = ""
            self._waiting = newest([*(e for e in work.write if not e.segment), *self._waiting])[-self._most_waiting :]
            return []
        fresh = []
        for entry in work.write:
            if not entry.segment:
                fresh.append(entry)
            entry.segment, entry.size = work.segment, len(_line(entry.fact))
            self._segments[work.segment] = self._segments.get(work.segment, 0) + entry.size
        self.pending.extend(fresh)
        return fresh

    # --- inside

    def _is_over(self, name: str) -> bool:
        """A segment holds nothing that anybody waits for, nor is it worth appending to."""
        if name == self._segment and self._segments[name] <= self._segment_bytes:
            return False
        return not any(entry.segment == name for entry in self.pending)

    def _load(self) -> None:
        found: dict[tuple[str, int], Entry] = {}
        for name in self._files.names():
            try:
                data = self._files.read(name)
            except OSError:
                continue
            self._segments[name] = len(data)
            for fact, size in _facts(data):
                # One that stands in two segments was written again; the last to be removed holds it.
                found[fact.incarnation, fact.n] = Entry(fact, kind_of(fact), size, name)
        self.pending = [found[key] for key in sorted(found)]


def new_incarnation(now_ns: int) -> str:
    """A name that no run of the program had, and that sorts behind those of earlier ones."""
    return f"{now_ns // 1000:014x}-{secrets.token_hex(4)}"


def newest(entries: Sequence[Entry]) -> list[Entry]:
    """Of each kind the last one, in order."""
    last = {entry.kind: at for at, entry in enumerate(entries)}
    return [entry for at, entry in enumerate(entries) if last[entry.kind] == at]


def kind_of(fact: Fact) -> str:
    """What a fact makes void: earlier ones about the same side of the same thing."""
    try:
        told = msgspec.json.decode(fact.payload)
    except msgspec.DecodeError:
        told = {}
    thing = told.get("pool_id") or told.get("ref") or told.get("engine") or ""
    side = "state" if fact.name in ("pool.ready", "pool.unready") else fact.name
    side = "reload" if side in ("pool.reloaded", "pool.reload_failed") else side
    return f"{side} {thing}"


def _line(fact: Fact) -> bytes:
    data = msgspec.json.encode(fact)
    return b"%08x %s\n" % (zlib.crc32(data), data)


_decode: msgspec.json.Decoder[Fact] = msgspec.json.Decoder(Fact)


def _facts(data: bytes) -> list[tuple[Fact, int]]:
    """The facts of a segment, up to the first line that is not whole."""
    found = []
    for line in data.split(b"\n")[:-1]:
        checksum, _, told = line.partition(b" ")
        try:
            if int(checksum, 16) != zlib.crc32(told):
                break
            found.append((_decode.decode(told), len(line) + 1))
        except (ValueError, msgspec.MsgspecError):
            break
    return found
