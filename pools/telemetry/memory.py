"""The host's memory, as far as processes of this control group may use it: the device "cpu"."""

from __future__ import annotations

from pathlib import Path

from ...core.devices import MemoryReading

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def read_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> MemoryReading | None:
    """What is there and what is free now; ``None`` where the system does not say in Linux' way.

    ``MemAvailable`` of the machine, and of each control group (v2) above this process that has a limit what is left
    below it: page cache that can be dropped counts as free, as it does in ``MemAvailable``.
    """
    try:
        machine = _fields(proc / "meminfo")
        total, available = machine["MemTotal"] * 1024, machine["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        return None
    limit = 0
    for group in _groups(proc, cgroups):
        bound = _number(group / "memory.max")
        taken = _number(group / "memory.current")
        if bound is None or taken is None or bound >= total:
            continue
        limit = min(limit or bound, bound)
        try:
            droppable = _fields(group / "memory.stat").get("inactive_file", 0)
        except (OSError, ValueError):
            droppable = 0
        available = min(available, max(0, bound - taken + min(droppable, taken)))
    return MemoryReading(limit or total, available, limit)


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    """This process' control group and those above it, innermost first."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    inside = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), None)
    if inside is None or ".." in Path(inside).parts:  # it lies outside of what this namespace shows
        return [cgroups]
    own = cgroups / inside
    return [own, *own.parents[: len(Path(inside).parts)]]


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    found: dict[str, int] = {}
    for line in path.read_text("utf-8").splitlines():
        name, *rest = line.replace(":", " ").split()
        if rest:
            found[name] = int(rest[0])
    return found


def _number(path: Path) -> int | None:
    """A file's number; ``None`` for "max", and where it is not there."""
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
