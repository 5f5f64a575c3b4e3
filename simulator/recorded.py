"""A trace of what a journal recorded: when each task came, how long it was, what followed in its session (DET-4)."""

from __future__ import annotations

from typing import Literal, cast

from msgspec import Struct

from ..core.events.task import TaskAdmitted, TaskEnded, TaskStarted
from ..core.journal.replay import records_of
from ..core.ports import JournalStore
from .engine import TOKEN_CHARS
from .trace import TraceError, TraceTask


class _Seen(Struct):
    admitted: TaskAdmitted
    admitted_ns: int
    prompt_tokens: int = 0
    output_tokens: int = 0


def trace_of(store: JournalStore) -> list[TraceTask]:
    """The tasks of a journal that said something, in the order in which they came.

    Arrivals are at their recorded times. A task that came after the end of another one of its session still comes then,
    whatever the simulation makes of that end. Prompts whose tokens no engine counted are taken by their length.

    Raises:
        TraceError: the journal holds no task that said anything.
    """
    seen: dict[str, _Seen] = {}
    for frame_no, epoch, first_seq, _, facts in store.facts(1):
        for record in records_of(frame_no, epoch, first_seq, facts) if facts else ():
            event: object = record.payload
            if isinstance(event, TaskAdmitted):
                seen[event.task_id] = _Seen(event, record.time_ns)
            elif isinstance(event, TaskStarted) and event.task_id in seen:
                seen[event.task_id].prompt_tokens = event.prompt_tokens
            elif isinstance(event, TaskEnded) and event.task_id in seen:
                task = seen[event.task_id]
                task.prompt_tokens = event.prompt_tokens or task.prompt_tokens
                task.output_tokens = event.tokens_out
    tasks: list[TraceTask] = []
    first_ns = min((task.admitted_ns for task in seen.values() if task.output_tokens), default=0)
    #: tokens that each session's last turn left behind
    behind: dict[str, int] = {}
    for task in seen.values():
        if not task.output_tokens:
            continue
        admitted = task.admitted
        prompt = task.prompt_tokens or max(1, admitted.prompt_tokens // TOKEN_CHARS)
        tasks.append(
            TraceTask(
                n=len(tasks),
                at_ms=(task.admitted_ns - first_ns) // 1_000_000,
                model=admitted.group,
                prompt_tokens=prompt,
                output_tokens=task.output_tokens,
                max_tokens=admitted.max_tokens,
                priority=cast("Literal['interactive', 'batch']", admitted.priority),
                session=admitted.session_id,
                shared_tokens=min(prompt, behind.get(admitted.session_id, 0)),
            )
        )
        if admitted.session_id:
            behind[admitted.session_id] = prompt + task.output_tokens
    if not tasks:
        msg = "the journal holds no task that said anything"
        raise TraceError(msg)
    return tasks
