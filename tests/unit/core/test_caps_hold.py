"""Ways around a cap that are none, and what is left behind nowhere (BUD-1)."""

from __future__ import annotations

import msgspec
import pytest

from llama_orch.core.engine_ports import AttemptEnd, EmbeddingResult
from llama_orch.core.entries import batch_of
from llama_orch.core.errors import BudgetExhaustedError, ConflictError
from llama_orch.core.services.caller import Caller
from llama_orch.core.settings import BudgetCapSettings, PriceSettings
from llama_orch.core.types import Entry

from ...support.stage import LOCAL, on_stage
from .budgeting import SESSION, embeds, finish, held, priced, put, say, spent

SHOUTED = "ABCDEF00-0000-4000-8000-00000000000A"


def test_a_result_that_cannot_be_paid_is_not_given() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, tokens=500)
        embeds(stage)
        task_id = stage.submit(workload="embedding", inputs=["a b c"] * 400).task_id
        with stage.attempt(task_id)._on_loop() as sink:
            sink.ended(
                AttemptEnd(finish_reason="stop", prompt_tokens=1_200, result=EmbeddingResult(vectors=[b"\0" * 4]))
            )
        stage.settle()
        end = stage.ended(task_id)
        assert (end.outcome, end.code, end.result_id) == ("failed", "BUDGET_EXHAUSTED", "")
        assert spent(stage).tokens == 500
        assert held(stage).tokens == 0
        assert not stage.journal.head.leases.by_id
        with pytest.raises(BudgetExhaustedError):
            stage.submit(workload="embedding", inputs=["a"])


def test_a_prompt_that_nobody_can_count_yet_waits_for_its_engine_to_count_it() -> None:
    with on_stage(ready=False, settings=priced({"p": 1})) as stage:
        put(stage, tokens=50)
        fits, does_not = (stage.submit(f"{n} " * 100).task_id for n in range(2))
        with pytest.raises(BudgetExhaustedError):
            stage.submit(prompt_ids=[1] * 50)
        stage.pool_ready("p")
        stage.settle()
        attempt = stage.attempt(fits)
        attempt.start(20)
        say(stage, attempt, "a")
        attempt.end()
        stage.settle()
        stage.attempt(does_not).start(60)
        stage.settle()
        assert stage.ended(fits).outcome == "completed"
        assert stage.ended(does_not).code == "BUDGET_EXHAUSTED"
        assert held(stage).tokens == 0


def test_what_began_before_there_was_a_budget_is_counted_on_none_also_after_a_crash() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        task_id = stage.submit().task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        say(stage, attempt, *"abcdefghi")
        stage.crash()
        stage.start()
        put(stage, tokens=10)
        stage.attempt(task_id).fail()
        stage.attempt(task_id).free()
        stage.advance(60)
        again = stage.attempt(task_id)
        again.start()
        say(stage, again, *"abcdefghijk")
        again.end()
        stage.settle()
        assert (stage.ended(task_id).outcome, stage.ended(task_id).charge) == ("completed", None)
        assert spent(stage).tokens == held(stage).tokens == 0


def test_long_prompts_at_once_do_not_keep_each_other_out() -> None:
    with on_stage(slots={"p": 16}, settings=priced({"p": 16})) as stage:
        put(stage, tokens=10_000)
        # A prompt of a thousand tokens is two thousand bytes.
        for _ in range(7):
            stage.submit("w " * 1_000)
        for attempt in list(stage.engines["p"].attempts):
            attempt.start(1_001)
            say(stage, attempt, "a", "b")
            attempt.end()
        stage.settle()
        assert held(stage).tokens == 0


def test_the_budget_of_another_ones_session_binds_nobody_else() -> None:
    with on_stage(slots={"p": 2}, settings=priced({"p": 2})) as stage:
        create, ann, bob = stage.services.sessions.create, Caller(owner="ann"), Caller(owner="bob")
        caps = [BudgetCapSettings(tokens=0)]
        stage.run(create(bob, session_id=SESSION, budgets=caps))
        with pytest.raises(ConflictError, match="not yours"):
            stage.submit(owner="ann", session_id=SESSION)
        stage.run(stage.services.sessions.delete(SESSION, bob))
        stage.run(create(ann, session_id=SESSION))
        _, _, waits = (stage.submit(owner="ann", session_id=SESSION).task_id for _ in range(3))
        stage.run(stage.services.sessions.delete(SESSION, ann))
        stage.run(create(bob, session_id=SESSION, budgets=caps))
        attempt = stage.engines["p"].attempts[0]
        attempt.start()
        attempt.end()
        stage.settle()
        finish(stage, waits)
        assert (stage.ended(waits).outcome, stage.ended(waits).charge) == ("completed", None)


def test_a_session_is_the_same_in_capitals() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        caps = [BudgetCapSettings(tokens=6)]
        stage.run(stage.services.sessions.create(LOCAL, session_id=SHOUTED, budgets=caps))
        finish(stage, stage.submit(session_id=SHOUTED).task_id)
        assert list(stage.journal.head.sessions.by_id) == [SHOUTED.lower()]
        with pytest.raises(BudgetExhaustedError):
            stage.submit(session_id=SHOUTED)
        assert stage.services.sessions.get(SHOUTED, LOCAL).state.turns == 1
        stage.run(stage.services.sessions.delete(SHOUTED, LOCAL))
        assert not stage.journal.head.sessions.by_id


def test_time_that_costs_is_covered_also_where_words_are_free() -> None:
    settings = msgspec.structs.replace(priced({"p": 1}), prices={"*": PriceSettings(input="10", second="0.01")})
    with on_stage(settings=settings) as stage:
        # 0.0201: a second and a bit, each costs a hundredth
        put(stage, cost="0.0201")
        task_id = stage.submit("hi").task_id
        attempt = stage.attempt(task_id)
        attempt.start(1_500)
        for _ in range(60):
            say(stage, attempt, "a")
            state = stage.journal.head.tasks.live.get(task_id)
            if state is None:
                break
            hold = stage.journal.head.budgets.holds[task_id]
            came_to = 1_500 * hold.prices.input_pico + state.decode_us * hold.prices.decode_us_pico
            assert came_to <= hold.amount.cost_pico
            stage.clock.advance_ms(50)
        end = stage.ended(task_id)
        assert end.charge is not None
        assert end.charge.cost_pico == 1_500 * 10_000_000 + end.charge.decode_us * 10_000


def test_pieces_without_tokens_are_covered_by_time() -> None:
    with on_stage(settings=priced({"p": 1})) as stage:
        put(stage, decode_ms=1_000)
        task_id = stage.submit(max_tokens=1).task_id
        attempt = stage.attempt(task_id)
        attempt.start()
        for _ in range(40):
            attempt.say_batch(batch_of([Entry(text="a", tokens=0)]))
            stage.clock.advance_ms(50)
        stage.settle()
        assert stage.ended(task_id).code == "BUDGET_EXHAUSTED"
        assert spent(stage).decode_us <= 1_000_000
