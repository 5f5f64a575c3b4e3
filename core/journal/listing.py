"""The journal for reading eyes and other programs: events as JSON-like data, figures, the newest events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from ..entries import EntryBatch, unpack, unpack_transcript
from ..frames import Frame, decode_facts, decode_texts
from ..ports import JournalStore

#: name under which a chunk of entries is listed; entries are events without a declaration of their own
ENTRIES = "task.entries"
#: frames that are read at once, going backwards
_STEP = 64


def events_in(frame: Frame, *, texts: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a frame in the order of their seq (nanoseconds as text, JRN-9).

    :param texts: with what was said; else a chunk of entries says only how much it holds.
    """
    facts = {frame.first_seq + fact.offset: fact for fact in decode_facts(frame.facts)}
    chunks = decode_texts(frame.texts, frame.end_seq)
    said = iter([chunk for chunk in chunks if not chunk.is_transcript])
    for seq in range(frame.first_seq, frame.end_seq):
        event: dict[str, Any] = {"seq": seq, "frame_no": frame.frame_no, "epoch": frame.epoch}
        fact = facts.get(seq)
        if fact is not None:
            event |= {
                "name": fact.name,
                "version": fact.version,
                "stream": fact.stream,
                "position": fact.position,
                "time_ns": str(fact.time_ns),
                "actor": fact.actor,
                "correlation": fact.correlation,
                "payload": msgspec.json.decode(fact.data),
            }
            yield event
            continue
        event["name"] = ENTRIES
        chunk = next(said, None)
        if chunk is None:  # only the frame's root is left
            yield event | {"dropped": True}
            continue
        event |= {
            "task_no": chunk.task_no,
            "attempt": chunk.attempt,
            "first_ordinal": chunk.first_ordinal,
            "entries": chunk.entries,
            "tokens": chunk.tokens,
        }
        if chunk.body is None:
            event["dropped"] = True
        elif texts:
            batch = unpack(chunk.body)
            event |= {"texts": batch.texts, "each": _each(batch)}
        yield event
    if texts:
        for chunk in chunks:
            if chunk.is_transcript and chunk.body is not None:
                batch = unpack_transcript(chunk.body).batch
                event = {"frame_no": frame.frame_no, "name": "transcript", "task_no": chunk.task_no}
                yield event | {"text": "".join(batch.texts), "each": _each(batch)}


def _each(batch: EntryBatch) -> dict[str, Any]:
    """What a bill is added up from: of each entry its tokens, and the microseconds since the one before."""
    return {"tokens": batch.tokens or [1] * len(batch), "dts_us": batch.dts_us}


def newest(store: JournalStore, last_frame: int, *, limit: int, stream: str = "") -> list[dict[str, Any]]:
    """The newest events, oldest of them first.

    :param last_frame: number of the last frame.
    :param stream: only this one, such as ``task:<id>``; "" = all.
    """
    found: list[list[dict[str, Any]]] = []
    count = 0
    number = last_frame
    while number > 0 and count < limit:
        first = max(1, number - _STEP + 1)
        for frame in reversed(store.frames_at(range(first, number + 1))):
            events = [e for e in events_in(frame) if not stream or e.get("stream") == stream]
            if events:
                found.append(events)
                count += len(events)
                if count >= limit:
                    break
        number = first - 1
    flat = [event for events in reversed(found) for event in events]
    return flat[max(0, len(flat) - limit) :]


def figures(store: JournalStore) -> dict[str, Any]:
    """Frames, events by name, tasks, tokens and bytes; reads every frame's facts once."""
    names: Counter[str] = Counter()
    frames = events = facts_total = tokens = epochs = 0
    for frame_no, epoch, _, count, facts in store.facts(1):
        frames = frame_no
        epochs = epoch or epochs
        events += count
        for fact in decode_facts(facts):
            facts_total += 1
            names[fact.name] += 1
            if fact.name == "task.ended":
                tokens += int(msgspec.json.decode(fact.data).get("tokens_out", 0))
    if events > facts_total:
        names[ENTRIES] = events - facts_total
    return {
        "frames": frames,
        "events": events,
        "epochs": epochs,
        "tasks": names["task.admitted"],
        "tokens": tokens,
        "bytes": store.size_bytes(),
        "by_name": dict(sorted(names.items())),
    }
