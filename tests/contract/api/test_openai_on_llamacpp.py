"""OpenAI's own client through a whole server on real llama.cpp: what issue a client has with it, it has with a model (API-2)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from llama_orch.core.settings import PoolSettings, ProvisioningSettings

from ...engines.chat_models import write_thinking_model, write_tool_model
from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model
from .live_server import LiveServer, mock_settings

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]

CHAT: Any = [{"role": "user", "content": "say something"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Rome", "Oslo"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
#: with it and a seed a model of random weights says the same each time
COLD: Any = {"kv_hint": "cold"}
CALL_IT: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of llama.cpp servers, by the name of their model."""
    folder = tmp_path_factory.mktemp("models")
    with contextlib.ExitStack() as stack:
        found: dict[str, str] = {}
        for name, model, slots, extra in (
            ("tiny", write_tool_model(folder / "tiny.gguf"), 1, ()),
            ("thinking", write_thinking_model(folder / "thinking.gguf"), 2, ()),
            ("embedding", write_model(folder / "embedding.gguf"), 1, ("--embedding", "--pooling", "mean")),
            ("ranking", write_model(folder / "ranking.gguf", VARIANTS["ranking"]), 1, ("--reranking",)),
        ):
            found[name] = stack.enter_context(llama_server(model, slots=slots, extra=extra))
        yield found


@pytest.fixture(scope="module")
def live(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    pools = [
        PoolSettings(
            id=name, engine="llamacpp", model=name, provisioning=ProvisioningSettings(mode="external", url=url)
        )
        for name, url in urls.items()
    ]
    server = LiveServer(tmp_path_factory.mktemp("live"), mock_settings(pools=pools))
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_chat_streams_what_it_says_at_once_with_usage(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "tiny", "messages": CHAT, "seed": 7, "max_tokens": 24, "extra_body": COLD}
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert said
    assert whole.usage is not None
    assert whole.usage == chunks[-1].usage
    assert whole.usage.completion_tokens == 24
    assert whole.choices[0].finish_reason == "length"


def test_the_prefix_of_a_second_turn_is_told_as_cached(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "a long beginning " * 20}]
    first = client.chat.completions.create(model="tiny", messages=long, max_tokens=4, seed=1)  # type: ignore[arg-type]
    again = client.chat.completions.create(model="tiny", messages=long, max_tokens=4, seed=1)  # type: ignore[arg-type]
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0
    assert again.usage.prompt_tokens == first.usage.prompt_tokens


def test_several_answers_are_told_apart_whole_and_streamed(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "tiny",
        "messages": CHAT,
        "seed": 5,
        "n": 3,
        "max_tokens": 12,
        "temperature": 1.5,
        "extra_body": COLD,
    }
    whole = client.chat.completions.create(**wanted)
    said = ["", "", ""]
    reasons: dict[int, str] = {}
    for chunk in client.chat.completions.create(**wanted, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert [choice.message.content for choice in whole.choices] == said
    assert len(set(said)) == 3
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 36


def test_log_probabilities_come_with_alternatives_whole_and_streamed(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "tiny",
        "messages": CHAT,
        "seed": 7,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 3,
        "extra_body": COLD,
    }
    whole = client.chat.completions.create(**wanted)
    assert whole.choices[0].logprobs is not None
    told = whole.choices[0].logprobs.content
    assert told is not None
    assert len(told) == 8
    assert all(len(token.top_logprobs) == 3 for token in told)
    assert all(token.logprob <= 0 for token in told)
    assert bytes(b for token in told for b in token.bytes or ()).decode(errors="replace") == (
        whole.choices[0].message.content
    )
    streamed = [
        token
        for chunk in client.chat.completions.create(**wanted, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert streamed == told


def test_an_answer_fits_the_schema_that_is_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
        "additionalProperties": False,
    }
    said = client.chat.completions.create(
        model="tiny",
        messages=CHAT,
        max_tokens=300,
        seed=4,
        extra_body=COLD,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}},
    )
    assert said.choices[0].finish_reason == "stop"
    answer = json.loads(said.choices[0].message.content or "")
    assert answer["colour"] in {"red", "blue"}
    assert set(answer) == {"colour", "sure"}


class Mood(pydantic.BaseModel):
    word: Literal["calm", "storm"]


class Weather(pydantic.BaseModel):
    """What a client's own types become: references, choices, what may be null."""

    sky: Literal["grey", "blue"]
    degrees: int
    mood: Mood | None


@pytest.mark.parametrize("model", ["tiny", "thinking"])
def test_an_answer_becomes_the_type_that_a_client_declares(client: openai.OpenAI, model: str) -> None:
    said = client.chat.completions.parse(
        model=model, messages=CHAT, max_tokens=1500, seed=4, extra_body=COLD, response_format=Weather
    )
    answer = said.choices[0].message.parsed
    assert answer is not None
    assert answer.sky in {"grey", "blue"}


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "tiny", "messages": CHAT, "seed": 7, "max_tokens": 40, "extra_body": COLD}
    whole = client.chat.completions.create(**wanted).choices[0].message.content or ""
    stop = whole[10:13]
    cut = client.chat.completions.create(**wanted, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_biased_token_is_said(client: openai.OpenAI, live: LiveServer) -> None:
    asked = httpx.post(f"{live.url}/tokenize", json={"model": "tiny", "content": "é"}).json()
    wanted = asked["tokens"][-1]
    said = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4, logit_bias={str(wanted): 100})
    assert "é" in (said.choices[0].message.content or "")


# --- tools and thoughts ----------------------------------------------------------------------------------------------


def test_a_tool_is_called_with_arguments_that_fit_and_its_answer_is_taken(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="tiny",
        messages=CHAT,
        tools=[WEATHER],
        tool_choice=CALL_IT,
        max_tokens=800,
        seed=3,
        extra_body=COLD,
    )
    choice = said.choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert calls
    for call in calls:
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["place"] in {"Rome", "Oslo"}
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    follow_up: Any = [*CHAT, choice.message, *results]
    answered = client.chat.completions.create(model="tiny", messages=follow_up, tools=[WEATHER], max_tokens=8)
    assert answered.usage is not None
    assert answered.usage.completion_tokens > 0


def test_a_streamed_call_is_the_call_of_the_whole_answer(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "tiny",
        "messages": CHAT,
        "tools": [WEATHER],
        "tool_choice": CALL_IT,
        "max_tokens": 800,
        "seed": 3,
        "extra_body": COLD,
    }
    whole = client.chat.completions.create(**wanted).choices[0].message.tool_calls or []
    told: dict[int, list[str]] = {}
    ids: list[str] = []
    for chunk in client.chat.completions.create(**wanted, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            ids += [call.id] if call.id else []
            assert call.function is not None
            one = told.setdefault(call.index, ["", ""])
            one[0] += call.function.name or ""
            one[1] += call.function.arguments or ""
    assert whole
    assert [told[at] for at in sorted(told)] == [[c.function.name, c.function.arguments] for c in whole]
    assert len(set(ids)) == len(whole)


def test_the_clients_own_helper_puts_a_streamed_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny",
        messages=CHAT,
        tools=[WEATHER],
        tool_choice=CALL_IT,
        max_tokens=800,
        seed=3,
        extra_body=COLD,
    ) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert calls
    assert all(call.function.name == "get_weather" and json.loads(call.function.arguments) for call in calls)


def test_thoughts_come_apart_from_what_is_said_and_are_counted(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "thinking",
        "messages": CHAT,
        "max_tokens": 300,
        "seed": 2,
        "extra_body": COLD,
    }
    whole = client.chat.completions.create(**wanted)
    thoughts = getattr(whole.choices[0].message, "reasoning_content", "")
    assert thoughts
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    thought = whole.usage.completion_tokens_details.reasoning_tokens or 0
    assert 0 < thought <= whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == thoughts
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_model_that_is_told_not_to_think_does_not(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="thinking",
        messages=CHAT,
        max_tokens=30,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert not getattr(said.choices[0].message, "reasoning_content", "")


# --- texts -----------------------------------------------------------------------------------------------------------


def test_prompts_are_tasks_of_their_own_and_come_in_their_order(client: openai.OpenAI) -> None:
    prompts = ["one", "two two", "three three three"]
    wanted: Any = {"model": "tiny", "max_tokens": 6, "seed": 4, "extra_body": COLD}
    alone = [client.completions.create(prompt=prompt, **wanted).choices[0].text for prompt in prompts]
    raw = client.completions.with_raw_response.create(prompt=prompts, **wanted)
    together = raw.parse()
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert len(set(raw.headers["x-task-id"].split(", "))) == 3
    said = ["", "", ""]
    for chunk in client.completions.create(prompt=prompts, stream=True, **wanted):
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert said == alone


def test_a_prompt_of_token_ids_says_what_its_text_says(client: openai.OpenAI, live: LiveServer) -> None:
    ids = httpx.post(f"{live.url}/tokenize", json={"model": "tiny", "prompt": "hello there"}).json()["tokens"]
    wanted: Any = {"model": "tiny", "max_tokens": 8, "seed": 4, "extra_body": COLD}
    by_text = client.completions.create(prompt="hello there", **wanted)
    by_ids = client.completions.create(prompt=ids, **wanted)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage == by_text.usage


def test_texts_have_the_older_log_probabilities_and_echo(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "tiny", "prompt": "hello", "max_tokens": 6, "seed": 4, "extra_body": COLD}
    said = client.completions.create(**wanted, logprobs=2).choices[0]
    assert said.logprobs is not None
    assert len(said.logprobs.tokens or ()) == 6
    assert all(len(top) == 2 for top in said.logprobs.top_logprobs or ())
    assert client.completions.create(**wanted, echo=True).choices[0].text == "hello" + said.text


# --- vectors and ranks -------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_engine_in_both_encodings(
    client: openai.OpenAI, live: LiveServer, urls: dict[str, str]
) -> None:
    texts = ["a red apple", "two"]
    direct = httpx.post(f"{urls['embedding']}/v1/embeddings", json={"input": texts}).json()
    usual = client.embeddings.create(model="embedding", input=texts)
    plain = client.embeddings.create(model="embedding", input=texts, encoding_format="float")
    for one, other, there in zip(usual.data, plain.data, direct["data"], strict=True):
        assert one.embedding == other.embedding
        assert one.embedding == pytest.approx(there["embedding"], abs=1e-6)
    assert usual.usage.prompt_tokens == direct["usage"]["prompt_tokens"]
    raw = httpx.post(
        f"{live.url}/v1/embeddings", json={"model": "embedding", "input": "two", "encoding_format": "base64"}
    ).json()
    coded = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(coded) // 4}f", coded)) == usual.data[1].embedding


def test_documents_rank_as_the_engine_ranks_them(live: LiveServer, urls: dict[str, str]) -> None:
    documents = ["a red apple", "two", "three little words"]
    body = {"model": "ranking", "query": "apple", "documents": documents}
    direct = httpx.post(f"{urls['ranking']}/v1/rerank", json=body).json()["results"]
    said = httpx.post(f"{live.url}/v1/rerank", json={**body, "return_documents": True}).json()["results"]
    expected = {one["index"]: one["relevance_score"] for one in direct}
    assert [one["relevance_score"] for one in said] == sorted(expected.values(), reverse=True)
    for one in said:
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-6)
        assert one["document"]["text"] == documents[one["index"]]


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/v1/embeddings", {"model": "tiny", "input": "a"}, "model"),
        ("/v1/rerank", {"model": "tiny", "query": "q", "documents": ["a"]}, "model"),
        ("/v1/chat/completions", {"model": "embedding", "messages": CHAT}, "model"),
        (
            "/v1/chat/completions",
            {
                "model": "tiny",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
                    }
                ],
            },
            "messages",
        ),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_the_queue(
    live: LiveServer, path: str, body: dict[str, Any], param: str
) -> None:
    answer = httpx.post(f"{live.url}{path}", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("INVALID_PARAMS", param)
    assert "does not do" in error["message"]


# --- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_engine(live: LiveServer, urls: dict[str, str]) -> None:
    with httpx.Client(base_url=live.url) as ours, httpx.Client(base_url=urls["tiny"]) as theirs:
        text = "hello there, ünïcödé 🙂"
        for more in ({}, {"add_special": True}, {"with_pieces": False}):
            direct = theirs.post("/tokenize", json={"content": text, **more}).json()
            said = ours.post("/tokenize", json={"model": "tiny", "content": text, **more}).json()
            assert said["tokens"] == direct["tokens"]
        ids = said["tokens"]
        assert (
            ours.post("/detokenize", json={"model": "tiny", "tokens": ids}).json()["content"]
            == (theirs.post("/detokenize", json={"tokens": ids}).json()["content"])
        )
        chat = {"messages": CHAT, "tools": [WEATHER]}
        assert (
            ours.post("/apply-template", json={"model": "tiny", **chat}).json()["prompt"]
            == (theirs.post("/apply-template", json=chat).json()["prompt"])
        )


# --- errors, retries, timeouts, leaving ----------------------------------------------------------------------------------


def task_of(client: openai.OpenAI, live: LiveServer, task_id: str) -> dict[str, Any]:
    """The task, once it has ended."""
    return client.get(f"{live.url}/v1/tasks/{task_id}?wait=20000", cast_to=dict[str, Any])


def test_what_does_not_fit_the_context_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello " * 3000}])
    assert caught.value.code == "CONTEXT_EXCEEDED"
    assert "2048" in caught.value.message


def test_a_schema_that_cannot_be_held_to_names_what_it_is(client: openai.OpenAI) -> None:
    schema: Any = {"type": "string", "pattern": "^a+$"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny",
            messages=CHAT,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        )
    assert "pattern" in caught.value.message


def test_closing_a_stream_stops_the_engine(client: openai.OpenAI, live: LiveServer) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=CHAT, stream=True, max_tokens=1900, extra_body={"grammar": "root ::= [a-z ]+"}
    )
    first = next(iter(stream))
    stream.close()
    info = task_of(client, live, first.id.removeprefix("chatcmpl-"))
    assert info["state"] == "cancelled"
    assert info["usage"]["completion_tokens"] < 1900
    # The one slot is free again.
    assert client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=2).choices


def test_who_hangs_up_while_waiting_stops_the_engine(client: openai.OpenAI, live: LiveServer) -> None:
    key = "5e0a38b3-8d5c-4a6c-9f5e-1c7c35d0a001"
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(
            model="tiny",
            messages=CHAT,
            max_tokens=1900,
            extra_body={"grammar": "root ::= [a-z ]+", "task_id": key},
        )
    assert task_of(client, live, key)["state"] == "cancelled"


def test_retries_of_an_impatient_client_make_one_run(client: openai.OpenAI, live: LiveServer) -> None:
    raw = client.with_options(timeout=0.3, max_retries=20).chat.completions.with_raw_response.create(
        model="tiny",
        messages=CHAT,
        max_tokens=700,
        extra_headers={"Idempotency-Key": "impatient"},
        extra_body={"grammar": "root ::= [a-z ]+", "cancel_on_disconnect": False},
    )
    said = raw.parse()
    assert said.choices[0].finish_reason == "length"
    assert said.usage is not None
    assert said.usage.completion_tokens == 700
    info = task_of(client, live, raw.headers["x-task-id"])
    assert info["attempts"] == 1
    assert info["text"] == said.choices[0].message.content


def test_many_at_once_wait_for_the_one_slot_and_all_are_answered(live: LiveServer) -> None:
    async def run() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client:
            wanted: Any = {
                "model": "tiny",
                "messages": CHAT,
                "max_tokens": 5,
                "seed": 1,
                "extra_body": COLD,
            }
            said = await asyncio.gather(*(client.chat.completions.create(**wanted) for _ in range(20)))
            return [one.choices[0].message.content for one in said]

    found = asyncio.run(run())
    assert len(found) == 20
    assert len(set(found)) == 1
