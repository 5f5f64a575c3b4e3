"""Transcripts and what gives way to them: whatever fails, they come; nothing of it holds up the loop."""

from __future__ import annotations

from typing import Any

from llama_orch.core.errors import StoreRefusedError
from llama_orch.core.events.task import TaskTranscribed
from llama_orch.core.journal import journal as module
from llama_orch.core.services import transcripts

from ...support.stage import Stage, on_stage


def told(stage: Stage, *texts: str) -> str:
    """A task that said something and ended."""
    task_id = stage.submit().task_id
    for text in texts:
        stage.attempt(task_id).say(text)
        stage.settle()
    stage.attempt(task_id).end()
    stage.settle()
    return task_id


def test_a_read_that_failed_is_tried_again() -> None:
    with on_stage(buffer_bytes=1_000) as stage:
        read = stage.store.frames_at
        failures = 3

        def frames_at(numbers: Any) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                msg = "the database is locked"
                raise StoreRefusedError(msg)
            return read(numbers)

        stage.store.frames_at = frames_at
        first = told(stage, *"abcdefgh")
        assert stage.payloads(TaskTranscribed) == []
        stage.advance(5)
        second = told(stage, *"abcdefgh")
        stage.settle()
        assert {p.task_id for p in stage.payloads(TaskTranscribed)} == {first, second}


def test_a_large_transcript_is_made_beside_the_loop() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        for _ in range(3):
            stage.attempt(task_id).say(*["x"] * transcripts.LARGE_ENTRIES)
        stage.settle()
        stage.loop.hold_work = True
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.payloads(TaskTranscribed) == []
        stage.loop.hold_work = False
        while stage.loop.work:
            stage.loop.do_work()
            stage.settle()
        (event,) = stage.payloads(TaskTranscribed)
        assert event.entries == 3 * transcripts.LARGE_ENTRIES


def test_a_commit_drops_few_frames_at_once() -> None:
    with on_stage() as stage:
        stage.services.transcripts.compact_from = 1
        stage.services.transcripts.rest_s = 0
        pieces = 5 * module.MAX_REWRITES
        task_id = told(stage, *["x"] * pieces)
        before = len(stage.disk.units)
        for _ in range(8):
            told(stage, "y")
        sizes = [len(unit.rewrites) for unit in stage.disk.units[before:]]
        assert max(sizes) <= module.MAX_REWRITES
        assert sum(sizes) > pieces
        assert stage.info(task_id).text == "x" * pieces
