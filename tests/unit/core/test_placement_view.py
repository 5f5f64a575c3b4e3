"""What a placement decision is told of memory: what the journal holds of it, and nothing that is guessed (PLC-1, PLC-3)."""

from __future__ import annotations

from llama_orch.core.events.gpu import GpuObserved, GpuRecord
from llama_orch.core.events.pool import PoolDeclared, PoolReady, PoolSized
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.leases import Lease
from llama_orch.core.projections.pools import PoolState
from llama_orch.core.services.placement import free_bytes, kv_tokens_free

from ...support.stage import on_stage

GIB = 2**30


def pool(*devices: str) -> PoolState:
    return PoolState(declared=PoolDeclared(pool_id="p", engine="e", model_ref="m"), devices=list(devices))


def head(**observed: object) -> Head:
    built = Head()
    gpus = [
        GpuRecord(uuid="GPU-a", total_mib=24 * 1024, used_mib=20 * 1024, reserved_mib=512),
        GpuRecord(uuid="GPU-b", total_mib=12 * 1024, used_mib=2 * 1024),
        GpuRecord(uuid="GPU-c", total_mib=12 * 1024, trouble="gpu-lost"),
    ]
    fields: dict[str, object] = {"host": "local", "gpus": gpus, **observed}
    built.gpus.by_host["local"] = GpuObserved(**fields)  # type: ignore[arg-type]
    return built


def test_a_pool_on_several_gpus_has_what_the_fullest_has_left() -> None:
    assert free_bytes(head(), pool("GPU-a")) == 3584 * 2**20
    assert free_bytes(head(), pool("GPU-a", "GPU-b")) == 3584 * 2**20
    assert free_bytes(head(), pool("GPU-b")) == 10 * GIB


def test_memory_that_nobody_saw_or_believes_is_said_to_be_unknown() -> None:
    assert free_bytes(Head(), pool("GPU-a")) == -1
    assert free_bytes(head(), pool()) == -1
    assert free_bytes(head(), pool("GPU-c")) == -1, "the GPU is lost"
    assert free_bytes(head(), pool("GPU-nowhere")) == -1
    assert free_bytes(head(trouble="stale"), pool("GPU-a")) == -1
    assert free_bytes(head(), pool("cpu")) == -1, "the host did not say"


def test_pools_on_the_processors_have_the_hosts_memory() -> None:
    seen = head(memory_total_mib=64 * 1024, memory_available_mib=32 * 1024, trouble="driver-gone")
    assert free_bytes(seen, pool("cpu")) == 32 * GIB


def shared(ctx: int, slots: int) -> PoolState:
    state = pool("GPU-a")
    state.sized = PoolSized(
        pool_id="p", weights_bytes=1, kv_bytes=1, compute_bytes=0, overhead_bytes=0, ctx=ctx, slots=slots
    )
    state.observed = PoolReady(pool_id="p", replica_id="r0", generation=1, engine_version="1", slots=4, ctx=4096)
    return state


def test_slots_with_contexts_of_their_own_share_no_cache() -> None:
    assert kv_tokens_free(Head(), shared(4096, 4)) == -1
    assert kv_tokens_free(Head(), pool("GPU-a")) == -1


def test_of_a_shared_cache_what_runs_takes_its_part() -> None:
    with on_stage(slots={"p": 2}) as stage:
        first = stage.submit("one two three", ctx=1)
        attempt = stage.attempt(first.task_id)
        attempt.start(prompt_tokens=100)
        attempt.say("a", "b")
        stage.settle()
        seen = stage.journal.head
        assert any(isinstance(lease, Lease) for lease in seen.leases.by_id.values())
        assert kv_tokens_free(seen, shared(1000, 1)) == 1000 - 102
        assert kv_tokens_free(seen, shared(50, 1)) == 0
        attempt.end()
        stage.settle()
        assert kv_tokens_free(stage.journal.head, shared(1000, 1)) == 1000
