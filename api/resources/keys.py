"""``/v1/keys``: make keys, list them (AUTH-1)."""

from __future__ import annotations

import msgspec

from ...core.errors import ConflictError, JournalUnavailableError
from ...core.services.keys import KeySpec, KeyView
from ..operations import Answer, Call, Resource, operation, resource


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key with its secret, which is told this once: only its SHA-256 is kept."""

    key: KeyView
    #: to be sent as ``Authorization: Bearer`` or ``x-api-key``
    secret: str


class KeysBody(msgspec.Struct, frozen=True):
    """Keys, the oldest first."""

    keys: list[KeyView]


@resource("/v1/keys", tag="keys")
class KeysResource(Resource):
    """All keys."""

    @operation("Make a key.", status=201, errors=(ConflictError, JournalUnavailableError))
    async def on_post(self, call: Call, body: KeySpec) -> NewKey | Answer:
        """From the first key on, every caller has to bring one; commands on the server's own machine go on working."""
        key, secret = await self.services.keys.create(body, call.caller, call.correlation)
        headers = {"Location": f"/v1/keys/{key.key_id}", "Cache-Control": "no-store"}
        return Answer(NewKey(key=key, secret=secret), status=201, headers=headers)

    @operation("List keys.")
    async def on_get(self, call: Call) -> KeysBody:
        """All that there ever were, without their secrets."""
        return KeysBody(self.services.keys.views())
