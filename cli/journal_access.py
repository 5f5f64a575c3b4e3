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
    from ..core.journal.verify import Finding
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


def disagreeing_folds(store: JournalStore, snapshots: Path) -> Iterator[Finding]:
    """What is wrong with the state that the events fold to: from zero, and from the newest snapshot, it must be one."""
    from ..core.errors import CorruptJournalError
    from ..core.journal.replay import replay
    from ..core.journal.snapshot import load_latest
    from ..core.journal.verify import Finding

    def frame_hash(number: int) -> bytes | None:
        frames = store.frames_at([number])
        return frames[0].hash if frames else None

    def finding(frame_no: int, message: str) -> Finding:
        frames = store.frames_at([frame_no])
        first, last = (frames[0].first_seq, frames[0].end_seq - 1) if frames else (0, 0)
        return Finding(
            kind="fold", frame_no=frame_no, last_frame_no=frame_no, first_seq=first, last_seq=last, message=message
        )

    last = last_frame_no(store)
    try:
        whole = replay(store, upto_frame=last)
    except CorruptJournalError as error:
        yield finding(last, f"the events do not fold: {error.message}")
        return
    found = load_latest(snapshots, frame_hash)
    if found is None or found[1] > last:
        return
    snapshot_frame = found[1]
    resumed = replay(store, *found, upto_frame=last)
    if resumed.head.digest() != whole.head.digest():
        yield finding(snapshot_frame, "the state from the newest snapshot on is not the state from the beginning")
