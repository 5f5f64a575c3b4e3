"""Following the chain of frames, and telling what happened to rows that do not fit it.

A row is *sound* when its bytes match its hash, and *linked* when it names the hash of the row before it. Rows that
are not sound are kept, small, until all rows are known: then swapped, doubled and renumbered ones can be told from
edited ones, by trying which frame number they were sealed for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from ..errors import CorruptJournalError
from ..frames import ZERO, Frame, frame_hash, stored_root

Kind = Literal[
    "edited", "missing", "moved", "doubled", "unlinked", "seq", "undecodable", "tail", "body", "transcript", "fold"
]

#: damaged rows that are told apart; behind them everything is called damaged in one finding
_KEPT = 10_000
#: damaged rows that each damaged row is compared with
_COMPARED = 256


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong, and where."""

    kind: Kind
    #: first and last frame concerned
    frame_no: int
    last_frame_no: int
    #: first and last seq concerned
    first_seq: int
    last_seq: int
    message: str


class _Row(msgspec.Struct):
    """A row without its texts: what its hash is made of, and what it is."""

    frame_no: int
    epoch: int
    first_seq: int
    count: int
    prev_hash: bytes
    hash: bytes
    facts: bytes
    #: of the texts; no bytes when they are broken, and then no hash fits
    root: bytes

    def sealed_as(self, frame_no: int, prev_hash: bytes | None = None) -> bytes:
        """The hash that these bytes have under a frame number and a previous hash (its own when not given)."""
        previous = self.prev_hash if prev_hash is None else prev_hash
        return frame_hash(frame_no, self.epoch, self.first_seq, self.count, previous, self.facts, self.root)


class _Damaged(msgspec.Struct):
    """A row that is not sound, between its neighbours."""

    row: _Row
    #: of the row before: its hash, and the seq after its last event
    before_hash: bytes
    before_end_seq: int
    #: of the row behind, when it has the next number
    after_prev_hash: bytes = b""
    after_first_seq: int = 0


class ChainWalk:
    """Takes the rows in order, then tells what is wrong with them."""

    def __init__(self) -> None:
        self.frame_no = 0
        self.end_seq = 1
        self.hash = ZERO
        self._sound = True
        self._found: list[Finding] = []
        self._damaged: list[_Damaged] = []
        self._uncounted = 0
        self._waiting: _Damaged | None = None

    def follow(self, frame: Frame) -> bool:
        """The next row; answers whether it is sound."""
        row = _row(frame)
        sound = row.root != b"" and row.sealed_as(row.frame_no) == row.hash
        gap = row.frame_no != self.frame_no + 1
        if gap:
            self._missing(self.frame_no + 1, row)
        if self._waiting is not None and not gap:
            self._waiting.after_prev_hash, self._waiting.after_first_seq = row.prev_hash, row.first_seq
        self._waiting = None
        if not sound:
            self._put_aside(row)
        elif self._sound and not gap:
            self._check_link(row)
        self.frame_no, self.end_seq, self.hash, self._sound = row.frame_no, frame.end_seq, row.hash, sound
        return sound

    def findings(self, sealed_at: dict[bytes, int]) -> Iterator[Finding]:
        """What is wrong, in any order.

        :param sealed_at: frame numbers of sound rows by the hashes in :attr:`suspected`.
        """
        yield from self._found
        numbers = [damaged.row.frame_no for damaged in self._damaged[:_COMPARED]]
        run: list[tuple[_Damaged, int]] = []
        shift = 0
        for damaged in self._damaged:
            row = damaged.row
            candidates = [row.frame_no + shift, row.frame_no + 1, row.frame_no - 1, *numbers]
            if row.hash in sealed_at:
                candidates.insert(0, sealed_at[row.hash])
            place = next((n for n in candidates if n > 0 and row.sealed_as(n) == row.hash), 0)
            if place and row.hash in sealed_at:
                what = f"row {row.frame_no} is a second copy of frame {place}"
                yield _finding("doubled", row.frame_no, row.frame_no, row.first_seq, _last_seq(row), what)
            elif place:
                shift = place - row.frame_no
                if run and (run[-1][0].row.frame_no + 1 != row.frame_no or run[-1][1] != shift):
                    yield _moved(run)
                    run = []
                run.append((damaged, shift))
            else:
                yield _edited(damaged)
        if run:
            yield _moved(run)
        if self._uncounted:
            first, what = (
                self._damaged[-1].row,
                f"{self._uncounted} more frames behind this one do not match their hashes",
            )
            yield _finding(
                "edited", first.frame_no + 1, self.frame_no, first.first_seq + first.count, self.end_seq - 1, what
            )

    @property
    def suspected(self) -> set[bytes]:
        """Hashes of rows that may be copies of others."""
        return {damaged.row.hash for damaged in self._damaged}

    def _missing(self, first: int, row: _Row) -> None:
        last = row.frame_no - 1
        what = f"frame {first} is missing" if first == last else f"frames {first} to {last} are missing"
        self._found.append(_finding("missing", first, last, self.end_seq, row.first_seq - 1, what))

    def _put_aside(self, row: _Row) -> None:
        if len(self._damaged) >= _KEPT:
            self._uncounted += 1
            return
        self._waiting = _Damaged(row, self.hash, self.end_seq)
        self._damaged.append(self._waiting)

    def _check_link(self, row: _Row) -> None:
        if row.prev_hash != self.hash:
            what = f"frame {row.frame_no} does not follow from frame {self.frame_no}: one of the two stretches was replaced"
            self._found.append(_finding("unlinked", self.frame_no, row.frame_no, self.end_seq, _last_seq(row), what))
        elif row.first_seq != self.end_seq:
            what = f"frame {row.frame_no} starts at seq {row.first_seq}, but {self.end_seq} is next"
            self._found.append(_finding("seq", row.frame_no, row.frame_no, self.end_seq, _last_seq(row), what))


def _row(frame: Frame) -> _Row:
    try:
        root = stored_root(frame.texts, frame.end_seq)
    except CorruptJournalError:
        root = b""
    return _Row(
        frame.frame_no, frame.epoch, frame.first_seq, frame.count, frame.prev_hash, frame.hash, frame.facts, root
    )


def _last_seq(row: _Row) -> int:
    return row.first_seq + row.count - 1


def _finding(kind: Kind, frame_no: int, last_frame_no: int, first_seq: int, last_seq: int, message: str) -> Finding:
    return Finding(
        kind=kind,
        frame_no=frame_no,
        last_frame_no=last_frame_no,
        first_seq=first_seq,
        last_seq=max(first_seq, last_seq),
        message=message,
    )


def _moved(run: list[tuple[_Damaged, int]]) -> Finding:
    first, last = run[0][0].row, run[-1][0].row
    place = first.frame_no + run[0][1]
    if len(run) == 1:
        what = f"row {first.frame_no} holds frame {place}"
    else:
        what = f"rows {first.frame_no} to {last.frame_no} hold frames {place} to {last.frame_no + run[0][1]}"
    return _finding("moved", first.frame_no, last.frame_no, first.first_seq, _last_seq(last), what)


def _edited(damaged: _Damaged) -> Finding:
    row = damaged.row
    if row.root and damaged.after_prev_hash == row.sealed_as(row.frame_no):
        what = "its hash was edited, the rest is as it was"
    elif row.root and row.sealed_as(row.frame_no, damaged.before_hash) == row.hash:
        what = "the previous frame's hash in it was edited, the rest is as it was"
    else:
        what = "its header, facts or texts were edited"
    # The neighbours say which seqs it must have, since its own header may be what was edited.
    first_seq = damaged.before_end_seq
    last_seq = damaged.after_first_seq - 1 if damaged.after_first_seq > first_seq else _last_seq(row)
    return _finding("edited", row.frame_no, row.frame_no, first_seq, last_seq, f"frame {row.frame_no}: {what}")
