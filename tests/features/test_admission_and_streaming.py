"""Steps of admission_and_streaming.feature alone."""

from __future__ import annotations

import json
import threading

from pytest_bdd import parsers, scenarios, then

from llama_orch.client import End, Event, Reconnected, Token

from .conftest import World

scenarios("admission_and_streaming.feature")


@then("it had to come back")
def had_to_come_back(world: World) -> None:
    assert any(isinstance(event, Reconnected) for event in world.seen)


@then(parsers.parse('{readers:d} readers of "{name}" see the same {tokens:d} tokens and one end'))
def see_the_same(world: World, readers: int, name: str, tokens: int) -> None:
    seen: list[list[Event]] = [[] for _ in range(readers)]

    def read(mine: list[Event]) -> None:
        with world.client.stream(world.accepted(name).task_id) as stream:
            mine.extend(stream)

    threads = [threading.Thread(target=read, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == seen[0] for mine in seen)
    assert sum(isinstance(event, Token) for event in seen[0]) == tokens
    assert [event for event in seen[0] if isinstance(event, End)] == seen[0][-1:]


@then(parsers.parse('"{second}" attached to "{first}"'))
def attached(world: World, second: str, first: str) -> None:
    admission = world.accepted(second).admission
    assert admission is not None
    assert admission.attached
    assert world.tasks[second].task_id == world.tasks[first].task_id


@then(parsers.parse('the refusal names "{field}", says that it got {value}, and what to do'))
def names_the_field(world: World, field: str, value: str) -> None:
    assert world.refusal is not None
    assert (world.refusal.field, world.refusal.got) in {(field, json.loads(value)), (field, value)}
    assert world.refusal.remedy
