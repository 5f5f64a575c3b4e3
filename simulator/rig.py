"""What is simulated: GPUs, disks and models, in numbers that a data sheet or one measurement gives.

The reference rig is a workstation with a 24 GB card (RTX 3090: 936 GB/s) beside a 12 GB one (RTX 3060: 360 GB/s) and
eight quantized models of 4 to 20 GB. Rates follow from two numbers per card: decoding reads all weights once per
token and is bound by memory bandwidth, prefill is bound by compute.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

GIB: Final = 2**30
#: decoding reaches this share of a card's bandwidth, per cent
BANDWIDTH_PERCENT: Final = 60
#: bytes of a parameter in a 4-bit quantization with its scales, hundredths
BYTES_PER_100_PARAMETERS: Final = 56
#: what a neighbour in the same batch costs a stream, per cent of its time
NEIGHBOUR_PERCENT: Final = 12


class ModelledDevice(Struct, frozen=True, kw_only=True):
    """A GPU, or the host's memory under the name ``cpu``."""

    device: str
    host: str = "local"
    total_bytes: int
    #: gigabytes a second
    bandwidth_gb_s: int
    #: effective in prefill, thousand million operations a second
    gflops: int
    #: taken by the desktop and the driver, not by pools
    foreign_bytes: int = 0


class ModelledPool(Struct, frozen=True, kw_only=True):
    """A model as one pool would run it."""

    pool_id: str
    #: the model's name, its serving group
    model: str
    weights_bytes: int
    #: KV cache of all slots, compute buffers, and what the runtime takes beside
    kv_bytes: int = 0
    overhead_bytes: int = 0
    devices: tuple[str, ...] = ()
    host: str = "local"
    slots: int = 2
    #: tokens per slot
    ctx: int = 16_384
    pinned: bool = False
    preload: bool = False
    #: "gpu" masks of several devices may be spread when no single one holds the model
    may_spread: bool = True
    keep_alive_ms: int = 0
    #: what it really takes, thousandths of what is predicted
    real_permille: int = 1000

    @property
    def need_bytes(self) -> int:
        """Predicted bytes on one device."""
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes

    def split_bytes(self, parts: int) -> int:
        """Predicted bytes on each of several devices."""
        return -(-(self.weights_bytes + self.kv_bytes) // parts) + self.overhead_bytes


class Rig(Struct, frozen=True, kw_only=True):
    """The machine and what is configured on it."""

    name: str = "rig"
    devices: tuple[ModelledDevice, ...]
    pools: tuple[ModelledPool, ...]
    #: reading weights from the disk, megabytes a second
    disk_mb_s: int = 2000
    #: of a load, whatever its size: process, allocation, first token
    load_base_ms: int = 1500
    #: memory of each GPU that is never planned with (swap.gpu_reserve_mib)
    kept_bytes: int = 512 * 2**20
    #: of an engine's end: its memory is seen free after that
    stop_ms: int = 500

    def device(self, name: str) -> ModelledDevice:
        """A device by its name."""
        return next(d for d in self.devices if d.device == name)

    def pool(self, pool_id: str) -> ModelledPool:
        """A pool by its id."""
        return next(p for p in self.pools if p.pool_id == pool_id)

    def load_ms(self, pool: ModelledPool) -> int:
        """Time to load a pool's model."""
        return self.load_base_ms + pool.weights_bytes // (self.disk_mb_s * 1000)

    def decode_mtok_s(self, pool: ModelledPool, devices: tuple[str, ...]) -> int:
        """Thousandths of a token a second that one stream alone decodes; layers run one device after another."""
        part = pool.weights_bytes // len(devices)
        us = sum(part * 100 // (self.device(d).bandwidth_gb_s * BANDWIDTH_PERCENT * 1000) for d in devices)
        return 1_000_000_000 // max(1, us)

    def prefill_mtok_s(self, pool: ModelledPool, devices: tuple[str, ...]) -> int:
        """Thousandths of a token a second that one prompt alone is read with."""
        operations = 2 * pool.weights_bytes * 100 // BYTES_PER_100_PARAMETERS // len(devices)
        us = sum(operations // (self.device(d).gflops * 1000) for d in devices)
        return 1_000_000_000 // max(1, us)


#: GPUs that data sheets describe, by memory in GB: bandwidth in GB/s, effective prefill in thousand million operations
KNOWN_GPUS: Final[dict[int, tuple[int, int]]] = {
    8: (256, 9_000),
    12: (360, 12_000),
    16: (448, 20_000),
    24: (936, 35_000),
    32: (1792, 90_000),
    48: (768, 60_000),
    80: (2039, 150_000),
}


def gpu(number: int, gigabytes: int) -> ModelledDevice:
    """A GPU of so many GB, as cards of its size are; between known sizes, as the next smaller one."""
    size = max((s for s in KNOWN_GPUS if s <= gigabytes), default=min(KNOWN_GPUS))
    bandwidth, gflops = KNOWN_GPUS[size]
    return ModelledDevice(device=f"GPU-{number}", total_bytes=gigabytes * GIB, bandwidth_gb_s=bandwidth, gflops=gflops)


def reference_rig(*, gpus: tuple[ModelledDevice, ...] = (), foreign_bytes: int = 300 * 2**20) -> Rig:
    """24 + 12 GB (or other GPUs) and eight models of 4 to 20 GB; a desktop takes a little of each GPU."""
    devices = tuple(msgspec.structs.replace(d, foreign_bytes=foreign_bytes) for d in gpus or (gpu(0, 24), gpu(1, 12)))
    sizes = {
        "gist-4g": 38,
        "embed-5g": 46,
        "chat-7g": 62,
        "tools-8g": 72,
        "code-9g": 84,
        "write-13g": 118,
        "coder-16g": 146,
        "large-20g": 182,
    }
    names = tuple(d.device for d in devices)
    pools = tuple(
        ModelledPool(
            pool_id=name.split("-")[0],
            model=name,
            weights_bytes=tenths * GIB // 10,
            kv_bytes=GIB // 2 + tenths * GIB // 200,
            overhead_bytes=400 * 2**20,
            devices=names,
        )
        for name, tenths in sizes.items()
    )
    return Rig(name="reference", devices=devices, pools=pools)
