"""From a task to what an engine is asked for: a rendered prompt where that can be had, else a chat that it renders."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ..engine_ports import ChatJob, Engine, EngineProperties, GenerateJob
from ..projections.tasks import TaskState
from .bodies import RequestBody

#: what an engine is taken to be that says nothing of itself
_PLAIN = EngineProperties(engine_version="", model_name="")


def needs_chat(body: RequestBody, needs: list[str], properties: EngineProperties | None) -> bool:
    """Whether the engine itself has to render the chat and to parse what is said: a prompt alone would not do.

    Where it can be avoided it is, since a completion can be continued and compared (RCV-1).
    """
    if body.messages is None:
        return False
    features = (properties or _PLAIN).features
    return (
        "tools" in needs
        or "images" in needs
        or bool(body.reasoning_effort or body.chat_template_kwargs)
        or "reasoning" in features
        or "render" not in features
    )


def renders(properties: EngineProperties | None) -> bool:
    """Whether the engine tells the prompt that its template makes of a chat."""
    return "render" in (properties or _PLAIN).features


def chat_of(body: RequestBody) -> ChatJob:
    """The chat as an engine gets it."""
    return ChatJob(
        messages=[msgspec.to_builtins(m) for m in body.messages or ()],
        tools=body.tools or (),
        tool_choice=body.tool_choice or "",
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=body.reasoning_effort,
        template_kwargs=body.chat_template_kwargs or {},
    )


async def render(engine: Engine, body: RequestBody) -> str:
    """The prompt that the engine's template makes of a chat; without messages the prompt itself."""
    if body.messages is None:
        return body.prompt or ""
    messages = [msgspec.to_builtins(m) for m in body.messages]
    return await engine.render_chat(messages, tools=body.tools or (), template_kwargs=_variables(body) or None)


def _variables(body: RequestBody) -> dict[str, Any]:
    """Variables of the chat template: those that were sent, and what engines take from how much shall be thought."""
    told: dict[str, Any] = {}
    if body.reasoning_effort:
        told = {"reasoning_effort": body.reasoning_effort}
        if body.reasoning_effort == "none":
            told = {"enable_thinking": False}
    return {**told, **(body.chat_template_kwargs or {})}


def job_of(
    state: TaskState,
    body: RequestBody,
    *,
    attempt: int,
    slot: int,
    prompt: str,
    prefix: str,
    max_tokens: int,
    chat: ChatJob | None = None,
) -> GenerateJob:
    """One attempt of a task as its engine gets it.

    :param prefix: text to go on from; "" = from the start.
    :param max_tokens: that are still to be said, 0 = until the engine stops.
    :param chat: sent instead of the prompt.
    """
    admitted = state.admitted
    sampling: dict[str, Any] = {name: json.loads(value) for name, value in admitted.sampling.items()}
    return GenerateJob(
        task_id=state.task_id,
        attempt=attempt,
        workload=admitted.workload,
        prompt=prompt,
        prompt_ids=body.prompt_ids or (),
        chat=chat,
        inputs=body.inputs or (),
        query=body.query or "",
        dimensions=body.dimensions,
        n=admitted.n,
        prefix=prefix,
        slot=slot,
        seed=admitted.seed,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=tuple(body.stop),
        grammar=body.grammar or "",
        json_schema=body.json_schema,
        cache_prompt=admitted.determinism != "strict" and not admitted.kv_cold,
        logprobs=admitted.logprobs,
        top_logprobs=admitted.top_logprobs,
        logit_bias=body.logit_bias or {},
    )


def may_continue(state: TaskState, body: RequestBody, properties: EngineProperties | None) -> str:
    """Why the task cannot go on from its journaled words; "" = it can."""
    if body.grammar or body.json_schema is not None:
        return "what has to fit a grammar cannot be continued"
    if state.admitted.n > 1:
        return "several answers cannot be continued"
    if needs_chat(body, state.admitted.needs, properties):
        return "what the engine itself parses (tools, thoughts) cannot be continued"
    if "continue" not in (properties or _PLAIN).features:
        return "the engine cannot go on from a text"
    return ""
