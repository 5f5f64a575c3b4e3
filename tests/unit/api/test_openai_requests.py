"""Requests of OpenAI's clients become tasks, or are refused by the names that those clients know (API-2)."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llama_orch.core.errors import BudgetExhaustedError, InvalidParamsError, RateLimitedError
from llama_orch.core.projections.sessions import SessionState
from llama_orch.core.services.outcomes import Choice, ToolCall

from .fakes import TASK, Answer, FakeServices

Ask = Callable[..., Answer]
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "mock", "prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def post(ask: Ask, path: str, body: dict[str, Any], **rest: Any) -> Answer:
    return ask("POST", path, body=json.dumps(body).encode(), **rest)


def asked(services: FakeServices) -> list[tuple[Any, dict[str, Any]]]:
    """Tasks that were submitted, with what went beside them."""
    return [(value[0], value[2]) for what, value in services.asked if what == "submit"]


# --- chats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, task",
    [
        ({"n": 3}, {"n": 3}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
            {"tool_choice": {"type": "function", "function": {"name": "look_up"}}},
        ),
        ({"tools": [TOOL], "parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"parallel_tool_calls": True}, {"parallel_tool_calls": None}),
        ({"tools": [], "tool_choice": "auto"}, {"tools": None, "tool_choice": "auto"}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ({"logit_bias": {"5": -100}}, {"logit_bias": {"5": -100}}),
        ({"cache_prompt": False}, {"kv_hint": "cold"}),
        ({"cache_prompt": True}, {"kv_hint": "reuse"}),
        ({"cache_prompt": False, "kv_hint": "cold"}, {"kv_hint": "cold"}),
        ({"repetition_penalty": 1.5}, {"repeat_penalty": 1.5}),
        ({"repetition_penalty": 1.5, "repeat_penalty": 1.5}, {"repeat_penalty": 1.5}),
        ({"json_schema": {"type": "string"}}, {"json_schema": {"type": "string"}}),
        ({"response_format": {"type": "json_object", "schema": {"type": "array"}}}, {"json_schema": {"type": "array"}}),
        ({"response_format": {"type": "json_schema", "schema": {"type": "array"}}}, {"json_schema": {"type": "array"}}),
        ({"session_ttl_ms": 5, "session_turn_limit": 2}, {"session_ttl_ms": 5, "session_turn_limit": 2}),
        ({"priority": -3}, {"priority": "interactive"}),
    ],
)
def test_parameters_of_chats_become_those_of_tasks(
    ask: Ask, services: FakeServices, given: dict[str, Any], task: dict[str, Any]
) -> None:
    answer = post(ask, "/v1/chat/completions", CHAT | given)
    assert answer.status == 200, answer.body
    assert "x-ignored-parameters" not in answer.headers
    ((request, beside),) = asked(services)
    assert {name: getattr(request, name) for name in task} == task
    assert beside["api"] == "openai.chat"


@pytest.mark.parametrize(
    "path, wrong",
    [
        ("/v1/chat/completions", {"response_format": {"type": {"a": "x" * 3000}}}),
        ("/v1/completions", {"prompt": "x", "response_format": {"type": "x" * 3000}}),
        ("/v1/chat/completions", {"tools": [{"type": "x" * 3000}]}),
        ("/v1/chat/completions", {"tools": [{"type": ["x" * 3000]}]}),
        ("/v1/messages", {"max_tokens": 3, "thinking": {"type": "enabled", "budget_tokens": "x" * 3000}}),
    ],
)
def test_what_is_wrong_is_not_repeated_at_length(ask: Ask, path: str, wrong: dict[str, Any]) -> None:
    answer = post(ask, path, CHAT | wrong)
    assert answer.status == 400
    assert len(answer.body) < 1000, answer.body


@pytest.mark.parametrize(
    "given, param",
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"cache_prompt": False, "kv_hint": "reuse"}, "cache_prompt"),
        ({"repetition_penalty": 1.5, "repeat_penalty": 1.2}, "repetition_penalty"),
        ({"json_schema": {}, "response_format": {"type": "json_object"}}, "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "jsn_object"}}, "response_format.type"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages.0"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
            "messages.0.content.0.image_url",
        ),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    ask: Ask, services: FakeServices, given: dict[str, Any], param: str
) -> None:
    answer = post(ask, "/v1/chat/completions", CHAT | given)
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["remedy"] or error["expected"]
    assert asked(services) == []


def test_calls_and_their_answers_go_to_the_task_as_they_are(ask: Ask, services: FakeServices) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm", "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
        {"role": "developer", "content": "be brief"},
    ]
    assert post(ask, "/v1/chat/completions", CHAT | {"messages": messages}).status == 200
    sent = asked(services)[0][0].messages
    assert sent[1].tool_calls == [call]
    assert sent[1].reasoning_content == "hm"
    assert sent[2].tool_call_id == "c1"
    assert sent[3].role == "developer"


def test_pictures_are_passed_through(ask: Ask, services: FakeServices) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}]}
    assert post(ask, "/v1/chat/completions", body).status == 200
    assert asked(services)[0][0].messages[0].content[1] == part


def test_answers_with_calls_and_thoughts_say_them(ask: Ask, services: FakeServices) -> None:
    call = ToolCall(call_id="call_1", name="look_up", arguments='{"q":1}')
    services.info = msgspec.structs.replace(
        services.info,
        choices=[
            Choice(index=0, text="", reasoning="hm", tool_calls=[call], finish_reason="tool_calls"),
            Choice(index=1, text="no", finish_reason="length"),
        ],
    )
    said = post(ask, "/v1/chat/completions", CHAT | {"n": 2, "tools": [TOOL]}).json()
    assert said["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"q":1}'}}],
    }
    assert [choice["finish_reason"] for choice in said["choices"]] == ["tool_calls", "length"]
    assert said["choices"][1]["message"] == {"role": "assistant", "content": "no", "refusal": None}


# --- what has no effect -----------------------------------------------------------------------------------------


def test_what_has_no_effect_is_named_wherever_it_stands(ask: Ask) -> None:
    message = {"role": "user", "content": "hi", "annotations": [{"a": 1}], "audio": None, "refusal": ""}
    body = CHAT | {
        "messages": [message, message],
        "user": "me",
        "metadata": {},
        "store": True,
        "seed": None,
        "service_tier": None,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    answer = post(ask, "/v1/chat/completions", body)
    assert answer.status == 200
    assert answer.headers["x-ignored-parameters"] == (
        "user, metadata, store, stream_options.include_obfuscation, messages.annotations"
    )


def test_what_has_no_effect_is_named_in_a_header_of_sensible_size(ask: Ask) -> None:
    many = {f"x{n}": 1 for n in range(100)}
    named = post(ask, "/v1/chat/completions", CHAT | many).headers["x-ignored-parameters"].split(", ")
    assert named == [f"x{n}" for n in range(64)]
    odd = {"l" * 2000: 1, "ünprintable": 1, "line\nbreak": 1, "fine": 1}
    assert post(ask, "/v1/chat/completions", CHAT | odd).headers["x-ignored-parameters"] == f"{'l' * 100}..., fine"


def test_what_has_no_effect_is_json_all_the_same(ask: Ask, services: FakeServices) -> None:
    body = b'{"model": "mock", "prompt": "x", "metadata": {"size": 1e999}}'
    answer = ask("POST", "/v1/completions", body=body)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "INVALID_PARAMS")
    assert asked(services) == []


@pytest.mark.parametrize("wish", ["true", "TRUE", "1"])
def test_who_is_strict_is_refused_what_would_have_no_effect(ask: Ask, services: FakeServices, wish: str) -> None:
    headers = {"X-Strict-Parameters": wish}
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", TEXT),
        ("/v1/embeddings", {"model": "mock", "input": "hi"}),
        ("/v1/rerank", {"model": "mock", "query": "q", "documents": ["d"]}),
        ("/tokenize", {"model": "mock", "content": "hi"}),
    ):
        answer = post(ask, path, body | {"mirostat": 2, "user": "me"}, headers=headers)
        assert answer.status == 400
        assert answer.json()["error"]["param"] == "mirostat"
        assert answer.json()["error"]["ignored"] == ["mirostat", "user"]
    assert asked(services) == []


def test_strictness_is_yes_or_no(ask: Ask) -> None:
    answer = post(ask, "/v1/chat/completions", CHAT, headers={"X-Strict-Parameters": "maybe"})
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "X-Strict-Parameters"
    assert post(ask, "/v1/chat/completions", CHAT | {"user": "x"}, headers={"X-Strict-Parameters": "no"}).status == 200


# --- conversations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers, affinity",
    [
        ({}, ""),
        ({"X-Session-Id": "abc"}, "abc"),
        ({"x-litellm-session-id": "abc", "X-Conversation-Id": "def"}, "abc"),
        ({"session_id": "abc"}, "abc"),
        ({"X-Session-Id": TASK}, TASK),
    ],
)
def test_names_of_conversations_are_affinity(
    ask: Ask, services: FakeServices, headers: dict[str, str], affinity: str
) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        assert post(ask, path, body, headers=headers).status == 200 or path == "/v1/completions"
    for request, beside in asked(services):
        assert request.session_id is None
        assert beside["affinity"] == affinity


def test_the_body_names_a_conversation_where_no_header_does(ask: Ask, services: FakeServices) -> None:
    post(ask, "/v1/chat/completions", CHAT | {"prompt_cache_key": "mine"})
    post(ask, "/v1/chat/completions", CHAT | {"prompt_cache_key": "mine"}, headers={"X-Session-Id": "other"})
    assert [beside["affinity"] for _, beside in asked(services)] == ["mine", "other"]


def session(owner: str = "local", used_ns: int = 1_700_000_000_000_000_000) -> SessionState:
    return SessionState(session_id=TASK, owner=owner, ttl_ms=1000, turn_limit=8, used_ns=used_ns)


def test_the_id_of_an_open_session_joins_it(ask: Ask, services: FakeServices) -> None:
    services.journal.head.sessions.by_id[TASK] = session()
    post(ask, "/v1/chat/completions", CHAT, headers={"X-Session-Id": TASK.upper()})
    ((request, beside),) = asked(services)
    assert request.session_id == TASK
    assert beside["affinity"] == ""


@pytest.mark.parametrize("other", [session(owner="somebody"), session(used_ns=0)])
def test_a_session_of_another_or_one_that_is_over_is_not_joined(
    ask: Ask, services: FakeServices, other: SessionState
) -> None:
    services.journal.head.sessions.by_id[TASK] = other
    post(ask, "/v1/chat/completions", CHAT, headers={"X-Session-Id": TASK})
    ((request, beside),) = asked(services)
    assert request.session_id is None
    assert beside["affinity"] == TASK


# --- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, task",
    [
        ({}, {"workload": "completion", "prompt": "hi", "prompt_ids": None}),
        ({"prompt": [1, 2, 3]}, {"prompt": None, "prompt_ids": [1, 2, 3]}),
        ({"prompt": [[1, 2]]}, {"prompt_ids": [1, 2]}),
        ({"prompt": ["one"]}, {"prompt": "one"}),
        ({"prompt": ""}, {"prompt": ""}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": False}, {"logprobs": None, "top_logprobs": None}),
        ({"n": 2, "best_of": 2}, {"n": 2}),
        ({"suffix": ""}, {}),
        ({"max_tokens": 5, "stop": "x"}, {"max_tokens": 5, "stop": ["x"]}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
    ],
)
def test_parameters_of_texts_become_those_of_tasks(
    ask: Ask, services: FakeServices, given: dict[str, Any], task: dict[str, Any]
) -> None:
    answer = post(ask, "/v1/completions", TEXT | given)
    assert answer.status == 200, answer.body
    ((request, beside),) = asked(services)
    assert {name: getattr(request, name) for name in task} == task
    assert beside["api"] == "openai.completions"
    assert beside["shown"] is None


@pytest.mark.parametrize(
    "given, param",
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [[1], []]}, "prompt.1"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": ["a", "b"], "task_id": TASK}, "task_id"),
    ],
)
def test_what_would_change_a_text_is_refused_by_name(
    ask: Ask, services: FakeServices, given: dict[str, Any], param: str
) -> None:
    answer = post(ask, "/v1/completions", TEXT | given)
    assert answer.status == 400
    assert answer.json()["error"]["param"].startswith(param)
    assert asked(services) == []


def test_each_prompt_is_a_task_with_a_key_of_its_own(ask: Ask, services: FakeServices) -> None:
    post(ask, "/v1/completions", TEXT | {"prompt": ["a", "b", "a"]}, headers={"Idempotency-Key": "k"})
    tasks = asked(services)
    assert [request.prompt for request, _ in tasks] == ["a", "b", "a"]
    keys = [beside["idempotency_key"] for _, beside in tasks]
    assert keys[0] == "k"
    assert len(set(keys)) == 3
    assert not any(key.isprintable() for key in keys[1:]), "a caller could send it"
    assert len(tasks[0][1]["shown"]["prompts"]) == 3
    assert tasks[1][1]["shown"] is None


def test_an_echo_stands_before_the_answer(ask: Ask) -> None:
    said = post(ask, "/v1/completions", TEXT | {"echo": True}).json()
    assert said["choices"] == [{"text": "hihello", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert said["object"] == "text_completion"
    assert said["id"] == f"cmpl-{TASK}"


# --- embeddings and ranking -----------------------------------------------------------------------------------------


def test_vectors_come_as_numbers_or_in_base64(ask: Ask, services: FakeServices) -> None:
    services.info = msgspec.structs.replace(services.info, embeddings=[[0.5, -1.25], [1.0, 2.0]])
    body = {"model": "mock", "input": ["a", "b"], "dimensions": 2}
    said = post(ask, "/v1/embeddings", body).json()
    assert said["object"] == "list"
    assert said["data"] == [
        {"object": "embedding", "index": 0, "embedding": [0.5, -1.25]},
        {"object": "embedding", "index": 1, "embedding": [1.0, 2.0]},
    ]
    assert said["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    coded = post(ask, "/v1/embeddings", body | {"encoding_format": "base64"}).json()
    assert struct.unpack("<2f", base64.b64decode(coded["data"][0]["embedding"])) == (0.5, -1.25)
    request, beside = asked(services)[0]
    assert (request.workload, request.inputs, request.dimensions) == ("embedding", ["a", "b"], 2)
    assert beside["api"] == "openai.embeddings"


@pytest.mark.parametrize(
    "given, param",
    [
        ({"input": []}, "input"),
        ({"input": ["a", [1]]}, "input.1"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_what_cannot_be_embedded_is_named(ask: Ask, services: FakeServices, given: dict[str, Any], param: str) -> None:
    answer = post(ask, "/v1/embeddings", {"model": "mock", "input": "a"} | given)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert asked(services) == []


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_with_the_best_first(ask: Ask, services: FakeServices, path: str) -> None:
    services.info = msgspec.structs.replace(services.info, scores=[0.25, 2.5, -1.0, 2.5])
    documents = ["a", {"text": "b", "title": "B"}, "c", "d"]
    said = post(ask, path, {"model": "mock", "query": "q", "documents": documents}).json()
    assert [(r["index"], r["relevance_score"]) for r in said["results"]] == [(1, 2.5), (3, 2.5), (0, 0.25), (2, -1.0)]
    assert "document" not in said["results"][0]
    body = {"model": "mock", "query": "q", "documents": documents, "top_n": 2, "return_documents": True}
    said = post(ask, path, body).json()
    assert [r["document"] for r in said["results"]] == [{"text": "b", "title": "B"}, {"text": "d"}]
    request, beside = asked(services)[0]
    assert (request.workload, request.query, request.inputs) == ("rerank", "q", ["a", "b", "c", "d"])
    assert beside["api"] == "openai.rerank"


@pytest.mark.parametrize(
    "given, param",
    [
        ({"documents": []}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents.0.text"),
        ({"top_n": 0}, "top_n"),
        ({"query": ""}, "query"),
    ],
)
def test_what_cannot_be_ranked_is_named(ask: Ask, services: FakeServices, given: dict[str, Any], param: str) -> None:
    answer = post(ask, "/v1/rerank", {"model": "mock", "query": "q", "documents": ["a"]} | given)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert asked(services) == []


@pytest.mark.parametrize(
    "path, rest", [("/v1/embeddings", {"input": "a"}), ("/v1/rerank", {"query": "q", "documents": ["a"]})]
)
def test_a_cancelled_task_has_no_result_and_may_be_sent_again(
    ask: Ask, services: FakeServices, path: str, rest: dict[str, Any]
) -> None:
    services.info = msgspec.structs.replace(services.info, state="cancelled")
    answer = post(ask, path, {"model": "mock"} | rest)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_told_in_llama_cpps_words_and_in_vllms(ask: Ask, services: FakeServices) -> None:
    said = post(ask, "/tokenize", {"model": "mock", "content": "ab"}).json()
    assert said == {"tokens": [97, 98], "count": 2, "max_model_len": 0}
    said = post(ask, "/tokenize", {"model": "mock", "content": "ab", "add_special": True, "with_pieces": True}).json()
    assert said["tokens"] == [{"id": 0, "piece": ""}, {"id": 97, "piece": "a"}, {"id": 98, "piece": "b"}]
    said = post(ask, "/tokenize", {"model": "mock", "prompt": "ab", "return_token_strs": True}).json()
    assert said["tokens"] == [0, 97, 98]
    assert said["token_strs"] == ["", "a", "b"]
    said = post(ask, "/tokenize", {"model": "mock", "prompt": "ab", "add_special_tokens": False}).json()
    assert said["count"] == 2
    said = post(ask, "/tokenize", CHAT).json()
    assert said["count"] == len("<user>hi")


def test_the_text_of_tokens_is_told_under_both_names(ask: Ask) -> None:
    said = post(ask, "/detokenize", {"model": "mock", "tokens": [97, 98]}).json()
    assert said == {"content": "ab", "prompt": "ab"}


def test_the_prompt_of_a_chat_is_told_with_its_tools(ask: Ask, services: FakeServices) -> None:
    body = CHAT | {"tools": [TOOL], "chat_template_kwargs": {"x": 1}}
    assert post(ask, "/apply-template", body).json() == {"prompt": "<user>hi"}
    ((_, (group, asked_body)),) = [one for one in services.asked if one[0] == "prompt"]
    assert (group, asked_body.tools, asked_body.chat_template_kwargs) == ("mock", [TOOL], {"x": 1})


@pytest.mark.parametrize(
    "path, body, status, param",
    [
        ("/tokenize", {"model": "mock"}, 400, "content"),
        ("/tokenize", {"model": "mock", "content": "a", "prompt": "b"}, 400, "prompt"),
        ("/tokenize", {"content": "a"}, 400, "model"),
        ("/tokenize", {"model": "mok", "content": "a"}, 404, "model"),
        ("/tokenize", {"model": "mock", "content": "a" * 2049, "with_pieces": True}, 400, "with_pieces"),
        ("/detokenize", {"model": "mock", "tokens": ["a"]}, 400, "tokens.0"),
        ("/detokenize", {"model": "mok", "tokens": [1]}, 404, "model"),
        ("/apply-template", {"model": "mock", "messages": []}, 400, "messages"),
        ("/apply-template", CHAT | {"add_generation_prompt": False}, 400, "add_generation_prompt"),
        ("/apply-template", CHAT | {"tools": [{"type": "x"}]}, 400, "tools.0.type"),
    ],
)
def test_questions_about_tokens_that_make_no_sense_are_named(
    ask: Ask, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = post(ask, path, body)
    assert (answer.status, answer.json()["error"]["param"]) == (status, param)


def test_token_ids_are_embedded_where_their_text_gives_them_back(ask: Ask, services: FakeServices) -> None:
    services.info = msgspec.structs.replace(services.info, embeddings=[[0.5]])
    for given, texts in (([97, 98], ["ab"]), ([[97], [98]], ["a", "b"])):
        assert post(ask, "/v1/embeddings", {"model": "mock", "input": given}).status == 200
        assert asked(services)[-1][0].inputs == texts
    answer = post(ask, "/v1/embeddings", {"model": "mock", "input": [[97], [0, 98]]})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "input.1")


def test_an_echo_of_token_ids_is_their_text(ask: Ask) -> None:
    said = post(ask, "/v1/completions", TEXT | {"prompt": [97, 98], "echo": True}).json()
    assert said["choices"][0]["text"] == "abhello"


# --- errors -----------------------------------------------------------------------------------------------------------

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", TEXT),
    ("/v1/embeddings", {"model": "mock", "input": "a"}),
    ("/v1/rerank", {"model": "mock", "query": "q", "documents": ["a"]}),
]


@pytest.mark.parametrize("path, body", ROUTES)
def test_refusals_have_openais_shape_on_every_route(
    ask: Ask, services: FakeServices, path: str, body: dict[str, Any]
) -> None:
    for error, status, kind in (
        (RateLimitedError("slow down", retry_after_ms=2500), 429, "rate_limit_error"),
        (BudgetExhaustedError("spent"), 402, "insufficient_quota"),
        (InvalidParamsError("not so", field="model_ref"), 400, "invalid_request_error"),
    ):
        services.error = error
        answer = post(ask, path, body)
        assert answer.status == status
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["error"]["code"] == error.code
        if status == 429:
            assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["param"] == "model"
    assert ask("GET", path).status == 405
    assert ask("GET", path).json()["error"]["code"] == "INVALID_PARAMS"
    assert post(ask, path, body | {"pad": "x" * 5000}).json()["error"]["code"] == "PAYLOAD_TOO_LARGE"
