"""The package's server as a process: how it ends, how it says that it cannot start, how a pool keeps it."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llama_orch.core.settings import PoolSettings, ProvisioningSettings
from llama_orch.plugins import ChatJob, GenerateJob
from llama_orch.plugins.engines._llama_launch import LOG_CAUSES
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.testing.engines import Recorder
from llama_orch.pools import identity as identities
from llama_orch.pools.hosts import free_port
from llama_orch.pools.manager import PoolManager
from llama_orch.pools.outfitting import Outfitter

from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model
from ...unit.pools.conftest import TIMING, Heard, SystemClock, desired

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m.gguf")


def start(*arguments):
    argv = [sys.executable, "-m", "llama_orch.pools.llamacpp_server", *map(str, arguments), "--threads", "1"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_frees_its_port(model, number):
    port = free_port()
    process = start("--model", model, "--port", port)
    assert process.stdout is not None
    assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 0
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_is_said_and_nothing_starts(model):
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        port = blocker.getsockname()[1]
        process = start("--model", model, "--port", port)
        _, said = process.communicate()
    assert process.returncode == 3
    assert said.strip() == f"error: port-taken: 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize("kept_bytes", [None, 0, 300, 60_000])
def test_a_model_that_cannot_be_loaded_is_a_cause_that_the_log_names(model, tmp_path, kept_bytes):
    broken = tmp_path / "broken.gguf"
    if kept_bytes is not None:
        broken.write_bytes(model.read_bytes()[:kept_bytes])
    process = start("--model", broken, "--port", free_port())
    _, said = process.communicate()
    assert process.returncode == 3
    pattern, _, _ = next(found for found in LOG_CAUSES if found[1] == "bad-model")
    assert re.search(pattern, said), said


def test_an_engine_that_is_killed_in_the_middle_of_a_stream_is_a_cut(model):
    async def test(url):
        engine = LlamaCpp({"url": url})
        sink = Recorder()
        job = GenerateJob(task_id="t", attempt=1, prompt="Once", slot=0, max_tokens=2000)
        handle = engine.generate(job, sink)
        await sink.until(lambda: sink.count >= 3)
        [pid] = await asyncio.to_thread(listeners, url)
        os.kill(pid, signal.SIGKILL)
        assert (await sink.failure()).kind == "cut"
        assert await handle.slot_free() == "engine-gone"
        await engine.close()

    slow = write_model(model.parent / "slow.gguf", VARIANTS["slow"])
    with llama_server(slow) as url:
        asyncio.run(test(url))


def listeners(url):
    """Processes that were started with a URL's port."""
    port = url.rpartition(":")[2].encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--port" in arguments and port in arguments:
                found.append(int(entry.name))
    return found


def test_a_slot_that_prefills_is_free_only_after_its_cancel_took_effect(model):
    async def test(url):
        engine = LlamaCpp({"url": url})
        sink, after = Recorder(), Recorder()
        job = GenerateJob(task_id="t", attempt=1, prompt="word, " * 250, slot=0, max_tokens=1000)
        handle = engine.generate(job, sink)
        await sink.until(lambda: sink.heard > 0)
        assert sink.start is not None
        assert sink.count == 0, "the engine says that it began before it has a token"
        handle.cancel()
        sink.muted = True
        assert await handle.slot_free() == "slot-free"
        assert await engine.slots_in_use() == 0
        engine.generate(GenerateJob(task_id="t", attempt=2, prompt="Once", slot=0, max_tokens=2), after)
        await after.end()
        assert sink.breaches == []
        await engine.close()

    slow = write_model(model.parent / "slow.gguf", VARIANTS["slow"])
    with llama_server(slow) as url:
        asyncio.run(test(url))


@pytest.mark.parametrize(
    "arguments, config, forgets",
    [
        (("--slot-save-path", "/tmp/"), {}, True),
        (("--cache-ram", "0"), {"launched": True}, True),
        ((), {"launched": True, "cache_ram_mib": 64}, False),
        ((), {}, False),
    ],
    ids=["erases", "started here", "keeps prompts elsewhere", "somebody else's"],
)
def test_what_an_idle_slot_holds_is_given_up_where_that_is_for_good(model, arguments, config, forgets):
    async def test(url):
        engine = LlamaCpp({"url": url, **config})
        job = GenerateJob(task_id="t", attempt=1, prompt="Once upon a time", slot=1, max_tokens=1, cache_prompt=True)
        cached = []
        for time in range(3):
            if time == 2:
                assert await engine.forget(1) is forgets
            sink = Recorder()
            engine.generate(job, sink)
            cached.append((await sink.end()).cached_tokens)
        assert cached[0] == 0
        assert cached[1] > 0
        assert (cached[2] == 0) == forgets
        await engine.close()
        assert not await engine.forget(1), "nobody answers"

    with llama_server(model, extra=arguments) as url:
        asyncio.run(test(url))


@pytest.mark.parametrize(
    "chat, ends",
    [
        ([{"role": "user", "content": " Räin & <b>?"}], "assistant\n"),
        ([{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}], "assistant\n"),
        ([{"role": "user", "content": "one"}, {"role": "assistant", "content": "Once upon"}], "Once upon"),
    ],
    ids=["a question", "an instruction", "an answer that was begun"],
)
def test_a_chat_that_is_rendered_says_what_one_says_that_the_engine_parses(model, chat, ends):
    async def test(url):
        engine = LlamaCpp({"url": url})
        prompt = await engine.render_chat(chat)
        assert prompt.endswith(ends)
        said = []
        rendered = GenerateJob(task_id="t", attempt=1, workload="chat", seed=3, slot=0, max_tokens=12, prompt=prompt)
        for job in (rendered, msgspec.structs.replace(rendered, prompt="", chat=ChatJob(messages=chat))):
            sink = Recorder()
            engine.generate(job, sink)
            end = await sink.end()
            said.append((sink.text, end.tokens, end.prompt_tokens, end.finish_reason))
        assert said[0] == said[1]
        await engine.close()

    with llama_server(model) as url:
        asyncio.run(test(url))


def test_a_pool_of_the_package_starts_serves_says_what_it_runs_and_is_adopted(model, tmp_path):
    plugins = PluginManager(entry_points=False)

    def managed(heard):
        launchers = plugins.launchers()
        return PoolManager(
            sink=heard,
            data_dir=tmp_path,
            engines=plugins.engines(),
            launchers=launchers,
            preparer=Outfitter(launchers, {}, data_dir=tmp_path),
            clock=SystemClock(),
            timing=TIMING,
        )

    async def test():
        wanted = desired(PoolSettings(id="p", model=str(model), slots=2, provisioning=ProvisioningSettings(threads=1)))
        heard = Heard()
        first = managed(heard)
        await first.apply(wanted)
        sized = await heard.next("p", "PoolSized")
        assert sized["weights_bytes"] > 0
        properties = (await heard.next("p", "ready"))["properties"]
        assert properties.engine_version.startswith("xllamacpp 20")
        assert properties.model_digest.startswith("sha256:")
        assert (properties.slots, properties.ctx) == (2, 2048)
        record = identities.read(tmp_path / "engines" / "p.json")
        assert record is not None
        await first.stop(kill_engines=False)
        second = managed(heard)
        await second.apply(wanted)
        assert (await heard.next("p", "ready"))["properties"] == properties
        assert identities.read(tmp_path / "engines" / "p.json") == record
        await second.stop(kill_engines=True)
        await asyncio.to_thread(os.waitpid, record.pid, 0)

    asyncio.run(test())
