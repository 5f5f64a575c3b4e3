"""The contract of engines: servers that break. For clients of servers whose dialect a stand-in speaks.

Inherit :class:`FaultContract` beside :class:`EngineContract`, and give the fixture ``faulty``: it opens the client on a
stand-in that acts one of :data:`FAULTS` towards every job.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Final

import pytest

from ....core.engine_ports import Engine, EngineState, GenerateJob
from .recorder import PATIENCE_S, Recorder
from .suite import Suite

#: a client on a stand-in that acts this fault; "" = none
OpenFaulty = Callable[[str], AbstractAsyncContextManager[Engine]]
#: what a stand-in acts, and when. "after some" is after three tokens of a text, before the result of anything else
FAULTS: Final[dict[str, str]] = {
    "refused": "503 (or what the dialect says when it is full) before anything else",
    "server-error": "500 before anything else",
    "loading": "it is still loading: its health says so, and it refuses jobs as it does then",
    "cut": "the connection is reset after some",
    "cut-early": "the connection is reset before anything was said",
    "dies": "the connection is reset after some, and nobody answers at the address any more",
    "garbage": "bytes that are no frame, after some",
    "bad-utf8": "a frame whose text is no UTF-8, after some",
    "error-frame": "an error in the stream, after some, as the dialect has it",
    "unfinished": "the body ends properly after some, without what ends a stream in this dialect",
    "silent": "nothing more after some, and the connection stays open",
    "slow": "some milliseconds between two tokens; nothing else is wrong",
    "split": "every byte of the answer in a write of its own; nothing else is wrong",
}
#: those that end an attempt, and as what
BREAKING: Final[dict[str, str]] = {
    "refused": "refused",
    "server-error": "server-error",
    "loading": "refused",
    "cut": "cut",
    "cut-early": "cut",
    "dies": "cut",
    "garbage": "garbage",
    "bad-utf8": "garbage",
    "error-frame": "server-error",
    "unfinished": "cut",
}
#: a result in one piece breaks as one of these; a client that asks again on a new connection, where a kept one broke
#: before anything was said, finds nobody
_WHOLE: Final = frozenset({"refused", "server-error", "cut", "garbage", "unreachable"})


class FaultContract(Suite):
    """Every fault is a failure of its kind, whatever was asked for; nothing is lost, doubled or made up."""

    #: faults that the dialect does not show (with the reason in a comment where it is set)
    hidden_faults: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture
    def faulty(self) -> OpenFaulty:
        """How to open the client on a stand-in that acts a fault."""
        raise NotImplementedError

    def kinds(self, claims: frozenset[str]) -> dict[str, GenerateJob]:
        """One job of each kind that the engine claims to do."""
        jobs: dict[str, GenerateJob] = {}
        if "completion" in claims:
            jobs["completion"] = self.job(self.utf8_prompt)
            jobs["two answers"] = self.job(self.utf8_prompt, n=2)
        if {"completion", "logprobs"} <= claims:
            jobs["probabilities"] = self.job(self.utf8_prompt, logprobs=True, top_logprobs=2)
        if "chat" in claims:
            jobs["chat"] = self.chat_job(self.utf8_prompt)
        if "tools" in claims:
            jobs["tool call"] = self.tool_job()
        if "reasoning" in claims:
            jobs["thoughts"] = self.thinking_job()
        if "embedding" in claims:
            jobs["embedding"] = self.embedding_job(("a", "b"))
        if "rerank" in claims:
            jobs["rerank"] = self.rerank_job("a", ("b", "c"))
        return jobs

    async def _jobs(self, faulty: OpenFaulty) -> dict[str, GenerateJob]:
        async with faulty("") as it:
            return self.kinds(await self.claims(it))

    @pytest.mark.parametrize("fault", sorted(BREAKING))
    def test_a_server_that_breaks_is_a_failure_of_its_kind(self, faulty: OpenFaulty, fault: str) -> None:
        async def test() -> None:
            if fault in self.hidden_faults:
                return
            for name, job in (await self._jobs(faulty)).items():
                async with faulty(fault) as it:
                    sink = Recorder()
                    handle = it.generate(job, sink)
                    failure = await sink.failure()
                    allowed = {BREAKING[fault]} if not job.inputs else _WHOLE
                    assert failure.kind in allowed, (fault, name, failure)
                    assert failure.retriable, (fault, name, failure)
                    assert failure.message
                    async with asyncio.timeout(PATIENCE_S):
                        freed = await handle.slot_free()
                    assert freed in ("slot-free", "engine-gone")
                    if fault == "dies" and failure.kind != "unreachable":
                        assert freed == "engine-gone"

        self.run(test())

    def test_what_was_said_before_the_fault_was_heard(self, faulty: OpenFaulty) -> None:
        async def test() -> None:
            for fault in ("cut", "garbage", "error-frame"):
                async with faulty(fault) as it:
                    if fault in self.hidden_faults or "completion" not in await self.claims(it):
                        continue
                    sink = Recorder()
                    it.generate(self.job(self.prompt(16)), sink)
                    await sink.failure()
                    assert sink.start is not None
                    assert sink.tokens >= 1, fault

        self.run(test())

    def test_a_dead_server_is_unreachable_and_a_loading_one_is_loading(self, faulty: OpenFaulty) -> None:
        async def test() -> None:
            async with faulty("dies") as it:
                sink = Recorder()
                job = next(iter(self.kinds(await self.claims(it)).values()))
                it.generate(job, sink)
                await sink.failure()
                async with asyncio.timeout(PATIENCE_S):
                    health = await it.health()
                    while health.state is not EngineState.UNREACHABLE:  # the process is still falling
                        health = await it.health()
                after = Recorder()
                handle = it.generate(job, after)
                failure = await after.failure()
                assert (failure.kind, failure.retriable) == ("unreachable", True)
                assert await handle.slot_free() in ("slot-free", "engine-gone")
            if "loading" not in self.hidden_faults:
                async with faulty("loading") as it:
                    assert (await it.health()).state is EngineState.LOADING

        self.run(test())

    def test_a_server_that_falls_silent_can_be_left(self, faulty: OpenFaulty) -> None:
        async def test() -> None:
            for job in (await self._jobs(faulty)).values():
                async with faulty("silent") as it:
                    sink = Recorder()
                    handle = it.generate(job, sink)
                    if not job.inputs:
                        await sink.until(functools.partial(_heard, sink))
                    await self.cancels(handle, sink)
                    assert sink.breaches == []
                    assert sink.outcome is None

        self.run(test())

    @pytest.mark.parametrize("fault", ["slow", "split"])
    def test_a_stream_in_pieces_says_the_same(self, faulty: OpenFaulty, fault: str) -> None:
        async def test() -> None:
            for name, job in (await self._jobs(faulty)).items():
                async with faulty("") as it:
                    end, plain = await self.said(it, job)
                async with faulty(fault) as it:
                    same, pieces = await self.said(it, job)
                assert pieces.channels == plain.channels, name
                assert (same.tokens, same.finish_reason, same.result) == (end.tokens, end.finish_reason, end.result)
                assert pieces.tokens == plain.tokens

        self.run(test())


def _heard(sink: Recorder) -> bool:
    return sink.heard > 0
