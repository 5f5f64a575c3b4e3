"""A real vLLM server for a test, as a process of its own, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_orch.pools.hosts import free_port

#: the interpreter of the environment that has vLLM; `make test-vllm` says which
VARIABLE = "LLAMA_ORCH_VLLM_PYTHON"
START_S = 300.0


def python() -> str:
    """That interpreter."""
    return os.environ[VARIABLE]


def write_model(folder: Path) -> Path:
    """The model that the server serves."""
    subprocess.run([python(), str(Path(__file__).with_name("tiny_model.py")), str(folder)], check=True)
    return folder


@dataclass
class Running:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]

    def kill_engine(self) -> None:
        """Kill the process in which it decodes, as the system would that is short of memory."""
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = entry.read_text().rpartition(")")
                if int(rest.split()[1]) == self.process.pid and "EngineCor" in name:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    return
        msg = "no engine's process was found"
        raise RuntimeError(msg)


@contextlib.contextmanager
def vllm_server(model: Path, *arguments: str) -> Iterator[Running]:
    """Run a server on this model, which is ready when it comes. Its log lies beside the model."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    command = [python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
    command += ["--max-num-seqs", "4", "--dtype", "float32", "--enforce-eager", *arguments]
    log = model / f"server-{port}.log"
    # Its processes speak through sockets, which one that is killed leaves behind; their paths have to be short.
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="vllm-") as sockets:
        environment["VLLM_RPC_BASE_PATH"] = sockets
        # In an empty directory: one that is called as its packages are would be taken for them.
        process = subprocess.Popen(
            command, env=environment, cwd=model, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, url, log)
            yield Running(url, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    began = time.monotonic()
    while True:
        if process.poll() is not None or time.monotonic() - began > START_S:
            raise RuntimeError(log.read_text(errors="replace")[-4000:])
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
