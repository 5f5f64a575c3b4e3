"""``/v1/keys/{id}/rotate``: another secret for the same key (AUTH-1)."""

from __future__ import annotations

import msgspec

from ...core.errors import ConflictError, JournalUnavailableError, NotFoundError
from ...core.services.keys import TimeMs
from ..operations import Answer, Call, Resource, operation, resource
from .keys import NewKey


class RotateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the old secret goes."""

    #: how long it is accepted beside the new one
    grace_ms: TimeMs = 0


@resource("/v1/keys/{key_id}/rotate", tag="keys")
class KeyRotateResource(Resource):
    """The rotation of a key."""

    @operation("Give a key a new secret.", errors=(NotFoundError, ConflictError, JournalUnavailableError))
    async def on_post(self, call: Call, key_id: str, body: RotateBody) -> NewKey | Answer:
        """It stays the same key: its tasks, sessions, budgets and limits stay with it."""
        key, secret = await self.services.keys.rotate(key_id, body.grace_ms, call.caller, call.correlation)
        return Answer(NewKey(key=key, secret=secret), headers={"Cache-Control": "no-store"})
