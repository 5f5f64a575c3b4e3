"""Who asks, and what they may."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import msgspec

from ..errors import ForbiddenError

#: what keys can be for: ``inference`` (submit, read, cancel one's own), ``read`` (queue, pools, metrics, capabilities),
#: ``admin`` (all that, and the rest: keys, budgets of others, drain and reload, the journal)
SCOPES = ("inference", "read", "admin")


class Caller(msgspec.Struct, frozen=True, gc=False):
    """The identity behind a request."""

    #: whose tasks these are: an API key's id; "local" while no keys are configured
    owner: str = "local"
    #: for logs and the journal: "localhost", "token:<6 hex of the hash>", or "oidc:", "proxy:", "cert:" with such a hash
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

    @property
    def restricted(self) -> bool:
        """Whether it may do less than its scopes say: such a caller makes no keys, which could do more."""
        return bool(self.models or self.routes or self.batch_only)

    @property
    def limited(self) -> bool:
        """Whether it has rates of its own."""
        return bool(self.requests_per_minute or self.tokens_per_minute)

    def may_use(self, model_ref: str) -> bool:
        """Whether its key is for this model."""
        return not self.models or any(fnmatch.fnmatchcase(model_ref, pattern) for pattern in self.models)

    def require_model(self, model_ref: str) -> None:
        """:raises ForbiddenError: its key is not for this model."""
        if not self.may_use(model_ref):
            msg = f"this key is not for the model {model_ref!r}"
            raise ForbiddenError(
                msg, field="model_ref", got=model_ref, remedy=f"It is for: {', '.join(self.models)}. Use another key."
            )

    def require_route(self, scopes: Sequence[str], path: str) -> None:
        """Whether it may call a route.

        :param scopes: any one of them is enough; ``admin`` always is.
        :raises ForbiddenError: its key has none of the scopes, or is not for this path.
        """
        if "admin" not in self.scopes and not any(scope in self.scopes for scope in scopes):
            needed = " or ".join([*scopes, *(["admin"] if "admin" not in scopes else [])])
            msg = f"this needs a key with the scope {needed}; yours has: {', '.join(self.scopes) or 'none'}"
            raise ForbiddenError(
                msg,
                field="scopes",
                got=", ".join(self.scopes),
                remedy="Use another key, or have the scopes of this one changed.",
            )
        if self.routes and not any(fnmatch.fnmatchcase(path, pattern) for pattern in self.routes):
            msg = f"this key is not for the path {path[:200]!r}"
            raise ForbiddenError(
                msg, field="path", got=path[:200], remedy=f"It is for: {', '.join(self.routes)}. Use another key."
            )

    def require_priority(self, priority: str) -> None:
        """:raises ForbiddenError: its key is for batch tasks only."""
        if self.batch_only and priority != "batch":
            msg = f"this key is for tasks of priority batch only, and this one is {priority}"
            raise ForbiddenError(msg, field="priority", got=priority, remedy='Send "priority": "batch".')
