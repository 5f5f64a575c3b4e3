"""Any server that speaks OpenAI's API: on this machine, in the network, or in a cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import EngineFactory, EngineHealth, EngineProperties, EngineState, InvalidParamsError, hookimpl
from ._openai_attempt import Attempt
from ._openai_client import OpenAIClient, after_release

NAME: Final = "openai"
#: servers that were measured notice within 20 ms, while they decode, that nobody listens any more
RELEASE_MS: Final = 250


class OpenAI(OpenAIClient):
    """Client of one server that speaks OpenAI's API.

    Such a server tells neither its slots nor its tokens nor its template: how many tasks it gets at once is configured
    (``slots``), and a chat is sent as it is.

    Args:
        config: see :data:`~llama_orch.plugins.engines._openai_config.OPTIONS`.

    Raises:
        ConfigError: the URL is none, an option is wrong, or an environment variable is not set.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, name=NAME)
        told = config.get("release_ms")
        self._release_s = (RELEASE_MS if told is None else int(told)) / 1000
        self._version = str(config.get("engine_version") or "")
        self._closed = asyncio.Event()

    async def health(self) -> EngineHealth:
        return await self.health_by_models()

    async def properties(self) -> EngineProperties:
        """What can be said of the server.

        Raises:
            UnavailableError: it does not answer, not as OpenAI's API has it, or has no such model.
        """
        server = await self.learn()
        workloads, features = await self.abilities()
        owner = server.item.owned_by
        return EngineProperties(
            engine_version=self._version or f"openai-compatible{f' ({owner})' if owner else ''}",
            model_name=self.model,
            model_digest=self.model_digest(server),
            tokenizer_digest=self.tokenizer_digest(server),
            slots=self.slots,
            ctx=server.ctx,
            flags=f"dialect={server.dialect.name}",
            workloads=workloads,
            features=features,
            device=self.device,
        )

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raise self._unasked("tell the tokens of a text", "text")

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        raise self._unasked("tell the prompt that it makes of a chat", "messages")

    async def detokenize(self, ids: Sequence[int]) -> str:
        raise self._unasked("turn token ids into text", "tokens")

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        return None

    async def metrics(self) -> Mapping[str, float]:
        return {}

    async def slot_free(self, attempt: Attempt) -> str:
        """Wait until the server has surely noticed that nobody listens, which it tells nobody."""
        if self._closed.is_set() or await after_release(self._release_s, self._closed):
            return "engine-gone"
        health = await self.health()
        return "engine-gone" if health.state is EngineState.UNREACHABLE else "slot-free"

    async def close(self) -> None:
        self._closed.set()
        await self.http.close()

    @staticmethod
    def _unasked(what: str, field: str) -> InvalidParamsError:
        return InvalidParamsError(f"a server of OpenAI's API does not {what}", field=field)


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The client of any server of OpenAI's API."""
    return NAME, OpenAI
