"""What a run measured: one JSON object per line, and the same as values."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Quantiles:
    """Times in microseconds."""

    p50: float
    p99: float
    max: float

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Quantiles:
        return cls(float(value["p50"]), float(value["p99"]), float(value["max"]))


@dataclass(frozen=True)
class Machine:
    """Where and with what a run was made."""

    kind: ClassVar[str] = "machine"
    started: str
    cpu: str
    cores: int
    kernel: str
    python: str
    revision: str
    #: How many rounds were asked for.
    rounds: int
    #: Whether the loads were shortened: such figures are not to be published.
    quick: bool
    #: Target to version.
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Absent:
    """A target that was not measured, and why."""

    kind: ClassVar[str] = "absent"
    target: str
    reason: str


@dataclass(frozen=True)
class FsyncProbe:
    """4 KB write + fdatasync, many times, in the folder where the journal lies."""

    kind: ClassVar[str] = "fsync"
    round: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class LoadRun:
    """One load on one target."""

    kind: ClassVar[str] = "load"
    target: str
    load: str
    round: int
    #: What every fsync of the target was made to take longer.
    fsync_delay_ms: int
    requests: int
    ok: int
    failed: int
    unfinished: int
    #: Tokens that came out of order, twice or not at all.
    misplaced: int
    tokens: int
    wall_s: float
    tok_s: float
    req_s: float
    first_token_us: Quantiles
    frame_us: Quantiles
    request_us: Quantiles
    #: CPU of the target's process tree, until it came to rest after the load.
    cpu_s: float
    #: CPU of the engine and the load generator.
    harness_cpu_s: float
    #: CPU time of the whole machine, which also holds what others did meanwhile.
    machine_busy_s: float
    rss_mb: float
    error: str

    @property
    def faults(self) -> int:
        """Requests and tokens that went wrong: the figures of such a run say little."""
        return self.failed + self.unfinished + self.misplaced

    @property
    def cpu_us_per_token(self) -> float:
        return self.cpu_s * 1e6 / self.tokens if self.tokens else float("nan")

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_s * 1e6 / self.ok if self.ok else float("nan")


@dataclass(frozen=True)
class EdgeRun:
    """How a target treats readers that leave, and one that stalls."""

    kind: ClassVar[str] = "edge"
    target: str
    #: From closing the connection to the engine's noticing, while tokens flow; None = not within the limit.
    abort_flowing_ms: list[float | None]
    #: The same while the engine is silent.
    abort_silent_ms: list[float | None]
    #: Growth of memory while a reader takes everything, at its highest.
    reading_growth_mb: float
    #: The same while a reader takes nothing.
    stalled_growth_mb: float
    #: Frames that the engine got rid of while the reader took nothing.
    stalled_frames: int


Row = Machine | Absent | FsyncProbe | LoadRun | EdgeRun
_ROW_TYPES: tuple[type[Row], ...] = (Machine, Absent, FsyncProbe, LoadRun, EdgeRun)
_BY_KIND: dict[str, type[Row]] = {row_type.kind: row_type for row_type in _ROW_TYPES}


def to_line(row: Row) -> str:
    """One row as a line of JSON."""
    return json.dumps({"kind": row.kind, **asdict(row)}, sort_keys=False)


def from_line(line: str) -> Row:
    """The row of a line.

    Raises:
        ValueError: No row: the kind is unknown or a field is missing or unknown.
    """
    fields = json.loads(line)
    kind = fields.pop("kind", None)
    if kind not in _BY_KIND:
        raise ValueError(f"kind: {kind!r} is no kind of row; there are {', '.join(_BY_KIND)}")
    for name in ("first_token_us", "frame_us", "request_us"):
        if name in fields:
            fields[name] = Quantiles.parse(fields[name])
    try:
        return _BY_KIND[kind](**fields)
    except TypeError as error:
        raise ValueError(f"a row of kind {kind!r} does not fit: {error}") from error


def parse_loadgen(text: str) -> dict[str, Any]:
    """The fields of a LoadRun that the load generator measured, from what it printed.

    Raises:
        ValueError: It printed no JSON object: it was killed or refused its arguments.
    """
    try:
        printed = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the load generator printed no result: {text[:200]!r}") from error
    fields = {name: printed[name] for name in "ok failed unfinished misplaced tokens wall_s tok_s req_s error".split()}
    for name in ("first_token_us", "frame_us", "request_us"):
        fields[name] = Quantiles.parse(printed[name])
    return fields


class Results:
    """The rows of one run, and medians over its rounds."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.machine = next((row for row in rows if isinstance(row, Machine)), None)
        self.absent = [row for row in rows if isinstance(row, Absent)]
        self.fsync = [row for row in rows if isinstance(row, FsyncProbe)]
        self.loads = [row for row in rows if isinstance(row, LoadRun)]
        self.edges = [row for row in rows if isinstance(row, EdgeRun)]

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls(from_line(line) for line in path.read_text().splitlines() if line.strip())

    def targets(self) -> list[str]:
        """The measured targets, in the order in which they first ran, then those with slow disks."""
        names = dict.fromkeys(row.target for row in sorted(self.loads, key=lambda row: row.fsync_delay_ms))
        return list(names)

    def runs(self, target: str, load: str) -> list[LoadRun]:
        return [row for row in self.loads if row.target == target and row.load == load]

    def median(self, target: str, load: str, figure: Callable[[LoadRun], float]) -> float | None:
        """Median over the rounds; None where nothing was measured."""
        values = [figure(row) for row in self.runs(target, load) if row.ok]
        return statistics.median(values) if values else None

    def added(self, target: str, load: str, figure: Callable[[LoadRun], float]) -> float | None:
        """What a target adds to a figure of "direct" under the same load."""
        here, direct = self.median(target, load, figure), self.median("direct", load, figure)
        return None if here is None or direct is None else here - direct

    def fsync_p50_us(self) -> float | None:
        return statistics.median(row.p50_us for row in self.fsync) if self.fsync else None
