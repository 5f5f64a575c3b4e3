"""One measuring session: engine and targets are up, every load runs on every target, in rounds."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import targets as catalogue
from .loads import Load
from .native import BUILD, Native
from .processes import Nothing, Service, StartError, Watched, free_port, settled_usage
from .results import Absent, FsyncProbe, LoadRun, Machine, parse_loadgen
from .targets import Launch, Missing, Target

Tell = Callable[[str], None]
#: names, engine's port, folder, C programs -> the services behind the names
FindLaunches = Callable[[set[str], int, Path, Native], list[Launch | Missing]]

_WARM_UP = (
    Load("warm-up", "", clients=4, requests=8, tokens=16),
    Load("warm-up", "", clients=32, requests=128, tokens=16),
    Load("warm-up", "", clients=256, requests=256, tokens=4),
)


def describe_machine(rounds: int, quick: bool, versions: dict[str, str]) -> Machine:
    """What is worth knowing to read the figures later."""
    cpu = "?"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    git = ["git", "-C", str(BUILD.parent), "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "?"
    except OSError:
        revision = "?"
    return Machine(
        started=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        cpu=cpu,
        cores=os.cpu_count() or 0,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        revision=revision,
        rounds=rounds,
        quick=quick,
        versions=versions,
    )


def probe_fsync(folder: Path, round_number: int, writes: int = 100) -> FsyncProbe:
    """Times 4 KB appended and fdatasynced, `writes` times, in a file of its own in this folder."""
    path = folder / "fsync-probe"
    block = os.urandom(4096)
    times_us = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        for _ in range(writes):
            began = time.perf_counter_ns()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times_us.append((time.perf_counter_ns() - began) / 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    times_us.sort()
    return FsyncProbe(round_number, statistics.median(times_us), times_us[int(0.99 * (writes - 1))])


def machine_busy_s() -> float:
    """CPU seconds that the whole machine has worked since it started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return sum(map(int, fields[1:4])) / os.sysconf("SC_CLK_TCK")


def turns(targets: Sequence[Target], load: Load, round_number: int) -> list[Target]:
    """The targets that run a load, in their order in this round.

    Each round begins with another target, so that none always runs behind the same neighbour.
    """
    here = [target for target in targets if target.runs(load.name)]
    first = round_number % len(here) if here else 0
    return here[first:] + here[:first]


class Session:
    """The engine, the services and a folder for what they write, for as long as the context lasts."""

    def __init__(
        self,
        native: Native,
        names: set[str],
        work: Path | None,
        tell: Tell,
        find_launches: FindLaunches = catalogue.launches,
    ) -> None:
        self._native = native
        self._find_launches = find_launches
        self._names = names
        self._tell = tell
        self._exit = contextlib.ExitStack()
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        #: Logs, configurations and journals; removed at the end.
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=work or BUILD))
        self.engine_port = free_port()
        self.targets: list[Target] = []
        self.absent: list[Absent] = []
        self.versions: dict[str, str] = {}
        self._services: dict[str, Watched] = {}

    def __enter__(self) -> Session:
        try:
            self._start_engine()
            if "direct" in self._names:
                self.targets.append(Target("direct", "chat", self.engine_port))
            for launch in self._find_launches(self._names, self.engine_port, self.folder, self._native):
                self._add(launch)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, command: list[str], env: dict[str, str], port: int, ready: str) -> Service:
        log = self.folder / f"{name.replace('/', '-').replace(' ', '-')}.log"
        service = Service(name, command, env, log)
        self._exit.callback(service.stop)
        service.wait_ready(port, ready)
        return service

    def _start_engine(self) -> None:
        command = [str(self._native.engine), "--port", str(self.engine_port)]
        command += ["--slots", str(catalogue.SLOTS), "--context", str(catalogue.CONTEXT_TOKENS)]
        self.engine = self._start("engine", command, {}, self.engine_port, "/health")

    def _add(self, launch: Launch | Missing) -> None:
        """Starts a service and warms it up; a target that does not come up is reported, not fatal."""
        reason = ""
        if isinstance(launch, Missing):
            reason = launch.reason
        else:
            try:
                command, env = launch.command, dict(launch.env)
                self._services[launch.name] = self._start(launch.name, command, env, launch.port, launch.ready)
            except StartError as error:
                reason = f"did not start: {error}"
        if isinstance(launch, Missing) or reason:
            self.absent.append(Absent(launch.name, reason))
            self._tell(f"{launch.name}: {reason}")
            return
        self.versions[launch.name] = launch.version
        try:
            found = catalogue.faces(launch, self._names)
        except OSError as error:
            self.absent.append(Absent(launch.name, f"makes no key: {error}"))
            self._tell(f"{launch.name} makes no key: {error}")
            return
        for target in found:
            problem = self._warm_up(target)
            if problem:
                self.absent.append(Absent(target.name, f"does not answer as it should: {problem}"))
                self._tell(f"{target.name}: {problem}")
            else:
                self.targets.append(target)
                self._tell(f"{target.name} is up")

    def _warm_up(self, target: Target) -> str:
        """Runs short loads until one succeeds, because routers look for their workers first; else its error."""
        for load in _WARM_UP:
            error = self._run_loadgen(target, load, limit_s=20)["error"]
            for _ in range(20):
                if not error:
                    break
                time.sleep(0.3)
                error = self._run_loadgen(target, load, limit_s=20)["error"]
            if error:
                return str(error)
        return ""

    def _run_loadgen(self, target: Target, load: Load, limit_s: float) -> dict[str, object]:
        """What the load generator measured; `error` is empty when every request succeeded."""
        command = [str(self._native.loadgen), "--port", str(target.port), "--api", target.api]
        command += [*load.arguments(), "--timeout", str(limit_s)]
        env = {**os.environ, "LOADGEN_BEARER": target.bearer}
        printed = subprocess.run(command, capture_output=True, text=True, timeout=limit_s + 30, check=False, env=env)
        return parse_loadgen(printed.stdout)

    def watched(self, target: Target) -> Watched:
        """What the CPU and memory of a target are read from."""
        return self._services[target.service] if target.service else Nothing()

    def service(self, target: Target) -> Service | None:
        found = self.watched(target)
        return found if isinstance(found, Service) else None

    def measure(self, target: Target, load: Load, round_number: int) -> LoadRun:
        """Runs one load on one target, between two readings of what its processes used."""
        watched = self.watched(target)
        before, harness, machine = settled_usage(watched), self._harness_cpu_s(), machine_busy_s()
        measured = self._run_loadgen(target, load, limit_s=90)
        after = settled_usage(watched)
        return LoadRun(
            target=target.name,
            load=load.name,
            round=round_number,
            fsync_delay_ms=target.fsync_delay_ms,
            requests=load.requests,
            cpu_s=after.cpu_s - before.cpu_s,
            rss_mb=after.rss_mb,
            harness_cpu_s=self._harness_cpu_s() - harness,
            machine_busy_s=machine_busy_s() - machine,
            **measured,  # type: ignore[arg-type]
        )

    def _harness_cpu_s(self) -> float:
        children = os.times()
        return self.engine.usage().cpu_s + children.children_user + children.children_system

    def rounds(self, count: int, loads: list[Load]) -> Iterator[FsyncProbe | LoadRun]:
        """Everything, round by round; in each round every load runs on one target after the other."""
        for number in range(count):
            yield probe_fsync(self.folder, number)
            for load in loads:
                for target in turns(self.targets, load, number):
                    yield self.measure(target, load, number)
