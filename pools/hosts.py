"""Where a pool's engine comes from: a process that is started here, a server that runs elsewhere, or this process."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..core.errors import ConfigError
from ..core.ports import LauncherFactory, LaunchPlan
from ..core.settings import PoolSettings
from . import identity as identities
from .identity import Identity, ProcessTable
from .lifecycle import Trouble
from .process import EngineProcess, adopt, bound, reap_marked, spawn


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that can be spoken to, or soon."""

    url: str
    generation: int
    #: it ran already, and may still be busy with what nobody waits for any more
    adopted: bool = False


class StartError(Exception):
    """There will be no engine from this try."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.detail)
        self.trouble = trouble


class Host(Protocol):
    """Makes engines available to one pool; ``on_exit`` of its constructor hears when one is gone."""

    #: it is ours alone: nobody else sends it work, and its end can be asked for
    owned: bool
    #: it is a process whose end is noticed by itself
    watched: bool

    def begin(self) -> Found:
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


class ExternalHost:
    """A server that somebody else runs at a URL, or (without a URL) an engine inside this process."""

    watched = False

    def __init__(self, url: str, on_exit: Callable[[Trouble], None]) -> None:
        self.owned = not url
        self._url = url
        self._on_exit = on_exit
        self._generation = 0

    def begin(self) -> Found:
        self._generation += 1
        return Found(url=self._url, generation=self._generation)

    def terminate(self) -> None:
        self._on_exit(Trouble("given-up"))

    def kill(self) -> None:
        """There is nothing to kill."""

    def detach(self) -> None:
        """There is nothing to watch."""

    def tend(self) -> None:
        """There is nothing to tend."""


class ProcessHost:
    """Starts the engine as a process, and finds its own again after a crash of this program.

    Args:
        settings: of the pool.
        config: what the launcher gets, but for the port.
        launcher: plans the start.
        directory: for the identity record and the log.
        owner: name of this data directory, see :func:`~llama_orch.pools.identity.owner_of`.
        environment: what of it is not secret is passed on to the engine.
    """

    owned = True
    watched = True

    def __init__(
        self,
        settings: PoolSettings,
        config: Mapping[str, Any],
        launcher: LauncherFactory,
        *,
        directory: Path,
        owner: str,
        table: ProcessTable,
        on_exit: Callable[[Trouble], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._config = dict(config)
        self._launcher = launcher
        self._owner = owner
        self._table = table
        self._on_exit = on_exit
        self._environment = os.environ if environment is None else environment
        self.record = directory / f"{settings.id}.json"
        self.log_path = directory / f"{settings.id}.log"
        self._process: EngineProcess | None = None
        self._generation = 0
        self._adopts = True

    def begin(self) -> Found:
        known = identities.read(self.record)
        if known is not None:
            self._generation = max(self._generation, known.generation)
        if self._adopts:
            # Only the first time: later on, what is recorded is what we ended ourselves.
            self._adopts = False
            if known is not None and (plan := self._still_good(known)) is not None:
                reap_marked(self._table, self._prefix, spare=known.marker)
                self._process = adopt(known, plan, log_path=self.log_path, table=self._table, on_exit=self._ended)
                return Found(url=known.url, generation=known.generation, adopted=True)
        if known is not None and identities.alive(known, self._table):
            end_group(known, self._table, signal.SIGKILL)
        reap_marked(self._table, self._prefix)
        port = self._settings.provisioning.port or free_port()
        plan = self._plan(port)
        self._generation += 1
        try:
            self._process = spawn(
                plan,
                pool_id=self._settings.id,
                generation=self._generation,
                port=port,
                owner=self._owner,
                record=self.record,
                log_path=self.log_path,
                table=self._table,
                on_exit=self._ended,
                environment=self._environment,
            )
        except OSError as error:
            advice = "Check that the data directory can be written and that the program exists."
            raise StartError(Trouble("cannot-start", str(error), advice)) from error
        return Found(url=plan.url, generation=self._generation)

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
        bound(self.log_path)

    # --- inside

    @property
    def _prefix(self) -> str:
        return f"{self._owner}/{self._settings.id}/"

    def _plan(self, port: int) -> LaunchPlan:
        try:
            return self._launcher({**self._config, "port": port})
        except ConfigError as error:
            cause = "bad-model" if error.field == "model" else "bad-configuration"
            raise StartError(Trouble(cause, error.message, error.what_to_do)) from error

    def _still_good(self, known: Identity) -> LaunchPlan | None:
        """The plan of a recorded engine that lives and is what would be started now."""
        if not identities.alive(known, self._table):
            return None
        wanted_port = self._settings.provisioning.port
        if wanted_port and wanted_port != known.port:
            return None
        try:
            plan = self._plan(known.port)
        except StartError:
            return None
        return plan if identities.plan_digest(plan) == known.plan_digest else None

    def _ended(self, trouble: Trouble) -> None:
        self._process = None
        identities.forget(self.record)
        self._on_exit(trouble)


def end_group(identity: Identity, table: ProcessTable, number: signal.Signals) -> None:
    """Signal a recorded process and its group, if it is still that one."""
    if identities.alive(identity, table):
        try:
            os.killpg(identity.pid, number)
        except ProcessLookupError:
            return


def free_port() -> int:
    """A port on loopback that nobody listens on just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
