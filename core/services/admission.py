"""Admission: what is checked before the queue, and the one event that accepts a task (ADM-1 to ADM-6)."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ..errors import (
    BackpressureError,
    ConflictError,
    ContextExceededError,
    DeadlineUnmetError,
    DroppedError,
    InvalidParamsError,
    ModelNotFoundError,
    OrchError,
    PoolUnreadyError,
)
from ..events.task import TaskAdmitted, TaskCancelled, TaskRejected
from ..journal.history import fact_at
from ..journal.journal import Journal
from ..projections.pools import PoolState
from ..settings import Settings
from ..types import PlacementRequest, TaskRequest
from .abilities import needs_of, require_able
from .bodies import Bodies, body_of, prefixes, request_digest
from .caller import Caller
from .dispatch import Dispatcher
from .ends import end_of
from .engines import EngineDirectory
from .estimates import Estimator, StartEstimate
from .placement import placement_record, unmet_wish
from .pool_trouble import trouble_of, trouble_of_group
from .tokens import Tokens

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")


class Admission(msgspec.Struct, frozen=True, gc=False):
    """The answer to a submission."""

    task_id: str
    queue_position: int
    predicted_start_ms: int
    predicted_start_ms_p10: int
    predicted_start_ms_p90: int
    backoff_ms: int
    #: it is a repetition of a task that was admitted before
    attached: bool
    #: the answer may be given once the journal is synced up to here
    seq: int


class AdmissionCheck(Protocol):
    """What may refuse a task before its queue, or has more to say at its admission: sessions, budgets, limits."""

    def refuse(self, request: TaskRequest, caller: Caller, now_ns: int) -> None:
        """Refuse what needs no closer look; repetitions of admitted tasks do not come here. :raises OrchError: why."""
        ...

    def events(self, request: TaskRequest, caller: Caller, prompt_tokens: int, now_ns: int) -> list[object]:
        """Events of the same batch that go before the admission. :raises OrchError: why the task is refused."""
        ...


def decimals(request: TaskRequest) -> dict[str, str]:
    """The sampling parameters that the caller set, as shortest-repr strings (JRN-9)."""
    return {name: repr(value) for name in _SAMPLING if (value := getattr(request, name)) is not None}


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """What goes with a request and is no part of it."""

    #: digest of the Idempotency-Key, or ""
    key: str
    #: of the canonical request, or ""
    digest: str
    correlation: str
    api: str
    shown: dict[str, Any] | None
    affinity: str


def _named(affinity: str) -> list[str]:
    """What a conversation is known by, when its client names it."""
    return [hashlib.sha256(affinity.encode()).hexdigest()[:16]] if affinity else []


def _inputs_tokens(request: TaskRequest) -> int:
    """Tokens of all inputs together, upper bound: a token is at least one byte, and each is read with the query."""
    beside = 64 + len((request.query or "").encode())
    return sum(beside + len(text.encode()) for text in request.inputs or ())


class AdmissionService:
    """Accepts or refuses tasks."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        bodies: Bodies,
        engines: EngineDirectory,
        settings: Settings,
        tokens: Tokens,
        checks: Sequence[AdmissionCheck],
        new_id: Callable[[], str],
        new_seed: Callable[[], int],
        estimator: Estimator | None = None,
        loadable: Callable[[PoolState], bool] = lambda _pool: False,
        trouble: Callable[[Sequence[PoolState], int], OrchError | None] = trouble_of_group,
        prompt_room: Callable[[TaskRequest, Caller, int], int | None] = lambda _request, _caller, _now_ns: None,
    ) -> None:
        self._journal = journal
        self._estimator = estimator or Estimator()
        self._loadable = loadable
        self._trouble = trouble
        self._prompt_room = prompt_room
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._engines = engines
        self._settings = settings
        self._tokens = tokens
        self._checks = checks
        self._new_id = new_id
        self._new_seed = new_seed
        #: ids whose earlier use is being looked up
        self._looking: dict[str, asyncio.Event] = {}

    async def submit(
        self,
        request: TaskRequest,
        caller: Caller,
        *,
        correlation: str,
        idempotency_key: str | None = None,
        api: str = "tasks",
        durable: bool = True,
        shown: dict[str, Any] | None = None,
        affinity: str = "",
    ) -> Admission:
        """Admit a task, or attach to the one that the key or id names.

        :param shown: what of the caller's request a compatible API has to show again later.
        :param affinity: what the client calls its conversation, where it names no session (SES-2).
        :param durable: wait until the admission survives power loss; else the caller waits for ``seq`` itself.
        :raises OrchError: why it was refused; the refusal is an event too.
        """
        self._journal.require_ok()
        if request.task_id is not None:
            request.task_id = request.task_id.lower()
        digest = request_digest(request) if idempotency_key is not None or request.task_id is not None else ""
        key = hashlib.sha256(idempotency_key.encode()).hexdigest() if idempotency_key is not None else ""
        try:
            admission = await self._attach_or_admit(
                request, caller, _Asked(key, digest, correlation, api, shown, affinity)
            )
        except OrchError as error:
            self._note_rejection(request, caller, correlation, error)
            raise
        if durable:
            await self._journal.synced(admission.seq)
        return admission

    async def _attach_or_admit(self, request: TaskRequest, caller: Caller, asked: _Asked) -> Admission:
        attached = self._attached(caller, asked.key, asked.digest)
        if attached is not None:
            return attached
        task_id = request.task_id
        if task_id is None:
            return await self._admit(request, caller, asked)
        while task_id in self._looking:
            await self._looking[task_id].wait()
        done = self._looking[task_id] = asyncio.Event()
        try:
            attached = await self._attached_by_id(task_id, caller, asked.digest)
            return attached or await self._admit(request, caller, asked)
        finally:
            # Also when the caller left: the others must not wait for an answer that nobody looks for.
            del self._looking[task_id]
            done.set()

    # --- repetitions -----------------------------------------------------------------------------------------

    def _attached(self, caller: Caller, key: str, digest: str) -> Admission | None:
        if not key:
            return None
        known = self._journal.head.tasks.keys.get((caller.owner, key))
        if known is None or known.until_ns <= self._journal.now_ns():
            return None
        if known.may_run_again and known.request_digest == digest:
            return None
        if known.request_digest != digest:
            msg = "this Idempotency-Key was used for a different request"
            raise ConflictError(msg, field="Idempotency-Key", got="a different body", task_id=known.task_id)
        return self._attachment(known.task_id)

    def _attachment(self, task_id: str) -> Admission:
        position = max(0, self._journal.head.queue.position(task_id))
        state = self._journal.task(task_id)
        estimate = (
            self._estimate(state.admitted.group, position, state.admitted.priority, state.admitted.prompt_tokens)
            if state
            else StartEstimate(0, 0, 0)
        )
        return Admission(
            task_id, position, estimate.start_ms, estimate.p10_ms, estimate.p90_ms, 0, True, self._journal.head.next_seq
        )

    async def _attached_by_id(self, task_id: str, caller: Caller, digest: str) -> Admission | None:
        state = self._journal.task(task_id)
        if state is not None:
            owner, known = state.admitted.owner, state.admitted.request_digest
        else:
            row = await asyncio.to_thread(self._journal.store.index_row, task_id)
            if row is None:
                return None
            owner = row.owner
            known = await asyncio.to_thread(self._digest_at, row.admitted_frame, task_id)
        if owner != caller.owner or known != digest:
            msg = f"task {task_id} exists with a different request"
            raise ConflictError(msg, field="task_id", got=task_id)
        return self._attachment(task_id)

    def _digest_at(self, frame_no: int, task_id: str) -> str:
        admitted = fact_at(self._journal.store, frame_no, TaskAdmitted, task_id)
        return admitted.payload.request_digest if admitted else ""

    # --- admission -------------------------------------------------------------------------------------------

    async def _admit(self, request: TaskRequest, caller: Caller, asked: _Asked) -> Admission:
        caller.require_model(request.model_ref)
        group = self.group_of(request.model_ref)
        for check in self._checks:
            check.refuse(request, caller, self._journal.now_ns())
        pools = self._journal.head.pools.serving(group)
        needs = needs_of(request)
        self._check_placement(request, pools)
        trouble = self._trouble(pools, self._journal.now_ns())
        if trouble is not None:
            raise trouble
        require_able(pools, needs, request.model_ref)
        self._check_determinism(request, pools)
        room = self._prompt_room(request, caller, self._journal.now_ns())
        prompt_tokens, exact = await self._check_context(request, pools, room)
        self._check_wishes(request, pools, max(request.ctx or 0, prompt_tokens if exact else 0))
        self._journal.require_ok()
        body_id, rows = await self._bodies.add(caller.owner, body_of(request, asked.shown), self._journal.require_ok)
        self._journal.require_ok()
        # From here on nothing awaits: what was read is what the event is based on.
        attached = self._attached(caller, asked.key, asked.digest)
        if attached is not None:
            return attached
        head = self._journal.head
        now = self._journal.now_ns()
        before = [event for check in self._checks for event in check.events(request, caller, prompt_tokens, now)]
        queue = head.queue.groups.get(group)
        lane = len(queue.interactive) if queue else 0
        ahead = lane if request.priority == "interactive" or queue is None else len(queue)
        dropped = self._make_room(group, pools)
        estimate = self._estimate(group, ahead, request.priority, prompt_tokens)
        deadline_ns = now + request.deadline_ms * 1_000_000 if request.deadline_ms else 0
        if request.deadline_ms:
            late = self._estimator.too_late(
                head,
                group,
                caller.owner,
                estimate,
                request.deadline_ms,
                max_tokens=request.max_tokens or 0,
                prompt_tokens=prompt_tokens,
                expected_tokens=request.expected_tokens or 0,
            )
            if late:
                raise DeadlineUnmetError(late, field="deadline_ms", got=request.deadline_ms)
        until = now + self._settings.admission.idempotency_ms * 1_000_000 if asked.key else 0
        cancels = request.cancel_on_disconnect
        if cancels is None:
            streams = self._settings.streams
            cancels = (
                streams.tasks_cancel_on_disconnect if asked.api == "tasks" else streams.compat_cancel_on_disconnect
            )
        task_id = request.task_id or self._new_id()
        event = TaskAdmitted(
            task_id=task_id,
            owner=caller.owner,
            group=group,
            model_ref=request.model_ref,
            workload=request.workload,
            priority=request.priority,
            body_id=body_id,
            request_digest=asked.digest,
            idempotency_digest=asked.key,
            idempotency_until_ns=until,
            session_id=request.session_id or "",
            engine=request.engine or "",
            determinism=request.determinism,
            recovery=request.recovery,
            sampler_profile_version=request.sampler_profile_version or "",
            seed=request.seed if request.seed is not None else self._new_seed(),
            sampling=decimals(request),
            max_tokens=request.max_tokens or 0,
            n=request.n or 1,
            logprobs=bool(request.logprobs or request.top_logprobs),
            top_logprobs=request.top_logprobs or 0,
            ctx=request.ctx or 0,
            prompt_tokens=prompt_tokens,
            prompt_tokens_exact=exact,
            inputs_tokens=_inputs_tokens(request),
            expected_tokens=request.expected_tokens or 0,
            deadline_ns=deadline_ns,
            cancel_on_disconnect=cancels,
            kv_cold=request.kv_hint == "cold",
            placement=placement_record(request.placement),
            needs=needs,
            prefixes=[] if request.session_id else [*_named(asked.affinity), *prefixes(body_of(request))],
            api=asked.api,
            queue_position=ahead,
            predicted_start_ms=estimate.start_ms,
            predicted_start_ms_p10=estimate.p10_ms,
            predicted_start_ms_p90=estimate.p90_ms,
            load_band=estimate.band,
            modelled_start_ms=list(estimate.model_ms),
        )
        self._journal.append(
            [*dropped, *before, event], actor=caller.identity, correlation=asked.correlation, bodies=rows
        )
        self._dispatcher.pump(group)
        return Admission(
            task_id, ahead, estimate.start_ms, estimate.p10_ms, estimate.p90_ms, 0, False, self._journal.head.next_seq
        )

    def _estimate(self, group: str, ahead: int, priority: str, prompt_tokens: int = 0) -> StartEstimate:
        head, now = self._journal.head, self._journal.now_ns()
        return self._estimator.start(head, group, ahead, now, priority=priority, prompt_tokens=prompt_tokens)

    def group_of(self, model_ref: str) -> str:
        """The serving group of a model. :raises ModelNotFoundError: there is none; the nearest name is told."""
        pools = self._journal.head.pools
        # A pool's own name comes first: `models` may tell which file stands behind that very name.
        group = pools.group_of(model_ref) or pools.group_of(self._settings.models.get(model_ref, model_ref))
        if group is None:
            known = sorted(
                {p.declared.model_ref for p in pools.by_id.values()}
                | {a for p in pools.by_id.values() for a in p.declared.aliases}
                | set(self._settings.models)
            )
            near = difflib.get_close_matches(model_ref, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known) or 'none'}"
            msg = f"no pool serves the model {model_ref!r}{hint}"
            raise ModelNotFoundError(msg, field="model_ref", got=model_ref, nearest=near[0] if near else None)
        return group

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

    async def _check_context(
        self, request: TaskRequest, pools: list[PoolState], room: int | None = None
    ) -> tuple[int, bool]:
        """Tokens of the prompt, and whether the number is exact.

        A token is at least one byte, so a prompt with fewer bytes than the context surely fits and needs no
        tokenizer. ``max_tokens`` alone never refuses a task: an engine stops at the end of its context.

        :param room: tokens that the caller's budgets have left for it, if they bound it: what may be more is counted.
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

    def _make_room(self, group: str, pools: list[PoolState]) -> list[object]:
        """Events that make room in a full queue. :raises BackpressureError: there is none to make."""
        capacity = sum(p.declared.queue_capacity for p in pools)
        queue = self._journal.head.queue.groups.get(group)
        depth = len(queue) if queue is not None else 0
        if depth < capacity or self._dispatcher.slot_is_free(group, depth):
            return []
        policy = "drop-lru" if any(p.declared.full_policy == "drop-lru" for p in pools) else "reject"
        wait_ms = max(100, min(60_000, self._estimate(group, 0, "interactive").start_ms))
        if policy == "drop-lru" and queue is not None:
            oldest = queue.batch.first()
            if oldest is not None:
                return self._drop(oldest[1])
        msg = f"the queue of {group!r} is full ({depth} of {capacity})"
        raise BackpressureError(msg, retry_after_ms=wait_ms, policy_label=policy, queue_depth=depth)

    def _drop(self, task_id: str) -> list[object]:
        state = self._journal.head.tasks.live[task_id]
        return [
            TaskCancelled(task_id=task_id, reason="drop-lru"),
            end_of(
                self._journal.head,
                state,
                self._journal.now_ns(),
                "failed",
                "error",
                code=DroppedError.code,
                message="dropped from the full queue as its oldest batch task",
                retriable=True,
            ),
        ]

    def _note_rejection(self, request: TaskRequest, caller: Caller, correlation: str, error: OrchError) -> None:
        if self._journal.status != "ok":
            return
        rejected = TaskRejected(
            task_id=request.task_id or self._new_id(),
            owner=caller.owner,
            model_ref=request.model_ref,
            code=error.code,
            reason=error.message[:500],
            retry_after_ms=error.retry_after_ms or 0,
        )
        self._journal.append([rejected], actor=caller.identity, correlation=correlation)
