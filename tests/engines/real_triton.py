"""The real Triton server of the `nvidia-pytriton` wheel, as a process of its own, with a model that the tests bring.

The server alone is taken from the wheel. Its backend for Python is not: that needs a NumPy of another age, and an
interpreter with a shared library. The model is a small backend in C instead, see `triton_lm.c`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llama_orch.pools.hosts import free_port

SOURCE = Path(__file__).with_name("triton_lm.c")
#: name of the model: what TensorRT-LLM's own examples call the one that takes text
MODEL = "ensemble"
CTX = 4096
CONFIG = """
name: "%s"
backend: "lm"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "text_input" data_type: TYPE_STRING dims: [1] },
  { name: "max_tokens" data_type: TYPE_INT32 dims: [1] },
  { name: "stream" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "random_seed" data_type: TYPE_UINT64 dims: [1] optional: true },
  { name: "temperature" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "top_k" data_type: TYPE_INT32 dims: [1] optional: true },
  { name: "top_p" data_type: TYPE_FP32 dims: [1] optional: true },
  { name: "return_log_probs" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "stop_words" data_type: TYPE_STRING dims: [-1] optional: true }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [1] },
  { name: "output_log_probs" data_type: TYPE_FP32 dims: [-1] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


#: the same backend as Triton's vLLM backend configures itself
VLLM_MODEL = "vllm_model"
VLLM_CONFIG = """
name: "%s"
backend: "lm"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "text_input" data_type: TYPE_STRING dims: [1] },
  { name: "stream" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [1] optional: true },
  { name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "return_finish_reason" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "return_num_input_tokens" data_type: TYPE_BOOL dims: [1] optional: true },
  { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [1] optional: true }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [-1] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [-1] },
  { name: "num_input_tokens" data_type: TYPE_UINT32 dims: [1] },
  { name: "num_output_tokens" data_type: TYPE_UINT32 dims: [-1] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


class Triton(NamedTuple):
    """Where a running server is."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]


def _program() -> Path:
    """The server of the wheel."""
    program = Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if not program.is_file():
        msg = f"{program} is not there: the tests run a real Triton, of the wheel nvidia-pytriton (requirements/triton.txt)"
        raise FileNotFoundError(msg)
    return program


def _repository(folder: Path) -> tuple[Path, Path]:
    """Write a model repository and build its backend; answers both folders."""
    models, backends = folder / "models", folder / "backends"
    for name, config in ((MODEL, CONFIG), (VLLM_MODEL, VLLM_CONFIG)):
        (models / name / "1").mkdir(parents=True)
        (models / name / "config.pbtxt").write_text(config % name)
    (backends / "lm").mkdir(parents=True)
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed to build the backend"
    library = backends / "lm" / "libtriton_lm.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return models, backends


#: looked up before a process forks
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Nothing is left behind, whatever becomes of the tests."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def triton_server(folder: Path, *more: str) -> Iterator[Triton]:
    """Run Triton on free ports of loopback; yields where it is once the model is ready. Everything lies in `folder`."""
    models, backends = _repository(folder)
    http, grpc, metrics = (free_port() for _ in range(3))
    program = _program()
    home = folder / "home"
    home.mkdir()
    libraries = program.parents[3] / "nvidia_pytriton.libs"
    arguments = [
        f"--model-repository={models}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--allow-gpu-metrics=false",
        "--cuda-memory-pool-byte-size=0:0", "--pinned-memory-pool-byte-size=0", "--exit-timeout-secs=5",
        "--http-thread-count=4", *more,
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(program), *arguments],
            stdout=out,
            stderr=out,
            env={"HOME": str(home), "PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(libraries)},
            cwd=home,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call between fork and exec, no lock is taken
        )
    it = Triton(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}", f"http://127.0.0.1:{metrics}", process)
    try:
        while not _ready(f"{it.http}/v2/models/{MODEL}/ready"):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.02)
        yield it
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
