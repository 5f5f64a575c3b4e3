"""A real llama.cpp server for a test, as a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_orch.pools.hosts import free_port


@contextlib.contextmanager
def llama_server(model: Path, *, slots: int = 2, ctx: int = 2048, extra: Sequence[str] = ()) -> Iterator[str]:
    """Run the server of the package on this model; yields its URL once it is ready.

    Args:
        model: GGUF file.
        slots: requests at once.
        ctx: tokens of each.
        extra: more arguments.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["--model", str(model), "--port", str(port), "--parallel", str(slots), "--ctx", str(ctx * slots)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "llama_orch.pools.llamacpp_server",
            *arguments,
            "--threads",
            "1",
            "--alias",
            "tiny",
            *extra,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while not _ready(url):
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(process.stderr.read().decode())
            time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.communicate()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
