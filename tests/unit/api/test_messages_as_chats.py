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
