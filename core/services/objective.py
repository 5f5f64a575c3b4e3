"""The latency objective: while interactive tasks wait too long for their first token, batch tasks are refused (ADM-7).

Missed means: of the interactive tasks that ended their wait within the window, the 95th percentile was above the objective,
and has been for ``breach_ms``. It ends when the percentile is below the objective by a margin, or when nobody waits any
more, so that shedding does not flicker.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from typing import Final

from ..errors import BackpressureError
from ..events.task import TaskEnded
from ..journal.journal import Journal
from ..projections.projection import Recorded
from ..settings import ObjectiveSettings
from ..types import TaskRequest
from .caller import Caller

_NS_PER_MS: Final = 1_000_000
_PERCENTILE: Final = 0.95
#: what the answer to a refused task says of why
LABEL: Final = "shed-batch"
#: samples that are kept at most; under more load the window is shorter
_MOST_SAMPLES: Final = 20_000
_LEAST_WAIT_MS: Final = 1_000


class Objective:
    """First-token times of a window against an objective. No clock of its own."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self._settings = settings
        self._samples: deque[tuple[int, int]] = deque()
        self._sorted: list[int] = []
        self._missed_since_ns = 0
        self.shedding = False

    def note(self, first_token_ms: int, now_ns: int) -> None:
        """An interactive task had its first token so long after its admission, or waited so long in vain."""
        self._samples.append((now_ns, first_token_ms))
        bisect.insort(self._sorted, first_token_ms)
        if len(self._samples) > _MOST_SAMPLES:
            self._drop()
        self.look(now_ns)

    def _drop(self) -> None:
        _, value = self._samples.popleft()
        del self._sorted[bisect.bisect_left(self._sorted, value)]

    def p95_ms(self, now_ns: int) -> int | None:
        """The percentile of the window; ``None`` = too few tasks to tell."""
        oldest = now_ns - self._settings.window_ms * _NS_PER_MS
        while self._samples and self._samples[0][0] < oldest:
            self._drop()
        if len(self._sorted) < self._settings.samples:
            return None
        return self._sorted[min(len(self._sorted) - 1, int(len(self._sorted) * _PERCENTILE))]

    def look(self, now_ns: int) -> bool:
        """Whether batch tasks are to be refused now."""
        settings = self._settings
        p95 = self.p95_ms(now_ns)
        if self.shedding:
            kept_ms = settings.first_token_p95_ms * settings.recover_permille // 1000
            if p95 is None or p95 <= kept_ms:
                self.shedding, self._missed_since_ns = False, 0
        elif p95 is None or p95 <= settings.first_token_p95_ms:
            self._missed_since_ns = 0
        else:
            self._missed_since_ns = self._missed_since_ns or now_ns
            self.shedding = now_ns - self._missed_since_ns >= settings.breach_ms * _NS_PER_MS
        return self.shedding


class LoadShedding:
    """Refuses batch tasks while the objective is missed; an :class:`~.admission.AdmissionCheck`."""

    def __init__(self, journal: Journal, settings: ObjectiveSettings) -> None:
        self._journal = journal
        self._settings = settings
        self.objective = Objective(settings)
        if settings.first_token_p95_ms:
            journal.on_committed(self.observe)

    def refuse(self, request: TaskRequest, caller: Caller, now_ns: int) -> None:
        """:raises BackpressureError: it is a batch task, and interactive ones wait too long."""
        settings = self._settings
        if not settings.first_token_p95_ms or request.priority != "batch" or not self.objective.look(now_ns):
            return
        p95 = self.objective.p95_ms(now_ns)
        msg = (
            f"batch tasks are refused for now: 95 of 100 interactive tasks shall have their first token within "
            f"{settings.first_token_p95_ms} ms, and have it within {p95} ms"
        )
        wait_ms = max(_LEAST_WAIT_MS, settings.window_ms // 4)
        raise BackpressureError(msg, field="priority", got="batch", retry_after_ms=wait_ms, policy_label=LABEL)

    def events(self, request: TaskRequest, caller: Caller, prompt_tokens: int, now_ns: int) -> list[object]:
        """See :class:`~.admission.AdmissionCheck`; all is said in :meth:`refuse`."""
        return []

    def observe(self, records: Sequence[Recorded]) -> None:
        """Learn from interactive tasks that ended."""
        for record in records:
            if type(record.payload) is TaskEnded:
                state = self._journal.task(record.payload.task_id)
                if state is not None and state.admitted.priority == "interactive":
                    # By the journal's own times: not every engine tells how long it took to its first token.
                    heard_ns = state.first_entry_ns or record.time_ns
                    self.objective.note((heard_ns - state.admitted_ns) // _NS_PER_MS, record.time_ns)
