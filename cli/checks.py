"""What `doctor` looks at: the machine, the installation, the configuration, and the whole way of a task."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .exits import CliError
from .shell import Shell

if TYPE_CHECKING:
    from .client import Client
    from .config import Loaded
    from .detect import Machine

Verdict = Literal["ok", "warning", "failed"]

_LITTLE_SPACE_BYTES = 1_073_741_824
_LOG_PATIENCE_S = 10.0
_CANCEL_ATTEMPTS = 5
_NEEDED_SPACE_BYTES = 16_777_216
#: file systems on which SQLite's locks do not hold across machines
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def python_version(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python is new enough."""
    said = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("python", "failed", f"{said} is too old", "Install Python 3.11 or newer.")
    return Finding("python", "ok", said)


def data_directory(path: Path, free_bytes: int | None = None, mounts: str | None = None) -> Finding:
    """Whether the data directory can be written, has room, and lies on a local disk."""
    from ..core.errors import ConfigError
    from .config import make_data_directory

    try:
        make_data_directory(path)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"x")
    except (ConfigError, OSError) as error:
        what = error.message if isinstance(error, ConfigError) else f"{path}: {error.strerror}"
        return Finding("data directory", "failed", what, "Name another one with --data-dir or data_dir.")
    free = shutil.disk_usage(path).free if free_bytes is None else free_bytes
    room = f"{path}, {free / 2**30:.1f} GiB free"
    if free < _NEEDED_SPACE_BYTES:
        return Finding("data directory", "failed", room, "Free disk space: the journal could not be written.")
    kind = _file_system(
        path,
        Path("/proc/mounts").read_text("utf-8") if mounts is None and Path("/proc/mounts").exists() else mounts or "",
    )
    if kind in _REMOTE:
        return Finding(
            "data directory",
            "warning",
            f"{room}, on {kind}",
            "SQLite needs a local disk; or set journal.url to PostgreSQL.",
        )
    if free < _LITTLE_SPACE_BYTES:
        return Finding("data directory", "warning", room, "Free disk space soon: a full disk stops admissions.")
    return Finding("data directory", "ok", room)


def _file_system(path: Path, mounts: str) -> str:
    """The type of the file system that holds a path."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _device, point, found, *_rest = [*line.split(" "), "", "", ""]
        point = point.replace("\\040", " ")
        inside = str(path) == point or str(path).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def port(loaded: Loaded) -> Finding:
    """Whether the address is free, or our own server's."""
    from . import server_file
    from .config_check import split_bind

    bind = loaded.settings.bind
    running = server_file.read(loaded.data_dir)
    if running is not None:
        return Finding("address", "ok", f"a server runs at {running.url} (process {running.pid})")
    host, number = split_bind(bind)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            return Finding(
                "address",
                "failed",
                f"{bind}: {error.strerror}",
                "Choose another port: --bind 127.0.0.1:0, or bind in the configuration.",
            )
    return Finding("address", "ok", f"{bind} is free")


def engine(
    machine: Machine,
    package: Callable[[], tuple[str, str]] | None = None,
    *,
    gpu_seen: bool | None = None,
    loaded: Loaded | None = None,
) -> Finding:
    """Whether an engine is there, and whether a GPU sits beside a build for processors only.

    :param package: version and build of the engine's package; "" = it is not installed.
    :param loaded: with the data directory whose engine catalog counts too.
    """
    from ..pools.provisioning.provision import PACKAGES, package_build
    from .detect import nvidia_device_files
    from .gpu_build import COMMAND, gpu_builds

    version, build = (package or (lambda: package_build(PACKAGES["llamacpp"])))()
    installed = gpu_builds(loaded) if loaded else []
    if not version and not installed:
        return Finding(
            "engine", "failed", "the package xllamacpp is not installed", "python -m pip install 'llama-orch[llamacpp]'"
        )
    if installed or build != "cpu":
        there = ", ".join([*([f"xllamacpp {version}"] if version else []), *installed])
        return Finding("engine", "ok", there)
    seen = bool(machine.gpus) or (nvidia_device_files() if gpu_seen is None else gpu_seen)
    if seen:
        names = ", ".join(gpu.name for gpu in machine.gpus) or "an NVIDIA GPU"
        return Finding(
            "engine",
            "warning",
            f"xllamacpp {version} is a build for processors, beside {names}",
            f"Get the right build: {COMMAND}",
        )
    return Finding("engine", "ok", f"xllamacpp {version}")


def gpus(machine: Machine, *, gpu_seen: bool | None = None) -> Finding:
    """The GPUs that the driver tells of; a warning where one is seen otherwise, or is in trouble."""
    from .detect import nvidia_device_files

    found = ", ".join(f"{gpu.name}, {gpu.memory_gib:.0f} GiB" for gpu in machine.gpus)
    if machine.gpus and not machine.gpu_note:
        return Finding("gpus", "ok", found)
    if machine.gpus or (nvidia_device_files() if gpu_seen is None else gpu_seen):
        return Finding("gpus", "warning", "; ".join(filter(None, [found, machine.gpu_note])), machine.gpu_advice)
    return Finding("gpus", "ok", f"none ({machine.gpu_note})")


def bundled_model() -> Finding:
    """Whether the haiku model's file is there."""
    from ..haiku import model_path

    try:
        path = model_path()
    except FileNotFoundError as error:
        return Finding("bundled model", "failed", str(error), "Install llama-orch again.")
    return Finding("bundled model", "ok", f"haiku, {path.stat().st_size / 1e6:.1f} MB")


def configuration(loaded: Loaded) -> list[Finding]:
    """What is wrong with the configuration."""
    from .config_check import check

    faults = check(loaded)
    source = str(loaded.path) if loaded.path else "defaults, no file"
    if not faults:
        return [Finding("configuration", "ok", source)]
    return [Finding("configuration", "failed", str(fault), f"Correct {source}.") for fault in faults]


def self_test(environ: Mapping[str, str], quiet: Shell) -> Iterator[Finding]:
    """The bundled model on a server of its own: preload, decode, cancel, metrics, log."""
    if util.find_spec("xllamacpp") is None:
        yield Finding(
            "self-test", "failed", "there is no engine to test with", "python -m pip install 'llama-orch[llamacpp]'"
        )
        return
    from .config import load
    from .connect import SERVER_LOG, own_server

    with tempfile.TemporaryDirectory(prefix="llama-orch-doctor-") as folder:
        empty = Path(folder) / "config.yaml"
        empty.write_text("", "utf-8")
        clean = {name: value for name, value in environ.items() if not name.startswith("LLORCH_")}
        data_dir = Path(folder) / "data"
        loaded = load(empty, environ=clean, flags={"data_dir": str(data_dir)})
        shell = Shell(quiet.stdin, quiet.stdout, quiet.stderr, clean, as_json=True, quiet=True)
        try:
            with own_server(
                loaded, shell, ["--config", str(empty), "--data-dir", str(data_dir), "--set", "log.format=json"]
            ) as client:
                yield Finding("preload", "ok", "the model is loaded and the pool ready")
                yield from _tasks(client)
                yield _log_in(data_dir / SERVER_LOG)
        except CliError as error:
            yield Finding("self-test", "failed", error.message, error.remedy)


def _tasks(client: Client) -> Iterator[Finding]:
    asked = {
        "model_ref": "haiku",
        "workload": "chat",
        "messages": [{"role": "user", "content": "Write a haiku about rain"}],
        "seed": 7,
    }
    text, tokens = "", 0
    task_id = client.post("/v1/tasks", asked)["task_id"]
    for frame in client.stream(task_id):
        data = json.loads(frame.data)
        if frame.event == "token":
            text, tokens = text + data["t"], tokens + 1
        elif frame.event == "error":
            yield Finding("decode", "failed", str(data.get("message")), str(data.get("remedy", "")))
            return
    lines = [line for line in text.strip().splitlines() if line.strip()]
    verdict: Verdict = "ok" if len(lines) == 3 else "failed"
    yield Finding("decode", verdict, f"{tokens} tokens: {' / '.join(lines)}")

    reason, said = "", 0
    for seed in range(_CANCEL_ATTEMPTS):  # on a busy machine a task may end before its cancel arrives
        reason, said = _cancelled(client, {**asked, "seed": seed})
        if reason == "cancelled":
            break
    ended: Verdict = "ok" if reason == "cancelled" else "failed"
    yield Finding("cancel", ended, f"the task is {reason or 'failed'}, after {said} tokens")

    metrics = str(client.get("/metrics"))
    counted = [line for line in metrics.splitlines() if line.startswith("tokens_out_total{")]
    total = sum(float(line.rsplit(" ", 1)[1]) for line in counted)
    yield Finding("metrics", "ok" if total >= tokens else "failed", f"tokens_out_total {total:g}")


def _cancelled(client: Client, asked: dict[str, Any]) -> tuple[str, int]:
    """Cancel a task at its first token, one that its grammar keeps from ending early; why it ended, and after how many."""
    long = {**asked, "grammar": "root ::= [a-z]{400}", "max_tokens": 500}
    task_id = client.post("/v1/tasks", long)["task_id"]
    said = 0
    end: dict[str, Any] = {}
    for frame in client.stream(task_id):
        if frame.event == "token":
            said += 1
            if said == 1:
                client.post(f"/v1/tasks/{task_id}/cancel")
        elif frame.event == "end":
            end = json.loads(frame.data)
    return str(end.get("finish_reason", "")), said


def _log_in(path: Path) -> Finding:
    """What the log tells, once it tells of a task's end: lines are written in batches."""
    deadline = time.monotonic() + _LOG_PATIENCE_S
    while True:
        log = path.read_text("utf-8", "replace")
        if '"task.ended"' in log or time.monotonic() > deadline:
            return _log(log)
        time.sleep(0.02)


def _log(log: str) -> Finding:
    said = []
    for line in log.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("task_id"):
            said.append(str(found.get("human", "")))
    return Finding(
        "log", "ok" if said else "failed", f"{len(said)} lines about tasks" + (f", e.g. {said[-1]!r}" if said else "")
    )
