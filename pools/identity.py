"""Which process is whose: a record on disk, and what the operating system says (RCV-3).

A pid alone names nobody, since it is used again. A process is its pid, the time it started at, and the boot. It
carries a marker in its environment too, so that one which was started a moment before a crash, and stands in no
record yet, is found all the same.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from ..core.engine_ports import LaunchPlan
from . import files

#: environment variable that marks engine processes: ``<owner>/<pool>/<generation>``
MARKER: Final = "LLAMA_ORCH_ENGINE"


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine process, as the record on disk tells it."""

    pool_id: str
    #: counts starts of the pool's engine
    generation: int
    pid: int
    #: start time by the operating system's count: clock ticks since boot on Linux
    start_ticks: int
    boot_id: str
    #: digest of the plan that it was started with
    plan_digest: str
    url: str
    port: int
    marker: str
    #: size of the log when it was started, bytes
    log_offset: int = 0
    #: digest of what was ordered, see :class:`~llama_orch.pools.preparing.Order`
    order: str = ""
    #: ends what it started beyond its own group, e.g. a container
    stop_argv: tuple[str, ...] = ()
    #: epoch of the server that was last told of it as ready; 0 = none
    told_epoch: int = 0


class ProcessTable(Protocol):
    """What the operating system knows of processes."""

    def boot_id(self) -> str:
        """Changes with every boot."""
        ...

    def start_ticks(self, pid: int) -> int | None:
        """When a process started; ``None`` when there is none, or only its remains."""
        ...

    def marked(self, prefix: str) -> Iterator[tuple[int, str]]:
        """``(pid, marker)`` of the living processes whose marker begins so."""
        ...


class LinuxProcessTable:
    """By /proc."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root

    def boot_id(self) -> str:
        return (self._root / "sys/kernel/random/boot_id").read_text().strip()

    def start_ticks(self, pid: int) -> int | None:
        try:
            stat = (self._root / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        # The second field, the name, may hold anything; what follows its last parenthesis is fields 3, 4, …
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])

    def marked(self, prefix: str) -> Iterator[tuple[int, str]]:
        wanted = f"{MARKER}={prefix}".encode()
        for entry in self._root.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # somebody else's, or gone meanwhile
            for variable in environment.split(b"\0"):
                if variable.startswith(wanted) and self.start_ticks(int(entry.name)) is not None:
                    yield int(entry.name), variable.partition(b"=")[2].decode("utf-8", "replace")


class PosixProcessTable:
    """By `ps`, where there is no /proc; markers cannot be read there, so that only recorded processes are found."""

    def boot_id(self) -> str:
        return self._ps("lstart=", 1)

    def start_ticks(self, pid: int) -> int | None:
        told = self._ps("stat=,lstart=", pid)
        if not told or told.startswith("Z"):
            return None
        return int.from_bytes(hashlib.sha256(told.partition(" ")[2].strip().encode()).digest()[:6])

    def marked(self, prefix: str) -> Iterator[tuple[int, str]]:
        return iter(())

    @staticmethod
    def _ps(columns: str, pid: int) -> str:
        done = subprocess.run(
            ["ps", "-o", columns, "-p", str(pid)], capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout.strip()


def process_table() -> ProcessTable:
    """The one for this operating system."""
    return LinuxProcessTable() if Path("/proc/self/stat").exists() else PosixProcessTable()


def seat_names(pool_id: str) -> tuple[str, ...]:
    """Names under which records and logs of a pool's engines are kept; no pool's id holds a "+"."""
    return (pool_id, f"{pool_id}+1", f"{pool_id}+2")


def owner_of(data_dir: Path) -> str:
    """Who owns engines: the data directory, under a name that tells nothing of it."""
    return hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]


def plan_digest(plan: LaunchPlan) -> str:
    """Two plans with the same digest start the same engine."""
    told = msgspec.json.encode([plan.argv, sorted(plan.env.items())])
    return f"sha256:{hashlib.sha256(told).hexdigest()}"


def write(path: Path, identity: Identity) -> None:
    """Record an identity; after a crash at any moment the old record or the new one is there, never half of one."""
    files.replace(path, msgspec.json.format(msgspec.json.encode(identity)))


def read(path: Path) -> Identity | None:
    """The recorded identity; ``None`` when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except (OSError, msgspec.MsgspecError):
        return None


def forget(path: Path) -> None:
    """The process is gone, the record with it."""
    path.unlink(missing_ok=True)


def alive(identity: Identity, table: ProcessTable) -> bool:
    """Whether that very process lives."""
    return table.boot_id() == identity.boot_id and table.start_ticks(identity.pid) == identity.start_ticks
