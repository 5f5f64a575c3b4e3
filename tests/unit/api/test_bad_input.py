"""Bad input to every route: an error that names field and remedy, never a defect, never a stack trace (ADM-2, ADM-8)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_orch.api.openapi import operations
from llama_orch.api.operations import Operation, Resource

from .fakes import TASK, Answer, FakeServices

Ask = Callable[..., Answer]
OPERATIONS = operations()
IDS = [f"{method} {kind.path}" for kind, method, _ in OPERATIONS]
#: status of the ids that the fakes know
KNOWN = {
    "task_id": TASK,
    "pool_id": "m",
    "session_id": TASK,
    "model_id": "m",
    "model_ref": "mock",
    "key_id": "key-1",
    "response_id": f"resp_{TASK.replace('-', '')}",
    "scope": "key",
    "subject": "key-1",
}


#: bodies without which a route does not look at the id
FITTING = {
    "/v1/pools/{pool_id}/drain": b"{}",
    "/v1/pools/{pool_id}/reload": b'{"new_model_ref": "m"}',
    "/v1/keys/{key_id}": b"{}",
    "/v1/budgets/{scope}/{subject}": b"{}",
    "/v1/keys/{key_id}/rotate": b"{}",
}


def path_of(kind: type[Resource], values: dict[str, str] = KNOWN) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], kind.path)


def problem_of(answer: Answer) -> dict[str, Any]:
    """The error in the answer, checked for what every error has."""
    assert answer.headers["content-type"] == "application/json"
    assert b"Traceback" not in answer.body
    assert b'File "' not in answer.body
    said = answer.json()
    problem: dict[str, Any] = said.get("error", said)
    assert problem["code"]
    assert problem["message"]
    assert problem["remedy"]
    assert problem["retriable"] in {True, False}
    assert problem["correlation_id"] == "made"
    return problem


@pytest.mark.parametrize("kind, method, op", OPERATIONS, ids=IDS)
def test_an_unknown_parameter_is_named(ask: Ask, kind: type[Resource], method: str, op: Operation) -> None:
    answer = ask(method.upper(), path_of(kind), query="sortt=1")
    if op.query is None:
        assert answer.status != 500
        return
    problem = problem_of(answer)
    assert answer.status == 400
    assert (problem.get("field") or problem.get("param")) == "sortt"


@pytest.mark.parametrize("kind, method, op", OPERATIONS, ids=IDS)
@pytest.mark.parametrize("query", ["%ff=1", "%zz", "=", "&&&=", "a=1&a=2", "limit=1&limit=2", "x" * 9000, "a=%00"])
def test_no_query_string_breaks_a_route(ask: Ask, kind: type[Resource], method: str, op: Operation, query: str) -> None:
    answer = ask(method.upper(), path_of(kind), query=query)
    assert answer.status < 500
    if answer.status >= 400:
        problem_of(answer)


@pytest.mark.parametrize("kind, method", [(k, m) for k, m, op in OPERATIONS if op.path])
@pytest.mark.parametrize("value", ["nothing", "%2e%2e%2f", "a" * 5000, "\u00e9", "'; drop table frames", "\u2028", "-"])
def test_ids_that_name_nothing_are_404(ask: Ask, kind: type[Resource], method: str, value: str) -> None:
    answer = ask(method.upper(), path_of(kind, dict.fromkeys(KNOWN, value)), body=FITTING.get(kind.path, b""))
    if (kind.path, method) == ("/v1/sessions/{session_id}", "delete"):
        assert answer.status == 204  # it is gone, which is what was asked for
        return
    assert answer.status == 404
    assert problem_of(answer)["code"] in {"NOT_FOUND", "MODEL_NOT_FOUND"}


@pytest.mark.parametrize("kind, method, op", OPERATIONS, ids=IDS)
def test_a_method_that_is_not_served_is_405_with_those_that_are(
    ask: Ask, kind: type[Resource], method: str, op: Operation
) -> None:
    answer = ask("TRACE", path_of(kind))
    assert answer.status == 405
    assert method.upper() in answer.headers["allow"]
    problem = problem_of(answer)
    assert (problem.get("field") or problem.get("param")) == "method"


BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"model_ref": "\xff"}',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep": b'{"json_schema":' * 1000 + b"1" + b"}" * 1000,
    "deeper": b"[" * 4000,
    "NaN": b'{"model_ref": "m", "model": "m", "prompt": "x", "temperature": NaN}',
    "infinite": b'{"model_ref": "m", "model": "m", "prompt": "x", "temperature": 1e999}',
    "Infinity": b'{"model_ref": "m", "model": "m", "prompt": "x", "temperature": -Infinity}',
    "lone surrogate": b'{"model_ref": "m", "prompt": "\\ud800", "model": "m", "messages": []}',
    "lone surrogate inside": b'{"model_ref": "m", "prompt": "a\\udc00b"}',
    "raw surrogate": b'{"model_ref": "m", "prompt": "\xed\xa0\x80"}',
    "a name that is no text": b'{"model_ref": "m", "prompt": "x", "model": "m", '
    b'"messages": [{"role": "user", "content": "x"}], "a\xc0": 1}',
    "control character": b'{"model_ref": "m\x00"}',
    "huge integer": b'{"model_ref": "m", "model": "m", "seed": ' + b"9" * 400 + b"}",
    "trailing": b'{"model_ref": "m"} {}',
    "too large": b'{"model_ref": "' + b"m" * 5000 + b'"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(
    "method, path", [(method, kind.path) for kind, method, op in OPERATIONS if op.body is not None]
)
def test_a_body_that_is_none_is_refused_and_reaches_no_service(
    ask: Ask, services: FakeServices, method: str, path: str, body: bytes
) -> None:
    answer = ask(method.upper(), path, body=body)
    assert answer.status == (413 if len(body) > 4096 else 400)
    problem_of(answer)
    assert services.asked == []


def test_a_body_without_length_is_cut_off_at_the_limit(ask: Ask, services: FakeServices) -> None:
    answer = ask("POST", "/v1/tasks", chunks=[b'{"model_ref":"', *[b"m" * 1000] * 10, b'"}'])
    assert answer.status == 413
    assert problem_of(answer)["limit_bytes"] == 4096


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _with_tools(tools: list[Any], choice: Any = None) -> dict[str, Any]:
    message = {"role": "user", "content": "x"}
    return {"model_ref": "m", "workload": "chat", "messages": [message], "tools": tools, "tool_choice": choice}


TASK_BODIES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "model_ref", "missing"),
    ({"model_ref": 1}, "model_ref", "expected a text"),
    ({"model_ref": ""}, "model_ref", "length >= 1"),
    ({"model_ref": "m", "promt": "x"}, "promt", "did you mean 'prompt'"),
    ({"model_ref": "m"}, "prompt", "missing"),
    ({"model_ref": "m", "prompt": None}, "prompt", "missing"),
    ({"model_ref": "m", "prompt": 5}, "prompt", "a text"),
    ({"model_ref": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "messages", "prompt alone"),
    ({"model_ref": "m", "prompt": "x", "inputs": ["x"]}, "inputs", "prompt alone"),
    ({"model_ref": "m", "workload": "chat", "prompt": "x"}, "messages", "missing"),
    ({"model_ref": "m", "workload": "chat", "messages": []}, "messages", "length >= 1"),
    ({"model_ref": "m", "workload": "embedding", "prompt": "x"}, "inputs", "not prompt"),
    ({"model_ref": "m", "workload": "embedding", "inputs": []}, "inputs", "length >= 1"),
    ({"model_ref": "m", "workload": "embedding", "inputs": ["x"], "n": 2}, "n", "does not take it"),
    ({"model_ref": "m", "workload": "rerank", "inputs": ["x"]}, "query", "missing"),
    ({"model_ref": "m", "prompt": "x", "prompt_ids": [1]}, "prompt_ids", "prompt alone"),
    ({"model_ref": "m", "prompt_ids": [-1]}, "prompt_ids.0", ">= 0"),
    ({"model_ref": "m", "prompt": "x", "query": "y"}, "query", "does not take it"),
    ({"model_ref": "m", "prompt": "x", "tools": [{}]}, "tools", "does not take it"),
    ({"model_ref": "m", "prompt": "x", "logit_bias": {"hi": 1}}, "logit_bias", "token ids"),
    ({"model_ref": "m", "prompt": "x", "n": 17}, "n", "<= 16"),
    ({"model_ref": "m", "workload": "chatt", "prompt": "x"}, "workload", "did you mean 'chat'"),
    ({"model_ref": "m", "prompt": "x", "priority": "high"}, "priority", "one of batch, interactive"),
    ({"model_ref": "m", "prompt": "x", "temperature": "hot"}, "temperature", "a number"),
    ({"model_ref": "m", "prompt": "x", "temperature": -1}, "temperature", ">= 0"),
    ({"model_ref": "m", "prompt": "x", "max_tokens": 0}, "max_tokens", ">= 1"),
    ({"model_ref": "m", "prompt": "x", "max_tokens": 1.5}, "max_tokens", "an integer"),
    ({"model_ref": "m", "prompt": "x", "max_tokens": True}, "max_tokens", "an integer"),
    ({"model_ref": "m", "prompt": "x", "seed": -1}, "seed", ">= 0"),
    ({"model_ref": "m", "prompt": "x", "task_id": "no"}, "task_id", "expected a UUID"),
    ({"model_ref": "m", "prompt": "x", "stop": ["a", 5]}, "stop.1", "a text"),
    ({"model_ref": "m", "prompt": "x", "stop": [""]}, "stop.0", "length >= 1"),
    ({"model_ref": "m", "prompt": "x", "deadline_ms": 0}, "deadline_ms", ">= 1"),
    ({"model_ref": "m", "prompt": "x", "placement": {"mode": "pinn"}}, "placement.mode", "did you mean 'pin'"),
    ({"model_ref": "m", "prompt": "x", "placement": {"pin_pool": "a"}}, "placement.pin_pool", "pin_pool_id"),
    ({"model_ref": "m", "prompt": "x", "grammar": "g", "json_schema": {}}, "json_schema", "exclude"),
    (
        {"model_ref": "m", "workload": "chat", "messages": [{"role": "usr", "content": "x"}]},
        "messages.0.role",
        "did you mean 'user'",
    ),
    ({"model_ref": "m", "workload": "chat", "messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    (
        {"model_ref": "m", "workload": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.image_url",
        "data: URL",
    ),
    (
        {"model_ref": "m", "workload": "chat", "messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages.0.content.0.type",
        "missing",
    ),
    (
        {"model_ref": "m", "workload": "chat", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages.0.content.0.text",
        "missing",
    ),
    (_with_tools([{"type": "custom"}]), "tools.0.type", "only functions"),
    (_with_tools([{"type": "function"}]), "tools.0.function", "is missing"),
    (_with_tools([{"type": "function", "function": {"name": ""}}]), "tools.0.function.name", "1 to 256"),
    (
        _with_tools([{"type": "function", "function": {"name": "f", "parameters": []}}]),
        "tools.0.function.parameters",
        "JSON schema",
    ),
    (_with_tools([], "required"), "tool_choice", "no tools"),
    (_with_tools([TOOL], "some"), "tool_choice", "'some'"),
    (_with_tools([TOOL], {"type": "function", "function": {"name": "g"}}), "tool_choice", "'g'"),
    (
        {
            "model_ref": "m",
            "workload": "chat",
            "messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}],
        },
        "messages.0.tool_calls",
        "only an assistant",
    ),
    (
        {"model_ref": "m", "workload": "chat", "messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "messages.0.tool_calls.0",
        "a function's name",
    ),
]


@pytest.mark.parametrize("body, field, hint", TASK_BODIES, ids=lambda v: v if isinstance(v, str) else None)
def test_what_is_wrong_with_a_task_is_named(
    ask: Ask, services: FakeServices, body: dict[str, Any], field: str, hint: str
) -> None:
    answer = ask("POST", "/v1/tasks", body=json.dumps(body).encode())
    problem = problem_of(answer)
    assert answer.status == 400
    assert problem["code"] == "INVALID_PARAMS"
    assert problem["field"] == field
    assert hint in problem["message"]
    assert services.asked == []


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb", "\x7f"])
def test_keys_that_are_none_are_refused(ask: Ask, services: FakeServices, key: str) -> None:
    body = b'{"model_ref": "m", "prompt": "x"}'
    answer = ask("POST", "/v1/tasks", body=body, headers={"Idempotency-Key": key})
    assert answer.status == 400
    assert problem_of(answer)["field"] == "Idempotency-Key"
    assert services.asked == []


def test_a_defect_tells_nothing_but_where_to_look(ask: Ask, services: FakeServices) -> None:
    services.error = RuntimeError("the password is hunter2")
    answer = ask("GET", f"/v1/tasks/{TASK}")
    problem = problem_of(answer)
    assert answer.status == 500
    assert problem["code"] == "INTERNAL"
    assert "hunter2" not in answer.body.decode()
    assert "made" in problem["remedy"]


def test_a_route_that_does_not_exist_names_the_nearest(ask: Ask) -> None:
    answer = ask("GET", "/v1/task")
    assert answer.status == 404
    assert "/v1/tasks" in problem_of(answer)["message"]


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
_NAMES = sorted({field.encode_name for _, _, op in OPERATIONS if op.body for field in msgspec.structs.fields(op.body)})


@given(st.dictionaries(st.sampled_from(_NAMES), json_values, max_size=6), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_object_is_a_defect(ask: Ask, fields: dict[str, Any], with_text: bool) -> None:
    texts = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]} if with_text else {}
    body = json.dumps({"model_ref": "mock", "model": "mock", **texts, **fields}, allow_nan=True).encode()
    for path in ("/v1/tasks", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize"):
        answer = ask("POST", path, body=body)
        assert answer.status in {200, 202, 400, 404, 413}  # 404: of a model of another name
        if answer.status >= 400:
            problem_of(answer)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_are_a_defect(ask: Ask, body: bytes) -> None:
    for path in ("/v1/tasks", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize"):
        answer = ask("POST", path, body=body)
        assert answer.status == 400
        problem_of(answer)


def test_numbers_of_a_schema_must_be_finite(ask: Ask) -> None:
    body = json.dumps({"model_ref": "m", "prompt": "x", "json_schema": {"maximum": math.inf}}).encode()
    assert ask("POST", "/v1/tasks", body=body).status == 400


@pytest.mark.parametrize("depth", [90, 110, 300, 600, 900, 950, 990, 1010])
@pytest.mark.parametrize("opened, closed", [('{"a":', "}"), ("[", "]")])
def test_no_depth_of_nesting_is_a_defect(
    ask: Ask, services: FakeServices, depth: int, opened: str, closed: str
) -> None:
    deep = opened * depth + "1" + closed * depth
    part = f'{{"type":"text","text":"x","more":{deep}}}'
    for path, body in (
        ("/v1/tasks", deep),
        ("/v1/tasks", f'{{"model_ref":"m","prompt":"x","json_schema":{{"a":{deep}}}}}'),
        ("/v1/tasks", f'{{"model_ref":"m","workload":"chat","messages":[{{"role":"user","content":[{part}]}}]}}'),
        ("/v1/tasks", f'{{"model_ref":"m","prompt":{deep}}}'),
        ("/v1/chat/completions", f'{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}'),
        ("/v1/chat/completions", f'{{"model":"m","messages":[{{"role":"user","content":"x"}}],"metadata":{deep}}}'),
        ("/v1/chat/completions", f'{{"model":"m","messages":[{{"role":"user","content":"x"}}],"tools":{deep}}}'),
    ):
        answer = ask("POST", path, body=body.encode())
        assert answer.status in {200, 202, 400, 413}
        if answer.status >= 400:
            problem_of(answer)
