"""One script, two servers: llama.cpp's own and ours before it, which say the same text and tokens for the same seed (API-2).

What differs is listed in the reference of the OpenAI-compatible API, and here: the names that stand for requests and calls.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from llama_orch.core.settings import PoolSettings, ProvisioningSettings

from ...engines.chat_models import write_thinking_model, write_tool_model
from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import VARIANTS, write_model
from .live_server import LiveServer, mock_settings

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Rome", "Oslo"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
SCHEMA: Any = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}
COLD: Any = {"cache_prompt": False}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """For each model the URL of its own server and that of ours before it."""
    folder = tmp_path_factory.mktemp("models")
    with contextlib.ExitStack() as stack:
        urls = {
            "plain": stack.enter_context(llama_server(write_tool_model(folder / "plain.gguf"), slots=1)),
            "thinking": stack.enter_context(llama_server(write_thinking_model(folder / "thinking.gguf"), slots=1)),
            # single bytes, of which hardly any make a character, and ends of its own
            "bytes": stack.enter_context(llama_server(write_model(folder / "b.gguf", VARIANTS["bytes"]), slots=1)),
        }
        pools = [
            PoolSettings(
                id=name, engine="llamacpp", model=name, provisioning=ProvisioningSettings(mode="external", url=url)
            )
            for name, url in urls.items()
        ]
        live = LiveServer(tmp_path_factory.mktemp("live"), mock_settings(pools=pools)).start()
        stack.callback(live.stop)
        yield {name: (url, live.url) for name, url in urls.items()}


Script = Callable[[openai.OpenAI, str], list[Any]]


def same(servers: dict[str, tuple[str, str]], model: str, script: Script) -> list[Any]:
    """What the script gets from both servers, which has to be one thing."""
    found = []
    for url in servers[model]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            found.append(script(client, model))
    assert found[1] == found[0]
    return list(found[1])


def cold(wanted: dict[str, Any]) -> dict[str, Any]:
    """What is asked for, from a slot that starts without a cached prefix."""
    return {**wanted, "extra_body": {**COLD, **wanted.get("extra_body", {})}}


def chat_of(said: Any) -> list[dict[str, Any]]:
    """What a completion says, without the names that stand for it."""
    return [
        {
            "index": choice.index,
            "content": choice.message.content or "",
            "reasoning": getattr(choice.message, "reasoning_content", None) or "",
            "calls": [[c.function.name, c.function.arguments] for c in choice.message.tool_calls or ()],
            "reason": choice.finish_reason,
            "tokens": [
                (token.token, token.bytes, pytest.approx(token.logprob, abs=1e-5))
                for token in (choice.logprobs.content or () if choice.logprobs else ())
            ],
            "usage": (said.usage.prompt_tokens, said.usage.completion_tokens),
        }
        for choice in sorted(said.choices, key=lambda choice: choice.index)
    ]


def chat_of_stream(chunks: Any) -> dict[str, Any]:
    """The same of a stream with one answer."""
    told: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "reason": None, "tokens": [], "usage": None}
    for chunk in chunks:
        if chunk.usage is not None:
            told["usage"] = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            told["content"] += choice.delta.content or ""
            told["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            told["reason"] = choice.finish_reason or told["reason"]
            told["tokens"] += [
                (token.token, pytest.approx(token.logprob, abs=1e-5))
                for token in (choice.logprobs.content or () if choice.logprobs else ())
            ]
            for call in choice.delta.tool_calls or ():
                one = told["calls"].setdefault(call.index, ["", ""])
                one[0] += call.function.name or ""
                one[1] += call.function.arguments or ""
    return told


BOTH = ("plain", "thinking")
#: what is asked for, and of which models: llama.cpp tells probabilities of thoughts as well, and its own grammar of a
#: schema gives a model that does not think other room for spaces
CHATS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": (BOTH, {"max_tokens": 40}),
    "greedy": (BOTH, {"max_tokens": 30, "temperature": 0}),
    "sampled": (
        BOTH,
        {"max_tokens": 40, "temperature": 1.3, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    ),
    "with probabilities": (("plain",), {"max_tokens": 20, "logprobs": True, "top_logprobs": 2}),
    "in a schema": (
        ("thinking",),
        {
            "max_tokens": 300,
            "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
        },
    ),
    "in a grammar": (("plain",), {"max_tokens": 30, "extra_body": {"grammar": 'root ::= ("a" | "b" | " ")+'}}),
    "with a tool": (BOTH, {"max_tokens": 800, "tools": [TOOL], "tool_choice": "required"}),
    "with tools as it likes": (BOTH, {"max_tokens": 60, "tools": [TOOL]}),
}
CASES = [pytest.param(model, wanted, id=f"{model}, {name}") for name, (on, wanted) in CHATS.items() for model in on]
TALK: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "say something, ünïcödé 🙂"},
]


@pytest.mark.parametrize("model, wanted", CASES)
def test_a_chat_says_the_same(servers: dict[str, tuple[str, str]], model: str, wanted: dict[str, Any]) -> None:
    def script(client: openai.OpenAI, name: str) -> list[Any]:
        return [
            chat_of(client.chat.completions.create(model=name, messages=TALK, seed=seed, **cold(wanted)))
            for seed in (1, 2, 3)
        ]

    assert any(
        answer["content"] or answer["calls"] or answer["reasoning"] for (answer,) in same(servers, model, script)
    )


@pytest.mark.parametrize("model, wanted", CASES)
def test_a_streamed_chat_says_the_same(servers: dict[str, tuple[str, str]], model: str, wanted: dict[str, Any]) -> None:
    def script(client: openai.OpenAI, name: str) -> list[Any]:
        return [
            chat_of_stream(
                client.chat.completions.create(
                    model=name,
                    messages=TALK,
                    seed=seed,
                    stream=True,
                    stream_options={"include_usage": True},
                    **cold(wanted),
                )
            )
            for seed in (1, 2)
        ]

    assert all(answer["reason"] for answer in same(servers, model, script))


def test_several_answers_are_the_same(servers: dict[str, tuple[str, str]]) -> None:
    def script(client: openai.OpenAI, name: str) -> list[Any]:
        wanted: Any = {"model": name, "messages": TALK, "seed": 5, "n": 3, "max_tokens": 12, "extra_body": COLD}
        return chat_of(client.chat.completions.create(**wanted))

    # llama.cpp gives an answer per slot at once; ours before a server of one slot asks for one after another, with the
    # seed counted up. The first one is the same.
    (first, *_) = script_on(servers["plain"][1], script)
    with openai.OpenAI(base_url=f"{servers['plain'][0]}/v1", api_key="x", max_retries=0) as client:
        one: Any = {"model": "plain", "messages": TALK, "seed": 5, "max_tokens": 12, "extra_body": COLD}
        (alone,) = chat_of(client.chat.completions.create(**one))
    assert first["content"] == alone["content"]


def script_on(url: str, script: Script) -> list[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        return script(client, "plain")


TEXTS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 40},
    "greedy": {"max_tokens": 30, "temperature": 0},
    "sampled": {"max_tokens": 40, "temperature": 1.2, "top_p": 0.8},
    "to a stop": {"max_tokens": 60, "stop": ["a", "u"]},
    "with special tokens": {"max_tokens": 20, "prompt": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"},
}


@pytest.mark.parametrize("wanted", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("model", ["plain", "bytes"])
def test_a_text_says_the_same_whole_and_streamed(
    servers: dict[str, tuple[str, str]], model: str, wanted: dict[str, Any]
) -> None:
    def script(client: openai.OpenAI, name: str) -> list[Any]:
        found: list[Any] = []
        for seed in (1, 2):
            asked: Any = {"model": name, "prompt": "hello there", "seed": seed, "extra_body": COLD} | wanted
            whole = client.completions.create(**asked)
            assert whole.usage is not None
            chunks = list(client.completions.create(**asked, stream=True))
            # A character that is cut off at the end is told by llama.cpp when it does not stream, else by nobody.
            text = whole.choices[0].text.rstrip("\N{REPLACEMENT CHARACTER}")
            assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == text
            found.append(
                [text, whole.choices[0].finish_reason, whole.usage.prompt_tokens, whole.usage.completion_tokens]
            )
        return found

    assert all(text for text, *_ in same(servers, model, script)) or "stop" in wanted


def test_the_tokens_are_the_same_by_their_ids(servers: dict[str, tuple[str, str]]) -> None:
    """llama.cpp tells ids beside log-probabilities; ours are in the stream of the completion's task."""
    theirs, ours = servers["plain"]
    wanted = {"model": "plain", "messages": TALK, "seed": 9, "max_tokens": 30, "logprobs": True, **COLD}
    direct = httpx.post(f"{theirs}/v1/chat/completions", json=wanted, timeout=60).json()
    expected = [token["id"] for token in direct["choices"][0]["logprobs"]["content"]]
    answer = httpx.post(f"{ours}/v1/chat/completions", json={**wanted, "logprobs": False}, timeout=60)
    frames = httpx.get(f"{ours}/v1/tasks/{answer.headers['x-task-id']}/stream", timeout=60).text.split("\n\n")
    told = [json.loads(frame.partition("data: ")[2]) for frame in frames if frame.startswith("event: token")]
    assert [one["id"] for one in told] == expected
    assert len(expected) == 30
