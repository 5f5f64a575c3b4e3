"""Submit, follow, resume, cancel, wait: /v1/tasks over a real connection."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from llama_orch.core.settings import CapabilitySettings, PoolSettings, QueueSettings, StreamSettings

from .live_server import LiveServer

Frames = list[tuple[str, str, dict[str, Any]]]


def frames_of(text: str) -> Frames:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return found


def submit(http: httpx.Client, prompt: str = "hello", **fields: Any) -> str:
    answer = http.post("/v1/tasks", json={"model_ref": "mock", "prompt": prompt, **fields})
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def stream_of(http: httpx.Client, task_id: str, **kwargs: Any) -> Frames:
    answer = http.get(f"/v1/tasks/{task_id}/stream", **kwargs)
    assert answer.status_code == 200, answer.text
    return frames_of(answer.text)


def test_a_submission_answers_place_prediction_and_location(http: httpx.Client) -> None:
    answer = http.post("/v1/tasks", json={"model_ref": "mock", "prompt": "x"})
    said = answer.json()
    assert answer.headers["location"] == f"/v1/tasks/{said['task_id']}"
    assert said["queue_position"] == 0
    assert said["predicted_start_ms_p10"] <= said["predicted_start_ms"] <= said["predicted_start_ms_p90"]
    assert said["attached"] is False


def test_a_stream_has_started_every_token_and_one_end(http: httpx.Client) -> None:
    frames = stream_of(http, submit(http, max_tokens=9, seed=5))
    assert [name for name, _, _ in frames] == ["started", *["token"] * 9, "end"]
    assert frames[0][2]["seed"] == 5
    assert frames[0][2]["pool_id"] == "m"
    assert [data["i"] for name, _, data in frames if name == "token"] == list(range(9))
    assert frames[-1][2]["finish_reason"] == "length"
    assert frames[-1][2]["usage"]["completion_tokens"] == 9


def test_stream_headers_keep_proxies_from_buffering(http: httpx.Client) -> None:
    answer = http.get(f"/v1/tasks/{submit(http)}/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


def test_a_stream_goes_on_after_each_of_its_ids_without_gap_or_repetition(http: httpx.Client) -> None:
    task_id = submit(http, max_tokens=6)
    whole = stream_of(http, task_id)
    for at, (_, frame_id, _) in enumerate(whole):
        by_header = stream_of(http, task_id, headers={"Last-Event-ID": frame_id})
        by_query = stream_of(http, task_id, params={"from": frame_id})
        assert by_header == by_query == whole[at + 1 :]


def test_an_id_that_the_journal_does_not_hold_is_lost_and_told(http: httpx.Client) -> None:
    task_id = submit(http, max_tokens=3)
    (second,) = [frame_id for _, frame_id, _ in stream_of(http, task_id) if frame_id.endswith(".2")]
    answer = http.get(f"/v1/tasks/{task_id}/stream", headers={"Last-Event-ID": "9.2"})
    assert answer.status_code == 409
    assert answer.json()["code"] == "RESUME_LOST"
    assert answer.json()["last_id_held"] == second


@pytest.mark.parametrize("wrong", ["x", "1", "1.x", "-1.2", "1.2.3", "1." + "9" * 50])
def test_an_id_that_is_none_is_refused_by_name(http: httpx.Client, wrong: str) -> None:
    answer = http.get(f"/v1/tasks/{submit(http)}/stream", headers={"Last-Event-ID": wrong})
    assert answer.status_code == 400
    assert answer.json()["field"] == "Last-Event-ID"


def test_a_failed_task_ends_with_one_error_frame_that_has_an_id(http: httpx.Client) -> None:
    frames = stream_of(http, submit(http, "[[mock fault=cut:3]]", recovery="none"))
    name, frame_id, data = frames[-1]
    assert name == "error"
    assert frame_id
    assert data["code"] in {"WORKER_RESET", "INTERRUPTED"}
    assert data["engine"] == "mock"
    assert [n for n, _, _ in frames].count("error") == 1


def test_cancel_is_idempotent_and_the_stream_ends_with_it(http: httpx.Client) -> None:
    task_id = submit(http, "[[mock fault=silent:2]]")
    read: list[Frames] = []
    reader = threading.Thread(target=lambda: read.append(stream_of(http, task_id)))
    reader.start()
    until(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "running", "the start")
    for _ in range(2):
        answer = http.post(f"/v1/tasks/{task_id}/cancel", headers={"X-Correlation-Id": "mine"})
        assert answer.status_code == 204
        assert answer.headers["x-correlation-id"] == "mine"
        assert answer.content == b""
    reader.join(20)
    assert read[0][-1][0] == "end"
    assert read[0][-1][2]["finish_reason"] == "cancelled"


def test_cancel_of_an_unknown_task_is_404(http: httpx.Client) -> None:
    answer = http.post(f"/v1/tasks/{uuid.uuid4()}/cancel")
    assert answer.status_code == 404
    assert answer.json()["code"] == "NOT_FOUND"


def test_waiting_answers_with_the_result(http: httpx.Client) -> None:
    info = http.get(f"/v1/tasks/{submit(http)}", params={"wait": 20_000}).json()
    assert info["state"] == "completed"
    assert info["text"]


def test_waiting_too_short_answers_with_the_state(http: httpx.Client) -> None:
    task_id = submit(http, "[[mock fault=silent]]")
    info = http.get(f"/v1/tasks/{task_id}", params={"wait": 50}).json()
    assert info["state"] in {"placed", "running"}
    assert http.post(f"/v1/tasks/{task_id}/cancel").status_code == 204


def test_a_key_attaches_to_its_task_and_refuses_another_body(http: httpx.Client) -> None:
    body = {"model_ref": "mock", "prompt": "x"}
    first = http.post("/v1/tasks", json=body, headers={"Idempotency-Key": "k"}).json()
    # The same body, written in another order.
    again = http.post("/v1/tasks", json=dict(reversed(body.items())), headers={"Idempotency-Key": "k"}).json()
    assert again["task_id"] == first["task_id"]
    assert again["attached"] is True
    other = http.post("/v1/tasks", json={**body, "prompt": "y"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 409
    assert other.json()["code"] == "CONFLICT"


def test_fifty_racing_duplicates_make_one_engine_call(http: httpx.Client, live: LiveServer) -> None:
    said: list[dict[str, Any]] = []
    together = threading.Barrier(50)

    def send() -> None:
        together.wait(20)
        answer = httpx.post(
            f"{live.url}/v1/tasks",
            json={"model_ref": "mock", "prompt": "[[mock rate=50 tokens=20]]"},
            headers={"Idempotency-Key": "k"},
            timeout=30,
        )
        said.append(answer.json())

    threads = [threading.Thread(target=send) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({one["task_id"] for one in said}) == 1
    assert [one["attached"] for one in said].count(False) == 1
    info = http.get(f"/v1/tasks/{said[0]['task_id']}", params={"wait": 20_000}).json()
    assert info["state"] == "completed"
    assert live.engines["m"].machine.requests == 1


def test_a_task_that_failed_retriably_may_run_again_under_its_key(http: httpx.Client) -> None:
    body = {"model_ref": "mock", "prompt": "[[mock fault=cut:2 times=1]]", "recovery": "none"}
    ids = []
    info: dict[str, Any] = {}
    for _ in range(2):
        answer = http.post("/v1/tasks", json=body, headers={"Idempotency-Key": "k"})
        ids.append(answer.json()["task_id"])
        info = http.get(f"/v1/tasks/{ids[-1]}", params={"wait": 20_000}).json()
    assert ids[0] != ids[1]
    assert info["state"] == "completed"


def test_a_task_goes_on_when_its_reader_leaves(http: httpx.Client, live: LiveServer) -> None:
    task_id = submit(http, "[[mock rate=200 tokens=40]]")
    with http.stream("GET", f"/v1/tasks/{task_id}/stream") as answer:
        next(answer.iter_bytes())
    assert http.get(f"/v1/tasks/{task_id}", params={"wait": 20_000}).json()["state"] == "completed"


def test_a_task_that_asked_for_it_is_cancelled_when_its_last_reader_leaves(http: httpx.Client) -> None:
    task_id = submit(http, "[[mock fault=silent:2]]", cancel_on_disconnect=True)
    with http.stream("GET", f"/v1/tasks/{task_id}/stream") as one:
        first = one.iter_bytes()
        next(first)
        with http.stream("GET", f"/v1/tasks/{task_id}/stream") as two:
            next(two.iter_bytes())
        assert http.get(f"/v1/tasks/{task_id}", params={"wait": 100}).json()["state"] == "running"
    # Who waits for a task counts as its reader, so nobody waits here.
    until(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] != "running", "the task ends")
    assert http.get(f"/v1/tasks/{task_id}").json()["state"] == "cancelled"


def test_a_silent_stream_has_heartbeats(make_server: Callable[..., LiveServer]) -> None:
    server = make_server(streams=StreamSettings(heartbeat_ms=100))
    with httpx.Client(base_url=server.url, timeout=20) as http:
        task_id = submit(http, "[[mock fault=silent]]")
        with http.stream("GET", f"/v1/tasks/{task_id}/stream") as answer:
            lines: Iterator[str] = answer.iter_lines()
            assert next(line for line in lines if line.startswith(":")) == ": hb"


def test_the_head_of_a_stream_leaves_before_its_first_frame(http: httpx.Client) -> None:
    task_id = submit(http, "[[mock fault=silent]]")
    with http.stream("GET", f"/v1/tasks/{task_id}/stream", timeout=5) as answer:
        assert answer.status_code == 200
    assert http.post(f"/v1/tasks/{task_id}/cancel").status_code == 204


@pytest.fixture
def busy(make_server: Callable[..., LiveServer]) -> LiveServer:
    """One slot, two places in the queue."""
    pool = PoolSettings(id="m", engine="mock", model="mock", slots=1, queue=QueueSettings(capacity=2))
    return make_server(pools=[pool])


def test_a_waiting_task_tells_its_place_in_comments_or_events(busy: LiveServer) -> None:
    with httpx.Client(base_url=busy.url, timeout=20) as http:
        running = submit(http, "[[mock fault=silent]]")
        waiting = submit(http)
        with http.stream("GET", f"/v1/tasks/{waiting}/stream") as answer:
            assert next(answer.iter_lines()).startswith(": queued position=0")
        with http.stream("GET", f"/v1/tasks/{waiting}/stream", params={"progress": "1"}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: queued"
            assert json.loads(next(lines).removeprefix("data: "))["queue_position"] == 0
        queue = http.get("/v1/queue").json()["groups"][0]
        assert queue["depth"] == {"interactive": 1, "batch": 0}
        assert [e["task_id"] for e in queue["entries"]] == [waiting]
        http.post(f"/v1/tasks/{running}/cancel")
        assert stream_of(http, waiting)[-1][0] == "end"


def test_a_full_queue_answers_429_and_how_long_to_wait(busy: LiveServer) -> None:
    with httpx.Client(base_url=busy.url, timeout=20) as http:
        running = submit(http, "[[mock fault=silent:1]]")
        until(lambda: http.get(f"/v1/tasks/{running}").json()["state"] == "running", "the start")
        submit(http)
        submit(http)
        answer = http.post("/v1/tasks", json={"model_ref": "mock", "prompt": "x"})
        said = answer.json()
        assert answer.status_code == 429
        assert said["code"] == "ADMISSION_REJECT"
        assert said["policy_label"] == "reject"
        assert said["retriable"] is True
        assert int(answer.headers["x-backoff-ms"]) == said["retry_after_ms"]
        assert int(answer.headers["retry-after"]) * 1000 >= said["retry_after_ms"]
        of_openai = http.post(
            "/v1/chat/completions", json={"model": "mock", "messages": [{"role": "user", "content": "x"}]}
        )
        assert of_openai.status_code == 429
        assert of_openai.json()["error"]["type"] == "rate_limit_error"


def test_a_full_queue_that_drops_ends_its_oldest_batch_task(make_server: Callable[..., LiveServer]) -> None:
    queue = QueueSettings(capacity=2, full_policy="drop-lru")
    server = make_server(pools=[PoolSettings(id="m", engine="mock", model="mock", slots=1, queue=queue)])
    with httpx.Client(base_url=server.url, timeout=20) as http:
        running = submit(http, "[[mock fault=silent:1]]", priority="batch")
        until(lambda: http.get(f"/v1/tasks/{running}").json()["state"] == "running", "the start")
        oldest, newer, newest = submit(http, priority="batch"), submit(http, priority="batch"), submit(http)
        frames = stream_of(http, oldest)
        assert [name for name, _, _ in frames] == ["error"]
        assert frames[0][2]["code"] == "QUEUE_FULL_DROP_LRU"
        assert frames[0][2]["retriable"] is True
        assert http.get(f"/v1/tasks/{running}").json()["state"] == "running"
        waiting = [e["task_id"] for e in http.get("/v1/queue").json()["groups"][0]["entries"]]
        assert waiting == [newest, newer]
        # Interactive tasks are never dropped: once they fill the queue, it rejects.
        submit(http)
        refused = http.post("/v1/tasks", json={"model_ref": "mock", "prompt": "x"})
        assert refused.status_code == 429
        assert refused.json()["policy_label"] == "drop-lru"


def test_vectors_scores_and_several_answers_are_results_of_tasks(http: httpx.Client) -> None:
    def result(**body: Any) -> dict[str, Any]:
        admitted = http.post("/v1/tasks", json={"model_ref": "mock", **body})
        assert admitted.status_code == 202, admitted.text
        found: dict[str, Any] = http.get(admitted.headers["Location"], params={"wait": 20_000}).json()
        assert found["state"] == "completed"
        return found

    embedded = result(workload="embedding", inputs=["a", "b"])
    assert len(embedded["embeddings"]) == 2
    assert len(embedded["embeddings"][0]) == len(embedded["embeddings"][1]) > 0
    ranked = result(workload="rerank", query="a", inputs=["b", "a", "c"])
    assert len(ranked["scores"]) == 3
    said = result(prompt="x", n=2, logprobs=True, max_tokens=3)
    assert [choice["index"] for choice in said["choices"]] == [0, 1]
    assert all(len(choice["logprobs"]) == 3 for choice in said["choices"])
    again = http.get(f"/v1/tasks/{embedded['task_id']}").json()
    assert again["embeddings"] == embedded["embeddings"]


def test_capabilities_follow_the_live_pools_and_the_overrides(make_server: Callable[..., LiveServer]) -> None:
    overrides = {"m": {"max_tokens_out": 100, "rate_limits": {"requests_per_minute": 6}}}
    server = make_server(
        pools=[PoolSettings(id="m", engine="mock", model="mock", slots=2, ctx=512, aliases=["other"])],
        capabilities=CapabilitySettings(overrides=overrides),
    )
    with httpx.Client(base_url=server.url, timeout=20) as http:
        said = http.get("/v1/capabilities").json()
        assert said["api_version"] == http.get("/openapi.json").json()["info"]["version"]
        (engine,) = said["engines"]
        assert (engine["engine"], engine["engine_version"], engine["ctx_max"]) == ("mock", "mock-1", 512)
        assert (engine["concurrency"], engine["slots_free"]) == (2, 2)
        assert engine["supported_workloads"] == ["chat", "completion", "embedding", "rerank"]
        assert {"stream", "tools", "logprobs", "json_schema"} <= set(engine["features"])
        assert "images" not in engine["features"], "the mock sees nothing"
        assert (engine["max_tokens_out"], engine["rate_limits"]) == (100, {"requests_per_minute": 6})
        assert said["models"][0]["aliases"] == ["other"]
        running = submit(http, "[[mock fault=silent:1]]")
        until(lambda: http.get(f"/v1/tasks/{running}").json()["state"] == "running", "the start")
        assert http.get("/v1/capabilities").json()["engines"][0]["slots_free"] == 1
        server.call(lambda: server.host.unready("m", advice="look"))
        assert http.get("/v1/capabilities").json()["engines"] == []
        assert http.get("/readyz").status_code == 503
        assert http.get("/v1/pools/m/health").json()["last_error"]["advice"] == "look"


def test_sessions_count_turns(http: httpx.Client) -> None:
    session_id = str(uuid.uuid4())
    submit(http, session_id=session_id)
    submit(http, session_id=session_id)
    said = http.get(f"/v1/sessions/{session_id}").json()
    assert (said["turns"], said["turns_remaining"]) == (2, 6)
    assert 0 < said["ttl_ms_remaining"] <= said["ttl_ms"]
    assert [s["session_id"] for s in http.get("/v1/sessions").json()["sessions"]] == [session_id]
    for _ in range(6):
        submit(http, session_id=session_id)
    ninth = http.post("/v1/tasks", json={"model_ref": "mock", "prompt": "x", "session_id": session_id})
    assert ninth.status_code == 409
    assert ninth.json()["code"] == "SESSION_TURNS_EXCEEDED"


def test_the_list_of_tasks_has_pages_and_filters(http: httpx.Client) -> None:
    ids = [submit(http) for _ in range(5)]
    for task_id in ids:
        http.get(f"/v1/tasks/{task_id}", params={"wait": 20_000})
    seen: list[str] = []
    before = ""
    while len(seen) <= len(ids):
        page = http.get("/v1/tasks", params={"limit": 2, "before": before, "state": "completed"}).json()
        seen += [t["task_id"] for t in page["tasks"]]
        before = page["next"]
        if not before:
            break
    assert seen == ids[::-1]
    assert http.get("/v1/tasks", params={"state": "failed"}).json()["tasks"] == []


def test_the_decision_of_a_task_is_told(http: httpx.Client) -> None:
    task_id = submit(http)
    http.get(f"/v1/tasks/{task_id}", params={"wait": 20_000})
    said = http.get(f"/v1/tasks/{task_id}/decision").json()
    assert said["selected_pool_id"] == "m"
    assert said["candidates_considered"] == ["m"]
    assert len(said["decisions"]) == 1


def test_the_journal_can_be_counted_followed_verified_and_exported(http: httpx.Client) -> None:
    task_id = submit(http, "tell me a secret")
    http.get(f"/v1/tasks/{task_id}", params={"wait": 20_000})
    until(
        lambda: "task.transcribed" in http.get("/v1/journal/stats", params={"full": 1}).json()["by_name"], "transcript"
    )
    stats = http.get("/v1/journal/stats").json()
    assert stats["status"] == "ok"
    names = [e["name"] for e in http.get("/v1/journal/tail", params={"stream": f"task:{task_id}"}).json()["events"]]
    assert names == ["task.admitted", "task.placed", "task.started", "task.ended", "task.transcribed"]
    end = http.get("/v1/journal/tail").json()["last_frame"]
    assert http.get("/v1/journal/tail", params={"after_frame": end}).json() == {"events": [], "last_frame": end}
    everything = http.get("/v1/journal/tail", params={"after_frame": 0}).json()
    assert everything["events"][0]["name"] == "server.started"
    report = http.get("/v1/journal/verify").json()
    assert report["ok"], report
    lines = [json.loads(line) for line in http.get("/v1/journal/export").text.splitlines()]
    assert lines[-1]["end"]["events"] == len(lines) - 1
    assert [e["seq"] for e in lines[:-1]] == list(range(1, len(lines)))
    assert "secret" not in http.get("/v1/journal/export").text
    assert "transcript" in [
        e.get("name") for e in map(json.loads, http.get("/v1/journal/export?texts=1").text.splitlines())
    ]


def test_a_stopping_server_breaks_streams_off_without_an_id(make_server: Callable[..., LiveServer]) -> None:
    server = make_server()
    with httpx.Client(base_url=server.url, timeout=20) as http:
        task_id = submit(http, "[[mock fault=silent:1]]")
        with http.stream("GET", f"/v1/tasks/{task_id}/stream") as answer:
            chunks = answer.iter_text()
            text = next(chunks)
            stopper = threading.Thread(target=server.stop)
            stopper.start()
            text += "".join(chunks)
            stopper.join(30)
    name, frame_id, data = frames_of(text)[-1]
    assert (name, frame_id) == ("error", "")
    assert data["code"] == "JOURNAL_UNAVAILABLE"
    assert data["retriable"] is True
