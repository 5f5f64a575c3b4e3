"""Starting, watching and stopping a target: a process, all that it starts, and what they cost."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MARK = "BENCH_TARGET_MARK"


class StartError(Exception):
    """A target did not come up; the message says which, and where its log is."""


@dataclass(frozen=True)
class Usage:
    """What a tree of processes has used so far, and holds now."""

    cpu_s: float
    rss_mb: float


class Watched(Protocol):
    """What a load is measured on."""

    def usage(self) -> Usage:
        """CPU time so far and resident memory now."""
        ...


def free_port() -> int:
    """A loopback TCP port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def parse_stat(text: str) -> tuple[int, float]:
    """The parent, and the CPU seconds of children waited for, from the text of /proc/PID/stat."""
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[1]), (int(fields[13]) + int(fields[14])) * _TICK_S


def _each_process() -> Iterator[tuple[int, int, float]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent, waited_s = parse_stat((folder / "stat").read_text())
                yield int(folder.name), parent, waited_s


def _cpu_clock(pid: int) -> float:
    """CPU seconds of a whole process, threads that ended included, in ns resolution (clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)


def _rss_bytes(pid: int) -> int:
    return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * _PAGE_BYTES


def descendants(parents: Mapping[int, int], root: int) -> list[int]:
    """The root and all below it, from a map of process to parent."""
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


class Service:
    """A running server process with everything that it started, also what left its process tree.

    What it starts carries a mark in its environment, and is found by that after its parent has gone.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        self._log = log
        key, value = self._mark.split("=")
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("LLORCH_")}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**inherited, **env, key: value},
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """All processes of this service that live now."""
        parents = {pid: parent for pid, parent, _ in _each_process()}
        found = set(descendants(parents, self._process.pid)) & set(parents)
        mark = self._mark.encode()
        for pid in parents:
            with contextlib.suppress(OSError):
                if mark in Path("/proc", str(pid), "environ").read_bytes():
                    found.add(pid)
        return sorted(found)

    def usage(self) -> Usage:
        """CPU time and memory of all its processes."""
        waited = {pid: seconds for pid, _, seconds in _each_process()}
        cpu_s = rss = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                cpu_s += _cpu_clock(pid) + waited.get(pid, 0.0)
                rss += _rss_bytes(pid)
        return Usage(cpu_s, rss / 1e6)

    def wait_ready(self, port: int, path: str, limit_s: float = 60) -> None:
        """Waits until GET path is answered with a success.

        Raises:
            StartError: It ended, or was not ready in time.
        """
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StartError(f"{self.name} ended with status {self._process.returncode}: {self.last_words()}")
            if fetch(port, path)[0] == 200:
                return
            time.sleep(0.05)
        raise StartError(f"{self.name} did not answer GET {path} within {limit_s:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-1500:].strip() or "it logged nothing"

    def stop(self) -> None:
        """Ends all its processes: asked first, then killed."""
        self._end((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

    def kill(self) -> None:
        """Ends all its processes without asking."""
        self._end((signal.SIGKILL, 5.0))

    def _end(self, *steps: tuple[signal.Signals, float]) -> None:
        for sign, patience_s in steps:
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, sign)
            if wait_until(lambda: self._process.poll() is not None and not self.pids(), patience_s):
                return


class Nothing:
    """The target "direct": between client and engine there is nothing, and it costs nothing."""

    def usage(self) -> Usage:
        return Usage(0.0, 0.0)


def fetch(port: int, path: str, limit_s: float = 2.0) -> tuple[int, str]:
    """GET on loopback: status and body, or status 0 when nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        connection.request("GET", path, headers={"Authorization": "Bearer bench"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], limit_s: float, step_s: float = 0.02) -> bool:
    """Whether the condition came true within the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step_s)
    return True


def settled_usage(watched: Watched, limit_s: float = 2.0) -> Usage:
    """The usage once the work that a load left behind is done: when 100 ms cost less than 2 ms of CPU."""
    deadline = time.monotonic() + limit_s
    before = watched.usage()
    while True:
        time.sleep(0.1)
        after = watched.usage()
        if after.cpu_s - before.cpu_s < 0.002 or time.monotonic() > deadline:
            return after
        before = after
