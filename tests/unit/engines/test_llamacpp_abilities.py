"""What a llama.cpp server has follows from what it says, and from nothing else."""

import pytest

from llama_orch.plugins import FEATURES, ChatJob, GenerateJob
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import Recorder

from .test_llamacpp_client import Scripted, run

NOT_STARTED_FOR = (501, {"error": {"code": 501, "message": "Start it with", "type": "not_supported_error"}})
MISSES = (400, {"error": {"code": 400, "message": '"input" must be provided', "type": "invalid_request_error"}})
NOT_POOLED = (400, {"error": {"code": 400, "message": "Pooling type 'none' is not OAI compatible"}})


def properties(props=(), **answers):
    found = []

    async def test():
        said = {"total_slots": 2, "model_alias": "m", "build_info": "b1-x", "chat_template": "x", **dict(props)}
        server = Scripted(props=(200, said), **{"embeddings": NOT_STARTED_FOR, "rerank": NOT_STARTED_FOR, **answers})
        async with server.engine() as engine:
            found.append(await engine.properties())

    run(test)
    return found[0]


def test_a_server_of_texts_claims_what_the_native_api_has():
    told = properties()
    assert told.workloads == ("completion", "chat")
    assert set(told.features) == set(FEATURES) - {"tools", "reasoning", "images"}


@pytest.mark.parametrize(
    "caps, feature",
    [
        ({"chat_template_caps": {"supports_tools": True}}, "tools"),
        ({"chat_template_caps": {"supports_preserve_reasoning": True}}, "reasoning"),
        ({"modalities": {"vision": True}}, "images"),
    ],
)
def test_its_model_adds_to_that(caps, feature):
    assert feature in properties(caps).features
    assert feature not in properties().features


@pytest.mark.parametrize(
    "answers, workloads",
    [
        ({"embeddings": MISSES}, ("embedding",)),
        ({"embeddings": MISSES, "rerank": MISSES}, ("rerank",)),
        ({"embeddings": NOT_POOLED}, ("completion", "chat")),
        ({"embeddings": (404, {}), "rerank": (404, {})}, ("completion", "chat")),
    ],
)
def test_a_server_that_embeds_or_ranks_claims_that_alone(answers, workloads):
    told = properties(**answers)
    assert told.workloads == workloads
    assert ("render" in told.features) == ("chat" in workloads)
    assert "detokenize" in told.features


def test_a_chat_waits_for_what_the_server_has_however_many_come_at_once():
    thinks = {"total_slots": 2, "chat_template": "x", "chat_template_caps": {"supports_preserve_reasoning": True}}

    async def test():
        server = Scripted(props=(200, thinks), embeddings=NOT_STARTED_FOR, rerank=NOT_STARTED_FOR)
        async with server.engine() as engine:
            chat = ChatJob(messages=[{"role": "user", "content": "a"}])
            job = GenerateJob(
                task_id="t", attempt=1, workload="chat", chat=chat, json_schema={"type": "boolean"}, slot=0
            )
            sinks = [Recorder() for _ in range(3)]
            left = engine.generate(job, Recorder())
            for sink in sinks:
                engine.generate(job, sink)
            left.cancel()
            assert await left.slot_free() == "slot-free"
            for sink in sinks:
                assert (await sink.failure()).kind == "invalid", "no chats are scripted"
        asked = [head.split()[1] for head in server.heads]
        assert asked.count("/props") == 1
        assert asked.count("/v1/chat/completions") == 3
        assert "response_format" in server.asked["completions"], "a model that thinks is left room to"

    run(test)


def test_a_chat_to_nobody_is_told_so():
    async def test():
        engine = LlamaCpp({"url": "http://127.0.0.1:1"})
        sink = Recorder()
        chat = ChatJob(messages=[{"role": "user", "content": "a"}])
        handle = engine.generate(GenerateJob(task_id="t", attempt=1, workload="chat", chat=chat), sink)
        assert (await sink.failure()).kind == "unreachable"
        assert await handle.slot_free() == "slot-free"
        await engine.close()

    run(test)
