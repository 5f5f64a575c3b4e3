"""Requests to llama.cpp. What it does not know it ignores silently, so names are exact, and what it cannot is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import ChatJob, GenerateJob
from ._json_grammar import SchemaError, grammar_of
from ._llama_frames import RESPONSE_FIELDS
from ._llama_wire import Abilities

#: llama.cpp takes this seed for "any"
_RANDOM_SEED: Final = 0xFFFF_FFFF
#: of the native last frame, in a chat that may be stopped by a text
STOP_FIELDS: Final = ("stop_type", "stopping_word")
_WHOLE: Final = frozenset({"top_k"})
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_encode = msgspec.json.Encoder().encode


class RefusedError(ValueError):
    """The job asks for what this server cannot; the message names the field."""


def completion_body(job: GenerateJob, prompt: str | Sequence[int | str], choice: int) -> bytes:
    """The request of `/completion`.

    Args:
        job: what is asked for.
        prompt: its text, its token ids, or ids and then text.
        choice: which of several answers.

    Raises:
        RefusedError: the job cannot be asked for.
    """
    body: dict[str, Any] = {
        "prompt": prompt,
        "return_tokens": True,
        "response_fields": RESPONSE_FIELDS,
        "n_predict": job.max_tokens or -1,
        **_shared(job, choice),
    }
    if job.logprobs:
        body["n_probs"] = max(job.top_logprobs, 1)  # 0 is none at all
    if job.grammar or job.json_schema is not None:
        body["grammar"] = _grammar(job)
    return _encode(body)


def chat_body(job: GenerateJob, chat: ChatJob, abilities: Abilities, choice: int) -> bytes:
    """The request of `/v1/chat/completions`.

    Args:
        job: what is asked for.
        chat: its messages and tools.
        abilities: what the server can.
        choice: which of several answers.

    Raises:
        RefusedError: the job cannot be asked for.
    """
    _check_chat(job, chat, abilities)
    kwargs = dict(chat.template_kwargs)
    body: dict[str, Any] = {
        "messages": [dict(message) for message in chat.messages],
        "stream_options": {"include_usage": True},
        "timings_per_token": True,  # its counter of tokens, beside what they became
        "reasoning_format": "auto",
        "max_tokens": job.max_tokens or -1,
        **_shared(job, choice),
    }
    if job.stop:
        # Which of them ended it stands in no field of OpenAI's; the native last frame comes along, cut to that.
        body["verbose"] = True
        body["response_fields"] = STOP_FIELDS
    if chat.reasoning_effort:
        body["reasoning_effort"] = chat.reasoning_effort
        if chat.reasoning_effort == "none":
            kwargs.setdefault("enable_thinking", False)
        else:
            kwargs.setdefault("reasoning_effort", chat.reasoning_effort)
    if chat.tools:
        body["tools"], body["tool_choice"] = _tools(chat)
        if chat.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = chat.parallel_tool_calls
    if job.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = max(job.top_logprobs, 1)
    if job.grammar or job.json_schema is not None:
        grammar = _grammar(job)
        if not abilities.reasons or chat.reasoning_effort == "none":
            body["grammar"] = grammar
        elif job.json_schema is not None:
            # A grammar would hold the thoughts; llama.cpp's own has room for them before the JSON. That the schema
            # can be held to at all was just seen.
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": job.json_schema}}
        elif abilities.thinking_can_be_off:
            body["grammar"] = grammar
            kwargs["enable_thinking"] = False
        else:
            msg = "grammar: this model always thinks first, and a grammar would hold its thoughts; use json_schema"
            raise RefusedError(msg)
    if kwargs:
        body["chat_template_kwargs"] = kwargs
    return _encode(body)


def embedding_body(inputs: Sequence[str]) -> bytes:
    """The request of `/v1/embeddings`."""
    return _encode({"input": inputs, "encoding_format": "base64"})


def rerank_body(query: str, inputs: Sequence[str]) -> bytes:
    """The request of `/v1/rerank`."""
    return _encode({"query": query, "documents": inputs})


def require(job: GenerateJob, abilities: Abilities | None) -> None:
    """Refuse what the server does not do.

    Args:
        job: what is asked for.
        abilities: what the server can; ``None`` where it was not asked yet, then it has the word itself.

    Raises:
        RefusedError: it does not.
    """
    if abilities is not None and job.workload not in abilities.workloads:
        can = " and ".join(abilities.workloads)
        msg = f"workload: this llama.cpp server was started for {can}, not for {job.workload}"
        raise RefusedError(msg)
    if job.workload not in ("completion", "chat", "embedding", "rerank"):
        msg = f"workload: llama.cpp has no {job.workload}"
        raise RefusedError(msg)
    if job.chat is not None and job.prefix:
        msg = "prefix: what llama.cpp itself parses cannot be continued"
        raise RefusedError(msg)
    if abilities is not None and job.dimensions and job.dimensions != abilities.dimensions:
        msg = f"dimensions: this model's embeddings have {abilities.dimensions}, and llama.cpp does not shorten them"
        raise RefusedError(msg)


def _shared(job: GenerateJob, choice: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "stream": True,  # a request without a stream is never stopped, whoever leaves
        "return_progress": True,  # tells cached tokens, and that the prefill began
        "cache_prompt": job.cache_prompt,
        "seed": (job.seed + choice) % _RANDOM_SEED if choice else min(job.seed, _RANDOM_SEED - 1),
    }
    if job.slot >= 0:
        body["id_slot"] = job.slot
    for name, value in job.sampling.items():
        body[name] = int(value) if name in _WHOLE else value
    if job.stop:
        body["stop"] = job.stop
    if job.logit_bias:
        try:
            body["logit_bias"] = [[int(token), value] for token, value in job.logit_bias.items()]
        except ValueError as error:
            msg = f"logit_bias: its keys are token ids: {error}"
            raise RefusedError(msg) from error
    return body


def _grammar(job: GenerateJob) -> str:
    if job.json_schema is None:
        return job.grammar
    if job.grammar:
        msg = "grammar and json_schema exclude each other"
        raise RefusedError(msg)
    try:
        return grammar_of(job.json_schema)
    except SchemaError as error:
        msg = f"json_schema: {error}"
        raise RefusedError(msg) from error


def _check_chat(job: GenerateJob, chat: ChatJob, abilities: Abilities) -> None:
    if not abilities.tools and (
        chat.tools or any(m.get("role") == "tool" or m.get("tool_calls") for m in chat.messages)
    ):
        msg = "tools: this model's chat template shows it no tools"
        raise RefusedError(msg)
    if chat.tools and (job.grammar or job.json_schema is not None):
        field = "grammar" if job.grammar else "json_schema"
        msg = f"{field}: llama.cpp cannot hold an answer to it while tools are offered; leave out one of them"
        raise RefusedError(msg)
    for message in chat.messages:
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            kind = part.get("type")
            if kind in _TEXT_PARTS:
                continue
            if kind != "image_url" or not abilities.images:
                msg = f"messages: this server takes no parts of type {kind!r}"
                raise RefusedError(msg)
            source = part.get("image_url")
            url = source.get("url") if isinstance(source, Mapping) else source
            if not isinstance(url, str) or not url.startswith("data:"):
                # llama.cpp would fetch it, from wherever it says.
                msg = "messages: pictures are sent in data: URLs, and are fetched from nowhere"
                raise RefusedError(msg)


def _tools(chat: ChatJob) -> tuple[list[Mapping[str, Any]], str]:
    """The tools and how they may be chosen. llama.cpp knows no choice of one: then it is the only one it is shown."""
    tools, choice = list(chat.tools), chat.tool_choice or "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            msg = f"tool_choice: {choice!r} is none of auto, none, required"
            raise RefusedError(msg)
        return tools, choice
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    chosen = [tool for tool in tools if tool.get("function", {}).get("name") == name]
    if choice.get("type", "function") != "function" or not chosen:
        msg = f"tool_choice: it names no tool of this request: {name!r}"
        raise RefusedError(msg)
    return chosen, "required"
