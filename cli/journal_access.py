"""The configured journal's store: for the server to write, for `journal` commands to read beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.ports import JournalStore
from .exits import CliError
from .redact import redact_text

if TYPE_CHECKING:
    from ..core.frames import Frame
    from .config import Loaded

_FILE_NAME = "journal.db"


def journal_url(loaded: Loaded) -> str:
    """The journal's database URL; SQLite in the data directory when none is configured."""
    return loaded.settings.journal.url or f"sqlite:///{loaded.data_dir / _FILE_NAME}"


def place_of(loaded: Loaded) -> str:
    """Where the journal is, for people: without a password."""
    return redact_text(journal_url(loaded))


def make_store(loaded: Loaded) -> JournalStore:
    """The store for the configured URL, not opened yet. :raises ConfigError: no plugin serves the URL."""
    from ..plugins.manager import PluginManager

    url = journal_url(loaded)
    scheme = re.split(r"[+:]", url, maxsplit=1)[0]
    stores = PluginManager().journal_stores()
    if scheme not in stores:
        raise ConfigError(
            f"journal.url: no plugin serves {scheme!r}; known are {', '.join(stores)}", field="journal.url", got=scheme
        )
    options: dict[str, Any] = {"wal_bytes": loaded.settings.journal.wal_bytes} if scheme == "sqlite" else {}
    if scheme == "postgresql":
        options["head_path"] = str(loaded.data_dir / "journal.head")
    return stores[scheme](url, options)


def open_for_reading(loaded: Loaded) -> JournalStore:
    """The store, for reading only: a running server goes on beside it. :raises CliError: there is no journal."""
    from ..core.registry import load_all

    load_all()
    url = journal_url(loaded)
    if url.startswith("sqlite"):
        path = Path(re.sub(r"^sqlite[^:]*:///", "", url).split("?")[0])
        if not path.exists():
            raise CliError(
                f"there is no journal at {path}",
                remedy="`llama-orch serve` begins one; --data-dir or --config names another.",
                code="NO_JOURNAL",
            )
    return make_store(loaded)


def last_frame_no(store: JournalStore) -> int:
    """Number of the last frame, 0 when there is none: by halving, since numbers have no gaps."""
    low, high = 0, 1
    while store.frames_at([high]):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if store.frames_at([middle]):
            low = middle
        else:
            high = middle
    return low


def events_in(frame: Frame, *, texts: bool) -> Iterator[dict[str, Any]]:
    """The events of a frame in the order of their seq, ready for JSON (nanoseconds as text, JRN-9).

    :param texts: with what was said; else a chunk of entries says only how much it holds.
    """
    import msgspec

    from ..core.entries import unpack, unpack_transcript
    from ..core.frames import decode_facts, decode_texts

    facts = {frame.first_seq + fact.offset: fact for fact in decode_facts(frame.facts)}
    chunks = decode_texts(frame.texts, frame.end_seq)
    said = iter(chunk for chunk in chunks if not chunk.is_transcript)
    for seq in range(frame.first_seq, frame.end_seq):
        envelope: dict[str, Any] = {"seq": seq, "frame_no": frame.frame_no, "epoch": frame.epoch}
        fact = facts.get(seq)
        if fact is not None:
            yield envelope | {
                "name": fact.name,
                "version": fact.version,
                "stream": fact.stream,
                "position": fact.position,
                "time_ns": str(fact.time_ns),
                "actor": fact.actor,
                "correlation": fact.correlation,
                "payload": msgspec.json.decode(fact.data),
            }
            continue
        chunk = next(said, None)
        if chunk is None:  # only the frame's root is left
            yield envelope | {"name": "task.entries", "dropped": True}
            continue
        entries: dict[str, Any] = {
            "task_no": chunk.task_no,
            "attempt": chunk.attempt,
            "first_ordinal": chunk.first_ordinal,
            "entries": chunk.entries,
            "tokens": chunk.tokens,
        }
        if chunk.body is None:
            entries["dropped"] = True
        elif texts:
            entries["batch"] = msgspec.to_builtins(unpack(chunk.body).texts)
        yield envelope | {"name": "task.entries", **entries}
    if texts:
        for chunk in chunks:
            if chunk.is_transcript and chunk.body is not None:
                transcript = unpack_transcript(chunk.body)
                yield {
                    "frame_no": frame.frame_no,
                    "name": "transcript",
                    "task_no": chunk.task_no,
                    "text": "".join(transcript.batch.texts),
                }
