"""What happens to pools and their hosts, for golden journals: one event of each type, with every field filled once."""

from __future__ import annotations

from llama_orch.core.events.gpu import GpuObserved, GpuRecord
from llama_orch.core.events.lease import LeaseGranted, LeaseReleased
from llama_orch.core.events.manager import ManagerConnected, ManagerLost, OutboxReceived
from llama_orch.core.events.model import EngineInstalled, ModelStaged
from llama_orch.core.events.pool import (
    PoolDeclared,
    PoolDraining,
    PoolHandedOver,
    PoolLoading,
    PoolMeasured,
    PoolReady,
    PoolReloaded,
    PoolReloadFailed,
    PoolReloading,
    PoolSized,
    PoolSlotsTuned,
    PoolUndrained,
    PoolUnloading,
    PoolUnready,
)

GPU = "GPU-0"


def batches() -> list[list[object]]:
    """The events, in batches as they are appended."""
    return [
        [
            PoolDeclared(
                pool_id="g",
                engine="llamacpp",
                model_ref="big",
                device_mask="auto",
                slots=4,
                ctx=4096,
                queue_capacity=10,
                provisioning="package",
                source="/models/big.gguf",
                on_demand=True,
                keep_alive_ms=60_000,
                slots_min=1,
                slots_max=4,
                same_version=True,
            ),
            ManagerConnected(host="local", boot_id="b", incarnation="i-1", version="1"),
        ],
        [
            GpuObserved(
                host="local",
                driver="580",
                cuda="13.0",
                memory_total_mib=32_768,
                memory_available_mib=16_384,
                gpus=[
                    GpuRecord(
                        uuid=GPU,
                        name="G",
                        total_mib=24_576,
                        used_mib=1_024,
                        reserved_mib=300,
                        utilization_percent=5,
                        temperature_c=40,
                        power_mw=60_000,
                    ),
                    GpuRecord(uuid="GPU-1", index=1, trouble="gpu-lost"),
                ],
            )
        ],
        [
            PoolSized(
                pool_id="g",
                weights_bytes=10_000,
                kv_bytes=2_000,
                compute_bytes=300,
                overhead_bytes=40,
                host_bytes=5,
                ctx=4096,
                slots=4,
                architecture="llama",
                quantization="Q4_K_M",
                parameters=7_000,
                layers=32,
                ctx_train=8192,
                file_bytes=9_000,
                model_digest="sha256:0",
            ),
            ModelStaged(host="local", ref="hf:o/m", source_url="https://h/o/m", digest="sha256:0", size_bytes=9_000),
            EngineInstalled(host="local", engine="llamacpp", mode="source", version="b1", flags="-D", build="cuda"),
            OutboxReceived(host="local", boot_id="b", incarnation="i-1", n=3),
        ],
        [PoolLoading(pool_id="g", devices=[GPU], predicted_bytes={GPU: 12_340}, reason="r", makes_room_by=["p"])],
        [
            PoolUnready(pool_id="g", cause="vram-oom", detail="d", advice="a", retry_ms=10, failures=1),
            PoolReady(
                pool_id="g",
                replica_id="r0",
                generation=2,
                engine_version="b1",
                model_digest="sha256:0",
                slots=4,
                ctx=4096,
                load_ms=900,
                decode_mtok_s=50_000,
                url="http://127.0.0.1:1",
                devices=[GPU],
                abilities=["chat", "completion", "render"],
            ),
            PoolMeasured(pool_id="g", generation=2, predicted_bytes={GPU: 12_340}, observed_bytes={GPU: 13_000}),
            OutboxReceived(host="local", boot_id="b", incarnation="i-1", n=6),
        ],
        [PoolSlotsTuned(pool_id="g", slots=3, was=4, reason="r", first_token_ms=9, inter_token_us=8, waiting=1)],
        [
            LeaseGranted(
                lease_id="l-g", pool_id="g", task_id="t-g", attempt=1, slot=2, generation=2, keys=["s:1"], warm=True
            )
        ],
        [
            LeaseReleased(lease_id="l-g", pool_id="g", task_id="t-g", cause="slot-free"),
        ],
        [PoolReloading(pool_id="g", model_ref="new", source="/models/new.gguf", handover="new-first", reason="r")],
        [
            PoolReady(pool_id="g", replica_id="r0", generation=3, engine_version="b1", slots=4, ctx=4096),
            PoolReloaded(pool_id="g", model_ref="new", generation=3),
        ],
        [PoolHandedOver(pool_id="g")],
        [
            PoolReloading(pool_id="g", model_ref="bad", handover="drain"),
            PoolReloadFailed(pool_id="g", model_ref="bad", cause="bad-model", detail="d", advice="a"),
        ],
        [PoolDraining(pool_id="g", deadline_ms=5, cause="operator", reason="r"), PoolUndrained(pool_id="g")],
        [PoolDraining(pool_id="g", deadline_ms=0, cause="swap", reason="r", for_group="m")],
        [PoolUnloading(pool_id="g", cause="swap", reason="r", for_group="m")],
        [ManagerLost(host="local", detail="d")],
    ]
