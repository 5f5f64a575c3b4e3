"""What the mock says of tools, thoughts and schemas, and what it makes of texts: by arithmetic, and as asked for."""

import asyncio
import json
import math
import struct

import hypothesis.strategies as st
import jsonschema_rs
import pytest
from hypothesis import given

from llama_orch.plugins import ChatJob, GenerateJob
from llama_orch.plugins.engines._mock_chat import RefusedError, plain_texts, plan, value_of
from llama_orch.plugins.engines._mock_words import detokenize, embedding, likelihood, score, tokenize
from llama_orch.plugins.engines.mock import MockEngine
from llama_orch.plugins.testing.engines import CLOCK, WEATHER, Recorder

SCHEMAS = [
    WEATHER["function"]["parameters"],
    {"type": "boolean"},
    {"enum": ["a", 2, None]},
    {"const": {"a": [1]}},
    {"type": ["integer", "null"], "minimum": 3, "maximum": 3},
    {"type": "number", "exclusiveMinimum": -2},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "maximum": -7},
    {"type": "string", "minLength": 5, "maxLength": 5},
    {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "string"}, "maxItems": 0},
    {"anyOf": [{"type": "null"}, {"type": "string"}]},
    {"$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "null"}}}}, "$ref": "#/$defs/leaf"},
    {"properties": {"deep": {"properties": {"deeper": {"type": "array", "items": {"const": 1}}}, "type": "object"}}},
    {},
]
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
@given(seed=st.integers(0, 2**32))
def test_a_value_is_one_that_the_schema_allows(schema, seed):
    value = value_of(schema, seed)
    assert value_of(schema, seed) == value
    assert jsonschema_rs.validator_for(schema).is_valid(value), value


def test_a_schema_that_refers_to_itself_has_an_end():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert json.dumps(value_of(schema, 1)).count("next") < 20


def said(chat=None, calls="", thoughts=0, schema=None):
    found = plan(chat=chat, schema=schema, calls=calls, thoughts=thoughts, seed=3)
    channels = {}
    for piece in found.pieces:
        channels[piece.channel] = channels.get(piece.channel, "") + piece.text
    return channels, found


@pytest.mark.parametrize(
    "fields, names",
    [
        ({}, []),
        ({"tool_choice": "required"}, ["get_weather"]),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, ["get_time"]),
        ({"tool_choice": {"type": "function", "name": "get_time"}}, ["get_time"]),
    ],
)
def test_a_tool_that_must_be_called_is_called_with_what_its_schema_allows(fields, names):
    channels, found = said(ChatJob(messages=[USER], tools=[WEATHER, CLOCK], **fields))
    assert [text for channel, text in channels.items() if channel.startswith("call:")] == names
    assert found.calls == found.complete == bool(names)
    for number, name in enumerate(names):
        tool = next(t for t in (WEATHER, CLOCK) if t["function"]["name"] == name)
        arguments = json.loads(channels[f"tool:{number}"])
        assert jsonschema_rs.validator_for(tool["function"]["parameters"]).is_valid(arguments)


def test_a_script_calls_where_it_may_choose_and_not_where_it_may_not():
    tools = [WEATHER, CLOCK]
    both = said(ChatJob(messages=[USER], tools=tools), calls="get_time,get_weather")[0]
    assert (both["call:0"], both["call:1"]) == ("get_time", "get_weather")
    one = said(ChatJob(messages=[USER], tools=tools, parallel_tool_calls=False), calls="get_time,get_weather")[0]
    assert "call:1" not in one
    assert said(ChatJob(messages=[USER], tools=tools, tool_choice="none"), calls="get_time")[0] == {}
    assert said(ChatJob(messages=[USER]), calls="get_time")[0] == {}
    with pytest.raises(RefusedError, match="nobody"):
        said(ChatJob(messages=[USER], tools=tools, tool_choice={"function": {"name": "nobody"}}))


def test_thoughts_come_first_and_can_be_switched_off():
    chat = ChatJob(messages=[USER], tools=[WEATHER], tool_choice="required")
    channels, found = said(chat, thoughts=4)
    assert next(iter(channels)) == "reasoning"
    assert sum(piece.tokens for piece in found.pieces if piece.channel == "reasoning") == 4
    quiet = [
        ChatJob(messages=[USER], reasoning_effort="none"),
        ChatJob(messages=[USER], template_kwargs={"enable_thinking": False}),
    ]
    for chat in quiet:
        assert "reasoning" not in said(chat, thoughts=4)[0]
    assert said(None, thoughts=4)[0] == {}, "a plain prompt is gone on with"


def test_parts_are_one_text_and_pictures_are_refused():
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert plain_texts([{"role": "user", "content": parts}, USER]) == [{"role": "user", "content": "ab"}, USER]
    with pytest.raises(RefusedError, match="image_url"):
        plain_texts([{"role": "user", "content": [{"type": "image_url"}]}])


@given(st.text("abcdefghij", min_size=1, max_size=12))
def test_tokens_become_their_text_again(word):
    for text in (word, f" {word}"):
        assert detokenize(tokenize(text, add_special=True)) == text
    with pytest.raises(KeyError):
        detokenize([2**31 - 1])


@given(st.text(max_size=20), st.sampled_from([0, 1, 7, 512]))
def test_an_embedding_has_length_one_and_depends_on_the_text_alone(text, dimensions):
    raw = embedding(text, dimensions)
    numbers = struct.unpack(f"<{len(raw) // 4}f", raw)
    assert len(numbers) == (dimensions or 32)
    assert math.isclose(sum(number * number for number in numbers), 1, rel_tol=1e-4)
    assert embedding(text, dimensions) == raw
    assert dimensions == 1 or embedding(f"{text}.", dimensions) != raw


def test_texts_rank_by_the_words_that_they_share_with_the_query():
    texts = ["green trees", "an apple", "a red apple"]
    assert sorted(texts, key=lambda text: -score("red apple", text)) == texts[::-1]


@given(st.integers(0, 2**31 - 1), st.integers(0, 20))
def test_a_likelihood_is_one(token, top):
    likely = likelihood(" a", token, top)
    assert float(likely.logprob) <= 0
    assert len(likely.top) == top


def test_it_stops_at_the_bound_also_in_a_thought_or_a_call():
    async def test():
        engine = MockEngine({"script": {"thoughts": 5}})
        chat = ChatJob(messages=[USER], tools=[WEATHER], tool_choice="required")
        for bound in (3, 8):
            sink = Recorder()
            engine.generate(GenerateJob(task_id="t", attempt=1, workload="chat", chat=chat, max_tokens=bound), sink)
            end = await sink.end()
            assert (end.finish_reason, end.tokens, sink.tokens) == ("length", bound, bound)
        await engine.close()

    asyncio.run(test())
