"""The machine of a pool's engines, step by step; every order of what can happen is in tests/property."""

from llama_orch.pools.lifecycle import Trouble
from llama_orch.pools.reload import End, Generations, Open, Promote, Reloaded, ReloadFailed, Seat, Unloaded

BAD = Trouble("bad-model", "cut short", "fetch it again")


def serving() -> Generations[str]:
    """A pool that serves "a"."""
    machine: Generations[str] = Generations()
    assert machine.desire("a") == (Open(Seat.SERVING),)
    assert machine.ready(Seat.SERVING) == ()
    return machine


def test_new_first_promotes_the_next_engine_once_it_is_named():
    machine = serving()
    assert machine.desire("a", "b", "new-first") == (Open(Seat.NEXT),)
    assert machine.voice is Seat.SERVING
    assert machine.ready(Seat.NEXT) == (Reloaded(),)
    assert machine.voice is Seat.NEXT
    assert machine.desire("a", "b", "new-first") == ()
    assert machine.desire("b") == (Promote(),)
    assert (machine.voice, machine.plan(Seat.SERVING)) == (Seat.SERVING, "b")


def test_stop_first_opens_the_next_engine_once_the_old_one_is_gone():
    machine = serving()
    assert machine.desire("a", "b", "stop-first") == (End(Seat.SERVING),)
    assert machine.stopped(Seat.SERVING) == (Open(Seat.NEXT),)
    assert machine.voice is Seat.NEXT
    assert machine.ready(Seat.NEXT) == (Reloaded(),)
    assert machine.desire("b") == (Promote(),)


def test_a_next_engine_that_fails_has_no_second_try_while_it_stays_desired():
    machine = serving()
    machine.desire("a", "b", "new-first")
    assert machine.failed(Seat.NEXT, BAD) == (ReloadFailed(BAD), End(Seat.NEXT))
    assert machine.stopped(Seat.NEXT) == ()
    assert machine.desire("a", "b", "new-first") == ()
    assert machine.desire("a", "b", "stop-first") == (End(Seat.SERVING),), "another way is another wish"


def test_stop_first_starts_the_old_engine_again_once_the_failed_one_is_gone():
    machine = serving()
    machine.desire("a", "b", "stop-first")
    machine.stopped(Seat.SERVING)
    assert machine.failed(Seat.NEXT, BAD) == (ReloadFailed(BAD), End(Seat.NEXT))
    assert machine.stopped(Seat.NEXT) == (Open(Seat.SERVING),)
    assert machine.plan(Seat.SERVING) == "a"


def test_an_engine_that_was_said_to_serve_is_started_again_when_it_fails_and_not_taken_back():
    machine = serving()
    machine.desire("a", "b", "new-first")
    machine.ready(Seat.NEXT)
    assert machine.failed(Seat.NEXT, BAD) == ()
    assert machine.voice is Seat.NEXT
    assert machine.ready(Seat.NEXT) == ()


def test_nothing_is_left_when_nothing_is_wanted_and_that_is_told_once():
    machine = serving()
    machine.desire("a", "b", "new-first")
    assert machine.desire(None) == (End(Seat.NEXT), End(Seat.SERVING))
    assert machine.stopped(Seat.NEXT) == ()
    assert machine.stopped(Seat.SERVING) == (Unloaded(),)
    assert machine.desire(None) == ()


def test_what_ends_is_opened_again_when_it_is_wanted_meanwhile():
    machine = serving()
    assert machine.desire(None) == (End(Seat.SERVING),)
    assert machine.desire("a") == ()
    assert machine.stopped(Seat.SERVING) == (Open(Seat.SERVING),)
