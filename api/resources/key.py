"""``/v1/keys/{id}``: look at a key, change what it may do, revoke it (AUTH-1)."""

from __future__ import annotations

from ...core.errors import ConflictError, JournalUnavailableError, NotFoundError
from ...core.services.keys import KeyPatch, KeyView
from ..operations import Call, Resource, operation, resource


@resource("/v1/keys/{key_id}", tag="keys")
class KeyResource(Resource):
    """One key."""

    @operation("Get a key.", errors=(NotFoundError,))
    async def on_get(self, call: Call, key_id: str) -> KeyView:
        """What it may do, and until when; never the key."""
        view: KeyView = self.services.keys.get(key_id)
        return view

    @operation("Change what a key may do.", errors=(NotFoundError, ConflictError, JournalUnavailableError))
    async def on_patch(self, call: Call, key_id: str, body: KeyPatch) -> KeyView:
        """What is not named stays. It counts from the next request on."""
        return await self.services.keys.change(key_id, body, call.caller, call.correlation)

    @operation("Revoke a key.", errors=(NotFoundError, JournalUnavailableError))
    async def on_delete(self, call: Call, key_id: str) -> KeyView:
        """For ever, and from the next request on; tasks that were accepted go on. Its owner's records stay."""
        return await self.services.keys.revoke(key_id, call.caller, call.correlation)
