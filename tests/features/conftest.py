"""The steps that features share, on real server processes with the mock engine, through the SDK.

A server is started once for each kind of settings and module; features that change it for good ask for one of their own.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pytest_bdd import given, parsers, then, when

from llama_orch.cli import server_file
from llama_orch.client import (
    ApiError,
    Client,
    End,
    Event,
    LlamaOrchError,
    Queue,
    Reconnected,
    Started,
    Task,
    TaskHandle,
    TaskRequest,
    Token,
)
from llama_orch.client.target import Server as Place
from llama_orch.client.target import Target

from ..e2e.conftest import Home, Server, wait_until

MODEL = "mock"
ENDLESS = "[[mock fault=endless rate=50]]"


def pool(slots: int, **more: Any) -> dict[str, Any]:
    return {"id": MODEL, "engine": MODEL, "model": MODEL, "slots": slots, **more}


@dataclass
class World:
    """What a scenario has done and seen."""

    start: Callable[..., Server]
    _server: Server | None = None
    #: the client that acts
    client: Client = field(init=False)
    tasks: dict[str, TaskHandle] = field(default_factory=dict)
    #: what the last reader saw
    seen: list[Event] = field(default_factory=list)
    #: what was answered, for comparisons
    answers: list[list[tuple[str, int | None]]] = field(default_factory=list)
    refusal: ApiError | None = None
    #: whatever else a feature's steps remember
    notes: dict[str, Any] = field(default_factory=dict)
    clients: list[Client] = field(default_factory=list)

    @property
    def server(self) -> Server:
        assert self._server is not None, "a server was given"
        return self._server

    def serve(self, settings: dict[str, Any], *, own: bool = False) -> None:
        self.use(self.start(settings, own=own))

    def use(self, server: Server) -> None:
        self._server = server
        self.client = self.client_of(server)

    def client_of(self, server: Server, token: str = "") -> Client:
        """A client that finds its server again after a restart; without a key it is the machine's own user."""

        def find() -> Place:
            found = server_file.read(server.home.data_dir)
            return Place(found.url, token or found.token or "local") if found else target.server

        first = server_file.read(server.home.data_dir)
        assert first is not None, "the server runs"
        target = Target(Place(first.url, token or first.token or "local"), find)
        self.clients.append(Client(target=target, retries=0, stream_retries=None))
        return self.clients[-1]

    def submit(self, name: str, prompt: str, *, key: str | None = None, **fields: Any) -> None:
        """Submit a task under a name; a refusal is kept."""
        request = TaskRequest(model_ref=fields.pop("model_ref", MODEL), prompt=prompt, **fields)
        self.attempt(lambda: self.tasks.__setitem__(name, self.client.submit(request, idempotency_key=key)))

    def attempt(self, action: Callable[[], object]) -> None:
        """Do something that may be refused."""
        self.refusal = None
        try:
            action()
        except ApiError as error:
            self.refusal = error

    def accepted(self, name: str) -> TaskHandle:
        """A task of the scenario."""
        assert self.refusal is None, self.refusal
        return self.tasks[name]

    def wait(self, name: str) -> Task:
        return self.accepted(name).wait()

    def until(self, name: str, condition: Callable[[Task], object], what: str) -> Task:
        """The task once it is so."""
        found: Task = wait_until(lambda: (task := self.tasks[name].get()) and condition(task) and task, what)
        return found

    def queue(self) -> list[str]:
        """Ids of the tasks that wait, in order."""
        told: Queue = self.client.queue()
        return [entry.task_id for group in told.groups for entry in group.entries]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers, one for each kind of settings, and ends them with the module."""
    shared: dict[str, Server] = {}
    every: list[Server] = []

    def start(settings: dict[str, Any], *, own: bool = False, environ: dict[str, str] | None = None) -> Server:
        kind = json.dumps(settings, sort_keys=True)
        if not own and kind in shared:
            return shared[kind]
        home = Home(tmp_path_factory.mktemp("feature"))
        home.environ |= environ or {}
        home.configure(settings)
        server = Server(home)
        every.append(server)
        server.start()
        if not own:
            shared[kind] = server
        return server

    yield start
    for server in every:
        server.close()


@pytest.fixture
def world(servers: Callable[..., Server]) -> Iterator[World]:
    made = World(servers)
    yield made
    for handle in made.tasks.values():  # the next scenario on this server finds it idle
        try:
            handle.cancel()
        except LlamaOrchError:
            continue
    for client in made.clients:
        client.close()


# --- given -----------------------------------------------------------------------------------------------------------


@given(parsers.re(r"a server with (?P<slots>\d+) slots?$"))
def a_server(world: World, slots: str) -> None:
    world.serve({"pools": [pool(int(slots))]})


@given(
    parsers.re(
        r"a server with (?P<slots>\d+) slots? whose queue takes (?P<places>\d+) tasks?(?P<drops> and drops the oldest batch task)?$"
    )
)
def a_server_with_a_short_queue(world: World, slots: str, places: str, drops: str | None) -> None:
    queue = {"capacity": int(places)} | ({"full_policy": "drop-lru"} if drops else {})
    world.serve({"pools": [pool(int(slots), queue=queue)]})


@given(parsers.parse('"{name}" of {tokens:d} tokens has ended'))
def a_task_that_ended(world: World, name: str, tokens: int) -> None:
    world.submit(name, f"{name} [[mock tokens={tokens}]]")
    assert world.wait(name).usage.completion_tokens == tokens


@given(parsers.parse('"{name}" occupies its slot'))
def a_task_that_runs(world: World, name: str) -> None:
    world.submit(name, ENDLESS, max_tokens=1_000_000)
    world.accepted(name)
    world.until(name, lambda task: task.state == "running", f"{name} runs")


@given(parsers.parse('"{one}" and "{two}" wait'))
def two_that_wait(world: World, one: str, two: str) -> None:
    for name in (one, two):
        world.submit(name, f"{name} [[mock tokens=5]]")
        world.accepted(name)


# --- when ------------------------------------------------------------------------------------------------------------


@given(parsers.re(r'the client submitted "(?P<name>.*)" of (?P<tokens>\d+) tokens(?P<batch> as batch)?$'))
@when(parsers.re(r'the client submits "(?P<name>.*)" of (?P<tokens>\d+) tokens(?P<batch> as batch)?$'))
def submits(world: World, name: str, tokens: str, batch: str | None) -> None:
    world.submit(name, f"{name} [[mock tokens={tokens}]]", priority="batch" if batch else "interactive")


@when(parsers.parse('the client submits "{name}" of {tokens:d} tokens, {rate:d} a second'))
def submits_slow(world: World, name: str, tokens: int, rate: int) -> None:
    world.submit(name, f"{name} [[mock tokens={tokens} rate={rate}]]", max_tokens=tokens * 2)


@given(parsers.parse('the client submitted "{name}" of {tokens:d} tokens under the key "{key}"'))
@when(parsers.parse('the client submits "{name}" of {tokens:d} tokens under the key "{key}"'))
def submits_under_a_key(world: World, name: str, tokens: int, key: str) -> None:
    world.submit(name, f"[[mock tokens={tokens}]]", key=key)


@when(parsers.parse("the client submits a task whose {field} is {value}"))
def submits_with(world: World, field: str, value: str) -> None:
    wrong = {field: json.loads(value)}
    world.submit("wrong", "[[mock tokens=1]]", **wrong)


@when(parsers.parse('the client cancels "{name}"'))
def cancels(world: World, name: str) -> None:
    world.attempt(world.tasks[name].cancel)
    assert world.refusal is None


@when(parsers.parse('the client follows "{name}" to its end'))
@when(parsers.parse('it follows "{name}" to its end'))
def follows(world: World, name: str) -> None:
    with world.accepted(name).stream() as stream:
        world.seen = list(stream)


@when(parsers.parse('the client follows "{name}" after its token {index:d}'))
def follows_after(world: World, name: str, index: int) -> None:
    handle = world.accepted(name)
    with handle.stream() as stream:
        last = next(event.frame_id for event in stream if isinstance(event, Token) and event.index == index)
    with handle.stream(after=last) as stream:
        world.seen = list(stream)


@when(parsers.parse('it follows "{name}" while the server is killed and started again after {tokens:d} tokens'))
def follows_through_a_kill(world: World, name: str, tokens: int) -> None:
    handle = world.accepted(name)
    world.seen = []

    def read() -> None:
        with handle.stream() as stream:
            for event in stream:
                world.seen.append(event)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: len(world.seen) > tokens, f"{tokens} tokens")
    world.server.kill()
    world.server.restart()
    reader.join()


# --- then ------------------------------------------------------------------------------------------------------------


@then(parsers.re(r'"(?P<name>.*)" was accepted with (?P<before>\d+) tasks? before it$'))
def was_accepted(world: World, name: str, before: str) -> None:
    admission = world.accepted(name).admission
    assert admission is not None
    assert admission.queue_position == int(before)
    assert admission.predicted_start_ms_p10 <= admission.predicted_start_ms <= admission.predicted_start_ms_p90


@then(parsers.parse('it saw the start, {tokens:d} tokens in order and the one end "{finish}"'))
def saw_everything(world: World, tokens: int, finish: str) -> None:
    said = [event for event in world.seen if not isinstance(event, Reconnected)]
    assert isinstance(said[0], Started)
    saw(said[1:], 0, tokens - 1, finish)


@then(parsers.parse('it saw the tokens {first:d} to {last:d} in order and the one end "{finish}"'))
def saw_the_rest(world: World, first: int, last: int, finish: str) -> None:
    saw(world.seen, first, last, finish)


def saw(events: list[Event], first: int, last: int, finish: str) -> None:
    *tokens, end = events
    assert [event.index for event in tokens if isinstance(event, Token)] == list(range(first, last + 1))
    assert len(tokens) == last - first + 1
    assert isinstance(end, End)
    assert (end.finish_reason, end.tokens_out) == (finish, last + 1)


@then(parsers.parse('it is refused with {status:d} "{code}"'))
def is_refused(world: World, status: int, code: str) -> None:
    assert world.refusal is not None, "it was accepted"
    assert (world.refusal.status, world.refusal.code) == (status, code)


@then("the refusal is retriable, says how long to wait, and what to do")
def is_retriable(world: World) -> None:
    assert world.refusal is not None
    assert world.refusal.retriable
    assert (world.refusal.retry_after_ms or 0) > 0
    assert world.refusal.remedy


@then(parsers.parse('the refusal says "{words}"'))
def says(world: World, words: str) -> None:
    assert world.refusal is not None
    assert words in world.refusal.message


@then(parsers.parse('"{name}" completes with {tokens:d} tokens'))
def completes(world: World, name: str, tokens: int) -> None:
    task = world.wait(name)
    assert (task.state, task.usage.completion_tokens) == ("completed", tokens)


@then(parsers.parse('"{name}" is cancelled'))
def is_cancelled(world: World, name: str) -> None:
    assert world.wait(name).state == "cancelled"


def new_id() -> str:
    """An id that nothing has."""
    return str(uuid.uuid4())
