"""Starts servers quickly: an interpreter that has everything imported forks one for each request on standard input.

Run as a script. A request is a JSON line ``{"argv": […], "crash": "point:3", "folder": DIR, "log": FILE}``; the answer is
``{"pid": N}`` once the server was forked, and ``{"pid": N, "status": S}`` once it ended (its exit status, or minus the
signal). Each server is the real one, in a process of its own: it is what ``llama-orch serve`` runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import select
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import crash_points

PRELOADED = (
    "llama_orch.cli.main",
    "llama_orch.cli.commands.server",
    "llama_orch.cli.daemon",
    "llama_orch.api.app",
    "llama_orch.api.server",
    "llama_orch.core.services.container",
    "llama_orch.plugins.manager",
    "llama_orch.pools.manager",
    "llama_orch.plugins.storage.sqlite",
    "llama_orch.plugins.engines.llamacpp",
    "alembic.util",
    "alembic.command",
    "llama_orch.cli.parser",
    "uvloop",
)
_PR_SET_PDEATHSIG = 1


def run_server(request: dict[str, object]) -> int:
    """Become the server; the exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(str(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    faulthandler.register(signal.SIGUSR1)  # for a test that hangs: what its threads do goes to the log
    if request.get("crash"):
        crash_points.install(str(request["crash"]), Path(str(request["folder"])))
    from llama_orch.cli.main import main

    argv = request["argv"]
    assert isinstance(argv, list)
    return main([str(argument) for argument in argv])


def tell(**answer: int) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def reap() -> None:
    """Tell of all servers that ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            tell(pid=pid, status=os.waitstatus_to_exitcode(status))


def serve_requests() -> None:
    """Fork servers until standard input ends."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap()
        if 0 in ready:
            data = os.read(0, 65_536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if not pid:
                    status = 70
                    try:
                        status = run_server(json.loads(line))
                    except SystemExit as left:
                        status = left.code if isinstance(left.code, int) else 1
                    finally:
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(status)
                tell(pid=pid)


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    serve_requests()
