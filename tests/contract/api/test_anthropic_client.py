"""Anthropic's own client is the judge of /v1/messages and /v1/messages/count_tokens (API-2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import anthropic
import httpx
import pytest
from anthropic.types import MessageParam

from .live_server import LiveServer, mock_settings

CHAT: list[MessageParam] = [{"role": "user", "content": "say something"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("live"), mock_settings())
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="anything", max_retries=0) as client:
        yield client


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def fault(name: str) -> list[MessageParam]:
    return [{"role": "user", "content": f"[[mock fault={name}]]"}]


def test_a_message_has_text_usage_and_the_name_of_its_task(client: anthropic.Anthropic) -> None:
    answer = client.messages.with_raw_response.create(model="mock", max_tokens=100, messages=CHAT)
    said = answer.parse()
    assert [block.type for block in said.content] == ["text"]
    assert said.stop_reason == "end_turn"
    assert said.stop_sequence is None
    assert said.role == "assistant"
    assert said.model == "mock"
    assert said.usage.output_tokens == 16
    assert said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0) > 0
    assert said.id == f"msg_{answer.headers['x-task-id'].replace('-', '')}"
    assert said._request_id == answer.headers["request-id"] == answer.headers["x-correlation-id"]


def test_a_stream_has_exactly_anthropics_events_in_their_order(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(model="mock", max_tokens=4, messages=CHAT, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    delta = events[-2]
    assert delta.type == "message_delta"
    assert delta.delta.stop_reason == "max_tokens"
    assert delta.usage.output_tokens == 4


def test_the_streaming_helper_says_the_same_as_the_message_of_the_same_seed(client: anthropic.Anthropic) -> None:
    seed = {"seed": 7, "kv_hint": "cold"}
    whole = client.messages.create(model="mock", max_tokens=100, messages=CHAT, extra_body=seed)
    with client.messages.stream(model="mock", max_tokens=100, messages=CHAT, extra_body=seed) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    first = whole.content[0]
    assert first.type == "text"
    assert text == first.text
    assert final.content[0].type == "text"
    assert final.content[0].text == first.text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_async_client_streams_too(live: LiveServer) -> None:
    async def said() -> str:
        async with anthropic.AsyncAnthropic(base_url=live.url, api_key="x", max_retries=0) as client:
            async with client.messages.stream(model="mock", max_tokens=100, messages=CHAT) as stream:
                return await stream.get_final_text()

    assert asyncio.run(said())


def test_the_stop_sequence_that_ended_the_text_is_told(client: anthropic.Anthropic) -> None:
    seed = {"seed": 7}
    whole = client.messages.create(model="mock", max_tokens=100, messages=CHAT, extra_body=seed).content[0]
    assert whole.type == "text"
    stop = whole.text.split()[4]
    said = client.messages.create(
        model="mock", max_tokens=100, messages=CHAT, stop_sequences=["never said", stop], extra_body=seed
    )
    assert said.stop_reason == "stop_sequence"
    assert said.stop_sequence == stop
    assert said.content[0].type == "text"
    assert whole.text.startswith(said.content[0].text)


def test_system_blocks_results_of_tools_and_thoughts_of_earlier_turns_are_taken(client: anthropic.Anthropic) -> None:
    said = client.messages.create(
        model="mock",
        max_tokens=5,
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "yes"}],
            },
            {"role": "user", "content": "go on"},
        ],
    )
    assert said.content


def test_what_has_no_effect_is_named_in_a_header_or_refused_when_the_client_is_strict(live: LiveServer) -> None:
    body = {
        "model": "mock",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        "messages": CHAT,
        "service_tier": "auto",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    with httpx.Client(base_url=live.url) as http:
        answer = http.post("/v1/messages", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-ignored-parameters"] == "service_tier, cache_control, thinking.budget_tokens"
        refused = http.post("/v1/messages", json=body, headers={"X-Strict-Parameters": "true"})
        assert refused.status_code == 400
        assert refused.json()["error"]["field"] == "service_tier"


@pytest.mark.parametrize(
    "extra, field",
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 99}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}],
                    }
                ]
            },
            "messages.0.content.0.source",
        ),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "sometimes"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "always"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": {"effort": "utmost"}}, "output_config.effort"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"compaction": {"type": "enabled"}}, "compaction"),
        ({"thread": {"type": "create"}}, "thread"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    client: anthropic.Anthropic, extra: dict[str, object], field: str
) -> None:
    body = {"model": "mock", "max_tokens": 5, "messages": CHAT, **extra}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.post("/v1/messages", body=body, cast_to=object)
    told = caught.value.body
    assert isinstance(told, dict)
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    assert told["error"]["code"] == "INVALID_PARAMS"
    assert told["error"]["field"] == field
    assert told["error"]["remedy"]
    assert told["request_id"] == caught.value.request_id


def test_an_unknown_model_is_named_with_the_nearest_one(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="mok", max_tokens=5, messages=CHAT)
    told = caught.value.body
    assert isinstance(told, dict)
    assert told["error"]["type"] == "not_found_error"
    assert told["error"]["field"] == "model"
    assert "mock" in told["error"]["message"]


def test_a_failed_task_is_an_error_with_its_code(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(model="mock", max_tokens=5, messages=fault("refuse"), extra_body={"recovery": "none"})
    assert caught.value.status_code in {500, 502, 503}
    told = caught.value.body
    assert isinstance(told, dict)
    assert told["error"]["type"] in {"api_error", "overloaded_error"}
    assert told["error"]["code"] in {"WORKER_RESET", "INTERRUPTED", "REPLICA_EXHAUSTED"}


def test_a_task_that_fails_in_its_stream_raises_in_the_client(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="mock", max_tokens=9, messages=fault("cut:3"), extra_body={"recovery": "none"}
    ) as stream:
        with pytest.raises(anthropic.APIStatusError) as caught:
            stream.until_done()
    told = caught.value.body
    assert isinstance(told, dict)
    assert told["error"]["code"]


def test_closing_a_stream_cancels_its_task_within_a_moment(client: anthropic.Anthropic, live: LiveServer) -> None:
    with client.messages.stream(model="mock", max_tokens=9, messages=fault("silent:2")) as stream:
        task_id = stream.response.headers["x-task-id"]
        assert next(stream.text_stream)
    tasks = live.services.journal.head.tasks
    until(lambda: task_id not in live.call(lambda: dict(tasks.live)), "the end of an abandoned task")
    with httpx.Client(base_url=live.url) as http:
        assert http.get(f"/v1/tasks/{task_id}").json()["state"] == "cancelled"


def test_leaving_a_message_that_is_awaited_cancels_its_task(live: LiveServer) -> None:
    with anthropic.Anthropic(base_url=live.url, api_key="x", max_retries=0, timeout=0.3) as impatient:
        with pytest.raises(anthropic.APITimeoutError):
            impatient.messages.create(model="mock", max_tokens=9, messages=fault("silent"))
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of an abandoned task")


def test_a_message_that_somebody_else_cancels_is_an_error_that_is_not_retried(
    client: anthropic.Anthropic, live: LiveServer
) -> None:
    task_id = "11111111-2222-4333-8444-555555555555"

    async def cancelled() -> anthropic.APIStatusError:
        async with anthropic.AsyncAnthropic(base_url=live.url, api_key="x", max_retries=2) as waiting:
            asked = asyncio.create_task(
                waiting.messages.create(
                    model="mock", max_tokens=9, messages=fault("silent"), extra_body={"task_id": task_id}
                )
            )
            async with httpx.AsyncClient(base_url=live.url) as http:
                while (await http.get(f"/v1/tasks/{task_id}")).status_code != 200:
                    assert not asked.done()
                await http.post(f"/v1/tasks/{task_id}/cancel")
            with pytest.raises(anthropic.ConflictError) as caught:
                await asked
            return caught.value

    error = asyncio.run(cancelled())
    assert isinstance(error.body, dict)
    assert error.body["error"]["code"] == "CANCELLED"
    assert error.response.headers["x-should-retry"] == "false"
    assert error.request.headers.get("x-stainless-retry-count") == "0"


def test_tokens_are_counted_by_the_models_own_tokenizer(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="mock", messages=CHAT, system="be brief")
    said = client.messages.create(model="mock", max_tokens=5, messages=CHAT, system="be brief")
    assert counted.input_tokens == said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)


def test_tokens_of_an_unknown_model_are_not_counted(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="mok", messages=CHAT)


def test_a_key_may_come_as_x_api_key_or_bearer_and_the_beta_query_changes_nothing(live: LiveServer) -> None:
    body = {"model": "mock", "max_tokens": 3, "messages": CHAT}
    with httpx.Client(base_url=live.url) as http:
        for headers in ({"x-api-key": "a"}, {"authorization": "Bearer a"}):
            headers |= {"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2099-01-01"}
            assert http.post("/v1/messages?beta=true", json=body, headers=headers).status_code == 200


def test_models_are_listed_as_anthropics_client_knows_them(client: anthropic.Anthropic) -> None:
    models = list(client.models.list())
    assert [(model.id, model.type, model.display_name) for model in models] == [
        ("mock", "model", "mock"),
        ("mock-alias", "model", "mock-alias"),
    ]
    assert models[0].created_at.year >= 2026
    assert client.models.retrieve("mock-alias").display_name == "mock-alias"


def test_what_coding_agents_send_is_taken(live: LiveServer) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    tools = [
        {
            "name": "Read",
            "description": "Reads a file.",
            "input_schema": {"type": "object"},
            "eager_input_streaming": True,
        },
        {"name": "Bash", "description": "Runs.", "input_schema": {"type": "object"}, **cached},
    ]
    body = {
        "model": "mock",
        "max_tokens": 64,
        "stream": True,
        "system": [{"type": "text", "text": "You are an agent."}, {"type": "text", "text": "Be brief.", **cached}],
        "tools": tools,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "metadata": {"user_id": "user_1_session_2"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>x</system-reminder>"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1\ta", "is_error": False},
                    {"type": "text", "text": "go on", **cached},
                ],
            },
        ],
    }
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14"}
    headers |= {"x-claude-code-session-id": "not-one-of-ours", "user-agent": "an-agent/1"}
    with httpx.Client(base_url=live.url, headers=headers, timeout=30) as http:
        counted = {key: value for key, value in body.items() if key not in ("max_tokens", "stream", "metadata")}
        assert http.post("/v1/messages/count_tokens?beta=true", json=counted).json()["input_tokens"] > 0
        answer = http.post("/v1/messages?beta=true", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-ignored-parameters"] == "context_management, cache_control"
    assert answer.text.rstrip().endswith('data: {"type":"message_stop"}')


def test_a_session_that_is_open_is_joined_by_its_header(client: anthropic.Anthropic, live: LiveServer) -> None:
    session = "99999999-2222-4333-8444-555555555555"
    client.messages.create(model="mock", max_tokens=3, messages=CHAT, extra_body={"session_id": session})
    client.messages.create(model="mock", max_tokens=3, messages=CHAT, extra_headers={"X-Session-Id": session})
    with httpx.Client(base_url=live.url) as http:
        assert http.get(f"/v1/sessions/{session}").json()["turns"] == 2


def test_a_repetition_under_one_idempotency_key_is_one_task(client: anthropic.Anthropic) -> None:
    def once() -> str:
        answer = client.messages.with_raw_response.create(
            model="mock", max_tokens=5, messages=CHAT, extra_headers={"Idempotency-Key": "k1"}
        )
        return answer.text()

    assert once() == once()
