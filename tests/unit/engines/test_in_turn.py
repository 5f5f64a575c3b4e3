"""Several answers made one after another: whatever happens in whatever order, it looks like one attempt."""

import asyncio

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from llama_orch.plugins import AttemptEnd, AttemptFailure, AttemptStart, Entry, GenerateJob, batch_of
from llama_orch.plugins.engines._in_turn import InTurn
from llama_orch.plugins.engines._shared_slots import SharedSlots
from llama_orch.plugins.engines._slots import EngineGoneError

JOB = GenerateJob(task_id="t", attempt=1, n=3, seed=2**32 - 1)


class Part:
    """One answer, which a test lets go on step by step."""

    def __init__(self, job, sink):
        self.job = job
        self.sink = sink
        self.over = False
        self.cancelled = False
        self.resumed = 0

    def cancel(self):
        self.cancelled = self.over = True

    async def slot_free(self):
        return "slot-free"

    def resume(self):
        self.resumed += 1


class Sink:
    """Keeps what it hears; asks for a pause when it is told to."""

    def __init__(self):
        self.heard = []
        self.wants_pause = False
        self.outcome = None

    def started(self, start):
        self.heard.append("started")

    def entries(self, batch):
        self.heard += [(entry.choice, entry.text) for entry in batch.entries()]

    def ended(self, end):
        self.outcome = end

    def failed(self, failure):
        self.outcome = failure

    def pressure(self):
        return self.wants_pause


def begun():
    parts, sink = [], Sink()

    def begin(job, inner):
        parts.append(Part(job, inner))
        return parts[-1]

    return InTurn(JOB, sink, begin), parts, sink


@given(st.lists(st.sampled_from(["start", "say", "say and pause", "resume", "end", "fail", "cancel"]), max_size=40))
def test_whatever_happens_it_is_one_attempt_with_its_answers_in_order(steps):
    attempt, parts, sink = begun()
    paused, cancelled, expected, ends = False, False, [], 0
    for step in steps:
        part = parts[-1]
        match step:
            case "start" if not part.over:
                part.sink.started(AttemptStart())
            case "say" | "say and pause" if not part.over and not paused:
                sink.wants_pause = paused = step == "say and pause"
                part.sink.entries(batch_of([Entry(text=f"{len(expected)}")]))
                if not cancelled:
                    expected.append((ends, f"{len(expected)}"))
                assert part.sink.pressure() == (paused and not cancelled and sink.outcome is None)
            case "resume":
                attempt.resume()
                paused = False
            case "end" if not part.over:
                part.over = True
                ends += 1
                part.sink.ended(
                    AttemptEnd(finish_reason="stop" if ends % 2 else "length", prompt_tokens=5, tokens=ends)
                )
                assert len(parts) == (ends if ends == JOB.n or paused else ends + 1)
            case "fail" if not part.over:
                part.over = True
                part.sink.failed(AttemptFailure(kind="cut", message="x"))
                assert isinstance(sink.outcome, AttemptFailure)
            case "cancel" if sink.outcome is None:
                attempt.cancel()
                cancelled = True
                assert part.cancelled
        assert [heard for heard in sink.heard if heard != "started"] == expected
        assert sink.heard.count("started") <= 1
        assert len(parts) <= JOB.n
        assert [p.job.seed for p in parts] == [(JOB.seed + k) % 2**32 for k in range(len(parts))]
        assert all(p.job == msgspec.structs.replace(JOB, n=1, seed=p.job.seed) for p in parts)
    if isinstance(sink.outcome, AttemptEnd):
        assert sink.outcome.finish_reasons == ("stop", "length", "stop")
        assert (sink.outcome.prompt_tokens, sink.outcome.tokens) == (5, 6)
    if cancelled:
        assert sink.outcome is None


# --- when a slot counts as free


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            return await test()

    return asyncio.run(bounded())


def test_a_slot_is_free_when_the_server_has_no_more_to_do_than_the_others():
    async def test():
        looks = [3, None, 2, 1]

        async def in_use():
            return looks.pop(0)

        slots = SharedSlots(in_use, patience_s=20)
        assert await slots.free(lambda: 1) == "slot-free"
        assert looks == []

    run(test)


def test_a_server_that_is_never_idle_is_waited_for_no_longer_than_the_patience():
    async def test():
        async def in_use():
            return 5

        assert await SharedSlots(in_use, patience_s=0.02).free(lambda: 0) == "not-seen"

    run(test)


def test_a_server_that_is_gone_or_given_up_ends_the_wait():
    async def test():
        async def gone():
            raise EngineGoneError

        async def busy():
            return 5

        assert await SharedSlots(gone, patience_s=20).free(lambda: 0) == "engine-gone"
        slots = SharedSlots(busy, patience_s=20)
        waiting = asyncio.create_task(slots.free(lambda: 0))
        await asyncio.sleep(0)
        await slots.close()
        assert await waiting == "engine-gone"
        assert await slots.free(lambda: 0) == "engine-gone"

    run(test)
