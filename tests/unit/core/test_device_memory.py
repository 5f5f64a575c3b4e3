"""What may be placed on: a GPU in trouble is no device, an old sample is an old sample (PLC-3)."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.core.events.gpu import GpuObserved, GpuRecord
from llama_orch.core.events.pool import PoolDeclared, PoolSized
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.pools import PoolState
from llama_orch.core.scheduling.swap_types import DeviceMemory
from llama_orch.core.services.device_memory import NO_GPU, devices_of, mask_of, split_of
from llama_orch.core.settings import PoolSettings, Settings, SwapSettings

MIB = 1_048_576
SETTINGS = Settings(swap=SwapSettings(gpu_reserve_mib=100))


def head_of(*gpus: GpuRecord, **host: Any) -> Head:
    head = Head()
    head.gpus.by_host["local"] = GpuObserved(
        host="local", gpus=list(gpus), memory_total_mib=64_000, memory_available_mib=32_000, **host
    )
    return head


def card(number: int, **changes: Any) -> GpuRecord:
    fields: dict[str, Any] = {"total_mib": 24_000, "used_mib": 1_000, "reserved_mib": 300} | changes
    return GpuRecord(uuid=f"GPU-{number}", name=f"card {number}", index=number, **fields)


def devices(head: Head) -> dict[str, DeviceMemory]:
    return {device.device: device for device in devices_of(head, SETTINGS)}


def pool_on(mask: str) -> PoolState:
    return PoolState(declared=PoolDeclared(pool_id="p", engine="mock", model_ref="m", device_mask=mask))


def test_what_is_free_is_what_nobody_uses_and_the_driver_does_not_keep() -> None:
    found = devices(head_of(card(0), card(1, used_mib=30_000)))
    assert list(found) == ["cpu", "GPU-0", "GPU-1"]
    assert (found["cpu"].total_bytes, found["cpu"].free_bytes) == (64_000 * MIB, 32_000 * MIB)
    assert (found["GPU-0"].free_bytes, found["GPU-0"].reserve_bytes) == ((24_000 - 1_300) * MIB, 100 * MIB)
    assert found["GPU-1"].free_bytes == 0
    assert not any(device.stale for device in found.values())


@pytest.mark.parametrize("trouble", ["gpu-lost", "reset-required", "mig-enabled", "driver-gone", "nvml-error"])
def test_a_card_in_trouble_is_no_device_and_in_nobodys_mask_by_itself(trouble: str) -> None:
    head = head_of(card(0, trouble=trouble), card(1))
    assert list(devices(head)) == ["cpu", "GPU-1"]
    assert mask_of(head, pool_on("auto")) == ("GPU-1",)
    assert mask_of(head, pool_on("GPU-0")) == ("GPU-0",), "it is what was asked for, and not there"
    assert mask_of(head_of(card(0, trouble=trouble)), pool_on("auto")) == (NO_GPU,)


@pytest.mark.parametrize("trouble, memory_is_old", [("stale", True), ("no-answer", False)])
def test_a_sample_that_is_old_leaves_the_devices_and_says_so(trouble: str, memory_is_old: bool) -> None:
    found = devices(head_of(card(0), trouble=trouble))
    assert (found["GPU-0"].stale, found["cpu"].stale) == (True, memory_is_old)


def test_a_card_that_shares_the_hosts_memory_is_for_who_names_it() -> None:
    shared = GpuRecord(uuid="GPU-0", trouble="memory-unknown")
    head = head_of(shared)
    assert devices(head)["GPU-0"].free_bytes == 32_000 * MIB
    assert mask_of(head, pool_on("auto")) == (NO_GPU,)
    assert mask_of(head, pool_on("GPU-0")) == ("GPU-0",)


def test_cards_are_named_by_uuid_index_or_name() -> None:
    head = head_of(card(0), card(1))
    assert mask_of(head, pool_on("1, card 0, GPU-9, nothing")) == ("GPU-1", "GPU-0", "GPU-9", NO_GPU)
    assert mask_of(head, pool_on("cpu")) == ("cpu",)


@pytest.mark.parametrize(
    "wanted, parts",
    [
        ([], (2, 1)),
        ([3, 1], (3, 1)),
        # The smaller card never gets more than its part of the memory of both.
        ([1, 1], (2, 1)),
        ([0, 1], (2, 1)),
    ],
)
def test_a_spread_pool_is_planned_with_the_shares_that_its_engine_is_told(
    wanted: list[int], parts: tuple[int, int]
) -> None:
    head = head_of(card(0), card(1, total_mib=12_000))
    pool = pool_on("auto")
    pool.sized = PoolSized(
        pool_id="p", weights_bytes=10_000 * MIB, kv_bytes=2_000 * MIB, compute_bytes=50 * MIB, overhead_bytes=5 * MIB
    )
    shared = tuple(12_000 * MIB * part // sum(parts) + 55 * MIB for part in parts)
    assert split_of(head, pool, PoolSettings(id="p", tensor_split=wanted)) == shared


def test_what_cannot_be_shared_out_is_not_guessed() -> None:
    pool = pool_on("auto")
    pool.sized = PoolSized(pool_id="p", weights_bytes=MIB, kv_bytes=MIB, compute_bytes=0, overhead_bytes=0)
    two = head_of(card(0), card(1))
    assert split_of(two, pool, PoolSettings(id="p", tensor_split=[1, 1, 1])) == ()
    assert split_of(head_of(card(0), card(1, total_mib=0)), pool, PoolSettings(id="p")) == ()
