"""Questions about tasks: state, result, decision, queue."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from ..engine_ports import EmbeddingResult, RerankResult
from ..entries import EntryBatch
from ..errors import CorruptJournalError
from ..events.task import TaskAdmitted, TaskEnded, TaskPlaced, TaskStarted
from ..journal.history import fact_at, facts_of
from ..journal.journal import Journal
from ..journal.live import LiveStream
from ..ports import IndexFilter, IndexRow
from ..projections.tasks import TaskState
from .bodies import Bodies, RequestBody
from .budgets import Quantities, quantities
from .caller import Caller
from .estimates import Estimator
from .outcomes import Choice, choices_of, reasoning_tokens
from .streams import not_found
from .texts import TaskTexts, plain_text


class Usage(msgspec.Struct, frozen=True):
    """Tokens that a task took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    #: of the completion's, those that were thought and not said
    reasoning_tokens: int = 0


class TaskProblem(msgspec.Struct, frozen=True):
    """Why a task failed."""

    code: str
    message: str
    retriable: bool


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One task as routes show it."""

    task_id: str
    state: str
    model_ref: str
    owner: str
    priority: str
    workload: str = "completion"
    session_id: str = ""
    created_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    queue_position: int = -1
    predicted_start_ms: int = 0
    pool_id: str = ""
    engine: str = ""
    engine_version: str = ""
    seed: int = 0
    attempts: int = 0
    finish_reason: str = ""
    recovery_used: str = ""
    usage: Usage = Usage()
    #: what budgets were charged for it; ``None`` = it is counted on none, or has not ended
    charge: Quantities | None = None
    error: TaskProblem | None = None
    #: what the first answer says aloud
    text: str | None = None
    #: all answers, where there is more to tell of them: several, thoughts, tool calls, log-probabilities
    choices: list[Choice] | None = None
    #: of an embedding task: one vector per input
    embeddings: list[list[float]] | None = None
    #: of a rerank task: one score per input
    scores: list[float] | None = None


def _newest_first(state: TaskState) -> int:
    return -state.task_no


def _usage(
    ended: TaskEnded | None, started: TaskStarted | None, tokens_out: int, said: list[EntryBatch] | None
) -> Usage:
    prompt = ended.prompt_tokens if ended is not None else (started.prompt_tokens if started else 0)
    thought = sum(reasoning_tokens(batch) for batch in said or ())
    return Usage(prompt, ended.cached_tokens if ended else 0, tokens_out, prompt + tokens_out, thought)


def _charge(ended: TaskEnded | None) -> Quantities | None:
    return quantities(ended.charge) if ended is not None and ended.charge is not None else None


def _problem(ended: TaskEnded | None) -> TaskProblem | None:
    return TaskProblem(ended.code, ended.message, ended.retriable) if ended is not None and ended.code else None


def _choices(
    task_id: str, said: list[EntryBatch] | None, admitted: TaskAdmitted | None, ended: TaskEnded | None
) -> list[Choice] | None:
    """The answers, unless there is one of plain text."""
    if said is None or admitted is None:
        return None
    if admitted.n == 1 and all(b.choices is None and b.channels is None and b.logprobs is None for b in said):
        return None
    return choices_of(
        task_id,
        said,
        count=admitted.n,
        finish_reason=ended.finish_reason if ended is not None else "",
        finish_reasons=ended.finish_reasons if ended is not None else (),
    )


class TaskQueries:
    """Answers from head while a task is in memory, else from its frames."""

    def __init__(self, journal: Journal, texts: TaskTexts, bodies: Bodies, estimator: Estimator) -> None:
        self._bodies = bodies
        self._journal = journal
        self._texts = texts
        self._estimator = estimator

    # --- one task --------------------------------------------------------------------------------------------

    async def get(self, task_id: str, caller: Caller, *, text: bool = True) -> TaskInfo:
        """A task. :raises NotFoundError: there is none, or it is somebody else's."""
        state = await self._held(task_id, caller)
        if state is not None and (not text or state.ended is None):
            return self._info(state, None)
        if state is not None:
            try:
                said = await self._texts.batches(state)
                return await self._with_result(self._info(state, said), state.ended, state.admitted.owner)
            except CorruptJournalError:
                # Compacted while we were reading: the transcript has it all.
                del state
        row = await self._row(task_id, caller)
        await self._journal.synced(self._journal.committed_seq)
        return await self._ended_info(row, text=text)

    async def _held(self, task_id: str, caller: Caller) -> TaskState | None:
        """A task in memory, once the journal holds what will be told of it; ``None``: it is not there (any more).

        :raises NotFoundError: it is somebody else's.
        :raises JournalUnavailableError: the journal does not hold it yet, and cannot be written.
        """
        while (state := self._journal.task(task_id)) is not None:
            if state.admitted.owner != caller.owner:
                raise not_found(task_id)
            if not await self._wait_for([state]):
                return state
        return None

    async def _wait_for(self, states: Sequence[TaskState]) -> bool:
        """Wait until acceptances are committed and ends durable; whether there was anything to wait for."""
        journal = self._journal
        accepted = max((s.task_no + 1 for s in states), default=0)
        ended = max((s.ended_seq + 1 for s in states if s.ended is not None), default=0)
        if accepted <= journal.committed_seq and ended <= journal.synced_seq:
            return False
        journal.require_ok()
        await journal.committed(accepted)
        await journal.synced(ended)
        return True

    @staticmethod
    def _terminal(stream: LiveStream) -> bool:
        return stream.terminal

    async def _row(self, task_id: str, caller: Caller) -> IndexRow:
        row = await asyncio.to_thread(self._journal.store.index_row, task_id)
        if row is None or row.owner != caller.owner:
            raise not_found(task_id)
        return row

    async def wait(self, task_id: str, caller: Caller, timeout_ms: int) -> TaskInfo:
        """The task once its end is durable, or as it is after ``timeout_ms``."""
        state = self._journal.task(task_id)
        if state is not None and state.admitted.owner == caller.owner:
            stream = self._journal.stream_of(task_id)
            if stream is not None and not stream.terminal:
                loop = asyncio.get_running_loop()
                done: asyncio.Future[None] = loop.create_future()

                def wake() -> None:
                    if not done.done() and (stream.terminal or stream.broken is not None):
                        done.set_result(None)

                stream.listeners.add(wake)
                try:
                    async with asyncio.timeout(timeout_ms / 1000):
                        await done
                except TimeoutError:
                    pass
                finally:
                    stream.listeners.discard(wake)
                if stream.broken is not None:
                    raise stream.broken
                if self._terminal(stream) and stream.base == 1:
                    info = self._info(state, [s.batch for s in stream.segments])
                    return await self._with_result(info, state.ended, state.admitted.owner)
        return await self.get(task_id, caller)

    async def _with_result(self, info: TaskInfo, ended: TaskEnded | None, owner: str) -> TaskInfo:
        """With the vectors or scores that the task brought."""
        if ended is None or not ended.result_id:
            return info
        raw = await self._bodies.raw(owner, ended.result_id)
        if info.workload == "embedding":
            vectors = msgspec.json.decode(raw, type=EmbeddingResult).vectors
            return msgspec.structs.replace(info, embeddings=[list(array("f", vector)) for vector in vectors])
        scores = msgspec.json.decode(raw, type=RerankResult).scores
        return msgspec.structs.replace(info, scores=[float(score) for score in scores])

    async def request_of(self, task_id: str, caller: Caller) -> tuple[TaskAdmitted, RequestBody]:
        """What a task asked for. :raises NotFoundError: there is none, or it is somebody else's."""
        state = await self._held(task_id, caller)
        if state is not None:
            admitted = state.admitted
        else:
            row = await self._row(task_id, caller)
            found = await asyncio.to_thread(fact_at, self._journal.store, row.admitted_frame, TaskAdmitted, row.task_id)
            if found is None:
                raise not_found(task_id)
            admitted = found.payload
        return admitted, await self._bodies.get(admitted.owner, admitted.body_id)

    def _info(self, state: TaskState, said: list[EntryBatch] | None) -> TaskInfo:
        admitted, started, ended = state.admitted, state.started, state.ended
        pool = self._journal.head.pools.by_id.get(state.pool_id or (started.pool_id if started else ""))
        return TaskInfo(
            task_id=state.task_id,
            state=ended.outcome if ended is not None else state.phase,
            model_ref=admitted.model_ref,
            owner=admitted.owner,
            priority=admitted.priority,
            workload=admitted.workload,
            session_id=admitted.session_id,
            created_ms=state.admitted_ns // 1_000_000,
            started_ms=state.started_ns // 1_000_000,
            ended_ms=state.ended_ns // 1_000_000,
            queue_position=self._journal.head.queue.position(state.task_id) if ended is None else -1,
            predicted_start_ms=admitted.predicted_start_ms,
            pool_id=state.pool_id or (started.pool_id if started else ""),
            engine=pool.declared.engine if pool else "",
            engine_version=started.engine_version if started else "",
            seed=admitted.seed,
            attempts=state.attempt,
            finish_reason=ended.finish_reason if ended else "",
            recovery_used=ended.recovery_used if ended else "",
            usage=_usage(ended, started, state.tokens_out, said),
            charge=_charge(ended),
            error=_problem(ended),
            text=plain_text(said) if said is not None else None,
            choices=_choices(state.task_id, said, admitted, ended),
        )

    async def _ended_info(self, row: IndexRow, *, text: bool) -> TaskInfo:
        store = self._journal.store
        admitted = await asyncio.to_thread(fact_at, store, row.admitted_frame, TaskAdmitted, row.task_id)
        started = await asyncio.to_thread(fact_at, store, row.started_frame, TaskStarted, row.task_id)
        ended = await asyncio.to_thread(fact_at, store, row.ended_frame, TaskEnded, row.task_id)
        end: TaskEnded | None = ended.payload if ended else None
        begun: TaskStarted | None = started.payload if started else None
        asked: TaskAdmitted | None = admitted.payload if admitted else None
        said = await self._texts.ended(row) if text else None
        info = TaskInfo(
            task_id=row.task_id,
            state=row.state,
            model_ref=row.model_ref,
            owner=row.owner,
            priority=asked.priority if asked else "",
            workload=asked.workload if asked else "",
            session_id=row.session_id,
            created_ms=row.admitted_ns // 1_000_000,
            started_ms=started.time_ns // 1_000_000 if started else 0,
            ended_ms=row.ended_ns // 1_000_000,
            predicted_start_ms=asked.predicted_start_ms if asked else 0,
            pool_id=begun.pool_id if begun else "",
            engine=begun.engine if begun else "",
            engine_version=begun.engine_version if begun else "",
            seed=asked.seed if asked else 0,
            attempts=end.attempts if end else 0,
            finish_reason=end.finish_reason if end else "",
            recovery_used=end.recovery_used if end else "",
            usage=_usage(end, begun, end.tokens_out if end else 0, said),
            charge=_charge(end),
            error=_problem(end),
            text=plain_text(said) if said is not None else None,
            choices=_choices(row.task_id, said, asked, end),
        )
        return await self._with_result(info, end, row.owner) if text else info

    async def decision(self, task_id: str, caller: Caller) -> dict[str, Any]:
        """Why the task was placed where it was, for each attempt (PLC-2)."""
        info = await self.get(task_id, caller, text=False)
        state = self._journal.task(task_id)
        if state is not None:
            await self._journal.committed(self._journal.head.next_seq)
            first, last = state.admitted_frame, state.ended_frame or self._journal.committed_frame
        else:
            row = await self._row(task_id, caller)
            first, last = row.admitted_frame, row.ended_frame

        def placements() -> list[dict[str, Any]]:
            out = []
            for frame in self._journal.store.frames(first, last):
                if b'"task.placed"' not in frame.facts:
                    continue
                for record in facts_of(frame):
                    if isinstance(record.payload, TaskPlaced) and record.payload.task_id == task_id:
                        out.append(
                            {
                                "attempt": record.payload.attempt,
                                "time_ms": record.time_ns // 1_000_000,
                                **msgspec.to_builtins(record.payload.decision),
                            }
                        )
            return out

        decisions = await asyncio.to_thread(placements)
        return {"task_id": task_id, "state": info.state, "decisions": decisions, "waiting_for": self._waiting_for(info)}

    def _waiting_for(self, info: TaskInfo) -> dict[str, str]:
        """Why a queued task waits, per pool of its group."""
        if info.state != "queued":
            return {}
        head = self._journal.head
        state = head.tasks.live.get(info.task_id)
        out: dict[str, str] = {}
        for pool in head.pools.serving(state.admitted.group) if state is not None else ():
            name = pool.declared.pool_id
            if not pool.ready:
                out[name] = f"not ready: {pool.cause} {pool.detail}".strip()
            elif head.leases.count(name) >= pool.slots:
                out[name] = f"all {pool.slots} slots are taken"
            else:
                out[name] = "excluded by the task's placement or determinism settings"
        return out

    # --- many tasks ------------------------------------------------------------------------------------------

    async def page(
        self,
        caller: Caller,
        *,
        state: str = "",
        model_ref: str = "",
        session_id: str = "",
        before: str = "",
        limit: int = 100,
    ) -> tuple[list[TaskInfo], str]:
        """Tasks, newest first, and the cursor of the next page ("" at the end)."""
        head = self._journal.head
        before_no = int(before) if before else 0
        chosen: list[TaskState] = []
        leaving = sorted(self._journal.leaving.values(), key=_newest_first)
        # Tasks are in head in the order of their numbers.
        for one in heapq.merge(reversed(head.tasks.by_no.values()), leaving, key=_newest_first):
            if before_no and one.task_no >= before_no:
                continue
            if one.admitted.owner != caller.owner or (model_ref and one.admitted.model_ref != model_ref):
                continue
            if session_id and one.admitted.session_id != session_id:
                continue
            if not state or state == (one.phase if one.ended is None else one.ended.outcome):
                chosen.append(one)
            if len(chosen) >= limit:
                break
        await self._wait_for(chosen)
        found = [(one.task_no, self._info(one, None)) for one in chosen]
        rows: list[IndexRow] = []
        if state not in ("queued", "placed", "running"):
            wanted = IndexFilter(
                owner=caller.owner,
                state=state,
                model_ref=model_ref,
                session_id=session_id,
                before_no=before_no,
                limit=limit,
            )
            rows = await asyncio.to_thread(self._journal.store.index_page, wanted)
        known = {no for no, _ in found}
        for row in rows:
            if row.task_no not in known:
                found.append((row.task_no, await self._ended_info(row, text=False)))
        found.sort(key=lambda pair: -pair[0])
        page = found[:limit]
        return [info for _, info in page], str(page[-1][0]) if len(found) > limit or len(page) == limit else ""

    def queue(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The queues of all groups: depth per priority, and the first tasks with position and estimate."""
        head = self._journal.head
        now = self._journal.now_ns()
        out = []
        for group, queue in sorted(head.queue.groups.items()):
            pools = head.pools.serving(group)
            first = list(itertools.islice(head.queue.waiting(group), limit))
            starts = self._estimator.starts_ms(head, group, [priority for _, priority in first], now)
            entries = [
                {
                    "task_id": task_id,
                    "position": position,
                    "priority": priority,
                    "waited_ms": (now - head.tasks.live[task_id].admitted_ns) // 1_000_000,
                    "predicted_start_ms": start_ms,
                }
                for position, ((task_id, priority), start_ms) in enumerate(zip(first, starts, strict=True))
            ]
            out.append(
                {
                    "group": group,
                    "depth": {"interactive": len(queue.interactive), "batch": len(queue.batch)},
                    "capacity": sum(p.declared.queue_capacity for p in pools),
                    "tasks": entries,
                }
            )
        return out
