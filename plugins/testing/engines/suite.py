"""How the contract's parts get at the engine under test, and the jobs that they give it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, Literal, TypeVar

import msgspec
import pytest

from ....core.engine_ports import AttemptEnd, AttemptHandle, ChatJob, Engine, GenerateJob
from .recorder import PATIENCE_S, Recorder

T = TypeVar("T")
#: what the suite gets an engine from: enter it on the running loop, leave it when done
OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]
#: two functions, as OpenAI writes them
WEATHER: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of the next days.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time.",
        "parameters": {
            "type": "object",
            "properties": {"utc": {"type": "boolean"}},
            "required": ["utc"],
            "additionalProperties": False,
        },
    },
}


class Suite:
    """What the parts of the contract share; see the package for how it is used."""

    #: prompts that make the engine fail, and the kind of failure that follows: ``{name: (prompt, kind)}``
    faults: ClassVar[Mapping[str, tuple[str, str]]] = {}
    #: a prompt whose answer holds characters of several tokens
    utf8_prompt: ClassVar[str] = "Räuber 🙂 中文"
    #: a text that the answer to ``prompt(200)`` surely holds after some tokens, to be used as a stop string
    stop_text: ClassVar[str] = "e"
    #: the engine does as a JSON schema says; a stand-in of an engine may not
    obeys_schema: ClassVar[bool] = True
    #: it says which slots are in use
    tells_slots: ClassVar[bool] = True
    #: when it says how many tokens a prompt has
    tells_prompt: ClassVar[Literal["start", "end", "never"]] = "start"

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that each test runs on; llama-orch itself uses uvloop's."""
        return asyncio.new_event_loop()

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run an asynchronous test on a loop of its own, for not longer than the patience allows."""

        async def bounded() -> T:
            async with asyncio.timeout(2 * PATIENCE_S):
                return await test

        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(bounded())

    @pytest.fixture
    def engine(self) -> OpenEngine:
        """How to open the engine under test, which has at least two slots and at most 4,096 tokens of context."""
        raise NotImplementedError

    # --- jobs, which an engine's own tests may make otherwise

    def prompt(self, tokens: int) -> str:
        """A prompt that the engine answers with at least so many tokens, if ``max_tokens`` lets it; when there are
        many, so slowly that a test can act meanwhile."""
        return "Once upon a time"

    def job(self, prompt: str, **changes: Any) -> GenerateJob:
        """A job with defaults that suit a test."""
        job = GenerateJob(
            task_id="contract", attempt=1, prompt=prompt, slot=0, seed=7, sampling={"temperature": 0.8}, max_tokens=16
        )
        return msgspec.structs.replace(job, **changes)

    def chat_job(self, text: str, **changes: Any) -> GenerateJob:
        """A chat of one message."""
        changes.setdefault("chat", ChatJob(messages=[{"role": "user", "content": text}]))
        return self.job("", workload="chat", **changes)

    def tool_job(self, **changes: Any) -> GenerateJob:
        """A chat that the engine surely answers with calls of ``get_weather``, with arguments that its schema allows."""
        chat = ChatJob(
            messages=[{"role": "user", "content": self.prompt(16)}], tools=[WEATHER, CLOCK], tool_choice="required"
        )
        return self.chat_job("", **{"chat": chat, "max_tokens": 400, **changes})

    def thinking_job(self, **changes: Any) -> GenerateJob:
        """A chat that a model which thinks answers with thoughts, and then with text."""
        return self.chat_job(self.prompt(16), **{"max_tokens": 400, **changes})

    def embedding_job(self, inputs: Sequence[str], **changes: Any) -> GenerateJob:
        """Texts to embed."""
        changes = {"workload": "embedding", "max_tokens": 0, "sampling": {}, **changes}
        return self.job("", inputs=tuple(inputs), **changes)

    def rerank_job(self, query: str, inputs: Sequence[str], **changes: Any) -> GenerateJob:
        """Texts to rank."""
        return self.embedding_job(inputs, workload="rerank", query=query, **changes)

    # --- for the parts

    def check_prompt(self, sink: Recorder, end: AttemptEnd) -> None:
        """The prompt's tokens were told when the engine tells them, and the same each time."""
        assert sink.start is not None
        if self.tells_prompt == "start":
            assert sink.start.prompt_tokens == end.prompt_tokens > 0
        elif self.tells_prompt == "end":
            assert sink.start.prompt_tokens in (0, end.prompt_tokens)
            assert end.prompt_tokens > 0
        else:
            assert sink.start.prompt_tokens == end.prompt_tokens == 0

    @staticmethod
    async def claims(engine: Engine) -> frozenset[str]:
        """Workloads and features that the engine says it has."""
        properties = await engine.properties()
        return frozenset((*properties.workloads, *properties.features))

    @staticmethod
    async def said(engine: Engine, job: GenerateJob) -> tuple[AttemptEnd, Recorder]:
        """Do a job to its end."""
        sink = Recorder()
        engine.generate(job, sink)
        return await sink.end(), sink

    @staticmethod
    async def refuses(engine: Engine, job: GenerateJob) -> None:
        """The engine does not do this job, says so for good, and no slot is held by it."""
        sink = Recorder()
        handle = engine.generate(job, sink)
        failure = await sink.failure()
        assert (failure.kind, failure.retriable) == ("invalid", False), failure
        assert failure.message
        assert sink.batches == []
        async with asyncio.timeout(PATIENCE_S):
            assert await handle.slot_free() == "slot-free"

    @staticmethod
    async def cancels(handle: AttemptHandle, sink: Recorder) -> None:
        """Cancel, and see the slot free."""
        handle.cancel()
        sink.muted = True
        async with asyncio.timeout(PATIENCE_S):
            assert await handle.slot_free() == "slot-free"
