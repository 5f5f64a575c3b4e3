"""``/v1/budgets``: what may be spent, what was, and what is left (BUD-1, BUD-2)."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...core.services.budgets import BudgetView
from ..operations import Call, Resource, operation, resource


class BudgetsBody(msgspec.Struct, frozen=True):
    """Budgets by scope, subject and window."""

    budgets: list[BudgetView]


class BudgetsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which budgets are listed."""

    scope: Literal["key", "session"] | None = None


@resource("/v1/budgets", tag="budgets")
class BudgetsResource(Resource):
    """All budgets."""

    @operation("List budgets.", scopes=("inference", "read"))
    async def on_get(self, call: Call, query: BudgetsQuery) -> BudgetsBody:
        """The caller's own and those of its sessions; with the scope ``admin`` all of them."""
        return BudgetsBody(self.services.budgets.views(call.caller, query.scope or ""))
