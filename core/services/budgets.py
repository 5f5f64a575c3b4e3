"""Budgets as people see them: set, removed, shown; what admission asks of them; windows that begin anew (BUD-1, BUD-2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..amounts import NOTHING, decimal, pico
from ..errors import InvalidParamsError, NotFoundError
from ..events.budget import BudgetRemoved, BudgetSet, PriceRecord
from ..journal.journal import Journal
from ..projections.budgets import Account
from ..settings import BudgetCapSettings, Settings
from ..types import Amount, TaskRequest
from .caller import Caller
from .price_list import PriceList
from .purses import counted_on, dearer, due, exhausted, exhausted_account, room_of
from .windows import WINDOWS, bounds, rolled

#: windows that begin anew in one batch
_AT_ONCE = 256
_NONE = -1


class Quantities(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted, exact to the last unit."""

    tokens: int
    #: microseconds as thousandths
    decode_ms: float
    #: decimal
    cost: str


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds; ``null`` where there is none."""

    tokens: int | None
    decode_ms: float | None
    cost: str | None


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """One budget as routes show it."""

    #: "key" (the owner of tasks) | "session"
    scope: str
    subject: str
    #: "none" | "day" | "month"
    window: str
    timezone: str
    #: it follows from the configuration
    by_default: bool
    caps: Caps
    #: committed in the window that runs
    spent: Quantities
    #: promised to tasks that run
    reserved: Quantities
    #: neither spent nor promised
    remaining: Caps
    #: Unix time at which the window began and at which it begins anew; 0 for one that never ends
    window_start_ms: int
    window_end_ms: int


class Remaining(msgspec.Struct, frozen=True, kw_only=True):
    """What is left where several budgets apply; ``None`` = no cap bounds it."""

    tokens: int | None
    decode_us: int | None
    cost_pico: int | None


class BudgetService:
    """Sets and shows budgets, and says before the queue whether a task can be paid at all (an admission check)."""

    def __init__(self, journal: Journal, settings: Settings, prices: PriceList) -> None:
        self._journal = journal
        self._defaults = settings.budgets.keys
        self._prices = prices
        self._models = settings.models

    # --- what admission asks ---------------------------------------------------------------------------------

    def refuse(self, request: TaskRequest, caller: Caller, now_ns: int) -> None:
        """:raises BudgetExhaustedError: a budget that the task would be counted on is spent."""
        for account in self._accounts(caller.owner, request.session_id, now_ns):
            left = room_of([account], now_ns)
            for name, words in (("tokens", "tokens"), ("decode_us", "decode time"), ("cost_pico", "money")):
                if getattr(left, name) <= 0:
                    raise exhausted_account(account, words, now_ns)

    def events(self, request: TaskRequest, caller: Caller, prompt_tokens: int, now_ns: int) -> list[object]:
        """Nothing more to say. :raises BudgetExhaustedError: its prompt and a first token are more than what is left."""
        accounts = self._accounts(caller.owner, request.session_id, now_ns)
        if accounts:
            prices = self._prices_of(request)
            if not self._counted(request):
                # Its bytes are only a bound: refused by them, it would never load the engine that can tell.
                prompt_tokens = 1
            speaks = 1 if request.workload in ("completion", "chat") else 0
            cost = prompt_tokens * dearer(prices) + speaks * prices.output_pico
            wanted = Amount(tokens=prompt_tokens + speaks, cost_pico=cost)
            left = room_of(accounts, now_ns)
            if left.tokens < wanted.tokens or left.cost_pico < wanted.cost_pico:
                raise exhausted(accounts, wanted, now_ns)
        return []

    def _counted(self, request: TaskRequest) -> bool:
        """Whether a prompt's tokens are known, or could be asked for: an engine that is not loaded counts when it is."""
        pools = self._journal.head.pools
        return request.prompt_ids is not None or any(p.ready for p in pools.serving(self._group_of(request) or ""))

    def prompt_room(self, request: TaskRequest, caller: Caller, now_ns: int) -> int | None:
        """Tokens that a prompt may surely have; a longer one has to be counted exactly. ``None``: as many as it likes.

        A share of what is left, the smaller the more tasks hold something of it: what is reserved for a prompt that nobody
        counted is a few times what it takes, and would keep the others out.
        """
        accounts = counted_on(self._journal.head, caller.owner, request.session_id or "")
        if not accounts:
            return None
        left, price = room_of(accounts, now_ns), self._prices_of(request)
        money = (left.cost_pico - price.output_pico) // dearer(price) if dearer(price) else left.tokens
        return min(left.tokens - 1, money) // (2 * (1 + max(account.holders for account in accounts)))

    def _group_of(self, request: TaskRequest) -> str | None:
        pools, name = self._journal.head.pools, request.model_ref
        return pools.group_of(name) or pools.group_of(self._models.get(name, name))

    def _prices_of(self, request: TaskRequest) -> PriceRecord:
        name = request.model_ref
        return self._prices.of(self._group_of(request) or name, name)

    def _accounts(self, owner: str, session_id: str | None, now_ns: int) -> list[Account]:
        """All that a task is counted on, defaults included; what is due is made to happen first."""
        accounts = counted_on(self._journal.head, owner, session_id or "")
        defaults = list(self._defaults_for(owner, now_ns))
        # A window begins anew before its caps change, so that what was spent in it does not go along.
        events = [*due(accounts, now_ns), *defaults]
        if events:
            self._journal.append(events, actor="server", correlation="")
            accounts = counted_on(self._journal.head, owner, session_id or "")
        return accounts

    def _defaults_for(self, owner: str, now_ns: int) -> Iterable[BudgetSet | BudgetRemoved]:
        """What makes an owner's accounts follow the configuration, where it has no budget of that window of its own."""
        accounts = {a.declared.window: a for a in self._journal.head.budgets.of("key", owner)}
        wanted = {caps.window: caps for caps in self._defaults}
        for window, account in accounts.items():
            if account.declared.by_default and window not in wanted:
                yield BudgetRemoved(account=account.declared.account)
        for window, caps in wanted.items():
            own = accounts.get(window)
            if own is None or (own.declared.by_default and not _same(own, caps)):
                yield self._set("key", owner, caps, now_ns, by_default=True)

    # --- setting ---------------------------------------------------------------------------------------------

    def opening(self, scope: str, subject: str, caps: Sequence[BudgetCapSettings], now_ns: int) -> list[object]:
        """Events that give a new key or session its budgets, for the batch that makes it.

        :raises InvalidParamsError: two of them have the same window, or a time zone is not known.
        """
        windows = [one.window for one in caps]
        twice = next((window for window in windows if windows.count(window) > 1), None)
        if twice is not None:
            msg = f"two budgets with the window {twice!r}: one has to go"
            raise InvalidParamsError(msg, field="budgets", got=twice)
        return [self._set(scope, subject, one, now_ns) for one in caps]

    def _set(
        self, scope: str, subject: str, caps: BudgetCapSettings, now_ns: int, *, by_default: bool = False
    ) -> BudgetSet:
        start_ns, end_ns = bounds(caps.window, caps.timezone, now_ns)
        return BudgetSet(
            account=f"{scope}/{subject}/{caps.window}",
            scope=scope,
            subject=subject,
            window=caps.window,
            timezone=caps.timezone,
            tokens=_NONE if caps.tokens is None else caps.tokens,
            decode_us=_NONE if caps.decode_ms is None else caps.decode_ms * 1000,
            cost_pico=_NONE if caps.cost is None else pico(caps.cost),
            window_start_ns=start_ns,
            window_end_ns=end_ns,
            by_default=by_default,
        )

    async def put(
        self, scope: str, subject: str, caps: BudgetCapSettings, caller: Caller, correlation: str = ""
    ) -> BudgetView:
        """Open an account, or change its caps; what was spent in its window stays. Durable on return.

        :raises NotFoundError: there is no such key or open session. :raises InvalidParamsError: an unknown time zone, or a
            key's name instead of its id.
        """
        self._require_subject(scope, subject)
        now_ns = self._journal.now_ns()
        declared = self._set(scope, subject, caps, now_ns)
        before = self._journal.head.budgets.accounts.get(declared.account)
        events = [*due([before] if before is not None else [], now_ns), declared]
        seq = self._journal.append(events, actor=caller.identity, correlation=correlation)
        await self._journal.synced(seq)
        return view_of(self._journal.head.budgets.accounts[declared.account], now_ns)

    async def remove(self, scope: str, subject: str, window: str | None, caller: Caller, correlation: str = "") -> None:
        """Remove a subject's account of one window, or all of them; a key goes back to the configured defaults.

        :raises NotFoundError: there is none.
        """
        accounts = self._journal.head.budgets.of(scope, subject)
        names = [a.declared.account for a in accounts if window is None or a.declared.window == window]
        if not names:
            raise _nothing(scope, subject, window)
        removed: list[object] = [BudgetRemoved(account=name) for name in names]
        seq = self._journal.append(removed, actor=caller.identity, correlation=correlation)
        await self._journal.synced(seq)

    def _require_subject(self, scope: str, subject: str) -> None:
        head = self._journal.head
        if scope == "session" and subject not in head.sessions.by_id:
            msg = f"there is no open session {subject[:64]!r}"
            raise NotFoundError(msg, field="subject", got=subject[:64], remedy="GET /v1/sessions lists the open ones.")
        if scope == "key" and subject.startswith("key-") and subject not in head.keys.by_id:
            msg = f"there is no key {subject[:64]!r}"
            raise NotFoundError(msg, field="subject", got=subject[:64], remedy="`llama-orch keys list` shows them.")
        # A budget of a name would bind nobody: what a key spends is counted by its id.
        named = [] if scope == "session" else [s.key_id for s in head.keys.by_id.values() if s.name == subject]
        if named and subject != "local":
            msg = f"{subject[:64]!r} is the name of a key, budgets are set by its id"
            raise InvalidParamsError(msg, field="subject", got=subject[:64], remedy=f"Name {named[-1]} instead.")

    def closing(self, session_id: str) -> list[object]:
        """Events that go with a session's end: its accounts are gone with it."""
        accounts = self._journal.head.budgets.of("session", session_id)
        return [BudgetRemoved(account=account.declared.account) for account in accounts]

    def sweep(self, now_ns: int) -> None:
        """Begin the windows anew that are over."""
        found = self._journal.head.budgets.due(now_ns, _AT_ONCE)
        if found:
            self._journal.append([rolled(a, now_ns) for a in found], actor="watchdog", correlation="")

    # --- showing ---------------------------------------------------------------------------------------------

    def views(self, caller: Caller, scope: str = "", subject: str = "") -> list[BudgetView]:
        """Budgets that the caller may see, of one subject if it is named: its own and its sessions'; an admin sees all."""
        head, now_ns = self._journal.head, self._journal.now_ns()
        found = head.budgets.of(scope, subject) if scope and subject else head.budgets.accounts.values()
        return [
            view_of(account, now_ns)
            for account in sorted(found, key=_order)
            if (not scope or account.declared.scope == scope) and self.may_see(caller, account.declared)
        ]

    def may_see(self, caller: Caller, declared: BudgetSet) -> bool:
        """Whether an account is the caller's, or it is an admin."""
        if "admin" in caller.scopes:
            return True
        if declared.scope == "key":
            return declared.subject == caller.owner
        session = self._journal.head.sessions.by_id.get(declared.subject)
        return session is not None and session.owner == caller.owner

    def remaining(self, owner: str, session_id: str = "") -> Remaining | None:
        """What the next task of an owner, in this session, may still take; ``None``: nothing bounds it."""
        accounts = counted_on(self._journal.head, owner, session_id)
        if not accounts:
            return None
        left = room_of(accounts, self._journal.now_ns())
        declared = [account.declared for account in accounts]
        found = Remaining(
            tokens=left.tokens if any(one.tokens >= 0 for one in declared) else None,
            decode_us=left.decode_us if any(one.decode_us >= 0 for one in declared) else None,
            cost_pico=left.cost_pico if any(one.cost_pico >= 0 for one in declared) else None,
        )
        return None if found == Remaining(tokens=None, decode_us=None, cost_pico=None) else found


def view_of(account: Account, now_ns: int) -> BudgetView:
    """An account as it stands; a window that is over is shown as the one that follows."""
    declared, spent = account.declared, account.spent
    start_ns, end_ns = account.window_start_ns, account.window_end_ns
    if account.due(now_ns):
        following = rolled(account, now_ns)
        spent, start_ns, end_ns = NOTHING, following.window_start_ns, following.window_end_ns
    left = room_of([account], now_ns)
    return BudgetView(
        scope=declared.scope,
        subject=declared.subject,
        window=declared.window,
        timezone=declared.timezone,
        by_default=declared.by_default,
        caps=_caps(
            declared, Amount(tokens=declared.tokens, decode_us=declared.decode_us, cost_pico=declared.cost_pico)
        ),
        spent=quantities(spent),
        reserved=quantities(account.held),
        remaining=_caps(declared, left),
        window_start_ms=start_ns // 1_000_000,
        window_end_ms=end_ns // 1_000_000,
    )


def quantities(amount: Amount) -> Quantities:
    """An amount as routes show it."""
    return Quantities(tokens=amount.tokens, decode_ms=amount.decode_us / 1000, cost=decimal(amount.cost_pico))


def _caps(declared: BudgetSet, amount: Amount) -> Caps:
    return Caps(
        tokens=None if declared.tokens < 0 else amount.tokens,
        decode_ms=None if declared.decode_us < 0 else amount.decode_us / 1000,
        cost=None if declared.cost_pico < 0 else decimal(amount.cost_pico),
    )


def _same(account: Account, caps: BudgetCapSettings) -> bool:
    declared = account.declared
    return (
        declared.timezone == caps.timezone
        and declared.tokens == (_NONE if caps.tokens is None else caps.tokens)
        and declared.decode_us == (_NONE if caps.decode_ms is None else caps.decode_ms * 1000)
        and declared.cost_pico == (_NONE if caps.cost is None else pico(caps.cost))
    )


def _order(account: Account) -> tuple[str, str, int]:
    declared = account.declared
    return declared.scope, declared.subject, WINDOWS.index(declared.window)


def _nothing(scope: str, subject: str, window: str | None) -> NotFoundError:
    what = f"budget with the window {window!r}" if window else "budget"
    msg = f"the {scope} {subject[:64]!r} has no {what}"
    return NotFoundError(msg, field="subject", got=subject[:64], remedy="GET /v1/budgets lists what there is.")
