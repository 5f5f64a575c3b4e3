"""What llama.cpp is asked for, and what is refused by name before it is asked."""

import json

import pytest

from llama_orch.plugins import ChatJob, GenerateJob
from llama_orch.plugins.engines._llama_bodies import RefusedError, chat_body, completion_body, require
from llama_orch.plugins.engines._llama_wire import Abilities, Props, TemplateCaps, tools_of
from llama_orch.plugins.testing.engines import CLOCK, WEATHER

JOB = {"task_id": "t", "attempt": 1, "workload": "chat", "seed": 5}
USER = {"role": "user", "content": "hi"}
ABLE = Abilities(tools=True, images=True)
THINKS = Abilities(tools=True, reasons=True, thinking_can_be_off=True)


def chat(abilities=ABLE, choice=0, messages=(USER,), job=(), **fields):
    """The body of a chat, decoded."""
    asked = ChatJob(messages=list(messages), **fields)
    return json.loads(chat_body(GenerateJob(**JOB, chat=asked, **dict(job)), asked, abilities, choice))


def refused(*arguments, **fields):
    with pytest.raises(RefusedError) as caught:
        chat(*arguments, **fields)
    return str(caught.value)


def test_a_chat_streams_counts_and_names_slot_seed_and_bounds():
    job = {"slot": 1, "max_tokens": 9, "stop": ("x",), "sampling": {"top_k": 40.0}, "cache_prompt": True}
    body = chat(job=job)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["timings_per_token"] is True
    assert (body["id_slot"], body["seed"], body["max_tokens"], body["stop"]) == (1, 5, 9, ["x"])
    assert body["cache_prompt"] is True
    assert isinstance(body["top_k"], int)
    assert not {"tools", "tool_choice", "chat_template_kwargs", "reasoning_effort", "grammar"} & body.keys()


def test_each_answer_has_a_seed_of_its_own_and_none_means_any():
    assert [chat(choice=n)["seed"] for n in range(3)] == [5, 6, 7]
    last = {**JOB, "workload": "completion", "seed": 2**32 - 1}
    seeds = [json.loads(completion_body(GenerateJob(**last), "p", n))["seed"] for n in range(3)]
    assert 2**32 - 1 not in seeds


def test_tools_and_how_they_may_be_chosen():
    body = chat(tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert (len(body["tools"]), body["tool_choice"], body["parallel_tool_calls"]) == (2, "auto", False)
    for choice in ("auto", "none", "required"):
        assert chat(tools=[WEATHER], tool_choice=choice)["tool_choice"] == choice
    for one in ({"type": "function", "function": {"name": "get_time"}}, {"type": "function", "name": "get_time"}):
        body = chat(tools=[WEATHER, CLOCK], tool_choice=one)
        assert body["tool_choice"] == "required"
        assert [tool["function"]["name"] for tool in body["tools"]] == ["get_time"], "llama.cpp knows no choice of one"


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [WEATHER], "job": {"json_schema": {"type": "object"}}}, "json_schema"),
        ({"tools": [WEATHER], "job": {"grammar": "root ::= x"}}, "grammar"),
        ({"job": {"json_schema": {"not": {}}}}, "json_schema"),
        ({"job": {"json_schema": {"type": "null"}, "grammar": "root ::= x"}}, "json_schema"),
        ({"job": {"logit_bias": {"five": 1.0}}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ],
)
def test_what_llama_cpp_cannot_is_refused_by_name(fields, said):
    assert said in refused(**fields)


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://example.test/a.png", "file:///etc/passwd"])
def test_a_picture_is_never_fetched_from_anywhere(url):
    part = {"type": "image_url", "image_url": {"url": url}}
    assert "data:" in refused(messages=[{"role": "user", "content": [part]}])


def test_a_picture_that_is_sent_along_goes_through_to_a_model_that_sees():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "this?"}, part]}]
    assert chat(messages=messages)["messages"] == messages
    assert "image_url" in refused(Abilities(), messages=messages)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [WEATHER]},
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": "rain"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
    ],
)
def test_tools_are_refused_where_the_template_shows_none(fields):
    assert "tools" in refused(Abilities(), **fields)


def test_thoughts_can_be_switched_off_or_asked_for_more_or_less():
    body = chat(THINKS, reasoning_effort="none")
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    body = chat(THINKS, reasoning_effort="high", template_kwargs={"a": 1})
    assert body["chat_template_kwargs"] == {"a": 1, "reasoning_effort": "high"}
    assert body["reasoning_effort"] == "high"
    told = {"enable_thinking": True}
    assert chat(THINKS, reasoning_effort="none", template_kwargs=told)["chat_template_kwargs"] == told


def test_a_schema_leaves_a_model_room_to_think_and_a_grammar_does_not():
    schema = {"json_schema": {"type": "boolean"}}
    assert "root ::=" in chat(job=schema)["grammar"]
    body = chat(THINKS, job=schema)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "boolean"}
    assert "grammar" not in body
    assert "root ::=" in chat(THINKS, reasoning_effort="none", job=schema)["grammar"]
    grammar = {"grammar": 'root ::= "a"'}
    body = chat(THINKS, job=grammar)
    assert (body["grammar"], body["chat_template_kwargs"]) == ('root ::= "a"', {"enable_thinking": False})
    assert "always thinks" in refused(Abilities(reasons=True), job=grammar)
    assert "json_schema" in refused(THINKS, job={"json_schema": {"not": {}}}), (
        "what cannot be held to is refused here too"
    )


@pytest.mark.parametrize(
    "fields, abilities, said",
    [
        ({"workload": "embedding", "inputs": ["a"]}, ABLE, "embedding"),
        ({"workload": "completion", "prompt": "a"}, Abilities(embeds=True), "completion"),
        ({"workload": "rerank", "inputs": ["a"]}, Abilities(embeds=True), "rerank"),
        ({"workload": "divination"}, None, "divination"),
        ({"workload": "chat", "chat": ChatJob(messages=[USER]), "prefix": "so far"}, ABLE, "prefix"),
        ({"workload": "embedding", "inputs": ["a"], "dimensions": 8}, Abilities(embeds=True, dimensions=64), "64"),
    ],
)
def test_a_job_that_the_server_was_not_started_for_is_refused(fields, abilities, said):
    with pytest.raises(RefusedError, match=said):
        require(GenerateJob(task_id="t", attempt=1, **fields), abilities)


def test_a_job_that_the_server_was_started_for_is_not_refused():
    job = GenerateJob(task_id="t", attempt=1, workload="embedding", inputs=["a"], dimensions=64)
    require(job, Abilities(embeds=True, dimensions=64))
    require(GenerateJob(task_id="t", attempt=1, workload="embedding", inputs=["a"]), None)


def test_tools_of_a_build_that_tells_no_caps_follow_from_the_template():
    assert tools_of(Props(chat_template="{% if tools %}x{% endif %}"))
    assert not tools_of(Props(chat_template="{{ messages }}"))
    assert not tools_of(Props(chat_template="tools", chat_template_caps=TemplateCaps()))
    assert tools_of(Props(chat_template_caps=TemplateCaps(supports_tool_calls=True)))
