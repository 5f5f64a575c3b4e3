"""Who asks, and what they may."""

from __future__ import annotations

import fnmatch

import msgspec

from ..errors import ForbiddenError

#: what keys can be for: ``inference`` (submit, read, cancel one's own), ``read`` (queue, pools, metrics, capabilities),
#: ``admin`` (all the rest: keys, budgets of others, drain and reload, the journal)
SCOPES = ("inference", "read", "admin")


class Caller(msgspec.Struct, frozen=True, gc=False):
    """The identity behind a request."""

    #: whose tasks these are: an API key's id; "local" while no keys are configured
    owner: str = "local"
    #: for logs and the journal: "localhost" or "token:<6 hex of the hash>"
    identity: str = "localhost"
    #: of :data:`SCOPES`
    scopes: tuple[str, ...] = SCOPES
    #: patterns of models that it may use; empty = all
    models: tuple[str, ...] = ()
    #: patterns of paths that it may call; empty = all that its scopes allow
    routes: tuple[str, ...] = ()
    #: it may only submit tasks of priority ``batch``
    batch_only: bool = False
    #: requests and tokens per minute; 0 = no limit of its own
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def require_model(self, model_ref: str) -> None:
        """:raises ForbiddenError: its key is not for this model."""
        if self.models and not any(fnmatch.fnmatchcase(model_ref, pattern) for pattern in self.models):
            msg = f"this key is not for the model {model_ref!r}"
            raise ForbiddenError(
                msg, field="model_ref", got=model_ref, remedy=f"It is for: {', '.join(self.models)}. Use another key."
            )
