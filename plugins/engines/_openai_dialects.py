"""How requests are written for the kinds of servers that speak OpenAI's API: names of fields, and what each can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from .. import ChatJob, GenerateJob
from ._json_grammar import SchemaError, grammar_of

_encode = msgspec.json.Encoder().encode
_WHOLE: Final = frozenset({"top_k"})
_PLAIN_SAMPLING: Final = {
    name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")
}  # OpenAI's own
#: what a completion without a bound asks for where the server's context is not known
UNBOUNDED_TOKENS: Final = 4096
#: that a server may put around a prompt
SPECIAL_TOKENS: Final = 8
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
#: llama.cpp takes this seed for "any"
_RANDOM_SEED: Final = 0xFFFF_FFFF


class RequestError(ValueError):
    """The job cannot be written in this server's dialect; the message names the field."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of server."""

    name: str
    #: names of sampling parameters there, by ours; what is missing it does not take
    sampling: Mapping[str, str]
    #: what it can beside workloads, where nobody configures that
    features: tuple[str, ...]
    #: how a JSON schema is sent: in ``response_format``, as a ``grammar`` that is made of it here, or in vLLM's
    #: ``structured_outputs``
    schema: Literal["response_format", "grammar", "structured_outputs"] = "response_format"
    #: whether completions take a schema at all
    completion_schema: bool = False
    grammar: Literal["", "grammar", "structured_outputs"] = ""
    #: how a start without a cached prefix is asked for
    cold: Literal["", "cache_prompt", "cache_salt"] = ""
    #: it gives token ids on demand, vLLM's way
    returns_ids: bool = False
    #: it makes several answers of one request, the k-th with ``seed + k``
    native_n: bool = False
    #: variables of the chat template can be sent
    template_kwargs: bool = False
    #: it never takes this seed as it is
    avoids_random_seed: bool = False
    #: ``tool_choice`` may name a function; else that one alone is sent, and some has to be called
    takes_named_tool: bool = True
    #: a bound beyond what the context has left is no error there
    clamps: bool = True
    #: sent with each stream
    constants: Mapping[str, Any] = {}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a job."""

    #: the model's name at the server
    model: str
    #: answers of this request
    n: int = 1
    #: of the first of them; -1 = none is sent
    seed: int = -1
    #: the server's context in tokens, 0 = not known
    ctx: int = 0
    #: no other request has it
    request_id: str = ""


_COMMON_FEATURES: Final = ("tools", "logprobs", "json_schema", "seed", "continue")
OPENAI: Final = Dialect(name="openai", sampling=_PLAIN_SAMPLING, features=_COMMON_FEATURES, clamps=False)
LLAMACPP: Final = Dialect(
    name="llamacpp",
    sampling={**_PLAIN_SAMPLING, "top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repeat_penalty"},
    features=(*_COMMON_FEATURES, "grammar"),
    # Its own reading of a schema passes over what it does not know.
    schema="grammar",
    completion_schema=True,
    grammar="grammar",
    cold="cache_prompt",
    template_kwargs=True,
    avoids_random_seed=True,
    takes_named_tool=False,
    # Its running count, since a chunk may stand for several tokens.
    constants={"timings_per_token": True},
)
#: it puts completions through its chat template, so that nothing can be continued there
OLLAMA: Final = Dialect(
    name="ollama", sampling=_PLAIN_SAMPLING, features=("tools", "json_schema", "seed"), completion_schema=False
)
VLLM: Final = Dialect(
    name="vllm",
    sampling={**_PLAIN_SAMPLING, "top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"},
    features=(*_COMMON_FEATURES, "render", "grammar", "logit_bias", "prompt_ids", "tokenize", "detokenize"),
    schema="structured_outputs",
    completion_schema=True,
    grammar="structured_outputs",
    cold="cache_salt",
    returns_ids=True,
    native_n=True,
    template_kwargs=True,
)
#: by name, as configuration has them
DIALECTS: Final[dict[str, Dialect]] = {d.name: d for d in (OPENAI, LLAMACPP, OLLAMA, VLLM)}
#: by what `/models` says of who owns a model
_OWNERS: Final[dict[str, Dialect]] = {"llamacpp": LLAMACPP, "vllm": VLLM, "library": OLLAMA}


def dialect_of(owner: str) -> Dialect:
    """The dialect of a server whose models are said to belong to this owner."""
    return _OWNERS.get(owner, OPENAI)


def completion_body(job: GenerateJob, dialect: Dialect, ask: Ask, prompt: str | Sequence[int]) -> dict[str, Any]:
    """The request of ``/completions``.

    Args:
        job: what is wanted.
        dialect: of the server.
        ask: what this one request of it is.
        prompt: text, or token ids, the prefix included.

    Raises:
        RequestError: the dialect has no word for something.
    """
    body = _body(job, dialect, ask)
    body["prompt"] = prompt
    body["max_tokens"] = min(job.max_tokens, ask.ctx or job.max_tokens) or _room(dialect, ask.ctx, prompt)
    if job.logprobs:
        body["logprobs"] = max(job.top_logprobs, 1)
    if job.json_schema is not None:
        if not dialect.completion_schema:
            msg = f"json_schema: a server of dialect {dialect.name!r} takes one with chats alone; send messages"
            raise RequestError(msg)
        _put_schema(body, dialect, job.json_schema)
    if dialect.returns_ids and job.workload == "chat":
        body["add_special_tokens"] = False  # the chat's template has put them there
    return body


def chat_body(job: GenerateJob, dialect: Dialect, ask: Ask, *, max_tokens_field: str) -> dict[str, Any]:
    """The request of ``/chat/completions``; arguments as for completions.

    Raises:
        RequestError: the dialect has no word for something.
    """
    chat = job.chat
    assert chat is not None
    if job.prefix:
        msg = "what was said cannot be continued in a chat that the server renders"
        raise RequestError(msg)
    for message in chat.messages:
        _check_media(message)
    body = _body(job, dialect, ask)
    body["messages"] = [dict(message) for message in chat.messages]
    if job.max_tokens:
        body[max_tokens_field] = min(job.max_tokens, ask.ctx or job.max_tokens)
    if job.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = max(job.top_logprobs, 1)
    if job.json_schema is not None:
        _put_schema(body, dialect, job.json_schema)
    if chat.tools:
        body["tools"], body["tool_choice"] = _tools(chat, dialect)
        if chat.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = chat.parallel_tool_calls
    kwargs = dict(chat.template_kwargs)
    if chat.reasoning_effort:
        body["reasoning_effort"] = chat.reasoning_effort
        if dialect.template_kwargs:
            kwargs.setdefault("enable_thinking", chat.reasoning_effort != "none")
    if kwargs:
        if not dialect.template_kwargs:
            msg = f"chat_template_kwargs: a server of dialect {dialect.name!r} does not take them"
            raise RequestError(msg)
        body["chat_template_kwargs"] = kwargs
    return body


def _body(job: GenerateJob, dialect: Dialect, ask: Ask) -> dict[str, Any]:
    """What completions and chats share."""
    body: dict[str, Any] = {
        "model": ask.model,
        "stream": True,  # a request without a stream may run on when whoever asked has left
        "stream_options": {"include_usage": True},
        **dialect.constants,
    }
    if ask.n > 1:
        body["n"] = ask.n
    if ask.seed >= 0:
        body["seed"] = ask.seed - 1 if dialect.avoids_random_seed and ask.seed == _RANDOM_SEED else ask.seed
    for name, value in job.sampling.items():
        there = dialect.sampling.get(name)
        if there is None:
            msg = f"{name}: a server of dialect {dialect.name!r} does not take it"
            raise RequestError(msg)
        body[there] = int(value) if name in _WHOLE else value
    if job.stop:
        body["stop"] = list(job.stop)
    if job.logit_bias:
        body["logit_bias"] = dict(job.logit_bias)
    if job.grammar:
        if job.json_schema is not None:
            msg = "grammar and json_schema exclude each other"
            raise RequestError(msg)
        if dialect.grammar == "grammar":
            body["grammar"] = job.grammar
        elif dialect.grammar:
            body["structured_outputs"] = {"grammar": job.grammar}
        else:
            msg = f"grammar: a server of dialect {dialect.name!r} does not take one"
            raise RequestError(msg)
    if dialect.returns_ids:
        body["return_token_ids"] = True
        body["request_id"] = ask.request_id
    if dialect.cold == "cache_prompt":
        body["cache_prompt"] = job.cache_prompt
    elif dialect.cold == "cache_salt" and not job.cache_prompt:
        # Blocks of the cache are shared among requests of one salt: this one is nobody else's.
        body["cache_salt"] = ask.request_id
    return body


def _check_media(message: Mapping[str, Any]) -> None:
    """Pictures and other media come with the request: the server would fetch others, from wherever a client says."""
    parts = message.get("content")
    for part in parts if isinstance(parts, list) else ():
        source = part.get(part.get("type"))
        url = source.get("url") if isinstance(source, Mapping) else source
        if str(part.get("type")).endswith("_url") and not str(url).startswith("data:"):
            msg = "messages: pictures and other media are sent in data: URLs, and are fetched from nowhere"
            raise RequestError(msg)


def _tools(chat: ChatJob, dialect: Dialect) -> tuple[list[dict[str, Any]], str | Mapping[str, Any]]:
    """The functions that may be called, and which of them has to be."""
    tools, choice = [dict(tool) for tool in chat.tools], chat.tool_choice or "auto"
    if isinstance(choice, str) or dialect.takes_named_tool:
        return tools, choice
    name = (choice.get("function") or {}).get("name")
    named = [tool for tool in tools if (tool.get("function") or {}).get("name") == name]
    if not named:
        msg = f"tool_choice: it names no tool of this request: {name!r}"
        raise RequestError(msg)
    return named, "required"


def _room(dialect: Dialect, ctx: int, prompt: str | Sequence[int]) -> int:
    """The bound of a completion that has none: left out it would mean 16 tokens to many."""
    if not ctx:
        return UNBOUNDED_TOKENS
    if dialect.clamps:
        return ctx
    # No token is less than a byte. Where that says nothing, a quarter of the context is a guess at what is left.
    taken = len(prompt.encode()) if isinstance(prompt, str) else len(prompt)
    return max(ctx - taken - SPECIAL_TOKENS, ctx // 4, 1)


def _put_schema(body: dict[str, Any], dialect: Dialect, schema: Mapping[str, Any]) -> None:
    match dialect.schema:
        case "structured_outputs":
            body["structured_outputs"] = {"json": schema}
        case "grammar":
            try:
                body["grammar"] = grammar_of(schema)
            except SchemaError as error:
                msg = f"json_schema: {error}"
                raise RequestError(msg) from error
        case "response_format":
            named = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}


def with_extras(body: dict[str, Any], extra: Mapping[str, Any]) -> bytes:
    """The request as bytes, with configured fields; ``None`` takes a field away."""
    for name, value in extra.items():
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value
    return _encode(body)


def lacks(job: GenerateJob, features: Sequence[str], workloads: Sequence[str]) -> str:
    """What of a job a server of these abilities cannot do, as a message; "" = nothing."""
    if workloads and job.workload not in workloads:
        return f"workload: the server has no {job.workload}"
    wanted = {
        "logprobs": job.logprobs,
        "prompt_ids": bool(job.prompt_ids),
        "logit_bias": bool(job.logit_bias),
        "grammar": bool(job.grammar),
        "json_schema": job.json_schema is not None,
        "continue": bool(job.prefix),
        "tools": job.chat is not None and (bool(job.chat.tools) or _has_calls(job.chat.messages)),
        "images": job.chat is not None and any(_has_media(message) for message in job.chat.messages),
    }
    missing = [name for name, is_wanted in wanted.items() if is_wanted and name not in features]
    return f"{missing[0]}: the pool's server is not said to have it (provisioning.options.features)" if missing else ""


def _has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)


def _has_media(message: Mapping[str, Any]) -> bool:
    parts = message.get("content")
    return isinstance(parts, list) and any(part.get("type") not in _TEXT_PARTS for part in parts)
