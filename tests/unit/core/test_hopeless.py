"""Tasks that no pool could ever take: refused, or ended with an error, so that nobody waits behind them for ever."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.core.errors import InvalidParamsError, PoolUnreadyError
from llama_orch.core.settings import PoolSettings, Settings
from llama_orch.core.types import PlacementRequest

from ...support.stage import on_stage, settings_for


@pytest.mark.parametrize(
    "placement, field",
    [
        (PlacementRequest(require_device_mask="GPU-7"), "placement.require_device_mask"),
        (PlacementRequest(avoid_pools=["a", "b"]), "placement.avoid_pools"),
        (
            PlacementRequest(mode="prefer", prefer_pools=["a"], avoid_pools=["a"], allow_fallback=False),
            "placement.avoid_pools",
        ),
    ],
)
def test_a_wish_that_no_pool_can_fulfil_is_refused(placement: PlacementRequest, field: str) -> None:
    with on_stage(slots={"a": 1, "b": 1}) as stage:
        with pytest.raises(InvalidParamsError) as told:
            stage.submit(placement=placement)
        assert told.value.field == field


def test_strict_determinism_on_a_pool_that_still_starts_is_told_to_come_later() -> None:
    with on_stage(ready=False, slots={"p": 1}) as stage:
        stage.engines.clear()  # none was seen yet
        with pytest.raises(PoolUnreadyError):
            stage.submit(determinism="strict")


def test_tasks_of_a_model_that_is_served_no_more_end_with_an_error() -> None:
    with on_stage(slots={"p": 1}, settings=settings_for({"p": 1})) as stage:
        first = stage.submit().task_id
        second = stage.submit("next").task_id
        stage.attempt(first).start()
        stage.settle()
        stage.crash()
        stage.settings = _other_model()
        stage.start()
        for task_id in (first, second):
            end = stage.ended(task_id)
            assert (end.outcome, end.code, end.retriable) == ("failed", "POOL_UNAVAILABLE", True)
        assert stage.journal.head.queue.depth() == 0


def test_a_task_whose_wishes_cannot_be_met_any_more_does_not_hold_up_the_others() -> None:
    with on_stage(slots={"a": 1, "b": 1}) as stage:
        blocked = [stage.submit(f"fill {n}").task_id for n in range(2)]
        wishful = stage.submit(placement=PlacementRequest(avoid_pools=["b"])).task_id
        plain = stage.submit("plain").task_id
        stage.crash()
        stage.settings = settings_for({"b": 1})
        stage.engines = {"b": stage.engines["b"]}
        stage.start()
        for task_id in (*blocked, plain):
            attempt: Any = stage.attempt(task_id)
            attempt.start()
            attempt.end()
            stage.settle()
            assert stage.state(task_id) == "completed"
        assert stage.ended(wishful).code == "POOL_UNAVAILABLE"


def _other_model() -> Settings:
    return Settings(pools=[PoolSettings(id="p", engine="mock", model="other", slots=1)])
