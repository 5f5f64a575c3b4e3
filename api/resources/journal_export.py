"""``/v1/journal/export``: all events as JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from ...core.errors import OrchError
from ...core.journal.listing import events_in
from ..operations import Answer, Call, Resource, operation, resource
from ..streaming import StreamPlan

_NDJSON = "application/x-ndjson"
#: frames that are read and sent at once
_FRAMES = 64
_encode = msgspec.json.Encoder().encode


class ExportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the lines hold."""

    #: with what was asked and said; without, only how much
    texts: bool = False


class _Lines:
    """Lines are bytes already."""

    def render(self, items: Sequence[bytes]) -> tuple[bytes, bool]:
        """The lines."""
        return b"".join(items), False

    def broken(self, error: OrchError) -> bytes:
        """A last line that says why there are no more."""
        return _encode({"error": error.to_dict()}) + b"\n"


@resource("/v1/journal/export", tag="journal")
class JournalExportResource(Resource):
    """The whole journal."""

    @operation("Export the journal.", media_type=_NDJSON)
    async def on_get(self, call: Call, query: ExportQuery) -> Answer:
        """One JSON object per event, in order; the last line has the number of frames, the events and the last hash."""
        return Answer(media_type=_NDJSON, stream=StreamPlan(self._lines(query.texts), _Lines(), lambda gone: None))

    async def _lines(self, texts: bool) -> AsyncIterator[Sequence[bytes]]:
        store, last = self.services.journal.store, self.services.journal.committed_frame
        events = 0
        end: dict[str, int | str] = {"frames": 0, "hash": ""}

        def read(first: int) -> list[bytes]:
            nonlocal events
            lines = []
            for frame in store.frames_at(range(first, min(first + _FRAMES, last + 1))):
                for event in events_in(frame, texts=texts):
                    lines.append(_encode(event) + b"\n")
                    events += "seq" in event
                end["frames"], end["hash"] = frame.frame_no, frame.hash.hex()
            return lines

        for first in range(1, last + 1, _FRAMES):
            yield await asyncio.to_thread(read, first)
        yield [_encode({"end": end | {"events": events}}) + b"\n"]
