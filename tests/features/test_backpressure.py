"""Steps of backpressure.feature alone."""

from __future__ import annotations

from pytest_bdd import parsers, scenarios, then

from .conftest import World

scenarios("backpressure.feature")


@then(parsers.parse('"{one}" and "{two}" wait'))
def wait(world: World, one: str, two: str) -> None:
    assert world.queue() == [world.tasks[one].task_id, world.tasks[two].task_id]


@then(parsers.parse('"{one}" and "{two}" complete in this order'))
def complete_in_order(world: World, one: str, two: str) -> None:
    first, second = world.wait(one), world.wait(two)
    assert (first.state, second.state) == ("completed", "completed")
    assert first.started_ms <= second.started_ms
    streams = [event["stream"] for event in started_events(world)]
    assert streams.index(f"task:{first.task_id}") < streams.index(f"task:{second.task_id}")


def started_events(world: World) -> list[dict[str, str]]:
    tail = world.server.get("/v1/journal/tail?limit=1000")
    return [event for event in tail["events"] if event["name"] == "task.started"]


@then(parsers.parse('"{name}" has failed with "{code}", and may be sent again'))
def has_failed(world: World, name: str, code: str) -> None:
    task = world.until(name, lambda task: task.ended, f"the end of {name}")
    assert task.state == "failed"
    assert task.error is not None
    assert (task.error.code, task.error.retriable) == (code, True)
