"""Log lines: fields and a sentence for what happens to tasks; no prompt, no secret (OBS-2)."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.api.logs import EventLog, LineWriter, LogHandler
from llama_orch.api.redact import HIDDEN, redact, redact_text
from llama_orch.core.events.response import ResponseDeleted
from llama_orch.core.events.task import (
    DecisionRecord,
    FilterRecord,
    TaskAdmitted,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskRejected,
    TaskStarted,
)
from llama_orch.core.projections.projection import Recorded

DECISION = DecisionRecord(
    selected_pool_id="p",
    candidates_considered=["p", "q"],
    filters_applied=[FilterRecord(name="context", excluded={"r": "9000 tokens do not fit 4096"})],
    scores_ms={"p": 70, "q": 90},
    tie_breakers_applied=["least loaded"],
    pinned=False,
    fallback_used=False,
    decision_reason="it ends first",
    policy="default",
    policy_version="1",
)
STORY: list[tuple[str, Any]] = [
    (
        "task.admitted",
        TaskAdmitted(
            task_id="t",
            owner="local",
            group="m",
            model_ref="m",
            workload="chat",
            priority="batch",
            body_id="b",
            request_digest="",
            session_id="s",
            seed=1,
            queue_position=3,
            predicted_start_ms=40,
        ),
    ),
    ("task.placed", TaskPlaced(task_id="t", attempt=1, pool_id="p", replica_id="r0", decision=DECISION)),
    (
        "task.started",
        TaskStarted(
            task_id="t",
            attempt=1,
            pool_id="p",
            replica_id="r0",
            engine="e",
            engine_version="v",
            model_digest="d",
            sampler_profile_version="default-1",
            seed=1,
            prompt_tokens=9,
            queue_time_ms=41,
        ),
    ),
    ("task.cancelled", TaskCancelled(task_id="t", reason="client")),
    (
        "task.ended",
        TaskEnded(
            task_id="t",
            outcome="cancelled",
            finish_reason="cancelled",
            entries=2,
            tokens_out=2,
            prompt_tokens=9,
            decode_ms=7,
        ),
    ),
]


def records(story: list[tuple[str, Any]]) -> list[Recorded]:
    return [
        Recorded(
            seq=n,
            frame_no=1,
            epoch=1,
            stream="task:t",
            position=n,
            name=name,
            time_ns=1_700_000_000_000_000_000 + n,
            actor="localhost",
            correlation="c",
            payload=payload,
        )
        for n, (name, payload) in enumerate(story)
    ]


def lines_of(story: list[tuple[str, Any]], **options: Any) -> list[dict[str, Any]]:
    out = io.StringIO()
    EventLog(LineWriter(out), **options).observe(records(story))
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_task_leaves_a_line_with_a_sentence_for_each_thing_that_happens() -> None:
    lines = lines_of(STORY)
    assert [line["event"] for line in lines] == [name for name, _ in STORY]
    for line in lines:
        assert line["human"].endswith(".")
        assert line["correlation_id"] == "c"
        assert line["task_id"] == "t"
        assert line["session_id"] == "s"
        assert line["model_id"] == "m"
        assert line["actor"] == "localhost"
        assert isinstance(line["time_ns"], str)


def test_lines_have_the_fields_of_their_moment() -> None:
    admitted, placed, started, cancelled, ended = lines_of(STORY)
    assert (admitted["queue_position"], admitted["predicted_start_ms"]) == (3, 40)
    assert (placed["pool_id"], placed["decision_reason"]) == ("p", "it ends first")
    assert (placed["candidates_considered"], placed["tie_breakers_applied"]) == (["p", "q"], ["least loaded"])
    assert (placed["pinned"], placed["fallback_used"]) == (False, False)
    assert (placed["selected_pool_id"], placed["scores_ms"]) == ("p", {"p": 70, "q": 90})
    (left_out,) = placed["filters_applied"]
    assert left_out == {"name": "context", "excluded": {"r": "9000 tokens do not fit 4096"}}
    where = {"engine": "e", "engine_version": "v", "pool_id": "p", "replica_id": "r0", "model_digest": "d"}
    for line in (started, cancelled, ended):
        assert where.items() <= line.items()
        assert line["sampler_profile_version"] == "default-1"
    assert (started["queue_time_ms"], started["tokens_in"]) == (41, 9)
    assert cancelled["reason"] == "client"
    assert (ended["tokens_in"], ended["tokens_out"], ended["decode_ms"]) == (9, 2, 7)


def test_a_deleted_response_is_told_with_its_task() -> None:
    (line,) = lines_of([("response.deleted", ResponseDeleted(task_id="t", owner="local"))])
    assert line["task_id"] == "t"
    assert line["human"] == "The stored response of task t was deleted; the journal keeps the task."


def test_levels_hold_lesser_lines_back() -> None:
    rejected = TaskRejected(task_id="t", owner="local", model_ref="m", code="MODEL_NOT_FOUND", reason="no such")
    lines = lines_of([*STORY, ("task.rejected", rejected)], level="warning")
    assert [line["event"] for line in lines] == ["task.rejected"]


def test_at_a_terminal_there_are_sentences() -> None:
    out = io.StringIO()
    EventLog(LineWriter(out), form="human").observe(records(STORY))
    assert len(out.getvalue().splitlines()) == len(STORY)
    assert "Task t started on pool p after 41 ms." in out.getvalue()


def test_ended_tasks_are_forgotten() -> None:
    log = EventLog(LineWriter(io.StringIO()))
    log.observe(records(STORY))
    assert log._tasks == {}


def test_lines_are_written_in_batches_and_at_the_latest_by_flush() -> None:
    out, later = io.StringIO(), []
    writer = LineWriter(out, lambda _, function: later.append(function))
    writer.write("one")
    writer.write("two")
    assert out.getvalue() == ""
    assert len(later) == 1
    later.pop()()
    assert out.getvalue() == "one\ntwo\n"
    writer.write("three")
    writer.flush()
    assert out.getvalue().endswith("three\n")


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    LineWriter(Gone()).write("x")


def test_programs_own_messages_become_lines_with_their_fields_and_traceback() -> None:
    out = io.StringIO()
    logger = logging.getLogger("llama_orch.tests.logs")
    logger.addHandler(LogHandler(EventLog(LineWriter(out), level="debug")))
    try:
        raise ValueError("with Bearer abcdef123456")
    except ValueError:
        logger.exception("it %s", "broke", extra={"correlation_id": "c", "api_key": "k-1"})
    logger.warning("careful")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["level"], first["human"], first["correlation_id"]) == (
        "llama_orch.tests.logs",
        "error",
        "it broke",
        "c",
    )
    assert "ValueError" in first["traceback"]
    assert "abcdef123456" not in out.getvalue()
    assert first["api_key"] == HIDDEN
    assert second["level"] == "warning"


SECRETS = [
    "Authorization: Bearer abcd1234efgh",
    "authorization: basic dXNlcjpwYXNzd29yZA==",
    "the key sk-proj-abcdefgh12345678 leaked",
    "token hf_abcdefghijklmnop",
    "ghp_abcdefghijklmnopqrst",
    "xoxb-1234567890-abcdef",
    "glpat-abcdefgh12345",
    "AKIAIOSFODNN7EXAMPLE",  # scan: allow, the one that stands in manuals
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "postgresql://me:hunter2@db/x",
    "https://host/?api_key=hunter2hunter2",
    "password=hunter2hunter2",
]
PLANTED = [
    "abcd1234efgh",
    "dXNlcjpwYXNzd29yZA",
    "abcdefgh12345678",
    "hf_abcdefghijklmnop",
    "ghp_abcdefghijklmnopqrst",
    "xoxb-1234567890-abcdef",
    "glpat-abcdefgh12345",
    "AKIAIOSFODNN7EXAMPLE",  # scan: allow, the one that stands in manuals
    "eyJzdWIiOiIxIn0",
    "hunter2",
    "hunter2hunter2",
    "hunter2hunter2",
]


@pytest.mark.parametrize("text, secret", list(zip(SECRETS, PLANTED, strict=True)))
def test_secrets_are_known_by_their_shape(text: str, secret: str) -> None:
    assert secret not in redact_text(text)
    assert HIDDEN in redact_text(text)


@pytest.mark.parametrize("key", ["api_key", "Authorization", "x-api-key", "token", "client_secret", "PASSWORD", "key"])
def test_secrets_are_known_by_their_key(key: str) -> None:
    assert redact({"a": [{key: "abc"}]}) == {"a": [{key: HIDDEN}]}


@pytest.mark.parametrize("key", ["tokens_out", "max_tokens", "monkey", "task_id", "keyboard"])
def test_other_keys_are_none(key: str) -> None:
    assert redact({key: "abc"}) == {key: "abc"}


@given(st.text(max_size=60), st.sampled_from(list(zip(SECRETS, PLANTED, strict=True))), st.text(max_size=60))
def test_no_secret_survives_in_whatever_surrounds_it(before: str, pair: tuple[str, str], after: str) -> None:
    text, secret = pair
    assert secret not in redact_text(f"{before} {text} {after}").replace(f"{before} ", "", 1).removesuffix(after)
