"""The mock: what it says is told by prompt and seed, how it fails by knobs."""

import asyncio
import contextlib
import signal
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llama_orch.plugins import ConfigError, EngineState, GenerateJob
from llama_orch.plugins.engines._mock_machine import Machine
from llama_orch.plugins.engines._mock_script import FAULTS, KnobError, Knobs, Speech, knobs_of, tokenize
from llama_orch.plugins.engines._mock_server import MockServer
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.plugins.testing.engines import Recorder


def run(test, *arguments):
    async def bounded():
        async with asyncio.timeout(30):
            await test(*arguments)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def in_process(**options):
    engine = MockEngine(options)
    yield engine
    await engine.close()


@contextlib.asynccontextmanager
async def on_the_wire(**options):
    server = MockServer(Machine(**options))
    engine = LlamaCpp({"url": f"http://127.0.0.1:{await server.start()}"})
    yield engine
    await engine.close()
    server.stop()


both = pytest.mark.parametrize("opened", [in_process, on_the_wire], ids=["in process", "on the wire"])


def say(engine, prompt, **changes):
    sink = Recorder()
    return sink, engine.generate(
        GenerateJob(**{"task_id": "t", "attempt": 1, "prompt": prompt, "slot": 0, **changes}), sink
    )


# --- what it says --------------------------------------------------------------------------------------------


def speak(knobs, prompt="p", *, seed=1, limit=0, room=10_000, stop=()):
    speech = Speech(knobs, prompt, seed=seed, limit=limit, room=room, stop=stop)
    frames = []
    while (frame := speech.next()) is not None:
        frames.append(frame)
    return "".join(f.text for f in frames), frames, speech


texts = st.sampled_from(["words", "utf8"])


@given(texts, st.integers(0, 40), st.text(max_size=8), st.integers(0, 2**32))
def test_the_same_prompt_and_seed_say_the_same(text, tokens, prompt, seed):
    knobs = Knobs(text=text, tokens=tokens)
    first, frames, speech = speak(knobs, prompt, seed=seed)
    assert speak(knobs, prompt, seed=seed)[0] == first
    assert sum(frame.tokens for frame in frames) == speech.counted == tokens
    assert speech.stop_type == "eos"


@given(st.integers(1, 30), st.data(), st.integers(0, 99))
def test_what_is_continued_from_a_prefix_is_what_the_unbroken_run_says(tokens, data, seed):
    whole, frames, _ = speak(Knobs(tokens=tokens), "prompt", seed=seed)
    done = data.draw(st.integers(0, tokens))
    prefix = "".join(frame.text for frame in frames[:done])
    rest, _, _ = speak(Knobs(tokens=tokens - done), "prompt" + prefix, seed=seed)
    assert prefix + rest == whole


@given(texts, st.integers(1, 60), st.sampled_from(["ke", " ke", "eb", "é", "🙂", "a", "akeb"]), st.integers(0, 50))
def test_a_stop_string_is_never_said_nor_anything_behind_it(text, tokens, stop, seed):
    free, _, _ = speak(Knobs(text=text, tokens=tokens), seed=seed)
    said, frames, speech = speak(Knobs(text=text, tokens=tokens), seed=seed, stop=[stop, "never said"])
    assert said == (free[: free.index(stop)] if stop in free else free)
    assert speech.stop_type == ("word" if stop in free else "eos")
    assert sum(frame.tokens for frame in frames) == speech.counted


def test_limits_end_it_as_limits():
    assert speak(Knobs(tokens=9), limit=4)[2].stop_type == "limit"
    assert speak(Knobs(tokens=9), room=4)[2].counted == 4
    assert speak(Knobs(tokens=4), limit=4)[2].stop_type == "eos"


def test_knobs_stand_in_the_prompt_or_in_the_defaults():
    knobs = knobs_of("a [[mock tokens=7 fault=cut:3]] b", {"rate": 5, "tokens": 2})
    assert (knobs.tokens, knobs.rate, knobs.fault_name, knobs.fault_after) == (7, 5.0, "cut", 3)
    assert knobs_of("[[mock]] and [mock tokens=1]", {}) == Knobs()


@pytest.mark.parametrize("wrong", ["tokens=x", "tokens=-1", "speed=1", "fault=explode", "fault=cut:x", "text=emoji"])
def test_a_wrong_knob_is_refused_by_name(wrong):
    with pytest.raises(KnobError, match=wrong.partition("=")[0]):
        knobs_of(f"[[mock {wrong}]]", {})
    name, _, value = wrong.partition("=")
    with pytest.raises(ConfigError):
        MockEngine({"script": {name: value}})


@given(st.text(), st.booleans())
def test_every_text_has_tokens(text, special):
    ids = tokenize(text, add_special=special)
    assert all(0 <= token < 2**31 for token in ids)
    assert (len(ids) - special == 0) == (text == "")


# --- how it fails --------------------------------------------------------------------------------------------


@both
def test_a_silent_engine_says_nothing_until_it_is_cancelled(opened):
    async def test():
        async with opened() as engine:
            sink, handle = say(engine, "[[mock fault=silent]]")
            other, _ = say(engine, "[[mock tokens=50]]", slot=1)
            await other.end()
            assert sink.heard == 0
            assert await engine.slots_in_use() == 1
            handle.cancel()
            assert await handle.slot_free() == "slot-free"

    run(test)


@both
def test_an_engine_that_falls_silent_has_said_what_it_said(opened):
    async def test():
        async with opened() as engine:
            sink, handle = say(engine, "[[mock fault=silent:5 tokens=50]]")
            await sink.until(lambda: sink.tokens == 5)
            other, _ = say(engine, "[[mock tokens=50]]", slot=1)
            await other.end()
            assert (sink.tokens, sink.outcome) == (5, None)
            handle.cancel()
            await handle.slot_free()

    run(test)


@both
def test_an_endless_engine_goes_on_beyond_every_bound(opened):
    async def test():
        async with opened(ctx=64) as engine:
            sink, handle = say(engine, "[[mock fault=endless]]", max_tokens=5)
            await sink.until(lambda: sink.tokens > 500)
            handle.cancel()
            assert await handle.slot_free() == "slot-free"

    run(test)


@both
def test_a_repeating_engine_says_one_token_over_and_over(opened):
    async def test():
        async with opened() as engine:
            sink, _ = say(engine, "[[mock fault=repeat:3 tokens=20]]")
            await sink.end()
            assert len(set(sink.text.split()[3:])) == 1
            assert sink.tokens == 20

    run(test)


@both
def test_a_slot_may_stay_busy_after_the_cancel_and_is_not_given_away_meanwhile(opened):
    async def test():
        async with opened() as engine:
            sink, handle = say(engine, "[[mock tokens=10000 rate=100 stall_ms=2000]]")
            await sink.until(lambda: sink.count >= 1)
            handle.cancel()
            sink.muted = True
            after, _ = say(engine, "[[mock tokens=1]]")
            waiting = asyncio.ensure_future(handle.slot_free())
            other, _ = say(engine, "[[mock tokens=50]]", slot=1)
            await other.end()
            assert not waiting.done()
            assert after.heard == 0
            assert await waiting in ("slot-free", "engine-gone")
            await after.end()
            assert sink.breaches == []

    run(test)


@both
def test_a_fault_may_strike_a_number_of_times_only(opened):
    async def test():
        async with opened() as engine:
            for expected in ("server-error", "server-error", None):
                sink, _ = say(engine, "[[mock fault=500 times=2 tokens=3]]")
                outcome = await sink.over()
                assert getattr(outcome, "kind", None) == expected

    run(test)


@both
def test_more_requests_than_slots_wait_in_order(opened):
    async def test():
        async with opened(slots=1) as engine:
            ended = []
            sinks = [Recorder() for _ in range(4)]
            for n, sink in enumerate(sinks):
                job = GenerateJob(task_id="t", attempt=1, prompt=f"{n} [[mock tokens=30 rate=1000]]", slot=-1)
                engine.generate(job, sink)
                await asyncio.sleep(0)
            for n, sink in enumerate(sinks):
                await sink.end()
                ended.append(n)
            assert ended == [0, 1, 2, 3]

    run(test)


@both
def test_a_slot_that_held_the_prompt_says_how_much_of_it_was_cached(opened):
    async def test():
        async with opened() as engine:
            cached = []
            for keep in (True, True, False):
                sink, _ = say(engine, "one two three [[mock tokens=2]]", cache_prompt=keep)
                cached.append((await sink.end()).cached_tokens)
            assert cached[0] == cached[2] == 0
            assert cached[1] > 0

    run(test)


def test_a_dead_mock_is_unreachable():
    async def test():
        async with in_process() as engine:
            sink, _ = say(engine, "[[mock fault=die:2]]")
            assert (await sink.failure()).kind == "cut"
            assert (await engine.health()).state is EngineState.UNREACHABLE
            assert await engine.slots_in_use() is None
            late, handle = say(engine, "x")
            assert (await late.failure()).kind == "unreachable"
            assert await handle.slot_free() == "engine-gone"

    run(test)


# --- as a process --------------------------------------------------------------------------------------------


def start(*arguments):
    argv = [sys.executable, "-m", "llama_orch.plugins.engines._mock_server", "--port", "0", *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def looks(engine):
    """Health checks, one after the other."""
    while True:
        yield await engine.health()


def url_of(process):
    return process.stdout.readline().rpartition(" ")[2].strip()


def test_the_mock_as_a_process_serves_loads_and_ends_with_sigterm():
    async def test(url):
        engine = LlamaCpp({"url": url})
        assert (await engine.health()).state is EngineState.LOADING
        async for health in looks(engine):
            if health.state is EngineState.READY:
                break
        properties = await engine.properties()
        assert (properties.model_name, properties.slots, properties.ctx) == ("name", 2, 99)
        sink, _ = say(engine, "hello")
        assert (await sink.end()).tokens == 5
        await engine.close()

    options = ("--script", '{"tokens": 5}', "--slots", "2", "--ctx", "99", "--model", "name", "--loading-ms", "2000")
    process = start(*options)
    run(test, url_of(process))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0


def test_the_fault_die_kills_the_process():
    async def test(url):
        engine = LlamaCpp({"url": url})
        sink, handle = say(engine, "[[mock fault=die:4]]")
        assert (await sink.failure()).kind == "cut"
        assert sink.tokens <= 4
        assert await handle.slot_free() == "engine-gone"
        await engine.close()

    process = start()
    run(test, url_of(process))
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("script", ["{", '{"fault": "explode"}', "[]"])
def test_a_wrong_script_is_refused_in_one_line(script):
    process = start("--script", script)
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.startswith("error: invalid: --script: ")
    assert len(said.splitlines()) == 1


def test_every_fault_is_documented():
    assert all(text for text in FAULTS.values())
