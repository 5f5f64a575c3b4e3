"""Admission: what is checked before the queue, and the one event that accepts a task (ADM-1 to ADM-6)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ..errors import ConflictError, DeadlineUnmetError, OrchError
from ..events.task import TaskAdmitted, TaskRejected
from ..journal.history import fact_at
from ..journal.journal import Journal
from ..settings import Settings
from ..types import TaskRequest
from .abilities import needs_of
from .bodies import Bodies, body_of, prefixes, request_digest
from .caller import Caller
from .dispatch import Dispatcher
from .estimates import Estimator, StartEstimate
from .placement import placement_record
from .queue_room import QueueRoom
from .vetting import Vetting

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
        settings: Settings,
        vetting: Vetting,
        checks: Sequence[AdmissionCheck],
        estimator: Estimator,
        prompt_room: Callable[[TaskRequest, Caller, int], int | None],
        new_id: Callable[[], str],
        new_seed: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._estimator = estimator
        self._prompt_room = prompt_room
        self._dispatcher = dispatcher
        self._bodies = bodies
        self._settings = settings
        self._vetting = vetting
        self._room = QueueRoom(
            journal, dispatcher.slot_is_free, lambda group: self._estimate(group, 0, "interactive").start_ms
        )
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
        if request.session_id is not None:
            # One session, however its id is written: another would be one without its budgets.
            request.session_id = request.session_id.lower()
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
        if state is None:
            return self._admission(task_id, position, StartEstimate(0, 0, 0), "", attached=True)
        asked = state.admitted
        estimate = self._estimate(asked.group, position, asked.priority, asked.prompt_tokens)
        return self._admission(task_id, position, estimate, asked.group, attached=True)

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

    def group_of(self, model_ref: str) -> str:
        """The serving group of a model. :raises ModelNotFoundError: there is none; the nearest name is told."""
        return self._vetting.group_of(model_ref)

    async def _admit(self, request: TaskRequest, caller: Caller, asked: _Asked) -> Admission:
        caller.require_model(request.model_ref)
        group = self.group_of(request.model_ref)
        for check in self._checks:
            check.refuse(request, caller, self._journal.now_ns())
        pools = self._journal.head.pools.serving(group)
        needs = needs_of(request)
        room = self._prompt_room(request, caller, self._journal.now_ns())
        prompt_tokens, exact = await self._vetting.prompt_tokens(request, pools, needs, room)
        self._journal.require_ok()
        body_id, rows = await self._bodies.add(caller.owner, body_of(request, asked.shown), self._journal.require_ok)
        self._journal.require_ok()
        # From here on nothing awaits: what was read is what the event is based on.
        attached = self._attached(caller, asked.key, asked.digest)
        if attached is not None:
            return attached
        head = self._journal.head
        now = self._journal.now_ns()
        queue = head.queue.groups.get(group)
        lane = len(queue.interactive) if queue else 0
        ahead = lane if request.priority == "interactive" or queue is None else len(queue)
        dropped = self._room.make(group, pools)
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
        # Last, and the first check at the end of all: what it takes is taken of tasks that nothing else refuses.
        before = [e for check in reversed(self._checks) for e in check.events(request, caller, prompt_tokens, now)]
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
        return self._admission(task_id, ahead, estimate, group, attached=False)

    def _admission(
        self, task_id: str, position: int, estimate: StartEstimate, group: str, *, attached: bool
    ) -> Admission:
        pools = self._journal.head.pools.serving(group)
        return Admission(
            task_id,
            position,
            estimate.start_ms,
            estimate.p10_ms,
            estimate.p90_ms,
            self._room.backoff_ms(group, pools),
            attached,
            self._journal.head.next_seq,
        )

    def _estimate(self, group: str, ahead: int, priority: str, prompt_tokens: int = 0) -> StartEstimate:
        head, now = self._journal.head, self._journal.now_ns()
        return self._estimator.start(head, group, ahead, now, priority=priority, prompt_tokens=prompt_tokens)

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
