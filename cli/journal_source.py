"""Where `journal` commands read: the database itself, beside a server or without one, or a server that is named."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from .connect import client_of, loaded_from
from .shell import Shell

if TYPE_CHECKING:
    from ..core.ports import JournalStore
    from .client import Client
    from .config import Loaded

#: a whole journal is read for one answer
_LONG_S = 3600.0

Events = list[dict[str, Any]]


class JournalSource(Protocol):
    """A journal to read."""

    def newest(self, limit: int, stream: str) -> tuple[Events, int]:
        """The newest events, and the number of the last frame."""
        ...

    def after(self, frame_no: int, stream: str) -> tuple[Events, int]:
        """Events of the frames after one, and the number of the last of these frames."""
        ...

    def figures(self) -> dict[str, Any]:
        """Frames, events by name, tasks, tokens, bytes."""
        ...

    def verify(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """The report of a verification."""
        ...

    def export(self, *, texts: bool) -> Iterator[str]:
        """A JSON object per event, a line each, and a last one with the frames and the head's hash."""
        ...


class StoredJournal:
    """The database itself."""

    def __init__(self, loaded: Loaded, store: JournalStore) -> None:
        self._loaded, self._store = loaded, store

    def newest(self, limit: int, stream: str) -> tuple[Events, int]:
        from ..core.journal.listing import newest
        from .journal_access import last_frame_no

        last = last_frame_no(self._store)
        return newest(self._store, last, limit=limit, stream=stream), last

    def after(self, frame_no: int, stream: str) -> tuple[Events, int]:
        from ..core.journal.listing import events_in

        events: Events = []
        for frame in self._store.frames(frame_no + 1):
            events += [event for event in events_in(frame) if not stream or event.get("stream") == stream]
            frame_no = frame.frame_no
        return events, frame_no

    def figures(self) -> dict[str, Any]:
        from ..core.journal.listing import figures

        return figures(self._store)

    def verify(self, progress: Callable[[int], None]) -> dict[str, Any]:
        import msgspec

        from ..core.journal.verify import verify
        from .journal_access import disagreeing_folds

        snapshots = self._loaded.data_dir / "snapshots"
        report = verify(self._store, check_fold=lambda store: disagreeing_folds(store, snapshots), progress=progress)
        return {"ok": report.ok, **msgspec.to_builtins(report)}

    def export(self, *, texts: bool) -> Iterator[str]:
        from ..core.journal.listing import events_in

        end: dict[str, Any] = {"frames": 0, "hash": ""}
        events = 0
        for frame in self._store.frames(1):
            for event in events_in(frame, texts=texts):
                events += "seq" in event
                yield json.dumps(event, ensure_ascii=False)
            end = {"frames": frame.frame_no, "hash": frame.hash.hex()}
        yield json.dumps({"end": end | {"events": events}})


class ServedJournal:
    """A server's journal, over HTTP."""

    def __init__(self, client: Client) -> None:
        client.timeout_s = _LONG_S
        self._client = client

    def newest(self, limit: int, stream: str) -> tuple[Events, int]:
        told = self._client.get("/v1/journal/tail", limit=max(1, limit), stream=stream or None)
        return told["events"] if limit else [], told["last_frame"]

    def after(self, frame_no: int, stream: str) -> tuple[Events, int]:
        told = self._client.get("/v1/journal/tail", after_frame=frame_no, stream=stream or None)
        return told["events"], told["last_frame"]

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = self._client.get("/v1/journal/stats", full="true")
        return figures

    def verify(self, progress: Callable[[int], None]) -> dict[str, Any]:
        report: dict[str, Any] = self._client.get("/v1/journal/verify")
        return report

    def export(self, *, texts: bool) -> Iterator[str]:
        for line in self._client.lines("/v1/journal/export", texts="true" if texts else None):
            yield line.decode("utf-8")


@contextlib.contextmanager
def journal_of(options: argparse.Namespace, shell: Shell) -> Iterator[JournalSource]:
    """The journal that the options name. :raises CliError: there is none, or the server does not answer."""
    if options.url or shell.environ.get("LLORCH_URL"):
        yield ServedJournal(client_of(options, shell))
        return
    from .journal_access import open_for_reading

    loaded = loaded_from(options, shell)
    store = open_for_reading(loaded)
    try:
        yield StoredJournal(loaded, store)
    finally:
        store.close()
