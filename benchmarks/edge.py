"""Readers that leave and readers that stall: when does the engine notice, and what does it cost in memory?"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator

from .processes import Service, wait_until
from .results import EdgeRun
from .session import Session
from .targets import Target

_REPEATS = 5
_NOTICE_LIMIT_S = 3.0
#: A stream that nobody can hold in socket buffers: about 60 MB on the engine's side.
_LONG_TOKENS = 300_000
_STALL_LIMIT_S = 20.0


def request_bytes(tokens: int, rate: float) -> bytes:
    """A streaming chat request for the mock engine."""
    body = json.dumps(
        {
            "model": "mock",
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": f"[bench n={tokens} rate={rate:g} phase=0 delay=0]"}],
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def parse_counters(metrics: str) -> dict[str, int]:
    """The mock engine's own counters from its /metrics."""
    return {name: int(value) for name, value in re.findall(r"^mock_(\w+)_total (\d+)$", metrics, re.MULTILINE)}


class EngineWatch:
    """Reads the engine's counters over one kept connection, in well under a millisecond."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)

    def counters(self) -> dict[str, int]:
        self._connection.request("GET", "/metrics")
        return parse_counters(self._connection.getresponse().read().decode())

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def reader(port: int, tokens: int, rate: float) -> Iterator[socket.socket]:
    """A connection on which a stream was asked for."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request_bytes(tokens, rate))
        yield connection


def time_to_notice(port: int, watch: EngineWatch, rate: float) -> float | None:
    """Opens a stream, reads its first token, leaves; milliseconds until the engine counts it. None: never."""
    before = watch.counters()["aborts"]
    with reader(port, 2000, rate) as connection:
        received = b""
        while b"#" not in received:
            piece = connection.recv(65536)
            if not piece:
                return None
            received += piece
        time.sleep(0.2)
    left = time.perf_counter()
    noticed = wait_until(lambda: watch.counters()["aborts"] > before, _NOTICE_LIMIT_S, step_s=0.001)
    return round((time.perf_counter() - left) * 1000, 2) if noticed else None


def times_to_notice(port: int, watch: EngineWatch, rate: float) -> list[float | None]:
    """Several times in a row; once it was not noticed at all, that is enough."""
    times: list[float | None] = []
    while len(times) < _REPEATS and None not in times:
        times.append(time_to_notice(port, watch, rate))
    return times


class MemoryPeak:
    """The highest growth of a service's memory over what it was at first, in MB."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._start_mb = service.usage().rss_mb
        self.growth_mb = 0.0

    def look(self) -> None:
        self.growth_mb = max(self.growth_mb, self._service.usage().rss_mb - self._start_mb)


def _take_everything(port: int, peak: MemoryPeak) -> None:
    """Reads a long stream to its end, looking at the memory meanwhile."""
    looked = 0.0
    tail = b""
    last_place = f".{_LONG_TOKENS - 1:06x} ".encode()
    with reader(port, _LONG_TOKENS, 0) as connection:
        connection.settimeout(_STALL_LIMIT_S)
        while last_place not in tail:
            piece = connection.recv(1 << 18)
            if not piece:
                break
            tail = tail[-32:] + piece
            if time.monotonic() - looked > 0.1:
                looked = time.monotonic()
                peak.look()
    peak.look()


def _take_nothing(port: int, watch: EngineWatch, peak: MemoryPeak) -> int:
    """Asks for a long stream and reads none of it until nothing moves; the frames that the engine got rid of."""
    first = watch.counters()["frames"]
    with reader(port, _LONG_TOKENS, 0):
        quiet_since, frames = time.monotonic(), first
        deadline = time.monotonic() + _STALL_LIMIT_S
        while time.monotonic() - quiet_since < 1.5 and time.monotonic() < deadline:
            time.sleep(0.05)
            peak.look()
            now = watch.counters()["frames"]
            if now != frames:
                quiet_since, frames = time.monotonic(), now
    return frames - first


def measure(session: Session, target: Target) -> EdgeRun | None:
    """All edges of one target; None for one without processes of its own."""
    service = session.service(target)
    if service is None:
        return None
    watch = EngineWatch(session.engine_port)
    try:
        flowing = times_to_notice(target.port, watch, rate=20)
        silent = times_to_notice(target.port, watch, rate=0.001)
        _take_everything(target.port, MemoryPeak(service))  # what the first long stream costs for good is not counted
        reading = MemoryPeak(service)
        _take_everything(target.port, reading)
        stalled = MemoryPeak(service)
        frames = _take_nothing(target.port, watch, stalled)
    finally:
        watch.close()
    return EdgeRun(
        target=target.name,
        abort_flowing_ms=flowing,
        abort_silent_ms=silent,
        reading_growth_mb=round(reading.growth_mb, 1),
        stalled_growth_mb=round(stalled.growth_mb, 1),
        stalled_frames=frames,
    )


def measure_all(session: Session, tell: Callable[[str], None]) -> Iterator[EdgeRun]:
    """The edges of each target that speaks chat, on the disk as it is."""
    for target in session.targets:
        if target.service is None or target.api != "chat" or target.fsync_delay_ms:
            continue
        tell(f"edges of {target.name}")
        run = measure(session, target)
        if run is not None:
            yield run
