"""The loads: what the load generator is told, under the names that every table uses."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Load:
    """One closed-loop load.

    Args:
        name: How tables and options call it.
        title: What it is, in words.
        clients: Connections that each have one request running.
        requests: Requests in all.
        tokens: Tokens per answer.
        rate: Tokens per second and stream; 0 = as fast as they are taken.
        in_phase: Whether all streams get their tokens at the same ticks, as from a batching engine.
        whole: Whether answers are asked for in one piece instead of streamed.
    """

    name: str
    title: str
    clients: int
    requests: int
    tokens: int
    rate: int = 0
    in_phase: bool = False
    whole: bool = False

    def arguments(self) -> list[str]:
        """What to call the load generator with."""
        words = ["--clients", str(self.clients), "--requests", str(self.requests)]
        words += ["--tokens", str(self.tokens), "--rate", str(self.rate)]
        if self.in_phase:
            words.append("--in-phase")
        if self.whole:
            words.append("--whole")
        return words

    def shortened(self) -> Load:
        """The same load in about a fifth of the time: to see that everything runs, not to publish."""
        if self.rate:
            return replace(self, tokens=max(10, self.tokens // 5))
        return replace(self, requests=max(self.clients, self.requests // 5))


#: In the order in which they run.
LOADS = (
    Load("i", "1 stream, 2,000 tokens, unpaced", clients=1, requests=10, tokens=2000),
    Load("ib", "1 stream at 50 tok/s", clients=1, requests=8, tokens=25, rate=50),
    Load("ii", "64 streams at 50 tok/s, 200 tokens", clients=64, requests=64, tokens=200, rate=50),
    Load("iib", "the same, all streams in phase", clients=64, requests=64, tokens=200, rate=50, in_phase=True),
    Load("iii", "256 streams at 20 tok/s, 100 tokens", clients=256, requests=256, tokens=100, rate=20),
    Load("iv", "32 streams, 1,000 tokens, unpaced", clients=32, requests=96, tokens=1000),
    Load("v", "answers of 8 tokens in one piece, 32 at a time", clients=32, requests=6000, tokens=8, whole=True),
)

BY_NAME = {load.name: load for load in LOADS}

#: The paced loads, where the latency of a frame is the proxy's and not a queue's in a socket buffer.
PACED = ("ib", "ii", "iib", "iii")


def select(names: str) -> list[Load]:
    """The loads of a comma-separated list.

    Raises:
        ValueError: A name that no load has.
    """
    chosen = []
    for name in names.split(","):
        if name not in BY_NAME:
            raise ValueError(f"--loads: {name!r} is no load; it takes {', '.join(BY_NAME)}")
        chosen.append(BY_NAME[name])
    return chosen
