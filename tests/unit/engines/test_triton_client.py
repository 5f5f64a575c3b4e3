"""What the client of Triton asks for, what it refuses, and what it makes of a server that is not as it should be."""

import asyncio
import json
import subprocess
import sys

import msgspec
import pytest

from llama_orch.core.errors import ConfigError, InvalidParamsError, UnavailableError
from llama_orch.plugins import AttemptFailure, ChatJob, EngineState, GenerateJob
from llama_orch.plugins.engines._stream_attempt import RefusedError
from llama_orch.plugins.engines._triton_model import Model, Tensor, limit_of, tensors_of
from llama_orch.plugins.engines.triton import Triton
from llama_orch.plugins.testing.engines import Recorder

from ...support.triton_grpc_server import TritonGrpcServer
from ...support.triton_server import INPUTS, MODEL, TritonServer

JOB = GenerateJob(task_id="t", attempt=1, prompt="hello", slot=1, seed=5, max_tokens=4)
TENSORRT = {
    "text_input": "BYTES", "max_tokens": "INT32", "stream": "BOOL", "stop_words": "BYTES", "random_seed": "UINT64",
    "temperature": "FP32", "top_k": "INT32", "top_p": "FP32", "repetition_penalty": "FP32",
    "guided_decoding_guide_type": "BYTES", "guided_decoding_guide": "BYTES", "exclude_input_in_output": "BOOL",
}  # fmt: skip
VLLM = {
    "text_input": "BYTES", "stream": "BOOL", "sampling_parameters": "BYTES", "exclude_input_in_output": "BOOL",
    "return_finish_reason": "BOOL", "return_num_output_tokens": "BOOL",
}  # fmt: skip


def model(inputs, *outputs):
    return Model(
        name="m",
        inputs=[Tensor(name, kind, [1]) for name, kind in inputs.items()],
        outputs=[Tensor(name, "BYTES", [1]) for name in outputs or ("text_output",)],
    )


def job(**changes):
    return msgspec.structs.replace(JOB, **changes)


def tensors(inputs, **changes):
    asked = job(**changes)
    return tensors_of(asked, model(inputs), prompt=asked.prompt, max_tokens=limit_of(asked, 0))


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


# --- what is asked for


def test_parameters_of_tensorrt_llm_are_tensors_of_their_own():
    assert tensors(TENSORRT, sampling={"temperature": 0.5, "top_k": 40.0, "repeat_penalty": 1.1}, stop=("a",)) == {
        "text_input": "hello",
        "stream": True,
        "exclude_input_in_output": True,
        "max_tokens": 4,
        "temperature": 0.5,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "stop_words": ["a"],
        "random_seed": 5,
    }


def test_parameters_of_the_vllm_backend_are_one_text_of_json():
    asked = tensors(VLLM, sampling={"temperature": 0.5, "top_k": 40.0, "repeat_penalty": 1.1}, stop=("a",))
    told = json.loads(asked.pop("sampling_parameters"))
    assert told == {
        "max_tokens": 4, "seed": 5, "temperature": 0.5, "top_k": 40, "repetition_penalty": 1.1, "stop": ["a"],
    }  # fmt: skip
    assert asked.keys() == VLLM.keys() - {"sampling_parameters"}


def test_a_temperature_of_nought_is_the_likeliest_token():
    asked = tensors(TENSORRT, sampling={"temperature": 0.0, "top_k": 40.0})
    assert asked["top_k"] == 1
    assert "temperature" not in asked
    bare = {"text_input": "BYTES", "max_tokens": "INT32", "temperature": "FP32"}
    assert tensors(bare, sampling={"temperature": 0.0})["temperature"] == 0


def test_values_that_change_nothing_need_no_input_and_others_are_refused_by_name():
    bare = {"text_input": "BYTES", "max_tokens": "INT32"}
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0.0, "min_p": 0.0, "presence_penalty": 0.0}
    assert tensors(bare, sampling=neutral) == {"text_input": "hello", "max_tokens": 4}
    for name, value in {"temperature": 0.9, "presence_penalty": 0.5, "top_p": 0.5}.items():
        with pytest.raises(RefusedError, match=f"^{name}: ") as refused:
            tensors(bare, sampling={name: value})
        assert (refused.value.failure.kind, refused.value.failure.retriable) == ("invalid", False)


def test_a_schema_is_a_guide_of_the_decoding():
    asked = tensors(TENSORRT, json_schema={"type": "boolean"})
    assert asked["guided_decoding_guide_type"] == "json_schema"
    assert json.loads(asked["guided_decoding_guide"]) == {"type": "boolean"}
    with pytest.raises(RefusedError, match="json_schema"):
        tensors(VLLM, json_schema={})


def test_without_a_bound_half_of_the_context_is_asked_for():
    assert limit_of(job(max_tokens=0), 100) == 50
    assert limit_of(job(max_tokens=0), 0) > 0
    assert limit_of(job(max_tokens=7), 100) == 7


def test_a_model_that_takes_no_text_does_nothing_and_says_what_it_takes():
    with pytest.raises(RefusedError, match="IMAGE"):
        tensors_of(JOB, model({"IMAGE": "FP32"}), prompt="x", max_tokens=1)


def test_a_model_that_takes_no_bound_is_not_asked_without_one():
    with pytest.raises(RefusedError, match=r"^max_tokens: m takes text_input, and none"):
        tensors({"text_input": "BYTES"})


def test_a_stream_over_http_names_model_and_version():
    async def test():
        async with TritonServer().serving() as server:
            engine = Triton({"url": server.url, "model": MODEL, "version": "3"})
            sink = Recorder()
            engine.generate(JOB, sink)
            assert (await sink.failure()).kind == "invalid"
            assert server.heads[0].startswith(f"GET /v2/models/{MODEL}/versions/3 ")
            await engine.close()

    run(test)


def test_inputs_over_grpc_have_the_types_that_the_model_takes():
    async def test():
        async with TritonGrpcServer().serving() as server:
            engine = Triton({"url": server.url, "model": MODEL})
            sink = Recorder()
            engine.generate(job(sampling={"temperature": 0.5}, stop=("ä", "b")), sink)
            await sink.end()
            [request] = server.asked
            told = {each.name: (each.datatype, list(each.shape)) for each in request.inputs}
            assert told["text_input"] == ("BYTES", [1])
            assert told["stop_words"] == ("BYTES", [2])
            assert told["random_seed"] == ("UINT64", [1])
            values = {each.name: each.contents for each in request.inputs}
            assert list(values["stop_words"].bytes_contents) == ["ä".encode(), b"b"]
            assert values["temperature"].fp32_contents == [0.5]
            await engine.close()

    run(test)


# --- how it is configured


@pytest.mark.parametrize(
    "config, field",
    [
        ({"url": "http://127.0.0.1:1"}, "provisioning.options.served_model"),
        ({"url": "http://127.0.0.1:1", "model": "a/b"}, "provisioning.options.served_model"),
        ({"url": "ftp://127.0.0.1", "model": "m"}, "url"),
        ({"url": "grpc://127.0.0.1", "model": "m"}, "url"),
        ({"url": "http://a", "model": "m", "metrics_url": "x"}, "url"),
        ({"url": "http://a", "model": "m", "api_key_env": "NO_SUCH_KEY_HERE"}, "provisioning.options.api_key_env"),
        ({"url": "http://a", "model": "m", "release_ms": "soon"}, "provisioning.options.release_ms"),
        ({"url": "http://a", "model": "m", "options": {"chat_templat": "x"}}, "provisioning.options.chat_templat"),
        ({"url": "http://a", "model": "m", "chat_template": "/no/such"}, "provisioning.options.chat_template"),
        ({"url": "http://a", "model": "m", "chat_template": "{% if %}"}, "provisioning.options.chat_template"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_by_the_name_of_its_field(config, field):
    with pytest.raises(ConfigError) as refused:
        Triton(config)
    assert refused.value.field == field


def test_grpc_without_its_package_says_which_extra_has_it_and_http_needs_none():
    program = (
        "import sys; sys.modules['tritonclient'] = None\n"
        "from llama_orch.plugins.engines.triton import Triton\n"
        "Triton({'url': 'http://127.0.0.1:1', 'model': 'm'})\n"
        "try: Triton({'url': 'grpc://127.0.0.1:1', 'model': 'm'})\n"
        "except Exception as error: print(type(error).__name__, error.what_to_do)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.startswith("ConfigError pip install 'llama-orch[triton]'")


def test_a_template_may_be_a_file_and_its_answer_goes_on_from_the_prompt(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}|{% endfor %}")

    async def test():
        async with TritonServer().serving() as server:
            options = {"model": MODEL, "chat_template": str(path), "bos_token": "<s>"}
            engine = Triton({"url": server.url, **options})
            parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
            assert await engine.render_chat([{"role": "user", "content": parts}]) == "<s>ab|"
            sink = Recorder()
            chat = ChatJob(messages=[{"role": "user", "content": "hi"}])
            engine.generate(job(prompt="", chat=chat, workload="chat"), sink)
            await sink.end()
            assert server.asked[-1][1]["text_input"] == "<s>hi|"
            await engine.close()

    run(test)


def test_a_chat_that_the_template_refuses_is_refused():
    async def test():
        async with TritonServer().serving() as server:
            template = "{{ raise_exception('no chats on sundays') }}"
            engine = Triton({"url": server.url, "model": MODEL, "chat_template": template})
            chat = [{"role": "user", "content": "hi"}]
            with pytest.raises(InvalidParamsError, match="sundays"):
                await engine.render_chat(chat)
            with pytest.raises(InvalidParamsError, match="tools"):
                await engine.render_chat(chat, tools=[{}])
            sink = Recorder()
            handle = engine.generate(job(prompt="", chat=ChatJob(messages=chat), workload="chat"), sink)
            failure = await sink.failure()
            assert (failure.kind, "sundays" in failure.message) == ("invalid", True)
            assert await handle.slot_free() == "slot-free"
            await engine.close()

    run(test)


# --- servers that are not as they should be


@pytest.mark.parametrize("kind", [TritonServer, TritonGrpcServer])
def test_a_model_that_is_not_there_is_told_from_one_that_loads(kind):
    async def test():
        async with kind(fault="loading").serving() as server:
            engine = Triton({"url": server.url, "model": MODEL})
            assert (await engine.health()).state is EngineState.LOADING
            with pytest.raises(UnavailableError):
                await engine.properties()
            sink = Recorder()
            engine.generate(JOB, sink)
            failure = await sink.failure()
            assert (failure.kind, failure.retriable) == ("refused", True)
            await engine.close()

    run(test)


def test_a_server_that_is_no_triton_is_not_understood():
    async def test():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
            engine = Triton({"url": f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}", "model": MODEL})
            with pytest.raises(UnavailableError, match="no Triton"):
                await engine.properties()
            sink = Recorder()
            engine.generate(JOB, sink)
            assert (await sink.failure()).kind == "garbage"
            await engine.close()

    run(test)


@pytest.mark.parametrize("kind", [TritonServer, TritonGrpcServer])
def test_a_model_that_says_no_texts_is_not_ready_and_does_nothing(kind):
    async def test():
        async with kind(inputs={"picture": "BYTES"}).serving() as server:
            engine = Triton({"url": server.url, "model": MODEL})
            with pytest.raises(UnavailableError, match="picture"):
                await engine.properties()
            sink = Recorder()
            handle = engine.generate(JOB, sink)
            assert (await sink.failure()).kind == "invalid"
            assert await handle.slot_free() == "slot-free"
            await engine.close()

    run(test)


def test_an_input_of_a_type_that_grpc_cannot_carry_is_refused():
    async def test():
        async with TritonGrpcServer(inputs={**INPUTS, "temperature": "FP16"}).serving() as server:
            engine = Triton({"url": server.url, "model": MODEL})
            sink = Recorder()
            handle = engine.generate(job(sampling={"temperature": 0.5}), sink)
            failure = await sink.failure()
            assert (failure.kind, "FP16" in failure.message) == ("invalid", True)
            assert await handle.slot_free() == "slot-free"
            assert engine.sent == 0
            await engine.close()

    run(test)


def test_a_value_that_is_none_of_the_inputs_type_is_refused_by_its_name():
    async def test():
        async with TritonGrpcServer(inputs={**INPUTS, "random_seed": "INT32"}).serving() as server:
            engine, sink = Triton({"url": server.url, "model": MODEL}), Recorder()
            engine.generate(job(seed=2**32 - 1), sink)
            failure = await sink.failure()
            assert (failure.kind, failure.retriable) == ("invalid", False)
            assert failure.message.startswith("random_seed: 4294967295 is no INT32")
            await engine.close()

    run(test)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_at_the_address_is_unreachable(scheme):
    async def test():
        async with await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0) as other:
            port = other.sockets[0].getsockname()[1]
        engine = Triton({"url": f"{scheme}://127.0.0.1:{port}", "model": MODEL})
        assert (await engine.health()).state is EngineState.UNREACHABLE
        sink = Recorder()
        handle = engine.generate(JOB, sink)
        outcome = await sink.over()
        assert isinstance(outcome, AttemptFailure)
        assert (outcome.kind, outcome.retriable) == ("unreachable", True)
        assert await handle.slot_free() == "slot-free"
        await engine.close()
        after = Recorder()
        engine.generate(JOB, after)
        assert (await after.failure()).kind == "unreachable", "a closed client speaks to nobody"

    run(test)


@pytest.mark.parametrize("kind", [TritonServer, TritonGrpcServer])
def test_a_cancel_reaches_the_server_and_its_counters_tell_when_it_is_done(kind):
    async def test():
        async with kind().serving() as server:
            engine = Triton({"url": server.url, "model": MODEL})
            sink = Recorder()
            handle = engine.generate(job(prompt="[[mock tokens=4000 rate=100]]", max_tokens=4000), sink)
            await sink.until(lambda: sink.count >= 2)
            handle.cancel()
            assert await handle.slot_free() == "slot-free"
            assert server.left.is_set()
            assert server.completed == 1
            await engine.close()

    run(test)


def test_a_server_whose_counters_tell_nothing_of_use_holds_a_slot_no_longer_than_configured():
    async def test():
        async with TritonServer().serving() as server:
            engine = Triton({"url": server.url, "model": MODEL, "release_ms": 30})
            sink, after = Recorder(), Recorder()
            handle = engine.generate(job(prompt="[[mock tokens=4000 rate=100]]", max_tokens=4000), sink)
            await sink.until(lambda: sink.count >= 2)
            server.completed = -1_000_000  # it never gets there
            handle.cancel()
            assert await handle.slot_free() == "slot-free"
            engine.generate(JOB, after)
            await after.end()
            await engine.close()

    run(test)
