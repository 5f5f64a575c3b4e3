"""Who asks."""

from __future__ import annotations

import msgspec


class Caller(msgspec.Struct, frozen=True, gc=False):
    """The identity behind a request."""

    #: whose tasks these are: an API key's id; "local" while no keys are configured
    owner: str = "local"
    #: for logs and the journal: "localhost" or "token:<6 hex of the hash>"
    identity: str = "localhost"
