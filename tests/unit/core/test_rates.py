"""Rates per key and the latency objective, in simulated time (ADM-7)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.errors import BackpressureError, ForbiddenError, RateLimitedError, SessionTurnsExceededError
from llama_orch.core.events.task import TaskRejected
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.limits import Bucket
from llama_orch.core.services.objective import Objective
from llama_orch.core.settings import ObjectiveSettings
from llama_orch.core.types import TaskRequest

from ...support.stage import Stage, on_stage, settings_for

S = 1_000_000_000
SESSION = "00000000-0000-4000-8000-000000000007"


def submit(stage: Stage, caller: Caller, prompt: str = "hello", **fields: Any) -> str:
    request = TaskRequest(model_ref="m", prompt=prompt, **fields)
    task_id: str = stage.run(stage.services.admission.submit(request, caller, correlation="c")).task_id
    return task_id


def finish(stage: Stage, task_id: str, tokens: int = 1) -> None:
    """The task ends; its prompt had three tokens."""
    attempt = stage.attempt(task_id)
    attempt.start()
    attempt.say(*["x"] * tokens)
    attempt.end()
    stage.settle()


# --- requests --------------------------------------------------------------------------------------------------------


def test_requests_beyond_the_rate_are_refused_until_the_bucket_has_one_again() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="key-1", identity="token:abcdef", requests_per_minute=6)
        for _ in range(6):
            submit(stage, caller)
        with pytest.raises(RateLimitedError) as caught:
            submit(stage, caller)
        told = caught.value
        assert (told.field, told.status, told.retriable) == ("requests_per_minute", 429, True)
        assert told.details["policy_label"] == "rate-limit"
        assert 9_900 < (told.retry_after_ms or 0) <= 10_000
        rejected = stage.payloads(TaskRejected)
        assert [(event.code, event.owner, event.retry_after_ms) for event in rejected] == [
            ("RATE_LIMITED", "key-1", told.retry_after_ms)
        ]
        stage.clock.advance_ms((told.retry_after_ms or 0) - 1)
        with pytest.raises(RateLimitedError):
            submit(stage, caller)
        stage.clock.advance_ms(1)
        submit(stage, caller)


def test_each_key_has_its_own_bucket_and_no_limit_is_none() -> None:
    with on_stage(slots={"p": 8}) as stage:
        submit(stage, Caller(owner="a", requests_per_minute=1))
        submit(stage, Caller(owner="b", requests_per_minute=1))
        with pytest.raises(RateLimitedError):
            submit(stage, Caller(owner="a", requests_per_minute=1))
        for _ in range(5):
            submit(stage, Caller(owner="c"))


def test_a_repetition_of_an_admitted_task_takes_nothing() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="a", requests_per_minute=1)
        first = submit(stage, caller, task_id="11111111-2222-3333-4444-555555555555")
        for _ in range(5):
            assert submit(stage, caller, task_id="11111111-2222-3333-4444-555555555555") == first


def test_a_limit_that_is_raised_or_lowered_counts_at_once_and_forgives_nothing() -> None:
    with on_stage(slots={"p": 8}) as stage:
        for _ in range(2):
            submit(stage, Caller(owner="a", requests_per_minute=2))
        submit(stage, Caller(owner="a", requests_per_minute=3))
        with pytest.raises(RateLimitedError):
            submit(stage, Caller(owner="a", requests_per_minute=3))
        with pytest.raises(RateLimitedError):
            submit(stage, Caller(owner="a", requests_per_minute=1))


def test_a_batch_key_takes_batch_tasks_alone() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="a", batch_only=True)
        submit(stage, caller, priority="batch")
        with pytest.raises(ForbiddenError) as caught:
            submit(stage, caller)
        assert caught.value.field == "priority"


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_the_longer_wait_of_two_limits_is_told() -> None:
    with on_stage(slots={"p": 8}) as stage:
        for owner, per_minute, longer in (("a", 1, "requests_per_minute"), ("b", 60, "tokens_per_minute")):
            caller = Caller(owner=owner, tokens_per_minute=600, requests_per_minute=per_minute)
            finish(stage, submit(stage, caller), tokens=797)  # 20 s of debt
            with pytest.raises(RateLimitedError) as caught:
                submit(stage, caller)
            assert caught.value.field == longer
            assert (caught.value.retry_after_ms or 0) > (50_000 if owner == "a" else 20_000)


def test_tokens_of_prompt_and_answer_are_taken_and_debt_is_waited_for() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="a", tokens_per_minute=600)
        task_id = submit(stage, caller)
        finish(stage, task_id, tokens=797)
        (meter,) = stage.services.limits.meters(caller)
        assert (meter.what, meter.limit, meter.remaining) == ("tokens", 600, 0)
        with pytest.raises(RateLimitedError) as caught:
            submit(stage, caller)
        assert caught.value.field == "tokens_per_minute"
        # 200 below nothing, and one is needed: at ten a second
        assert 20_000 < (caught.value.retry_after_ms or 0) <= 20_200
        stage.clock.advance_ms(caught.value.retry_after_ms or 0)
        with pytest.raises(RateLimitedError) as again:
            submit(stage, caller)  # now for its prompt
        assert (again.value.retry_after_ms or 0) < 5_000
        stage.clock.advance_ms(again.value.retry_after_ms or 0)
        submit(stage, caller)


def test_what_was_guessed_of_a_prompt_is_put_right_at_the_end() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="a", tokens_per_minute=10_000)
        task_id = submit(stage, caller, "x" * 2_000)
        (guessed,) = stage.services.limits.meters(caller)
        assert 10_000 - 600 < guessed.remaining < 10_000 - 400
        finish(stage, task_id, tokens=57)
        (right,) = stage.services.limits.meters(caller)
        assert 10_000 - 61 < right.remaining <= 10_000 - 59


def test_a_task_that_never_ran_gives_its_tokens_back() -> None:
    with on_stage(slots={"p": 1}) as stage:
        caller = Caller(owner="a", tokens_per_minute=10_000)
        submit(stage, Caller(owner="b"))
        task_id = submit(stage, caller, "x" * 2_000)
        stage.cancel(task_id, "a")
        (meter,) = stage.services.limits.meters(caller)
        assert meter.remaining == 10_000


def test_a_prompt_of_token_ids_is_taken_once() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="a", tokens_per_minute=10_000)
        stage.engines["p"].features = ("prompt_ids",)
        stage.pool_ready("p")
        stage.settle()
        request = TaskRequest(model_ref="m", prompt_ids=[7] * 1_000)
        task_id = stage.run(stage.services.admission.submit(request, caller, correlation="c")).task_id
        (counted,) = stage.services.limits.meters(caller)
        assert counted.remaining == 9_000
        attempt = stage.attempt(task_id)
        attempt.start(1_000)
        stage.cancel(task_id, "a")
        (still,) = stage.services.limits.meters(caller)
        assert still.remaining == 9_000


def test_a_task_that_is_refused_for_another_reason_takes_no_tokens() -> None:
    with on_stage(settings=settings_for({"p": 1}, capacity=1)) as stage:
        caller = Caller(owner="a", tokens_per_minute=10_000)
        for _ in range(2):
            submit(stage, Caller(owner="b"))
        with pytest.raises(BackpressureError):
            submit(stage, caller, "x" * 2_000)
        (meter,) = stage.services.limits.meters(caller)
        assert meter.remaining == 10_000


def test_a_turn_too_many_takes_no_tokens() -> None:
    with on_stage(slots={"p": 8}) as stage:
        caller = Caller(owner="a", tokens_per_minute=10_000)
        submit(stage, Caller(owner="a"), session_id=SESSION, session_turn_limit=1)
        with pytest.raises(SessionTurnsExceededError):
            submit(stage, caller, "x" * 2_000, session_id=SESSION)
        (meter,) = stage.services.limits.meters(caller)
        assert meter.remaining == 10_000


def test_a_prompt_larger_than_a_minute_runs_when_the_bucket_is_full() -> None:
    with on_stage(slots={"p": 8}, ctx=100_000) as stage:
        caller = Caller(owner="a", tokens_per_minute=100)
        submit(stage, caller, "x" * 8_000)
        with pytest.raises(RateLimitedError):
            submit(stage, caller, "x" * 8_000)


@given(
    rate=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.integers(0, 120 * S), st.integers(1, 500)), min_size=1, max_size=40),
)
def test_no_bucket_gives_more_than_its_rate(rate: int, steps: list[tuple[int, int]]) -> None:
    bucket, now, taken = Bucket(rate, float(rate), 0), 0, 0
    for wait_ns, amount in steps:
        now += wait_ns
        bucket.fill(rate, now)
        amount = min(amount, rate)
        if not bucket.wait_ms(amount):
            bucket.level -= amount
            taken += amount
            assert bucket.level > -1e-6 * rate
        else:
            # Waiting as long as it says is enough.
            later = Bucket(bucket.per_minute, bucket.level, bucket.at_ns)
            later.fill(rate, now + bucket.wait_ms(amount) * 1_000_000)
            assert not later.wait_ms(amount)
        assert taken <= rate + rate * now / (60 * S) + 1e-6 * taken + 1e-6


# --- the latency objective -------------------------------------------------------------------------------------------

AIM = ObjectiveSettings(first_token_p95_ms=1_000, window_ms=60_000, breach_ms=10_000, samples=10)


def note(objective: Objective, first_ms: int, count: int, at_s: float) -> float:
    """So many first tokens, ten a second; when the last came."""
    for _ in range(count):
        at_s += 0.1
        objective.note(first_ms, int(at_s * S))
    return at_s


def test_a_short_breach_sheds_nothing_a_persistent_one_does() -> None:
    objective = Objective(AIM)
    at = note(objective, 3_000, 90, 0)
    assert not objective.look(int(at * S)), "nine seconds"
    at = note(objective, 3_000, 30, at)
    assert objective.look(int(at * S))


def test_five_slow_ones_of_a_hundred_are_no_breach() -> None:
    objective = Objective(AIM)
    at = 0.0
    for _ in range(60):
        at = note(objective, 100, 24, at)
        at = note(objective, 9_000, 1, at)
        assert not objective.look(int(at * S))


def test_a_breach_that_ends_in_between_begins_anew() -> None:
    objective = Objective(AIM)
    at = note(objective, 3_000, 90, 0)
    at = note(objective, 10, 2_000, at)  # the slow ones leave the window
    at = note(objective, 3_000, 60, at)
    assert not objective.look(int(at * S))


def test_shedding_ends_with_a_margin_and_not_before() -> None:
    objective = Objective(AIM)
    at = note(objective, 3_000, 200, 0)
    assert objective.look(int(at * S))
    at = note(objective, 950, 700, at)
    assert objective.look(int(at * S)), "met, but not by the margin"
    at = note(objective, 700, 700, at)
    assert not objective.look(int(at * S))


def test_shedding_ends_when_nobody_waits_any_more() -> None:
    objective = Objective(AIM)
    at = note(objective, 3_000, 200, 0)
    assert objective.look(int(at * S))
    assert not objective.look(int((at + 61) * S))


def test_few_tasks_say_nothing() -> None:
    objective = Objective(AIM)
    for second in range(9):
        objective.note(9_000, second * 6 * S)
    assert not objective.look(54 * S)


def test_batch_tasks_are_refused_while_interactive_ones_wait_too_long() -> None:
    aims = ObjectiveSettings(first_token_p95_ms=500, window_ms=60_000, breach_ms=2_000, samples=3)
    with on_stage(slots={"p": 1}, settings=settings_for({"p": 1}, objective=aims)) as stage:
        caller = Caller()
        for _ in range(8):
            running, waiting = submit(stage, caller), submit(stage, caller)
            stage.clock.advance_ms(900)  # the second waits for the first
            finish(stage, running)
            finish(stage, waiting)
        with pytest.raises(BackpressureError) as caught:
            submit(stage, caller, priority="batch")
        assert caught.value.code == "ADMISSION_REJECT"
        assert caught.value.details["policy_label"] == "shed-batch"
        assert caught.value.retry_after_ms
        submit(stage, caller)  # interactive ones are taken
        stage.clock.advance_ms(120_000)
        submit(stage, caller, priority="batch")


def test_without_an_objective_nothing_is_shed() -> None:
    with on_stage(slots={"p": 1}) as stage:
        for _ in range(8):
            running = submit(stage, Caller())
            stage.clock.advance_ms(100_000)
            finish(stage, running)
        submit(stage, Caller(), priority="batch")


def test_an_engine_that_tells_no_times_is_measured_by_its_first_words() -> None:
    plain = settings_for({"p": 4})
    aim = msgspec.structs.replace(AIM, samples=1, breach_ms=0)
    admission = msgspec.structs.replace(plain.admission, objective=aim)
    with on_stage(settings=msgspec.structs.replace(plain, admission=admission)) as stage:
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        stage.clock.advance_ms(9_000)
        attempt.start()
        attempt.say("at last")
        attempt.end()
        stage.settle()
        with pytest.raises(BackpressureError):
            stage.submit(priority="batch")
