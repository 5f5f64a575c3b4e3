"""What the client of TGI asks for, what it refuses, and what it makes of a server that is not as it should be."""

import asyncio
import json

import msgspec
import pytest

from llama_orch.core.errors import ConfigError, InvalidParamsError, UnavailableError
from llama_orch.plugins import ChatJob, EngineState, GenerateJob
from llama_orch.plugins.engines._stream_attempt import RefusedError
from llama_orch.plugins.engines._tgi_request import body_of
from llama_orch.plugins.engines.tgi import Tgi
from llama_orch.plugins.testing.engines import Recorder

from ...support.tgi_server import TgiServer

JOB = GenerateJob(task_id="t", attempt=1, prompt="hello", slot=1, seed=5, max_tokens=4)
CHAT = [{"role": "user", "content": "hi"}]


def job(**changes):
    return msgspec.structs.replace(JOB, **changes)


def asked(**changes):
    body = json.loads(body_of(job(**changes), "hello", max_stop_sequences=4))
    assert body["inputs"] == "hello"
    assert body["parameters"].pop("details") is True, "without it the last frame tells no count"
    assert body["parameters"].pop("return_full_text") is False
    return body["parameters"]


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


# --- what is asked for


def test_parameters_have_the_names_of_tgi():
    sampling = {"temperature": 0.5, "top_k": 40.0, "top_p": 0.9, "repeat_penalty": 1.1, "frequency_penalty": 0.2}
    assert asked(sampling=sampling, stop=("a", ""), top_logprobs=3) == {
        "max_new_tokens": 4,
        "seed": 5,
        "temperature": 0.5,
        "do_sample": True,
        "top_k": 40,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "stop": ["a"],
        "top_n_tokens": 3,
    }


def test_what_is_not_asked_for_is_left_to_the_engine():
    assert asked(max_tokens=0) == {"max_new_tokens": None, "seed": 5}


def test_values_that_switch_a_parameter_off_are_left_out_since_tgi_refuses_them():
    assert asked(sampling={"top_p": 1.0, "top_k": 0.0, "min_p": 0.0, "presence_penalty": 0.0}).keys() == {
        "max_new_tokens",
        "seed",
    }


def test_a_temperature_of_nought_is_greedy_whatever_else_narrows_the_choice():
    found = asked(sampling={"temperature": 0.0, "top_p": 0.5, "top_k": 3.0, "repeat_penalty": 1.2})
    assert found == {"max_new_tokens": 4, "seed": 5, "repetition_penalty": 1.2}


@pytest.mark.parametrize("name", ["min_p", "presence_penalty", "mirostat"])
def test_a_parameter_that_tgi_does_not_have_is_refused_by_name(name):
    with pytest.raises(RefusedError, match=f"^{name}: ") as refused:
        asked(sampling={name: 0.5})
    assert (refused.value.failure.kind, refused.value.failure.retriable) == ("invalid", False)


def test_a_schema_is_a_grammar_of_json_and_has_to_be_one_of_objects():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert asked(json_schema=schema)["grammar"] == {"type": "json", "value": schema}
    with pytest.raises(RefusedError, match="properties"):
        asked(json_schema={"type": "boolean"})


def test_more_stop_strings_than_the_server_takes_are_looked_for_here():
    async def test():
        async with TgiServer().serving() as server:
            engine, free, sink = Tgi({"url": server.url}), Recorder(), Recorder()
            engine.generate(job(max_tokens=40, prompt="[[mock tokens=40]]"), free)
            await free.end()
            last = free.text.split()[5]
            stop = (*(f"<{n}>" for n in range(server.max_stop_sequences)), last)
            handle = engine.generate(job(max_tokens=40, prompt="[[mock tokens=40]]", stop=stop), sink)
            end = await sink.end()
            assert (end.finish_reason, sink.text) == ("stop", free.text[: free.text.index(last)])
            assert await handle.slot_free() == "slot-free"
            assert server.busy == 0
            await engine.close()

    run(test)


def test_what_the_server_limits_it_refuses_itself_and_that_is_told():
    async def test():
        async with TgiServer().serving() as server:
            engine, sink = Tgi({"url": server.url}), Recorder()
            engine.generate(job(logprobs=True, top_logprobs=20), sink)
            failure = await sink.failure()
            assert (failure.kind, "top_n_tokens" in failure.message) == ("invalid", True)
            await engine.close()

    run(test)


def test_a_chat_has_the_token_that_begins_a_sequence_once():
    async def test():
        async with TgiServer().serving() as server:
            engine, sink = Tgi({"url": server.url}), Recorder()
            assert await engine.render_chat(CHAT) == "[user] hi\n[assistant]"
            engine.generate(job(prompt="", chat=ChatJob(messages=CHAT), workload="chat"), sink)
            await sink.end()
            path, body = server.asked[-1]
            assert (path, body["inputs"]) == ("/generate_stream", "[user] hi\n[assistant]")
            await engine.close()

    run(test)


@pytest.mark.parametrize("known", [False, True])
def test_a_job_that_nobody_expected_ends_all_the_same(known):
    async def test():
        async with TgiServer().serving() as server:
            engine, sink = Tgi({"url": server.url}), Recorder()
            if known:
                await engine.properties()
            handle = engine.generate(job(sampling={"temperature": "hot"}), sink)
            failure = await sink.failure()
            assert (failure.kind, failure.retriable) == ("invalid", False)
            assert await handle.slot_free() == "slot-free"
            assert not engine.live
            await engine.close()

    run(test)


def test_a_model_without_a_template_takes_no_chats():
    async def test():
        async with TgiServer(chats=False).serving() as server:
            engine, sink = Tgi({"url": server.url}), Recorder()
            properties = await engine.properties()
            assert properties.workloads == ("completion",)
            assert "render" not in properties.features
            with pytest.raises(InvalidParamsError, match="no chat template"):
                await engine.render_chat(CHAT)
            engine.generate(job(prompt="", chat=ChatJob(messages=CHAT), workload="chat"), sink)
            assert (await sink.failure()).kind == "invalid"
            await engine.close()

    run(test)


def test_tools_and_variables_of_the_template_are_refused_by_name():
    async def test():
        async with TgiServer().serving() as server:
            engine = Tgi({"url": server.url})
            with pytest.raises(InvalidParamsError, match="tools"):
                await engine.render_chat(CHAT, tools=[{}])
            with pytest.raises(InvalidParamsError, match="chat_template_kwargs"):
                await engine.render_chat(CHAT, template_kwargs={"a": 1})
            await engine.close()

    run(test)


@pytest.mark.parametrize("flags", [(False, True), (True, False)])
def test_tokens_that_tgi_cannot_tell_are_refused(flags):
    async def test():
        async with TgiServer().serving() as server:
            engine = Tgi({"url": server.url})
            with pytest.raises(InvalidParamsError):
                await engine.tokenize("a", add_special=flags[0], parse_special=flags[1])
            await engine.close()

    run(test)


# --- what it says of itself


def test_slots_and_context_are_the_servers_unless_they_are_configured():
    async def test():
        async with TgiServer().serving() as server:
            engine = Tgi({"url": server.url})
            told = await engine.properties()
            assert (told.slots, told.ctx, told.model_name) == (3, 4096, "made/up")
            assert told.engine_version == "tgi 2.4.1 (fedcba987654)"
            await engine.close()
            engine = Tgi({"url": server.url, "slots": 7, "ctx": 100})
            told = await engine.properties()
            assert (told.slots, told.ctx) == (7, 100)
            assert (await engine.metrics())["tgi_batch_current_size"] == 0
            await engine.close()

    run(test)


def test_a_server_whose_model_fails_is_told_from_one_that_loads():
    async def test():
        answers = [b'{"error":"unhealthy","error_type":"healthcheck"}', b'{"error":"Model is loading"}']

        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            body = answers.pop(0)
            writer.write(b"HTTP/1.1 503 X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
            engine = Tgi({"url": f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"})
            assert (await engine.health()).state is EngineState.FAILED
            assert (await engine.health()).state is EngineState.LOADING
            await engine.close()

    run(test)


def test_a_server_that_is_no_tgi_is_not_understood():
    async def test():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
            engine = Tgi({"url": f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"})
            with pytest.raises(UnavailableError, match="no TGI"):
                await engine.properties()
            with pytest.raises(UnavailableError):
                await engine.tokenize("a", add_special=True, parse_special=True)
            await engine.close()

    run(test)


def test_a_key_comes_from_the_environment_and_goes_with_every_request(monkeypatch):
    async def test():
        async with TgiServer().serving() as server:
            engine = Tgi({"url": server.url, "api_key_env": "TGI_KEY_OF_A_TEST"})
            await engine.properties()
            assert server.heads
            assert all("\r\nAuthorization: Bearer s3cret\r\n" in head for head in server.heads)
            await engine.close()

    monkeypatch.setenv("TGI_KEY_OF_A_TEST", "s3cret")
    run(test)
    monkeypatch.setenv("TGI_KEY_OF_A_TEST", "line\nbreak")
    with pytest.raises(ConfigError) as refused:
        Tgi({"url": "http://127.0.0.1:1", "api_key_env": "TGI_KEY_OF_A_TEST"})
    assert "line" not in str(refused.value.to_dict())


def test_several_answers_pause_between_them_when_nobody_reads():
    async def test():
        async with TgiServer().serving() as server:
            engine = Tgi({"url": server.url})
            sink = Recorder(pause_after=4)
            handle = engine.generate(job(n=2), sink)
            await sink.until(lambda: sink.count >= 4)
            assert [path for path, _ in server.asked].count("/generate_stream") == 1
            handle.resume()
            end = await sink.end()
            assert (end.finish_reasons, end.tokens) == (("length", "length"), 8)
            seeds = [body["parameters"]["seed"] for path, body in server.asked if path == "/generate_stream"]
            assert seeds == [5, 6]
            await engine.close()

    run(test)
