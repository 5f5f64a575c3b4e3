"""One running attempt at a server that speaks OpenAI's API: its requests, and the handle of who asked for it."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import msgspec

from .. import (
    AttemptEnd,
    AttemptFailure,
    AttemptSink,
    AttemptStart,
    EntryBatch,
    GenerateJob,
)
from ._http import HttpClient, HttpError, StreamRequest
from ._openai_dialects import RequestError
from ._openai_wire import failure_of_body
from ._stream_attempt import failed_plugin

#: as much of an error's body is read
MAX_REFUSAL_BYTES: Final = 65_536


class Answer(Protocol):
    """What reads one request's answer: a stream, or an answer in one piece."""

    start: AttemptStart | None
    end: AttemptEnd | None
    failure: AttemptFailure | None

    def feed(self, data: bytes) -> EntryBatch | None: ...

    def finish(self) -> EntryBatch | None: ...


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to be sent."""

    path: str
    body: bytes
    answer: Answer
    #: answers that it makes
    choices: int = 1


class Owner(Protocol):
    """The client that an attempt belongs to."""

    http: HttpClient
    live: set[Attempt]

    def plan(self, job: GenerateJob, first: int) -> Planned | None:
        """The request that makes answer ``first`` and those that come with it; ``None`` = something has to be asked first.

        Raises:
            RequestError: this server cannot do the job.
        """
        ...

    async def prepare(self, job: GenerateJob) -> AttemptFailure | None:
        """Ask what :meth:`plan` needs; the failure that it is when there is no answer."""
        ...

    async def slot_free(self, attempt: Attempt) -> str: ...

    def explained(self, text: str) -> str: ...


class _Reply:
    """The answer to one request, as its bytes come."""

    __slots__ = ("_attempt", "_refusal", "_status", "planned")

    def __init__(self, attempt: Attempt, planned: Planned) -> None:
        self._attempt = attempt
        self._status = 0
        self._refusal = b""
        self.planned = planned

    def on_head(self, status: int) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        if self._status != 200:
            if len(self._refusal) < MAX_REFUSAL_BYTES:
                self._refusal += data
            return
        answer = self.planned.answer
        if answer.end is None and answer.failure is None:
            self._attempt.heard(self, answer.feed(data))

    def on_done(self) -> None:
        answer = self.planned.answer
        if self._status != 200:
            self._attempt.refused(self, failure_of_body(self._status, self._refusal, route=self.planned.path))
        elif answer.end is None and answer.failure is None:
            self._attempt.heard(self, answer.finish())

    def on_lost(self, error: HttpError) -> None:
        self._attempt.lost(self, error)


class Attempt:
    """The handler of its streams, one after another where the server makes one answer at a time."""

    __slots__ = (
        "_ends",
        "_first_said_s",
        "_job",
        "_made",
        "_owner",
        "_paused",
        "_reply",
        "_request",
        "_sink",
        "_task",
        "took_off",
        "vacated",
    )

    def __init__(self, owner: Owner, job: GenerateJob, sink: AttemptSink) -> None:
        self._owner = owner
        self._job = job
        self._sink: AttemptSink | None = sink
        #: what is heard of; an earlier one may still be on its way to its last byte
        self._reply: _Reply | None = None
        self._request: StreamRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._ends: list[AttemptEnd] = []
        self._made = 0
        self._first_said_s = 0.0
        self._paused = False
        #: the server said something of it
        self.took_off = False
        #: the server itself said that it is done with it, or never got it
        self.vacated = False
        owner.live.add(self)

    @property
    def width(self) -> int:
        """Answers that the server is making for it at once."""
        return self._reply.planned.choices if self._reply is not None else 1

    # --- AttemptHandle

    def cancel(self) -> None:
        if self._sink is None:
            return
        self._leave()
        if self._task is not None:
            self._task.cancel()
        if self._request is None:
            self.vacated = True
        else:
            self._request.cancel()

    async def slot_free(self) -> str:
        return "slot-free" if self.vacated else await self._owner.slot_free(self)

    def resume(self) -> None:
        self._paused = False
        if self._request is not None:
            self._request.resume()

    # --- sending

    def send(self) -> None:
        """Ask for the next answer; nothing is said from within this call."""
        loop = asyncio.get_running_loop()
        try:
            planned = self._owner.plan(self._job, self._made)
        except RequestError as error:
            self.vacated = True
            loop.call_soon(self._fail, AttemptFailure(kind="invalid", message=str(error), retriable=False))
            return
        except Exception as error:
            self.vacated = True
            loop.call_soon(self._fail, failed_plugin(error))
            return
        if planned is None:
            self._task = loop.create_task(self._prepare())
            return
        self._reply = _Reply(self, planned)
        self._request = self._owner.http.stream("POST", planned.path, planned.body, self._reply)
        if self._paused:
            self._request.pause()

    async def _prepare(self) -> None:
        try:
            failure = await self._owner.prepare(self._job)
            if failure is None and self._sink is not None:
                self.send()
        except Exception as error:
            # Nobody waits for this task: whatever it raises, the attempt must not be left without an end.
            failure = failed_plugin(error)
        if failure is not None:
            self.vacated = True
            self._fail(failure)

    # --- for replies

    def heard(self, reply: _Reply, batch: EntryBatch | None) -> None:
        """A reply went on, or is complete."""
        if self._reply is reply:
            self._advance(reply.planned, batch)

    def refused(self, reply: _Reply, failure: AttemptFailure) -> None:
        """The server answered with something else than 200."""
        if self._reply is reply:
            self.vacated = True
            self._fail(failure)

    def lost(self, reply: _Reply, error: HttpError) -> None:
        """The connection broke off."""
        if self._reply is reply:
            self.vacated = self.vacated or error.kind == "unreachable"
            self._fail(AttemptFailure(kind=error.kind, message=error.message))

    # --- inside

    def _pause_under_pressure(self) -> None:
        sink, request = self._sink, self._request
        if sink is not None and request is not None and sink.pressure():
            self._paused = True
            request.pause()

    def _advance(self, planned: Planned, batch: EntryBatch | None) -> None:
        answer = planned.answer
        if self._sink is not None and not self.took_off and answer.start is not None:
            self.took_off = True
            self._first_said_s = asyncio.get_running_loop().time()
            self._sink.started(answer.start)
        if self._sink is not None and batch is not None:
            self._sink.entries(batch)
            self._pause_under_pressure()
        if self._sink is None:
            return
        if answer.end is not None:
            if self._request is not None:
                self._request.resume()  # nobody else does: HTTP's own end may still be on its way, behind what was read
            self._made += planned.choices
            self._ends.append(answer.end)
            if self._made < self._job.n and not self._job.inputs:
                self.send()
            else:
                self._end()
        elif answer.failure is not None:
            self._fail(answer.failure)
            if self._request is not None:
                self._request.cancel()

    def _end(self) -> None:
        sink, first = self._sink, self._ends[0]
        assert sink is not None
        reasons = tuple(reason for end in self._ends for reason in (end.finish_reasons or (end.finish_reason,)))
        spent_us = round((asyncio.get_running_loop().time() - self._first_said_s) * 1e6)
        self.vacated = True
        self._leave()
        sink.ended(
            msgspec.structs.replace(
                first,
                finish_reasons=reasons if self._job.n > 1 and not self._job.inputs else (),
                # The server's own account where it gives one, else what was seen from here.
                decode_us=sum(end.decode_us for end in self._ends) or max(spent_us, 0),
                tokens=sum(end.tokens for end in self._ends),
            )
        )

    def _fail(self, failure: AttemptFailure) -> None:
        sink = self._sink
        if sink is not None:
            self._leave()
            sink.failed(msgspec.structs.replace(failure, message=self._owner.explained(failure.message)))

    def _leave(self) -> None:
        self._sink = self._reply = None
        self._owner.live.discard(self)
