"""What routes answer and ask of the services, over scripted services."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llama_orch.api.openapi import document, operations
from llama_orch.core.devices import GpuReading, HostSample, MemoryReading
from llama_orch.core.entries import batch_of
from llama_orch.core.errors import (
    BackpressureError,
    JournalUnavailableError,
    ModelNotFoundError,
    PoolUnreadyError,
    ResumeLostError,
    StoreRefusedError,
    StoreUnknownError,
)
from llama_orch.core.events.task import TaskEnded, TaskStarted
from llama_orch.core.journal.live import Segment
from llama_orch.core.services.gpus import view_of
from llama_orch.core.services.streams import Ended, Started
from llama_orch.core.services.tasks import TaskProblem
from llama_orch.core.types import Entry

from .fakes import TASK, Answer, FakeServices

Ask = Callable[..., Answer]
PROMPT = b'{"model_ref": "mock", "prompt": "x"}'
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "x"}]}
STARTED = Started(
    1, TaskStarted(task_id=TASK, attempt=1, pool_id="p", replica_id="r0", engine="e", engine_version="1", seed=4)
)
SAID = Segment(1, 0, 1, batch_of([Entry(text="he", ids=(1,)), Entry(text="llo", ids=(2,))]), {})
ENDED = Ended(
    1, 3, TaskEnded(task_id=TASK, outcome="completed", finish_reason="stop", entries=2, tokens_out=2, prompt_tokens=3)
)


def chat(**fields: Any) -> bytes:
    return json.dumps(CHAT | fields).encode()


def test_a_submission_passes_key_correlation_and_caller_on(ask: Ask, services: FakeServices) -> None:
    answer = ask("POST", "/v1/tasks", body=PROMPT, headers={"Idempotency-Key": "k", "X-Correlation-Id": "abc"})
    assert answer.status == 202
    assert answer.headers["location"] == f"/v1/tasks/{TASK}"
    request, caller, rest = services.asked[0][1]
    assert (request.model_ref, request.prompt) == ("mock", "x")
    assert (caller.owner, caller.identity) == ("local", "localhost")
    assert (rest["idempotency_key"], rest["correlation"], rest["api"]) == ("k", "abc", "tasks")
    assert rest.get("durable", True), "accepted before it was durable"


@pytest.mark.parametrize(
    "sent, correlation, request_id",
    [
        ({}, "made", "made"),
        ({"X-Correlation-Id": "abc"}, "abc", "abc"),
        ({"X-Request-Id": "def"}, "def", "def"),
        ({"X-Correlation-Id": "abc", "X-Request-Id": "def"}, "abc", "def"),
        ({"X-Correlation-Id": "a b"}, "made", "made"),
        ({"X-Correlation-Id": "\u00e9"}, "made", "made"),
        ({"X-Correlation-Id": "x" * 129}, "made", "made"),
        ({"X-Correlation-Id": ""}, "made", "made"),
        ({"X-Correlation-Id": '"><script>'}, "made", "made"),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/tasks?x=1"])
def test_ids_of_requests_are_taken_made_and_echoed(
    ask: Ask, sent: dict[str, str], correlation: str, request_id: str, path: str
) -> None:
    path, _, query = path.partition("?")
    answer = ask("GET", path, headers=sent, query=query)
    assert answer.headers["x-correlation-id"] == correlation
    assert answer.headers["x-request-id"] == request_id


def test_a_full_queue_says_how_long_to_wait_in_headers_and_body(ask: Ask, services: FakeServices) -> None:
    services.error = BackpressureError("full", retry_after_ms=1500, policy_label="drop-lru")
    answer = ask("POST", "/v1/tasks", body=PROMPT)
    assert answer.status == 429
    assert (answer.headers["retry-after"], answer.headers["x-backoff-ms"]) == ("2", "1500")
    said = answer.json()
    assert (said["code"], said["policy_label"], said["retriable"]) == ("ADMISSION_REJECT", "drop-lru", True)
    assert said["retry_after_ms"] == 1500


@pytest.mark.parametrize(
    "error, status",
    [
        (JournalUnavailableError("full", outcome_unknown=True), 503),
        (PoolUnreadyError("starting", pool_id="p", engine="e"), 503),
        (ModelNotFoundError("no", field="model_ref", got="x"), 404),
    ],
)
def test_errors_of_services_keep_code_status_and_details(
    ask: Ask, services: FakeServices, error: Any, status: int
) -> None:
    services.error = error
    native = ask("POST", "/v1/tasks", body=PROMPT)
    compat = ask("POST", "/v1/chat/completions", body=chat())
    assert native.status == compat.status == status
    assert native.json()["code"] == compat.json()["error"]["code"] == error.code
    for name in ("outcome_unknown", "pool_id", "engine"):
        if name in error.to_dict():
            assert native.json()[name] == compat.json()["error"][name]
    if status == 503:
        assert native.headers["retry-after"] == "1"


@pytest.mark.parametrize("error", [StoreRefusedError("locked"), StoreUnknownError("no such file")])
def test_a_database_that_cannot_be_read_now_is_no_defect(ask: Ask, services: FakeServices, error: Exception) -> None:
    services.error = error
    answer = ask("GET", f"/v1/tasks/{TASK}")
    assert (answer.status, answer.json()["code"], answer.json()["retriable"]) == (503, "JOURNAL_UNAVAILABLE", True)
    services.error, services.items = None, [[STARTED], error]
    streamed = ask("GET", f"/v1/tasks/{TASK}/stream")
    assert b'"code":"JOURNAL_UNAVAILABLE"' in streamed.body


def test_openai_names_its_own_parameter(ask: Ask, services: FakeServices) -> None:
    services.error = ModelNotFoundError("no", field="model_ref", got="x")
    assert ask("POST", "/v1/chat/completions", body=chat()).json()["error"]["param"] == "model"


def test_all_that_is_ready_goes_out_in_one_piece(ask: Ask, services: FakeServices) -> None:
    services.items = [[STARTED, SAID, SAID], [SAID], [ENDED]]
    answer = ask("GET", f"/v1/tasks/{TASK}/stream")
    assert answer.status == 200
    assert len(answer.pieces) == 3
    assert answer.pieces[0].count(b"event: token") == 4
    assert "content-length" not in answer.headers
    assert services.open == 0
    assert services.detached == [False]


def test_a_stream_begins_where_the_query_or_the_header_says(ask: Ask, services: FakeServices) -> None:
    for query, header, after in (
        ("", None, None),
        ("", "1.4", "1.4"),
        ("from=1.5", None, "1.5"),
        ("from=1.5", "1.4", "1.5"),
    ):
        ask("GET", f"/v1/tasks/{TASK}/stream", query=query, headers={"Last-Event-ID": header} if header else {})
        assert services.asked.pop()[1][1]["after"] == after


@pytest.mark.parametrize("query, period_ms", [("", 0), ("metrics=0", 0), ("metrics=1", 1_000)])
def test_metrics_frames_are_for_readers_who_ask(query: str, period_ms: int, ask: Ask, services: FakeServices) -> None:
    services.items = [[STARTED], [ENDED]]
    assert ask("GET", f"/v1/tasks/{TASK}/stream", query=query).status == 200
    assert services.asked[-1][1][1]["metrics_ms"] == period_ms


def test_gpus_are_told_with_what_is_not_known_and_why(ask: Ask, services: FakeServices) -> None:
    sample = HostSample(
        host="local",
        memory=MemoryReading(8, 3),
        gpus=[GpuReading(uuid="GPU-1", total_bytes=9, trouble="gpu-lost", detail="error 15")],
        trouble="no-answer",
    )
    services.gpus.hosts = [view_of(sample, {"GPU-1": ["p"]}, age_ms=7_000)]
    (host,) = ask("GET", "/v1/gpus").json()["hosts"]
    assert (host["age_ms"], host["trouble"]["cause"]) == (7_000, "no-answer")
    assert host["memory"] == {"total_bytes": 8, "available_bytes": 3, "limit_bytes": 0}
    (gpu,) = host["gpus"]
    assert (gpu["total_bytes"], gpu["used_bytes"], gpu["processes"], gpu["pools"]) == (9, None, None, ["p"])
    assert gpu["trouble"]["message"].endswith("(error 15)")
    assert gpu["trouble"]["advice"]


def test_a_lost_frame_is_409_before_the_stream_begins(ask: Ask, services: FakeServices) -> None:
    services.error = ResumeLostError("gone", last_id_held="1.2")
    answer = ask("GET", f"/v1/tasks/{TASK}/stream", headers={"Last-Event-ID": "1.9"})
    assert answer.status == 409
    assert answer.json()["last_id_held"] == "1.2"
    assert services.open == 0


def test_a_journal_that_is_lost_breaks_the_stream_off_without_an_id(ask: Ask, services: FakeServices) -> None:
    services.items = [[STARTED, SAID], JournalUnavailableError("gone", retry_after_ms=10, outcome_unknown=True)]
    answer = ask("GET", f"/v1/tasks/{TASK}/stream")
    last = answer.body.decode().split("\n\n")[-2]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["code"] == "JOURNAL_UNAVAILABLE"


def test_a_defect_in_a_stream_tells_nothing_of_itself(ask: Ask, services: FakeServices) -> None:
    services.items = [[STARTED], RuntimeError("hunter2")]
    answer = ask("GET", f"/v1/tasks/{TASK}/stream")
    assert b"INTERNAL" in answer.body
    assert b"hunter2" not in answer.body
    assert services.open == 0


@pytest.mark.parametrize("leave_after", [0, 1])
def test_a_reader_that_leaves_is_heard_while_the_stream_is_silent(
    ask: Ask, services: FakeServices, leave_after: int
) -> None:
    services.items = [[STARTED]] if leave_after else []
    services.endless = True
    ask("GET", f"/v1/tasks/{TASK}/stream", leave_after=leave_after)
    assert services.detached == [True]
    assert services.open == 0


@pytest.mark.parametrize("path, body", [("/v1/chat/completions", chat()), (f"/v1/tasks/{TASK}", b"")])
def test_a_client_that_leaves_while_it_waits_is_heard(ask: Ask, services: FakeServices, path: str, body: bytes) -> None:
    services.endless = True
    answer = ask("POST" if body else "GET", path, body=body, query="" if body else "wait=600000", leave_after=0)
    assert answer.status == 0, "nobody was there to be answered"
    assert services.detached == [True]
    assert services.open == 0


def test_a_completion_is_the_task_in_openais_words(ask: Ask, services: FakeServices) -> None:
    answer = ask("POST", "/v1/chat/completions", body=chat(user="me", metadata={}))
    assert answer.status == 200
    assert answer.headers["x-task-id"] == TASK
    assert answer.headers["x-ignored-parameters"] == "user, metadata"
    assert answer.json() == {
        "id": f"chatcmpl-{TASK}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    "given, task",
    [
        ({}, {"workload": "chat", "priority": "interactive", "stop": [], "max_tokens": None}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"stop": None}, {"stop": []}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"seed": 3}, {"seed": 3}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 2**32 - 1}, {"seed": 0}),
        ({"seed": 2**40 + 5}, {"seed": 5}),
        ({"priority": 1}, {"priority": "batch"}),
        ({"priority": 0}, {"priority": "interactive"}),
        ({"priority": "batch"}, {"priority": "batch"}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1}, {"temperature": 0.5, "top_p": 0.9, "top_k": 4}),
        ({"response_format": {"type": "text"}}, {"json_schema": None}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "string"}}}},
            {"json_schema": {"type": "string"}},
        ),
        ({"n": 1, "tools": [], "logprobs": False}, {}),
        ({"session_id": TASK, "deadline_ms": 5, "recovery": "strict"}, {"session_id": TASK, "deadline_ms": 5}),
    ],
)
def test_parameters_of_a_chat_become_those_of_its_task(
    ask: Ask, services: FakeServices, given: dict[str, Any], task: dict[str, Any]
) -> None:
    answer = ask("POST", "/v1/chat/completions", body=chat(**given))
    assert answer.status == 200
    assert "x-ignored-parameters" not in answer.headers
    request = services.asked[0][1][0]
    assert {name: getattr(request, name) for name in task} == task


def test_what_clients_add_to_messages_for_themselves_is_dropped(ask: Ask, services: FakeServices) -> None:
    message = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None}
    assert ask("POST", "/v1/chat/completions", body=chat(messages=[message])).status == 200
    assert services.asked[0][1][0].messages[0].content == "x"


def test_a_failed_task_answers_with_its_code(ask: Ask, services: FakeServices) -> None:
    for code, retriable, status in (
        ("WORKER_RESET", True, 503),
        ("CONTEXT_EXCEEDED", False, 400),
        ("QUEUE_FULL_DROP_LRU", True, 429),
        ("INTERNAL", False, 500),
    ):
        problem = TaskProblem(code, "why", retriable)
        services.info = type(services.info)(
            task_id=TASK, state="failed", model_ref="m", owner="local", priority="batch", error=problem
        )
        answer = ask("POST", "/v1/chat/completions", body=chat())
        assert answer.status == status
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["task_id"] == TASK


def test_a_chat_streams_chunks_and_is_done(ask: Ask, services: FakeServices) -> None:
    services.items = [[STARTED, SAID], [ENDED]]
    answer = ask("POST", "/v1/chat/completions", body=chat(stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-task-id"] == TASK
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b'"usage":{"prompt_tokens":3' in answer.body
    assert services.detached == [False]


def test_not_ready_is_503_with_the_reason(ask: Ask, services: FakeServices) -> None:
    assert ask("GET", "/readyz").status == 200
    services.journal.status = "refusing"
    answer = ask("GET", "/readyz")
    assert answer.status == 503
    assert answer.json() == {"ready": False, "journal": "refusing", "pools": {"m": "ready"}}
    assert ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    "pools, status",
    [
        ([{"on_demand": True, "cause": "unloaded"}], 200),
        ([{"on_demand": True, "cause": "unloaded", "draining": True}], 503),
        ([{"on_demand": True, "cause": "bad-model"}], 503),
        ([{"on_demand": True, "cause": "unloaded"}, {"cause": "loading"}], 503),
        ([], 503),
    ],
)
def test_what_is_loaded_when_a_task_asks_for_it_is_ready(
    ask: Ask, services: FakeServices, pools: list[dict[str, Any]], status: int
) -> None:
    (plain,) = services.views()
    services.pool_views = [msgspec.structs.replace(plain, ready=False, **fields) for fields in pools]
    assert ask("GET", "/readyz").status == status


def test_the_served_description_is_the_generated_one(ask: Ask) -> None:
    assert ask("GET", "/openapi.json").json() == document("1.2.3")


def test_every_method_of_every_resource_is_declared_and_described() -> None:
    for kind, method, op in operations():
        assert op.summary.endswith("."), kind.path
        assert op.description, f"{method} {kind.path} has no docstring"
    described = document("1.2.3")
    names = [op["operationId"] for path in described["paths"].values() for op in path.values()]
    assert len(set(names)) == len(names)


def test_every_reference_in_the_description_leads_somewhere() -> None:
    described = document("1.2.3")
    text = json.dumps(described)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in described["components"]["schemas"]


def test_a_drain_passes_deadline_and_reason_on(ask: Ask, services: FakeServices) -> None:
    answer = ask("POST", "/v1/pools/m/drain", body=b'{"deadline_ms": 500, "reason": "new card"}')
    assert (answer.status, answer.json()) == (202, {"pool_id": "m", "draining": True, "active_leases": 0})
    assert services.asked == [("drain", ("m", {"deadline_ms": 500, "reason": "new card", "correlation": "made"}))]
    assert ask("POST", "/v1/pools/m/undrain").json()["draining"] is False


@pytest.mark.parametrize("told, asked", [("auto", None), ("new-first", "new-first"), ("drain", "drain")])
def test_a_reload_passes_model_and_handover_on(ask: Ask, services: FakeServices, told: str, asked: str | None) -> None:
    body = json.dumps({"new_model_ref": "hf:o/r/m.gguf", "handover": told, "deadline_ms": 7}).encode()
    answer = ask("POST", "/v1/pools/m/reload", body=body)
    assert answer.status == 202
    assert answer.json() == {"pool_id": "m", "new_model_ref": "hf:o/r/m.gguf", "handover": asked or "new-first"}
    rest = {"handover": asked, "deadline_ms": 7, "correlation": "made"}
    assert services.asked == [("reload", ("m", "hf:o/r/m.gguf", rest))]
