"""How the journal commits."""

from __future__ import annotations

from pathlib import Path

import msgspec


class JournalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the journal commits; see :class:`~llama_orch.core.settings.JournalSettings`."""

    version: str
    window_s: float = 0.004
    pending_bytes: int = 16_777_216
    buffer_bytes: int = 262_144
    snapshots: Path | None = None
    #: seconds between tries while the store refuses or cannot be opened
    retry_s: float = 0.05
    retry_max_s: float = 1.0
    inline: bool | None = None
