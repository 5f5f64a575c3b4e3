"""Real llama.cpp dies in the middle of a tool call, of a thought, of the second of several answers (RCV-1, RCV-2)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_orch.core.types import Entry
from llama_orch.plugins.testing.engines import PATIENCE_S, WEATHER

from ..engines.chat_models import CALLS, SILENT, THINKING, THINKS
from ..engines.tiny_gguf import VARIANTS, write_model
from .audit import History
from .load import Followed, Ledger, Load
from .settle import finish
from .test_signals import model_pool
from .world import world

pytestmark = [pytest.mark.slow, pytest.mark.real_llama]

SLOW = VARIANTS["slow"]
#: slow enough to be met in the middle of what it says
SIZE = {"width": SLOW.width, "layers": SLOW.layers, "heads": SLOW.heads, "kv_heads": SLOW.kv_heads}
#: its arguments are long, so that there is a middle
NOTE = {
    "type": "function",
    "function": {
        "name": "take_note",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "minLength": 150, "maxLength": 200}},
            "required": ["text"],
        },
    },
}
CALL = {
    "workload": "chat",
    "messages": [{"role": "user", "content": "once upon"}],
    "tools": [NOTE, WEATHER],
    "tool_choice": {"type": "function", "function": {"name": "take_note"}},
    "parallel_tool_calls": False,
    "max_tokens": 900,
}
THOUGHT = {"workload": "chat", "messages": [{"role": "user", "content": "once upon"}], "max_tokens": 120}
SEVERAL = {"prompt": "once upon", "n": 3, "max_tokens": 60}


def channels(entries: list[Entry]) -> dict[tuple[int, str], str]:
    said: dict[tuple[int, str], str] = {}
    for entry in entries:
        key = (entry.choice, entry.channel)
        said[key] = said.get(key, "") + entry.text
    return {key: text for key, text in said.items() if text}


async def heard(task: Followed, wanted: Callable[[dict[str, Any]], bool], count: int) -> None:
    """Wait until its reader has so many entries of a kind."""
    async with asyncio.timeout(PATIENCE_S):
        while sum(frame.event == "token" and wanted(frame.data) for frame in task.frames) < count:
            await asyncio.sleep(0.005)


async def begin(load: Load, key: str, request: dict[str, Any]) -> tuple[Followed, asyncio.Task[None]]:
    task = Followed(key, {"model_ref": "tiny", "seed": 11, "determinism": "strict", **request})
    load.ledger.tasks.append(task)
    await load.submit(task)
    return task, asyncio.create_task(load.follow(task))


@pytest.mark.parametrize(
    "shape, template, request_, in_the_middle",
    [
        (CALLS, SILENT, CALL, lambda data: data.get("channel") == "tool:0"),
        (THINKS, THINKING, THOUGHT, lambda data: data.get("channel") == "reasoning"),
        (CALLS, SILENT, SEVERAL, lambda data: data.get("choice") == 1),
    ],
    ids=["a tool call", "a thought", "the second answer"],
)
def test_what_a_dying_engine_left_half_said_is_said_again_on_every_channel(
    tmp_path: Path, shape: Any, template: str, request_: dict[str, Any], in_the_middle: Callable[[dict[str, Any]], bool]
) -> None:
    shape = replace(shape, **SIZE, feed_forward=SLOW.feed_forward)
    model = write_model(tmp_path / "tiny.gguf", shape, template=template)

    async def scenario() -> None:
        async with world(tmp_path, [model_pool(model, slots=1)]) as place:
            await place.start()
            await place.ready()
            load = Load(place.port, Ledger(), seed=1)
            engine = place.engine_pid("tiny")
            struck, following = await begin(load, "struck", request_)
            await heard(struck, in_the_middle, 4)
            os.kill(engine, signal.SIGKILL)
            await following
            left_alone, following = await begin(load, "left alone", request_)
            await following
            assert place.engine_pid("tiny") != engine
            await finish(place, load)
            history = History(place.open_store())
            told, whole = history.tasks[struck.task_id], history.tasks[left_alone.task_id]
            assert struck.connections == 1, "readers notice nothing"
            assert (told.ended.outcome, whole.ended.outcome) == ("completed", "completed")
            assert told.ended.recovery_used == "regenerate"
            assert told.ended.tokens_out == whole.ended.tokens_out
            assert told.ended.finish_reason == whole.ended.finish_reason
            said = [channels([entry for _, entry in task.transcript]) for task in (told, whole)]
            assert said[0] == said[1]
            assert any(in_the_middle({"channel": channel, "choice": choice}) for choice, channel in said[0])

    asyncio.run(scenario())
