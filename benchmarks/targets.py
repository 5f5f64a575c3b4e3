"""What is measured: nothing at all, the peers, and llama-orch; how each is started and spoken to."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .native import BUILD, HERE, Native
from .processes import free_port

#: Context of each slot of the mock engine: enough for the longest stream of edge.py.
CONTEXT_TOKENS = 1_000_000
SLOTS = 512

#: Every fsync of llama-orch is made to take this much longer, in targets of their own.
FSYNC_DELAYS_MS = (2, 10)


@dataclass(frozen=True)
class Target:
    """A row of the tables.

    Args:
        name: How the tables call it.
        api: What the load generator speaks: chat or tasks.
        port: Where it listens.
        service: Which service it is a face of; services are started once. None: it is the engine itself.
        loads: The loads that it runs; None = all.
        fsync_delay_ms: What each fsync is made to take longer.
    """

    name: str
    api: str
    port: int
    service: str | None = None
    loads: frozenset[str] | None = None
    fsync_delay_ms: int = 0
    #: what it is asked with
    bearer: str = field(default="", repr=False)

    def runs(self, load: str) -> bool:
        return self.loads is None or load in self.loads


@dataclass(frozen=True)
class Launch:
    """How a service is started."""

    name: str
    command: list[str]
    port: int
    ready: str
    version: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Makes, once it is up, the key that its callers need.
    make_key: Callable[[], str] | None = None


@dataclass(frozen=True)
class Missing:
    """A service that cannot be started here, and why."""

    name: str
    reason: str


def nginx(engine_port: int, folder: Path) -> Launch | Missing:
    """nginx as a plain pass-through: the floor of what a proxy costs."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        return Missing("nginx", "not installed (Debian, Ubuntu: apt-get install nginx-light)")
    port = free_port()
    configuration = folder / "nginx.conf"
    temporary = " ".join(
        f"{kind}_temp_path {folder}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(f"""
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    {temporary}
    keepalive_requests 1000000;
    upstream engine {{ server 127.0.0.1:{engine_port}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
""")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    command = [program, "-c", str(configuration), "-e", "stderr", "-p", str(folder)]
    return Launch("nginx", command, port, "/health", said.rpartition("/")[2].strip())


def peers_python(folder: Path = BUILD / "peers") -> Path | str:
    """The interpreter of the environment with the peers of peers.txt, made at first use; or why there is none."""
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    wanted = (HERE / "peers.txt").read_text()
    if done.exists() and done.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    pip = subprocess.run([*command, "-r", str(HERE / "peers.txt")], capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        return f"not installed (pip: {pip.stderr.strip()[-300:]})"
    done.write_text(wanted)
    return python


def pinned_version(package: str, requirements: str) -> str:
    """The version that a text of pinned requirements names for a package."""
    for line in requirements.splitlines():
        name, _, version = line.partition("==")
        if name.strip() == package:
            return version.split()[0]
    return "?"


def router(name: str, module: str, engine_port: int, python: Path | str) -> Launch | Missing:
    """One of the Rust routers, with the settings that suit it best here: round robin, one worker, few logs."""
    if isinstance(python, str):
        return Missing(name, python)
    port, metrics_port = free_port(), free_port()
    command = [str(python), "-m", module, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{engine_port}", "--policy", "round_robin"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "error"]
    version = pinned_version(name, (HERE / "peers.txt").read_text())
    return Launch(name, command, port, "/v1/models", version)


def orchestrator_program() -> Path | None:
    """The `llama-orch` beside this interpreter, or the one on the PATH."""
    beside = Path(sys.executable).with_name("llama-orch")
    if beside.exists():
        return beside
    found = shutil.which("llama-orch")
    return Path(found) if found else None


def orchestrator_configuration(port: int, engine_port: int, data_dir: Path, *, metered: bool = False) -> str:
    """The configuration file: one pool, which is the mock engine, with prices when all is metered. JSON is YAML too."""
    pool = {
        "id": "bench",
        "engine": "llamacpp",
        "model": "mock",
        "slots": SLOTS,
        "provisioning": {"mode": "external", "url": f"http://127.0.0.1:{engine_port}"},
    }
    settings: dict[str, Any] = {
        "bind": f"127.0.0.1:{port}",
        "data_dir": str(data_dir),
        "log": {"level": "warning"},  # as the peers: no line per request
        "pools": [pool],
    }
    if metered:
        settings["prices"] = {"mock": {"input": "0.15", "cached": "0.075", "output": "0.6", "second": "0.000001"}}
    return json.dumps(settings, indent=2)


def orchestrator(
    name: str, engine_port: int, folder: Path, native: Native, fsync_delay_ms: int, *, metered: bool = False
) -> Launch | Missing:
    """llama-orch as it is shipped, journal on; with a slower disk when a delay is given.

    ``metered``: its callers need a key, which has limits and a budget of tokens, time and money that they never reach.
    """
    program = orchestrator_program()
    if program is None:
        return Missing(name, "not installed (make bench installs it into .venv)")
    port = free_port()
    home = folder / f"llama-orch-{fsync_delay_ms}{'-metered' if metered else ''}"
    home.mkdir(mode=0o700)
    configuration = home / "config.yaml"
    configuration.write_text(orchestrator_configuration(port, engine_port, home / "data", metered=metered))
    configuration.chmod(0o600)
    env = {}
    make_key = None
    if metered:
        env["LLORCH_API_TOKEN"] = token = secrets.token_urlsafe(32)
        make_key = partial(metered_key, f"http://127.0.0.1:{port}", token)
    if fsync_delay_ms:
        env |= {"LD_PRELOAD": str(native.fsync_delay), "FSYNC_DELAY_MS": str(fsync_delay_ms)}
    asked = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    version = asked.stdout.split()[-1] if asked.stdout.split() else "?"
    command = [str(program), "serve", "--config", str(configuration)]
    return Launch(name, command, port, "/readyz", version, env, make_key)


def metered_key(url: str, token: str) -> str:
    """A new key of a server, with limits and a budget of each kind.

    Raises:
        OSError: the server does not make one.
    """
    enough = 9_000_000_000
    spec = {
        "name": "bench",
        "requests_per_minute": 1_000_000,
        "tokens_per_minute": 1_000_000_000,
        "budgets": [{"window": "day", "tokens": enough, "decode_ms": enough, "cost": "1000000"}],
    }
    request = urllib.request.Request(
        f"{url}/v1/keys",
        json.dumps(spec).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["secret"])


def launches(names: set[str], engine_port: int, folder: Path, native: Native) -> list[Launch | Missing]:
    """The services behind the named targets."""
    found: list[Launch | Missing] = []
    if "nginx" in names:
        found.append(nginx(engine_port, folder))
    if names & {"vllm-router", "sglang-router"}:
        python = peers_python()
        if "vllm-router" in names:
            found.append(router("vllm-router", "vllm_router.launch_router", engine_port, python))
        if "sglang-router" in names:
            found.append(router("sglang-router", "sglang_router.launch_router", engine_port, python))
    if names & {"llama-orch", TASKS_NAME}:
        found.append(orchestrator("llama-orch", engine_port, folder, native, 0))
    if names & {METERED_NAME, METERED_TASKS_NAME}:
        found.append(orchestrator(METERED_NAME, engine_port, folder, native, 0, metered=True))
    for delay in FSYNC_DELAYS_MS:
        if slow_disk_name(delay) in names:
            found.append(orchestrator(slow_disk_name(delay), engine_port, folder, native, delay))
    return found


TASKS_NAME = "llama-orch /v1/tasks"
METERED_NAME = "llama-orch metered"
METERED_TASKS_NAME = "llama-orch metered /v1/tasks"
_STREAMED = frozenset({"i", "ib", "ii", "iib", "iii", "iv"})


def slow_disk_name(delay_ms: int) -> str:
    return f"llama-orch +{delay_ms}ms fsync"


#: All targets, in the order of the tables.
NAMES = (
    "direct",
    "nginx",
    "vllm-router",
    "sglang-router",
    "llama-orch",
    TASKS_NAME,
    METERED_NAME,
    METERED_TASKS_NAME,
    *(slow_disk_name(delay) for delay in FSYNC_DELAYS_MS),
)


def faces(launch: Launch, names: set[str]) -> list[Target]:
    """The targets that a running service answers for.

    Raises:
        OSError: the key that it has to be asked with cannot be made.
    """
    if launch.name == METERED_NAME:
        bearer = launch.make_key() if launch.make_key is not None else ""
        both = [
            Target(METERED_NAME, "chat", launch.port, launch.name, bearer=bearer),
            Target(METERED_TASKS_NAME, "tasks", launch.port, launch.name, loads=_STREAMED, bearer=bearer),
        ]
        return [target for target in both if target.name in names]
    if launch.name == "llama-orch":
        found = [Target("llama-orch", "chat", launch.port, launch.name)]
        found.append(Target(TASKS_NAME, "tasks", launch.port, launch.name, loads=_STREAMED))
        return [target for target in found if target.name in names]
    for delay in FSYNC_DELAYS_MS:
        if launch.name == slow_disk_name(delay):
            loads = frozenset({"ib", "ii", "iii"})
            return [Target(launch.name, "chat", launch.port, launch.name, loads, delay)]
    return [Target(launch.name, "chat", launch.port, launch.name)]


def select(text: str) -> set[str]:
    """The names of a comma-separated list; a beginning that fits several takes them all.

    Raises:
        ValueError: A word that no target begins with.
    """
    if not text:
        return set(NAMES)
    chosen = set()
    for word in text.split(","):
        exact = {name for name in NAMES if name == word}
        fitting = exact or {name for name in NAMES if name.startswith(word)}
        if not fitting:
            raise ValueError(f"--targets: {word!r} is no target; it takes {', '.join(NAMES)}")
        chosen |= fitting
    return chosen
