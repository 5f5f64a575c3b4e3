"""Stored responses: whose they are, what deletes them, and their events over crashes (API-2)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.api.render.responses import ResponseRenderer, Shown
from llama_orch.core.errors import JournalUnavailableError, NotFoundError
from llama_orch.core.events.response import ResponseDeleted
from llama_orch.core.events.task import TaskCancelled
from llama_orch.core.services.caller import Caller
from llama_orch.core.types import TaskRequest

from ...support.examples import search
from ...support.stage import Stage, on_stage

CALLER = Caller()


def stored(stage: Stage, *, store: bool = True, api: str = "openai.responses", shown: bool = True) -> str:
    """A task that is a response, in its queue or on its engine."""
    admission = stage.run(
        stage.services.admission.submit(
            TaskRequest(model_ref="m", prompt="x"),
            CALLER,
            correlation="c",
            api=api,
            shown={"store": store, "input": [], "echo": {}} if shown else None,
        )
    )
    return str(admission.task_id)


def ended(stage: Stage, **options: Any) -> str:
    task_id = stored(stage, **options)
    attempt = stage.attempt(task_id)
    attempt.start()
    attempt.say("hello")
    attempt.end()
    stage.settle()
    return task_id


def get(stage: Stage, task_id: str, caller: Caller = CALLER) -> Any:
    return stage.run(stage.services.responses.get(task_id, caller))


def delete(stage: Stage, task_id: str, caller: Caller = CALLER) -> None:
    stage.run(stage.services.responses.delete(task_id, caller, correlation="d"))


def test_a_deleted_response_is_gone_also_after_a_crash_and_says_who_deleted_it() -> None:
    with on_stage() as stage:
        task_id = ended(stage)
        assert get(stage, task_id)[0].task_id == task_id
        delete(stage, task_id)
        for _ in range(2):
            with pytest.raises(NotFoundError):
                get(stage, task_id)
            with pytest.raises(NotFoundError):
                delete(stage, task_id)
            stage.restart()
        (fact,) = stage.facts(ResponseDeleted)
        assert (fact.payload.task_id, fact.actor, fact.correlation) == (task_id, "localhost", "d")
        assert stage.info(task_id).text == "hello"


def test_a_running_response_is_cancelled_before_it_is_deleted() -> None:
    with on_stage() as stage:
        task_id = stored(stage)
        stage.attempt(task_id).start()
        stage.settle()
        delete(stage, task_id)
        assert stage.attempt(task_id).cancelled
        assert len(stage.payloads(TaskCancelled, task_id)) == 1
        assert stage.state(task_id) == "cancelled"


@pytest.mark.parametrize("options", [{"store": False}, {"api": "openai.chat"}, {"shown": False}])
def test_what_is_no_stored_response_is_not_found(options: dict[str, Any]) -> None:
    with on_stage() as stage:
        task_id = ended(stage, **options)
        for look in (get, delete):
            with pytest.raises(NotFoundError):
                look(stage, task_id)
        assert stage.facts(ResponseDeleted) == []


def test_somebody_elses_response_is_not_found() -> None:
    with on_stage() as stage:
        task_id = ended(stage)
        for look in (get, delete):
            with pytest.raises(NotFoundError):
                look(stage, task_id, Caller(owner="other"))
        assert get(stage, task_id)


def test_a_deletion_is_answered_when_the_journal_holds_it_and_no_sooner() -> None:
    with on_stage() as stage:
        task_id, another = ended(stage), ended(stage)
        stage.disk.always = "refused"
        asked = stage.loop.create_task(stage.services.responses.delete(task_id, CALLER, correlation="d"))
        stage.advance(1)
        assert not asked.done()
        assert stage.facts(ResponseDeleted) == []
        with pytest.raises(JournalUnavailableError):
            delete(stage, another)
        stage.disk.always = ""
        stage.advance(10)
        assert asked.done()
        assert len(stage.facts(ResponseDeleted)) == 1
        assert get(stage, another)


class Follower:
    """A client that reads a response's events, and comes back with the last number that it saw."""

    def __init__(self, stage: Stage, task_id: str) -> None:
        self._stage = stage
        self._task_id = task_id
        self.seen: list[dict[str, Any]] = []
        self.over = False

    def connect(self, after: int | None = None) -> asyncio.Task[None]:
        last = self.seen[-1]["sequence_number"] if self.seen else -1
        return self._stage.loop.create_task(self._read(last if after is None else after))

    async def _read(self, after: int) -> None:
        shown = Shown(self._task_id, 0, "m", {"background": True})
        renderer = ResponseRenderer(shown, correlation="c", after=after)
        self._take(renderer.opening())
        async for items in await self._stage.services.streams.open(self._task_id, progress=True):
            data, self.over = renderer.render(items)
            self._take(data)

    def _take(self, data: bytes) -> None:
        for line in data.decode().split("\n"):
            if line.startswith("data: "):
                self.seen.append(json.loads(line[6:]))


pieces = st.lists(st.text("ab ", max_size=3), min_size=1, max_size=8)
moments = st.sets(st.sampled_from(["leave", "kill"]), max_size=2)


@search(120)
@given(st.lists(st.tuples(pieces, moments), max_size=5), st.sampled_from(["stop", "length"]))
def test_whatever_breaks_off_what_a_client_collects_is_one_stream(
    story: list[tuple[list[str], set[str]]], reason: str
) -> None:
    with on_stage() as stage:
        task_id = stored(stage)
        follower = Follower(stage, task_id)
        connection = follower.connect()
        stage.attempt(task_id).start()
        stage.settle()
        said: list[str] = []
        for texts, what in story:
            said += texts
            stage.attempt(task_id).say(*texts)
            stage.settle()
            if "leave" in what:
                connection.cancel()
                stage.settle()
            if "kill" in what:
                stage.restart()
                stage.advance(1)
                again = stage.attempt(task_id)
                again.start()
                for text in said:  # it says the same again, in other pieces
                    again.say(text)
                stage.settle()
            if connection.done():
                connection = follower.connect()
                stage.settle()
        stage.attempt(task_id).end(reason)
        stage.settle()
        assert connection.done()
        assert follower.over
        numbers = [event["sequence_number"] for event in follower.seen]
        assert numbers == list(range(len(numbers)))
        late = Follower(stage, task_id)
        late.connect()
        stage.settle()
        assert late.seen == follower.seen
        deltas = "".join(e["delta"] for e in late.seen if e["type"] == "response.output_text.delta")
        assert deltas == "".join(said)
