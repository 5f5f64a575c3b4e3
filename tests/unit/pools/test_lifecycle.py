"""The state machine of an engine, step by step; every order of what can happen is in tests/property."""

from llama_orch.pools.breaker import Circuit
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
from llama_orch.pools.timing import Timing

GONE = Trouble("engine-exited", "exit status 1", "look")
SICK = Trouble("unresponsive", "", "")
TIMING = Timing(
    backoff_first_ms=100, backoff_last_ms=1000, stable_ms=5000, start_timeout_ms=3000, grace_ms=50, breaker_failures=0
)
BROKEN = Trouble("bad-model", "cut short", "fetch it again", permanent=True)


def started():
    machine = Lifecycle(TIMING, lambda: 1.0)
    machine.start(0)
    machine.prepared(0)
    return machine


def delays(machine, count):
    """Delays of so many restarts in a row."""
    found = []
    for _ in range(count):
        effects = machine.exited(GONE, 0)
        assert isinstance(effects[1], Arm)
        found.append(effects[1].delay_ms)
        machine.timer(0)
        machine.prepared(0)
    return found


def test_a_start_prepares_and_begins_once_and_arms_the_start_timeout():
    machine = Lifecycle(TIMING, lambda: 1.0)
    assert machine.start(0) == (Arm(None), Prepare())
    assert machine.start(1) == ()
    assert machine.prepared(2) == (Arm(3000), Begin())
    assert machine.prepared(3) == ()
    assert machine.phase is Phase.STARTING


def test_an_exit_is_reported_with_its_cause_and_when_the_next_try_is_due():
    machine = started()
    assert machine.exited(GONE, 0) == (Report(GONE, 100, 1), Arm(100))
    assert machine.timer(100) == (Arm(None), Prepare())


def test_backoff_doubles_up_to_its_bound():
    assert delays(started(), 6) == [100, 200, 400, 800, 1000, 1000]


def test_jitter_takes_up_to_half_of_a_delay():
    machine = Lifecycle(TIMING, lambda: 0.0)
    machine.start(0)
    machine.prepared(0)
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
    assert machine.unhealthy(SICK, 10) == (Report(SICK, 0, 1), Arm(50), Terminate())
    assert machine.exited(GONE, 20)[0] == Report(SICK, 100, 1)


def test_a_stop_while_an_engine_is_being_restarted_wins():
    machine = started()
    machine.ready(0)
    machine.unhealthy(SICK, 10)
    machine.stop(11)
    assert machine.exited(GONE, 12) == (Arm(None), Stopped())


def test_what_is_wanted_again_while_it_ends_begins_again_once_it_is_gone():
    machine = started()
    machine.ready(0)
    machine.stop(1)
    assert machine.start(2) == ()
    assert machine.exited(GONE, 3) == (Arm(None), Prepare())


def test_a_stop_gives_a_preparation_up_and_is_done_once_that_is_over():
    machine = Lifecycle(TIMING, lambda: 1.0)
    machine.start(0)
    assert machine.stop(1) == (Cancel(),)
    assert machine.prepared(2) == ()
    assert machine.exited(Trouble("given-up"), 3) == (Arm(None), Stopped())


def test_a_preparation_that_fails_is_told_and_tried_again():
    machine = Lifecycle(TIMING, lambda: 1.0)
    machine.start(0)
    assert machine.exited(GONE, 1) == (Report(GONE, 100, 1), Arm(100))
    assert machine.timer(101) == (Arm(None), Prepare())


def test_too_many_failures_within_the_window_open_the_circuit_and_the_last_cause_is_kept():
    timing = Timing(backoff_first_ms=100, breaker_failures=3, breaker_window_ms=60_000, open_first_ms=9000)
    machine = Lifecycle(timing, lambda: 1.0)
    machine.start(0)
    machine.prepared(0)
    delays(machine, 2)
    report, arm = machine.exited(GONE, 0)
    assert isinstance(report, Report)
    assert (report.trouble.cause, report.trouble.last_cause) == ("circuit-open", "engine-exited")
    assert "3 times within 60 s" in report.trouble.detail
    assert "engine-exited: exit status 1" in report.trouble.detail
    assert report.trouble.advice == GONE.advice
    assert (report.retry_ms, report.failures, arm) == (9000, 3, Arm(9000))
    assert machine.circuit is Circuit.OPEN
    # One single try; as it fails, the circuit opens for longer.
    assert machine.timer(9000) == (Arm(None), Prepare())
    assert machine.circuit is Circuit.HALF_OPEN
    assert machine.exited(GONE, 9001)[1] == Arm(18_000)
    # A try that stays ready for the stable time closes it.
    machine.timer(27_001)
    machine.prepared(27_001)
    machine.ready(27_001)
    assert machine.exited(GONE, 27_001 + timing.stable_ms) == (Report(GONE, 100, 1), Arm(100))
    assert machine.circuit is Circuit.CLOSED


def test_failures_that_are_far_apart_do_not_open_the_circuit():
    timing = Timing(backoff_first_ms=100, backoff_last_ms=100, breaker_failures=3, breaker_window_ms=1000)
    machine = Lifecycle(timing, lambda: 1.0)
    machine.start(0)
    for n in range(10):
        machine.prepared(n * 600)
        assert machine.exited(GONE, n * 600)[1] == Arm(100)
        machine.timer(n * 600 + 100)


def test_what_only_a_person_can_mend_is_tried_rarely_at_once_and_keeps_its_name():
    machine = started()
    assert machine.exited(BROKEN, 0) == (Report(BROKEN, 600_000, 1), Arm(600_000))


def test_whoever_mended_it_need_not_wait():
    machine = started()
    machine.exited(BROKEN, 0)
    assert machine.hurry(5) == (Arm(None), Prepare())
    assert machine.circuit is Circuit.CLOSED
    assert machine.hurry(6) == ()
