"""Rates per key: requests and tokens per minute, checked before the queue (ADM-7).

A token bucket holds what a minute allows and fills evenly. A request takes one from the first bucket, and the tokens of its
prompt from the second. What its answer takes is known when it ends and is taken then, so that the bucket may go below
nothing: the next request waits for it. Buckets live in memory and are full after a start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from ..errors import RateLimitedError
from ..events.task import TaskAdmitted, TaskEnded
from ..journal.journal import Journal
from ..projections.projection import Recorded
from ..types import TaskRequest
from .caller import Caller

_MINUTE_NS: Final = 60_000_000_000
#: of a prompt that nobody counted yet, only its bytes are known; what it really had is put right at the end
_BYTES_PER_TOKEN: Final = 4
#: what the answer to a refused request says of why
LABEL: Final = "rate-limit"
#: buckets of keys that are full again are forgotten from so many on
_MOST_BUCKETS: Final = 4096


class Bucket(msgspec.Struct):
    """A token bucket: ``level`` is what is in it, at ``at_ns``; both move with each look."""

    per_minute: int
    level: float
    at_ns: int

    def fill(self, per_minute: int, now_ns: int) -> float:
        """What is in it now; a rate that was changed counts from now."""
        if per_minute != self.per_minute:
            # What was used stays used, so that changing a limit forgives nothing.
            self.level += per_minute - self.per_minute
            self.per_minute = per_minute
        if now_ns > self.at_ns:
            self.level += (now_ns - self.at_ns) * self.per_minute / _MINUTE_NS
            self.at_ns = now_ns
        self.level = min(self.level, float(self.per_minute))
        return self.level

    def wait_ms(self, amount: float) -> int:
        """How long until so much is in it; more than it holds is taken when it is full."""
        missing = min(amount, float(self.per_minute)) - self.level
        return max(0, math.ceil(missing * 60_000 / self.per_minute))


class Meter(msgspec.Struct, frozen=True):
    """Where a key stands with one of its limits."""

    #: "requests" | "tokens"
    what: str
    limit: int
    remaining: int
    #: until the whole limit is there again
    reset_ms: int


class RateLimits:
    """Keeps the rates of callers that have some; an :class:`~.admission.AdmissionCheck`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._buckets: dict[tuple[str, str], Bucket] = {}
        #: rates of callers whose tasks' ends count, by owner
        self._rates: dict[str, int] = {}
        #: owner, and what was taken at admission, by task
        self._running: dict[str, tuple[str, int]] = {}
        journal.on_committed(self.observe)
        journal.on_rebuilt(self._running.clear)

    def refuse(self, request: TaskRequest, caller: Caller, now_ns: int) -> None:
        """Take one request out of the caller's bucket.

        :raises ForbiddenError: the key is for batch tasks only.
        :raises RateLimitedError: one of its buckets has not enough, and when it will have.
        """
        caller.require_priority(request.priority)
        if not caller.limited:
            return
        # Debt of earlier answers has to be paid off before more work is begun.
        limits = {"tokens": caller.tokens_per_minute, "requests": caller.requests_per_minute}
        buckets = {what: self._bucket(caller.owner, what, most, now_ns) for what, most in limits.items() if most}
        # Whoever is told the shorter wait of two would be refused again at its end.
        wait_ms, what = max((bucket.wait_ms(1), what) for what, bucket in buckets.items())
        if wait_ms:
            raise self._refusal(what, limits[what], wait_ms)
        if "requests" in buckets:
            buckets["requests"].level -= 1

    def events(self, request: TaskRequest, caller: Caller, prompt_tokens: int, now_ns: int) -> list[object]:
        """Take the prompt's tokens; nothing is journaled. :raises RateLimitedError: there are not so many."""
        if caller.tokens_per_minute:
            bucket = self._bucket(caller.owner, "tokens", caller.tokens_per_minute, now_ns)
            wanted = _taken(prompt_tokens, counted=request.prompt_ids is not None)
            wait_ms = bucket.wait_ms(wanted)
            if wait_ms:
                raise self._refusal("tokens", caller.tokens_per_minute, wait_ms)
            bucket.level -= wanted
            self._rates[caller.owner] = caller.tokens_per_minute
        return []

    @staticmethod
    def _refusal(what: str, per_minute: int, wait_ms: int) -> RateLimitedError:
        msg = f"this key has used its {per_minute} {what} per minute"
        return RateLimitedError(
            msg, field=f"{what}_per_minute", got=per_minute, retry_after_ms=wait_ms, policy_label=LABEL
        )

    def observe(self, records: Sequence[Recorded]) -> None:
        """Take what answers had, and put right what was guessed of their prompts."""
        if not self._rates:
            return
        for record in records:
            payload = record.payload
            kind = type(payload)
            if kind is TaskAdmitted:
                if payload.owner in self._rates:
                    taken = _taken(payload.prompt_tokens, counted="prompt_ids" in payload.needs)
                    self._running[payload.task_id] = (payload.owner, taken)
            elif kind is TaskEnded and payload.task_id in self._running:
                self._settle(payload, record.time_ns)

    def _settle(self, ended: TaskEnded, now_ns: int) -> None:
        owner, taken = self._running.pop(ended.task_id)
        bucket = self._bucket(owner, "tokens", self._rates[owner], now_ns)
        prompt = ended.prompt_tokens or (taken if ended.attempts else 0)
        bucket.level = min(float(bucket.per_minute), bucket.level + taken - prompt - ended.tokens_out)

    def _bucket(self, owner: str, what: str, per_minute: int, now_ns: int) -> Bucket:
        bucket = self._buckets.get((owner, what))
        if bucket is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._forget(now_ns)
            bucket = self._buckets[(owner, what)] = Bucket(per_minute, float(per_minute), now_ns)
        bucket.fill(per_minute, now_ns)
        return bucket

    def _forget(self, now_ns: int) -> None:
        busy = {owner for owner, _ in self._running.values()}
        for (owner, what), bucket in list(self._buckets.items()):
            if owner not in busy and bucket.fill(bucket.per_minute, now_ns) >= bucket.per_minute:
                del self._buckets[(owner, what)]
                if what == "tokens":
                    self._rates.pop(owner, None)

    def meters(self, caller: Caller) -> list[Meter]:
        """Where a caller stands; empty when it has no limits."""
        now_ns = self._journal.now_ns()
        out = []
        for what, per_minute in (("requests", caller.requests_per_minute), ("tokens", caller.tokens_per_minute)):
            if per_minute:
                bucket = self._bucket(caller.owner, what, per_minute, now_ns)
                remaining = max(0, math.floor(bucket.level))
                out.append(Meter(what, per_minute, remaining, bucket.wait_ms(per_minute)))
        return out


def _taken(prompt_tokens: int, *, counted: bool) -> int:
    """What a prompt takes at its admission: what token ids come to is known, of others it is guessed."""
    return prompt_tokens if counted else max(1, prompt_tokens // _BYTES_PER_TOKEN)
