"""Anthropic's client, and OpenAI's with its responses, through a whole server on real llama.cpp: text, tools, thoughts, schemas,
counts (API-2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from llama_orch.core.settings import PoolSettings, ProvisioningSettings

from ...engines.chat_models import write_thinking_model, write_tool_model
from ...engines.real_llama import llama_server
from .live_server import LiveServer, mock_settings

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]

CHAT: Any = [{"role": "user", "content": "say something"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"place": {"enum": ["Rome", "Oslo"]}},
    "required": ["place"],
    "additionalProperties": False,
}
#: as Anthropic writes it, and as OpenAI does
WEATHER: Any = {"name": "get_weather", "description": "The weather of a place.", "input_schema": SCHEMA}
FUNCTION: Any = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": SCHEMA}
COLD: Any = {"kv_hint": "cold"}


class Colour(BaseModel):
    colour: Literal["red", "blue"]
    sure: bool


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("models")
    with contextlib.ExitStack() as stack:
        pools = []
        for name, write in (("tiny", write_tool_model), ("thinking", write_thinking_model)):
            url = stack.enter_context(llama_server(write(folder / f"{name}.gguf"), slots=1))
            where = ProvisioningSettings(mode="external", url=url)
            pools.append(PoolSettings(id=name, engine="llamacpp", model=name, provisioning=where))
        server = LiveServer(tmp_path_factory.mktemp("live"), mock_settings(pools=pools))
        yield server.start()
        server.stop()


@pytest.fixture(scope="module")
def claude(live: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="anything", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


# --- Anthropic's messages ----------------------------------------------------------------------------------------------


def test_a_message_streams_what_it_says_at_once(claude: anthropic.Anthropic) -> None:
    wanted: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 24, "extra_body": {"seed": 7, **COLD}}
    whole = claude.messages.create(**wanted)
    with claude.messages.stream(**wanted) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    assert final.usage.output_tokens == whole.usage.output_tokens == 24
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_the_prefix_of_a_second_turn_is_told_as_read_from_a_cache(claude: anthropic.Anthropic) -> None:
    wanted: Any = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "a beginning " * 30}]}
    first, again = claude.messages.create(**wanted), claude.messages.create(**wanted)

    def prompt(said: anthropic.types.Message) -> int:
        return said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)

    assert (again.usage.cache_read_input_tokens or 0) > 0
    assert prompt(first) == prompt(again)


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    wanted: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 40, "extra_body": {"seed": 7, **COLD}}
    whole = claude.messages.create(**wanted).content[0]
    assert whole.type == "text"
    stop = whole.text[10:13]
    said = claude.messages.create(**wanted, stop_sequences=["\x00never", stop])
    assert (said.stop_reason, said.stop_sequence) == ("stop_sequence", stop)
    assert said.content[0].type == "text"
    assert said.content[0].text == whole.text[: whole.text.index(stop)]


def test_a_tool_is_used_with_input_that_fits_and_its_result_is_taken(claude: anthropic.Anthropic) -> None:
    wanted: Any = {"model": "tiny", "tools": [WEATHER], "max_tokens": 800}
    said = claude.messages.create(
        **wanted, messages=CHAT, tool_choice={"type": "tool", "name": "get_weather"}, extra_body={"seed": 3}
    )
    uses = [block for block in said.content if block.type == "tool_use"]
    assert uses
    assert said.stop_reason == "tool_use"
    assert all(use.name == "get_weather" and use.input["place"] in {"Rome", "Oslo"} for use in uses)
    results: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
    answered = claude.messages.create(
        model="tiny",
        tools=[WEATHER],
        max_tokens=8,
        messages=[*CHAT, {"role": "assistant", "content": said.content}, {"role": "user", "content": results}],
    )
    assert answered.usage.output_tokens > 0


def test_a_streamed_tool_use_is_that_of_the_whole_message(claude: anthropic.Anthropic) -> None:
    wanted: Any = {
        "model": "tiny",
        "messages": CHAT,
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
        "max_tokens": 800,
        "extra_body": {"seed": 3, **COLD},
    }
    whole = [block for block in claude.messages.create(**wanted).content if block.type == "tool_use"]
    with claude.messages.stream(**wanted) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert whole
    assert pieces
    assert [(use.name, use.input) for use in final] == [(use.name, use.input) for use in whole]


def test_the_clients_own_loop_calls_a_tool_and_sends_its_result(claude: anthropic.Anthropic) -> None:
    called: list[str] = []

    @anthropic.beta_tool
    def get_weather(place: Literal["Rome", "Oslo"]) -> str:
        """The weather of a place.

        Args:
            place: where
        """
        called.append(place)
        return "sunny"

    runner = claude.beta.messages.tool_runner(
        model="tiny",
        max_tokens=800,
        messages=CHAT,
        tools=[get_weather],
        tool_choice={"type": "any"},
        max_iterations=2,
    )
    assert len(list(runner)) == 2
    assert called
    assert set(called) <= {"Rome", "Oslo"}


def test_thoughts_are_blocks_when_they_are_asked_for(claude: anthropic.Anthropic) -> None:
    wanted: Any = {
        "model": "thinking",
        "messages": CHAT,
        "max_tokens": 300,
        "thinking": {"type": "adaptive"},
        "extra_body": {"seed": 2, **COLD},
    }
    whole = claude.messages.create(**wanted)
    thought = whole.content[0]
    assert thought.type == "thinking"
    assert thought.thinking
    assert thought.signature
    with claude.messages.stream(**wanted) as stream:
        deltas = "".join(event.thinking for event in stream if event.type == "thinking")
        final = stream.get_final_message()
    assert deltas == thought.thinking
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert whole.usage.output_tokens_details is not None
    assert 0 < whole.usage.output_tokens_details.thinking_tokens <= whole.usage.output_tokens
    back: Any = [*CHAT, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "go on"}]
    assert claude.messages.create(model="thinking", messages=back, max_tokens=4).usage.output_tokens == 4


def test_a_model_that_thinks_does_not_unless_it_is_asked_to(claude: anthropic.Anthropic) -> None:
    said = claude.messages.create(model="thinking", messages=CHAT, max_tokens=30)
    assert [block.type for block in said.content] == ["text"]
    assert said.usage.output_tokens_details is not None
    assert said.usage.output_tokens_details.thinking_tokens == 0


def test_an_answer_fits_the_schema_of_its_output_format(claude: anthropic.Anthropic) -> None:
    said = claude.messages.parse(model="tiny", messages=CHAT, max_tokens=60, output_format=Colour)
    assert isinstance(said.parsed_output, Colour)


@pytest.mark.parametrize(
    "asked",
    [
        {"model": "tiny", "messages": CHAT},
        {"model": "tiny", "messages": CHAT, "system": "be brief"},
        {"model": "tiny", "messages": CHAT, "system": "be brief", "tools": [WEATHER]},
        {"model": "thinking", "messages": CHAT, "tools": [WEATHER]},
        {"model": "thinking", "messages": CHAT},
        {"model": "thinking", "messages": CHAT, "thinking": {"type": "adaptive"}},
    ],
)
def test_counted_tokens_are_those_that_the_engine_reads(claude: anthropic.Anthropic, asked: Any) -> None:
    counted = claude.messages.count_tokens(**asked)
    said = claude.messages.create(**asked, max_tokens=2, extra_body=COLD)
    assert counted.input_tokens == said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)


def test_pictures_are_refused_clearly_where_the_engine_cannot(claude: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    picture: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    with pytest.raises(anthropic.BadRequestError, match="does not do pictures"):
        claude.messages.create(model="tiny", messages=picture, max_tokens=4)
    with pytest.raises(anthropic.BadRequestError, match="pictures"):
        claude.messages.count_tokens(model="tiny", messages=picture)


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="tiny", messages=[{"role": "user", "content": "x y " * 5000}], max_tokens=4)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["code"] == "CONTEXT_EXCEEDED"
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_many_clients_at_once_are_served_one_after_another(live: LiveServer) -> None:
    async def ask() -> list[int]:
        async with anthropic.AsyncAnthropic(base_url=live.url, api_key="x", max_retries=0) as client:
            asked = [client.messages.create(model="tiny", messages=CHAT, max_tokens=5) for _ in range(12)]
            return [said.usage.output_tokens for said in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [5] * 12


# --- OpenAI's responses ------------------------------------------------------------------------------------------------


def test_a_response_streams_what_it_says_at_once(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "tiny",
        "input": "say something",
        "max_output_tokens": 24,
        "extra_body": {"seed": 7, **COLD},
    }
    whole = client.responses.create(**wanted)
    *_, last = client.responses.create(**wanted, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.output_tokens == 24


def test_a_function_is_called_and_its_output_is_sent_to_the_stored_response(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "name": "get_weather"}
    with client.responses.stream(
        model="tiny",
        input="weather?",
        tools=[FUNCTION],
        tool_choice=choice,
        max_output_tokens=800,
        extra_body={"seed": 3},
    ) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
        final = stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert calls
    assert final.status == "completed"
    assert deltas == "".join(call.arguments for call in calls)
    assert all(json.loads(call.arguments)["place"] in {"Rome", "Oslo"} for call in calls)
    outputs: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    answered = client.responses.create(
        model="tiny", input=outputs, previous_response_id=final.id, tools=[FUNCTION], max_output_tokens=8
    )
    assert answered.usage is not None
    assert answered.usage.input_tokens > (final.usage.input_tokens if final.usage else 0)
    assert answered.previous_response_id == final.id


def test_thoughts_are_items_and_any_resume_of_their_stream_is_the_rest_of_it(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model="thinking", input="say something", max_output_tokens=300, extra_body={"seed": 2}
    )
    assert first.output[0].type == "reasoning"
    assert first.output[0].content
    assert first.output[0].content[0].text
    assert first.usage is not None
    assert 0 < first.usage.output_tokens_details.reasoning_tokens <= first.usage.output_tokens
    whole = [event.to_dict() for event in client.responses.retrieve(first.id, stream=True)]
    assert whole[-1]["response"] == client.responses.retrieve(first.id).to_dict()
    for seen in (0, 3, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        rest = client.responses.retrieve(first.id, stream=True, starting_after=seen)
        assert [event.to_dict() for event in rest] == whole[seen + 1 :]


def test_a_model_that_shall_make_no_effort_does_not_think(client: openai.OpenAI) -> None:
    said = client.responses.create(
        model="thinking", input="say something", max_output_tokens=30, reasoning={"effort": "none"}
    )
    assert all(item.type != "reasoning" for item in said.output)


def test_an_answer_is_parsed_by_the_clients_own_helper(client: openai.OpenAI) -> None:
    said = client.responses.parse(model="tiny", input="colour?", text_format=Colour, max_output_tokens=60)
    assert isinstance(said.output_parsed, Colour)


def test_log_probabilities_come_with_alternatives(client: openai.OpenAI) -> None:
    said = client.responses.create(
        model="tiny",
        input="x",
        max_output_tokens=6,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        extra_body={"seed": 1},
    )
    message = said.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs
    assert len(part.logprobs) == 6
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


def test_the_async_client_follows_a_response_in_the_background(live: LiveServer) -> None:
    async def follow() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client:
            queued = await client.responses.create(model="tiny", input="x", background=True, max_output_tokens=9)
            return [event.type async for event in await client.responses.retrieve(queued.id, stream=True)]

    kinds = asyncio.run(follow())
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] in {"response.completed", "response.incomplete"}
