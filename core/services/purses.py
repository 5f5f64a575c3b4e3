"""Purses: what running tasks have in hand of their budgets, taken in small tranches (BUD-1).

Nothing is appended that is not reserved. A tranche is a share of what the accounts have left, so that many tasks at once,
whatever they may come to at most, never lock each other out; the closer a cap, the smaller the tranches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..amounts import beyond, covers, plus
from ..entries import EntryBatch
from ..errors import BudgetExhaustedError
from ..events.budget import BudgetReserved, PriceRecord
from ..journal.journal import Journal
from ..projections.budgets import Account, Hold
from ..projections.head import Head
from ..projections.tasks import TaskState
from ..types import Amount, TaskPhase
from .price_list import PriceList, used
from .windows import rolled

#: most that is reserved at a time where a cap bounds it
_TRANCHE = Amount(tokens=256, decode_us=10_000_000)
#: the same where none does
_UNBOUNDED = Amount(tokens=4096, decode_us=60_000_000)
_ENDLESS = 10**30
_QUANTITIES = (("tokens", "tokens"), ("decode_us", "decode time"), ("cost_pico", "money"))


def counted_on(head: Head, owner: str, session_id: str) -> list[Account]:
    """The accounts of a task: its owner's, and those of its session, if that is the owner's and open."""
    session = head.sessions.by_id.get(session_id)
    return head.budgets.counted(owner, session_id if session is not None and session.owner == owner else "")


def room_of(accounts: Sequence[Account], now_ns: int) -> Amount:
    """What is left where all of these accounts apply; a window that is over counts as begun anew."""
    left = {"tokens": _ENDLESS, "decode_us": _ENDLESS, "cost_pico": _ENDLESS}
    for account in accounts:
        for name, _ in _QUANTITIES:
            room = _room(account, name, now_ns)
            if room is not None:
                left[name] = min(left[name], room)
    return Amount(**left)


def _room(account: Account, name: str, now_ns: int) -> int | None:
    """What is left of one quantity in one account; ``None``: it has no cap."""
    room = account.room(name)
    if room is not None and account.due(now_ns):
        room += getattr(account.spent, name)
    return None if room is None else max(0, room)


def exhausted(accounts: Sequence[Account], wanted: Amount, now_ns: int) -> BudgetExhaustedError:
    """The error for what the accounts cannot hold: names the first of them, and when its window ends."""
    for account in accounts:
        left = room_of([account], now_ns)
        for name, words in _QUANTITIES:
            if getattr(wanted, name) > getattr(left, name):
                return exhausted_account(account, words, now_ns)
    return BudgetExhaustedError("the budget is used up")


def exhausted_account(account: Account, words: str, now_ns: int) -> BudgetExhaustedError:
    """The error for one account."""
    declared = account.declared
    window = {"day": "'s day", "month": "'s month"}.get(declared.window, "")
    of = f"the {declared.scope}{window}" if declared.scope == "session" else f"this key{window}"
    reserved = " (a part of it is reserved by running tasks)" if account.holders > 1 else ""
    error = BudgetExhaustedError(
        f"the budget of {of} has not enough {words} left{reserved}", scope=declared.scope, window=declared.window
    )
    if account.window_end_ns:
        error.details["resets_after_ms"] = max(0, account.window_end_ns - now_ns) // 1_000_000
    return error


class Purses:
    """Reserves for tasks at their placement and at their start, and gives their attempts a purse."""

    def __init__(self, journal: Journal, prices: PriceList) -> None:
        self._journal = journal
        self._prices = prices

    def placing(self, state: TaskState, now_ns: int) -> list[object]:
        """What goes into the batch of a task's placement: its first reservation, if it is counted anywhere.

        :raises BudgetExhaustedError: there is not enough left for its prompt and a first token.
        """
        admitted, budgets = state.admitted, self._journal.head.budgets
        accounts = counted_on(self._journal.head, admitted.owner, admitted.session_id)
        if not accounts or state.task_id in budgets.holds or state.started is not None:
            # What began before there was a budget is counted on none to its end, however many attempts it takes.
            return []
        prices = self._prices.of(admitted.group, admitted.model_ref)
        left = room_of(accounts, now_ns)
        speaks = 1 if generates(state) else 0
        prompt = admitted.inputs_tokens or admitted.prompt_tokens
        if not admitted.prompt_tokens_exact or admitted.inputs_tokens:
            # It is an upper bound: whether there is enough is seen when the engine has counted.
            most = left.tokens - speaks
            if prices.input_pico:
                most = min(most, (left.cost_pico - speaks * prices.output_pico) // dearer(prices))
            prompt = max(1, min(prompt, most))
        wanted = used(prices, prompt, speaks, 0)
        wanted = Amount(tokens=wanted.tokens, cost_pico=prompt * dearer(prices) + speaks * prices.output_pico)
        if not covers(left, wanted):
            raise exhausted(accounts, wanted, now_ns)
        rest = max(0, admitted.max_tokens * admitted.n - 1) if admitted.max_tokens else _ENDLESS
        hold = plus(wanted, tranche(accounts, wanted, prices, rest if speaks else 0, now_ns, 1))
        return [
            *due(accounts, now_ns),
            BudgetReserved(
                task_id=state.task_id,
                hold=hold,
                accounts=[account.declared.account for account in accounts],
                prompt_tokens=prompt,
                prices=prices,
            ),
        ]

    def purse(self, state: TaskState, out: Callable[[TaskState, BudgetExhaustedError], None]) -> Purse | None:
        """The purse of a task's attempt; ``None``: it is counted nowhere.

        :param out: ends the task whose purse is empty.
        """
        hold = self._journal.head.budgets.holds.get(state.task_id)
        return None if hold is None else Purse(self._journal, state.task_id, out)

    def reach(self, state: TaskState, wanted: Amount, now_ns: int) -> list[object]:
        """What has to be reserved so that so much is covered in all; nothing where it is.

        :raises BudgetExhaustedError: there is not enough left.
        """
        budgets = self._journal.head.budgets
        hold = budgets.holds.get(state.task_id)
        if hold is None or covers(hold.amount, wanted):
            return []
        accounts = budgets.open_of(hold)
        more = beyond(wanted, hold.amount)
        if not covers(room_of(accounts, now_ns), more):
            raise exhausted(accounts, more, now_ns)
        return [*due(accounts, now_ns), BudgetReserved(task_id=state.task_id, hold=plus(hold.amount, more))]

    def starting(self, state: TaskState, prompt_tokens: int, now_ns: int) -> list[object]:
        """What goes before a task's start, now that its engine has counted its prompt; see :meth:`reach`."""
        hold = self._journal.head.budgets.holds.get(state.task_id)
        if hold is None or state.started is not None or not prompt_tokens:
            return []
        speaks = 1 if generates(state) else 0
        cost = prompt_tokens * dearer(hold.prices) + speaks * hold.prices.output_pico
        return self.reach(state, Amount(tokens=prompt_tokens + speaks, cost_pico=cost), now_ns)

    def ending(self, state: TaskState, prompt_tokens: int, cached_tokens: int, now_ns: int) -> list[object]:
        """What is still missing when an engine counts a longer prompt at its end.

        Nothing, if there is not enough left for a task whose words were given already.

        :raises BudgetExhaustedError: there is not enough left, and its result was not given yet.
        """
        hold = self._journal.head.budgets.holds.get(state.task_id)
        if hold is None or state.started is None:
            return []
        prompt = prompt_tokens or hold.prompt_tokens
        try:
            wanted = used(hold.prices, prompt, state.tokens_out, state.decode_us, cached_tokens)
            return self.reach(state, wanted, now_ns)
        except BudgetExhaustedError:
            if not generates(state):
                raise
            return []


def hold_after(reserved: Sequence[object]) -> Amount | None:
    """What is reserved for a task once these events are appended; ``None``: they reserve nothing."""
    last = reserved[-1] if reserved else None
    return last.hold if isinstance(last, BudgetReserved) else None


def generates(state: TaskState) -> bool:
    """Whether a task's engine says something; embeddings and ranks are no words."""
    return state.admitted.workload in ("completion", "chat")


def dearer(prices: PriceRecord) -> int:
    """A token of the prompt before it is known whether it was cached."""
    return max(prices.input_pico, prices.cached_pico)


def due(accounts: Sequence[Account], now_ns: int) -> list[object]:
    """Windows that have to begin anew before anything is decided by them."""
    return [rolled(account, now_ns) for account in accounts if account.due(now_ns)]


def tranche(
    accounts: Sequence[Account], wanted: Amount, prices: PriceRecord, rest: int, now_ns: int, coming: int = 0
) -> Amount:
    """What is reserved beyond what is wanted now: a share of what is left behind that, half of it for all holders together.

    :param rest: tokens that the task can still come to.
    :param coming: 1 for a task that is no holder yet.
    """
    if not rest:
        return Amount()
    share = {"tokens": _UNBOUNDED.tokens, "decode_us": _UNBOUNDED.decode_us, "cost_pico": _ENDLESS}
    for account in accounts:
        holders = 2 * max(1, account.holders + coming)
        for name, _ in _QUANTITIES:
            room = _room(account, name, now_ns)
            if room is not None:
                most = getattr(_TRANCHE, name) or _ENDLESS
                share[name] = min(share[name], most, max(0, room - getattr(wanted, name)) // holders)
    tokens, decode_us, most = min(share["tokens"], rest), share["decode_us"], share["cost_pico"]
    cost = tokens * prices.output_pico + decode_us * prices.decode_us_pico
    if cost > most:
        tokens, decode_us = tokens * most // cost, decode_us * most // cost
        cost = tokens * prices.output_pico + decode_us * prices.decode_us_pico
    return Amount(tokens=tokens, decode_us=decode_us, cost_pico=cost)


class Purse:
    """What one attempt may still append before more has to be reserved."""

    __slots__ = ("_decode_us", "_journal", "_out", "_task_id", "_tokens_out")

    def __init__(self, journal: Journal, task_id: str, out: Callable[[TaskState, BudgetExhaustedError], None]) -> None:
        self._journal = journal
        self._task_id = task_id
        self._out = out
        #: totals of the task up to which no question arises
        self._tokens_out = -1
        self._decode_us = -1

    def append(self, attempt_no: int, batch: EntryBatch) -> bool:
        """Append what is covered, after reserving more where that is needed; ends the task at the first entry that cannot
        be covered. As :meth:`~llama_orch.core.journal.journal.Journal.append_entries` otherwise.
        """
        journal = self._journal
        state = journal.head.tasks.live.get(self._task_id)
        if state is None:
            return False
        now = journal.now_ns()
        if (
            state.tokens_out + batch.token_count <= self._tokens_out
            and state.decode_us_at(now) <= self._decode_us
            and state.attempt == attempt_no
        ):
            return journal.append_entries(self._task_id, attempt_no, batch, now)
        if state.attempt != attempt_no or state.phase != TaskPhase.RUNNING or journal.status not in ("ok", "refusing"):
            return False
        return self._append_reserving(state, attempt_no, batch, now)

    def out_of_time(self, state: TaskState, now_ns: int) -> BudgetExhaustedError | None:
        """Why nothing that a silent attempt says from now on could be covered; ``None``: it could."""
        decode_us = state.decode_us_at(now_ns)
        hold = self._journal.head.budgets.holds.get(self._task_id)
        if decode_us <= self._decode_us or hold is None or state.phase != TaskPhase.RUNNING:
            return None
        accounts = self._journal.head.budgets.open_of(hold)
        more = beyond(_wanted(state, hold, 0, decode_us), hold.amount)
        return None if covers(room_of(accounts, now_ns), more) else exhausted(accounts, more, now_ns)

    def _append_reserving(self, state: TaskState, attempt_no: int, batch: EntryBatch, now_ns: int) -> bool:
        budgets = self._journal.head.budgets
        hold = budgets.holds[self._task_id]
        accounts = budgets.open_of(hold)
        decode_us = state.decode_us_at(now_ns)
        left = room_of(accounts, now_ns)
        wanted = _wanted(state, hold, batch.token_count, decode_us)
        more = beyond(wanted, hold.amount)
        entries, error = len(batch), None
        if not covers(left, more):
            entries, wanted = _coverable(state, hold, batch, decode_us, left)
            error = exhausted(accounts, more, now_ns)
        if entries:
            self._reserve(state, hold, accounts, wanted, now_ns, last=entries < len(batch))
            if not self._journal.append_entries(self._task_id, attempt_no, batch.slice(0, entries), now_ns):
                return False
        if error is not None:
            self._out(state, error)
        return True

    def _reserve(
        self, state: TaskState, hold: Hold, accounts: Sequence[Account], wanted: Amount, now_ns: int, *, last: bool
    ) -> None:
        """Cover what is wanted, and a tranche beyond it where something has to be reserved anyway."""
        more = beyond(wanted, hold.amount)
        if more != Amount():
            if not last:
                asked = state.admitted.max_tokens * state.admitted.n
                rest = max(0, asked - (wanted.tokens - _prompt(state, hold))) if asked else _ENDLESS
                more = plus(more, tranche(accounts, more, hold.prices, rest, now_ns))
            reserved = BudgetReserved(task_id=self._task_id, hold=plus(hold.amount, more))
            self._journal.append(
                [*due(accounts, now_ns), reserved], actor="scheduler", correlation=state.correlation, internal=True
            )
        amount, prices, prompt = hold.amount, hold.prices, _prompt(state, hold)
        self._tokens_out, self._decode_us = amount.tokens - prompt, amount.decode_us
        money = amount.cost_pico - prompt * dearer(prices) - self._decode_us * prices.decode_us_pico
        if prices.output_pico:
            # What was reserved for a prompt that turned out shorter does not pay for as many tokens of the answer.
            self._tokens_out = min(self._tokens_out, money // prices.output_pico)
        if self._tokens_out < wanted.tokens - prompt or money < 0:
            # Less time pays for more tokens: so much is covered, and no more is promised.
            self._tokens_out, self._decode_us = wanted.tokens - prompt, wanted.decode_us


def _prompt(state: TaskState, hold: Hold) -> int:
    return (state.started.prompt_tokens if state.started is not None else 0) or hold.prompt_tokens


def _wanted(state: TaskState, hold: Hold, tokens: int, decode_us: int) -> Amount:
    """What a task comes to with so many more tokens."""
    prompt, out, prices = _prompt(state, hold), state.tokens_out + tokens, hold.prices
    cost = prompt * dearer(prices) + out * prices.output_pico + decode_us * prices.decode_us_pico
    return Amount(tokens=prompt + out, decode_us=decode_us, cost_pico=cost)


def _coverable(state: TaskState, hold: Hold, batch: EntryBatch, decode_us: int, left: Amount) -> tuple[int, Amount]:
    """How many entries of a batch are covered at most, and what the task comes to with them."""
    found, wanted = 0, _wanted(state, hold, 0, decode_us)
    said = 0
    for n, entry in enumerate(batch.entries(), 1):
        said += entry.tokens
        trial = _wanted(state, hold, said, decode_us)
        if not covers(left, beyond(trial, hold.amount)):
            break
        found, wanted = n, trial
    return found, wanted
