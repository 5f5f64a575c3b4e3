"""The machines of a pool's engine, in every order of what can happen: lifecycle with its breaker, and reload."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama_orch.pools.breaker import Breaker, Circuit
from llama_orch.pools.desired import Handover
from llama_orch.pools.lifecycle import (
    Arm,
    Begin,
    Cancel,
    Kill,
    Lifecycle,
    Phase,
    Prepare,
    Report,
    Stopped,
    Terminate,
    Trouble,
)
from llama_orch.pools.reload import End, Generations, Open, Promote, Reloaded, ReloadFailed, Seat, Unloaded
from llama_orch.pools.timing import Timing

GONE = Trouble("engine-exited", "exit status 1", "look")
SICK = Trouble("unresponsive")
BROKEN = Trouble("bad-model", permanent=True)
TIMING = Timing(
    backoff_first_ms=100,
    backoff_last_ms=1000,
    stable_ms=5000,
    start_timeout_ms=3000,
    grace_ms=50,
    breaker_failures=4,
    breaker_window_ms=60_000,
    open_first_ms=10_000,
    open_last_ms=40_000,
    permanent_ms=30_000,
)


class Engines(RuleBasedStateMachine):
    """At most one engine or preparation at a time, nothing forgotten, nothing that nothing would ever end."""

    @initialize(jitter=st.floats(0, 1))
    def begin(self, jitter):
        self.machine = Lifecycle(TIMING, lambda: jitter)
        self.now = 0
        self.alive = False
        self.preparing = False
        self.cancelled = False
        self.timer = None
        self.wanted = False
        self.stops_told = True

    def carry_out(self, effects):
        for effect in effects:
            match effect:
                case Prepare():
                    assert not self.alive, "a second engine is prepared beside the first"
                    assert not self.preparing
                    assert self.wanted
                    self.preparing, self.cancelled = True, False
                case Cancel():
                    assert self.preparing
                    assert not self.wanted
                    self.cancelled = True
                case Begin():
                    assert not self.alive, "a second engine was started beside the first"
                    assert not self.preparing, "started before it was prepared"
                    assert self.wanted
                    self.alive = True
                case Terminate() | Kill():
                    assert self.alive, "a process was signalled that is not there"
                case Arm(delay_ms=delay_ms):
                    assert delay_ms is None or delay_ms >= 0
                    self.timer = None if delay_ms is None else self.now + delay_ms
                case Report(retry_ms=retry_ms, failures=failures):
                    assert self.wanted
                    assert failures > 0
                    assert retry_ms >= 0
                case Stopped():
                    assert not self.alive
                    assert not self.preparing
                    assert not self.wanted

    @rule(ms=st.integers(0, 20_000))
    def time_passes(self, ms):
        until = self.now + ms
        while self.timer is not None and self.timer <= until:
            self.now, self.timer = self.timer, None
            self.carry_out(self.machine.timer(self.now))
        self.now = until

    @rule()
    def start(self):
        self.wanted = True
        self.carry_out(self.machine.start(self.now))

    @rule()
    def stop(self):
        self.wanted = False
        self.carry_out(self.machine.stop(self.now))

    @rule()
    def hurry(self):
        if self.wanted:
            self.carry_out(self.machine.hurry(self.now))

    @precondition(lambda self: self.preparing and not self.cancelled)
    @rule()
    def preparation_ends(self):
        self.preparing = False
        self.carry_out(self.machine.prepared(self.now))

    @precondition(lambda self: self.preparing)
    @rule(trouble=st.sampled_from([GONE, BROKEN]))
    def preparation_fails(self, trouble):
        self.preparing = False
        self.carry_out(self.machine.exited(trouble, self.now))

    @precondition(lambda self: self.alive)
    @rule(trouble=st.sampled_from([GONE, BROKEN]))
    def process_exits(self, trouble):
        self.alive = False
        self.carry_out(self.machine.exited(trouble, self.now))

    @rule()
    def ready(self):
        self.carry_out(self.machine.ready(self.now))

    @rule()
    def unhealthy(self):
        self.carry_out(self.machine.unhealthy(SICK, self.now))

    @invariant()
    def something_always_leads_on(self):
        if not hasattr(self, "machine"):
            return
        phase = self.machine.phase
        if phase in (Phase.STARTING, Phase.BACKOFF, Phase.ENDING):
            assert self.timer is not None, f"nothing would ever end {phase}"
        else:
            assert self.timer is None
        assert self.preparing == (phase in (Phase.PREPARING, Phase.CANCELLING))
        assert self.alive == (phase in (Phase.STARTING, Phase.READY, Phase.ENDING))
        if not self.wanted:
            assert phase in (Phase.STOPPED, Phase.ENDING, Phase.CANCELLING)
        elif phase is Phase.STOPPED:
            raise AssertionError("it is wanted, and nobody starts it")


TestEngines = Engines.TestCase


@given(gaps=st.lists(st.integers(0, 5_000), min_size=1, max_size=40), jitter=st.floats(0, 1))
def test_however_failures_come_the_breaker_bounds_the_starts_within_a_window(gaps, jitter):
    breaker, now, starts = Breaker(TIMING, lambda: jitter), 0, []
    for gap in gaps:
        starts.append(now)
        breaker.tries()
        now += gap
        now += breaker.failed(now).delay_ms
    for first in starts:
        within = [at for at in starts if first <= at < first + TIMING.open_first_ms // 2]
        assert len(within) <= TIMING.breaker_failures + 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20_000)), max_size=30))
def test_an_open_circuit_has_one_try_at_a_time_and_stability_closes_it(story):
    breaker, now = Breaker(TIMING, lambda: 1.0), 0
    for permanent, gap in story:
        now += gap
        breaker.tries()
        assert breaker.circuit is not Circuit.OPEN
        before = breaker.circuit
        pause = breaker.failed(now, permanent=permanent)
        assert pause.opened == (breaker.circuit is Circuit.OPEN)
        assert not (permanent or before is Circuit.HALF_OPEN) or pause.opened
        if permanent:
            assert pause.delay_ms == TIMING.permanent_ms
        now += pause.delay_ms
    breaker.served(TIMING.stable_ms)
    assert (breaker.circuit, breaker.failures, breaker.recent) == (Circuit.CLOSED, 0, 0)
    assert breaker.failed(now).delay_ms == TIMING.backoff_first_ms


class Reloads(RuleBasedStateMachine):
    """A pool that is told to serve plans "a", "b", "c", in every way and order; engines come up, fail and end."""

    @initialize()
    def begin(self):
        self.machine: Generations[str] = Generations()
        self.workers: dict[Seat, tuple[str, str]] = {}
        self.retired: list[str] = []
        self.want: str | None = None
        self.next: str | None = None
        self.handover: Handover = ""
        #: it was told that the next engine serves
        self.serves = False
        self.failed: list[str] = []
        self.reloaded: list[str] = []
        self.carry_out(self.machine.desire(None))

    def carry_out(self, effects):
        for effect in effects:
            match effect:
                case Open(seat=seat):
                    assert seat not in self.workers
                    plan = self.machine.plan(seat)
                    if self.handover == "stop-first" and self.next is not None:
                        assert not self.workers, "memory is doubled"
                    self.workers[seat] = (plan, "coming")
                case End(seat=seat):
                    plan, state = self.workers[seat]
                    assert state != "ending", "it was told to end twice"
                    if seat is Seat.SERVING and plan == self.want:
                        assert self.handover == "stop-first", "what serves was ended while it was wanted"
                    self.workers[seat] = (plan, "ending")
                case Promote():
                    self.serves = False
                    old = self.workers.pop(Seat.SERVING, None)
                    self.workers[Seat.SERVING] = self.workers.pop(Seat.NEXT)
                    assert self.workers[Seat.SERVING][0] == self.want
                    if old is not None:
                        self.retired.append(old[0])
                case Reloaded():
                    assert self.workers[Seat.NEXT] == (self.next, "ready")
                    self.reloaded.append(self.workers[Seat.NEXT][0])
                    self.serves = True
                case ReloadFailed(trouble=trouble):
                    assert trouble == GONE
                    assert self.next is not None
                    assert not self.serves, "what was said to serve is started again, not taken back"
                    self.failed.append(self.next)
                case Unloaded():
                    assert not self.workers
                    assert self.want is None

    def desire(self, want, following, handover):
        if following == want:
            following = None
        before = (self.next, self.handover)
        self.want, self.next = want, following if want is not None else None
        self.handover = handover if following is not None else ""
        if (self.next, self.handover) != before:
            self.failed = []
        self.carry_out(self.machine.desire(want, following, self.handover))

    @rule(want=st.sampled_from(["a", "b", None]))
    def serve(self, want):
        self.desire(want, None, "")

    @rule(following=st.sampled_from(["b", "c"]), handover=st.sampled_from(["new-first", "stop-first"]))
    def reload(self, following, handover):
        if self.want is not None:
            self.desire(self.want, following, handover)

    @rule()
    def the_same_again(self):
        assert self.machine.desire(self.want, self.next, self.handover) == ()

    @precondition(lambda self: self.reloaded and self.next == self.reloaded[-1])
    @rule()
    def the_server_names_the_new_one(self):
        self.desire(self.next, None, "")

    @precondition(lambda self: any(state == "coming" for _, state in self.workers.values()))
    @rule(data=st.data())
    def one_is_ready(self, data):
        seat = data.draw(st.sampled_from([s for s, (_, state) in self.workers.items() if state == "coming"]))
        self.workers[seat] = (self.workers[seat][0], "ready")
        self.carry_out(self.machine.ready(seat))

    @precondition(lambda self: any(state != "ending" for _, state in self.workers.values()))
    @rule(data=st.data())
    def one_fails(self, data):
        seat = data.draw(st.sampled_from([s for s, (_, state) in self.workers.items() if state != "ending"]))
        serving = self.workers.get(Seat.SERVING)
        self.workers[seat] = (self.workers[seat][0], "coming")
        self.carry_out(self.machine.failed(seat, GONE))
        if seat is Seat.NEXT and self.handover == "new-first":
            assert self.workers.get(Seat.SERVING) == serving, "what served was touched by a reload that failed"

    @precondition(lambda self: any(state == "ending" for _, state in self.workers.values()))
    @rule(data=st.data())
    def one_is_gone(self, data):
        seat = data.draw(st.sampled_from([s for s, (_, state) in self.workers.items() if state == "ending"]))
        del self.workers[seat]
        self.serves = self.serves and seat is not Seat.NEXT
        self.carry_out(self.machine.stopped(seat))

    @invariant()
    def it_is_on_its_way_to_what_is_wanted(self):
        if not hasattr(self, "machine"):
            return
        if any(state == "ending" for _, state in self.workers.values()):
            return  # an end is waited for
        if self.want is None:
            assert not self.workers
            return
        plans = {seat: plan for seat, (plan, _) in self.workers.items()}
        if self.next is None:
            assert plans == {Seat.SERVING: self.want}
        elif self.next in self.failed:
            assert plans == {Seat.SERVING: self.want}, "rolled back"
        elif self.handover == "new-first":
            assert plans == {Seat.SERVING: self.want, Seat.NEXT: self.next}
        else:
            assert plans == {Seat.NEXT: self.next}


TestReloads = Reloads.TestCase
TestReloads.settings = settings(max_examples=300)
