"""What tasks bring beside one plain text: several answers, thoughts, tool calls, probabilities, vectors, scores."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.engine_ports import FEATURES, EmbeddingResult, RerankResult
from llama_orch.core.entries import EntryBatch, batch_of, pack, unpack
from llama_orch.core.errors import CorruptJournalError
from llama_orch.core.logprobs import TokenLogprob, pack_logprobs, unpack_logprobs
from llama_orch.core.services.outcomes import call_id, choices_of
from llama_orch.core.types import Entry

from ...support.stage import Stage, on_stage

TASK = "0123abcd-0000-4000-8000-000000000001"
texts = st.text(st.characters(codec="utf-8"), max_size=8)
channels = st.sampled_from(["", "reasoning", "call:0", "tool:0", "call:1", "tool:1"])
entries = st.builds(Entry, text=texts, choice=st.integers(0, 2), channel=channels)


@given(st.lists(entries, max_size=30), st.lists(st.integers(0, 30), max_size=5))
def test_answers_are_the_same_however_the_entries_were_cut_into_batches(said: list[Entry], cuts: list[int]) -> None:
    edges = sorted({0, len(said), *(min(c, len(said)) for c in cuts)})
    batches = [unpack(pack(batch_of(said[a:b]))) for a, b in itertools.pairwise(edges)]
    whole = choices_of(TASK, [batch_of(said)], count=3, finish_reason="stop")
    assert choices_of(TASK, batches, count=3, finish_reason="stop") == whole
    for choice in whole:
        own = [e for e in said if e.choice == choice.index]
        assert choice.text == "".join(e.text for e in own if e.channel == "")
        assert choice.reasoning == "".join(e.text for e in own if e.channel == "reasoning")
        called = sorted({int(e.channel[5:]) for e in own if e.channel.startswith("call:")})
        assert [c.call_id for c in choice.tool_calls] == [call_id(TASK, choice.index, n) for n in called]
        for call, n in zip(choice.tool_calls, called, strict=True):
            assert call.name == "".join(e.text for e in own if e.channel == f"call:{n}")
            assert call.arguments == "".join(e.text for e in own if e.channel == f"tool:{n}")


def test_ids_of_calls_tell_apart_tasks_answers_and_places() -> None:
    other = TASK.replace("0123", "4567")
    ids = {call_id(t, c, n) for t in (TASK, other) for c in range(16) for n in range(256)}
    assert len(ids) == 2 * 16 * 256
    assert all(i.startswith("call_") and i.isascii() and len(i) < 40 for i in ids)


def test_each_answer_has_its_own_end() -> None:
    said = batch_of([Entry(text="a"), Entry(text="b", choice=1)])
    one, two = choices_of(TASK, [said], count=2, finish_reason="stop", finish_reasons=["length", "stop"])
    assert [(c.text, c.finish_reason) for c in (one, two)] == [("a", "length"), ("b", "stop")]


tokens = st.builds(
    TokenLogprob,
    token=texts,
    logprob=st.floats(-50, 0).map(repr),
    raw=st.binary(max_size=4),
    top=st.lists(st.builds(TokenLogprob, token=texts, logprob=st.floats(-50, 0).map(repr)), max_size=3),
)


@given(st.lists(tokens, min_size=1, max_size=4))
def test_packed_probabilities_come_back(said: list[TokenLogprob]) -> None:
    assert unpack_logprobs("whatever", pack_logprobs(said)) == said


def test_a_lone_probability_is_of_the_entrys_text_and_damage_is_told() -> None:
    assert unpack_logprobs("é", "-0.25") == [TokenLogprob("é", "-0.25", "é".encode())]
    assert unpack_logprobs("é", "") == []
    with pytest.raises(CorruptJournalError):
        unpack_logprobs("é", "[[")


def able(stage: Stage) -> None:
    engine = stage.engines["p"]
    engine.workloads, engine.features = ("completion", "chat", "embedding", "rerank"), FEATURES
    stage.pool_ready("p")
    stage.settle()


def test_vectors_are_a_durable_result_exact_to_the_bit_and_survive_a_restart() -> None:
    with on_stage() as stage:
        able(stage)
        vectors = [struct.pack("<3f", 0.1, -2.5, 3e-9), struct.pack("<3f", 1, 2, 3)]
        task_id = stage.submit(workload="embedding", inputs=["a", "b"], dimensions=3).task_id
        job = stage.attempt(task_id).job
        assert (job.workload, list(job.inputs), job.dimensions) == ("embedding", ["a", "b"], 3)
        stage.attempt(task_id).start()
        stage.attempt(task_id).end(result=EmbeddingResult(vectors=vectors))
        stage.settle()
        stage.advance(1)  # its transcript is written
        for _ in range(2):
            info = stage.info(task_id)
            assert info.state == "completed"
            assert [struct.pack("<3f", *v) for v in info.embeddings] == vectors
            stage.restart()


def test_scores_are_a_result_too_and_a_failed_task_has_none() -> None:
    with on_stage() as stage:
        able(stage)
        task_id = stage.submit(workload="rerank", inputs=["a", "b"], query="q").task_id
        assert stage.attempt(task_id).job.query == "q"
        stage.attempt(task_id).start()
        stage.attempt(task_id).end(result=RerankResult(scores=["0.5", "-1.25"]))
        stage.settle()
        assert stage.info(task_id).scores == [0.5, -1.25]
        failed = stage.submit(workload="rerank", inputs=["a"], query="q").task_id
        stage.attempt(failed).fail("invalid", retriable=False)
        stage.settle()
        assert (stage.info(failed).state, stage.info(failed).scores) == ("failed", None)


def test_several_answers_are_told_one_by_one_and_text_is_the_first() -> None:
    with on_stage() as stage:
        able(stage)
        task_id = stage.submit(n=2, logprobs=True).task_id
        job = stage.attempt(task_id).job
        assert (job.n, job.logprobs) == (2, True)
        attempt = stage.attempt(task_id)
        attempt.start()
        attempt.say_batch(
            batch_of([Entry(text="a", logprob="-0.5"), Entry(text="x", choice=1), Entry(text="b", logprob="-1.5")])
        )
        attempt.end("stop", finish_reasons=("stop", "length"))
        stage.settle()
        info = stage.info(task_id)
        assert info.text == "ab"
        assert [(c.text, c.finish_reason) for c in info.choices] == [("ab", "stop"), ("x", "length")]
        assert [p.logprob for p in info.choices[0].logprobs] == ["-0.5", "-1.5"]


def test_one_plain_text_needs_no_list_of_answers() -> None:
    assert choices_of(TASK, [EntryBatch(dts_us=[0], texts=["x"])], count=1, finish_reason="stop")[0].text == "x"
    with on_stage() as stage:
        task_id = stage.submit().task_id
        stage.attempt(task_id).say("x")
        stage.attempt(task_id).end()
        stage.settle()
        assert (stage.info(task_id).text, stage.info(task_id).choices) == ("x", None)
