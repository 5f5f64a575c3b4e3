"""``/tokenize``, ``/detokenize`` and ``/apply-template``: questions to a model's engine, in llama.cpp's words and vLLM's (API-2)."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from ...core.errors import InvalidParamsError, ModelNotFoundError, PoolUnreadyError
from ...core.services.bodies import RequestBody, body_of
from ...core.types import Name, TaskRequest, Text, TokenId
from ..operations import Answer, Call, Resource, operation, resource
from ..workloads import require_sound
from .chat_request import ignored_in_messages, messages_of
from .parameters import IGNORED_HELP, STRICT_HELP, fields_of, ignored_parameters, name_or_refuse
from .submission import named

#: most tokens whose pieces are told: each is a question to the engine
PIECES: Final = 2048
_ERRORS = (ModelNotFoundError, PoolUnreadyError)
_NAMES: Final = {"model_ref": "model"}
_Messages = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)]
_Tools = Annotated[list[dict[str, Any]], Meta(max_length=512)]


class TokenizeRequest(Struct, kw_only=True, omit_defaults=True):
    """llama.cpp's parameters (``content``), or vLLM's (``prompt`` or ``messages``)."""

    #: may be left out where one model is served
    model: Name | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: _Messages | None = None
    tools: _Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    #: put BOS and the like around it; llama.cpp's default for ``content``
    add_special: bool = False
    #: the same by vLLM's name, and its default for ``prompt``; a chat's template has them already
    add_special_tokens: bool | None = None
    #: special tokens in the text are those tokens
    parse_special: bool = True
    #: tokens come with their texts
    with_pieces: bool = False
    #: the same by vLLM's name
    return_token_strs: bool = False


class PieceBody(Struct, frozen=True, kw_only=True):
    """A token with its text."""

    id: int
    piece: str


class TokenizeBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens, as llama.cpp and vLLM tell them."""

    tokens: list[int | PieceBody]
    count: int
    #: largest context of the model's pools, tokens; 0 = not known yet
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(Struct, kw_only=True, omit_defaults=True):
    """Token ids."""

    #: may be left out where one model is served
    model: Name | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=1_000_000)]


class DetokenizeBody(Struct, frozen=True, kw_only=True):
    """Their text, under llama.cpp's name and under vLLM's."""

    content: str
    prompt: str


class ApplyTemplateRequest(Struct, kw_only=True, omit_defaults=True):
    """A chat."""

    #: may be left out where one model is served
    model: Name | None = None
    messages: _Messages
    tools: _Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True


class ApplyTemplateBody(Struct, frozen=True, kw_only=True):
    """What the model's template makes of it."""

    prompt: str


class _Asking(Resource):
    def model_of(self, call: Call, model: str | None) -> str:
        """The model that is meant. :raises InvalidParamsError: none is named, and there are several."""
        if model is None:
            served = [m["id"] for m in self.services.capabilities.models() if call.caller.may_use(m["id"])]
            if len(served) != 1:
                msg = f"model is missing: there are {', '.join(served) or 'none'}"
                raise InvalidParamsError(msg, field="model", got=None, expected="the name of a model")
            model = str(served[0])
        with named(_NAMES):
            call.caller.require_model(model)
        return model

    def group_of(self, model: str) -> str:
        """The pools that serve it."""
        with named(_NAMES):
            return self.services.admission.group_of(model)

    async def prompt_of(self, model: str, body: TokenizeRequest | ApplyTemplateRequest) -> str:
        """What the model's template makes of a chat."""
        if not body.add_generation_prompt:
            msg = "add_generation_prompt: a chat always asks for the assistant's next message"
            raise InvalidParamsError(msg, field="add_generation_prompt", got=False, expected="true")
        with named(_NAMES):
            chat = TaskRequest(
                workload="chat",
                model_ref=model,
                messages=messages_of(body.messages or []),
                tools=body.tools or None,
                chat_template_kwargs=body.chat_template_kwargs,
            )
            require_sound(chat)
            asked: RequestBody = body_of(chat)
            prompt: str = await self.services.tokens.prompt(self.group_of(model), asked)
            return prompt

    def headers(self, call: Call, raw: bytes, kind: type[Struct], messages: list[dict[str, Any]]) -> dict[str, str]:
        """What of the request has no effect."""
        ignored = ignored_parameters(raw, fields_of(kind), ignored_in_messages(messages))
        return name_or_refuse(call, ignored, strict=self.context.settings.api.strict_parameters)


@resource("/tokenize", tag="openai", shape="openai")
class TokenizeResource(_Asking):
    """Tokens of a text."""

    @operation(
        "Tokenize a text or a chat.",
        changes=False,
        errors=_ERRORS,
        request_headers=STRICT_HELP,
        answer_headers=IGNORED_HELP,
    )
    async def on_post(self, call: Call, body: TokenizeRequest, raw: bytes) -> TokenizeBody | Answer:
        """By the model's own tokenizer, which needs a loaded pool. `content` as llama.cpp takes it, `prompt` or `messages`
        as vLLM does."""
        headers = self.headers(call, raw, TokenizeRequest, body.messages or [])
        model = self.model_of(call, body.model)
        given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
        if len(given) != 1:
            msg = f"expected one of content, prompt and messages, got {', '.join(given) or 'none'}"
            field = given[1] if given else "content"
            raise InvalidParamsError(msg, field=field, got=", ".join(given) or None, expected="one of them")
        text = await self.prompt_of(model, body) if body.messages is not None else (body.content or body.prompt or "")
        special = body.add_special or body.prompt is not None
        if body.add_special_tokens is not None:
            special = body.add_special_tokens
        group = self.group_of(model)
        ask = self.services.tokens
        ids = await ask.tokenize(group, text, add_special=special, parse_special=body.parse_special)
        pieces = await self._pieces(group, ids) if body.with_pieces or body.return_token_strs else None
        tokens: Any = ids
        if body.with_pieces and pieces is not None:
            tokens = [PieceBody(id=token, piece=piece) for token, piece in zip(ids, pieces, strict=True)]
        longest = max((m["ctx_max"] for m in self.services.capabilities.models() if m["id"] == group), default=0)
        said = TokenizeBody(
            tokens=tokens,
            count=len(ids),
            max_model_len=longest,
            token_strs=pieces if body.return_token_strs else None,
        )
        return Answer(said, headers=headers)

    async def _pieces(self, group: str, ids: list[int]) -> list[str]:
        if len(ids) > PIECES:
            msg = f"with_pieces: the text has {len(ids)} tokens, pieces are told of at most {PIECES}"
            raise InvalidParamsError(msg, field="with_pieces", got=len(ids), expected=f"at most {PIECES} tokens")
        known: dict[int, str] = {}
        for token in ids:
            if token not in known:
                known[token] = await self.services.tokens.detokenize(group, [token])
        return [known[token] for token in ids]


@resource("/detokenize", tag="openai", shape="openai")
class DetokenizeResource(_Asking):
    """Text of tokens."""

    @operation(
        "Tell the text of token ids.",
        changes=False,
        errors=_ERRORS,
        request_headers=STRICT_HELP,
        answer_headers=IGNORED_HELP,
    )
    async def on_post(self, call: Call, body: DetokenizeRequest, raw: bytes) -> DetokenizeBody | Answer:
        """By the model's own tokenizer, which needs a loaded pool."""
        headers = self.headers(call, raw, DetokenizeRequest, [])
        text = await self.services.tokens.detokenize(self.group_of(self.model_of(call, body.model)), body.tokens)
        return Answer(DetokenizeBody(content=text, prompt=text), headers=headers)


@resource("/apply-template", tag="openai", shape="openai")
class ApplyTemplateResource(_Asking):
    """The prompt of a chat."""

    @operation(
        "Apply a model's chat template.",
        changes=False,
        errors=_ERRORS,
        request_headers=STRICT_HELP,
        answer_headers=IGNORED_HELP,
    )
    async def on_post(self, call: Call, body: ApplyTemplateRequest, raw: bytes) -> ApplyTemplateBody | Answer:
        """What the model would be given to go on from."""
        headers = self.headers(call, raw, ApplyTemplateRequest, body.messages)
        prompt = await self.prompt_of(self.model_of(call, body.model), body)
        return Answer(ApplyTemplateBody(prompt=prompt), headers=headers)
