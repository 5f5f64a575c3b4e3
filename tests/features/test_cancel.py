"""Steps of cancel.feature alone."""

from __future__ import annotations

from pytest_bdd import parsers, scenarios, then, when

from llama_orch.client import End, Started, Token

from .conftest import ENDLESS, World, new_id

scenarios("cancel.feature")


@then(parsers.parse('the one end of "{name}" is "{finish}"'))
def one_end(world: World, name: str, finish: str) -> None:
    ends = [event for event in world.seen if isinstance(event, End)]
    assert [end.finish_reason for end in ends] == [finish]
    assert world.seen[-1] is ends[0]
    assert ends[0].tokens_out == sum(isinstance(event, Token) for event in world.seen)


@then(parsers.parse('all readers of "{name}" see the same tokens'))
def same_tokens(world: World, name: str) -> None:
    with world.accepted(name).stream() as stream:
        assert list(stream) == world.seen


@then(parsers.parse('"{name}" is cancelled and was never started'))
def never_started(world: World, name: str) -> None:
    assert world.wait(name).state == "cancelled"
    with world.accepted(name).stream() as stream:
        events = list(stream)
    assert not any(isinstance(event, Started) for event in events)
    assert [event.finish_reason for event in events if isinstance(event, End)] == ["cancelled"]


@when("the client cancels a task that does not exist")
def cancels_nothing(world: World) -> None:
    world.attempt(lambda: world.client.cancel(new_id()))


@when(parsers.parse('the client submits "{name}" that ends when nobody reads it'))
def submits_careless(world: World, name: str) -> None:
    world.submit(name, ENDLESS, max_tokens=1_000_000, cancel_on_disconnect=True)


@when(parsers.parse('it leaves the stream of "{name}" after a token'))
def leaves(world: World, name: str) -> None:
    with world.accepted(name).stream() as stream:
        assert any(isinstance(event, Token) for event in stream)
