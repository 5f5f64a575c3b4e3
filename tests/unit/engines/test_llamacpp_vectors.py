"""Embeddings and ranking, as llama.cpp answers them and as it may fail to."""

import base64
import struct

import msgspec
import pytest

from llama_orch.plugins import GenerateJob
from llama_orch.plugins.engines._llama_vectors import INPUTS_PER_REQUEST
from llama_orch.plugins.testing.engines import Recorder

from .test_llamacpp_client import Scripted, run


def vector(*numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def job(workload, inputs):
    return GenerateJob(task_id="t", attempt=1, workload=workload, query="q", inputs=inputs)


MISSES = (400, {"error": {"code": 400, "message": '"input" must be provided', "type": "invalid_request_error"}})


def served(**answers):
    """A server that answers so, once it said that it serves what it is asked for."""

    def one(told):
        return lambda body: MISSES if body == {} else told(body) if callable(told) else told

    return Scripted(**{name: one(told) if name in ("embeddings", "rerank") else told for name, told in answers.items()})


def outcome(workload, inputs, *, dimensions=0, **answers):
    """How such a job ends, and what the server was last asked."""
    found = []

    async def test():
        server = served(**answers)
        async with server.engine() as engine:
            sink = Recorder()
            asked = msgspec.structs.replace(job(workload, inputs), dimensions=dimensions)
            handle = engine.generate(asked, sink)
            found.append(await sink.over())
            assert sink.breaches == []
            assert await handle.slot_free() in ("slot-free", "engine-gone")
        found.append(server.asked)

    run(test)
    return found


def test_vectors_come_in_the_order_of_the_inputs_whatever_that_of_the_answer():
    data = [{"index": 1, "embedding": vector(2.0)}, {"index": 0, "embedding": vector(1.0)}]
    end, asked = outcome("embedding", ["a", "b"], embeddings=(200, {"data": data, "usage": {"prompt_tokens": 3}}))
    assert end.result.vectors == [struct.pack("<f", 1.0), struct.pack("<f", 2.0)]
    assert (end.prompt_tokens, end.tokens, end.finish_reason) == (3, 0, "stop")
    assert asked["embeddings"]["input"] == ["a", "b"]


def test_a_build_that_tells_numbers_instead_of_bytes_is_understood():
    data = [{"index": 0, "embedding": [0.5, -1]}]
    end, _ = outcome("embedding", ["a"], embeddings=(200, {"data": data, "usage": {}}))
    assert end.result.vectors == [struct.pack("<2f", 0.5, -1)]


def test_scores_are_shortest_decimals_in_the_order_of_the_inputs():
    results = [{"index": 1, "relevance_score": 0.1}, {"index": 0, "relevance_score": -2}]
    end, asked = outcome("rerank", ["a", "b"], rerank=(200, {"results": results, "usage": {"prompt_tokens": 9}}))
    assert end.result.scores == ["-2.0", "0.1"]
    assert asked["rerank"] == {"query": "q", "documents": ["a", "b"]}


def test_many_inputs_are_asked_for_a_few_at_a_time():
    seen = []

    def counted(body):
        seen.append(len(body["input"]))
        data = [{"index": n, "embedding": vector(float(text))} for n, text in enumerate(body["input"])]
        return 200, {"data": data, "usage": {"prompt_tokens": 2}}

    count = 2 * INPUTS_PER_REQUEST + 3
    end, _ = outcome("embedding", [str(n) for n in range(count)], embeddings=counted)
    assert seen == [INPUTS_PER_REQUEST, INPUTS_PER_REQUEST, 3]
    assert [struct.unpack("<f", raw)[0] for raw in end.result.vectors] == list(range(count))
    assert end.prompt_tokens == 6


TOO_LONG = {"code": 500, "message": "input (18 tokens) is too large to process. increase the physical batch size"}


@pytest.mark.parametrize(
    "answer, kind, retriable",
    [
        ((500, {"error": {**TOO_LONG, "type": "server_error"}}), "context", False),
        ((400, {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error"}}), "context", False),
        ((501, {"error": {"code": 501, "message": "start it", "type": "not_supported_error"}}), "invalid", False),
        ((503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}), "refused", True),
        ((500, {"error": {"code": 500, "message": "x", "type": "server_error"}}), "server-error", True),
        ((200, b"{"), "garbage", True),
        ((200, {"data": [], "usage": {}}), "garbage", True),
        ((200, {"data": [{"index": 0, "embedding": vector(1.0)}] * 2, "usage": {}}), "garbage", True),
        (
            (200, {"data": [{"index": 0, "embedding": "?"}, {"index": 1, "embedding": "?"}], "usage": {}}),
            "garbage",
            True,
        ),
        ((200, {"data": [{"index": 0, "embedding": ""}, {"index": 1, "embedding": []}], "usage": {}}), "garbage", True),
        (
            (200, {"data": [{"index": n, "embedding": vector(float("nan"))} for n in (0, 1)], "usage": {}}),
            "garbage",
            True,
        ),
    ],
)
def test_what_fails_is_named(answer, kind, retriable):
    failure, _ = outcome("embedding", ["a", "b"], embeddings=answer)
    assert (failure.kind, failure.retriable) == (kind, retriable)
    assert failure.message


def test_a_score_that_is_no_number_is_no_score():
    raw = msgspec.json.encode({"results": [{"index": 0, "relevance_score": 1}], "usage": {}}).replace(b":1", b":1e999")
    failure, _ = outcome("rerank", ["a"], rerank=(200, raw))
    assert failure.kind == "garbage"


def test_a_job_that_is_left_before_its_answer_hears_nothing():
    async def test():
        server = served(embeddings=(200, {"data": [{"index": 0, "embedding": vector(1.0)}], "usage": {}}))
        async with server.engine() as engine:
            sink = Recorder()
            handle = engine.generate(job("embedding", ["a"]), sink)
            handle.resume()
            handle.cancel()
            handle.cancel()
            assert await handle.slot_free() == "slot-free"
            assert sink.heard == 0

    run(test)


def test_a_length_that_is_not_the_models_is_refused_and_never_ignored():
    data = [{"index": 0, "embedding": vector(1.0)}]
    models = (200, {"data": [{"id": "m", "meta": {"n_embd": 1}}]})
    for length, kind in ((8, "invalid"), (1, None)):
        ended, asked = outcome(
            "embedding", ["a"], dimensions=length, embeddings=(200, {"data": data, "usage": {}}), models=models
        )
        assert getattr(ended, "kind", None) == kind
        assert (asked["embeddings"] == {}) == (kind is not None)
