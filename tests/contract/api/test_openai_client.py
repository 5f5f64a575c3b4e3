"""OpenAI's own client is the judge of what it is answered, on the mock: errors, retries, timeouts, leaving (API-2).

What it is answered by a model's engine is seen in `test_openai_on_llamacpp.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from llama_orch.core.settings import PoolSettings, QueueSettings

from .live_server import LiveServer, mock_settings

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    pools = [
        PoolSettings(id="m", engine="mock", model="mock", aliases=["mock-alias"]),
        PoolSettings(id="one", engine="mock", model="one", slots=1, queue=QueueSettings(capacity=1)),
    ]
    server = LiveServer(tmp_path_factory.mktemp("live"), mock_settings(pools=pools))
    yield server.start()
    server.stop()


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def test_a_completion_has_text_usage_and_the_name_of_its_task(client: openai.OpenAI, live: LiveServer) -> None:
    answer = client.chat.completions.with_raw_response.create(model="mock", messages=CHAT, seed=7)
    said = answer.parse()
    assert said.choices[0].message.content
    assert said.choices[0].finish_reason == "stop"
    assert said.usage is not None
    assert said.usage.completion_tokens == 16
    assert said.usage.total_tokens == said.usage.prompt_tokens + 16
    assert said.id == f"chatcmpl-{answer.headers['x-task-id']}"


def test_a_stream_says_the_same_as_the_completion_of_the_same_seed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=CHAT, seed=7)
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="mock", messages=CHAT, seed=7, stream=True)
    ]
    assert "".join(pieces) == whole.choices[0].message.content


def test_a_stream_ends_with_its_reason_and_the_usage_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="mock", messages=CHAT, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 5
    assert chunks[-1].choices == []


def test_max_completion_tokens_wins_over_max_tokens(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="mock", messages=CHAT, max_tokens=9, max_completion_tokens=3)
    assert said.usage is not None
    assert said.usage.completion_tokens == 3


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=CHAT, seed=7).choices[0].message.content
    assert whole
    stop = whole.split()[4]
    cut = client.chat.completions.create(model="mock", messages=CHAT, seed=7, stop=stop).choices[0].message.content
    assert cut is not None
    assert whole.startswith(cut)
    assert stop not in cut


def test_text_parts_are_taken(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    )
    assert said.choices[0].message.content


def test_an_unknown_model_is_named_with_the_nearest_one(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="mok", messages=CHAT)
    assert caught.value.code == "MODEL_NOT_FOUND"
    assert caught.value.param == "model"
    assert "mock" in caught.value.message


@pytest.mark.parametrize(
    "extra, param",
    [
        ({"n": 99}, "n"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"temperature": 99}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.image_url",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(client: openai.OpenAI, extra: dict[str, object], param: str) -> None:
    body = {"model": "mock", "messages": CHAT, **extra}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.code == "INVALID_PARAMS"
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_parameters_without_effect_are_named_in_a_header(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="mock", messages=CHAT, user="me", extra_body={"mirostat": 2, "temperature": 0.5}
    )
    assert answer.headers["x-ignored-parameters"] == "user, mirostat"


def test_closing_a_stream_cancels_its_task_within_a_moment(client: openai.OpenAI, live: LiveServer) -> None:
    stream = client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": "[[mock fault=silent:2]]"}], stream=True
    )
    seen = iter(stream)
    task_id = next(seen).id.removeprefix("chatcmpl-")
    next(seen)
    stream.close()
    tasks = live.services.journal.head.tasks
    until(lambda: task_id not in live.call(lambda: dict(tasks.live)), "the end of an abandoned task")
    info = client.get(f"{live.url}/v1/tasks/{task_id}", cast_to=dict[str, object])
    assert info["state"] == "cancelled"


def test_leaving_a_completion_that_is_awaited_cancels_its_task(live: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0, timeout=0.3) as impatient:
        with pytest.raises(openai.APITimeoutError):
            impatient.chat.completions.create(
                model="mock", messages=[{"role": "user", "content": "[[mock fault=silent]]"}]
            )
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of an abandoned task")


def test_a_failed_task_is_an_error_with_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="mock",
            messages=[{"role": "user", "content": "[[mock fault=refuse]]"}],
            extra_body={"recovery": "none"},
        )
    assert caught.value.status_code in {500, 502, 503}
    assert caught.value.code in {"WORKER_RESET", "INTERRUPTED", "REPLICA_EXHAUSTED"}


def test_a_task_that_fails_in_its_stream_raises_in_the_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="mock",
        messages=[{"role": "user", "content": "[[mock fault=cut:3]]"}],
        stream=True,
        extra_body={"recovery": "none"},
    )
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code


def test_models_and_aliases_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["mock", "mock-alias", "one"]


def test_an_alias_is_served_under_its_name(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="mock-alias", messages=CHAT)
    assert said.model == "mock-alias"


def test_one_model_is_told_and_a_missing_one_is_named(client: openai.OpenAI) -> None:
    assert client.models.retrieve("mock-alias").id == "mock-alias"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/mock")
    assert caught.value.code == "MODEL_NOT_FOUND"
    assert "'org/mock'" in caught.value.message


# --- what is said beside text ------------------------------------------------------------------------------------


def test_vectors_and_ranks_are_tasks_too(client: openai.OpenAI, live: LiveServer) -> None:
    raw = client.embeddings.with_raw_response.create(model="mock", input=["a", "b"])
    assert len(raw.parse().data) == 2
    ranked = httpx.post(f"{live.url}/v2/rerank", json={"model": "mock", "query": "a", "documents": ["b", "a"]})
    assert sorted(result["index"] for result in ranked.json()["results"]) == [0, 1]
    for answer, workload in ((raw.headers, "embedding"), (ranked.headers, "rerank")):
        info = client.get(f"{live.url}/v1/tasks/{answer['x-task-id']}", cast_to=dict[str, Any])
        assert (info["workload"], info["state"]) == (workload, "completed")


def test_a_prompt_that_fails_fails_the_request_and_leaves_the_others(client: openai.OpenAI, live: LiveServer) -> None:
    prompts = ["[[mock fault=silent]] first", "[[mock fault=cut:1]] second"]
    body: Any = {"model": "mock", "prompt": prompts, "extra_body": {"recovery": "none"}}
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**body)
    assert caught.value.code in {"WORKER_RESET", "INTERRUPTED", "REPLICA_EXHAUSTED"}
    with pytest.raises(openai.APIError):
        list(client.completions.create(**body, stream=True))
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of what was left")


def test_prompts_are_admitted_together_or_not_at_all(client: openai.OpenAI, live: LiveServer) -> None:
    prompts = [f"[[mock fault=silent]] {n}" for n in range(3)]  # one runs, one waits, for the third there is no room
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="one", prompt=prompts)
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of what was admitted in vain")


def test_who_leaves_a_stream_of_several_prompts_leaves_them_all(client: openai.OpenAI, live: LiveServer) -> None:
    prompts = [f"[[mock fault=silent:2]] {n}" for n in range(3)]
    stream = client.completions.create(model="mock", prompt=prompts, stream=True)
    seen = iter(stream)
    indexes = {next(seen).choices[0].index for _ in range(6)}
    assert indexes == {0, 1, 2}
    stream.close()
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of what nobody reads")
    assert live.call(lambda: live.services.readers.open) == 0


# --- retries -----------------------------------------------------------------------------------------------------


def requests_of(live: LiveServer, pool: str = "m") -> int:
    """How often the pool's engine was asked."""
    return live.engines[pool].machine.requests


def test_a_retry_with_its_key_waits_for_the_first_run(client: openai.OpenAI, live: LiveServer) -> None:
    before = requests_of(live)
    impatient = client.with_options(timeout=0.4, max_retries=10)
    raw = impatient.chat.completions.with_raw_response.create(
        model="mock",
        messages=[{"role": "user", "content": "[[mock prefill_ms=700]] be slow"}],
        extra_headers={"Idempotency-Key": "one-run"},
        extra_body={"cancel_on_disconnect": False},
    )
    assert raw.parse().choices[0].finish_reason == "stop"
    assert raw.retries_taken > 0
    assert requests_of(live) == before + 1


def test_a_retry_after_nobody_was_left_to_read_runs_again(client: openai.OpenAI, live: LiveServer) -> None:
    wanted: Any = {
        "model": "mock",
        "messages": [{"role": "user", "content": "[[mock fault=silent times=1]] be silent once"}],
        "extra_headers": {"Idempotency-Key": "left-alone"},
    }
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(**wanted)
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of an abandoned task")
    again = client.chat.completions.create(**wanted)
    assert again.choices[0].finish_reason == "stop"
    assert again.choices[0].message.content


class _Cutting:
    """Between client and server: the first answers are cut off before their first byte."""

    def __init__(self, url: str, cuts: int) -> None:
        self._target = url.removeprefix("http://").split(":")
        self._cuts = cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection((self._target[0], int(self._target[1]))) as server:
                request = b""
                while not request.endswith(b"}"):
                    request += client.recv(65536)
                server.sendall(request.replace(b"Connection: keep-alive", b"Connection: close"))
                answer = b"".join(iter(lambda: server.recv(65536), b""))
                if number >= self._cuts:
                    client.sendall(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def test_an_answer_that_was_lost_on_its_way_comes_with_the_retry_and_is_not_made_twice(live: LiveServer) -> None:
    before = requests_of(live)
    cutting = _Cutting(live.url, cuts=2)
    try:
        with openai.OpenAI(base_url=f"{cutting.url}/v1", api_key="x", max_retries=3) as client:
            raw = client.chat.completions.with_raw_response.create(
                model="mock", messages=CHAT, extra_headers={"Idempotency-Key": "lost"}
            )
    finally:
        cutting.close()
    assert raw.retries_taken == 2
    assert raw.parse().choices[0].finish_reason == "stop"
    assert requests_of(live) == before + 1


def test_a_full_queue_is_waited_for_as_the_server_says(client: openai.OpenAI, live: LiveServer) -> None:
    slow: list[ChatCompletionMessageParam] = [{"role": "user", "content": "[[mock prefill_ms=700]] slow"}]
    with contextlib.ExitStack() as stack:
        for _ in range(2):  # one runs, one waits
            stack.enter_context(client.chat.completions.create(model="one", messages=slow, stream=True))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="one", messages=CHAT)
        assert caught.value.code == "ADMISSION_REJECT"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        raw = client.with_options(max_retries=5).chat.completions.with_raw_response.create(model="one", messages=CHAT)
        assert raw.retries_taken > 0
        assert raw.parse().choices[0].finish_reason == "stop"


def test_what_a_retry_cannot_mend_is_not_retried(client: openai.OpenAI) -> None:
    seen: list[object] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [seen.append]})
    with openai.OpenAI(base_url=str(client.base_url), api_key="x", max_retries=3, http_client=http) as counting:
        with pytest.raises(openai.BadRequestError):
            counting.chat.completions.create(model="mock", messages=CHAT, n=99)
    assert len(seen) == 1


def test_a_key_that_was_used_for_something_else_is_a_conflict(client: openai.OpenAI) -> None:
    key = {"Idempotency-Key": "used"}
    client.chat.completions.create(model="mock", messages=CHAT, extra_headers=key)
    with pytest.raises(openai.ConflictError):
        client.chat.completions.create(model="mock", messages=CHAT, max_tokens=3, extra_headers=key)
    with pytest.raises(openai.ConflictError):
        client.completions.create(model="mock", prompt="say something", extra_headers=key)


def test_a_key_of_several_prompts_is_for_these_prompts(client: openai.OpenAI, live: LiveServer) -> None:
    key: Any = {"extra_headers": {"Idempotency-Key": "prompts"}}
    before = requests_of(live)
    first = client.completions.with_raw_response.create(model="mock", prompt=["a", "b"], **key)
    again = client.completions.with_raw_response.create(model="mock", prompt=["a", "b"], **key)
    assert again.headers["x-task-id"] == first.headers["x-task-id"]
    assert again.parse() == first.parse()
    assert requests_of(live) == before + 2
    for other in (["a", "b", "c"], ["a"], "a"):
        with pytest.raises(openai.ConflictError):
            client.completions.create(model="mock", prompt=other, **key)
    tasks = live.services.journal.head.tasks
    assert not live.call(lambda: dict(tasks.live))
    assert requests_of(live) == before + 2


# --- many readers --------------------------------------------------------------------------------------------------


def test_all_who_attach_are_told_the_same_to_the_last_byte(live: LiveServer) -> None:
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": "[[mock tokens=30 rate=60]] for all"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found: list[bytes] = []

    def read() -> None:
        headers = {"Idempotency-Key": "for-all"}
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body, headers=headers, timeout=30) as answer:
            lines = [line for line in answer.read().split(b"\n") if line.startswith(b"data:")]
            found.append(b"\n".join(lines))

    before = requests_of(live)
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads[:4]:
        thread.start()
    begun = int(time.time())
    until(lambda: int(time.time()) > begun, "another second: what is told must not depend on when it was asked for")
    for thread in threads[4:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    read()
    assert len(found) == 9
    assert len(set(found)) == 1
    assert requests_of(live) == before + 1


def test_the_last_readers_leaving_cancels_and_not_the_first(client: openai.OpenAI, live: LiveServer) -> None:
    wanted: Any = {
        "model": "mock",
        "messages": [{"role": "user", "content": "[[mock fault=silent:2]] two readers"}],
        "stream": True,
        "extra_headers": {"Idempotency-Key": "two-readers"},
    }
    first, second = client.chat.completions.create(**wanted), client.chat.completions.create(**wanted)
    task_id = next(iter(first)).id.removeprefix("chatcmpl-")
    assert next(iter(second)).id == f"chatcmpl-{task_id}"
    tasks = live.services.journal.head.tasks
    first.close()
    until(lambda: live.call(lambda: live.services.readers.open) == 1, "the first reader's leaving")
    assert task_id in live.call(lambda: dict(tasks.live))
    second.close()
    until(lambda: task_id not in live.call(lambda: dict(tasks.live)), "the end of an abandoned task")


# --- conversations, places in the queue -------------------------------------------------------------------------------


def test_a_session_that_is_open_is_joined_by_the_header_that_agents_send(
    client: openai.OpenAI, live: LiveServer
) -> None:
    session = "6a1d7c1e-8f5f-4d3a-9a51-2f6c5c7f4a10"
    body = {"extra_body": {"session_id": session, "session_turn_limit": 2}}
    client.chat.completions.create(model="mock", messages=CHAT, **body)  # type: ignore[call-overload]
    joined = {"extra_headers": {"x-litellm-session-id": session}}
    raw = client.chat.completions.with_raw_response.create(model="mock", messages=CHAT, **joined)  # type: ignore[call-overload]
    info = client.get(f"{live.url}/v1/tasks/{raw.headers['x-task-id']}", cast_to=dict[str, Any])
    assert info["session_id"] == session
    with pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(model="mock", messages=CHAT, **joined)  # type: ignore[call-overload]
    assert caught.value.code == "SESSION_TURNS_EXCEEDED"


def test_who_waits_is_told_his_place_in_comments(live: LiveServer) -> None:
    body = {"model": "one", "messages": [{"role": "user", "content": "[[mock prefill_ms=300]] x"}], "stream": True}
    url = f"{live.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=30) as first, httpx.stream("POST", url, json=body) as second:
        first.read()
        said = second.read().decode()
    comments = [line for line in said.split("\n") if line.startswith(":")]
    assert any(line.startswith(": queued position=0 predicted_start_ms=") for line in comments)
    assert said.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/models"]
)
def test_another_method_is_405_in_openais_shape(live: LiveServer, path: str) -> None:
    answer = httpx.put(f"{live.url}{path}", json={})
    assert answer.status_code == 405
    assert answer.headers["Allow"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
