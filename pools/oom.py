"""Whether the system's out-of-memory killer struck: signal 9 alone does not tell."""

from __future__ import annotations

from pathlib import Path


class OomKills:
    """Counts kills by lack of memory, of this program's control group and of the whole system (Linux; 0 elsewhere).

    Args:
        proc: where procfs is.
        cgroups: where the control groups are (version 2).
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._vmstat = proc / "vmstat"
        self._events = cgroups / _own_group(proc) / "memory.events"

    def count(self) -> int:
        """Kills so far; only a difference of two counts says anything."""
        return _field(self._vmstat, "oom_kill") + _field(self._events, "oom_kill")


def _own_group(proc: Path) -> str:
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")


def _field(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == name:
                return int(words[1])
    except (OSError, ValueError):
        return 0
    return 0
