"""Dispatch: queued tasks are placed, sent to engines, and brought to their one end.

One loop, no locks: every method runs on the event loop and appends before it tells anybody. An engine is
called once the placement is committed. After each change of queue, leases or pools the group is pumped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from ..engine_ports import AttemptEnd, AttemptFailure, AttemptHandle, AttemptStart, ChatJob, Engine
from ..entries import EntryBatch
from ..errors import (
    BudgetExhaustedError,
    CorruptJournalError,
    InvalidParamsError,
    JournalUnavailableError,
    OrchError,
    PoolUnavailableError,
)
from ..events.lease import LeaseGranted, LeaseReleased
from ..events.task import TaskAttemptFailed, TaskEnded, TaskPlaced, TaskStarted
from ..journal.journal import Journal
from ..ports import BodyPiece, Clock
from ..projections.queue import GroupQueue
from ..projections.tasks import TaskState
from ..settings import Settings
from ..types import TaskPhase
from .attempt import Attempt, AttemptEvents
from .bodies import Bodies, RequestBody, content_id, encode_result, pieces
from .ends import after_failure, end_of, prompt_of
from .engines import EngineDirectory
from .jobs import chat_of, job_of, may_continue, needs_chat, render, renders
from .placement import Placement, affinity_keys
from .purses import Purses, hold_after
from .sessions import evictions
from .texts import TaskTexts, plain_text

#: tasks of each priority that are looked at behind one that waits for certain pools
_LOOK_PAST = 256


class Dispatcher:
    """Places tasks and runs their attempts."""

    def __init__(
        self,
        journal: Journal,
        placement: Placement,
        engines: EngineDirectory,
        bodies: Bodies,
        texts: TaskTexts,
        settings: Settings,
        clock: Clock,
        new_id: Callable[[], str],
        purses: Purses,
    ) -> None:
        self._journal = journal
        self._purses = purses
        self._placement = placement
        self._engines = engines
        self._bodies = bodies
        self._texts = texts
        self._settings = settings
        self._clock = clock
        self._new_id = new_id
        self.attempts: dict[str, Attempt] = {}
        self._events = AttemptEvents(self._on_started, self._on_ended, self._on_failed, self._on_diverged)
        #: groups that are pumped again once a pool is trusted again
        self._later: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: leases whose slots are being watched until they are seen free
        self.watched: set[str] = set()
        #: address of a task's rendered prompt, and the rows of it that are not in the store yet
        self._rendered: dict[str, tuple[str, list[BodyPiece]]] = {}
        #: tasks whose next attempt has to continue instead of regenerate, because repeating them diverged
        self._continue: set[str] = set()
        self._closed = False
        journal.on_rebuilt(self._on_rebuilt)
        journal.on_status(self._on_status)
        journal.on_relief(self._on_relief)

    # --- placing ---------------------------------------------------------------------------------------------

    def pump(self, group: str) -> None:
        """Place as many of a group's tasks as can be placed now, in order."""
        if self._journal.status != "ok" or self._closed:
            return
        head = self._journal.head
        while (queue := head.queue.groups.get(group)) is not None:
            if not self.slot_is_free(group, 0) and any(p.ready for p in head.pools.serving(group)):
                # All is taken, the common case under load: whoever frees a slot comes here again.
                self._pump_later(group)
                return
            task_id = self._next(queue)
            if task_id is None or not self._place(head.tasks.live[task_id]):
                self._pass_over(group)
                self._pump_later(group)
                return

    def _pass_over(self, group: str) -> None:
        """The first cannot be placed though a slot is free: it waits for certain pools, so those behind it may go on.

        A serving group are the pools that can serve a task (ADM-3): among tasks with the same wishes order holds.
        """
        head = self._journal.head
        if not self.slot_is_free(group, 0):
            return
        waiting: set[tuple[str, ...]] = set()
        for task_id in head.queue.first_waiting(group, _LOOK_PAST):
            state = head.tasks.live[task_id]
            wishes = self._placement.wishes(state)
            if wishes not in waiting and not self._place(state):
                waiting.add(wishes)
            if not self.slot_is_free(group, 0):
                return

    def _pump_later(self, group: str) -> None:
        """Pools that are passed over for a moment are looked at again when it is over."""
        now = self._journal.now_ns()
        pools = self._journal.head.pools.serving(group)
        until = [p.suspect_until_ns for p in pools if p.ready and p.suspect_until_ns > now]
        if until and group not in self._later:
            self._later.add(group)
            asyncio.get_running_loop().call_later((min(until) - now) / 1e9 + 0.001, self._pump_now, group)

    def _pump_now(self, group: str) -> None:
        self._later.discard(group)
        self.pump(group)

    def pump_all(self) -> None:
        """Pump every group."""
        for group in list(self._journal.head.queue.groups):
            self.pump(group)

    def _next(self, queue: GroupQueue) -> str | None:
        """The task at the head: interactive first, unless a batch task has been first long enough (ADM-3)."""
        interactive, batch = queue.interactive.first(), queue.batch.first()
        if batch is not None and interactive is not None:
            waited = self._journal.now_ns() - queue.batch_since_ns
            if waited >= self._settings.admission.batch_patience_ms * 1_000_000:
                return batch[1]
        chosen = interactive or batch
        return None if chosen is None else chosen[1]

    def slot_is_free(self, group: str, depth: int) -> bool:
        """Whether a task that comes now could start at once, with ``depth`` tasks before it."""
        head, now = self._journal.head, self._journal.now_ns()
        free = sum(
            max(0, p.slots - head.leases.count(p.declared.pool_id))
            for p in head.pools.serving(group)
            if p.ready and not p.draining and p.suspect_until_ns <= now
        )
        return depth < free

    def _place(self, state: TaskState) -> bool:
        """Append placement and lease of one task; ``False``: it has to wait."""
        journal, head = self._journal, self._journal.head
        now = journal.now_ns()
        try:
            decision = self._placement.decide(head, state, now)
        except InvalidParamsError as error:
            self._fail_task(state, error)
            return True
        if decision is None:
            wish = self._placement.hopeless(head, state)
            if wish:
                # The configuration changed since its admission: it must not hold up those behind it for ever.
                msg = f"no pool serves {state.admitted.group!r} as this task asked any more ({wish})"
                self._fail_task(state, PoolUnavailableError(msg))
            return bool(wish)
        pool = head.pools.by_id[decision.selected_pool_id]
        found = self._placement.slot(head, pool, state)
        if found is None:
            return False
        slot, warm = found
        try:
            reserved = self._purses.placing(state, now)
        except BudgetExhaustedError as error:
            self._fail_task(state, error)
            return True
        evicted = evictions(head, state, decision.selected_pool_id, slot)
        attempt, lease_id = state.attempt + 1, self._new_id()
        placed = TaskPlaced(
            task_id=state.task_id,
            attempt=attempt,
            pool_id=decision.selected_pool_id,
            replica_id=pool.observed.replica_id if pool.observed else "r0",
            decision=decision,
        )
        granted = LeaseGranted(
            lease_id=lease_id,
            pool_id=decision.selected_pool_id,
            task_id=state.task_id,
            attempt=attempt,
            slot=slot,
            generation=pool.observed.generation if pool.observed else 0,
            keys=affinity_keys(state),
            warm=warm,
        )
        seq = journal.append([*reserved, *evicted, placed, granted], actor="scheduler", correlation=state.correlation)
        journal.when_committed(seq, partial(self._launch, state.task_id, attempt, lease_id, slot))
        return True

    def _fail_task(self, state: TaskState, error: OrchError) -> None:
        self._continue.discard(state.task_id)
        self._journal.append(
            [self._end(state, "failed", "error", error=error)],
            actor="scheduler",
            correlation=state.correlation,
            internal=True,
        )

    # --- sending to an engine --------------------------------------------------------------------------------

    def _launch(self, task_id: str, number: int, lease_id: str, slot: int, error: OrchError | None) -> None:
        """The placement is committed: send the task to its engine, unless it ended meanwhile."""
        if error is not None or self._journal.status == "reopening":
            return  # recovery takes it up from what is on disk
        state = self._journal.head.tasks.live.get(task_id)
        if state is None or state.attempt != number or state.phase != TaskPhase.PLACED:
            if lease_id in self._journal.head.leases.by_id:
                self._release(lease_id, "never-sent")
            return
        attempt = Attempt(
            self._journal,
            self._events,
            task_id=task_id,
            number=number,
            pool_id=state.pool_id,
            lease_id=lease_id,
            now_ns=self._clock.monotonic_ns(),
            purse=self._purses.purse(state, self.out_of_budget),
        )
        self.attempts[task_id] = attempt
        engine = self._engines.engine(state.pool_id)
        if engine is None:
            attempt.failed(AttemptFailure(kind="unreachable", message="the engine is not there"))
            return
        body = self._bodies.cached(state.admitted.owner, state.admitted.body_id)
        if body is not None and body.messages is None and not state.entries:
            self._generate(attempt, engine, state, slot, body, body.prompt or "", [])
        else:
            self._spawn(self._prepare(attempt, engine, state, slot))

    async def _prepare(self, attempt: Attempt, engine: Engine, state: TaskState, slot: int) -> None:
        """What takes a moment before an engine can be asked: bodies, templates, the journaled prefix."""
        try:
            body = await self._bodies.get(state.admitted.owner, state.admitted.body_id)
            properties = self._engines.properties(attempt.pool_id)
            chat = chat_of(body) if needs_chat(body, state.admitted.needs, properties) else None
            prompt = body.prompt or ""
            if body.messages is not None and (chat is None or renders(properties)):
                prompt = await render(engine, body)
                self._rendered[state.task_id] = await self._keep_rendered(state.admitted.owner, prompt.encode())
            said = await self._texts.spoken(state) if state.entries else []
        except (CorruptJournalError, InvalidParamsError) as error:
            self._end_unsent(attempt, state, "failed", "error", error=error)
            return
        except Exception as error:
            # A plugin's fault must not leave the task without an end.
            attempt.failed(AttemptFailure(kind="unreachable", message=f"the prompt could not be rendered: {error}"))
            return
        if attempt.done:
            self._rendered.pop(state.task_id, None)
            return
        self._generate(attempt, engine, state, slot, body, prompt, said, chat)

    async def _keep_rendered(self, owner: str, raw: bytes) -> tuple[str, list[BodyPiece]]:
        """A rendered prompt, written ahead when it is large; while the store refuses, it goes with the frame."""
        try:
            return await self._bodies.write_ahead(owner, raw, self._journal.require_ok)
        except JournalUnavailableError:
            return pieces(owner, raw)

    def _end_unsent(self, attempt: Attempt, state: TaskState, outcome: str, finish_reason: str, **how: Any) -> None:
        """End a task whose attempt never reached its engine."""
        if attempt.done:
            return
        attempt.done = True
        self.attempts.pop(state.task_id, None)
        self._rendered.pop(state.task_id, None)
        self._continue.discard(state.task_id)
        if self._follow([self._end(state, outcome, finish_reason, **how)], state):
            self._release(attempt.lease_id, "never-sent")

    def _generate(
        self,
        attempt: Attempt,
        engine: Engine,
        state: TaskState,
        slot: int,
        body: RequestBody,
        prompt: str,
        said: list[EntryBatch],
        chat: ChatJob | None = None,
    ) -> None:
        admitted = state.admitted
        continued = False
        prefix = ""
        if state.entries:
            continued = state.task_id in self._continue
            if continued:
                attempt.continue_from(state.entries)
                prefix = plain_text(said)
            else:
                attempt.repeat(said, state.entries)
        max_tokens = admitted.max_tokens
        if continued:
            why = may_continue(state, body, self._engines.properties(attempt.pool_id))
            if why:
                message = f"the task could not be regenerated, and {why}"
                self._end_unsent(attempt, state, "failed", "error", code="INTERRUPTED", message=message, retriable=True)
                return
            if max_tokens and state.tokens_out >= max_tokens:
                self._end_unsent(attempt, state, "completed", "length", recovery_used="continue")
                return
            max_tokens -= state.tokens_out if max_tokens else 0
        job = job_of(
            state,
            body,
            attempt=attempt.number,
            slot=slot,
            prompt=prompt,
            prefix=prefix,
            max_tokens=max_tokens,
            chat=chat,
        )
        try:
            handle = engine.generate(job, attempt)
        except Exception as error:
            # A plugin's fault must not reach the journal, whose commit brought us here.
            attempt.failed(AttemptFailure(kind="invalid", message=f"the engine's plugin failed: {error!r}"))
            return
        attempt.handle = handle
        if attempt.done:
            handle.cancel()

    # --- what attempts report --------------------------------------------------------------------------------

    def _on_started(self, attempt: Attempt, start: AttemptStart) -> None:
        state = self._journal.head.tasks.live.get(attempt.task_id)
        if state is None or state.attempt != attempt.number or state.phase != TaskPhase.PLACED:
            attempt.stop()
            return
        try:
            reserved = self._purses.starting(state, start.prompt_tokens, self._journal.now_ns())
        except BudgetExhaustedError as error:
            self.out_of_budget(state, error)
            return
        admitted = state.admitted
        properties = self._engines.properties(attempt.pool_id)
        pool = self._journal.head.pools.by_id.get(attempt.pool_id)
        rendered_id, rows = self._rendered.pop(attempt.task_id, (admitted.body_id, []))
        lease = self._journal.head.leases.by_id.get(attempt.lease_id)
        session = self._journal.head.sessions.by_id.get(admitted.session_id)
        caches = admitted.determinism != "strict" and not admitted.kv_cold
        started = TaskStarted(
            task_id=attempt.task_id,
            attempt=attempt.number,
            pool_id=attempt.pool_id,
            replica_id=pool.observed.replica_id if pool and pool.observed else "r0",
            engine=pool.declared.engine if pool else "",
            engine_version=properties.engine_version if properties else "",
            engine_flags=properties.flags if properties else "",
            model_digest=properties.model_digest if properties else "",
            tokenizer_digest=properties.tokenizer_digest if properties else "",
            template_digest=_digest(properties.chat_template) if properties and properties.chat_template else "",
            sampler_profile_version=admitted.sampler_profile_version or self._profile(attempt.pool_id),
            device=properties.device if properties else "",
            seed=admitted.seed,
            effective=admitted.sampling,
            rendered_id=rendered_id,
            prompt_tokens=start.prompt_tokens,
            cached_tokens=start.cached_tokens,
            cache_prompt=caches,
            kv_warmth=caches and lease is not None and lease.warm,
            kv_lost=session is not None and session.kv is not None and session.kv.lost,
            neighbours=max(0, self._journal.head.leases.count(attempt.pool_id) - 1),
            resumed_at=attempt.resumed_at,
            recovery_used=attempt.recovery_used,
            queue_time_ms=(self._journal.now_ns() - state.admitted_ns) // 1_000_000,
            queue_position=admitted.queue_position,
            predicted_start_ms=admitted.predicted_start_ms,
        )
        self._follow([*reserved, started], state, bodies=rows)

    def _profile(self, pool_id: str) -> str:
        return next((p.sampler_profile_version for p in self._settings.pools if p.id == pool_id), "")

    def _on_ended(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.attempts.pop(attempt.task_id, None)
        state = self._journal.head.tasks.live.get(attempt.task_id)
        if state is None:
            return
        rows: list[BodyPiece] = []
        used = attempt.recovery_used
        how: dict[str, Any] = {"end": end, "recovery_used": used}
        try:
            reserved = self._purses.ending(state, *prompt_of(state, end, used), self._journal.now_ns())
        except BudgetExhaustedError as error:
            reserved, ended = [], self._end(state, "failed", "error", error=error, **how)
        else:
            if end.result is not None:
                how["result_id"], rows = pieces(state.admitted.owner, encode_result(end.result))
            ended = self._end(state, "completed", end.finish_reason, hold=hold_after(reserved), **how)
        self._continue.discard(state.task_id)
        released = LeaseReleased(
            lease_id=attempt.lease_id, pool_id=attempt.pool_id, task_id=state.task_id, cause="slot-free"
        )
        if self._follow([*reserved, ended, released], state, rows):
            self.pump(state.admitted.group)

    def _on_failed(self, attempt: Attempt, failure: AttemptFailure) -> None:
        self.attempts.pop(attempt.task_id, None)
        self._rendered.pop(attempt.task_id, None)
        state = self._journal.head.tasks.live.get(attempt.task_id)
        if state is None:
            return
        head, most = self._journal.head, self._settings.admission.max_attempts
        what = after_failure(head, state, attempt.number, failure, most, self._journal.now_ns())
        if self._follow([what], state):
            # A stream that broke off says nothing of the slot: it may still be decoding (PLC-4).
            self.free_slot(attempt)
            self.pump(state.admitted.group)

    def _on_diverged(self, attempt: Attempt) -> None:
        """A regeneration said something else than the journal holds (RCV-1)."""
        self.attempts.pop(attempt.task_id, None)
        state = self._journal.head.tasks.live.get(attempt.task_id)
        if state is None:
            return
        if state.admitted.recovery == "strict":
            message = "the task could not be regenerated with the same text"
            events: list[object] = [
                self._end(state, "failed", "error", code="INTERRUPTED", message=message, retriable=True)
            ]
        else:
            self._continue.add(state.task_id)
            events = [
                TaskAttemptFailed(
                    task_id=state.task_id,
                    attempt=attempt.number,
                    pool_id=attempt.pool_id,
                    code="diverged",
                    message="the regenerated text differs from the journal: the next attempt continues from it",
                )
            ]
        if self._follow(events, state):
            self.free_slot(attempt)
            self.pump(state.admitted.group)

    # --- ends and slots --------------------------------------------------------------------------------------

    def _end(self, state: TaskState, outcome: str, finish_reason: str, **how: Any) -> TaskEnded:
        return end_of(self._journal.head, state, self._journal.now_ns(), outcome, finish_reason, **how)

    def out_of_budget(self, state: TaskState, error: BudgetExhaustedError) -> None:
        """End a task that was placed and cannot be paid any further; the journal takes what follows from an engine's word."""
        if self._journal.status not in ("ok", "refusing"):
            return
        how: dict[str, Any] = {"outcome": "failed", "finish_reason": "error", "error": error}
        self.end_task(state, [], actor="scheduler", correlation=state.correlation, internal=True, **how)
        self.pump(state.admitted.group)

    def end_task(
        self,
        state: TaskState,
        before: list[object],
        *,
        actor: str,
        correlation: str,
        internal: bool = False,
        **how: Any,
    ) -> int:
        """End a task that is queued, placed or running: the end is appended first, then the engine is told to stop."""
        events = [*before, self._end(state, **how)]
        seq = self._journal.append(events, actor=actor, correlation=correlation, internal=internal)
        self._continue.discard(state.task_id)
        self._rendered.pop(state.task_id, None)
        attempt = self.attempts.pop(state.task_id, None)
        if attempt is not None:
            attempt.stop()
            self.free_slot(attempt)
        return seq

    def free_slot(self, attempt: Attempt) -> None:
        """Release an attempt's lease once its slot is seen free."""
        if attempt.handle is None:
            self._release(attempt.lease_id, "never-sent")
        else:
            self.watched.add(attempt.lease_id)
            self._spawn(self._await_slot(attempt.handle, attempt.lease_id))

    async def _await_slot(self, handle: AttemptHandle, lease_id: str) -> None:
        try:
            cause = await handle.slot_free()
        except Exception:
            # A slot that nobody can tell of must not be lost for ever.
            cause = "engine-gone"
        self.watched.discard(lease_id)
        self._release(lease_id, cause)

    def _release(self, lease_id: str, cause: str) -> None:
        lease = self._journal.head.leases.by_id.get(lease_id)
        if lease is None:
            return
        released = LeaseReleased(lease_id=lease_id, pool_id=lease.pool_id, task_id=lease.task_id, cause=cause)
        try:
            self._journal.append([released], actor="scheduler", correlation="", internal=True)
        except JournalUnavailableError:
            return
        self._pump_pool(lease.pool_id)

    def _follow(self, events: list[object], state: TaskState, bodies: Sequence[BodyPiece] = ()) -> bool:
        """Append what follows from an engine's word; ``False``: the journal is being reopened or closed.

        Then head is about to be rebuilt from disk, and recovery takes the task up from there.
        """
        try:
            self._journal.append(events, actor="scheduler", correlation=state.correlation, bodies=bodies, internal=True)
        except JournalUnavailableError:
            return False
        return True

    def _pump_pool(self, pool_id: str) -> None:
        pool = self._journal.head.pools.by_id.get(pool_id)
        if pool is not None:
            self.pump(pool.declared.model_ref)

    # --- the journal's states --------------------------------------------------------------------------------

    def _on_rebuilt(self) -> None:
        """Head was rebuilt from disk: what runs is void (recovery takes it up again)."""
        attempts, self.attempts = self.attempts, {}
        for attempt in attempts.values():
            attempt.stop()
            if attempt.handle is not None:
                self.free_slot(attempt)
        self._rendered.clear()

    def _on_status(self) -> None:
        if self._journal.status == "ok":
            asyncio.get_running_loop().call_soon(self.pump_all)

    def _on_relief(self) -> None:
        for attempt in self.attempts.values():
            if attempt.handle is not None:
                attempt.handle.resume()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop all attempts; their tasks stay in the journal and go on at the next start."""
        self._closed = True
        for attempt in self.attempts.values():
            attempt.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _digest(text: str) -> str:
    return content_id(text.encode())
