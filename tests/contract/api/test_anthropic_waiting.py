"""Anthropic's own client where it has to wait: for a slot, for a place in the queue, for a model (API-2, ADM-4)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx
import httpx2
import pytest
from anthropic.types import MessageParam

from llama_orch.core.settings import PoolSettings, QueueSettings

from .live_server import LiveServer

CHAT: list[MessageParam] = [{"role": "user", "content": "say something"}]
SILENT: list[MessageParam] = [{"role": "user", "content": "[[mock fault=silent:1]]"}]


def test_a_full_queue_is_waited_for_by_the_client_itself(make_server: Callable[..., LiveServer]) -> None:
    pool = PoolSettings(id="m", engine="mock", model="mock", slots=1, queue=QueueSettings(capacity=0))
    server = make_server(pools=[pool])
    busy = {"model": "mock", "max_tokens": 9, "messages": SILENT}
    with httpx.Client(base_url=server.url, timeout=30) as http:
        with http.stream("POST", "/v1/messages", json={**busy, "stream": True}) as stream:
            lines = stream.iter_lines()  # it ends the stream when nobody holds it
            assert next(lines) == "event: message_start"
            with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as impatient:
                with pytest.raises(anthropic.RateLimitError) as caught:
                    impatient.messages.create(model="mock", max_tokens=3, messages=CHAT)
            assert isinstance(caught.value.body, dict)
            assert caught.value.body["error"]["type"] == "rate_limit_error"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            refused = threading.Event()

            def seen(response: httpx2.Response) -> None:
                if response.status_code == 429:
                    refused.set()

            def ask() -> int:
                hooked = anthropic.DefaultHttpxClient(event_hooks={"response": [seen]})
                with anthropic.Anthropic(
                    base_url=server.url, api_key="x", max_retries=3, http_client=hooked
                ) as patient:
                    answer = patient.messages.with_raw_response.create(model="mock", max_tokens=3, messages=CHAT)
                    return answer.retries_taken

            with ThreadPoolExecutor(1) as pool_of_one:
                asked = pool_of_one.submit(ask)
                assert refused.wait(20)
                stream.close()
                assert asked.result(30) >= 1


def test_while_a_stream_waits_for_a_slot_it_is_pinged_and_told_its_place(
    make_server: Callable[..., LiveServer],
) -> None:
    server = make_server(pools=[PoolSettings(id="m", engine="mock", model="mock", slots=1)])
    body = {"model": "mock", "max_tokens": 3, "stream": True}
    with httpx.Client(base_url=server.url, timeout=30) as http:
        with http.stream("POST", "/v1/messages", json={**body, "messages": SILENT}) as busy:
            lines = busy.iter_lines()
            assert next(lines) == "event: message_start"
            with http.stream("POST", "/v1/messages", json={**body, "messages": CHAT}) as waiting:
                more = waiting.iter_lines()
                assert next(more).startswith(": queued position=0 predicted_start_ms=")
                assert [next(more) for _ in range(3)] == ["", "event: ping", 'data: {"type":"ping"}']
                busy.close()
                assert "event: message_start" in more
                assert "event: message_stop" in more


def test_tokens_are_not_guessed_while_the_model_is_not_loaded(make_server: Callable[..., LiveServer]) -> None:
    server = make_server()
    server.call(server.host.unready, "m")
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.count_tokens(model="mock", messages=CHAT)
    assert caught.value.status_code == 503
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert caught.value.body["error"]["code"] == "POOL_UNREADY"
