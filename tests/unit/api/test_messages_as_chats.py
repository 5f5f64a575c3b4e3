"""What Anthropic's messages and OpenAI's items become as a chat that engines read (API-2)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.api.compat.messages_content import Content, with_system
from llama_orch.api.compat.messages_request import MessagesRequest, asked
from llama_orch.api.compat.responses_items import messages_of
from llama_orch.api.compat.responses_request import ResponsesRequest, own_messages
from llama_orch.api.compat.responses_request import asked as asked_response
from llama_orch.core.errors import InvalidParamsError
from llama_orch.core.types import ChatMessage

USER: dict[str, Any] = {"role": "user", "content": "x"}
TOOL: dict[str, Any] = {"name": "f", "description": "d", "input_schema": {"type": "object"}}


def request(**fields: Any) -> MessagesRequest:
    return msgspec.convert({"model": "m", "max_tokens": 5, "messages": [USER], **fields}, MessagesRequest)


def response(**fields: Any) -> ResponsesRequest:
    return msgspec.convert({"model": "m", "input": "x", **fields}, ResponsesRequest)


def chat(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(message) for message in Content().messages(list(messages))]


def test_results_of_tools_are_messages_of_their_own_before_what_is_said_beside_them() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1"}
    assert chat(
        {
            "role": "user",
            "content": [
                {**result, "content": "sun"},
                {**result, "tool_use_id": "t2", "content": [{"type": "text", "text": "a"}], "is_error": True},
                {"type": "text", "text": "and?"},
            ],
        }
    ) == [
        {"role": "tool", "content": "sun", "tool_call_id": "t1"},
        {"role": "tool", "content": "Error: a", "tool_call_id": "t2"},
        {"role": "user", "content": "and?"},
    ]


def test_what_an_assistant_thought_said_and_called_is_one_message() -> None:
    (said,) = chat(
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look "},
                {"type": "text", "text": "it up"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "ä": [None]}},
            ],
        }
    )
    assert said == {
        "role": "assistant",
        "content": "I look it up",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"b":1,"ä":[null]}'}}],
    }


def test_pictures_stay_parts_beside_the_text() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    (said,) = chat(
        {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image", "source": source}]}
    )
    assert said["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]


def test_templates_get_one_system_message_at_the_beginning() -> None:
    messages = [ChatMessage(role="system", content="b"), ChatMessage(role="user", content="x")]
    assert [m.content for m in with_system("a", messages)] == ["a\n\nb", "x"]
    assert with_system("", messages[1:]) == messages[1:]


@given(
    st.text(max_size=4),
    st.lists(st.sampled_from([("system", "s"), ("user", "u"), ("assistant", "a")]), max_size=5),
)
def test_an_earlier_response_is_gone_on_from_without_its_instructions(
    instructions: str, said: list[tuple[Any, str]]
) -> None:
    messages = [ChatMessage(role=role, content=text) for role, text in said]
    kept = own_messages(with_system(instructions, messages), instructions)
    assert with_system("", kept) == with_system("", messages)


@pytest.mark.parametrize(
    "thinking, config, effort, wanted",
    [
        (None, None, None, False),
        ({"type": "disabled"}, None, None, False),
        ({"type": "adaptive"}, None, None, True),
        ({"type": "adaptive"}, {"effort": "max"}, "xhigh", True),
        ({"type": "enabled", "budget_tokens": 1024}, None, "low", True),
        ({"type": "enabled", "budget_tokens": 8192}, None, "medium", True),
        ({"type": "enabled", "budget_tokens": 32_000}, None, "high", True),
        ({"type": "enabled", "budget_tokens": 32_000}, {"effort": "low"}, "low", True),
    ],
)
def test_a_model_thinks_as_much_as_it_is_asked_to(thinking: Any, config: Any, effort: str | None, wanted: bool) -> None:
    understood = asked(request(thinking=thinking, output_config=config))
    assert understood.task.reasoning_effort == effort
    assert understood.thinking.wanted is wanted


@pytest.mark.parametrize(
    "given, choice, parallel",
    [
        (None, None, None),
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}, None),
    ],
)
def test_tools_and_their_choice_are_those_of_a_chat(given: Any, choice: Any, parallel: bool | None) -> None:
    task = asked(request(tools=[TOOL], tool_choice=given)).task
    assert task.tools == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    ]
    assert task.tool_choice == choice
    assert task.parallel_tool_calls is parallel


def test_a_chosen_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidParamsError) as caught:
        asked(request(tools=[TOOL], tool_choice={"type": "tool", "name": "g"}))
    assert caught.value.field == "tool_choice"


def test_our_own_parameters_are_taken_beside_theirs() -> None:
    own: dict[str, Any] = {"priority": 5, "deadline_ms": 9_000, "seed": -1, "recovery": "none", "top_k": 3}
    for task in (
        asked(request(**own, stop_sequences=["a"])).task,
        asked_response(response(**own), []).task,
    ):
        assert (task.priority, task.deadline_ms, task.seed, task.recovery, task.top_k) == (
            "batch",
            9_000,
            None,
            "none",
            3,
        )


def test_what_of_the_depth_has_no_effect_is_named() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    understood = asked(
        request(
            system=[{"type": "text", "text": "s", **cached}],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "x", "citations": [1]}]},
                {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "?"}]},
                USER,
            ],
            tools=[{**TOOL, "strict": True, **cached}],
            output_config={"effort": "low"},
        )
    )
    assert set(understood.ignored) == {
        "cache_control",
        "messages.citations",
        "messages.redacted_thinking",
        "tools.strict",
        "output_config.effort",
    }


def test_a_response_in_the_background_is_not_cancelled_by_who_leaves() -> None:
    assert asked_response(response(background=True), []).task.cancel_on_disconnect is False
    assert asked_response(response(), []).task.cancel_on_disconnect is None


def test_what_a_response_shows_of_its_request_is_what_it_was_sent_or_meant() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    shown = asked_response(response(tools=[tool], tool_choice="required", temperature=0.5), []).shown
    assert shown["store"] is True
    assert shown["input"] == [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}]
    echo = shown["echo"]
    assert echo["tools"] == [{**tool, "description": None, "strict": None}]
    assert (echo["tool_choice"], echo["temperature"], echo["text"]) == ("required", 0.5, {"format": {"type": "text"}})


def test_two_messages_of_an_assistant_stay_two() -> None:
    said = [{"type": "message", "role": "assistant", "content": text} for text in ("one", "two")]
    assert [(m.role, m.content) for m in messages_of(said, [])] == [("assistant", "one"), ("assistant", "two")]


def test_thoughts_whose_text_is_kept_back_are_told_by_their_summary() -> None:
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "in short"}], "encrypted_content": "?"},
        {"type": "message", "role": "assistant", "content": "so"},
    ]
    ignored: list[str] = []
    (said,) = messages_of(items, ignored)
    assert said.reasoning_content == "in short"
    assert ignored == ["input.encrypted_content"]


#: a request of each kind that uses everything
FULL_MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "i", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "r"}]}],
        },
        {
            "role": "user",
            "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}],
        },
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["a"],
    "metadata": {"user_id": "u"},
}
FULL_RESPONSE: dict[str, Any] = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "y"}, {"type": "refusal", "refusal": "n"}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "r"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]},
    ],
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "stream_options": {"include_obfuscation": False},
    "background": True,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict):
        return found + [p for key, below in value.items() for p in places(below, (*path, key))]
    if isinstance(value, list):
        return found + [p for at, below in enumerate(value) for p in places(below, (*path, at))]
    return found


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return {key: changed(below, path[1:], new) if key == path[0] else below for key, below in value.items()}
    return [changed(below, path[1:], new) if at == path[0] else below for at, below in enumerate(value)]


STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    [],
    ["x"],
    [[]],
    [{}],
    {},
    {"type": []},
    {"type": {}},
    {"type": "text"},
]


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
@pytest.mark.parametrize(
    "full, kind, understand",
    [
        (FULL_MESSAGES, MessagesRequest, asked),
        (FULL_RESPONSE, ResponsesRequest, lambda body: asked_response(body, [])),
    ],
    ids=["messages", "responses"],
)
def test_whatever_stands_in_any_place_is_understood_or_refused_by_name(
    full: dict[str, Any], kind: Any, understand: Any, strange: Any
) -> None:
    understand(msgspec.convert(full, kind))
    refusals: list[InvalidParamsError] = []
    for path in places(full):
        try:
            body = msgspec.convert(changed(full, path, strange), kind)
        except msgspec.ValidationError:
            continue  # which the route explains
        try:
            understand(body)
        except InvalidParamsError as error:
            refusals.append(error)
    assert all(error.field and error.what_to_do for error in refusals)


def test_a_tools_picture_of_an_error_is_told_to_be_one() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [picture], "is_error": True}
    (said,) = Content().messages([{"role": "user", "content": [result]}])
    assert isinstance(said.content, list)
    assert [part["type"] for part in said.content] == ["text", "image_url"]
    assert said.content[0]["text"] == "Error:"
