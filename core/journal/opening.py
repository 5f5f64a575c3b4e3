"""From a store to head: the newest snapshot that fits, and the facts behind it."""

from __future__ import annotations

from pathlib import Path

from ..errors import CorruptJournalError
from ..ports import JournalStore, Tail
from .replay import Replayed, replay
from .snapshot import load_latest


def frame_hash(store: JournalStore, frame_no: int) -> bytes | None:
    """The hash of a stored frame, ``None`` when it is not there."""
    frames = store.frames_at([frame_no])
    return frames[0].hash if frames else None


def replay_to(store: JournalStore, tail: Tail, snapshots: Path | None) -> Replayed:
    """Rebuild head, from a snapshot in the folder where one fits.

    :raises CorruptJournalError: frames are missing or cannot be decoded, or do not end where the tail does.
    """
    found = None if snapshots is None else load_latest(snapshots, lambda frame_no: frame_hash(store, frame_no))
    replayed = replay(store, *found) if found else replay(store)
    if replayed.frame_no != tail.frame_no or replayed.head.next_seq != tail.next_seq:
        msg = f"the journal ends at frame {tail.frame_no}, but its facts at frame {replayed.frame_no}"
        raise CorruptJournalError(msg)
    return replayed
