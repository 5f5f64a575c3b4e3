"""``/v1/journal/stats``: where the journal stands, and what is in it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from ...core.errors import JournalUnavailableError
from ...core.journal.listing import figures
from ..operations import Call, Resource, operation, resource


class StatsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is counted."""

    #: count events, tasks and tokens too, which reads all facts once
    full: bool = False


@resource("/v1/journal/stats", tag="journal")
class JournalStatsResource(Resource):
    """Figures of the journal."""

    @operation("Show the journal's figures.", errors=(JournalUnavailableError,))
    async def on_get(self, call: Call, query: StatsQuery) -> dict[str, Any]:
        """State, epoch, head, committed and synced seq, bytes; with ``full`` also events by name, tasks, tokens."""
        journal = self.services.journal
        stats: dict[str, Any] = dict(journal.describe())
        if query.full:
            stats |= await asyncio.to_thread(figures, journal.store)
        else:
            stats["bytes"] = await asyncio.to_thread(journal.store.size_bytes)
        return stats
