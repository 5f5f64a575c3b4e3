"""From what pools tell to facts on disk, and from there to whoever commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from .connection import Lines
from .logs import BoundedLog
from .outbox import Entry, Outbox, kind_of
from .protocol import Fact, ProtocolError

#: between two tries to write to a disk that takes nothing
_RETRY_S: Final = 1.0


class Delivery:
    """Writes facts in batches, and sends them once they are durable.

    Args:
        commander: the connection that facts go to; ``None`` = nobody is there, and they wait.
    """

    def __init__(self, outbox: Outbox, log: BoundedLog, commander: Callable[[], Lines | None]) -> None:
        self._outbox = outbox
        self._log = log
        self._commander = commander
        #: facts of this turn of the loop, with their kinds
        self._told: list[tuple[str, Fact]] = []
        self._work = asyncio.Event()

    def tell(self, fact: Fact) -> None:
        """Something happened. What is told in one turn of the loop belongs together."""
        if not self._told:
            asyncio.get_running_loop().call_soon(self._batch)
        self._told.append((kind_of(fact), fact))

    def ack(self, incarnation: str, n: int) -> None:
        """The journal has the facts of an incarnation up to this number."""
        self._outbox.ack(incarnation, n)
        self._work.set()

    def send_all(self) -> None:
        """Somebody new commands: all that is not acknowledged comes again."""
        self._send(self._outbox.pending)

    async def run(self) -> None:
        """Make facts durable, then send them. A disk that takes nothing is tried again and again."""
        failing = False
        self._work.set()  # for what an earlier run left
        while True:
            await self._work.wait()
            self._work.clear()
            if not self._outbox:
                continue
            work = self._outbox.begin()
            error = None
            try:
                await asyncio.to_thread(self._outbox.perform, work)
            except OSError as failure:
                error = failure
            fresh = self._outbox.finish(work, error)
            if error is not None:
                if not failing:
                    self._log.say("error", "outbox", f"Facts cannot be written ({error}); they wait in memory.")
                failing = True
                await asyncio.sleep(_RETRY_S)
                self._work.set()
                continue
            if failing:
                failing = False
                self._log.say("info", "outbox", "Facts can be written again.")
            self._send(fresh)

    def _batch(self) -> None:
        told, self._told = self._told, []
        self._outbox.add(told)
        self._work.set()

    def _send(self, entries: Sequence[Entry]) -> None:
        commander = self._commander()
        if commander is None:
            return
        for entry in entries:
            try:
                commander.send(entry.fact)
            except ProtocolError as error:
                self._log.say("error", "fact", f"{entry.fact.name} cannot be told: {error}")
                self._outbox.drop(entry)
