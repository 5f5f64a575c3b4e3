"""OpenAI's own client is the judge of /v1/chat/completions and /v1/models (API-2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from .live_server import LiveServer

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something"}]


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def test_a_completion_has_text_usage_and_the_name_of_its_task(client: openai.OpenAI, live: LiveServer) -> None:
    answer = client.chat.completions.with_raw_response.create(model="mock", messages=CHAT, seed=7)
    said = answer.parse()
    assert said.choices[0].message.content
    assert said.choices[0].finish_reason == "stop"
    assert said.usage is not None
    assert said.usage.completion_tokens == 16
    assert said.usage.total_tokens == said.usage.prompt_tokens + 16
    assert said.id == f"chatcmpl-{answer.headers['x-task-id']}"


def test_a_stream_says_the_same_as_the_completion_of_the_same_seed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=CHAT, seed=7)
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="mock", messages=CHAT, seed=7, stream=True)
    ]
    assert "".join(pieces) == whole.choices[0].message.content


def test_a_stream_ends_with_its_reason_and_the_usage_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="mock", messages=CHAT, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 5
    assert chunks[-1].choices == []


def test_max_completion_tokens_wins_over_max_tokens(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="mock", messages=CHAT, max_tokens=9, max_completion_tokens=3)
    assert said.usage is not None
    assert said.usage.completion_tokens == 3


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="mock", messages=CHAT, seed=7).choices[0].message.content
    assert whole
    stop = whole.split()[4]
    cut = client.chat.completions.create(model="mock", messages=CHAT, seed=7, stop=stop).choices[0].message.content
    assert cut is not None
    assert whole.startswith(cut)
    assert stop not in cut


def test_text_parts_are_taken(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    )
    assert said.choices[0].message.content


def test_an_unknown_model_is_named_with_the_nearest_one(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="mok", messages=CHAT)
    assert caught.value.code == "MODEL_NOT_FOUND"
    assert caught.value.param == "model"
    assert "mock" in caught.value.message


@pytest.mark.parametrize(
    "extra, param",
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"temperature": 99}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(client: openai.OpenAI, extra: dict[str, object], param: str) -> None:
    body = {"model": "mock", "messages": CHAT, **extra}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.code == "INVALID_PARAMS"
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_parameters_without_effect_are_named_in_a_header(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="mock", messages=CHAT, user="me", extra_body={"mirostat": 2, "temperature": 0.5}
    )
    assert answer.headers["x-ignored-parameters"] == "user, mirostat"


def test_closing_a_stream_cancels_its_task_within_a_moment(client: openai.OpenAI, live: LiveServer) -> None:
    stream = client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": "[[mock fault=silent:2]]"}], stream=True
    )
    seen = iter(stream)
    task_id = next(seen).id.removeprefix("chatcmpl-")
    next(seen)
    stream.close()
    tasks = live.services.journal.head.tasks
    until(lambda: task_id not in live.call(lambda: dict(tasks.live)), "the end of an abandoned task")
    info = client.get(f"{live.url}/v1/tasks/{task_id}", cast_to=dict[str, object])
    assert info["state"] == "cancelled"


def test_leaving_a_completion_that_is_awaited_cancels_its_task(live: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0, timeout=0.3) as impatient:
        with pytest.raises(openai.APITimeoutError):
            impatient.chat.completions.create(
                model="mock", messages=[{"role": "user", "content": "[[mock fault=silent]]"}]
            )
    tasks = live.services.journal.head.tasks
    until(lambda: not live.call(lambda: dict(tasks.live)), "the end of an abandoned task")


def test_a_failed_task_is_an_error_with_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="mock",
            messages=[{"role": "user", "content": "[[mock fault=refuse]]"}],
            extra_body={"recovery": "none"},
        )
    assert caught.value.status_code in {500, 502, 503}
    assert caught.value.code in {"WORKER_RESET", "INTERRUPTED", "REPLICA_EXHAUSTED"}


def test_a_task_that_fails_in_its_stream_raises_in_the_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="mock",
        messages=[{"role": "user", "content": "[[mock fault=cut:3]]"}],
        stream=True,
        extra_body={"recovery": "none"},
    )
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code


def test_models_and_aliases_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["mock", "mock-alias"]


def test_an_alias_is_served_under_its_name(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="mock-alias", messages=CHAT)
    assert said.model == "mock-alias"


def test_one_model_is_told_and_a_missing_one_is_named(client: openai.OpenAI) -> None:
    assert client.models.retrieve("mock-alias").id == "mock-alias"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/mock")
    assert caught.value.code == "MODEL_NOT_FOUND"
    assert "'org/mock'" in caught.value.message
