"""What the client of vLLM asks for beside OpenAI's API, and how it takes what vLLM says of itself."""

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

from llama_orch.core.errors import InvalidParamsError, UnavailableError
from llama_orch.plugins import ConfigError, EngineState, GenerateJob
from llama_orch.plugins.engines import _hf_identity
from llama_orch.plugins.engines.vllm import VLLM_OPTIONS, Vllm
from llama_orch.plugins.testing.engines import Recorder

from ...support.openai_server import StandIn

JOB = GenerateJob(task_id="t", attempt=2, prompt="hello", slot=1, seed=5, max_tokens=4)
LONG = "[[mock tokens=4000 rate=200]]"


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def opened(standin=None, **config):
    """A client and the stand-in that it speaks to."""
    async with (standin or StandIn(vllm=True)).serving() as server:
        engine = Vllm({"url": server.url, **config})
        yield engine, server
        await engine.close()


async def done(engine, job) -> tuple[Any, Recorder]:
    sink = Recorder()
    engine.generate(job, sink)
    return await sink.over(), sink


def bodies(server, route):
    return [body for path, body in server.asked if path == route]


class Flawed(StandIn):
    """Answers GETs as a test says."""

    def __init__(self, **answers):
        super().__init__(vllm=True)
        self.answers = answers

    async def _get(self, reply, path):
        answer = self.answers.get(path.strip("/"))
        if answer is None:
            await super()._get(reply, path)
        else:
            await reply.whole(*answer)


# --- what it is


@pytest.mark.parametrize(
    "answer, state, words",
    [
        ((200, None), EngineState.READY, ""),
        ((503, None), EngineState.FAILED, "its log"),
        ((503, {"error": "starting"}), EngineState.LOADING, "starting"),
        ((500, {"error": "boom"}), EngineState.FAILED, "boom"),
    ],
)
def test_health(answer, state, words):
    async def test():
        async with opened(Flawed(health=answer)) as (engine, _):
            health = await engine.health()
            assert health.state is state
            assert words in health.detail

    run(test)


@pytest.mark.parametrize(
    "config, strict", [({}, False), ({"slots": 1}, True), ({"batch_invariant": True}, True), ({"slots": 2}, False)]
)
def test_strict_is_promised_alone_or_where_the_batch_does_not_matter(config, strict):
    async def test():
        async with opened(**config) as (engine, _):
            properties = await engine.properties()
            assert properties.strict_capable is strict
            assert properties.engine_version == "vllm 0.0.1"
            assert f"batch_invariant={int(bool(config.get('batch_invariant')))}" in properties.flags

    run(test)


def test_what_it_is_seen_not_to_do_it_does_not_claim():
    class WithoutTools(StandIn):
        async def _post(self, reply, path, body):
            if body.get("tools") and not body.get("stream"):
                await reply.error(400, '"auto" tool choice requires --enable-auto-tool-choice')
            elif path == "/detokenize":
                await reply.whole(200, {"prompt": " another text"})
            else:
                await super()._post(reply, path, body)

    async def test():
        async with opened() as (engine, _):
            assert {"tools", "render"} <= set((await engine.properties()).features)
        async with opened(WithoutTools(vllm=True)) as (engine, _):
            features = (await engine.properties()).features
            assert not {"tools", "render"} & set(features)
            assert "prompt_ids" in features

    run(test)


def test_tools_that_the_server_does_not_take_are_refused_with_what_to_do():
    class WithoutTools(StandIn):
        async def _post(self, reply, path, body):
            await reply.error(
                400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )

    async def test():
        async with opened(WithoutTools(vllm=True)) as (engine, _):
            result, _ = await done(engine, JOB)
            assert (result.kind, result.retriable) == ("invalid", False)
            assert "start vLLM with --enable-auto-tool-choice" in result.message

    run(test)


@pytest.mark.parametrize("option", ["dialect", "native_n", "max_tokens_field", "engine_version"])
def test_options_of_other_servers_are_not_taken(option):
    assert option not in VLLM_OPTIONS
    with pytest.raises(ConfigError, match=option):
        Vllm({"url": "http://127.0.0.1:1", "options": {option: "x"}})


def test_a_server_that_is_no_vllm_is_told_with_the_engine_that_speaks_to_it():
    async def test():
        async with opened(StandIn()) as (engine, _):
            with pytest.raises(UnavailableError) as caught:
                await engine.properties()
            assert "openai" in caught.value.what_to_do
        async with opened(Flawed(version=(200, "not JSON"))) as (engine, _):
            with pytest.raises(UnavailableError, match="no vLLM"):
                await engine.properties()

    run(test)


# --- what it asks for


def test_a_completion_asks_for_ids_and_for_the_whole_context():
    async def test():
        async with opened() as (engine, server):
            sampling = {"repeat_penalty": 1.1, "min_p": 0.1, "top_k": 40.0}
            await done(engine, msgspec.structs.replace(JOB, max_tokens=0, sampling=sampling, n=2, grammar="x"))
            (body,) = bodies(server, "/v1/completions")
            assert body["max_tokens"] == 4096
            assert (body["repetition_penalty"], body["min_p"], body["top_k"]) == (1.1, 0.1, 40)
            assert (body["return_token_ids"], body["n"], body["seed"]) == (True, 2, 5)
            assert body["structured_outputs"] == {"grammar": "x"}
            assert body["request_id"].startswith("t-2-")
            assert "add_special_tokens" not in body

    run(test)


def test_a_bound_beyond_the_context_is_the_context():
    async def test():
        async with opened() as (engine, server):
            await done(engine, msgspec.structs.replace(JOB, max_tokens=100_000))
            assert bodies(server, "/v1/completions")[0]["max_tokens"] == 4096

    run(test)


def test_a_rendered_chat_gets_no_special_tokens_twice():
    async def test():
        async with opened() as (engine, server):
            prompt = await engine.render_chat([{"role": "user", "content": "hi"}], template_kwargs={"a": 1})
            assert bodies(server, "/tokenize")[0]["chat_template_kwargs"] == {"a": 1}
            await done(engine, msgspec.structs.replace(JOB, prompt=prompt, workload="chat"))
            body = bodies(server, "/v1/completions")[0]
            assert (body["prompt"], body["add_special_tokens"]) == (prompt, False)

    run(test)


def test_a_cold_start_has_a_salt_that_no_other_request_has():
    async def test():
        async with opened() as (engine, server):
            for cache_prompt in (False, False, True):
                await done(engine, msgspec.structs.replace(JOB, cache_prompt=cache_prompt))
            salts = [body.get("cache_salt") for body in bodies(server, "/v1/completions")]
            assert salts[0] != salts[1]
            assert None not in salts[:2]
            assert salts[2] is None

    run(test)


def test_a_prompt_of_ids_is_continued_by_the_ids_of_what_was_said():
    async def test():
        async with opened() as (engine, server):
            await done(engine, msgspec.structs.replace(JOB, prompt="", prompt_ids=(7, 8), prefix=" and"))
            assert bodies(server, "/tokenize") == [{"model": "made-up", "prompt": " and", "add_special_tokens": False}]
            (body,) = bodies(server, "/v1/completions")
            assert body["prompt"][:2] == [7, 8]
            assert len(body["prompt"]) == 3

    run(test)


def test_ids_that_the_model_does_not_have_are_refused():
    async def test():
        async with opened() as (engine, server):
            ids = await engine.tokenize("alpha beta", add_special=False, parse_special=True)
            assert await engine.detokenize(ids) == "alpha beta"
            asked = len(server.asked)
            assert await engine.detokenize(ids[:1]) in ("alpha", " beta")
            assert len(server.asked) == asked + 1, "what is known to be a token is not looked at again"
            with pytest.raises(InvalidParamsError, match="999999"):
                await engine.detokenize([*ids, 999_999])

    run(test)


# --- how it does


def test_metrics_are_those_of_vllm_without_what_is_the_same_in_all():
    async def test():
        two = (
            'vllm:num_requests_running{engine="0",model_name="m"} 1.0\n'
            'vllm:num_requests_running{engine="1",model_name="m"} 2.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="m"} 4.0\n'
            'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
            'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25\n'
            'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 3.0\n'
            'vllm:request_success_created{engine="0",finished_reason="stop",model_name="m"} 1.7e+09\n'
            'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="m"} 8.0\n'
            "process_open_fds 34.0\nvllm:odd nonsense\n"
        )
        async with opened(Flawed(metrics=(200, two))) as (engine, _):
            assert await engine.metrics() == {
                "vllm:num_requests_running": 3.0,
                "vllm:num_requests_waiting": 4.0,
                "vllm:kv_cache_usage_perc": 0.375,
                'vllm:request_success_total{finished_reason="stop"}': 3.0,
            }
            assert await engine.slots_in_use() == 7
        endless = 'vllm:num_requests_running{engine="0",model_name="m"} 1e999\n'
        async with opened(Flawed(metrics=(200, endless))) as (engine, server):
            assert await engine.slots_in_use() is None, "a count that is none is not believed"
        async with opened(Flawed(metrics=(404, None))) as (engine, server):
            assert (await engine.metrics(), await engine.slots_in_use()) == ({}, None)
            server.die()
            assert (await engine.metrics(), await engine.slots_in_use()) == ({}, None)

    run(test)


def test_a_slot_is_free_when_it_is_seen_free():
    async def test():
        async with opened() as (engine, server):
            sinks = [Recorder(), Recorder()]
            handles = [engine.generate(msgspec.structs.replace(JOB, prompt=LONG, max_tokens=4000), s) for s in sinks]
            for sink in sinks:
                await sink.until(lambda sink=sink: sink.count >= 2)
            assert await engine.slots_in_use() == 2
            handles[0].cancel()
            assert await handles[0].slot_free() == "slot-free"
            assert server.busy == 1
            server.die()
            assert (await sinks[1].failure()).retriable
            assert await handles[1].slot_free() == "engine-gone"

    run(test)


def test_others_at_the_server_do_not_hold_a_slot_for_ever():
    async def test():
        async with opened(release_ms=50) as (engine, server):
            server.busy = 5
            sink = Recorder()
            handle = engine.generate(msgspec.structs.replace(JOB, prompt=LONG, max_tokens=4000), sink)
            await sink.until(lambda: sink.count >= 2)
            handle.cancel()
            assert await handle.slot_free() == "slot-free"

    run(test)


def test_an_engine_that_dies_ends_the_stream_as_a_failure_with_advice_though_done_comes_behind_it():
    async def test():
        async with opened(StandIn(vllm=True, fault="error-frame")) as (engine, _):
            result, sink = await done(engine, JOB)
            assert (result.kind, result.retriable) == ("server-error", True)
            assert "--gpu-memory-utilization" in result.message
            assert sink.tokens == 3

    run(test)


# --- which weights


def test_weights_and_tokenizer_of_a_directory_on_this_machine_are_known_by_their_bytes(tmp_path):
    for name, text in {"config.json": "{}", "a.safetensors": "1", "tokenizer.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    model = _hf_identity.model_digest(str(tmp_path), "127.0.0.1")
    tokenizer = _hf_identity.tokenizer_digest(str(tmp_path), "localhost")
    assert model.startswith("sha256:")
    assert tokenizer.startswith("sha256:")
    (tmp_path / "a.safetensors").write_text("22")
    assert _hf_identity.model_digest(str(tmp_path), "127.0.0.1") != model
    assert _hf_identity.tokenizer_digest(str(tmp_path), "127.0.0.1") == tokenizer
    for root, host in ((str(tmp_path), "example.com"), ("org/name", "127.0.0.1"), (str(tmp_path / "no"), "127.0.0.1")):
        assert _hf_identity.model_digest(root, host) == ""
