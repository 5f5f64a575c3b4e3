"""``/v1/journal/verify``: what can be proven of the journal (DET-3)."""

from __future__ import annotations

import asyncio

import msgspec

from ...core.errors import ConflictError
from ...core.journal.verify import Finding, verify
from ..operations import Call, Context, Resource, operation, resource


class VerifyBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification saw."""

    ok: bool
    frames: int
    events: int
    last_frame_no: int
    head_hash: str
    #: bodies and transcripts whose bytes match their digests
    bodies: int
    transcripts: int
    #: what is wrong, and where
    findings: list[Finding]
    #: what cannot be proven, in words
    unproven: list[str]


@resource("/v1/journal/verify", tag="journal")
class JournalVerifyResource(Resource):
    """The proof of the journal."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._running = False

    @operation("Verify the journal.", errors=(ConflictError,))
    async def on_get(self, call: Call) -> VerifyBody:
        """Reads the whole journal beside the running server: chain, gaps, digests. One verification runs at a time."""
        if self._running:
            msg = "the journal is being verified already"
            raise ConflictError(msg, remedy="Wait for that verification to end.")
        self._running = True
        try:
            report = await asyncio.to_thread(verify, self.services.journal.store)
        finally:
            self._running = False
        return VerifyBody(
            ok=report.ok,
            frames=report.frames,
            events=report.events,
            last_frame_no=report.last_frame_no,
            head_hash=report.head_hash,
            bodies=report.bodies,
            transcripts=report.transcripts,
            findings=report.findings,
            unproven=report.unproven,
        )
