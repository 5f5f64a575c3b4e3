"""Whole lives of a server: tasks, readers, cancels, faults and crashes in all orders.

A machine drives the journal and all services on a stage. Engines say what the machine lets them say; commits and
syncs happen when it says so; the process dies when it says so. What must hold is looked at in the journal (order, one
end per task, leases, chain, every way to the state) and in each reader's transcript over all its connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llama_orch.core.errors import OrchError
from llama_orch.core.events.lease import LeaseReleased
from llama_orch.core.events.task import TaskAdmitted, TaskAttemptFailed, TaskEnded, TaskPlaced
from llama_orch.core.services.admission import Admission
from llama_orch.core.types import ChatMessage

from ..support.engine import ScriptedAttempt
from ..support.examples import search
from ..support.reader import Reader
from ..support.stage import Stage, settings_for

ALPHABET = "abcdefghijklmnopqrstuvwxyzäöü0123456789"
_index = st.integers(0, 50)
_recovery = st.sampled_from(["continue", "continue", "strict", "none"])
_sizes = st.lists(st.integers(0, 3), max_size=4)


class Lives(RuleBasedStateMachine):
    """One disk, many lives."""

    #: power may fail (what was not synced is gone then)
    power = False

    @initialize(
        by_hand=st.booleans(),
        slots=st.sampled_from([{"p": 1}, {"p": 2}, {"a": 1, "b": 2}]),
        policy=st.sampled_from(["reject", "drop-lru"]),
        buffer_bytes=st.sampled_from([1_000, 262_144]),
        window_s=st.sampled_from([0.0, 0.0, 0.004]),
        compact_from=st.sampled_from([1, 64]),
        recoveries=st.lists(_recovery, min_size=1, max_size=3),
    )
    def begin(
        self,
        by_hand: bool,
        slots: dict[str, int],
        policy: str,
        buffer_bytes: int,
        window_s: float,
        compact_from: int,
        recoveries: list[str],
    ) -> None:
        self.settings_ = settings_for(slots, capacity=4, full_policy=policy, max_attempts=4)
        self.stage = Stage(
            by_hand=by_hand, slots=slots, settings=self.settings_, buffer_bytes=buffer_bytes, window_s=window_s
        )
        self.compact_from = compact_from
        self.stage.services.transcripts.compact_from = compact_from
        self.stage.services.transcripts.rest_s = 0
        self.submissions: list[asyncio.Task[Admission]] = []
        #: tasks whose admission was acknowledged, and those whose end or cancel was
        self.accepted: dict[str, str] = {}
        self.settled: set[str] = set()
        self.cancels: list[tuple[str, asyncio.Task[None]]] = []
        self.cursor: dict[int, int] = {}
        self.lies: set[int] = set()
        self.readers: list[Reader] = []
        self.keys = 0
        for recovery in recoveries:
            self.submit("interactive", recovery, leaves=False, key=None)
        self.stage.settle()
        self.look()

    # --- clients -------------------------------------------------------------------------------------------------

    @rule(
        priority=st.sampled_from(["interactive", "batch"]),
        recovery=_recovery,
        leaves=st.booleans(),
        key=st.sampled_from([None, "k1", "k2"]),
        kind=st.sampled_from(["prompt", "prompt", "chat", "large"]),
    )
    def submit(self, priority: str, recovery: str, leaves: bool, key: str | None, kind: str = "prompt") -> None:
        """A client submits a task."""
        fields: dict[str, Any] = {"priority": priority, "recovery": recovery, "cancel_on_disconnect": leaves}
        if key is not None:
            fields = {}
        prompt = key or f"prompt {self.keys}"
        if key is None and kind == "large":
            prompt += "x" * 70_000
        elif key is None and kind == "chat":
            fields |= {"workload": "chat", "messages": [ChatMessage(role="user", content=prompt)]}
        self.keys += 1
        self.submissions.append(self.stage.loop.create_task(self.stage.submitting(prompt, key=key, **fields)))
        self.look()

    @precondition(lambda self: self.accepted)
    @rule(n=_index)
    def cancel(self, n: int) -> None:
        """A client cancels a task."""
        task_id = sorted(self.accepted)[n % len(self.accepted)]
        work = self.stage.services.cancel.cancel(task_id, _caller())
        self.cancels.append((task_id, self.stage.loop.create_task(work)))
        self.look()

    @precondition(lambda self: self.accepted and len(self.readers) < 6)
    @rule(n=_index, stalled=st.booleans(), attached=st.booleans(), fast=st.booleans())
    def read(self, n: int, stalled: bool, attached: bool, fast: bool) -> None:
        """A reader comes."""
        task_id = sorted(self.accepted)[n % len(self.accepted)]
        self.readers.append(self.stage.reader(task_id, stalled=stalled, attached=attached, fast=fast))
        self.look()

    @precondition(lambda self: self.readers)
    @rule(n=_index)
    def take(self, n: int) -> None:
        """A stalled reader takes something."""
        self.readers[n % len(self.readers)].take()
        self.look()

    @precondition(lambda self: any(r.connected for r in self.readers))
    @rule(n=_index)
    def leave(self, n: int) -> None:
        """A reader's connection breaks."""
        found = [r for r in self.readers if r.connected]
        found[n % len(found)].leave()
        self.look()

    @precondition(lambda self: self.away())
    @rule(n=_index)
    def come_back(self, n: int) -> None:
        """A reader comes back with the last id it saw."""
        found = self.away()
        found[n % len(found)].connect()
        self.look()

    def away(self) -> list[Reader]:
        """Readers that may come back."""
        return [r for r in self.readers if not r.connected and r.ended is None]

    # --- engines -------------------------------------------------------------------------------------------------

    def attempts(self) -> list[ScriptedAttempt]:
        """All attempts, in the order in which engines got them."""
        return [a for name in sorted(self.stage.engines) for a in self.stage.engines[name].attempts]

    def running(self) -> list[ScriptedAttempt]:
        """Attempts that can still do something."""
        return [a for a in self.attempts() if not a.cancelled and not a.over]

    def given_up(self) -> list[ScriptedAttempt]:
        """Attempts of which nothing more is wanted."""
        return [a for a in self.attempts() if a.cancelled or a.over]

    def busy(self) -> list[ScriptedAttempt]:
        """Attempts of which nothing more is wanted, but whose slot was not seen free."""
        return [a for a in self.given_up() if not a.slot_is_free]

    def piece(self, attempt: ScriptedAttempt, size: int) -> str:
        """What a deterministic engine says next to this prompt, unless it lies."""
        at = self.cursor.get(id(attempt), len(attempt.job.prefix))
        self.cursor[id(attempt)] = at + size
        text = "".join(ALPHABET[(at + n + attempt.job.seed) % len(ALPHABET)] for n in range(size))
        return text.upper() if id(attempt) in self.lies else text

    def progress(self, n: int, sizes: list[int], *, lies: bool) -> None:
        """An engine takes a job, if it has not, and says some pieces."""
        found = self.running()
        attempt = found[n % len(found)]
        if id(attempt) not in self.cursor and lies:
            self.lies.add(id(attempt))
        attempt.start()
        if sizes:
            attempt.say(*[self.piece(attempt, size) for size in sizes])
        self.look()

    @precondition(lambda self: self.running())
    @rule(n=_index, sizes=_sizes, lies=st.sampled_from([False] * 5 + [True]))
    def say(self, n: int, sizes: list[int], lies: bool) -> None:
        """An engine says something."""
        self.progress(n, sizes, lies=lies)

    @precondition(lambda self: self.running())
    @rule(n=_index, sizes=_sizes)
    def say_more(self, n: int, sizes: list[int]) -> None:
        """An engine says something, again: this happens more often than anything else."""
        self.progress(n, sizes, lies=False)
        self.stage.commit()
        self.look()

    @precondition(lambda self: self.running())
    @rule(n=_index)
    def end(self, n: int) -> None:
        """An engine finishes."""
        found = self.running()
        found[n % len(found)].end()
        self.look()

    @precondition(lambda self: self.running())
    @rule(n=_index, retriable=st.sampled_from([True, True, False]))
    def fail(self, n: int, retriable: bool) -> None:
        """An engine breaks off."""
        found = self.running()
        found[n % len(found)].fail("cut", retriable=retriable)
        self.look()

    @precondition(lambda self: self.given_up())
    @rule(n=_index, ends=st.booleans())
    def late(self, n: int, ends: bool) -> None:
        """Words of an attempt that was given up arrive late."""
        found = self.given_up()
        attempt = found[n % len(found)]
        attempt.late("LATE")
        if ends:
            attempt.late_end()
        self.look()

    @precondition(lambda self: self.busy())
    @rule(n=_index)
    def free(self, n: int) -> None:
        """A slot is seen free."""
        found = self.busy()
        found[n % len(found)].free()
        self.look()

    # --- the journal ---------------------------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        """The commit that is under way is done."""
        self.stage.commit()
        self.look()

    @rule(by_hand=st.booleans())
    def sync(self, by_hand: bool) -> None:
        """The disk has taken everything; from now on it is slow, or not."""
        self.stage.syncer.by_hand = by_hand
        with self.stage.loop.inside():
            self.stage.syncer.run()
        self.look()

    @rule(hold=st.booleans())
    def threads(self, hold: bool) -> None:
        """What is done on threads (reads of the store, reopenings) takes a while from now on, or not."""
        self.stage.loop.hold_work = hold
        if not hold:
            self.stage.loop.do_work()
        self.look()

    @precondition(lambda self: self.stage.loop.work)
    @rule()
    def thread_is_done(self) -> None:
        """The oldest piece of work on a thread is done."""
        self.stage.loop.do_work(1)
        self.look()

    @rule(
        outcomes=st.lists(st.sampled_from(["ok", "refused", "refused", "written", "lost"]), max_size=3),
        sync=st.sampled_from([0, 0, 1]),
        reopen=st.sampled_from([0, 0, 2]),
    )
    def trouble(self, outcomes: list[str], sync: int, reopen: int) -> None:
        """What the next commits, syncs and reopenings meet."""
        self.stage.disk.commits.extend(outcomes)
        self.stage.disk.sync_errors = sync
        self.stage.disk.reopen_errors = reopen

    @rule(
        seconds=st.sampled_from([0.0, 0.06, 0.5, 3.0]),
        clock_ms=st.sampled_from([0, 0, 700, -700]),
        n=_index,
        pool=st.sampled_from(["as it is"] * 3 + ["ready"] * 2 + ["gone"]),
    )
    def world(self, seconds: float, clock_ms: int, n: int, pool: str) -> None:
        """Time passes; somebody corrects the wall clock; a pool goes, or comes back."""
        self.stage.clock.advance_ms(clock_ms)
        names = sorted(self.stage.engines)
        name = names[n % len(names)]
        with self.stage.loop.inside():
            if pool == "ready":
                self.stage.pool_ready(name)
            elif pool == "gone":
                self.stage.host.unready(name, "exited")
        self.stage.loop.advance(seconds)
        self.look()

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        """The process dies and starts again, on a disk that is sound."""
        self.stage.crash(power=power and self.power)
        self.heal()
        self.submissions.clear()
        self.cancels.clear()
        self.stage.start()
        self.stage.services.transcripts.compact_from = self.compact_from
        self.stage.services.transcripts.rest_s = 0
        for task_id in self.accepted:
            assert len(self.stage.payloads(TaskAdmitted, task_id)) == 1, "an acknowledged admission was lost"
        for task_id in self.settled:
            assert len(self.stage.payloads(TaskEnded, task_id)) == 1, "an acknowledged end was lost"
        self.look()

    # --- looking -------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults."""
        disk = self.stage.disk
        disk.commits.clear()
        disk.sync_errors = disk.reopen_errors = 0

    def look(self) -> None:
        """What happened, as far as it can without a commit by hand; then what must hold at any moment."""
        self.stage.loop.settle()
        for work in [w for w in self.submissions if w.done()]:
            self.submissions.remove(work)
            error = work.exception()
            if error is None:
                self.accepted.setdefault(work.result().task_id, "")
            else:
                assert isinstance(error, OrchError), error
        for task_id, work in [c for c in self.cancels if c[1].done()]:
            self.cancels.remove((task_id, work))
            error = work.exception()
            if error is None:
                self.settled.add(task_id)
            else:
                assert isinstance(error, OrchError), error
        leases = self.stage.journal.head.leases
        for name, count in self.stage.slots.items():
            assert 0 <= leases.count(name) <= count
            busy = sum(not attempt.slot_is_free for attempt in self.stage.engines[name].attempts)
            assert busy <= count, "an engine got more than it has slots for: a slot was given away before it was free"
        for reader in self.readers:
            if reader.ended is not None:
                self.settled.add(reader.task_id)

    @rule()
    def check(self) -> None:
        """The journal as it stands; and head is kept as it stands, to replay from it."""
        self.stage.check()
        check_order(self.stage)
        if len(self.stage.snapshots) < 5:
            self.stage.snapshot()

    def teardown(self) -> None:
        """Everything comes to its end, and then nothing may be missing."""
        if not hasattr(self, "stage"):
            return
        try:
            self.finish()
        finally:
            self.stage.end()

    def finish(self) -> None:
        """Heal, and let everybody finish."""
        stage = self.stage
        self.heal()
        stage.loop.hold_work = False
        stage.loop.do_work()
        stage.syncer.by_hand = False
        with stage.loop.inside():
            stage.syncer.run()
        for _ in range(200):
            stage.settle()
            for name in stage.engines:
                if not stage.journal.head.pools.by_id[name].ready and stage.journal.status == "ok":
                    with stage.loop.inside():
                        stage.pool_ready(name)
            stage.advance(6)
            for attempt in self.attempts():
                if attempt.cancelled or attempt.over:
                    attempt.free()
            for attempt in self.running():
                attempt.start()
                attempt.say(self.piece(attempt, 20))
                stage.settle()
                attempt.end()
            stage.settle()
            self.look()
            head = stage.journal.head
            if not head.tasks.live and not head.tasks.closing and not head.leases.by_id and not self.submissions:
                break
        else:
            raise AssertionError("something does not come to an end")
        stage.settle()
        self.look()
        assert not self.submissions
        assert not self.cancels
        assert stage.journal.leaving == {}
        stage.check()
        check_order(stage)
        check_keys(stage)
        self.everybody_has_it_all()

    def everybody_has_it_all(self) -> None:
        """Every accepted task has its one end, and every reader all of it."""
        stage = self.stage
        for task_id in self.accepted:
            end = stage.ended(task_id)
            fresh = stage.reader(task_id)
            assert fresh.error is None
            assert fresh.ended == end
            assert len(fresh.texts) == end.entries
            assert sum(fresh.tokens) == end.tokens_out
            assert stage.info(task_id).text == fresh.text
            self.is_one_text(fresh.text)
            for reader in [r for r in self.readers if r.task_id == task_id]:
                if reader.connected:
                    reader.go()
                # The stream may have broken off while the reader stalled.
                if reader.ended is None and not reader.connected:
                    reader.connect()
                    reader.go()
                if reader.error is not None and self.power:
                    assert reader.error.code == "RESUME_LOST"
                    continue
                assert reader.error is None
                assert reader.ids == fresh.ids
                assert reader.texts == fresh.texts
                assert reader.ended == end
        for released in stage.payloads(LeaseReleased):
            assert released.cause in ("slot-free", "engine-gone", "never-sent", "restart")

    def is_one_text(self, text: str) -> None:
        """A text of one engine, or of several that went on from each other; never a word that came late."""
        assert "LATE" not in text
        for one, two in zip(text.lower(), text.lower()[1:], strict=False):
            assert (ALPHABET.index(two) - ALPHABET.index(one)) % len(ALPHABET) == 1, text


def check_order(stage: Stage) -> None:
    """First come, first served within each priority, interactive before batch (ADM-3)."""
    waiting: dict[str, dict[str, tuple[int, int]]] = {"interactive": {}, "batch": {}}
    places: dict[str, tuple[str, tuple[int, int]]] = {}
    for record in stage.facts(TaskAdmitted, TaskPlaced, TaskAttemptFailed, TaskEnded):
        event = record.payload
        if isinstance(event, TaskAdmitted):
            places[event.task_id] = (event.priority, (record.seq, record.time_ns))
        priority, place = places[event.task_id]
        if isinstance(event, (TaskAdmitted, TaskAttemptFailed)):
            waiting[priority][event.task_id] = place
            continue
        if isinstance(event, TaskPlaced):
            assert place == min(waiting[priority].values()), "a task was placed before one that came earlier"
            if priority == "batch" and waiting["interactive"]:
                assert record.time_ns - place[1] >= 60_000_000_000, "a batch task passed interactive ones"
        waiting[priority].pop(event.task_id, None)


def check_keys(stage: Stage) -> None:
    """One task for a key, unless the last one failed in a way that another run may mend (ADM-6)."""
    latest: dict[str, str] = {}
    ends: dict[str, TaskEnded] = {}
    for record in stage.facts(TaskAdmitted, TaskEnded):
        event = record.payload
        if isinstance(event, TaskEnded):
            ends[event.task_id] = event
        elif event.idempotency_digest:
            before = latest.get(event.idempotency_digest)
            assert before is None or ends[before].retriable, "a key has two tasks"
            latest[event.idempotency_digest] = event.task_id


class PowerLoss(Lives):
    """The same, and power may fail."""

    power = True


def _caller() -> Any:
    from llama_orch.core.services.caller import Caller

    return Caller()


TestLives = Lives.TestCase
TestLives.settings = search(80)
TestPowerLoss = PowerLoss.TestCase
TestPowerLoss.settings = search(50)
