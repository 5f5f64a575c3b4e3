"""Engine processes: started in a session of their own, watched, ended with all their descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..core.engine_ports import LaunchPlan
from . import causes
from . import identity as identities
from .identity import MARKER, Identity, ProcessTable
from .lifecycle import Trouble
from .logs import cut
from .oom import OomKills

#: as much of a log is searched for a cause
TAIL_BYTES: Final = 64 * 1024
#: between two looks at an adopted process, where the system cannot tell of its end
POLL_S: Final = 0.25
#: how long the end of a container may take
STOP_S: Final = 30.0
#: what engines need not know: this project's own settings and everybody's secrets
_WITHHELD: Final = re.compile(r"^LLORCH_|TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)


class EngineProcess:
    """A living engine process, our child or an adopted one.

    ``on_exit`` is called once, on the event loop, with why it ended.
    """

    def __init__(
        self,
        identity: Identity,
        plan: LaunchPlan,
        log_path: Path,
        table: ProcessTable,
        on_exit: Callable[[Trouble], None],
        child: subprocess.Popen[bytes] | None,
        oom: OomKills,
        fixed_port: bool,
    ) -> None:
        self.identity = identity
        self._oom = oom
        self._oom_before = oom.count()
        self._fixed_port = fixed_port
        self._plan = plan
        self._log_path = log_path
        self._table = table
        self._on_exit: Callable[[Trouble], None] | None = on_exit
        self._child = child
        self._pidfd = -1
        self._poll: asyncio.TimerHandle | None = None
        self._watch()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its whole group."""
        if identities.alive(self.identity, self._table):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.identity.pid, number)

    def detach(self) -> None:
        """Watch it no longer; it lives on."""
        self._on_exit = None
        self._unwatch()
        if self._child is not None:
            # Popen warns when it is forgotten with its process alive; here that is the intention.
            self._child.returncode = 0

    def said(self) -> Trouble | None:
        """The cause that its log names, while it still runs."""
        log = tail(self._log_path, self.identity.log_offset)
        return causes.in_log(log, self._plan.log_causes, fixed_port=self._fixed_port)

    # --- inside

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        if hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(self.identity.pid)
            except OSError:
                loop.call_soon(self._gone)
            else:
                loop.add_reader(self._pidfd, self._gone)
                if not identities.alive(self.identity, self._table):
                    loop.call_soon(self._gone)  # it ended, and its pid went to another, before the watch began
        else:
            self._poll = loop.call_later(POLL_S, self._look)

    def _look(self) -> None:
        if identities.alive(self.identity, self._table):
            self._poll = asyncio.get_running_loop().call_later(POLL_S, self._look)
        else:
            self._gone()

    def _gone(self) -> None:
        on_exit, self._on_exit = self._on_exit, None
        self._unwatch()
        if on_exit is None:
            return
        status: int | None = None
        if self._child is not None:
            # While the child is not waited for, its pid, and with it the group's number, is nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, signal.SIGKILL)
            status = self._child.wait()
        reap_marked(self._table, self.identity.marker, exact=True)
        trouble = causes.of_exit(
            status,
            tail(self._log_path, self.identity.log_offset),
            self._plan.log_causes,
            oom_kills=self._oom.count() - self._oom_before,
            fixed_port=self._fixed_port,
        )
        if not self.identity.stop_argv:
            on_exit(trouble)
            return
        # Ending a container takes a while; it is gone only then.
        loop = asyncio.get_running_loop()
        ended = loop.run_in_executor(None, run_stop, self.identity.stop_argv)
        ended.add_done_callback(lambda _: on_exit(trouble))

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None


def spawn(
    plan: LaunchPlan,
    *,
    pool_id: str,
    generation: int,
    port: int,
    marker: str,
    record: Path,
    log_path: Path,
    table: ProcessTable,
    on_exit: Callable[[Trouble], None],
    environment: Mapping[str, str],
    oom: OomKills,
    order: str,
    fixed_port: bool,
    inherited: Sequence[int] = (),
) -> EngineProcess:
    """Start an engine; when this returns, its identity is on disk.

    ``inherited`` descriptors stay open in it: locks on its model hold for as long as it lives.

    Raises:
        OSError: it cannot be started, or its identity not be written; then nothing is left running.
    """
    log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    cut(log_path)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        offset = os.fstat(log).st_size
        child = subprocess.Popen(
            list(plan.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=plan.workdir or "/",
            env={**child_environment(environment), **plan.env, MARKER: marker},
            pass_fds=tuple(inherited),
        )
    finally:
        os.close(log)
    try:
        identity = Identity(
            pool_id=pool_id,
            generation=generation,
            pid=child.pid,
            # A child that ended at once still has its remains, which tell no start time; it is gone by then anyway.
            start_ticks=table.start_ticks(child.pid) or 0,
            boot_id=table.boot_id(),
            plan_digest=identities.plan_digest(plan),
            url=plan.url,
            port=port,
            marker=marker,
            log_offset=offset,
            order=order,
            stop_argv=plan.stop_argv,
        )
        identities.write(record, identity)
    except OSError:
        child.kill()
        child.wait()
        raise
    return EngineProcess(identity, plan, log_path, table, on_exit, child, oom, fixed_port)


def adopt(
    identity: Identity,
    plan: LaunchPlan,
    *,
    log_path: Path,
    table: ProcessTable,
    on_exit: Callable[[Trouble], None],
    oom: OomKills,
    fixed_port: bool,
) -> EngineProcess:
    """Watch over an engine that an earlier run of this program started."""
    return EngineProcess(identity, plan, log_path, table, on_exit, None, oom, fixed_port)


def reap_marked(table: ProcessTable, prefix: str, *, exact: bool = False, spare: str = "") -> list[int]:
    """Kill the processes whose marker begins so, but for those marked ``spare``; answers their pids."""
    killed = []
    for pid, marker in list(table.marked(prefix)):
        if (exact and marker != prefix) or (spare and marker == spare):
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return killed


def run_stop(argv: tuple[str, ...]) -> None:
    """End what an engine started beyond its own group; that there is nothing to end is no error."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=STOP_S,
            check=False,
        )


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of this process's environment an engine gets."""
    return {name: value for name, value in environment.items() if not _WITHHELD.search(name)}


def tail(log_path: Path, offset: int) -> str:
    """The end of what a log got since an offset."""
    try:
        with log_path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = offset if offset <= size else 0  # the log was cut meanwhile
            file.seek(max(start, size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
