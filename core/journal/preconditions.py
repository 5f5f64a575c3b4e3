"""Which events may follow which: checked before a batch is applied, so that a batch is all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConflictError
from ..events.budget import BudgetRemoved, BudgetReserved, BudgetRolled, BudgetSet
from ..events.lease import LeaseGranted, LeaseReleased
from ..events.task import (
    TaskAdmitted,
    TaskAttemptFailed,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskStarted,
    TaskTranscribed,
)
from ..projections.head import Head
from ..types import TaskPhase
from .budget_rules import BudgetRules


def check(head: Head, payloads: Sequence[object]) -> None:
    """Refuse a batch that contradicts head. :raises ConflictError: names the event and why."""
    phases: dict[str, tuple[str, int]] = {}
    granted: set[tuple[str, int]] = set()
    released: set[str] = set()
    books: BudgetRules | None = None

    def standing(task_id: str) -> tuple[str, int]:
        known = phases.get(task_id)
        if known is None:
            state = head.tasks.get(task_id)
            if state is None:
                return ("absent", 0)
            known = ("ended" if state.ended is not None else state.phase, state.attempt)
        return known

    for payload in payloads:
        if isinstance(payload, LeaseGranted):
            key = (payload.pool_id, payload.slot)
            if key in granted or payload.slot in head.leases.slots.get(payload.pool_id, {}):
                raise _refusal(payload, f"slot {payload.slot} is taken")
            granted.add(key)
        elif isinstance(payload, LeaseReleased):
            if payload.lease_id not in head.leases.by_id or payload.lease_id in released:
                raise _refusal(payload, f"lease {payload.lease_id} is not held")
            released.add(payload.lease_id)
        elif isinstance(payload, TaskAdmitted):
            if standing(payload.task_id)[0] != "absent":
                raise _refusal(payload, "the task exists")
            phases[payload.task_id] = (TaskPhase.QUEUED, 0)
        elif isinstance(
            payload, (TaskPlaced, TaskStarted, TaskAttemptFailed, TaskCancelled, TaskEnded, TaskTranscribed)
        ):
            phases[payload.task_id] = _after(payload, *standing(payload.task_id))
            if isinstance(payload, TaskEnded) and (books or payload.charge or payload.task_id in head.budgets.holds):
                books = books or BudgetRules(head.budgets)
                _require(payload, books.ended(payload))
        elif isinstance(payload, BudgetReserved):
            books = books or BudgetRules(head.budgets)
            _require(payload, books.reserved(payload, standing(payload.task_id)[0]))
        elif isinstance(payload, (BudgetSet, BudgetRemoved, BudgetRolled)):
            books = books or BudgetRules(head.budgets)
            _require(payload, _counted(books, payload))


def _counted(books: BudgetRules, payload: BudgetSet | BudgetRemoved | BudgetRolled) -> str:
    if isinstance(payload, BudgetSet):
        return books.set(payload)
    return books.removed(payload) if isinstance(payload, BudgetRemoved) else books.rolled(payload)


def _require(payload: object, why_not: str) -> None:
    if why_not:
        raise _refusal(payload, why_not)


def _after(
    payload: TaskPlaced | TaskStarted | TaskAttemptFailed | TaskCancelled | TaskEnded | TaskTranscribed,
    phase: str,
    attempt: int,
) -> tuple[str, int]:
    """Phase and attempt after one event of a task."""
    if isinstance(payload, TaskTranscribed):
        if phase != "ended":
            raise _refusal(payload, f"the task is {phase}")
        return ("absent", 0)
    if phase in ("absent", "ended"):
        raise _refusal(payload, f"the task is {phase}")
    if isinstance(payload, TaskPlaced):
        if phase != TaskPhase.QUEUED or payload.attempt != attempt + 1:
            raise _refusal(payload, f"the task is {phase}, attempt {attempt}")
        return (TaskPhase.PLACED, payload.attempt)
    if isinstance(payload, TaskStarted):
        if phase != TaskPhase.PLACED or payload.attempt != attempt:
            raise _refusal(payload, f"the task is {phase}, attempt {attempt}")
        return (TaskPhase.RUNNING, attempt)
    if isinstance(payload, TaskAttemptFailed):
        if phase == TaskPhase.QUEUED or payload.attempt != attempt:
            raise _refusal(payload, f"the task is {phase}, attempt {attempt}")
        return (TaskPhase.QUEUED, attempt)
    if isinstance(payload, TaskEnded):
        return ("ended", attempt)
    return (phase, attempt)


def _refusal(payload: object, why: str) -> ConflictError:
    return ConflictError(
        f"{type(payload).__name__} cannot be appended: {why}", remedy="Look at the task's state and try again."
    )
