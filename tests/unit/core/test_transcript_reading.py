"""Streams of ended tasks: read piece by piece from one transcript that all its readers share."""

from __future__ import annotations

from llama_orch.core.entries import EntryBatch, Transcript, batch_of
from llama_orch.core.journal.history import segments_from
from llama_orch.core.types import Entry

from ...support.stage import on_stage


def long_transcript(size: int) -> Transcript:
    entries = [Entry(text=str(n), tokens=n % 3, ids=(n,) * (n % 2)) for n in range(1, size + 1)]
    return Transcript(epochs=[(1, 1), (4, 700), (5, 701)], batch=batch_of(entries))


def test_segments_begin_anywhere_with_the_right_token_and_epoch() -> None:
    transcript = long_transcript(1_500)
    for start in (0, 1, 2, 511, 512, 513, 699, 700, 701, 1_499, 1_500, 1_501):
        ordinal, token = max(start, 1), sum(n % 3 for n in range(1, max(start, 1)))
        for segment in segments_from(transcript, start):
            assert (segment.first_ordinal, segment.first_token) == (ordinal, token)
            last = segment.end_ordinal - 1
            assert segment.epoch == (1 if last < 700 else 4 if last < 701 else 5)
            assert len(segment.batch) <= 512
            ordinal, token = segment.end_ordinal, token + segment.batch.token_count
        assert ordinal == 1_501


def test_a_reader_takes_no_more_at_once_than_it_can_send() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        size = 20_000
        stage.attempt(task_id).say_batch(EntryBatch(dts_us=[0] * size, texts=["x"] * size, ids=[1] * size))
        stage.attempt(task_id).end()
        stage.settle()
        pieces = []

        async def read() -> None:
            async for items in await stage.services.streams.open(task_id):
                pieces.append(sum(len(getattr(i, "batch", ())) for i in items))

        stage.run(read())
        assert sum(pieces) == size
        assert max(pieces) <= 512


def test_readers_at_the_same_time_share_what_was_unpacked_and_nobody_keeps_it() -> None:
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).say("x")
        stage.attempt(task_id).end()
        stage.settle()
        row = stage.store.index_row(task_id)
        assert row is not None
        frame = row.transcript_frame
        reads: list[int] = []
        read = stage.store.frames_at

        def frames_at(numbers):
            reads.extend(numbers)
            return read(numbers)

        stage.store.frames_at = frames_at
        stalled = stage.reader(task_id, stalled=True)
        others = [stage.reader(task_id) for _ in range(3)]
        assert [other.text for other in others] == ["x"] * 3
        assert reads.count(frame) == 1
        stalled.go()
        assert stalled.text == "x"
        assert stage.reader(task_id).text == "x"
        assert reads.count(frame) == 2
