"""What the llama.cpp client asks for, and how it takes answers that are not as they should be."""

import asyncio
import contextlib
import json
from typing import Any, cast

import pytest

from llama_orch.core.errors import InvalidParamsError, UnavailableError
from llama_orch.plugins import ConfigError, EngineState, GenerateJob
from llama_orch.plugins.engines._mock_machine import Machine
from llama_orch.plugins.engines._mock_server import MockServer
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import Recorder

JOB = GenerateJob(task_id="t", attempt=1, prompt="hello", slot=1, seed=5, max_tokens=4)


class Scripted:
    """Answers each path with what a test says, or what a test's function makes of the body; keeps what was asked."""

    def __init__(self, **answers: Any):
        self.answers: dict[str, Any] = {
            "health": (200, {"status": "ok"}),
            "props": (200, {"total_slots": 2, "model_alias": "m", "build_info": "b1-x"}),
            "models": (200, {"data": [{"id": "m", "meta": {"n_params": 1}}]}),
            "slots": (200, [{"id": 0, "n_ctx": 512, "is_processing": False}, {"id": 1, "n_ctx": 512}]),
            **answers,
        }
        self.asked = {}
        self.heads = []

    @contextlib.asynccontextmanager
    async def engine(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        engine = LlamaCpp({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        yield engine
        await engine.close()
        server.close()

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                lengths = [int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")]
                body = await reader.readexactly(lengths[0] if lengths else 0)
                name = head.split()[1].rpartition("/")[2]
                self.asked[name] = json.loads(body) if body else None
                told = self.answers.get(name, (404, {"error": {"code": 404, "message": "File Not Found"}}))
                status, answer = cast("tuple[int, Any]", told(self.asked[name]) if callable(told) else told)
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(raw)) + raw)
        writer.close()


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def asked(**changes):
    """What `/completion` is asked for such a job."""
    found = {}

    async def test():
        server = Scripted(completion=(500, {}))
        async with server.engine() as engine:
            sink = Recorder()
            engine.generate(GenerateJob(**{**{f: getattr(JOB, f) for f in JOB.__struct_fields__}, **changes}), sink)
            await sink.failure()
        found.update(server.asked["completion"])

    run(test)
    return found


def test_a_request_streams_and_names_slot_seed_and_bounds():
    body = asked(
        sampling={"temperature": 0.5, "top_k": 40.0},
        stop=("a",),
        grammar="root ::= [0-9]",
        logprobs=True,
        top_logprobs=2,
    )
    assert body["stream"] is True
    assert (body["id_slot"], body["seed"], body["n_predict"], body["cache_prompt"]) == (1, 5, 4, False)
    assert body["temperature"] == 0.5
    assert body["top_k"] == 40
    assert isinstance(body["top_k"], int)
    assert (body["stop"], body["grammar"], body["n_probs"]) == (["a"], "root ::= [0-9]", 2)


def test_what_is_not_asked_for_is_left_to_the_engine():
    body = asked(slot=-1, max_tokens=0)
    assert body["n_predict"] == -1
    assert not body.keys() & {"id_slot", "stop", "grammar", "json_schema", "n_probs", "temperature"}


def test_the_seed_that_means_any_to_llama_cpp_is_not_sent():
    assert asked(seed=0xFFFFFFFF)["seed"] == 0xFFFFFFFE


def test_a_continued_job_is_prompt_and_prefix():
    assert asked(prefix=" world")["prompt"] == "hello world"


def test_a_schema_is_sent_as_a_grammar_so_that_no_build_can_ignore_it():
    body = asked(json_schema={"type": "boolean"})
    assert body["grammar"].startswith("root ::= boolean\n")
    assert "json_schema" not in body


@pytest.mark.parametrize(
    "changes", [{"json_schema": {"pattern": "x"}}, {"json_schema": {}, "grammar": "root ::= [0-9]"}]
)
def test_a_schema_that_cannot_be_kept_is_refused_without_asking(changes):
    async def test():
        server = Scripted()
        async with server.engine() as engine:
            sink = Recorder()
            job = GenerateJob(task_id="t", attempt=1, prompt="x", **changes)
            handle = engine.generate(job, sink)
            assert sink.heard == 0
            failure = await sink.failure()
            assert (failure.kind, failure.retriable) == ("invalid", False)
            assert await handle.slot_free() == "slot-free"
            assert "completion" not in server.asked

    run(test)


def test_a_prompt_whose_special_tokens_are_text_is_tokenized_first():
    async def test():
        server = Scripted(tokenize=(200, {"tokens": [1, 2, 3]}), completion=(500, {}))
        async with server.engine() as engine:
            sink = Recorder()
            engine.generate(GenerateJob(task_id="t", attempt=1, prompt="<s>", parse_special=False), sink)
            await sink.failure()
            assert server.asked["tokenize"] == {"content": "<s>", "add_special": True, "parse_special": False}
            assert server.asked["completion"]["prompt"] == [1, 2, 3]

    run(test)


@pytest.mark.parametrize(
    "status, body, kind, retriable",
    [
        (400, {"error": {"code": 400, "type": "exceed_context_size_error", "message": "too long"}}, "context", False),
        (400, {"error": {"code": 400, "type": "invalid_request_error", "message": "no"}}, "invalid", False),
        (401, {"error": {"code": 401, "message": "Invalid API Key"}}, "invalid", False),
        (404, b"<html>", "invalid", False),
        (429, b"", "refused", True),
        (500, {"error": "plain text"}, "server-error", True),
        (503, {"error": {"code": 503, "message": "Loading model"}}, "refused", True),
        (302, b"", "server-error", True),
        (200, b"<html>\n\n", "cut", True),
        (200, b"data: <html>\n\n", "garbage", True),
        (200, {"content": "a", "stop": True}, "cut", True),
    ],
)
def test_a_refusal_is_of_the_kind_that_its_status_and_body_say(status, body, kind, retriable):
    async def test():
        async with Scripted(completion=(status, body)).engine() as engine:
            sink = Recorder()
            engine.generate(JOB, sink)
            failure = await sink.failure()
            assert (failure.kind, failure.retriable) == (kind, retriable)
            assert failure.message

    run(test)


@pytest.mark.parametrize(
    "status, body, state",
    [
        (200, {"status": "ok"}, EngineState.READY),
        (503, {"error": {"code": 503, "message": "Loading model"}}, EngineState.LOADING),
        (500, b"", EngineState.FAILED),
        (404, b"nginx", EngineState.FAILED),
    ],
)
def test_health_is_what_the_status_says(status, body, state):
    async def test():
        async with Scripted(health=(status, body)).engine() as engine:
            health = await engine.health()
            assert health.state is state
            assert health.detail or state is EngineState.READY

    run(test)


def test_nobody_there_is_unreachable_everywhere():
    async def test():
        engine = LlamaCpp({"url": "http://127.0.0.1:9"})
        assert (await engine.health()).state is EngineState.UNREACHABLE
        for ask in (engine.properties, lambda: engine.tokenize("x", add_special=True, parse_special=True)):
            with pytest.raises(UnavailableError):
                await ask()
        assert await engine.slots_in_use() is None
        assert await engine.metrics() == {}
        sink = Recorder()
        handle = engine.generate(JOB, sink)
        assert (await sink.failure()).kind == "unreachable"
        assert await handle.slot_free() == "slot-free"
        await engine.close()

    run(test)


@pytest.mark.parametrize(
    "answers, says",
    [
        ({"props": (200, b"<html>")}, "no llama.cpp server"),
        ({"props": (401, {"error": {"code": 401, "message": "Invalid API Key"}})}, "Invalid API Key"),
        ({"models": (200, [])}, "no llama.cpp server"),
        ({"slots": (501, {"error": {"code": 501, "message": "disabled"}})}, "does not tell its slots"),
        ({"slots": (200, {"a": 1})}, "no llama.cpp server"),
    ],
)
def test_a_server_that_is_not_as_it_should_be_is_told_as_that(answers, says):
    async def test():
        async with Scripted(**answers).engine() as engine:
            with pytest.raises(UnavailableError, match=says):
                await engine.properties()

    run(test)


def test_properties_say_what_a_rerun_has_to_match():
    async def test():
        async with Scripted().engine() as engine:
            properties = await engine.properties()
            assert (properties.engine_version, properties.model_name) == ("b1-x", "m")
            assert (properties.slots, properties.ctx) == (2, 512)
            assert properties.model_digest.startswith("meta:")

    run(test)


def test_a_chat_that_the_probes_do_not_stand_for_is_rendered_by_the_engine():
    async def test():
        server = Scripted(**{"apply-template": (200, {"prompt": "as the engine says"})})
        async with server.engine() as engine:
            await engine.properties()
            assert await engine.render_chat([{"role": "tool", "content": "x"}]) == "as the engine says"
            assert server.asked["apply-template"] == {"messages": [{"role": "tool", "content": "x"}]}

    run(test)


def test_a_chat_that_the_engine_refuses_is_the_callers_mistake():
    async def test():
        refusal = {"error": {"code": 500, "message": "roles must alternate", "type": "server_error"}}
        async with Scripted(**{"apply-template": (500, refusal)}).engine() as engine:
            with pytest.raises(InvalidParamsError, match="roles must alternate") as caught:
                await engine.render_chat([{"role": "user", "content": "x"}])
            assert caught.value.field == "messages"

    run(test)


def test_once_compared_plain_chats_are_rendered_without_asking():
    async def test():
        server = MockServer(Machine())
        engine = LlamaCpp({"url": f"http://127.0.0.1:{await server.start()}"})
        await engine.properties()
        server.stop()
        chat = [{"role": "user", "content": "hi"}]
        assert await engine.render_chat(chat) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        with pytest.raises(UnavailableError):
            await engine.render_chat([{"role": "tool", "content": "x"}])
        await engine.close()

    run(test)


def test_an_address_that_is_none_is_an_error_of_configuration():
    with pytest.raises(ConfigError) as caught:
        LlamaCpp({"url": "localhost:80"})
    assert caught.value.field == "url"


def test_a_key_comes_from_the_environment_and_is_sent_with_every_request(monkeypatch):
    async def test():
        server = Scripted()
        async with server.engine() as plain:
            monkeypatch.setenv("THEIR_KEY", "k-123")
            url = f"http://127.0.0.1:{plain.http.port}"
            engine = LlamaCpp({"url": url, "api_key_env": "THEIR_KEY"})
            await engine.health()
            await engine.close()
            assert "Authorization: Bearer k-123\r\n" in server.heads[-1]
            await plain.health()
            assert "Authorization" not in server.heads[-1]

    run(test)
    with pytest.raises(ConfigError, match="NOT_THERE is not set"):
        LlamaCpp({"url": "http://127.0.0.1:1", "api_key_env": "NOT_THERE"})
