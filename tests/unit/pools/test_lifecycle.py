"""The state machine of an engine: every order of what can happen."""

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama_orch.pools.lifecycle import Arm, Begin, Kill, Lifecycle, Phase, Report, Stopped, Terminate, Timing, Trouble

GONE = Trouble("engine-exited", "exit status 1", "look")
SICK = Trouble("unresponsive", "", "")
TIMING = Timing(backoff_first_ms=100, backoff_last_ms=1000, stable_ms=5000, start_timeout_ms=3000, grace_ms=50)


def started():
    machine = Lifecycle(TIMING, lambda: 1.0)
    machine.start(0)
    return machine


def delays(machine, count):
    """Delays of so many restarts in a row."""
    found = []
    for _ in range(count):
        effects = machine.exited(GONE, 0)
        assert isinstance(effects[1], Arm)
        found.append(effects[1].delay_ms)
        machine.timer(0)
    return found


def test_a_start_begins_once_and_arms_the_start_timeout():
    machine = Lifecycle(TIMING, lambda: 1.0)
    assert machine.start(0) == (Arm(3000), Begin())
    assert machine.start(1) == ()
    assert machine.phase is Phase.STARTING


def test_an_exit_is_reported_with_its_cause_and_when_the_next_try_is_due():
    machine = started()
    assert machine.exited(GONE, 0) == (Report(GONE, 100), Arm(100))
    assert machine.timer(100) == (Arm(3000), Begin())


def test_backoff_doubles_up_to_its_bound():
    assert delays(started(), 6) == [100, 200, 400, 800, 1000, 1000]


def test_jitter_takes_up_to_half_of_a_delay():
    machine = Lifecycle(TIMING, lambda: 0.0)
    machine.start(0)
    assert delays(machine, 2) == [50, 100]


def test_an_engine_that_was_ready_for_long_is_forgiven():
    machine = started()
    delays(machine, 3)
    machine.ready(0)
    assert machine.exited(GONE, 5000)[1] == Arm(100)


def test_an_engine_that_was_ready_for_a_moment_is_not():
    machine = started()
    delays(machine, 3)
    machine.ready(0)
    assert machine.exited(GONE, 4999)[1] == Arm(800)


def test_a_start_that_takes_too_long_is_ended_politely_then_firmly_and_tried_again():
    machine = started()
    report, arm, terminate = machine.timer(3000)
    assert isinstance(report, Report)
    assert report.trouble.cause == "start-timeout"
    assert (arm, terminate) == (Arm(50), Terminate())
    assert machine.timer(3050) == (Kill(), Arm(50))
    report, arm = machine.exited(GONE, 3060)
    assert isinstance(report, Report)
    assert report.trouble.cause == "start-timeout"
    assert machine.phase is Phase.BACKOFF


def test_an_unhealthy_engine_is_ended_and_its_cause_kept():
    machine = started()
    machine.ready(0)
    assert machine.unhealthy(SICK, 10) == (Report(SICK, 0), Arm(50), Terminate())
    assert machine.exited(GONE, 20)[0] == Report(SICK, 100)


def test_a_stop_while_an_engine_is_being_restarted_wins():
    machine = started()
    machine.ready(0)
    machine.unhealthy(SICK, 10)
    machine.stop(11)
    assert machine.exited(GONE, 12) == (Arm(None), Stopped())


class Engines(RuleBasedStateMachine):
    """Whatever happens in whatever order: at most one engine, and nothing is forgotten."""

    @initialize(jitter=st.floats(0, 1))
    def begin(self, jitter):
        self.machine = Lifecycle(TIMING, lambda: jitter)
        self.now = 0
        self.alive = False
        self.timer = None
        self.wanted = False
        self.told = Phase.STOPPED

    def carry_out(self, effects):
        for effect in effects:
            if isinstance(effect, Begin):
                assert not self.alive, "a second engine was started beside the first"
                assert self.wanted
                self.alive = True
            elif isinstance(effect, (Terminate, Kill)):
                assert self.alive, "a process was signalled that is not there"
            elif isinstance(effect, Arm):
                self.timer = None if effect.delay_ms is None else self.now + effect.delay_ms
                assert effect.delay_ms is None or effect.delay_ms >= 0
            elif isinstance(effect, Stopped):
                assert not self.alive
                assert not self.wanted

    @rule(ms=st.integers(0, 10_000))
    def time_passes(self, ms):
        until = self.now + ms
        while self.timer is not None and self.timer <= until:
            self.now, self.timer = self.timer, None
            self.carry_out(self.machine.timer(self.now))
        self.now = until

    @rule()
    def start(self):
        if self.machine.phase is Phase.STOPPED:
            self.wanted = True
        self.carry_out(self.machine.start(self.now))

    @rule()
    def stop(self):
        self.wanted = False
        self.carry_out(self.machine.stop(self.now))

    @precondition(lambda self: self.alive)
    @rule()
    def process_exits(self):
        self.alive = False
        self.carry_out(self.machine.exited(GONE, self.now))

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
        assert self.alive == (phase in (Phase.STARTING, Phase.READY, Phase.ENDING))
        if not self.wanted:
            assert phase in (Phase.STOPPED, Phase.ENDING)


TestEngines = Engines.TestCase
