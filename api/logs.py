"""JSON-line logs: what the journal committed, and what programs say through :mod:`logging` (OBS-2).

A line has the fields that apply and ``human``, one plain sentence. Prompts and answers are never logged; what looks like a
secret is blotted out, by its key and by its shape. Lines are written in batches, so that a task costs no system call.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TextIO

import msgspec

from ..core.events.response import ResponseDeleted
from ..core.events.server import ServerStarted, ServerStopped
from ..core.events.task import (
    TaskAdmitted,
    TaskAttemptFailed,
    TaskCancelled,
    TaskEnded,
    TaskPlaced,
    TaskRejected,
    TaskStarted,
)
from ..core.projections.projection import Recorded
from .log_clients import SENTENCES as CLIENT_SENTENCES
from .log_keys import SENTENCES as KEY_SENTENCES
from .log_pools import SENTENCES, WARNINGS
from .redact import redact, redact_text

_encode = msgspec.json.Encoder().encode
#: how long a line may wait for others, seconds
BATCH_S = 0.05
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Fields = dict[str, Any]


def _run_of(started: TaskStarted) -> Fields:
    """Where and with what a task runs."""
    return {
        "engine": started.engine,
        "engine_version": started.engine_version,
        "sampler_profile_version": started.sampler_profile_version,
        "pool_id": started.pool_id,
        "replica_id": started.replica_id,
        "model_digest": started.model_digest,
    }


class LineWriter:
    """Writes lines in batches.

    :param later: schedules the next write; without it each line is written at once.
    """

    def __init__(self, stream: TextIO, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        self._stream = stream
        self._later = later
        self._lines: list[str] = []
        self._scheduled = False

    def write(self, line: str) -> None:
        """Add a line (without its end)."""
        self._lines.append(line)
        if self._later is None:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._later(BATCH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        self._scheduled = False
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # nobody reads the log any more; the server goes on


class EventLog:
    """Log lines of committed events.

    :param level: least severity that is written: debug, info, warning, error.
    :param form: ``json`` lines, or ``human`` sentences for a terminal.
    """

    def __init__(self, writer: LineWriter, *, level: str = "info", form: Literal["json", "human"] = "json") -> None:
        self._writer = writer
        self._level = LEVELS[level]
        self._form = form
        self._journal: Any = None
        #: fields of tasks that have not ended
        self._tasks: dict[str, Fields] = {}
        self._of_group: dict[str, Fields] = {}
        self._said: dict[type, Callable[[Recorded], tuple[str, Fields, str]]] = {
            TaskAdmitted: self._admitted,
            TaskRejected: self._rejected,
            TaskPlaced: self._placed,
            TaskStarted: self._started,
            TaskAttemptFailed: self._attempt_failed,
            TaskCancelled: self._cancelled,
            TaskEnded: self._ended,
            ResponseDeleted: self._response_deleted,
            **SENTENCES,
            **CLIENT_SENTENCES,
            **KEY_SENTENCES,
            ServerStarted: self._server_started,
            ServerStopped: self._server_stopped,
        }
        if self._level > LEVELS["info"]:
            # Nothing but these can be a warning; composing the others would cost each task for nothing.
            kept = (TaskRejected, TaskAttemptFailed, TaskEnded, *WARNINGS)
            self._said = {kind: say for kind, say in self._said.items() if kind in kept}

    def subscribe(self, journal: Any) -> None:
        """Log what a journal commits from here on."""
        self._journal = journal
        journal.on_committed(self.observe)

    def observe(self, records: Sequence[Recorded]) -> None:
        """Log committed events."""
        for record in records:
            say = self._said.get(type(record.payload))
            if say is None:
                continue
            level, fields, human = say(record)
            if LEVELS[level] < self._level:
                continue
            if record.correlation:
                fields["correlation_id"] = record.correlation
            fields["actor"] = record.actor
            self.line(record.time_ns, level, record.name, fields, human)

    def flush(self) -> None:
        """Write lines that still wait for others."""
        self._writer.flush()

    def line(self, time_ns: int, level: str, event: str, fields: Fields, human: str) -> None:
        """Write one line."""
        if self._form == "human":
            moment = time.strftime("%H:%M:%S", time.localtime(time_ns // 1_000_000_000))
            self._writer.write(f"{moment} {level:<7} {redact_text(human)}")
            return
        whole = {"time_ns": str(time_ns), "level": level, "event": event, **fields, "human": human}
        self._writer.write(redact_text(_encode(whole).decode()))

    # --- tasks -----------------------------------------------------------------------------------------------

    def _task(self, task_id: str) -> Fields:
        """What is known of a task (session, model, where it runs), also of one from before this process."""
        known = self._tasks.get(task_id)
        if known is not None:
            return {"task_id": task_id, **known}
        fields: Fields = {"task_id": task_id}
        state = self._journal.head.tasks.get(task_id) if self._journal is not None else None
        if state is not None:
            fields["model_id"] = state.admitted.group
            if state.admitted.session_id:
                fields["session_id"] = state.admitted.session_id
            if state.started is not None:
                fields |= _run_of(state.started)
        return fields

    def _admitted(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskAdmitted = record.payload
        # Waiting tasks without a session share one dictionary: there may be a hundred thousand of them.
        known = self._of_group.setdefault(event.group, {"model_id": event.group})
        if event.session_id:
            known = known | {"session_id": event.session_id}
        self._tasks[event.task_id] = known
        fields = (
            {"task_id": event.task_id}
            | known
            | {
                "priority": event.priority,
                "queue_position": event.queue_position,
                "predicted_start_ms": event.predicted_start_ms,
            }
        )
        human = (
            f"Task {event.task_id} for {event.model_ref} was accepted with {event.queue_position} tasks before it"
            f" and should start in {event.predicted_start_ms} ms."
        )
        return "info", fields, human

    def _rejected(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskRejected = record.payload
        fields = {"task_id": event.task_id, "model_id": event.model_ref, "code": event.code}
        return (
            "warning",
            fields,
            f"A task for {event.model_ref} was refused ({event.code}): {event.reason.rstrip('.')}.",
        )

    def _placed(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskPlaced = record.payload
        decision = event.decision
        fields = self._task(event.task_id) | {
            "pool_id": event.pool_id,
            "replica_id": event.replica_id,
            "attempt": event.attempt,
            **msgspec.to_builtins(decision),
        }
        reason = decision.decision_reason.rstrip(".")
        return "info", fields, f"Task {event.task_id} goes to pool {event.pool_id}: {reason}."

    def _started(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskStarted = record.payload
        known = self._task(event.task_id) | _run_of(event)
        self._tasks[event.task_id] = known
        fields = known | {
            "queue_time_ms": event.queue_time_ms,
            "tokens_in": event.prompt_tokens,
            "kv_warmth": event.cache_prompt,
        }
        pool = self._journal.head.pools.by_id.get(event.pool_id) if self._journal is not None else None
        if pool is not None and pool.observed is not None:
            fields["ctx"] = pool.observed.ctx
        again = f" ({event.recovery_used})" if event.recovery_used else ""
        human = f"Task {event.task_id} started on pool {event.pool_id} after {event.queue_time_ms} ms{again}."
        return "info", fields, human

    def _attempt_failed(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskAttemptFailed = record.payload
        fields = self._task(event.task_id) | {"pool_id": event.pool_id, "attempt": event.attempt, "code": event.code}
        return (
            "warning",
            fields,
            f"Attempt {event.attempt} of task {event.task_id} broke off: {event.message.rstrip('.')}.",
        )

    @staticmethod
    def _response_deleted(record: Recorded) -> tuple[str, Fields, str]:
        task_id = record.payload.task_id
        return (
            "info",
            {"task_id": task_id},
            f"The stored response of task {task_id} was deleted; the journal keeps the task.",
        )

    def _cancelled(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskCancelled = record.payload
        fields = self._task(event.task_id) | {"reason": event.reason}
        return "info", fields, f"Task {event.task_id} was cancelled ({event.reason})."

    def _ended(self, record: Recorded) -> tuple[str, Fields, str]:
        event: TaskEnded = record.payload
        if event.outcome != "failed" and self._level > LEVELS["info"]:
            return "info", {}, ""
        fields = self._task(event.task_id) | {
            "outcome": event.outcome,
            "finish_reason": event.finish_reason,
            "tokens_in": event.prompt_tokens,
            "tokens_out": event.tokens_out,
            "queue_time_ms": event.queue_ms,
            "decode_ms": event.decode_ms,
        }
        if event.outcome == "failed":
            fields["code"] = event.code
        self._tasks.pop(event.task_id, None)
        if event.outcome == "failed":
            return "warning", fields, f"Task {event.task_id} failed ({event.code}): {event.message.rstrip('.')}."
        human = f"Task {event.task_id} {event.outcome} with {event.tokens_out} tokens in {event.decode_ms} ms."
        return "info", fields, human

    # --- server ------------------------------------------------------------------------------------------

    @staticmethod
    def _server_started(record: Recorded) -> tuple[str, Fields, str]:
        event: ServerStarted = record.payload
        return "info", {"epoch": event.epoch}, f"The server has the journal, epoch {event.epoch} ({event.cause})."

    @staticmethod
    def _server_stopped(record: Recorded) -> tuple[str, Fields, str]:
        event: ServerStopped = record.payload
        return "info", {"epoch": event.epoch}, "The server stopped in good order."


#: attributes of every log record, which are not fields of the line
_PLAIN_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LogHandler(logging.Handler):
    """Writes records of :mod:`logging` as lines of the same log."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a traceback goes into the field ``traceback``."""
        try:
            fields = {k: v for k, v in vars(record).items() if k not in _PLAIN_RECORD and isinstance(v, (str, int))}
            fields = redact(fields)
            if record.exc_info and record.exc_info[1] is not None:
                fields["traceback"] = logging.Formatter().formatException(record.exc_info)
            level = next(name for name, least in reversed(LEVELS.items()) if record.levelno >= least or least == 10)
            self._log.line(int(record.created * 1e9), level, record.name, fields, record.getMessage())
        except Exception:
            self.handleError(record)


def start_logging(
    level: str,
    form: Literal["json", "human"],
    stream: TextIO | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> EventLog:
    """Set the process's logging up: everything goes to standard error as lines of one kind.

    :param loop: batches lines on this loop; without it each is written at once.
    """
    writer = LineWriter(stream or sys.stderr, None if loop is None else loop.call_later)
    log = EventLog(writer, level=level, form=form)
    root = logging.getLogger()
    root.handlers[:] = [LogHandler(log)]
    root.setLevel(LEVELS[level])
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(max(LEVELS[level], logging.WARNING))
    return log
