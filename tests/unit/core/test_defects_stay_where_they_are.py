"""A defect in one reader or observer is not the journal's: commits go on, and so do all the others."""

from __future__ import annotations

from typing import Any

from ...support.stage import on_stage


def test_a_reader_that_cannot_take_a_segment_directly_takes_it_by_itself() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).start()
        stage.settle()
        broken = stage.run(stage.services.streams.open(task_id))
        seen: list[Any] = []

        async def read() -> None:
            async for items in broken:
                seen.extend(items)

        def fast(_segments: Any) -> bool:
            raise RuntimeError("a defect in a rendering")

        broken.fast = fast
        stage.loop.create_task(read())
        other = stage.reader(task_id)
        for text in "ab":
            stage.attempt(task_id).say(text)
            stage.settle()
        stage.attempt(task_id).end()
        stage.settle()
        assert other.text == "ab"
        assert other.ended is not None
        assert [i.batch.texts for i in seen if hasattr(i, "batch")] == [["a"], ["b"]]


def test_an_observer_that_fails_stops_nobody_else(caplog: Any) -> None:
    with on_stage() as stage:

        def observe(_records: Any) -> None:
            raise RuntimeError("a defect in an observer")

        stage.journal._observers.insert(0, observe)
        task_id = stage.submit().task_id
        stage.attempt(task_id).say("a")
        stage.attempt(task_id).end()
        stage.settle()
        assert stage.info(task_id).text == "a"
        assert stage.services.transcripts.written == 1
        assert "a defect in an observer" in caplog.text


def test_a_stop_string_that_no_utf8_can_hold_costs_no_task_its_end() -> None:
    with on_stage() as stage:
        task_id = stage.submit(stop=["x"]).task_id
        stage.attempt(task_id).start()
        stage.attempt(task_id).say("a")
        stage.attempt(task_id).end(stop_sequence="\ud800x")
        stage.settle()
        end = stage.ended(task_id)
        assert (end.outcome, end.stop_sequence) == ("completed", "?x")
