"""`server.json` in the data directory: which server runs there and where it answers.

The process is named by its id and its start time, so that a recycled process id is never taken for the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path

_NAME = "server.json"
#: ends a server as SIGTERM does, and leaves its engines to the next one
STOP_AND_KEEP_ENGINES = signal.SIGUSR2


@dataclass(frozen=True, slots=True)
class ServerFile:
    """A running server, as it wrote itself down."""

    pid: int
    #: what the system says of when the process began; opaque
    started: str
    url: str
    version: str
    data_dir: str
    #: started by `run` or `chat` for one call
    temporary: bool = False
    #: what commands on this machine show it: it may do everything, and is another at each start
    token: str = field(default="", repr=False)
    #: the server's certificate, where it has one, and who signed it: what it shows has to be signed by these
    ca_file: str = ""


def write(data_dir: Path, server: ServerFile) -> Path:
    """Put the file there atomically, readable by its owner alone."""
    path = data_dir / _NAME
    staged = path.with_name(f".{_NAME}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(server), file, indent=2)
        file.write("\n")
    staged.replace(path)
    return path


def read(data_dir: Path) -> ServerFile | None:
    """The server that runs on this data directory, or ``None``: no file, an unreadable one, or its process is gone."""
    try:
        data = json.loads((data_dir / _NAME).read_text("utf-8"))
        server = ServerFile(**{name: data[name] for name in ServerFile.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return server if is_running(server) else None


def is_running(server: ServerFile) -> bool:
    """Whether the very process that wrote the file still runs."""
    return bool(server.started) and process_start(server.pid) == server.started


def remove(data_dir: Path, pid: int) -> None:
    """Take the file away if it is this process's own."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = data_dir / _NAME
        if json.loads(path.read_text("utf-8"))["pid"] == pid:
            path.unlink()


def process_start(pid: int) -> str:
    """When a process began, as an opaque text; "" when there is none (a zombie counts as none)."""
    from ..pools.identity import process_table

    table = process_table()
    ticks = table.start_ticks(pid)
    return "" if ticks is None else f"{table.boot_id()}:{ticks}"
