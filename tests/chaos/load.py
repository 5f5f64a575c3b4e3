"""Load that never gives up: clients that submit, follow, resume, repeat and cancel while the server dies under them.

Whatever they were told stands in a :class:`Ledger`; the audit compares it with the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .http_client import BROKEN, Refused, SseFrame, call, stream

_PAUSE_S = 0.01
#: how long anything may take that has to happen; reached only when something hangs
PATIENCE_S = 60.0


@dataclass
class Followed:
    """One task as its clients know it."""

    key: str
    request: dict[str, Any]
    #: ids that 202 answers named: one, but for a task that failed retriably and ran again under its key
    accepted: list[str] = field(default_factory=list)
    #: all frames with an id, in the order in which they came, over all connections of the one reader
    frames: list[SseFrame] = field(default_factory=list)
    #: every frame that was ever seen, by id: an id never comes back for other content
    contents: dict[str, SseFrame] = field(default_factory=dict)
    connections: int = 0
    cancel_acknowledged: bool = False
    #: the reader saw an end
    ended: bool = False

    @property
    def task_id(self) -> str:
        """The one that its reader follows."""
        return self.accepted[0]


class Ledger:
    """All that clients were told."""

    def __init__(self) -> None:
        self.tasks: list[Followed] = []
        self.events = 0
        self.broken_connections = 0
        #: what streams said when they broke off, in frames without an id
        self.transport_errors: list[dict[str, Any]] = []
        #: only a power loss may take what readers saw, and is told to them
        self.power_is_lost = False
        self.resumes_lost = 0
        self.refusals: dict[str, int] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def note(self) -> None:
        """A client heard something."""
        self.events += 1
        for at, future in self._waiting:
            if self.events >= at and not future.done():
                future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """A client met what it should not: whoever waits hears of it."""
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)

    async def more(self, count: int) -> None:
        """Wait until clients heard so many more things."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self.events + count, future))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await future
        finally:
            self._waiting = [w for w in self._waiting if w[1] is not future]

    @property
    def ended(self) -> int:
        """Tasks whose end a reader saw."""
        return sum(task.ended for task in self.tasks)


Maker = Callable[[random.Random], dict[str, Any]]


def mock_request(rng: random.Random) -> dict[str, Any]:
    """A task for the mock: short or long, quick or slow, plain or with characters of many tokens."""
    tokens = rng.choice((1, 4, 16, 40, 80))
    rate = rng.choice((100, 200, 400, 0))
    text = rng.choice(("words", "words", "utf8"))
    return {
        "model_ref": "mock",
        "prompt": f"[[mock tokens={tokens} rate={rate} text={text}]] {rng.getrandbits(32):08x}",
        "priority": rng.choice(("interactive", "interactive", "batch")),
        "recovery": rng.choice(("continue", "continue", "strict", "none")),
    }


class Load:
    """Clients around one server's port."""

    def __init__(
        self, port: int, ledger: Ledger, *, seed: int, make: Maker = mock_request, cancels: float = 0.15
    ) -> None:
        self._port = port
        self.ledger = ledger
        self._rng = random.Random(seed)
        self._make = make
        self._cancels = cancels
        self._stopping = False
        self._clients: list[asyncio.Task[None]] = []
        self._count = 0

    def start(self, clients: int) -> None:
        """Begin."""
        self._clients = [asyncio.create_task(self._client()) for _ in range(clients)]
        for client in self._clients:
            client.add_done_callback(self._done)

    def _done(self, client: asyncio.Task[None]) -> None:
        if not client.cancelled() and (error := client.exception()) is not None:
            self.ledger.fail(error)

    async def finish(self) -> None:
        """No new tasks; wait until those that were begun have ended, and raise what went wrong."""
        self._stopping = True
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*self._clients)
        except TimeoutError:
            raise AssertionError(f"clients wait for ever: {await self.unfinished()}") from None

    async def abort(self) -> None:
        """Drop everything."""
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def unfinished(self) -> list[str]:
        """What clients still wait for, for a test that hangs."""
        said = []
        for task in self.ledger.tasks:
            if not task.ended:
                last = task.frames[-1].id if task.frames else "nothing"
                answer = await call(self._port, "GET", f"/v1/tasks/{task.task_id}") if task.accepted else None
                said.append(f"{task.key}, connection {task.connections}, after {last}; server: {answer}")
        return said

    async def goes_on(self, count: int) -> None:
        """Wait until clients heard so many more things; else tell what they wait for."""
        self.check()
        try:
            await self.ledger.more(count)
        except TimeoutError:
            raise AssertionError(f"clients hear nothing: {await self.unfinished()}") from None

    def check(self) -> None:
        """Raise what went wrong in a client."""
        for client in self._clients:
            if client.done() and not client.cancelled() and client.exception() is not None:
                client.result()

    async def _client(self) -> None:
        rng = random.Random(self._rng.getrandbits(64))
        while not self._stopping:
            self._count += 1
            task = Followed(f"key-{self._count}", self._make(rng))
            self.ledger.tasks.append(task)
            await self.submit(task)
            if rng.random() < 0.2:
                await self.submit(task)
            cancel: asyncio.Task[None] | None = None
            if rng.random() < self._cancels:
                cancel = asyncio.create_task(self._cancel(task, rng.choice((0, 1, 5))))
            await self.follow(task)
            if cancel is not None:
                await cancel

    async def submit(self, task: Followed) -> None:
        """Submit until the task is accepted."""
        while True:
            try:
                answer = await call(self._port, "POST", "/v1/tasks", task.request, Idempotency_Key=task.key)
            except BROKEN:
                self.ledger.broken_connections += 1
            else:
                if answer.status == 202:
                    if answer.body["task_id"] not in task.accepted:
                        task.accepted.append(answer.body["task_id"])
                    self.ledger.note()
                    return
                self._refused(answer.status, answer.body)
            await asyncio.sleep(_PAUSE_S)

    async def follow(self, task: Followed) -> None:
        """Read a task's stream to its end, over as many connections as that takes."""
        after = ""
        while not task.ended:
            task.connections += 1
            try:
                async for frame in stream(self._port, task.task_id, after):
                    if not frame.id:
                        assert frame.event == "error", frame
                        assert frame.data["code"] == "JOURNAL_UNAVAILABLE", frame
                        self.ledger.transport_errors.append(frame.data)
                        break
                    after = frame.id
                    task.frames.append(frame)
                    assert task.contents.setdefault(frame.id, frame) == frame, (
                        f"{task.task_id}: {frame.id} was used twice"
                    )
                    task.ended = frame.event in {"end", "error"}
                    self.ledger.note()
            except BROKEN:
                self.ledger.broken_connections += 1
            except Refused as refused:
                answer = refused.answer
                if answer.status == 409 and answer.body["code"] == "RESUME_LOST":
                    after = self._lost(task, answer.body["last_id_held"])
                else:
                    self._refused(answer.status, answer.body)
            if not task.ended:
                await asyncio.sleep(_PAUSE_S)

    async def _cancel(self, task: Followed, behind: int) -> None:
        """Cancel once the reader has so many frames."""
        while len(task.frames) < behind and not task.ended:
            await asyncio.sleep(_PAUSE_S)
        while True:
            with contextlib.suppress(*BROKEN):
                answer = await call(self._port, "POST", f"/v1/tasks/{task.task_id}/cancel")
                if answer.status == 204:
                    task.cancel_acknowledged = True
                    self.ledger.note()
                    return
                self._refused(answer.status, answer.body)
            await asyncio.sleep(_PAUSE_S)

    def _lost(self, task: Followed, held: str) -> str:
        """A power loss took what this reader had seen last: it goes back to what the journal holds."""
        assert self.ledger.power_is_lost, f"{task.task_id}: {task.frames[-1].id} was lost"
        self.ledger.resumes_lost += 1
        assert held == "" or held in task.contents, held
        keep = [frame.id for frame in task.frames].index(held) + 1 if held else 0
        assert keep < len(task.frames)
        del task.frames[keep:]
        return held

    def _refused(self, status: int, body: Any) -> None:
        code = body.get("code", "") if isinstance(body, dict) else str(body)
        assert status in (429, 503), (status, body)
        self.ledger.refusals[code] = self.ledger.refusals.get(code, 0) + 1
