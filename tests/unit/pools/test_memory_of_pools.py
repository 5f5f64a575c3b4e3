"""Whether an engine fits is looked at before it starts; what it took is told afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from llama_orch.core.devices import GpuProcess, GpuReading, HostSample, MemoryReading
from llama_orch.core.events.pool import PoolSized
from llama_orch.core.settings import ManagerSettings, PoolSettings, ProvisioningSettings
from llama_orch.plugins.manager import PluginManager
from llama_orch.pools.desired import DesiredPool
from llama_orch.pools.lifecycle import Trouble
from llama_orch.pools.outfitting import Outfitter, config_of
from llama_orch.pools.preparing import Order, Prepared, StartError, fits, order_of, shortage
from llama_orch.pools.room import HostRoom
from llama_orch.pools.sizing import shape_of, size_of

from ...engines.tiny_gguf import write_model
from .conftest import Heard, desired, managed, pids, pool, run

MIB = 2**20
GPU = "GPU-a"


class Room:
    """Memory that a test sets."""

    def __init__(self, **free: int) -> None:
        self.free = free
        self.looks = 0
        self.wrong: Trouble | None = None

    def free_bytes(self, devices: Sequence[str]) -> Mapping[str, int]:
        self.looks += 1
        return {device: self.free[device] for device in devices if device in self.free}

    def taken_bytes(self, pids: Sequence[int], devices: Sequence[str]) -> Mapping[str, int]:
        assert pids
        return dict.fromkeys(devices, 70 * MIB)

    def trouble(self, devices: Sequence[str]) -> Trouble | None:
        return self.wrong


class Sized:
    """Prepares the mock server, and says that it needs 100 MiB."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def prepare(self, order: Order, *, progress: Any, cancelled: threading.Event) -> Prepared:
        config = config_of(order, launched=True)
        return Prepared(config=config, predicted_bytes={self.device: 100 * MIB}, facts=(self.size(order).event,))

    def size(self, order: Order) -> Any:
        event = PoolSized(pool_id="a", weights_bytes=100 * MIB, kv_bytes=0, compute_bytes=0, overhead_bytes=0)
        return type("Size", (), {"event": event})()

    def configure(self, manager: ManagerSettings) -> None: ...


def test_too_little_memory_fails_at_once_with_the_numbers_and_passes_when_there_is_enough(data_dir):
    async def test():
        heard, room = Heard(), Room(cpu=60 * MIB)
        manager = managed(data_dir, heard, preparer=Sized(), memory=room)
        await manager.apply(desired(pool()))
        told = await heard.next("a", "ram-short")
        assert told["detail"] == "needs 100 MiB of host memory, 60 MiB are free"
        assert told["advice"]
        assert told["retry_ms"] > 0
        room.free["cpu"] = 200 * MIB
        await heard.next("a", "ready")
        measured = await heard.next("a", "PoolMeasured")
        assert measured["predicted_bytes"] == {"cpu": 100 * MIB}
        assert measured["observed_bytes"] == {"cpu": 70 * MIB}
        await manager.stop(kill_engines=True)

    run(test)


def test_what_runs_already_has_its_memory_and_is_adopted_without_a_look(data_dir):
    async def test():
        heard = Heard()
        first = managed(data_dir, heard, preparer=Sized(), memory=Room(cpu=200 * MIB))
        await first.apply(desired(pool()))
        ready = await heard.next("a", "ready")
        await first.stop(kill_engines=False)
        second = managed(data_dir, heard, preparer=Sized(), memory=Room(cpu=0))
        await second.apply(desired(pool()))
        assert (await heard.next("a", "ready"))["url"] == ready["url"]
        await second.stop(kill_engines=True)

    run(test)


def test_a_configured_correction_counts(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard, preparer=Sized(), memory=Room(cpu=150 * MIB))
        one = pool()
        wanted = DesiredPool(settings=PoolSettings(**{**_fields(one), "memory_permille": 2_000}), model="m")
        await manager.apply([wanted])
        assert "needs 200 MiB" in (await heard.next("a", "ram-short"))["detail"]
        await manager.stop(kill_engines=True)

    run(test)


def _fields(settings: PoolSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_a_pool_whose_gpu_is_gone_says_so_and_is_not_started(data_dir):
    async def test():
        heard, room = Heard(), Room(**{GPU: 200 * MIB})
        room.wrong = Trouble("driver-gone", "no answer", "look at nvidia-smi")
        manager = managed(data_dir, heard, preparer=Sized(GPU), memory=room)
        await manager.apply(desired(pool(), devices=[GPU]))
        assert (await heard.next("a", "driver-gone"))["advice"] == "look at nvidia-smi"
        room.wrong = None
        await heard.next("a", "ready")
        await manager.stop(kill_engines=True)

    run(test)


def test_memory_that_ran_out_although_it_was_predicted_to_fit_corrects_the_prediction(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard, preparer=Sized(GPU), memory=Room(**{GPU: 130 * MIB}))
        broken = pool("a", "wire", "--no-such-option", "cudaMalloc failed: out of memory")
        await manager.apply(desired(broken, devices=[GPU]))
        measured = await heard.next("a", "PoolMeasured")
        assert measured["observed_bytes"] == {GPU: 130 * MIB + 1}, "it needs more than what was free"
        assert "out of memory" in (await heard.next("a", "vram-oom"))["detail"]
        await manager.stop(kill_engines=True)

    run(test)


def test_what_a_pool_would_take_is_told_before_it_is_loaded(data_dir):
    async def test():
        heard = Heard()
        manager = managed(data_dir, heard, preparer=Sized(), memory=Room(cpu=0))
        await manager.apply(desired(pool(), wanted=False))
        await heard.next("a", "unloaded")
        assert heard.story == [("a", "PoolSized"), ("a", "unloaded")]
        await manager.apply(desired(pool(), wanted=False))
        await manager.stop(kill_engines=True)
        assert heard.story == [("a", "PoolSized"), ("a", "unloaded")]

    run(test)


def test_a_next_engine_that_does_not_fit_beside_the_first_is_told_with_the_numbers_and_never_started(data_dir):
    async def test():
        heard, room = Heard(), Room(cpu=150 * MIB)
        manager = managed(data_dir, heard, preparer=Sized(), memory=room)
        (one,) = desired(pool())
        await manager.apply([one])
        ready = await heard.next("a", "ready")
        room.free["cpu"] = 50 * MIB
        await manager.apply([msgspec.structs.replace(one, next=one.settings, next_model="n", handover="new-first")])
        told = await heard.next("a", "PoolReloadFailed")
        assert (told["cause"], told["model_ref"]) == ("ram-short", "n")
        assert "needs 100 MiB of host memory, 50 MiB are free" in told["detail"]
        assert manager.properties("a") == ready["properties"], "what serves is not touched"
        assert len(pids(data_dir)) == 1
        await manager.stop(kill_engines=True)

    run(test)


def test_memory_may_look_taken_for_a_moment_after_an_engine_ended():
    room = Room(cpu=1)

    class Freed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            room.free["cpu"] = 10
            return False

    assert fits({"cpu": 5}, room, settle_s=3.0, cancelled=Freed()) == {"cpu": 10}
    room.free["cpu"] = 1
    with pytest.raises(StartError):
        fits({"cpu": 5}, room, settle_s=0.0, cancelled=threading.Event())
    assert room.looks == 3


def test_only_what_can_be_told_is_compared():
    assert shortage({GPU: 10, "cpu": 5}, {"cpu": 5}) is None
    found = shortage({GPU: 3 * MIB}, {GPU: MIB})
    assert found is not None
    assert (found.cause, found.detail) == ("vram-short", f"needs 3 MiB on GPU {GPU}, 1 MiB are free")


# --- what a sample says --------------------------------------------------------------------------------------------------


def sample(**more: Any) -> HostSample:
    mine = GpuProcess(os.getpid(), 5 * MIB)
    gpus = [GpuReading(uuid=GPU, total_bytes=24 * MIB, free_bytes=8 * MIB, processes=[mine, GpuProcess(1, 9 * MIB)])]
    return HostSample(**{"host": "h", "memory": MemoryReading(64 * MIB, 32 * MIB), "gpus": gpus, **more})


def test_free_and_taken_memory_follow_from_the_latest_sample():
    room = HostRoom(sample)
    assert room.free_bytes(["cpu", GPU, "GPU-other"]) == {"cpu": 32 * MIB, GPU: 8 * MIB}
    assert room.total_bytes() == {GPU: 24 * MIB}
    taken = room.taken_bytes([os.getpid()], ["cpu", GPU])
    assert taken[GPU] == 5 * MIB
    assert taken["cpu"] > MIB
    assert room.taken_bytes([2**22 + 1], ["cpu"]) == {}
    assert room.trouble(["cpu", GPU]) is None


@pytest.mark.parametrize(
    "told, cause",
    [
        ({"trouble": "driver-gone", "detail": "NVML says 9"}, "driver-gone"),
        ({"trouble": "no-answer"}, "driver-gone"),
        ({"gpus": [GpuReading(uuid=GPU, trouble="gpu-lost")]}, "driver-reset"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_by_those_who_want_it(told, cause):
    room = HostRoom(lambda: sample(**told))
    found = room.trouble([GPU])
    assert found is not None
    assert found.cause == cause
    assert found.advice
    assert room.trouble(["cpu"]) is None, "a pool without a GPU is not concerned"


# --- sizes and outfits -----------------------------------------------------------------------------------------------


def test_the_size_is_of_one_device_and_the_prediction_of_all(tmp_path):
    shape = shape_of(write_model(tmp_path / "m.gguf"))
    assert shape is not None
    settings = PoolSettings(id="a", model="m", ctx=1024, slots=2)
    on_cpu = size_of(order_of(settings, "m", ["cpu"]), shape)
    assert set(on_cpu.predicted_bytes) == {"cpu"}
    assert (on_cpu.event.ctx, on_cpu.event.slots, on_cpu.event.host_bytes) == (1024, 2, 0)
    gpus = order_of(PoolSettings(id="a", model="m", ctx=1024, slots=2, devices="auto"), "m", ["GPU-a", "GPU-b"])
    both = size_of(gpus, shape, gpu_bytes={"GPU-a": 24 * MIB, "GPU-b": 12 * MIB})
    assert set(both.predicted_bytes) == {"GPU-a", "GPU-b", "cpu"}
    more = PoolSettings(
        id="a", model="m", ctx=1024, slots=2, provisioning=ProvisioningSettings(options={"kv_type_k": "q8_0"})
    )
    assert size_of(order_of(more, "m", ["cpu"]), shape).event.kv_bytes < on_cpu.event.kv_bytes
    assert shape_of(tmp_path) is None
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    assert shape_of(tmp_path / "cut.gguf") is None


def test_what_a_pool_is_called_and_how_it_queues_starts_no_other_engine():
    one = PoolSettings(id="a", model="m", aliases=["x"], keep_alive_ms=5, pinned=True)
    other = PoolSettings(id="a", model="m")
    assert order_of(one, "m", ["cpu"]) == order_of(other, "m", ["cpu"])
    assert order_of(one, "m", ["cpu"]) != order_of(other, "m", [GPU])


def test_a_pool_of_the_package_gets_engine_model_and_size(tmp_path):
    launchers = PluginManager(entry_points=False).launchers()
    outfitter = Outfitter(launchers, {"small": f"file:{write_model(tmp_path / 'm.gguf')}"}, data_dir=tmp_path / "data")
    order = order_of(PoolSettings(id="a", model="small", slots=1), "small", ["cpu"])
    phases: list[str] = []
    prepared = outfitter.prepare(order, progress=lambda phase, *_: phases.append(phase), cancelled=threading.Event())
    assert prepared.config["model_path"].endswith("m.gguf")
    assert prepared.config["provisioned"].mode == "package"
    assert prepared.predicted_bytes["cpu"] > 0
    assert [type(fact).__name__ for fact in prepared.facts][-1] == "PoolSized"
    size = outfitter.size(order)
    assert size is not None
    assert size.event in prepared.facts


def test_a_model_that_is_not_there_is_told_with_its_cause(tmp_path):
    launchers = PluginManager(entry_points=False).launchers()
    outfitter = Outfitter(launchers, {}, data_dir=tmp_path)
    order = order_of(PoolSettings(id="a", model="m"), str(tmp_path / "nowhere.gguf"), ["cpu"])
    with pytest.raises(StartError) as told:
        outfitter.prepare(order, progress=lambda *_: None, cancelled=threading.Event())
    assert told.value.trouble.cause == "not-found"
    assert told.value.trouble.advice
    assert outfitter.size(order) is None


def test_nothing_is_fetched_where_that_is_forbidden(tmp_path):
    launchers = PluginManager(entry_points=False).launchers()
    outfitter = Outfitter(launchers, {}, data_dir=tmp_path)
    outfitter.configure(ManagerSettings(forbid_downloads=True))
    order = order_of(PoolSettings(id="a", model="m"), "https://127.0.0.1:9/m.gguf", ["cpu"])
    with pytest.raises(StartError) as told:
        outfitter.prepare(order, progress=lambda *_: None, cancelled=threading.Event())
    assert told.value.trouble.cause == "offline"
