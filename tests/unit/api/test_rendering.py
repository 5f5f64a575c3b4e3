"""What a stream's bytes say is what the entries are, whatever they hold (STR-1)."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.api.render import sse
from llama_orch.api.render.sse import SseRenderer
from llama_orch.core.entries import batch_of
from llama_orch.core.errors import JournalUnavailableError
from llama_orch.core.events.task import TaskEnded, TaskStarted
from llama_orch.core.journal.live import Segment
from llama_orch.core.services.streams import Ended, Heartbeat, Metered, Queued, Started
from llama_orch.core.types import Entry

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
entries = st.lists(
    st.builds(
        Entry,
        text=texts,
        tokens=st.sampled_from([1, 1, 1, 0, 3]),
        ids=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
        choice=st.sampled_from([0, 0, 1]),
        channel=st.sampled_from(["", "", "reasoning"]),
        logprob=st.sampled_from(["", "", "-0.25", "-1e-05"]),
    ),
    min_size=1,
    max_size=12,
)
plain_entries = st.lists(
    st.builds(lambda text, token: Entry(text=text, ids=(token,)), texts, st.integers(0, 2**31)), min_size=1, max_size=12
)
STARTED = TaskStarted(
    task_id="t", attempt=1, pool_id="p", replica_id="r0", engine="mock", engine_version="1", seed=4, queue_position=2
)


def ended(**changes: Any) -> TaskEnded:
    fields: dict[str, Any] = {"outcome": "completed", "finish_reason": "stop", "entries": 5, "tokens_out": 5} | changes
    return TaskEnded(task_id="t", prompt_tokens=3, **fields)


def events_of(raw: bytes) -> list[dict[str, str]]:
    """Events by the rules of WHATWG HTML 9.2, which break lines at LF, CRLF and CR alike."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in raw.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if "data" in fields:
                found.append(fields)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            assert name not in fields, "a field twice in one event"
            fields[name] = value.removeprefix(" ")
    assert not fields, "the last event has no end"
    return found


def entry_of(data: dict[str, Any]) -> Entry:
    ids = (data["id"],) if "id" in data else tuple(data.get("ids", ()))
    return Entry(
        text=data["t"],
        tokens=data.get("n", 1),
        ids=ids,
        choice=data.get("choice", 0),
        channel=data.get("channel", ""),
        logprob=str(data.get("logprob", "")),
    )


@given(st.one_of(entries, plain_entries), st.integers(1, 2**40), st.integers(0, 2**40), st.integers(1, 99))
def test_token_frames_read_back_as_the_entries(said: list[Entry], first: int, index: int, epoch: int) -> None:
    frames = events_of(sse.tokens(Segment(first, index, epoch, batch_of(said), {})))
    assert [f["event"] for f in frames] == ["token"] * len(said)
    assert [f["id"] for f in frames] == [f"{epoch}.{first + n}" for n in range(len(said))]
    data = [json.loads(f["data"], parse_float=str) for f in frames]
    assert [entry_of(d) for d in data] == said
    expected, at = [], index
    for entry in said:
        expected.append(at)
        at += entry.tokens
    assert [d["i"] for d in data] == expected


@given(st.lists(st.one_of(entries, plain_entries), min_size=1, max_size=5))
def test_ids_of_a_stream_count_without_a_gap(parts: list[list[Entry]]) -> None:
    items: list[Any] = [Started(1, STARTED)]
    ordinal, index = 1, 0
    for n, part in enumerate(parts):
        items.append(Segment(ordinal, index, 1 + n, batch_of(part), {}))
        ordinal += len(part)
        index += sum(e.tokens for e in part)
    items.append(Ended(9, ordinal, ended()))
    raw, last = SseRenderer().render(items)
    frames = events_of(raw)
    assert last
    assert [int(f["id"].split(".")[1]) for f in frames] == list(range(ordinal + 1))
    epochs = [int(f["id"].split(".")[0]) for f in frames]
    assert epochs == sorted(epochs)
    assert [f["event"] for f in frames] == ["started", *["token"] * (ordinal - 1), "end"]


@given(plain_entries)
def test_a_segment_is_rendered_once_for_all_readers(said: list[Entry]) -> None:
    segment = Segment(1, 0, 1, batch_of(said), {})
    first, _ = SseRenderer().render([segment])
    again, _ = SseRenderer().render([segment])
    assert segment.rendered == {sse.KIND: first}
    assert again is segment.rendered[sse.KIND]


def test_started_tells_where_and_how_the_task_runs() -> None:
    frame = events_of(SseRenderer().render([Started(3, STARTED)])[0])[0]
    assert frame["id"] == "3.0"
    data = json.loads(frame["data"])
    assert {"queue_position", "predicted_start_ms", "engine", "engine_version", "pool_id", "replica_id"} <= set(data)
    assert {"model_digest", "sampler_profile_version", "seed"} <= set(data)


def test_a_cancelled_task_ends_with_that_reason() -> None:
    raw, last = SseRenderer().render([Ended(1, 6, ended(outcome="cancelled", finish_reason="cancelled"))])
    frame = events_of(raw)[0]
    assert (last, frame["event"], frame["id"]) == (True, "end", "1.6")
    assert json.loads(frame["data"])["finish_reason"] == "cancelled"


def test_a_failed_task_ends_with_an_error_that_has_an_id_and_names_the_engine() -> None:
    renderer = SseRenderer()
    failed = ended(outcome="failed", finish_reason="error", code="WORKER_RESET", message="gone", retriable=True)
    frame = events_of(renderer.render([Ended(1, 6, failed, "mock")])[0])[0]
    assert (frame["event"], frame["id"]) == ("error", "1.6")
    data = json.loads(frame["data"])
    assert (data["code"], data["engine"], data["retriable"]) == ("WORKER_RESET", "mock", True)
    assert data["retry_after_ms"] > 0


def test_a_transport_error_has_no_id() -> None:
    frame = events_of(SseRenderer().broken(JournalUnavailableError("full", retry_after_ms=5)))[0]
    assert "id" not in frame
    assert frame["event"] == "error"
    assert json.loads(frame["data"])["retry_after_ms"] == 5


def test_waiting_and_silence_are_comments_that_no_parser_sees() -> None:
    raw, last = SseRenderer().render([Queued(3, 1200), Heartbeat()])
    assert events_of(raw) == []
    assert not last
    assert b"position=3" in raw
    assert raw.endswith(b": hb\n\n")


def test_waiting_is_an_event_without_id_for_who_asks_for_it() -> None:
    raw, _ = SseRenderer(events_while_queued=True).render([Queued(3, 1200)])
    assert events_of(raw) == [{"event": "queued", "data": '{"queue_position":3,"predicted_start_ms":1200}'}]


def test_metrics_have_no_id_and_change_nothing_around_them() -> None:
    segment = Segment(1, 0, 7, batch_of([Entry(text="a", ids=(1,))]), {})
    with_them, last = SseRenderer().render([segment, Metered({"queue_depth": 3, "on_time_probability": 0.25})])
    assert not last
    alone = SseRenderer().render([segment])[0]
    assert with_them.startswith(alone)
    (metrics,) = events_of(with_them[len(alone) :])
    assert metrics["event"] == "metrics"
    assert "id" not in metrics
    assert json.loads(metrics["data"]) == {"queue_depth": 3, "on_time_probability": 0.25}
