"""One attempt at llama.cpp: the streams of its answers, one after another, as start, entries, and end or failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from .. import AttemptEnd, AttemptFailure, AttemptSink, EntryBatch, GenerateJob, UnavailableError
from ._http import HttpError, StreamRequest
from ._llama_bodies import RefusedError, chat_body, completion_body, require
from ._llama_chat_frames import ChatStream
from ._llama_frames import CompletionStream, failure_of_body
from ._llama_wire import Abilities

if TYPE_CHECKING:
    from .llamacpp import LlamaCpp

#: as much of an error's body is read
MAX_REFUSAL_BYTES: Final = 65_536


class Attempt:
    """One running attempt, and the handle of who asked for it.

    Several answers to one prompt are made one after another on the same slot, the k-th with ``seed + k``.
    """

    __slots__ = (
        "_choice",
        "_ends",
        "_engine",
        "_job",
        "_part",
        "_prompt",
        "_task",
        "sink",
        "slot",
        "took_off",
        "vacated",
    )

    def __init__(self, engine: LlamaCpp, job: GenerateJob, sink: AttemptSink) -> None:
        self._engine = engine
        self._job = job
        self._prompt: str | Sequence[int | str] = job.prompt + job.prefix
        self._choice = 0
        self._ends: list[AttemptEnd] = []
        self._part: _Part | None = None
        self._task: asyncio.Task[None] | None = None
        #: hears of it; ``None`` once there is nothing more to hear
        self.sink: AttemptSink | None = sink
        self.slot = job.slot
        #: the engine said something of the answer that is being made
        self.took_off = False
        #: the engine itself said that it is done with it, or never took it
        self.vacated = False
        engine.live.add(self)

    def begin(self) -> None:
        """Ask for the first answer; the sink hears nothing from within this call."""
        job = self._job
        try:
            require(job, self._engine.abilities)
        except RefusedError as error:
            self._refuse(error)
            return
        if job.chat is not None and self._engine.abilities is None:
            self._task = asyncio.get_running_loop().create_task(self._learn())
            return
        if job.prompt_ids:
            self._prompt = [*job.prompt_ids, job.prefix] if job.prefix else list(job.prompt_ids)
        elif job.chat is None and not job.parse_special:
            self._task = asyncio.get_running_loop().create_task(self._tokenize())
            return
        self._send()

    # --- AttemptHandle

    def cancel(self) -> None:
        if self.sink is None:
            return
        self._leave()
        if self._task is not None:
            self._task.cancel()
        if self._part is None:
            self.vacated = True
        else:
            self._part.request.cancel()

    async def slot_free(self) -> str:
        return "slot-free" if self.vacated else await self._engine.slot_free(self)

    def resume(self) -> None:
        if self._part is not None:
            self._part.request.resume()

    # --- for the parts

    def begun(self, part: _Part) -> None:
        """The engine took an answer on."""
        self.took_off = True
        if self._choice == 0 and self.sink is not None and part.stream.start is not None:
            self.sink.started(part.stream.start)

    def said(self, part: _Part, batch: EntryBatch) -> None:
        """It said something."""
        if self._choice:
            batch.choices = [self._choice] * len(batch)
        sink = self.sink
        if sink is not None:
            sink.entries(batch)
            if sink.pressure():
                part.request.pause()

    def over(self, end: AttemptEnd) -> None:
        """An answer is complete: the next one, or the end of it all."""
        if self.sink is None:
            return
        self._ends.append(end)
        if len(self._ends) < self._job.n:
            self._choice += 1
            self.took_off = False
            self._send()
            return
        self.vacated = True
        sink = self._leave()
        if sink is not None:
            sink.ended(end if self._job.n == 1 else _together(self._ends))

    def fail(self, failure: AttemptFailure, *, vacated: bool = False) -> None:
        """There will be no more."""
        self.vacated = self.vacated or vacated
        sink = self._leave()
        if sink is not None:
            sink.failed(failure)

    # --- inside

    async def _learn(self) -> None:
        """What a chat may ask for, and how, follows from what the server has: ask it first."""
        failure = await self._engine.learn_or_fail()
        if failure is not None:
            self.fail(failure, vacated=True)
        elif self.sink is not None:
            self.begin()

    async def _tokenize(self) -> None:
        """The prompt's special tokens are plain text here: tokenize it first."""
        try:
            self._prompt = await self._engine.tokenize(str(self._prompt), add_special=True, parse_special=False)
        except UnavailableError as error:
            self.fail(AttemptFailure(kind="unreachable", message=error.message), vacated=True)
        else:
            if self.sink is not None:
                self._send()

    def _send(self) -> None:
        job, chat = self._job, self._job.chat
        try:
            if chat is None:
                path, body = "/completion", completion_body(job, self._prompt, self._choice)
            else:
                abilities = self._engine.abilities or Abilities()
                path, body = "/v1/chat/completions", chat_body(job, chat, abilities, self._choice)
        except RefusedError as error:
            self._refuse(error)
            return
        stream = (CompletionStream if chat is None else ChatStream)(logprobs=job.logprobs, top=job.top_logprobs)
        self._part = part = _Part(self, stream)
        part.request = self._engine.http.stream("POST", path, body, part)

    def _refuse(self, error: RefusedError) -> None:
        self.vacated = True
        refusal = AttemptFailure(kind="invalid", message=str(error), retriable=False)
        asyncio.get_running_loop().call_soon(self.fail, refusal)

    def _leave(self) -> AttemptSink | None:
        sink, self.sink = self.sink, None
        self._engine.live.discard(self)
        return sink


class _Part:
    """One answer: the handler of its stream. After its end only HTTP's own end is still heard, and ignored."""

    __slots__ = ("_attempt", "_over", "_refusal", "_status", "request", "stream")

    request: StreamRequest

    def __init__(self, attempt: Attempt, stream: CompletionStream | ChatStream) -> None:
        self._attempt = attempt
        self._status = 0
        self._refusal = b""
        self._over = False
        self.stream = stream

    # --- StreamHandler

    def on_head(self, status: int) -> None:
        self._status = status

    def on_data(self, data: bytes) -> None:
        attempt, stream = self._attempt, self.stream
        if self._over or attempt.sink is None:
            return
        if self._status != 200:
            if len(self._refusal) < MAX_REFUSAL_BYTES:
                self._refusal += data
            return
        batch = stream.feed(data)
        if not attempt.took_off and stream.start is not None:
            attempt.begun(self)
        if batch is not None:
            attempt.said(self, batch)
        if stream.end is not None:
            self._over = True
            self.request.resume()  # nobody else does: HTTP's own end may still be on its way, behind what was read
            attempt.over(stream.end)
        elif stream.failure is not None:
            self._over = True
            attempt.fail(stream.failure)
            self.request.cancel()

    def on_done(self) -> None:
        if self._over:
            return
        self._over = True
        if self._status != 200:
            self._attempt.fail(failure_of_body(self._status, self._refusal), vacated=True)
            return
        self.stream.finish()
        if self.stream.failure is not None:
            self._attempt.fail(self.stream.failure)

    def on_lost(self, error: HttpError) -> None:
        if not self._over:
            self._over = True
            failure = AttemptFailure(kind=error.kind, message=error.message)
            self._attempt.fail(failure, vacated=error.kind == "unreachable")


def _together(ends: Sequence[AttemptEnd]) -> AttemptEnd:
    """The end of several answers to one prompt, which is counted once."""

    def total(of: Callable[[AttemptEnd], int]) -> int:
        return sum(map(of, ends))

    return msgspec.structs.replace(
        ends[0],
        finish_reasons=tuple(end.finish_reason for end in ends),
        prefill_us=total(lambda end: end.prefill_us),
        decode_us=total(lambda end: end.decode_us),
        tokens=total(lambda end: end.tokens),
    )
