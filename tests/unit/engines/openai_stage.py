"""A client of OpenAI's API and the stand-in that it speaks to, as unit tests need them."""

import asyncio
import contextlib
from typing import Any

import msgspec

from llama_orch.plugins import ChatJob, GenerateJob
from llama_orch.plugins.engines._openai_config import OPTIONS
from llama_orch.plugins.engines.openai import OpenAI
from llama_orch.plugins.testing.engines import Recorder

from ...support.openai_server import StandIn

JOB = GenerateJob(task_id="t", attempt=1, prompt="hello", slot=1, seed=5, max_tokens=4)
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = GenerateJob(task_id="t", attempt=1, workload="chat", chat=ChatJob(messages=MESSAGES), seed=5)
KEY = "sk-very-secret-0123456789"


def run(test):
    async def bounded():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def opened(standin=None, **config):
    """A client and the stand-in that it speaks to."""
    async with (standin or StandIn()).serving() as server:
        options = {name: value for name, value in config.items() if name in OPTIONS}
        engine = OpenAI({"url": server.url, "release_ms": 10, **config, "options": options})
        yield engine, server
        await engine.close()


async def outcome(engine, job) -> tuple[Any, Recorder, Any]:
    sink = Recorder()
    handle = engine.generate(job, sink)
    return await sink.over(), sink, handle


def changed(job, **changes):
    return msgspec.structs.replace(job, **changes)


async def asked(job, standin=None, **config) -> tuple[Any, Any]:
    """What the server was asked for a job."""
    async with opened(standin, **config) as (engine, server):
        result, *_ = await outcome(engine, job)
        return result, server.asked[-1] if server.asked else None
