"""OpenAI's own client is the judge of /v1/responses (API-2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from llama_orch.api.compat.responses_items import messages_of
from llama_orch.api.compat.responses_stored import task_of
from llama_orch.core.services.caller import Caller

from .live_server import LiveServer, mock_settings


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("live"), mock_settings())
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def deep(levels: int) -> Any:
    """Nested lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_a_response_has_text_usage_and_the_name_of_its_task(client: openai.OpenAI) -> None:
    answer = client.responses.with_raw_response.create(
        model="mock", input="say something", instructions="be brief", metadata={"a": "b"}, temperature=0.5
    )
    said = answer.parse()
    assert said.status == "completed"
    assert said.output_text
    assert said.usage is not None
    assert said.usage.output_tokens == 16
    assert said.usage.total_tokens == said.usage.input_tokens + 16
    assert said.instructions == "be brief"
    assert said.metadata == {"a": "b"}
    assert said.temperature == 0.5
    assert said.id == f"resp_{answer.headers['x-task-id'].replace('-', '')}"


def test_a_stream_has_exactly_openais_events_numbered_from_zero(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="mock", input="x", max_output_tokens=3, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_the_streaming_helper_says_the_same_as_the_response_of_the_same_seed(client: openai.OpenAI) -> None:
    seed = {"seed": 7, "kv_hint": "cold"}
    whole = client.responses.create(model="mock", input="x", extra_body=seed)
    with client.responses.stream(model="mock", input="x", extra_body=seed) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == whole.output_text == final.output_text
    again = client.responses.retrieve(final.id)
    assert again.output_text == text
    *_, last = client.responses.retrieve(final.id, stream=True)
    assert last.type == "response.completed"
    assert last.response.to_dict() == again.to_dict()


def test_a_response_goes_on_from_an_earlier_one_without_its_instructions(
    client: openai.OpenAI, live: LiveServer
) -> None:
    first = client.responses.create(model="mock", input="one", instructions="be brief")
    second = client.responses.create(model="mock", input="two", instructions="be long", previous_response_id=first.id)
    third = client.responses.create(model="mock", input="three", previous_response_id=second.id)
    assert third.previous_response_id == second.id

    def messages(response: Response) -> list[tuple[str, Any]]:
        _, body = live.run(live.services.responses.get(task_of(response.id), Caller()))
        return [(message.role, message.content) for message in body.messages or ()]

    assert messages(second) == [
        ("system", "be long"),
        ("user", "one"),
        ("assistant", first.output_text),
        ("user", "two"),
    ]
    assert messages(third) == [
        ("user", "one"),
        ("assistant", first.output_text),
        ("user", "two"),
        ("assistant", second.output_text),
        ("user", "three"),
    ]


def test_in_the_background_the_answer_comes_at_once_and_is_read_later(client: openai.OpenAI) -> None:
    queued = client.responses.create(model="mock", input="x", background=True)
    assert queued.status in {"queued", "in_progress", "completed"}
    assert queued.background is True
    until(lambda: client.responses.retrieve(queued.id).status == "completed", "the end of a background response")
    assert client.responses.retrieve(queued.id).output_text


def test_a_background_response_is_cancelled_once_and_for_all(client: openai.OpenAI) -> None:
    running = client.responses.create(model="mock", input="[[mock fault=silent:2]]", background=True)
    until(lambda: client.responses.retrieve(running.id).status == "in_progress", "its start")
    cancelled = client.responses.cancel(running.id)
    assert cancelled.status == "cancelled"
    assert client.responses.cancel(running.id).to_dict() == cancelled.to_dict()
    events = list(client.responses.retrieve(running.id, stream=True))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


def test_leaving_a_background_stream_does_not_cancel_it(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="mock", input="[[mock tokens=40]]", background=True, stream=True)
    seen = [next(iter(stream))]
    first = seen[0]
    assert first.type == "response.created"
    stream.close()
    until(lambda: client.responses.retrieve(first.response.id).status == "completed", "its end")


def test_any_number_of_events_seen_the_rest_is_what_follows(client: openai.OpenAI) -> None:
    first = client.responses.create(model="mock", input="x", background=True)
    whole = [event.to_dict() for event in client.responses.retrieve(first.id, stream=True)]
    assert [event["type"] for event in whole[:2]] == ["response.created", "response.queued"]
    for seen in range(len(whole)):
        rest = client.responses.retrieve(first.id, stream=True, starting_after=seen)
        assert [event.to_dict() for event in rest] == whole[seen + 1 :]


def test_a_deleted_response_is_gone_and_its_task_is_not(client: openai.OpenAI, live: LiveServer) -> None:
    said = client.responses.with_raw_response.create(model="mock", input="x")
    response_id = said.parse().id
    client.responses.delete(response_id)
    for look in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            look(response_id)
        assert caught.value.param == "response_id"
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="mock", input="y", previous_response_id=response_id)
    assert caught.value.param == "previous_response_id"
    with httpx.Client(base_url=live.url) as http:
        assert http.get(f"/v1/tasks/{said.headers['x-task-id']}").json()["state"] == "completed"
        tail = http.get("/v1/journal/tail", params={"limit": 50}).json()
    assert "response.deleted" in str(tail)


def test_what_is_not_stored_cannot_be_had_again(client: openai.OpenAI) -> None:
    said = client.responses.create(model="mock", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(said.id)


@pytest.mark.parametrize(
    "response_id", ["resp_x", "resp_" + "0" * 32, "x", "resp_" + "0" * 31 + "g", "resp_" + "A" * 32, "chatcmpl-1"]
)
def test_an_id_of_no_response_is_not_found(client: openai.OpenAI, response_id: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response_id)


def test_what_clients_may_ask_for_in_the_query_is_taken(client: openai.OpenAI) -> None:
    said = client.responses.create(model="mock", input="x")
    more: Any = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    assert client.responses.retrieve(said.id, include=more).id == said.id
    assert client.responses.input_items.list(said.id, include=more, limit=1).data
    last = list(client.responses.retrieve(said.id, include=more, stream=True, include_obfuscation=False))[-1]
    assert last.type == "response.completed"


def test_the_task_of_another_api_is_no_response(client: openai.OpenAI) -> None:
    other = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_" + other.id.removeprefix("chatcmpl-").replace("-", ""))


def test_input_items_come_in_pages_newest_first(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": f"message {n}"} for n in range(5)]
    said = client.responses.create(model="mock", input=items)
    page = client.responses.input_items.list(said.id, limit=2)
    assert page.has_more
    assert [item.content for item in page.data] == ["message 4", "message 3"]  # type: ignore[union-attr]
    everything = list(client.responses.input_items.list(said.id, limit=2, order="asc"))
    assert [item.content for item in everything] == [f"message {n}" for n in range(5)]  # type: ignore[union-attr]


def test_calls_and_their_outputs_of_earlier_turns_are_taken_as_one_turn() -> None:
    ignored: list[str] = []
    messages = messages_of(
        [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
        ],
        ignored,
    )
    assert [m.role for m in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1].content == "I look"
    assert messages[1].reasoning_content == "hm"
    assert [call["id"] for call in messages[1].tool_calls or ()] == ["c1", "c2"]
    assert [m.tool_call_id for m in messages[2:]] == ["c1", "c2"]
    assert messages[3].content == "rain"
    assert ignored == []


@pytest.mark.parametrize(
    "extra, param",
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/x"}]}]},
            "input.0.content.0.image_url",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 5}]}, "tools.0.parameters"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "utmost"}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": [{"role": "user", "content": "x", "annotations": deep(200)}]}, "input"),
        ({"tools": [{"type": "function", "name": "f", "hidden": deep(200)}]}, "tools"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True, "store": False}, "store"),
    ],
)
def test_what_is_not_served_is_refused_by_name(client: openai.OpenAI, extra: dict[str, object], param: str) -> None:
    body = {"model": "mock", "input": "x", **extra}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body=body, cast_to=object)
    assert caught.value.code == "INVALID_PARAMS"
    assert caught.value.param == param


def test_an_unfinished_response_cannot_be_gone_on_from(client: openai.OpenAI) -> None:
    running = client.responses.create(model="mock", input="[[mock fault=silent:2]]", background=True)
    with pytest.raises(openai.ConflictError) as caught:
        client.responses.create(model="mock", input="y", previous_response_id=running.id)
    assert caught.value.param == "previous_response_id"
    assert caught.value.response.headers["x-should-retry"] == "false"
    client.responses.delete(running.id)


def test_starting_after_without_a_stream_is_refused(client: openai.OpenAI, live: LiveServer) -> None:
    said = client.responses.create(model="mock", input="x")
    with httpx.Client(base_url=live.url) as http:
        refused = http.get(f"/v1/responses/{said.id}", params={"starting_after": 3})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "starting_after"


def test_parameters_without_effect_are_named_in_a_header(client: openai.OpenAI) -> None:
    answer = client.responses.with_raw_response.create(
        model="mock",
        input="x",
        user="me",
        text={"verbosity": "low"},
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        truncation="auto",
    )
    assert answer.headers["x-ignored-parameters"] == (
        "user, text.verbosity, reasoning.summary, include.reasoning.encrypted_content, truncation"
    )


def test_a_failed_response_is_an_error_and_stays_readable(client: openai.OpenAI, live: LiveServer) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.create(model="mock", input="[[mock fault=refuse]]", extra_body={"recovery": "none"})
    assert caught.value.code in {"WORKER_RESET", "INTERRUPTED", "REPLICA_EXHAUSTED"}
    body = caught.value.body
    assert isinstance(body, dict)
    task_id = str(body["task_id"])
    again = client.responses.retrieve("resp_" + task_id.replace("-", ""))
    assert again.status == "failed"
    assert again.error is not None
    assert again.error.code == "server_error"


def test_a_response_that_fails_in_its_stream_ends_with_that(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model="mock", input="[[mock fault=cut:3]]", stream=True, extra_body={"recovery": "none"}
        )
    )
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None


def test_closing_a_stream_cancels_its_task_within_a_moment(client: openai.OpenAI, live: LiveServer) -> None:
    stream = client.responses.create(model="mock", input="[[mock fault=silent:2]]", stream=True)
    first = next(iter(stream))
    assert first.type == "response.created"
    stream.close()
    until(lambda: client.responses.retrieve(first.response.id).status == "cancelled", "the end of an abandoned task")


def test_a_response_goes_on_as_long_as_one_of_its_readers_stays(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="mock", input="[[mock fault=silent:2]]", stream=True)
    first = next(iter(stream))
    assert first.type == "response.created"
    other = client.responses.retrieve(first.response.id, stream=True)
    seen = iter(other)
    until(lambda: next(seen).type == "response.output_text.delta", "its first words")
    stream.close()
    assert client.responses.retrieve(first.response.id).status == "in_progress"
    other.close()
    until(lambda: client.responses.retrieve(first.response.id).status == "cancelled", "its end without readers")


def test_leaving_a_response_that_is_awaited_cancels_its_task(live: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0, timeout=0.3) as impatient:
        with pytest.raises(openai.APITimeoutError):
            impatient.responses.create(model="mock", input="[[mock fault=silent]]")
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of an abandoned task")


def test_a_repetition_under_one_idempotency_key_is_one_response(client: openai.OpenAI) -> None:
    keyed = {"Idempotency-Key": "r1"}
    first = client.responses.create(model="mock", input="x", metadata={"n": "1"}, extra_headers=keyed)
    second = client.responses.create(model="mock", input="x", metadata={"n": "2"}, extra_headers=keyed)
    assert second.to_dict() == first.to_dict()


def test_a_key_that_another_apis_request_used_makes_no_response(client: openai.OpenAI) -> None:
    keyed = {"Idempotency-Key": "r2"}
    client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "x"}], extra_headers=keyed)
    with pytest.raises(openai.ConflictError) as caught:
        client.responses.create(model="mock", input="x", extra_headers=keyed)
    assert caught.value.param == "Idempotency-Key"


def test_a_schema_is_taken_and_shown(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    said = client.responses.create(
        model="mock", input="x", text={"format": {"type": "json_schema", "name": "n", "schema": schema}}
    )
    assert said.text is not None
    assert said.text.format is not None
    assert said.text.format.type == "json_schema"
