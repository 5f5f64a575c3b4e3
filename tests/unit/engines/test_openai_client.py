"""How the client of OpenAI's API is configured, and how it takes servers that are not as they should be."""

import asyncio
import ssl
from pathlib import Path

import pytest

from llama_orch.core.errors import InvalidParamsError, UnavailableError
from llama_orch.plugins import ChatJob, ConfigError, EngineState
from llama_orch.plugins.engines._openai_config import OPTIONS
from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.testing.engines import Recorder

from ...support.certificates import certificate
from ...support.openai_server import StandIn
from .openai_stage import CHAT, JOB, KEY, MESSAGES, asked, changed, opened, outcome, run

# --- where it is, and as whom


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1_or_not(path):
    async def test():
        async with StandIn().serving() as server:
            engine = OpenAI({"url": server.url + path})
            assert (await engine.health()).state is EngineState.READY
            assert (await engine.properties()).model_name == "made-up"
            await engine.close()

    run(test)


def test_a_path_that_is_something_else_is_the_apis_own():
    async def test():
        async with StandIn().serving() as server:
            engine = OpenAI({"url": f"{server.url}/openai"})
            health = await engine.health()
            assert health.state is EngineState.FAILED
            assert "/models" in health.detail
            assert server.heads[-1].startswith("GET /openai/models ")
            await engine.close()

    run(test)


@pytest.mark.parametrize("url", ["", "ftp://x", "localhost:80"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError) as caught:
        OpenAI({"url": url})
    assert caught.value.field == "url"


def test_the_key_comes_from_the_environment_and_is_told_to_the_server_alone(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)

    async def test():
        async with opened(StandIn(key=KEY), api_key_env="SOME_KEY") as (engine, server):
            assert (await engine.properties()).model_name == "made-up"
            server.key = "another"
            result, *_ = await outcome(engine, JOB)
            assert (result.kind, result.retriable) == ("invalid", False)
            health = await engine.health()
            assert health.state is EngineState.FAILED
            for said in (result.message, health.detail):
                assert "Incorrect API key" in said
                assert "***" in said
                assert KEY not in said

    run(test)


def test_a_key_that_is_refused_at_the_first_look_is_not_told_either(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)

    async def test():
        async with opened(StandIn(key="another"), api_key_env="SOME_KEY") as (engine, _):
            with pytest.raises(UnavailableError) as caught:
                await engine.properties()
            assert KEY not in str(caught.value)
            result, *_ = await outcome(engine, JOB)
            assert KEY not in result.message

    run(test)


def test_more_headers_from_the_configuration_and_from_the_environment(monkeypatch):
    monkeypatch.setenv("OTHER_KEY", KEY)

    async def test():
        config = {"headers": {"X-Team": "blue"}, "headers_env": {"api-key": "OTHER_KEY"}}
        async with opened(**config) as (engine, server):
            await engine.health()
            assert "X-Team: blue\r\n" in server.heads[-1]
            assert f"api-key: {KEY}\r\n" in server.heads[-1]

    run(test)


@pytest.mark.parametrize("config", [{"api_key_env": "NOT_SET_1"}, {"headers_env": {"api-key": "NOT_SET_1"}}])
def test_a_variable_that_is_not_set_is_named(config):
    with pytest.raises(ConfigError, match="NOT_SET_1"):
        OpenAI({"url": "http://127.0.0.1:1", **config})


def test_a_header_cannot_bring_a_second_one():
    with pytest.raises(ConfigError):
        OpenAI({"url": "http://127.0.0.1:1", "headers": {"X-A": "b\r\nX-C: d"}})


def test_certificates_are_verified(tmp_path):
    async def test():
        public, private = certificate(tmp_path, "host")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(public, private)
        async with StandIn().serving(ssl=context) as server:
            url = server.url.replace("http:", "https:")
            stranger, friend = OpenAI({"url": url}), OpenAI({"url": url, "ca_file": str(public)})
            health = await stranger.health()
            assert health.state is EngineState.UNREACHABLE
            assert "certificate verify failed" in health.detail
            assert server.heads == []
            assert (await friend.health()).state is EngineState.READY
            result, *_ = await outcome(friend, JOB)
            assert result.tokens == 4
            await stranger.close()
            await friend.close()

    run(test)


def test_a_file_of_certificates_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        OpenAI({"url": "https://127.0.0.1:1", "ca_file": str(tmp_path / "none.pem")})
    assert caught.value.field == "ca_file"


# --- its options


@pytest.mark.parametrize(
    "config",
    [
        {"unheard_of": 1},
        {"dialect": "klingon"},
        {"features": ["flying"]},
        {"features": "tools"},
        {"workloads": ["divination"]},
        {"headers": ["a"]},
        {"native_n": "yes"},
        {"release_ms": True},
        {"max_tokens_field": "n_predict"},
        {"extra_body": "x"},
    ],
)
def test_an_option_that_cannot_be_is_named(config):
    with pytest.raises(ConfigError) as caught:
        OpenAI({"url": "http://127.0.0.1:1", **config, "options": config})
    assert next(iter(config)) in str(caught.value)


def test_every_option_is_read():
    source = (Path(__file__).parents[3] / "plugins" / "engines").glob("*.py")
    text = "".join(path.read_text() for path in source if "openai" in path.name)
    for name in OPTIONS:
        assert text.count(f'"{name}"') >= 2, name


def test_fields_of_a_request_can_be_added_and_taken_away():
    async def test():
        extra = {"keep_alive": "5m", "stream_options": None}
        _, (_, body) = await asked(JOB, extra_body=extra)
        assert body["keep_alive"] == "5m"
        assert "stream_options" not in body

    run(test)


def test_an_option_that_is_misspelt_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'served_model'"):
        OpenAI({"url": "http://127.0.0.1:1", "options": {"sreved_model": "x"}})


def test_a_pool_without_a_url_is_told_that_nothing_is_started():
    with pytest.raises(ConfigError, match="starts no server") as caught:
        OpenAI({"model": "x"})
    assert "mode: external" in caught.value.what_to_do


# --- which model


def test_a_model_that_is_not_there_is_told_with_those_that_are():
    async def test():
        async with opened(model="other") as (engine, _):
            with pytest.raises(UnavailableError, match="'other'; it has made-up"):
                await engine.properties()
            result, _, handle = await outcome(engine, JOB)
            assert "made-up" in result.message
            assert await handle.slot_free() == "slot-free"

    run(test)


def test_a_name_that_is_given_for_the_server_is_believed():
    async def test():
        result, (_, body) = await asked(JOB, model="ours", served_model="theirs")
        assert body["model"] == "theirs"
        assert result.tokens == 4

    run(test)


# --- what it says it can


def test_workloads_are_the_routes_that_are_there():
    async def test():
        async with opened(StandIn(lacks=("/v1/completions", "/v1/rerank"))) as (engine, server):
            properties = await engine.properties()
            assert properties.workloads == ("chat", "embedding")
            assert "continue" not in properties.features
            assert all("prompt" not in body and "messages" not in body for _, body in server.asked)
            result, *_ = await outcome(engine, JOB)
            assert (result.kind, result.retriable) == ("invalid", False)
            assert "no completion" in result.message

    run(test)


def test_a_server_without_completions_is_told_by_name_where_nobody_looked_before():
    async def test():
        async with opened(StandIn(lacks=("/v1/completions",))) as (engine, _):
            result, _, handle = await outcome(engine, JOB)
            assert (result.kind, result.retriable) == ("invalid", False)
            assert "has no /v1/completions" in result.message
            assert await handle.slot_free() == "slot-free"

    run(test)


def test_configured_abilities_are_taken_as_they_are():
    async def test():
        async with opened(workloads=["chat"], features=["images", "seed"], slots=7, ctx=99) as (engine, server):
            properties = await engine.properties()
            assert (properties.workloads, properties.features) == (("chat",), ("images", "seed"))
            assert (properties.slots, properties.ctx, properties.strict_capable) == (7, 99, False)
            assert server.asked == []

    run(test)


@pytest.mark.parametrize(
    "owner, dialect", [("llamacpp", "llamacpp"), ("vllm", "vllm"), ("library", "ollama"), ("acme", "openai")]
)
def test_the_dialect_shows_in_the_list_of_models(owner, dialect):
    async def test():
        async with opened(StandIn(owner=owner)) as (engine, _):
            assert (await engine.properties()).flags == f"dialect={dialect}"

    run(test)


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": True},
        {"prompt_ids": (1, 2)},
        {"logit_bias": {"5": 1.0}},
        {"grammar": 'root ::= "a"'},
        {"json_schema": {"type": "boolean"}},
        {"prefix": " and"},
        {"workload": "divination"},
    ],
)
def test_what_the_server_cannot_is_refused_before_it_is_asked(changes):
    async def test():
        async with opened(features=[]) as (engine, server):
            result, sink, handle = await outcome(engine, changed(JOB, **changes))
            assert (result.kind, result.retriable) == ("invalid", False)
            assert sink.start is None
            assert await handle.slot_free() == "slot-free"
            assert server.asked == []

    run(test)


@pytest.mark.parametrize(
    "job, config, words",
    [
        (changed(JOB, sampling={"top_k": 5}), {}, "top_k"),
        (changed(JOB, json_schema={"type": "boolean"}), {}, "json_schema"),
        (changed(JOB, json_schema={"type": "string", "pattern": "("}), {"dialect": "llamacpp"}, "json_schema"),
        (changed(JOB, grammar="x", json_schema={}), {"dialect": "llamacpp"}, "exclude"),
        (changed(JOB, grammar="x"), {"features": ["grammar"]}, "grammar"),
        (changed(JOB, prompt_ids=(1,), prefix="a"), {"features": ["prompt_ids", "continue"]}, "token ids"),
        (changed(CHAT, prefix="a"), {}, "cannot be continued"),
        (
            changed(CHAT, chat=ChatJob(messages=MESSAGES, template_kwargs={"a": 1})),
            {},
            "chat_template_kwargs",
        ),
    ],
)
def test_what_the_dialect_has_no_word_for_is_refused_by_name(job, config, words):
    async def test():
        async with opened(**config) as (engine, server):
            result, *_ = await outcome(engine, job)
            assert (result.kind, result.retriable) == ("invalid", False)
            assert words in result.message
            assert server.asked == []

    run(test)


# --- leaving


def test_who_leaves_is_noticed_by_the_server():
    async def test():
        async with opened() as (engine, server):
            sink = Recorder()
            handle = engine.generate(changed(JOB, prompt="[[mock tokens=4000 rate=200]]", max_tokens=4000), sink)
            await sink.until(lambda: sink.count >= 2)
            assert server.busy == 1
            handle.cancel()
            await server.left.wait()
            assert await handle.slot_free() == "slot-free"
            assert server.busy == 0
            assert sink.outcome is None

    run(test)


def test_a_slot_is_free_after_a_while_or_its_server_gone():
    async def test():
        async with opened() as (engine, server):
            for gone in (False, True):
                sink = Recorder()
                handle = engine.generate(changed(JOB, prompt="[[mock tokens=4000 rate=200]]", max_tokens=4000), sink)
                await sink.until(lambda sink=sink: sink.count >= 2)
                handle.cancel()
                if gone:
                    server.die()
                assert await handle.slot_free() == ("engine-gone" if gone else "slot-free")

    run(test)


def test_a_cancel_before_the_server_was_looked_at_asks_nothing():
    async def test():
        async with opened() as (engine, server):
            sink = Recorder()
            handle = engine.generate(JOB, sink)
            handle.cancel()
            assert await handle.slot_free() == "slot-free"
            assert (await engine.properties()).model_name == "made-up"
            assert all("prompt" not in body for _, body in server.asked)
            assert sink.heard == 0

    run(test)


# --- what is not to be had


def test_what_such_servers_do_not_tell_is_refused_by_name():
    async def test():
        async with opened() as (engine, _):
            for question in (
                engine.tokenize("a", add_special=True, parse_special=True),
                engine.detokenize([1]),
                engine.render_chat([{"role": "user", "content": "a"}]),
            ):
                with pytest.raises(InvalidParamsError):
                    await question
            assert await engine.slots_in_use() is None
            assert await engine.metrics() == {}
            assert not await engine.forget(0)

    run(test)


def test_a_server_that_speaks_something_else_is_not_understood():
    async def test():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        engine = OpenAI({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        with pytest.raises(UnavailableError, match="no server of OpenAI's API"):
            await engine.properties()
        await engine.close()
        server.close()

    run(test)


def test_a_job_that_nobody_expected_ends_all_the_same():
    async def test():
        async with opened(dialect="vllm") as (engine, _):
            result, _, handle = await outcome(engine, changed(JOB, sampling={"top_k": "hot"}))
            assert (result.kind, result.retriable) == ("invalid", False)
            assert await handle.slot_free() == "slot-free"
            assert not engine.live

    run(test)
