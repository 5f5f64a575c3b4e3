"""Pools of one model that are to run the same engine and weights take no tasks while they do not (PLC-6)."""

from __future__ import annotations

import msgspec
import pytest

from llama_orch.core.events.task import TaskPlaced

from ...support.stage import Stage, on_stage, settings_for


def _ready(stage: Stage, name: str, **differs: str) -> None:
    properties = msgspec.structs.replace(stage.engines[name].own_properties(), **differs)  # type: ignore[arg-type]
    with stage.loop.running():
        stage.host.ready(name, properties)
    stage.settle()


def _settings(same: bool) -> object:
    settings = settings_for({"a": 1, "b": 1})
    pools = [msgspec.structs.replace(pool, require_same_engine_version=same) for pool in settings.pools]
    return msgspec.structs.replace(settings, pools=pools)


@pytest.mark.parametrize(
    "differs, why",
    [
        ({"engine_version": "scripted-2"}, "runs engine version scripted-2, a runs scripted-1"),
        ({"model_digest": "sha256:other"}, "its weights are not those of a"),
    ],
)
def test_a_pool_that_differs_takes_no_tasks_and_the_decision_says_why(differs: dict[str, str], why: str) -> None:
    with on_stage(slots={"a": 1, "b": 1}, settings=_settings(same=True), ready=False) as stage:
        _ready(stage, "a")
        _ready(stage, "b", **differs)
        first, second = (stage.submit(f"t{n}").task_id for n in range(2))
        assert (stage.state(first), stage.state(second)) == ("placed", "queued")
        (placed,) = stage.payloads(TaskPlaced, first)
        assert {f.name: f.excluded for f in placed.decision.filters_applied}["same_version"] == {"b": why}
        _ready(stage, "b")
        stage.services.dispatcher.pump("m")
        stage.settle()
        assert stage.state(second) == "placed"


def test_without_the_wish_pools_may_differ() -> None:
    with on_stage(slots={"a": 1, "b": 1}, settings=_settings(same=False), ready=False) as stage:
        _ready(stage, "a")
        _ready(stage, "b", engine_version="scripted-2")
        assert [stage.state(stage.submit(f"t{n}").task_id) for n in range(2)] == ["placed", "placed"]
