"""Where a pool's engine comes from: a process that is started here, a server that runs elsewhere, or this process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..core.engine_ports import LauncherFactory, LaunchPlan
from ..core.errors import ConfigError
from . import causes
from . import identity as identities
from .identity import Identity, ProcessTable
from .lifecycle import Trouble
from .logs import cut
from .oom import OomKills
from .preparing import StartError
from .process import EngineProcess, adopt, reap_marked, run_stop, spawn


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that can be spoken to, or soon."""

    url: str
    generation: int
    #: it ran already
    adopted: bool = False
    #: epoch of the server that was last told of it as ready; 0 = none
    told_epoch: int = 0


class Host(Protocol):
    """Makes engines available to one worker; ``on_exit`` of its constructor hears when one is gone."""

    #: it is ours alone: nobody else sends it work, and its end can be asked for
    owned: bool
    #: it is a process whose end is noticed by itself
    watched: bool

    def adoptable(self) -> bool:
        """Whether one may be running already, that the next :meth:`begin` would take over."""
        ...

    def begin(self, config: Mapping[str, Any]) -> Found:
        """Make one available. :raises StartError: it cannot be."""
        ...

    def terminate(self) -> None:
        """Ask it to end; ``on_exit`` follows."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def detach(self) -> None:
        """Leave it alone from now on; ``on_exit`` does not follow."""
        ...

    def tend(self) -> None:
        """Called now and then while it runs."""
        ...

    def pids(self) -> list[int]:
        """Its processes, for a look at what they take."""
        ...

    def said(self) -> Trouble | None:
        """What its log names as a cause, while it still runs."""
        ...

    def note_told(self, epoch: int) -> None:
        """The server of this epoch is told of it as ready; it is still known after a restart of this program."""
        ...


class ExternalHost:
    """A server that somebody else runs at a URL, or (without a URL) an engine inside this process."""

    watched = False

    def __init__(self, url: str, on_exit: Callable[[Trouble], None], next_generation: Callable[[], int]) -> None:
        self.owned = not url
        self._url = url
        self._on_exit = on_exit
        self._next_generation = next_generation

    def adoptable(self) -> bool:
        return not self.owned

    def begin(self, config: Mapping[str, Any]) -> Found:
        return Found(url=self._url, generation=self._next_generation())

    def terminate(self) -> None:
        self._on_exit(Trouble("given-up"))

    def kill(self) -> None:
        """There is nothing to kill."""

    def detach(self) -> None:
        """There is nothing to watch."""

    def tend(self) -> None:
        """There is nothing to tend."""

    def pids(self) -> list[int]:
        return []

    def said(self) -> Trouble | None:
        return None

    def note_told(self, epoch: int) -> None:
        """Nobody adopts what somebody else runs."""


class ProcessHost:
    """Starts the engine as a process, and finds its own again after a crash of this program.

    Args:
        pool_id: of the pool.
        seat: names record and log: a pool that is reloaded has two engines for a while.
        port: that it shall listen on; 0 = any free one.
        order: digest of what was ordered; it is recorded with the engine.
        launcher: plans the start.
        directory: for the identity record and the log.
        owner: name of this data directory, see :func:`~llama_orch.pools.identity.owner_of`.
        next_generation: the number of the next start.
        environment: what of it is not secret is passed on to the engine.
    """

    owned = True
    watched = True

    def __init__(
        self,
        pool_id: str,
        seat: str,
        launcher: LauncherFactory,
        *,
        port: int,
        order: str,
        directory: Path,
        owner: str,
        table: ProcessTable,
        on_exit: Callable[[Trouble], None],
        next_generation: Callable[[], int],
        oom: OomKills | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._pool_id = pool_id
        self._launcher = launcher
        self._port = port
        self._order = order
        self._owner = owner
        self._table = table
        self._on_exit = on_exit
        self._next_generation = next_generation
        self._oom = oom or OomKills()
        self._environment = os.environ if environment is None else environment
        self.record = directory / f"{seat}.json"
        self.log_path = directory / f"{seat}.log"
        self._process: EngineProcess | None = None
        self._adopts = True

    def adoptable(self) -> bool:
        if not self._adopts:
            return False
        known = identities.read(self.record)
        return known is not None and identities.alive(known, self._table)

    def begin(self, config: Mapping[str, Any]) -> Found:
        known = identities.read(self.record)
        if self._adopts:
            # Only the first time: later on, what is recorded is what we ended ourselves.
            self._adopts = False
            if known is not None and (plan := self._still_good(known, config)) is not None:
                self._process = adopt(
                    known,
                    plan,
                    log_path=self.log_path,
                    table=self._table,
                    on_exit=self._ended,
                    oom=self._oom,
                    fixed_port=bool(self._port),
                )
                return Found(url=known.url, generation=known.generation, adopted=True, told_epoch=known.told_epoch)
        if known is not None:
            end_recorded(known, self._table)
        port = self._port or free_port()
        generation = self._next_generation()
        marker = f"{self._owner}/{self._pool_id}/{generation}"
        plan = self._plan(config, port, marker)
        try:
            self._process = spawn(
                plan,
                pool_id=self._pool_id,
                generation=generation,
                port=port,
                marker=marker,
                record=self.record,
                log_path=self.log_path,
                table=self._table,
                on_exit=self._ended,
                environment=self._environment,
                oom=self._oom,
                order=self._order,
                fixed_port=bool(self._port),
                inherited=tuple(config.get("held_descriptors", ())),
            )
        except OSError as error:
            raise StartError(causes.trouble("cannot-start", str(error))) from error
        return Found(url=plan.url, generation=self._process.identity.generation)

    def terminate(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def detach(self) -> None:
        if self._process is not None:
            self._process.detach()
            self._process = None

    def tend(self) -> None:
        cut(self.log_path)

    def pids(self) -> list[int]:
        if self._process is None:
            return []
        marker = self._process.identity.marker
        marked = {pid for pid, found in self._table.marked(marker) if found == marker}
        return sorted({self._process.identity.pid, *marked})

    def said(self) -> Trouble | None:
        return None if self._process is None else self._process.said()

    def note_told(self, epoch: int) -> None:
        if self._process is not None and self._process.identity.told_epoch != epoch:
            identity = msgspec.structs.replace(self._process.identity, told_epoch=epoch)
            with contextlib.suppress(OSError):  # then the next run lets it become idle first
                identities.write(self.record, identity)
                self._process.identity = identity

    # --- inside

    def _plan(self, config: Mapping[str, Any], port: int, marker: str) -> LaunchPlan:
        try:
            return self._launcher({**config, "port": port, "marker": marker})
        except ConfigError as error:
            cause = "bad-model" if error.field == "model" else "bad-configuration"
            raise StartError(causes.trouble(cause, error.message, error.what_to_do)) from error

    def _still_good(self, known: Identity, config: Mapping[str, Any]) -> LaunchPlan | None:
        """The plan of a recorded engine that lives and is what would be started now."""
        if not identities.alive(known, self._table):
            return None
        if self._port and self._port != known.port:
            return None
        try:
            plan = self._plan(config, known.port, known.marker)
        except StartError:
            return None
        return plan if identities.plan_digest(plan) == known.plan_digest else None

    def _ended(self, trouble: Trouble) -> None:
        self._process = None
        identities.forget(self.record)
        self._on_exit(trouble)


def end_recorded(identity: Identity, table: ProcessTable) -> None:
    """Kill a recorded process and its group, if it is still that one, with all that it left."""
    if identities.alive(identity, table):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(identity.pid, signal.SIGKILL)
    reap_marked(table, identity.marker, exact=True)
    if identity.stop_argv:
        run_stop(identity.stop_argv)


def free_port() -> int:
    """A port on loopback that nobody listens on just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
