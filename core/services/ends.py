"""How tasks end: the terminal with all totals, and what an attempt's failure means for its task."""

from __future__ import annotations

from ..engine_ports import AttemptEnd, AttemptFailure
from ..errors import ContextExceededError, InvalidParamsError, OrchError, WorkerResetError
from ..events.task import TaskAttemptFailed, TaskEnded
from ..projections.head import Head
from ..projections.tasks import TaskState
from ..types import Amount
from .price_list import charge_of


def end_of(
    head: Head,
    state: TaskState,
    now_ns: int,
    outcome: str,
    finish_reason: str,
    *,
    end: AttemptEnd | None = None,
    error: OrchError | None = None,
    code: str = "",
    message: str = "",
    retriable: bool = False,
    recovery_used: str = "",
    result_id: str = "",
    hold: Amount | None = None,
) -> TaskEnded:
    """The terminal of a task, with all totals, and what its budgets are charged.

    :param hold: what is reserved for it, if events that go before this one change that.
    """
    decode_ms = end.decode_us // 1000 if end is not None else 0
    if not decode_ms and state.first_entry_ns:
        decode_ms = max(0, state.entry_ns - state.first_entry_ns) // 1_000_000
    prompt_tokens, cached_tokens = prompt_of(state, end, recovery_used)
    return TaskEnded(
        task_id=state.task_id,
        outcome=outcome,
        finish_reason=finish_reason,
        finish_reasons=list(end.finish_reasons) if end is not None and state.admitted.n > 1 else [],
        stop_sequence=end.stop_sequence.encode(errors="replace").decode() if end is not None else "",
        entries=state.entries,
        tokens_out=state.tokens_out,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        queue_ms=((state.placed_ns or now_ns) - state.admitted_ns) // 1_000_000,
        prefill_ms=end.prefill_us // 1000 if end is not None else 0,
        decode_ms=decode_ms,
        attempts=state.attempt,
        code=error.code if error is not None else code,
        message=(error.message if error is not None else message)[:1000],
        retriable=error.retriable if error is not None else retriable,
        recovery_used=recovery_used,
        result_id=result_id,
        charge=charge_of(head, state, prompt_tokens, cached_tokens, hold),
    )


def prompt_of(state: TaskState, end: AttemptEnd | None, recovery_used: str = "") -> tuple[int, int]:
    """Tokens of a task's prompt, and how many of them were cached, by its engine's count.

    An attempt that continued counted what was said before it with the prompt: then the first attempt's count holds.
    """
    started = state.started
    told = (started.prompt_tokens, started.cached_tokens) if started is not None else (0, 0)
    if end is None or (recovery_used == "continue" and told[0]):
        return told
    return end.prompt_tokens or told[0], end.cached_tokens or (told[1] if not end.prompt_tokens else 0)


def after_failure(
    head: Head, state: TaskState, attempt_no: int, failure: AttemptFailure, max_attempts: int, now_ns: int
) -> TaskAttemptFailed | TaskEnded:
    """What an attempt's failure means for its task: another attempt, or the end."""
    pool_id, said = state.pool_id, failure.message.encode(errors="replace").decode()
    if not failure.retriable:
        return end_of(head, state, now_ns, "failed", "error", error=_refusal(failure.kind, said, pool_id))
    interrupted = state.entries and state.admitted.recovery == "none"
    if state.failures + 1 >= max_attempts or interrupted:
        code = "INTERRUPTED" if interrupted else "WORKER_RESET"
        message = f"{failure.kind}: {said} (attempt {state.failures + 1} of {max_attempts})"
        return end_of(head, state, now_ns, "failed", "error", code=code, message=message, retriable=True)
    return TaskAttemptFailed(
        task_id=state.task_id, attempt=attempt_no, pool_id=pool_id, code=failure.kind, message=said[:500]
    )


def _refusal(kind: str, message: str, pool_id: str) -> OrchError:
    """The error behind a failure that another attempt cannot mend."""
    if kind == "context":
        return ContextExceededError(message, pool_id=pool_id)
    if kind == "invalid":
        return InvalidParamsError(message, pool_id=pool_id)
    return WorkerResetError(f"{kind}: {message}", pool_id=pool_id)
