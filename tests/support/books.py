"""An auditor's view of budgets: adds up an exported journal, knowing nothing of the code that keeps the books.

It takes the events as `llama-orch journal export --texts` writes them. From each task's entries (their tokens, and the time
between them), its engine's count of the prompt and the prices journaled with its reservation follow what it has to be
charged; from these and from the windows follows what each account spent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

NAMES = ("tokens", "decode_us", "cost_pico")
Amount = tuple[int, int, int]
ZERO: Amount = (0, 0, 0)


def _amount(data: dict[str, Any] | None) -> Amount:
    found = data or {}
    return (found.get("tokens", 0), found.get("decode_us", 0), found.get("cost_pico", 0))


def _plus(one: Amount, other: Amount, sign: int = 1) -> Amount:
    return (one[0] + sign * other[0], one[1] + sign * other[1], one[2] + sign * other[2])


@dataclass
class Account:
    """What the events say of one."""

    caps: Amount
    opened_seq: int
    spent: Amount = ZERO
    held: Amount = ZERO


@dataclass
class Bill:
    """What a task's events and entries say of it."""

    task_no: int
    accounts: list[tuple[str, int]] = field(default_factory=list)
    held: Amount = ZERO
    counted: bool = False
    prompt_reserved: int = 0
    #: by the engine when it took the task; 0 = it did not say
    prompt_told: int = 0
    prices: dict[str, int] = field(default_factory=dict)
    #: ordinals of entries that are the first of their attempt
    firsts: set[int] = field(default_factory=set)
    started: bool = False
    ended: dict[str, Any] | None = None
    #: of each entry
    tokens: list[int] = field(default_factory=list)
    dts_us: list[int] = field(default_factory=list)

    def due(self) -> Amount:
        """What it has to be charged."""
        assert self.ended is not None
        if not self.started:
            return ZERO
        prompt = self.ended.get("prompt_tokens", 0) or self.prompt_reserved
        whole = self._come_to(prompt, min(self.ended.get("cached_tokens", 0), prompt))
        return (min(whole[0], self.held[0]), min(whole[1], self.held[1]), min(whole[2], self.held[2]))

    def said(self) -> Amount:
        """What had to be reserved for all that was said, by what was known of the prompt then."""
        return self._come_to(self.prompt_told or self.prompt_reserved, 0)

    def _come_to(self, prompt: int, cached: int) -> Amount:
        out = sum(self.tokens)
        decode_us = sum(us for n, us in enumerate(self.dts_us, 1) if n not in self.firsts)
        cost = (
            (prompt - cached) * self.prices.get("input_pico", 0)
            + cached * self.prices.get("cached_pico", 0)
            + out * self.prices.get("output_pico", 0)
            + decode_us * self.prices.get("decode_us_pico", 0)
        )
        return (prompt + out, decode_us, cost)


class Books:
    """Adds up events; every method asserts what must hold at that moment."""

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        self.accounts: dict[str, Account] = {}
        self.bills: dict[str, Bill] = {}
        #: tasks by number
        self._of: dict[int, Bill] = {}
        #: the most that was spent and held in any window, by account
        self.most_spent: dict[str, Amount] = {}
        for event in events:
            self._take(event)
        self._check_charges()

    def _take(self, event: dict[str, Any]) -> None:
        name, payload = event.get("name", ""), event.get("payload", {})
        if name == "task.entries":
            self._entries(event)
        elif name == "transcript":
            bill = self._of[event["task_no"]]
            bill.tokens, bill.dts_us = event["each"]["tokens"], event["each"]["dts_us"]
        elif name == "task.admitted":
            bill = Bill(event["seq"])
            self.bills[payload["task_id"]] = self._of[event["seq"]] = bill
        elif name == "task.started":
            bill = self.bills[payload["task_id"]]
            if not bill.started:
                bill.prompt_told = payload.get("prompt_tokens", 0)
            bill.started = True
            bill.firsts.add(payload.get("resumed_at", 0) + 1)
        elif name == "task.ended":
            self._ended(payload)
        elif name == "budget.reserved":
            self._reserved(payload)
        elif name == "budget.set":
            caps = (payload.get("tokens", -1), payload.get("decode_us", -1), payload.get("cost_pico", -1))
            account = self.accounts.get(payload["account"])
            if account is None:
                self.accounts[payload["account"]] = Account(caps, event["seq"])
            else:
                account.caps = caps
        elif name == "budget.removed":
            del self.accounts[payload["account"]]
        elif name == "budget.rolled":
            account = self.accounts[payload["account"]]
            assert _amount(payload.get("spent")) == account.spent, "a window ended with another sum than its charges"
            account.spent = ZERO

    def _entries(self, event: dict[str, Any]) -> None:
        bill = self._of.get(event.get("task_no", -1))
        if bill is None or "each" not in event or event["first_ordinal"] != len(bill.tokens) + 1:
            return  # some of its task's were dropped, since there is a transcript: that holds all of them
        bill.tokens = bill.tokens + event["each"]["tokens"]
        bill.dts_us = bill.dts_us + event["each"]["dts_us"]

    def _open(self, bill: Bill) -> list[tuple[str, Account]]:
        return [
            (name, account)
            for name, seq in bill.accounts
            if (account := self.accounts.get(name)) is not None and account.opened_seq == seq
        ]

    def _reserved(self, payload: dict[str, Any]) -> None:
        bill = self.bills[payload["task_id"]]
        assert bill.ended is None
        if not bill.counted:
            bill.counted = True
            bill.accounts = [(name, self.accounts[name].opened_seq) for name in payload["accounts"]]
            bill.prompt_reserved = payload.get("prompt_tokens", 0)
            bill.prices = payload.get("prices", {})
        hold = _amount(payload["hold"])
        more = _plus(hold, bill.held, -1)
        assert min(more) >= 0, "a reservation shrank"
        bill.held = hold
        for name, account in self._open(bill):
            account.held = _plus(account.held, more)
            for n, quantity in enumerate(NAMES):
                inside = account.caps[n] < 0 or account.spent[n] + account.held[n] <= account.caps[n]
                assert inside or not more[n], f"{quantity} of {name} were reserved beyond the cap"

    def _ended(self, payload: dict[str, Any]) -> None:
        bill = self.bills[payload["task_id"]]
        bill.ended = payload
        if not bill.counted:
            assert "charge" not in payload, "what was never reserved was charged"
            return
        assert "charge" in payload, "a task with a reservation ended without a charge"
        charge = _amount(payload["charge"])
        assert all(0 <= one <= most for one, most in zip(charge, bill.held, strict=True))
        for name, account in self._open(bill):
            account.held = _plus(account.held, bill.held, -1)
            account.spent = _plus(account.spent, charge)
            before = self.most_spent.get(name, ZERO)
            self.most_spent[name] = tuple(map(max, before, account.spent))  # type: ignore[assignment]

    def _check_charges(self) -> None:
        """What was charged is what the entries come to, to the last unit."""
        for task_id, bill in self.bills.items():
            if bill.ended is None:
                continue
            assert bill.ended["tokens_out"] == sum(bill.tokens), task_id
            if bill.counted:
                said = bill.said()
                assert not bill.started or all(one <= most for one, most in zip(said, bill.held, strict=True)), (
                    f"{task_id} has {said} in the journal, and {bill.held} was reserved for it"
                )
                charged = _amount(bill.ended["charge"])
                assert charged == bill.due(), f"{task_id} was charged {charged}, its entries come to {bill.due()}"

    @property
    def held(self) -> Amount:
        """What is reserved in all accounts together."""
        whole = ZERO
        for account in self.accounts.values():
            whole = _plus(whole, account.held)
        return whole
