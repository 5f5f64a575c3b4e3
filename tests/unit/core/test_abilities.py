"""What a task needs of its engine: refused by name where no pool has it, placed where one has (ADM-2, ENG-1)."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.core.engine_ports import FEATURES
from llama_orch.core.errors import InvalidParamsError
from llama_orch.core.events.task import TaskPlaced
from llama_orch.core.services.abilities import needs_of
from llama_orch.core.types import ChatMessage, TaskRequest

from ...support.stage import Stage, on_stage

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
CHAT: dict[str, Any] = {"workload": "chat", "messages": [ChatMessage(role="user", content="hi")]}


def ready_with(stage: Stage, name: str, *, workloads: tuple[str, ...], features: tuple[str, ...]) -> None:
    engine = stage.engines[name]
    engine.workloads, engine.features = workloads, features
    stage.pool_ready(name)
    stage.settle()


@pytest.mark.parametrize(
    "asked, needs",
    [
        ({"prompt": "x"}, ["completion"]),
        ({"prompt": "x", "top_logprobs": 2}, ["completion", "logprobs"]),
        ({"prompt": "x", "grammar": "root ::= x"}, ["completion", "grammar"]),
        ({"prompt": "x", "json_schema": {}}, ["completion", "json_schema"]),
        ({"prompt_ids": [1, 2]}, ["completion", "prompt_ids"]),
        ({"prompt": "x", "logit_bias": {"7": 1.5}}, ["completion", "logit_bias"]),
        ({"workload": "embedding", "inputs": ["x"]}, ["embedding"]),
        ({"workload": "rerank", "inputs": ["x"], "query": "y"}, ["rerank"]),
        ({**CHAT, "tools": [TOOL]}, ["chat", "tools"]),
        ({**CHAT, "messages": [ChatMessage(role="tool", content="21", tool_call_id="c")]}, ["chat", "tools"]),
        ({**CHAT, "messages": [ChatMessage(role="user", content=PICTURE)]}, ["chat", "images"]),
        ({**CHAT, "messages": [ChatMessage(role="user", content=[{"type": "text", "text": "x"}])]}, ["chat"]),
    ],
)
def test_a_request_says_what_it_needs(asked: dict[str, Any], needs: list[str]) -> None:
    assert needs_of(TaskRequest(model_ref="m", **asked)) == needs


@pytest.mark.parametrize(
    "asked, field",
    [
        ({**CHAT, "tools": [TOOL]}, "tools"),
        ({**CHAT, "messages": [ChatMessage(role="user", content=PICTURE)]}, "messages"),
        ({"logprobs": True}, "logprobs"),
        ({"workload": "embedding", "inputs": ["x"]}, "workload"),
        ({"prompt_ids": [1]}, "prompt_ids"),
    ],
)
def test_what_no_pool_can_is_refused_by_its_field_before_the_queue(asked: dict[str, Any], field: str) -> None:
    with on_stage() as stage:
        with pytest.raises(InvalidParamsError) as refused:
            stage.submit(**asked)
        assert refused.value.field == field
        assert "scripted" in refused.value.message or "mock" in refused.value.message
        assert stage.journal.head.tasks.live == {}


def test_of_two_pools_the_one_that_can_takes_the_task_and_the_decision_says_why() -> None:
    with on_stage(slots={"able": 1, "plain": 4}) as stage:
        ready_with(stage, "able", workloads=("completion", "chat"), features=FEATURES)
        task_id = stage.submit(**CHAT, tools=[TOOL]).task_id
        (placed,) = stage.payloads(TaskPlaced, task_id)
        assert placed.pool_id == "able"
        assert {f.name: f.excluded for f in placed.decision.filters_applied}["ability"] == {
            "plain": "its engine does not do tools"
        }


def test_a_task_for_the_one_able_pool_waits_for_it_and_lets_others_pass() -> None:
    with on_stage(slots={"able": 1, "plain": 1}) as stage:
        ready_with(stage, "able", workloads=("completion", "chat", "embedding"), features=FEATURES)
        first = stage.submit(workload="embedding", inputs=["x"]).task_id
        second = stage.submit(workload="embedding", inputs=["y"]).task_id
        third = stage.submit("plain words").task_id
        assert [stage.state(t) for t in (first, second, third)] == ["placed", "queued", "placed"]
        stage.attempt(first).end()
        stage.settle()
        assert stage.state(second) == "placed"


def test_a_pool_that_was_not_seen_yet_may_turn_out_able_and_one_that_is_not_ends_the_wait() -> None:
    with on_stage(ready=False) as stage:
        task_id = stage.submit(workload="embedding", inputs=["x"]).task_id
        assert stage.state(task_id) == "queued"
        stage.pool_ready("p")
        stage.settle()
        info = stage.info(task_id)
        assert (info.state, info.error.code) == ("failed", "POOL_UNAVAILABLE")
        assert "workload" in info.error.message


def test_a_chat_is_rendered_where_that_will_do() -> None:
    with on_stage() as stage:
        ready_with(
            stage, "p", workloads=("completion", "chat"), features=tuple(f for f in FEATURES if f != "reasoning")
        )
        job = stage.attempt(stage.submit(**CHAT).task_id).job
        assert (job.prompt, job.chat) == ("<user>hi", None)


@pytest.mark.parametrize(
    "more, features",
    [
        ({"tools": [TOOL]}, FEATURES),
        ({"reasoning_effort": "low"}, ("render",)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ("render",)),
        ({}, ("render", "reasoning")),
        ({}, ()),
    ],
)
def test_the_engine_renders_and_parses_what_a_prompt_cannot_hold(
    more: dict[str, Any], features: tuple[str, ...]
) -> None:
    with on_stage() as stage:
        ready_with(stage, "p", workloads=("completion", "chat"), features=features)
        task_id = stage.submit(**CHAT, **more).task_id
        job = stage.attempt(task_id).job
        assert job.chat is not None
        assert job.chat.messages == [{"role": "user", "content": "hi"}]
        assert list(job.chat.tools) == more.get("tools", [])
        assert job.chat.reasoning_effort == more.get("reasoning_effort", "")
        assert dict(job.chat.template_kwargs) == more.get("chat_template_kwargs", {})
        # The rendered prompt is kept where the engine tells it, though it is not what is sent (DET-1).
        assert job.prompt == ("<user>hi" if "render" in features else "")
