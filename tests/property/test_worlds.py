"""The whole scheduler on any small machine: memory is never over-committed, and everything that fits somewhere is done."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.simulator.rig import GIB, ModelledPool, Rig, gpu
from llama_orch.simulator.trace import TraceTask
from llama_orch.simulator.world import World

from ..support.examples import search

#: samples are told in such steps
_STEP = 32 * 2**20


@st.composite
def machines(draw: st.DrawFn) -> Rig:
    """One to three GPUs, some of their memory in other hands, and pools whose predictions err by up to a per cent."""
    devices = tuple(
        msgspec.structs.replace(gpu(n, draw(st.sampled_from([8, 12, 24]))), foreign_bytes=draw(st.integers(0, 3)) * GIB)
        for n in range(draw(st.integers(1, 3)))
    )
    names = [device.device for device in devices]
    pools = []
    for n in range(draw(st.integers(1, 6))):
        mask = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        fields: dict[str, Any] = {
            "pool_id": f"p{n}",
            # Some pools share a model.
            "model": f"m{draw(st.integers(0, n))}",
            "weights_bytes": draw(st.integers(1, 26)) * GIB,
            "kv_bytes": draw(st.integers(0, 2)) * GIB,
            "devices": tuple(sorted(mask)),
            "slots": draw(st.integers(1, 4)),
            "preload": draw(st.booleans()),
            "keep_alive_ms": draw(st.sampled_from([0, 0, 30_000])),
            "real_permille": draw(st.integers(900, 1010)),
        }
        pools.append(ModelledPool(**fields))
    return Rig(devices=devices, pools=tuple(pools))


def holds(rig: Rig, pool: ModelledPool) -> bool:
    """Whether some device, or its whole mask, could hold the pool alone, by the plainest count."""
    free = {d.device: (d.total_bytes - d.foreign_bytes - rig.kept_bytes) // _STEP * _STEP for d in rig.devices}
    return any(pool.need_bytes <= free[device] for device in pool.devices)


@search(25)
@given(machines(), st.data())
def test_memory_holds_and_what_fits_is_done(rig: Rig, data: st.DataObject) -> None:
    models = sorted({pool.model for pool in rig.pools})
    trace = []
    for n in range(data.draw(st.integers(1, 25))):
        follows = data.draw(st.integers(-1, n - 1)) if n else -1
        trace.append(
            TraceTask(
                n=n,
                at_ms=data.draw(st.integers(0, 600_000)),
                after=follows,
                delay_ms=data.draw(st.integers(0, 20_000)),
                model=data.draw(st.sampled_from(models)),
                output_tokens=data.draw(st.integers(1, 600)),
                prompt_tokens=data.draw(st.integers(1, 4000)),
                priority=data.draw(st.sampled_from(["interactive", "batch"])),
            )
        )
    report = World(rig, trace).run()
    assert report.violations == []
    fits = {model for model in models if any(holds(rig, p) for p in rig.pools if p.model == model)}
    # Nobody is turned away but for a model that no device holds.
    assert report.failed + report.refused <= sum(task.model not in fits for task in trace)
    if all(task.model in fits for task in trace):
        assert report.completed == len(trace)
        assert report.waits == {}
    assert report.passed_over_ms <= 300_000 or not all(task.model in fits for task in trace)
