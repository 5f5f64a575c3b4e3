"""Nothing of a data directory's pools lives on behind a test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from llama_orch.pools.identity import owner_of, process_table
from llama_orch.pools.process import reap_marked
from llama_orch.pools.starting import running

#: for the environment of servers: should the tests themselves be killed, what they started ends by itself
LINGER = {"LLORCH_MANAGER__LINGER_MS": "20000"}


def managerd_pid(data: Path) -> int:
    """The pool-managerd of a data directory; 0 = none runs (or it has not said yet which process it is)."""
    pid = running(data / "pools")
    return pid if pid > 0 and process_table().start_ticks(pid) is not None else 0


def engine_pids(data: Path) -> dict[int, str]:
    """Living engine processes of a data directory, with their markers: ``owner/pool/generation``."""
    return dict(process_table().marked(f"{owner_of(data)}/"))


def end_pools(data: Path) -> None:
    """End the pool-managerd of a data directory, and all engines that it started."""
    pid = managerd_pid(data)
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for record in (data / "engines").glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            os.killpg(json.loads(record.read_text())["pid"], signal.SIGKILL)
    reap_marked(process_table(), f"{owner_of(data)}/")
