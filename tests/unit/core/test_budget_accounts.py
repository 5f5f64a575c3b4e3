"""Accounts of budgets: their windows, caps that change, what the journal refuses (BUD-1)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from llama_orch.core.errors import BudgetExhaustedError, ConflictError, InvalidParamsError, NotFoundError
from llama_orch.core.events.budget import BudgetReserved, BudgetRolled, BudgetSet
from llama_orch.core.events.task import TaskEnded
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.keys import KeySpec
from llama_orch.core.services.windows import bounds
from llama_orch.core.settings import BudgetCapSettings
from llama_orch.core.types import Amount

from ...support.clock import START_NS
from ...support.stage import LOCAL, Stage, on_stage
from .budgeting import DAY_MS, SESSION, finish, held, priced, put, say, spent

# --- windows -------------------------------------------------------------------------------------------------------


def ns(*moment: int) -> int:
    return int(dt.datetime(*moment, tzinfo=dt.UTC).timestamp()) * 1_000_000_000  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    "window, zone, now, start, end",
    [
        ("none", "UTC", ns(2026, 3, 1), 0, 0),
        ("day", "UTC", ns(2026, 3, 1, 23, 59), ns(2026, 3, 1), ns(2026, 3, 2)),
        ("day", "UTC", ns(2026, 3, 1), ns(2026, 3, 1), ns(2026, 3, 2)),
        ("month", "UTC", ns(2026, 12, 31), ns(2026, 12, 1), ns(2027, 1, 1)),
        ("month", "UTC", ns(2028, 2, 29), ns(2028, 2, 1), ns(2028, 3, 1)),
        # summer time begins: a day of 23 hours, and ends: one of 25
        ("day", "Europe/Berlin", ns(2026, 3, 29, 12), ns(2026, 3, 28, 23), ns(2026, 3, 29, 22)),
        ("day", "Europe/Berlin", ns(2026, 10, 25, 12), ns(2026, 10, 24, 22), ns(2026, 10, 25, 23)),
        ("day", "Pacific/Auckland", ns(2026, 7, 1, 13), ns(2026, 7, 1, 12), ns(2026, 7, 2, 12)),
    ],
)
def test_windows_follow_the_calendar_of_their_zone(window: str, zone: str, now: int, start: int, end: int) -> None:
    assert bounds(window, zone, now) == (start, end)


def test_an_unknown_zone_is_refused_by_name() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        with pytest.raises(InvalidParamsError) as caught:
            put(stage, window="day", timezone="Europe/Nowhere", tokens=1)
        assert caught.value.field == "timezone"


def test_a_window_begins_anew_at_its_time_also_when_no_server_ran() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, window="day", tokens=50)
        finish(stage, stage.submit().task_id)
        assert spent(stage, "key/local/day").tokens == 6
        stage.clock.advance_ms(DAY_MS)
        stage.advance(0.1)
        assert spent(stage, "key/local/day") == Amount()
        stage.crash()
        stage.clock.advance_ms(3 * DAY_MS)
        stage.start()
        stage.advance(0.1)
        first, second = stage.payloads(BudgetRolled)
        assert first.spent.tokens == 6
        assert second.window_end_ns - first.window_end_ns == 3 * DAY_MS * 1_000_000


def test_a_decision_reads_no_window_that_is_over() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, window="day", tokens=20)
        finish(stage, stage.submit().task_id, words=7)
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start(3)
        say(stage, attempt, *"abcdefg")
        assert held(stage, "key/local/day").tokens == 10
        stage.clock.advance_ms(DAY_MS)
        # Nobody looked yet: the entry that needs more than is left of yesterday begins the day.
        say(stage, attempt, *"hi")
        assert stage.state(task_id) == "running"
        (rolled,) = stage.payloads(BudgetRolled)
        assert rolled.spent.tokens == 10
        attempt.end()
        stage.settle()
        # What was reserved yesterday is charged to the day on which the task ends.
        assert spent(stage, "key/local/day").tokens == 12


def test_other_windows_of_a_subject_count_beside_each_other() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, window="day", tokens=100)
        put(stage, window="month", cost="0.000009")
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start(3)
        say(stage, attempt, *"abcdefgh")
        # 3 tokens of the prompt and 3 of the answer come to 9 millionths
        assert stage.ended(task_id).tokens_out == 3
        assert spent(stage, "key/local/day") == spent(stage, "key/local/month")


# --- setting -------------------------------------------------------------------------------------------------------


def test_under_a_lowered_cap_nothing_new_is_reserved() -> None:
    with on_stage(slots={"p": 2}, settings=priced({"p": 2})) as stage:
        put(stage, tokens=1_000)
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start(3)
        before = held(stage).tokens
        put(stage, tokens=5)
        with pytest.raises(BudgetExhaustedError):
            stage.submit()
        say(stage, attempt, *["x"] * 1_000)
        assert stage.ended(task_id).code == "BUDGET_EXHAUSTED"
        assert spent(stage).tokens == before
        view = stage.services.budgets.views(LOCAL)[0]
        assert view.remaining.tokens == 0


def test_a_raised_cap_counts_at_once_and_what_was_spent_stays() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=6)
        finish(stage, stage.submit().task_id)
        put(stage, tokens=12)
        assert stage.services.budgets.views(LOCAL)[0].remaining.tokens == 6
        finish(stage, stage.submit().task_id)
        assert spent(stage).tokens == 12


def test_a_removed_account_is_not_charged_and_a_new_one_of_its_name_begins_at_nothing() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=100)
        task_id = stage.submit().task_id
        stage.run(stage.services.budgets.remove("key", "local", None, LOCAL))
        put(stage, tokens=50)
        finish(stage, task_id)
        assert stage.ended(task_id).charge == Amount(tokens=6, cost_pico=9_000_000)
        assert spent(stage) == held(stage) == Amount()


def test_keys_follow_the_configured_default_until_they_have_their_own() -> None:
    default = BudgetCapSettings(tokens=6)
    with on_stage(settings=priced({"p": 1}, keys=[default])) as stage:
        finish(stage, stage.submit(owner="ann").task_id)
        with pytest.raises(BudgetExhaustedError):
            stage.submit(owner="ann")
        put(stage, subject="bob", tokens=1_000)
        finish(stage, stage.submit(owner="bob").task_id)
        assert [e.by_default for e in stage.payloads(BudgetSet)] == [True, False]
        stage.crash()
        stage.settings = priced({"p": 1}, keys=[BudgetCapSettings(tokens=60)])
        stage.start()
        finish(stage, stage.submit(owner="ann").task_id)
        assert spent(stage, "key/ann/none").tokens == 12
        stage.run(stage.services.budgets.remove("key", "bob", None, LOCAL))
        finish(stage, stage.submit(owner="bob").task_id)
        assert stage.journal.head.budgets.accounts["key/bob/none"].declared.tokens == 60


def test_a_default_that_changes_over_night_does_not_carry_yesterday_along() -> None:
    with on_stage(settings=priced({"p": 1}, keys=[BudgetCapSettings(window="day", tokens=6)])) as stage:
        finish(stage, stage.submit().task_id)
        stage.crash()
        stage.settings = priced({"p": 1}, keys=[BudgetCapSettings(window="day", tokens=7)])
        stage.clock.advance_ms(DAY_MS)
        stage.start()
        finish(stage, stage.submit().task_id)
        assert spent(stage, "key/local/day").tokens == 6
        stage.crash()
        stage.settings = priced({"p": 1})
        stage.clock.advance_ms(DAY_MS)
        stage.start()
        finish(stage, stage.submit().task_id)
        assert not stage.journal.head.budgets.accounts


def test_budgets_are_for_those_that_exist() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        for scope, subject in (("session", SESSION), ("key", "key-0123456789ab")):
            with pytest.raises(NotFoundError):
                put(stage, subject=subject, scope=scope, tokens=1)
        with pytest.raises(NotFoundError):
            stage.run(stage.services.budgets.remove("key", "local", "day", LOCAL))


def test_a_keys_name_is_no_subject_since_its_budget_would_bind_nobody() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        keys = stage.services.keys
        ids = [stage.run(keys.create(KeySpec(name=name), LOCAL, ""))[0].key_id for name in ("agent", "local")]
        with pytest.raises(InvalidParamsError) as refused:
            put(stage, subject="agent", tokens=1)
        assert refused.value.what_to_do == f"Name {ids[0]} instead."
        for subject in (ids[0], "https://id.example#agent", "local"):
            put(stage, subject=subject, tokens=1)


def test_who_may_see_which() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, subject="ann", tokens=1)
        put(stage, subject="bob", tokens=2)
        stage.run(
            stage.services.sessions.create(
                Caller(owner="ann"), session_id=SESSION, budgets=[BudgetCapSettings(tokens=8)]
            )
        )
        ann = Caller(owner="ann", scopes=("inference",))
        views = stage.services.budgets.views
        assert [(v.scope, v.subject) for v in views(ann)] == [("key", "ann"), ("session", SESSION)]
        assert not views(ann, "key", "bob")
        assert len(views(LOCAL)) == 3


def test_what_is_left_is_told_and_only_where_something_bounds_it() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        budgets = stage.services.budgets
        assert budgets.remaining("local") is None
        put(stage)
        assert budgets.remaining("local") is None
        put(stage, window="day", tokens=100)
        put(stage, window="month", tokens=60, cost="1")
        left = budgets.remaining("local")
        assert left is not None
        assert (left.tokens, left.decode_us, left.cost_pico) == (60, None, 10**12)


# --- what the journal refuses --------------------------------------------------------------------------------------


def append(stage: Stage, *events: object) -> None:
    with stage.loop.running():
        stage.journal.append(events, actor="test", correlation="")


def test_the_journal_refuses_what_would_break_the_books() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=100)
        task_id = stage.submit().task_id
        hold = stage.journal.head.budgets.holds[task_id].amount
        more = msgspec.structs.replace(hold, tokens=101)
        less = msgspec.structs.replace(hold, tokens=1)
        end: dict[str, Any] = {"task_id": task_id, "outcome": "completed", "finish_reason": "stop", "entries": 0}
        for wrong in (
            BudgetReserved(task_id=task_id, hold=more),
            BudgetReserved(task_id=task_id, hold=less),
            BudgetReserved(task_id="nobody", hold=hold, accounts=["key/local/none"]),
            TaskEnded(**end, tokens_out=0),
            TaskEnded(**end, tokens_out=0, charge=more),
            TaskEnded(**end, tokens_out=0, charge=Amount(tokens=-1)),
            BudgetRolled(account="key/local/none", window_start_ns=1, window_end_ns=2, spent=Amount(tokens=9)),
            BudgetRolled(account="key/other/none", window_start_ns=1, window_end_ns=2, spent=Amount()),
        ):
            before = stage.journal.head.digest()
            with pytest.raises(ConflictError):
                append(stage, wrong)
            assert stage.journal.head.digest() == before


def test_a_batch_is_counted_as_a_whole() -> None:
    with on_stage(slots={"p": 2}, settings=priced({"p": 2})) as stage:
        put(stage, tokens=100)
        one, two = stage.submit().task_id, stage.submit().task_id
        holds = stage.journal.head.budgets.holds
        left = 100 - held(stage).tokens
        more = [
            BudgetReserved(
                task_id=t, hold=msgspec.structs.replace(holds[t].amount, tokens=holds[t].amount.tokens + left)
            )
            for t in (one, two)
        ]
        with pytest.raises(ConflictError):
            append(stage, *more)
        append(stage, more[0])
        assert held(stage).tokens == 100


def test_start_of_the_clock_is_no_midnight() -> None:
    """What the tests of windows rest on."""
    start, end = bounds("day", "UTC", START_NS)
    assert start < START_NS < end
