"""What a request has to be to get into a queue at all: its model, its wishes, its context (ADM-2, PLC-3, DET-1)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import msgspec

from ..errors import (
    ContextExceededError,
    InvalidParamsError,
    ModelNotFoundError,
    OrchError,
    PoolUnreadyError,
)
from ..journal.journal import Journal
from ..projections.pools import PoolState
from ..settings import Settings
from ..types import PlacementRequest, TaskRequest
from .abilities import require_able
from .bodies import body_of
from .engines import EngineDirectory
from .placement import unmet_wish
from .pool_trouble import trouble_of
from .tokens import Tokens


class Vetting:
    """Refuses before the queue what no pool could ever do.

    :param loadable: whether a pool that is not ready may become so by itself.
    :param trouble: why none of these pools will serve a task that comes now; ``None`` = one may.
    """

    def __init__(
        self,
        journal: Journal,
        engines: EngineDirectory,
        settings: Settings,
        tokens: Tokens,
        loadable: Callable[[PoolState], bool],
        trouble: Callable[[Sequence[PoolState], int], OrchError | None],
    ) -> None:
        self._journal = journal
        self._engines = engines
        self._models = settings.models
        self._tokens = tokens
        self._loadable = loadable
        self._trouble = trouble

    def group_of(self, model_ref: str) -> str:
        """The serving group of a model. :raises ModelNotFoundError: there is none; the nearest name is told."""
        pools = self._journal.head.pools
        # A pool's own name comes first: `models` may tell which file stands behind that very name.
        group = pools.group_of(model_ref) or pools.group_of(self._models.get(model_ref, model_ref))
        if group is None:
            known = sorted(
                {p.declared.model_ref for p in pools.by_id.values()}
                | {a for p in pools.by_id.values() for a in p.declared.aliases}
                | set(self._models)
            )
            near = difflib.get_close_matches(model_ref, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known) or 'none'}"
            msg = f"no pool serves the model {model_ref!r}{hint}"
            raise ModelNotFoundError(msg, field="model_ref", got=model_ref, nearest=near[0] if near else None)
        return group

    async def prompt_tokens(
        self, request: TaskRequest, pools: list[PoolState], needs: Sequence[str], room: int | None
    ) -> tuple[int, bool]:
        """Tokens of the prompt (an upper bound, or exact: then ``True``) of a request that these pools can serve.

        :param room: tokens that the caller's budgets have left for it, if they bound it: what may be more is counted.
        :raises OrchError: they cannot, and why.
        """
        self._check_placement(request, pools)
        trouble = self._trouble(pools, self._journal.now_ns())
        if trouble is not None:
            raise trouble
        require_able(pools, needs, request.model_ref)
        self._check_determinism(request, pools)
        tokens, exact = await self._check_context(request, pools, room)
        self._check_wishes(request, pools, max(request.ctx or 0, tokens if exact else 0))
        return tokens, exact

    def _check_placement(self, request: TaskRequest, pools: list[PoolState]) -> None:
        if request.engine is not None and request.engine not in {p.declared.engine for p in pools}:
            msg = f"no pool of {request.model_ref!r} runs the engine {request.engine!r}"
            raise InvalidParamsError(msg, field="engine", got=request.engine)
        wanted = request.placement
        if wanted is None:
            return
        known = self._journal.head.pools.by_id
        pins = [wanted.pin_pool_id] if wanted.pin_pool_id else []
        for field, names in (
            ("pin_pool_id", pins),
            ("prefer_pools", wanted.prefer_pools),
            ("avoid_pools", wanted.avoid_pools),
        ):
            for name in names:
                if name not in known:
                    msg = f"there is no pool {name!r}"
                    raise InvalidParamsError(msg, field=f"placement.{field}", got=name)
        if wanted.mode == "pin":
            if not wanted.pin_pool_id:
                msg = "mode pin needs pin_pool_id"
                raise InvalidParamsError(msg, field="placement.pin_pool_id", got=None)
            pool = known[wanted.pin_pool_id]
            if pool not in pools:
                msg = f"pool {wanted.pin_pool_id!r} serves {pool.declared.model_ref!r}, not {request.model_ref!r}"
                raise InvalidParamsError(msg, field="placement.pin_pool_id", got=wanted.pin_pool_id)
            if not pool.ready and not self._loadable(pool):
                raise trouble_of(pool, self._journal.now_ns())

    def _check_determinism(self, request: TaskRequest, pools: list[PoolState]) -> None:
        if request.determinism != "strict":
            return
        starting = None
        for pool in pools:
            properties = self._engines.properties(pool.declared.pool_id)
            if not pool.ready and pool.declared.slots in (0, 1):
                if self._loadable(pool):
                    return  # whether its engine can is seen when the task is placed
                starting = pool.declared
            elif pool.slots == 1 and properties is not None and properties.strict_capable:
                return
        if starting is not None:
            msg = (
                f"pool {starting.pool_id!r} is not ready: whether it can guarantee strict determinism is not known yet"
            )
            raise PoolUnreadyError(msg, pool_id=starting.pool_id, engine=starting.engine, retry_after_ms=1000)
        msg = "no pool of this model can guarantee strict determinism: that needs a pool with one slot and an engine that can"
        raise InvalidParamsError(
            msg,
            field="determinism",
            got="strict",
            remedy="Configure a pool with slots: 1, or send determinism: best_effort.",
        )

    @staticmethod
    def _check_wishes(request: TaskRequest, pools: list[PoolState], ctx: int) -> None:
        """Refuse what would wait for ever at the head of the queue."""
        wish = unmet_wish(
            pools,
            engine=request.engine or "",
            ctx=ctx,
            strict=request.determinism == "strict",
            wanted=request.placement or PlacementRequest(),
        )
        if wish == "ctx":
            msg = f"{ctx} tokens are needed, and no pool of {request.model_ref!r} that the task allows has so many"
            raise ContextExceededError(msg, field="ctx", got=ctx)
        if wish:
            msg = f"{wish}: it leaves none of the pools that serve {request.model_ref!r}"
            got = getattr(request.placement or request, wish.rpartition(".")[2], None)
            raise InvalidParamsError(msg, field=wish, got=got)

    async def _check_context(self, request: TaskRequest, pools: list[PoolState], room: int | None) -> tuple[int, bool]:
        """Tokens of the prompt, and whether the number is exact.

        A token is at least one byte, so a prompt with fewer bytes than the context surely fits and needs no
        tokenizer. ``max_tokens`` alone never refuses a task: an engine stops at the end of its context.
        """
        size = 64
        if request.prompt is not None:
            size += len(request.prompt.encode())
        for message in request.messages or ():
            size += 32 + len(msgspec.json.encode(message))
        if request.tools:
            size += len(msgspec.json.encode(request.tools))
        if request.inputs:
            # Each input is read for itself.
            size += len((request.query or "").encode()) + max(len(text.encode()) for text in request.inputs)
        contexts = [p.observed.ctx for p in pools if p.observed is not None and p.observed.ctx]
        largest = max(contexts, default=0)
        if request.ctx is not None and largest and request.ctx > largest:
            msg = f"ctx {request.ctx} was asked for, the largest context of {request.model_ref!r} has {largest} tokens"
            raise ContextExceededError(msg, field="ctx", got=request.ctx, n_ctx=largest)
        if request.prompt_ids is None and (not largest or size <= largest) and (room is None or size <= room):
            return size, False
        counted: int | None
        if request.prompt_ids is not None:
            counted = len(request.prompt_ids)
        else:
            counted = await self._tokens.count(body_of(request), pools)
        if counted is None:
            return size, False
        if largest and counted >= largest:
            field = next(
                name
                for name in ("messages", "inputs", "prompt_ids", "prompt")
                if getattr(request, name) or name == "prompt"
            )
            msg = f"the prompt has {counted} tokens, the largest context of {request.model_ref!r} holds {largest}"
            raise ContextExceededError(msg, field=field, got=counted, n_prompt_tokens=counted, n_ctx=largest)
        return counted, True
