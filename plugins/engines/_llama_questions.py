"""Questions to a llama.cpp server beside its streams: what it is, what it has, and what its template makes of a chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from .. import InvalidParamsError, UnavailableError
from ._chat_template import PROBES, ChatTemplate, agreeing
from ._http import HttpClient, HttpError, HttpResponse
from ._llama_frames import failure_of_body
from ._llama_wire import (
    Abilities,
    Meta,
    Props,
    Slot,
    decode_models,
    decode_prompt,
    decode_props,
    decode_slots,
    tools_of,
)

T = TypeVar("T")
NAME: Final = "llamacpp"
QUICK_TIMEOUT_S: Final = 5.0
SLOW_TIMEOUT_S: Final = 60.0
#: asked at once, beside streams, health and slots: llama.cpp has a thread per connection, and no more than its slots and
#: four
MAX_QUESTIONS: Final = 2
_encode = msgspec.json.Encoder().encode


class Learned(msgspec.Struct, frozen=True):
    """What a server said of itself."""

    props: Props
    meta: Meta
    name: str
    abilities: Abilities
    #: renders chats as the server does; ``None`` where that was not seen
    template: ChatTemplate | None


class Questions:
    """Asks one server."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._few = asyncio.Semaphore(MAX_QUESTIONS)

    async def learn(self) -> Learned:
        """What the server is and has.

        Raises:
            UnavailableError: it does not answer, or not as llama.cpp does.
        """
        props = read(decode_props, await self.ask("GET", "/props"), "/props")
        models = read(decode_models, await self.ask("GET", "/v1/models"), "/v1/models")
        meta = (models.data[0].meta if models.data else None) or Meta()
        abilities = await self._abilities(props, meta)
        template = await self._compare_template(props) if "chat" in abilities.workloads else None
        name = props.model_alias or (models.data[0].id if models.data else "")
        return Learned(props, meta, name, abilities, template)

    async def slots(self) -> list[Slot]:
        """Its slots.

        Raises:
            UnavailableError: it does not answer, or does not tell them.
        """
        answer = await self.answer("GET", "/slots")
        if answer.status in (404, 501):
            msg = "the server does not tell its slots, so that a cancelled task's end could not be seen"
            raise UnavailableError(msg, remedy="Start llama-server without --no-slots.", engine=NAME)
        return read(decode_slots, answer, "/slots")

    async def apply_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the model's template makes of a chat.

        Raises:
            InvalidParamsError: the template refuses these messages.
            UnavailableError: the server does not answer.
        """
        asked: dict[str, Any] = {"messages": [dict(m) for m in messages]}
        if tools:
            asked["tools"] = tools
        if template_kwargs:
            asked["chat_template_kwargs"] = template_kwargs
        answer = await self.answer("POST", "/apply-template", asked, SLOW_TIMEOUT_S)
        if 400 <= answer.status < 500 or answer.status == 500:
            # llama.cpp answers 500 when a template raises
            msg = f"the model's chat template refused: {failure_of_body(answer.status, answer.body).message}"
            raise InvalidParamsError(msg, field="messages", engine=NAME)
        return read(decode_prompt, answer, "/apply-template").prompt

    async def ask(
        self, method: str, path: str, asked: Mapping[str, Any] | None = None, timeout_s: float = QUICK_TIMEOUT_S
    ) -> HttpResponse:
        """Its answer, which is no error.

        Raises:
            UnavailableError: it does not answer, or with an error.
        """
        answer = await self.answer(method, path, asked, timeout_s)
        if answer.status != 200:
            msg = f"{path}: {failure_of_body(answer.status, answer.body).message}"
            raise UnavailableError(msg, engine=NAME)
        return answer

    async def answer(
        self, method: str, path: str, asked: Mapping[str, Any] | None = None, timeout_s: float = QUICK_TIMEOUT_S
    ) -> HttpResponse:
        """Its answer, whichever.

        Raises:
            UnavailableError: it does not answer.
        """
        body = b"" if asked is None else _encode(asked)
        try:
            async with self._few:
                return await self._http.request(method, path, body, timeout_s=timeout_s)
        except HttpError as error:
            msg = f"{path}: {error.message}"
            raise UnavailableError(msg, engine=NAME) from error

    # --- inside

    async def _abilities(self, props: Props, meta: Meta) -> Abilities:
        embeds = await self._serves("/v1/embeddings")
        ranks = await self._serves("/v1/rerank")
        if embeds or ranks:
            return Abilities(embeds=embeds, ranks=ranks, dimensions=meta.n_embd)
        switchable = await self._thinks_on_demand(props)
        caps = props.chat_template_caps
        return Abilities(
            tools=tools_of(props),
            reasons=switchable or (caps is not None and caps.supports_preserve_reasoning),
            thinking_can_be_off=switchable,
            images=props.modalities is not None and props.modalities.vision,
            dimensions=meta.n_embd,
        )

    async def _serves(self, path: str) -> bool:
        """Whether a path that takes inputs is served: then it misses them, else it says how the server has to be
        started. One whose model makes a vector of each token refuses too."""
        answer = await self.answer("POST", path, {})
        return answer.status == 400 and "must be provided" in failure_of_body(answer.status, answer.body).message

    async def _thinks_on_demand(self, props: Props) -> bool:
        """Whether the model's template can be told to think or not."""
        if not props.chat_template:
            return False
        try:
            thoughts = [await self.apply_template(PROBES[0], (), {"enable_thinking": on}) for on in (True, False)]
        except (UnavailableError, InvalidParamsError):
            return False
        return thoughts[0] != thoughts[1]

    async def _compare_template(self, props: Props) -> ChatTemplate | None:
        if not props.chat_template:
            return None
        rendered: list[tuple[Sequence[Mapping[str, Any]], str]] = []
        for probe in PROBES:
            try:
                rendered.append((probe, await self.apply_template(probe)))
            except (UnavailableError, InvalidParamsError):
                continue  # a template may refuse a system message
        return agreeing(props.chat_template, props.bos_token, props.eos_token, rendered)


def read(decode: Callable[[bytes], T], answer: HttpResponse, path: str) -> T:
    """An answer, decoded.

    Raises:
        UnavailableError: it is an error, or none of llama.cpp.
    """
    if answer.status != 200:
        msg = f"{path}: {failure_of_body(answer.status, answer.body).message}"
        raise UnavailableError(msg, engine=NAME)
    try:
        return decode(answer.body)
    except (msgspec.MsgspecError, ValueError) as error:
        msg = f"{path}: this is no llama.cpp server: {error}"
        raise UnavailableError(msg, engine=NAME) from error
