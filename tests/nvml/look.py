"""The program under test: samples this machine's devices and prints each sample as a line of JSON, until its input ends."""

from __future__ import annotations

import sys
import threading

import msgspec

from llama_orch.pools.telemetry.sampler import Sampler

PERIOD_S = 0.02


def main() -> None:
    sampler = Sampler("here", period_s=PERIOD_S, patience_s=0.3)
    sampler.start()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.wait(PERIOD_S):
        print(msgspec.json.encode(sampler.sample()).decode(), flush=True)
    sampler.stop()


if __name__ == "__main__":
    main()
