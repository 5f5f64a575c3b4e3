"""Tasks on a real Triton, by both of its protocols, and on what stands in for TGI: through the queue, from the official client."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ..engines.real_triton import MODEL, Triton, triton_server
from ..support.tgi_server import TgiServer

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<assistant>"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def triton(tmp_path_factory) -> Iterator[Triton]:
    with triton_server(tmp_path_factory.mktemp("triton")) as it:
        yield it


@pytest.fixture(scope="module")
def tgi() -> Iterator[TgiServer]:
    """On a loop and a thread of its own."""
    server, up, over = TgiServer(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server.serving():
            up.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    up.wait()
    yield server
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


@pytest.fixture
def server(new_server, triton, tgi):
    def pool(name, engine, url, **options):
        place = {"mode": "external", "url": url, "options": options}
        return {"id": name, "engine": engine, "model": name, "slots": 2, "ctx": 4096, "provisioning": place}

    asked = {"served_model": MODEL, "chat_template": TEMPLATE}
    pools = [pool("http", "triton", triton.http, **asked), pool("grpc", "triton", triton.grpc, **asked)]
    return new_server({"pools": [*pools, pool("tgi", "tgi", tgi.url)]}).start()


def ready(server):
    return [model["id"] for model in server.get("/v1/capabilities")["models"] if model["ready"]]


def free(server):
    return [engine["slots_free"] for engine in server.get("/v1/capabilities")["engines"]]


def test_chats_stream_are_broken_off_and_free_their_slots_on_every_one(server, triton, eventually):
    eventually(lambda: ready(server) == ["grpc", "http", "tgi"], "all pools")
    client: Any = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    long = "tokens=4000 delay_ms=5 [[mock tokens=4000 rate=200]]"
    for model in ("http", "grpc", "tgi"):
        asked = [{"role": "user", "content": "hi tokens=9 [[mock tokens=9]]"}]
        with client.chat.completions.create(model=model, messages=asked, seed=3, max_tokens=20, stream=True) as chunks:
            pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
        text = "".join(piece.delta.content or "" for piece in pieces)
        assert (len(text.split()), pieces[-1].finish_reason) == (9, "stop"), model
        whole = client.chat.completions.create(model=model, messages=asked, seed=3, max_tokens=20)
        assert whole.choices[0].message.content == text
        asked = [{"role": "user", "content": long}]
        stream = client.chat.completions.create(model=model, messages=asked, max_tokens=3000, stream=True)
        for number, _ in enumerate(stream):
            if number == 5:
                break
        stream.close()
        eventually(lambda: free(server) == [2, 2, 2], f"the slot of {model}")
        with pytest.raises(openai.BadRequestError, match="tools"):
            client.chat.completions.create(model=model, messages=asked, tools=[TOOL])


def test_a_triton_that_dies_makes_its_pools_unready(new_server, tmp_path, eventually):
    with triton_server(tmp_path) as dying:
        place = {"mode": "external", "url": dying.grpc}
        pool = {"id": "p", "engine": "triton", "model": MODEL, "slots": 1, "provisioning": place}
        mock = {"id": "mock", "engine": "mock", "model": "mock"}
        server = new_server({"pools": [pool, mock]}).start()
        eventually(lambda: MODEL in ready(server), "the pool")
        body = {"model_ref": MODEL, "prompt": "tokens=4000 delay_ms=5", "max_tokens": 4000, "recovery": "none"}
        task = server.post("/v1/tasks", body)["task_id"]
        eventually(lambda: server.get(f"/v1/tasks/{task}")["state"] == "running", "the task")
        dying.process.send_signal(signal.SIGKILL)
        eventually(lambda: MODEL not in ready(server), "the pool's end")
        assert "mock" in ready(server)
