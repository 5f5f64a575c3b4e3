"""``/v1/budgets/{scope}/{subject}``: the budgets of one key or session (BUD-1)."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from ...core.errors import JournalUnavailableError, NotFoundError
from ...core.services.budgets import BudgetView
from ...core.settings import BudgetCapSettings
from ..operations import Answer, Call, Resource, operation, resource
from .budgets import BudgetsBody

SCOPES: Final = ("key", "session")


class WindowQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of its budgets."""

    #: not given = all of them
    window: Literal["none", "day", "month"] | None = None


def require_scope(scope: str) -> None:
    """:raises NotFoundError: budgets have no such scope."""
    if scope not in SCOPES:
        msg = f"budgets have no scope {scope[:64]!r}, only {' and '.join(SCOPES)}"
        raise NotFoundError(msg, field="scope", got=scope[:64], remedy="GET /v1/budgets lists what there is.")


@resource("/v1/budgets/{scope}/{subject}", tag="budgets")
class BudgetResource(Resource):
    """One subject's budgets: a key by its id (``local`` while there are no keys), or a session."""

    @operation("Get the budgets of a key or session.", scopes=("inference", "read"), errors=(NotFoundError,))
    async def on_get(self, call: Call, scope: str, subject: str) -> BudgetsBody:
        """One for each window. 404 where there is none that the caller may see."""
        require_scope(scope)
        found = self.services.budgets.views(call.caller, scope, subject)
        if not found:
            msg = f"the {scope} {subject[:64]!r} has no budget"
            raise NotFoundError(msg, field="subject", got=subject[:64], remedy="GET /v1/budgets lists what there is.")
        return BudgetsBody(found)

    @operation("Set a budget.", errors=(NotFoundError, JournalUnavailableError))
    async def on_put(self, call: Call, scope: str, subject: str, body: BudgetCapSettings) -> BudgetView:
        """Opens the budget of that window, or changes its caps; a cap that is left out does not bound, and what was spent is
        kept. Under a lowered cap nothing new is reserved; what running tasks hold already they may still use.
        """
        require_scope(scope)
        return await self.services.budgets.put(scope, subject, body, call.caller, call.correlation)

    @operation("Remove budgets.", status=204, errors=(NotFoundError, JournalUnavailableError))
    async def on_delete(self, call: Call, scope: str, subject: str, query: WindowQuery) -> Answer:
        """The one of that window, or all. A key goes back to the configured defaults."""
        require_scope(scope)
        await self.services.budgets.remove(scope, subject, query.window, call.caller, call.correlation)
        return Answer(status=204)
