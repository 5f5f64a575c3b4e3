"""Runs the programs that fetch and build sources: argument vectors, a clean environment, a kept log, an end at request."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..identity import MARKER, process_table
from .problems import ProvisionError, Stop

#: so many lines of a log stand in an error
LAST_LINES: Final = 12
_LOOK_S: Final = 0.2
#: so often, and so far apart, what is to end is told so
_ENDINGS: Final = 200
_ENDING_S: Final = 0.01
#: of the environment, what compilers and fetching need; secrets and this program's settings are not among it
_PASSED: Final = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PKG_CONFIG_PATH", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS"),
    *("CUDA_HOME", "CUDA_PATH", "CUDACXX", "CUDAHOSTCXX", "ROCM_PATH", "HIP_PATH", "VULKAN_SDK"),
    *("CMAKE_PREFIX_PATH", "CMAKE_BUILD_PARALLEL_LEVEL", "CCACHE_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    "SSH_AUTH_SOCK",
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)


class Workshop:
    """Where programs are found and what they are given.

    Args:
        environment: of this program.
        home: directory that programs take for the user's own, so that none writes anywhere else.
        marker: see :meth:`~.catalog.EngineCatalog.marker`; all that is started bears it.
    """

    def __init__(self, environment: Mapping[str, str], home: Path, marker: str) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        self._marker = marker
        self._path = environment.get("PATH", os.defpath)
        self._environment = {name: environment[name] for name in _PASSED if name in environment}
        self._environment |= {"HOME": str(home), "TMPDIR": str(home), MARKER: marker}
        # Programs of installed packages (cmake, ninja) stand beside the interpreter.
        self._path += os.pathsep + str(Path(sys.executable).parent)
        self._environment["PATH"] = self._path

    def tool(self, *names: str) -> str:
        """Path of the first of these programs that is there. :raises ProvisionError: ``missing-tool``."""
        for name in names:
            found = shutil.which(name, path=self._path)
            if found:
                return found
        raise ProvisionError("missing-tool", f"there is no {' or '.join(names)} on the PATH")

    def run(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        what: str,
        stop: Stop,
        cause: str = "build-failed",
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run a program to its end; what it said, which goes to the log too.

        Raises:
            ProvisionError: ``cause`` with the last lines of the log, or ``cancelled``.
        """
        handle = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+b") as file:
            file.write(f"$ {' '.join(argv)}\n".encode())
            file.flush()
            begin = file.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(environment or {})},
                cwd=log.parent,
                start_new_session=True,
            )
            try:
                status = _ended(child, stop)
            finally:
                self._end(child)
            file.seek(begin)
            said = file.read().decode("utf-8", "replace")
        if status is None:
            raise ProvisionError("cancelled", f"{what} was given up")
        if status:
            lines = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
            raise ProvisionError(cause, "\n  ".join([f"{what} failed (exit status {status}):", *lines]))
        return said

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Nothing that it started lives on."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        end_builders(self._marker)


def _ended(child: subprocess.Popen[bytes], stop: Stop) -> int | None:
    while True:
        try:
            return child.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            if stop():
                return None


def end_builders(marker: str) -> None:
    """End all processes that bear a marker, and wait until they are gone; builders make groups of their own."""
    table = process_table()
    for _ in range(_ENDINGS):
        living = list(table.marked(marker))
        if not living:
            return
        for pid, _told in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_ENDING_S)
