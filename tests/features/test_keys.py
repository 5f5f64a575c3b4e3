"""Steps of keys.feature alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from pytest_bdd import given, parsers, scenarios, then, when

from llama_orch.client import ApiError, Client, TaskRequest
from llama_orch.client.calls import Call
from llama_orch.client.types import encode

from .conftest import MODEL, World, new_id, pool

scenarios("keys.feature")


def operate(world: World, method: str, path: str, body: Any = None) -> Any:
    """Something that an operator does on the server's machine."""
    return world.client.send(Call(method, path, dict, body=None if body is None else encode(body)))


def make(world: World, name: str, **spec: Any) -> None:
    made = operate(world, "POST", "/v1/keys", {"name": f"{name} {new_id()}", **spec})
    world.notes[name] = made["key"]["key_id"]
    world.notes[f"secret of {name}"] = made["secret"]


def client_of(world: World, name: str) -> Client:
    return world.client_of(world.server, world.notes[f"secret of {name}"])


def refusal(action: Callable[[], object]) -> tuple[int, str]:
    """How an action is refused; ``(200, "")`` when it is not."""
    try:
        action()
    except ApiError as error:
        return error.status, error.code
    return 200, ""


# --- given, when -------------------------------------------------------------------------------------------------------


@given("a server of its own without keys")
def a_server(world: World) -> None:
    world.serve({"pools": [pool(2)]}, own=True)


@given(parsers.parse('a server with the keys "{one}" and "{two}"'))
def a_server_with_keys(world: World, one: str, two: str) -> None:
    world.serve({"pools": [pool(2)]})
    for name in (one, two):
        make(world, name)


@when(parsers.parse('the operator makes the key "{name}"'))
def makes(world: World, name: str) -> None:
    make(world, name)


@given(parsers.parse('the operator made the key "{name}" for reading alone'))
def makes_a_looker(world: World, name: str) -> None:
    make(world, name, scopes=["read"])


@given(parsers.parse('the operator limits "{name}" to {tasks:d} tasks a minute'))
def limits(world: World, name: str, tasks: int) -> None:
    operate(world, "PATCH", f"/v1/keys/{world.notes[name]}", {"requests_per_minute": tasks})


@when(parsers.parse('the operator revokes the key "{name}"'))
def revokes(world: World, name: str) -> None:
    world.client.send(Call("DELETE", f"/v1/keys/{world.notes[name]}"))


@when(parsers.parse('the operator rotates the key "{name}"'))
def rotates(world: World, name: str) -> None:
    world.notes[f"old secret of {name}"] = world.notes[f"secret of {name}"]
    world.notes[f"secret of {name}"] = operate(world, "POST", f"/v1/keys/{world.notes[name]}/rotate", {})["secret"]


@when(parsers.parse('"{who}" submits "{name}" of {tokens:d} tokens'))
def submits(world: World, who: str, name: str, tokens: int) -> None:
    handle = client_of(world, who).submit(TaskRequest(model_ref=MODEL, prompt=f"[[mock tokens={tokens}]]"))
    assert handle.wait().owner == world.notes[who]
    world.notes[name] = handle.task_id


@when(parsers.parse('"{who}" submits {count:d} tasks'))
def submits_many(world: World, who: str, count: int) -> None:
    client = client_of(world, who)
    request = TaskRequest(model_ref=MODEL, prompt="[[mock tokens=1]]")
    world.notes["answers"] = [refusal(lambda: client.submit(request)) for _ in range(count - 1)]
    world.attempt(lambda: client.submit(request))


# --- then ----------------------------------------------------------------------------------------------------------------


def status_without_a_key(world: World) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(world.server.url + "/v1/pools", timeout=20) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@then("a caller without a key is served")
def served_without(world: World) -> None:
    assert status_without_a_key(world) == (200, "")


@then(parsers.parse('a caller without a key is refused with {status:d} "{code}"'))
def refused_without(world: World, status: int, code: str) -> None:
    got, body = status_without_a_key(world)
    assert got == status
    assert f'"{code}"' in body


@then(parsers.parse('a caller with a key that nobody made is refused with {status:d} "{code}"'))
def refused_unknown(world: World, status: int, code: str) -> None:
    made_up = "lo_" + "A" * 43
    assert refusal(world.client_of(world.server, made_up).pools) == (status, code)


@then(parsers.parse('a caller with the key "{name}" is refused with {status:d} "{code}"'))
def refused_with(world: World, name: str, status: int, code: str) -> None:
    assert refusal(client_of(world, name).pools) == (status, code)


@then(parsers.parse('a caller with the old secret of "{name}" is refused with {status:d} "{code}"'))
def refused_with_the_old(world: World, name: str, status: int, code: str) -> None:
    old = world.notes[f"old secret of {name}"]
    assert old != world.notes[f"secret of {name}"]
    assert refusal(world.client_of(world.server, old).pools) == (status, code)


@then(parsers.parse('a caller with the key "{name}" is served'))
def served_with(world: World, name: str) -> None:
    assert client_of(world, name).pools()


@then("commands on the server's machine are served")
def commands_are_served(world: World) -> None:
    assert world.server.home.json("status")["ready"]


@then(parsers.parse('"{who}" reads "{name}" and finds it in the list'))
def reads(world: World, who: str, name: str) -> None:
    client = client_of(world, who)
    assert client.get(world.notes[name]).state == "completed"
    assert "".join(client.task(world.notes[name]).text())
    assert world.notes[name] in [task.task_id for task in client.tasks().tasks]


@then(parsers.parse('"{who}" is told that there is no task "{name}": to get, to follow, to cancel, to explain'))
def sees_nothing(world: World, who: str, name: str) -> None:
    client, task_id = client_of(world, who), world.notes[name]
    for action in (client.get, lambda t: list(client.stream(t)), client.cancel, client.decision):
        assert refusal(lambda action=action: action(task_id)) == (404, "NOT_FOUND")


@then(parsers.parse('"{who}" does not find "{name}" in the list'))
def finds_nothing(world: World, who: str, name: str) -> None:
    assert world.notes[name] not in [task.task_id for task in client_of(world, who).tasks().tasks]


@then(
    parsers.parse(
        'the first {count:d} are accepted, and the third is refused with {status:d} "{code}" and a time to wait'
    )
)
def third_is_refused(world: World, count: int, status: int, code: str) -> None:
    assert world.notes["answers"] == [(200, "")] * count
    assert world.refusal is not None, "it was accepted"
    assert (world.refusal.status, world.refusal.code) == (status, code)
    assert (world.refusal.retry_after_ms or 0) > 0


@then(parsers.parse('"{who}" can submit a task'))
def can_submit(world: World, who: str) -> None:
    assert client_of(world, who).submit(TaskRequest(model_ref=MODEL, prompt="[[mock tokens=1]]")).wait().ended


@then(parsers.parse('"{who}" sees the pools'))
def sees_pools(world: World, who: str) -> None:
    assert [found.pool_id for found in client_of(world, who).pools()] == [MODEL]


@then(parsers.parse('"{who}" is refused with {status:d} "{code}" when it submits a task'))
def refused_to_submit(world: World, who: str, status: int, code: str) -> None:
    client = client_of(world, who)
    assert refusal(lambda: client.submit(TaskRequest(model_ref=MODEL, prompt="x"))) == (status, code)


@then(parsers.parse('"{who}" is refused with {status:d} "{code}" when it makes a key'))
def refused_to_make(world: World, who: str, status: int, code: str) -> None:
    call: Call[Any] = Call("POST", "/v1/keys", dict, body=encode({"name": "more"}))
    assert refusal(lambda: client_of(world, who).send(call)) == (status, code)


@then("no secret of a key stands in the log or in any file of the server")
def no_secret(world: World) -> None:
    secrets = [value.encode() for name, value in world.notes.items() if name.startswith("secret of ")]
    ids = [value.encode() for name, value in world.notes.items() if name in {"ada", "ben"}]
    assert len(secrets) == 2
    files = [path for path in world.server.home.root.rglob("*") if path.is_file()]
    held = [path.read_bytes() for path in files]
    assert any(key_id in text for text in held for key_id in ids), "the journal is among these files"
    assert not [path for path, text in zip(files, held, strict=True) if any(secret in text for secret in secrets)]
