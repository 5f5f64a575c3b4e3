"""Disks that fail on purpose, for any process that a test starts.

>>> faults = FaultFs(tmp_path)                       # builds the shim with the C compiler
>>> process = subprocess.Popen([...], env=os.environ | faults.env)
>>> with faults.active("ENOSPC", path="journal.db"):
...     ...                                          # writes to the journal fail, in the process that runs
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Mode = Literal["EIO_WRITE", "TORN_WRITE", "ENOSPC", "EROFS", "EIO_FSYNC", "DELAY_FSYNC"]

SOURCE = Path(__file__).with_name("faultfs.c")


def build_preload(source: Path, folder: Path) -> Path:
    """A library for LD_PRELOAD from one C file. :raises RuntimeError: there is no C compiler, or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("these tests build a small C library and found neither cc nor gcc; install a C compiler")
    library = folder / f"{source.stem}.so"
    command = [
        compiler,
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(source),
        "-ldl",
        "-pthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not build:\n{done.stderr}")
    return library


class FaultFs:
    """The shim, built, and its control file; both live in the folder."""

    def __init__(self, folder: Path) -> None:
        self._library = build_preload(SOURCE, folder)
        self._control = folder / "faultfs.control"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for the process whose disk shall fail."""
        return {"LD_PRELOAD": str(self._library), "FAULTFS_CONTROL": str(self._control)}

    def set(self, mode: Mode, *, path: str = "", ms: int = 0) -> None:
        """Begin a fault on files whose path contains ``path`` (``"text$"``: ends with it); ``ms`` is for DELAY_FSYNC."""
        part = self._control.with_suffix(".part")
        part.write_text(f"mode={mode}\npath={path}\nms={ms}\n")
        part.replace(self._control)

    def clear(self) -> None:
        """End the fault."""
        self._control.unlink(missing_ok=True)

    @contextmanager
    def active(self, mode: Mode, *, path: str = "", ms: int = 0) -> Iterator[None]:
        """A fault inside the block."""
        self.set(mode, path=path, ms=ms)
        try:
            yield
        finally:
            self.clear()
