"""Makes the process that writes a snapshot die in the middle of it, and the server that started it with it.

The interpreter imports this at its start, where PYTHONPATH names this folder; see ``crash_points.py``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

_rename = Path.rename


def _die() -> None:
    Path(os.environ["CHAOS_NOTE"]).write_text(os.environ["CHAOS_SNAPSHOT"])
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _renamed(self: Path, target: Any) -> Path:
    if self.suffix != ".part":
        return _rename(self, target)
    if os.environ["CHAOS_SNAPSHOT"] == "snapshot-part-written":
        _die()
    done = _rename(self, target)
    _die()
    return done


if "CHAOS_SNAPSHOT" in os.environ and "snapshot" in sys.orig_argv:
    setattr(Path, "rename", _renamed)  # noqa: B010
