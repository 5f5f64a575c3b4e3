"""A modelled engine: rates by its devices, slots that share them, prompts whose prefix a slot still holds.

What an attempt says comes in coarse chunks (a few a task), so that hours cost seconds: a chunk's duration follows from
who shares the devices when it begins. All durations are whole microseconds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from ..core.engine_ports import (
    AttemptEnd,
    AttemptFailure,
    AttemptSink,
    AttemptStart,
    EngineHealth,
    EngineProperties,
    EngineState,
    GenerateJob,
)
from ..core.entries import batch_of
from ..core.errors import InvalidParamsError
from ..core.types import Entry
from .rig import NEIGHBOUR_PERCENT, ModelledPool, Rig

#: characters that stand for a token in prompts of simulations
TOKEN_CHARS = 4
#: chunks that an answer is said in, at most, beside the first token
CHUNKS = 3


class Script(Struct, frozen=True, kw_only=True):
    """What a task is, for the engine that runs it."""

    prompt_tokens: int
    output_tokens: int
    #: whose KV a slot can still hold; "" = nobody's
    session: str = ""
    #: tokens of the prompt that the session's previous turn left in the cache
    shared_tokens: int = 0


class Load:
    """Who works on each device now, and how long each device has worked."""

    def __init__(self, clock_us: Any) -> None:
        self._clock_us = clock_us
        self._busy: dict[str, dict[str, int]] = {}
        self._since_us: dict[str, int] = {}
        #: microseconds that each device has worked
        self.busy_us: dict[str, int] = {}

    def enter(self, pool_id: str, devices: Sequence[str]) -> None:
        """An attempt of a pool begins on its devices."""
        for device in devices:
            pools = self._busy.setdefault(device, {})
            if not pools:
                self._since_us[device] = self._clock_us()
            pools[pool_id] = pools.get(pool_id, 0) + 1

    def leave(self, pool_id: str, devices: Sequence[str]) -> None:
        """It is over."""
        for device in devices:
            pools = self._busy[device]
            pools[pool_id] -= 1
            if not pools[pool_id]:
                del pools[pool_id]
            if not pools:
                worked = self._clock_us() - self._since_us[device]
                self.busy_us[device] = self.busy_us.get(device, 0) + worked

    def engines(self, devices: Sequence[str]) -> int:
        """Engines that share the busiest of these devices."""
        return max(1, *(len(self._busy.get(d, ())) for d in devices))


class ModelledAttempt:
    """One job on a modelled engine, and its handle."""

    def __init__(self, engine: ModelledEngine, job: GenerateJob, sink: AttemptSink, script: Script) -> None:
        self.job = job
        self._engine = engine
        self._sink = sink
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._free: asyncio.Future[str] = self._loop.create_future()
        self._said = 0
        self._prefill_us = 0
        self._decode_us = 0
        self._cached = engine.cached(job, script)
        # The n-th run of a task is the same in every simulation, but no two tasks run equally well.
        self._noise = random.Random(f"{job.task_id}:{job.attempt}").randint(960, 1040)
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        engine.entered(self)
        self._prefill_us = max(1000, self._us(script.prompt_tokens - self._cached, engine.prefill_mtok_s()))
        self._later(self._prefill_us, self._begin)

    def _us(self, tokens: int, rate_mtok_s: int) -> int:
        return tokens * 1_000_000 * self._noise // max(1, rate_mtok_s)

    def _later(self, us: int, what: Any) -> None:
        self._timer = self._loop.call_later(us / 1e6, what)

    def _begin(self) -> None:
        self._sink.started(AttemptStart(prompt_tokens=self._script.prompt_tokens, cached_tokens=self._cached))
        if not self._over:
            self._chunk(1)

    def _chunk(self, tokens: int) -> None:
        us = self._us(tokens, self._engine.decode_mtok_s())
        self._decode_us += us
        self._later(us, lambda: self._say(tokens))

    def _say(self, tokens: int) -> None:
        self._said += tokens
        self._sink.entries(batch_of([Entry(text="w" * tokens, tokens=tokens)]))
        if self._over:
            return
        left = self._wanted() - self._said
        if left > 0:
            self._chunk(min(left, max(1, -(-self._wanted() // CHUNKS))))
            return
        self._finish()
        self._free.set_result("slot-free")
        self._sink.ended(
            AttemptEnd(
                finish_reason="stop" if self._said >= self._script.output_tokens else "length",
                prompt_tokens=self._script.prompt_tokens,
                cached_tokens=self._cached,
                prefill_us=self._prefill_us,
                decode_us=self._decode_us,
                tokens=self._said,
            )
        )

    def _wanted(self) -> int:
        return min(self._script.output_tokens, self.job.max_tokens or self._script.output_tokens)

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            self._engine.left(self)

    def cut(self) -> None:
        """The engine's process is gone."""
        if not self._over:
            self._finish()
            self._free.set_result("engine-gone")
            self._sink.failed(AttemptFailure(kind="cut", message="the engine's process is gone"))

    # --- AttemptHandle -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        if not self._over:
            self._finish()
            self._free.set_result("slot-free")

    async def slot_free(self) -> str:
        return await asyncio.shield(self._free)

    def resume(self) -> None:
        """Nothing is paused: the store of a simulation never refuses."""


class ModelledEngine:
    """The engine of one pool, from its load to its end."""

    name = "modelled"

    def __init__(
        self, rig: Rig, pool: ModelledPool, devices: tuple[str, ...], load: Load, scripts: Mapping[str, Script]
    ) -> None:
        self.pool = pool
        self.devices = devices
        self._load = load
        self._scripts = scripts
        self._decode = rig.decode_mtok_s(pool, devices)
        self._prefill = rig.prefill_mtok_s(pool, devices)
        self._running: set[ModelledAttempt] = set()
        #: the session whose KV each slot holds, and its tokens
        self._slots: dict[int, tuple[str, int]] = {}
        self.cached_tokens = 0
        self.prompt_tokens = 0

    def decode_mtok_s(self) -> int:
        """What one of the streams that run now gets, thousandths of a token a second."""
        slower = 100 + NEIGHBOUR_PERCENT * (max(1, len(self._running)) - 1)
        return self._decode * 100 // slower // self._load.engines(self.devices)

    def prefill_mtok_s(self) -> int:
        """What one prompt gets now."""
        return self._prefill // max(1, len(self._running)) // self._load.engines(self.devices)

    def cached(self, job: GenerateJob, script: Script) -> int:
        """Tokens of the prompt that the slot still holds from the session's previous turn."""
        session, tokens = self._slots.get(job.slot, ("", 0))
        kept = min(tokens, script.shared_tokens) if job.cache_prompt and session and session == script.session else 0
        self._slots[job.slot] = (script.session, script.prompt_tokens + script.output_tokens)
        self.cached_tokens += kept
        self.prompt_tokens += script.prompt_tokens
        return kept

    def entered(self, attempt: ModelledAttempt) -> None:
        """An attempt begins."""
        self._running.add(attempt)
        self._load.enter(self.pool.pool_id, self.devices)

    def left(self, attempt: ModelledAttempt) -> None:
        """An attempt is over."""
        self._running.discard(attempt)
        self._load.leave(self.pool.pool_id, self.devices)

    def stop(self) -> None:
        """The process ends; what runs breaks off."""
        for attempt in sorted(self._running, key=lambda a: a.job.task_id):
            attempt.cut()

    def own_properties(self) -> EngineProperties:
        """What it says of itself."""
        return EngineProperties(
            engine_version="modelled-1",
            model_name=self.pool.model,
            slots=self.pool.slots,
            ctx=self.pool.ctx,
            device=",".join(self.devices),
        )

    # --- Engine --------------------------------------------------------------------------------------------------

    async def health(self) -> EngineHealth:
        return EngineHealth(state=EngineState.READY)

    async def properties(self) -> EngineProperties:
        return self.own_properties()

    def generate(self, job: GenerateJob, sink: AttemptSink) -> ModelledAttempt:
        return ModelledAttempt(self, job, sink, self._scripts[job.task_id])

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(range(len(text) // TOKEN_CHARS))

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        return "".join(str(m["content"]) for m in messages)

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "this engine does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens")

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        return len(self._running)

    async def metrics(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        """It holds nothing."""
