"""The contract of engines: chats that the engine renders, and whose answers it takes apart."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ....core.engine_ports import AttemptEnd, ChatJob
from ....core.types import CALL, REASONING, TEXT, TOOL
from .recorder import Recorder
from .suite import WEATHER, OpenEngine, Suite


class ChatContract(Suite):
    """Chat jobs: text, tool calls and thoughts, each on its channel."""

    def test_a_chat_is_answered_and_every_token_counted(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "chat" not in await self.claims(it):
                    await self.refuses(it, self.chat_job(self.prompt(16)))
                    return
                for limit in (1, 13):
                    end, sink = await self.said(it, self.chat_job(self.prompt(16), max_tokens=limit))
                    assert (end.finish_reason, end.tokens, sink.tokens) == ("length", limit, limit)
                    self.check_prompt(sink, end)

        self.run(test())

    def test_the_same_seed_says_the_same_on_every_channel(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                jobs = [self.chat_job(self.prompt(16))] if {"chat", "seed"} <= claims else []
                jobs += [self.tool_job()] if {"tools", "seed"} <= claims else []
                for job in jobs:
                    _, first = await self.said(it, job)
                    _, second = await self.said(it, msgspec.structs.replace(job, slot=1))
                    assert first.channels == second.channels

        self.run(test())

    def test_a_tool_call_has_its_name_and_its_arguments_on_channels_of_their_own(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                job = self.tool_job()
                if "tools" not in await self.claims(it):
                    await self.refuses(it, job)
                    return
                end, sink = await self.said(it, job)
                calls = self._calls(end, sink)
                assert [name for name, _ in calls[:1]] == ["get_weather"]
                assert {"city", "days"} == calls[0][1].keys()
                assert end.tokens == sink.tokens > 0
                for entry in sink.all:
                    assert entry.tokens == 0 or not entry.channel.startswith(CALL), "a name stands for no tokens"

        self.run(test())

    def test_a_chat_takes_what_the_tools_said(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                call = {"name": "get_weather", "arguments": '{"city": "Bern", "days": 2}'}
                messages: list[dict[str, Any]] = [
                    {"role": "user", "content": self.prompt(16)},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
                    },
                    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
                ]
                job = self.chat_job("", chat=ChatJob(messages=messages, tools=[WEATHER], tool_choice="none"))
                if "tools" not in await self.claims(it):
                    await self.refuses(it, job)
                    return
                end, sink = await self.said(it, job)
                assert end.finish_reason != "tool_calls"
                assert end.tokens == sink.tokens > 0
                shorter, _ = await self.said(it, self.chat_job(self.prompt(16)))
                assert end.prompt_tokens > shorter.prompt_tokens

        self.run(test())

    def test_thoughts_come_apart_from_what_is_said_and_can_be_switched_off(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                if "chat" not in claims:
                    await self.refuses(it, self.thinking_job())
                    return
                end, sink = await self.said(it, self.thinking_job())
                thought = sink.channels.get((0, REASONING), "")
                assert bool(thought) == ("reasoning" in claims)
                assert end.tokens == sink.tokens
                if "reasoning" not in claims:
                    return
                assert sink.channels.get((0, TEXT))
                job = self.thinking_job()
                assert job.chat is not None
                quiet = msgspec.structs.replace(job.chat, reasoning_effort="none")
                _, sink = await self.said(it, msgspec.structs.replace(job, chat=quiet))
                assert (0, REASONING) not in sink.channels
                assert sink.channels[0, TEXT]

        self.run(test())

    def test_a_stop_string_ends_a_chat_before_it(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "chat" not in await self.claims(it):
                    return  # it was refused above
                stop = (self.stop_text, "\0never\0")
                end, sink = await self.said(it, self.chat_job(self.prompt(200), max_tokens=200, stop=stop))
                assert end.finish_reason == "stop"
                assert end.stop_sequence in ("", self.stop_text)
                assert self.stop_text not in sink.channels.get((0, TEXT), "")
                assert end.tokens == sink.tokens

        self.run(test())

    def test_a_cancelled_chat_frees_its_slot(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "chat" not in await self.claims(it):
                    return  # it was refused above
                sink = Recorder()
                handle = it.generate(self.chat_job(self.prompt(4000), max_tokens=2000), sink)
                await sink.until(lambda: sink.count >= 3)
                await self.cancels(handle, sink)
                if self.tells_slots:
                    assert await it.slots_in_use() == 0
                assert sink.breaches == []
                assert sink.outcome is None

        self.run(test())

    def test_a_chat_beyond_the_context_is_refused_as_that(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                if "chat" not in await self.claims(it):
                    return  # it was refused above
                sink = Recorder()
                handle = it.generate(self.chat_job("word, " * 8000), sink)
                failure = await sink.failure()
                assert (failure.kind, failure.retriable) == ("context", False)
                assert await handle.slot_free() == "slot-free"

        self.run(test())

    def test_a_chat_with_a_picture_is_refused_by_an_engine_that_sees_none(self, engine: OpenEngine) -> None:
        async def test() -> None:
            async with engine() as it:
                claims = await self.claims(it)
                if "images" in claims:
                    return  # a picture that a model takes is for the engine's own tests
                picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
                parts = [{"type": "text", "text": "what is this?"}, picture]
                await self.refuses(it, self.chat_job("", chat=ChatJob(messages=[{"role": "user", "content": parts}])))

        self.run(test())

    @staticmethod
    def _calls(end: AttemptEnd, sink: Recorder) -> list[tuple[str, dict[str, object]]]:
        """The calls in order: each first with its name, then with pieces of its arguments."""
        assert end.finish_reason == "tool_calls"
        names: dict[str, str] = {}
        pieces: dict[str, str] = {}
        for entry in sink.all:
            if entry.channel.startswith(CALL):
                number = entry.channel.removeprefix(CALL)
                assert number not in names, "a name comes whole, and once"
                names[number] = entry.text
            elif entry.channel.startswith(TOOL):
                number = entry.channel.removeprefix(TOOL)
                assert number in names, "the name comes before the arguments"
                pieces[number] = pieces.get(number, "") + entry.text
        assert list(names) == [str(number) for number in range(len(names))]
        return [(name, json.loads(pieces[number])) for number, name in names.items()]
