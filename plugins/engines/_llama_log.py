"""What llama.cpp's server says when it fails, and what that means."""

from __future__ import annotations

from typing import Final

#: cause -> what to do
ADVICE: Final[dict[str, str]] = {
    "missing-package": "Install the engine's package: pip install 'llama-orch[llamacpp]'.",
    "missing-library": "A library of the engine is missing; the line names it. Install it, or install the engine again.",
    "port-taken": "Another process listens on that port: stop it, or set provisioning.port to 0 for any free one.",
    "driver-gone": "The GPU's driver does not answer: check `nvidia-smi`; load the driver or restart the machine.",
    "driver-reset": "The GPU was reset or lost; the engine is started again. If it comes back: `dmesg | grep Xid`, power, heat.",
    "no-kernel": "This build has no code for this GPU: `llama-orch engines install llamacpp --cuda` builds it for yours.",
    "vram-oom": "Model and context do not fit the GPU: lower ctx or slots, use a smaller quantization, or name more GPUs.",
    "host-oom": "Model and context do not fit the machine's memory: lower ctx or slots, or use a smaller quantization.",
    "unknown-model": "This engine does not know the model's architecture: use a newer engine, or another model.",
    "missing-image": "The image is not on this host: `llama-orch engines install llamacpp --image IMAGE` pulls it.",
    "no-such-cache": "This model does not take that kv_type_k, kv_type_v or flash_attention: leave it out.",
    "bad-model": "The model's file is damaged or of a kind that this build does not know; fetch it again.",
}

#: a log's line -> cause; the first match wins, so the more particular stands before the more general
_LINES: Final[tuple[tuple[str, str, str], ...]] = (
    (r"No module named '?xllamacpp|cannot import name .* from 'xllamacpp'", "missing-package", "missing-package"),
    (r"error while loading shared libraries|cannot open shared object file", "missing-library", "missing-library"),
    (r"port-taken|[Aa]ddress already in use|couldn't bind|port is already allocated", "port-taken", "port-taken"),
    # A GPU that is full says so in the line of the failing call; what follows in the log is only its consequence.
    (
        (
            r"cudaMalloc failed: out of memory|CUDA error: out of memory|hipMalloc failed: out of memory"
            r"|ROCm error: out of memory|ErrorOutOfDeviceMemory|cuMemCreate.*out of memory"
            r"|(?:unable|failed) to allocate (?:CUDA|ROCm|Vulkan|SYCL)\d* buffer"
        ),
        "vram-oom",
        "vram-oom",
    ),
    (
        (
            r"no kernel image is available for execution|device kernel image is invalid"
            r"|provided PTX was compiled with an unsupported toolchain"
        ),
        "wrong-architecture",
        "no-kernel",
    ),
    (
        (
            r"no CUDA-capable device is detected|CUDA driver version is insufficient|forward compatibility was attempted"
            r"|system not yet initialized|failed to initialize (?:CUDA|NVML)|[Dd]river/library version mismatch"
            r"|unresolvable CDI devices?|could not select device driver|nvidia-container-cli"
        ),
        "driver-gone",
        "driver-gone",
    ),
    (
        (
            r"CUDA error: (?:unspecified launch failure|an illegal memory access|the launch timed out|unknown error"
            r"|uncorrectable ECC|misaligned address|device-side assert)|CUDA error: .*[Dd]evice.*lost|(?:ErrorDeviceLost|DEVICE_LOST)"
            r"|GPU is lost|fallen off the bus|\bXid\b"
        ),
        "driver-reset",
        "driver-reset",
    ),
    # A GPU that is not there would be passed over in silence; it is named so that it is not.
    (r"invalid device: CUDA", "driver-gone", "driver-gone"),
    (r"cache type \S+ with block size|[Vv] cache quantization requires", "bad-configuration", "no-such-cache"),
    (r"unknown model architecture|unknown pre-tokenizer type", "wrong-architecture", "unknown-model"),
    (
        (
            r"std::bad_alloc|Cannot allocate memory|failed to allocate(?!.*pinned memory)|unable to allocate|out of memory"
            r"|not enough memory|mmap failed"
        ),
        "host-oom",
        "host-oom",
    ),
    (
        r"no such image|[Ii]mage not known|[Nn]o such image|unable to find image|image .* does not exist",
        "missing-image",
        "missing-image",
    ),
    (
        (
            r"bad-model|invalid magic|data is not within the file bounds|failed to load model|error loading model"
            r"|unable to load model|failed to read|corrupted or incomplete"
        ),
        "bad-model",
        "bad-model",
    ),
)

#: first match wins: ``(pattern, cause, advice)``
LOG_CAUSES: Final[tuple[tuple[str, str, str], ...]] = tuple(
    (pattern, cause, ADVICE[advice]) for pattern, cause, advice in _LINES
)
