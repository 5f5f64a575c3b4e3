"""Budgets: reserved in tranches, charged what the journal holds, never beyond a cap (BUD-1, BUD-2)."""

from __future__ import annotations

import pytest

from llama_orch.core.amounts import decimal, pico
from llama_orch.core.engine_ports import AttemptEnd, EmbeddingResult
from llama_orch.core.entries import batch_of
from llama_orch.core.errors import BudgetExhaustedError
from llama_orch.core.events.budget import BudgetReserved
from llama_orch.core.events.task import TaskAdmitted, TaskRejected
from llama_orch.core.settings import BudgetCapSettings
from llama_orch.core.types import Amount, Entry

from ...support.stage import LOCAL, on_stage
from .budgeting import DAY_MS, SESSION, embeds, finish, held, priced, put, say, spent

# --- money ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "2.5", "0.000000000001", "999999999999", "10", "0.1"])
def test_decimals_come_back_as_they_were(text: str) -> None:
    assert decimal(pico(text)) == text


@pytest.mark.parametrize("text", ["", ".5", "-1", "1e3", "1.0000000000001", "1.2.3", "٣"])
def test_what_is_no_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="decimal"):
        pico(text)


def test_the_charge_is_exact_to_the_last_unit() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage)
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start(10, 4)
        say(stage, attempt, "a")
        stage.clock.advance_ms(7)
        say(stage, attempt, "b", "c")
        stage.cancel(task_id)
        # 6 tokens at 1 and 4 at 0.1 per million, 3 at 2, 7,000 µs at 0.000003 a second
        money = 6 * 1_000_000 + 4 * 100_000 + 3 * 2_000_000 + 7_000 * 3
        assert stage.ended(task_id).charge == Amount(tokens=13, decode_us=7_000, cost_pico=money)
        assert spent(stage) == stage.ended(task_id).charge
        assert held(stage) == Amount()
        for _ in range(2):
            told = stage.info(task_id).charge
            assert (told.tokens, told.decode_ms, told.cost) == (13, 7.0, decimal(money))
            stage.advance(5)
        assert stage.journal.task(task_id) is None, "the second look was at its frames"


# --- reservations --------------------------------------------------------------------------------------------------


def test_large_max_tokens_lock_nobody_out() -> None:
    with on_stage(slots={"p": 50}, settings=priced({"p": 50})) as stage:
        put(stage, tokens=10_000)
        tasks = [stage.submit(max_tokens=100_000).task_id for _ in range(50)]
        assert len(stage.engines["p"].attempts) == 50
        for task_id in tasks:
            finish(stage, task_id, words=100)
        assert {stage.ended(task_id).outcome for task_id in tasks} == {"completed"}
        assert spent(stage).tokens == 50 * 103


def test_a_task_takes_no_more_than_it_can_use() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=10_000)
        stage.submit(max_tokens=5)
        (reserved,) = stage.payloads(BudgetReserved)
        assert reserved.hold.tokens == reserved.prompt_tokens + 5


def test_at_the_cap_what_is_covered_is_appended_and_the_task_ends() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=10)
        task_id = stage.submit().task_id
        reader = stage.reader(task_id)
        attempt = stage.attempt(task_id)
        attempt.start(3)
        say(stage, attempt, *"abcdefghijk")
        end = stage.ended(task_id)
        assert (end.code, end.outcome, end.tokens_out, end.retriable) == ("BUDGET_EXHAUSTED", "failed", 7, False)
        assert stage.said(task_id) == list("abcdefg")
        assert attempt.cancelled
        assert reader.ended == end
        attempt.free()
        stage.settle()
        assert not stage.journal.head.leases.by_id
        assert spent(stage).tokens == 10


def test_an_entry_of_several_tokens_is_appended_whole_or_not_at_all() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=10)
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start(3)
        attempt.say_batch(batch_of([Entry(text="ab", tokens=5), Entry(text="c", tokens=0), Entry(text="de", tokens=3)]))
        stage.settle()
        assert stage.said(task_id) == ["ab", "c"]
        assert spent(stage).tokens == 8


def test_the_smaller_of_key_and_session_counts() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=1_000)
        stage.run(stage.services.sessions.create(LOCAL, session_id=SESSION, budgets=[BudgetCapSettings(tokens=8)]))
        task_id = stage.submit(session_id=SESSION).task_id
        attempt = stage.attempt(task_id)
        attempt.start(3)
        say(stage, attempt, *"abcdefgh")
        assert stage.ended(task_id).tokens_out == 5
        assert spent(stage) == spent(stage, f"session/{SESSION}/none")
        with pytest.raises(BudgetExhaustedError) as caught:
            stage.submit(session_id=SESSION)
        assert caught.value.details["scope"] == "session"
        stage.submit()


def test_who_has_spent_all_is_refused_before_the_queue() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, window="day", tokens=0)
        with pytest.raises(BudgetExhaustedError) as caught:
            stage.submit()
        assert caught.value.status == 402
        assert caught.value.details["window"] == "day"
        assert 0 < caught.value.details["resets_after_ms"] <= DAY_MS
        assert not stage.payloads(TaskAdmitted)
        assert [r.code for r in stage.payloads(TaskRejected)] == ["BUDGET_EXHAUSTED"]


def test_a_prompt_that_cannot_be_held_is_refused_and_one_that_may_fit_is_counted() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=20)
        stage.submit(" ".join(["abcdefgh"] * 10))  # more bytes than tokens are left, but only ten tokens
        with pytest.raises(BudgetExhaustedError):
            stage.submit(" ".join(["abcdefgh"] * 21))
        assert [a.prompt_tokens for a in stage.payloads(TaskAdmitted)] == [10]


def test_a_task_whose_money_went_while_it_waited_ends_at_its_placement() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=60)
        first, second = stage.submit().task_id, stage.submit().task_id
        attempt = stage.attempt(first)
        attempt.start(3)
        say(stage, attempt, *"x" * 57)
        attempt.end()
        stage.settle()
        assert stage.ended(first).outcome == "completed"
        end = stage.ended(second)
        assert (end.code, end.charge, end.attempts) == ("BUDGET_EXHAUSTED", None, 0)


def test_a_longer_prompt_than_was_reserved_is_reserved_when_the_engine_counted_it() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=1_000)
        task_id = stage.submit("hi").task_id
        stage.attempt(task_id).start(700)
        assert held(stage).tokens >= 701
        finish(stage, task_id)
        assert spent(stage).tokens == 3 + 3  # the engine's count at its end is the last word


def test_a_prompt_beyond_the_budget_ends_the_task_and_is_charged_nothing() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=500)
        task_id = stage.submit("hi").task_id
        stage.attempt(task_id).start(700)
        stage.settle()
        end = stage.ended(task_id)
        assert (end.code, end.charge) == ("BUDGET_EXHAUSTED", Amount())
        assert spent(stage) == held(stage) == Amount()


def test_an_embedding_is_charged_for_all_its_inputs() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=100_000)
        embeds(stage)
        task_id = stage.submit(workload="embedding", inputs=["a b c"] * 40).task_id
        assert held(stage).tokens >= 40 * 64
        attempt = stage.attempt(task_id)
        with attempt._on_loop() as sink:
            sink.ended(
                AttemptEnd(finish_reason="stop", prompt_tokens=9_000, result=EmbeddingResult(vectors=[b"\0" * 4]))
            )
        stage.settle()
        assert stage.ended(task_id).charge == Amount(tokens=9_000, cost_pico=9_000 * 1_000_000)
        assert held(stage) == Amount()


def test_a_count_that_comes_too_late_is_charged_as_far_as_it_can_be_paid() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=3_000)
        embeds(stage)
        task_id = stage.submit(workload="embedding", inputs=["a b c"] * 10).task_id
        reserved = held(stage).tokens
        attempt = stage.attempt(task_id)
        with attempt._on_loop() as sink:
            sink.ended(
                AttemptEnd(finish_reason="stop", prompt_tokens=9_000, result=EmbeddingResult(vectors=[b"\0" * 4]))
            )
        stage.settle()
        assert spent(stage).tokens == reserved


def test_a_task_that_is_counted_nowhere_has_no_purse_and_no_charge() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, subject="somebody", tokens=1)
        task_id = stage.submit().task_id
        assert stage.services.dispatcher.attempts[task_id].purse is None
        finish(stage, task_id)
        assert stage.ended(task_id).charge is None
        assert not stage.payloads(BudgetReserved)


# --- time ----------------------------------------------------------------------------------------------------------


def test_an_entry_beyond_the_time_is_not_appended() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, decode_ms=100)
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        say(stage, attempt, "a")
        stage.clock.advance_ms(99)
        say(stage, attempt, "b")
        stage.clock.advance_ms(2)
        say(stage, attempt, "c")
        assert stage.said(task_id) == ["a", "b"]
        assert stage.ended(task_id).code == "BUDGET_EXHAUSTED"
        assert spent(stage).decode_us == 99_000


def test_a_silent_engine_ends_when_its_time_is_out_and_not_before() -> None:
    with on_stage(slots={"p": 2}, settings=priced({"p": 2})) as stage:
        put(stage, decode_ms=1_000)
        task_id, other = stage.submit().task_id, stage.submit(owner="rich").task_id
        for one in (task_id, other):
            stage.attempt(one).start()
            say(stage, stage.attempt(one), "a")
        stage.advance(0.9)
        assert stage.state(task_id) == "running"
        stage.advance(0.3)
        assert stage.ended(task_id).code == "BUDGET_EXHAUSTED"
        assert stage.info(other, "rich").state == "running"
        assert spent(stage) == stage.ended(task_id).charge == Amount(tokens=4, cost_pico=5_000_000)


def test_what_waits_between_two_attempts_is_no_decoding_and_nothing_is_billed_twice() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=1_000)
        task_id = stage.submit().task_id
        first = stage.attempt(task_id)
        first.start()
        say(stage, first, "a")
        stage.clock.advance_ms(5)
        say(stage, first, "b")
        first.fail()
        first.free()
        stage.advance(10)
        again = stage.attempt(task_id)
        assert again is not first
        again.start()
        say(stage, again, "a", "b", "c")
        stage.clock.advance_ms(3)
        say(stage, again, "d")
        again.end()
        stage.settle()
        assert stage.ended(task_id).charge == Amount(
            tokens=3 + 4, decode_us=8_000, cost_pico=3_000_000 + 8_000_000 + 8_000 * 3
        )


# --- crashes -------------------------------------------------------------------------------------------------------


def test_a_killed_server_knows_what_was_reserved_and_charges_it_once() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=100)
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        say(stage, attempt, *"ab")
        before = held(stage)
        stage.restart()
        assert held(stage) == before
        again = stage.attempt(task_id)
        again.start()
        say(stage, again, *"abc")
        again.end()
        stage.settle()
        assert spent(stage).tokens == 6
        assert held(stage) == Amount()


def test_a_task_that_is_not_taken_up_again_is_charged_what_it_said() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=100)
        task_id = stage.submit(recovery="none").task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        say(stage, attempt, *"ab")
        stage.restart()
        assert stage.ended(task_id).code == "INTERRUPTED"
        assert spent(stage).tokens == 5
        assert held(stage) == Amount()
