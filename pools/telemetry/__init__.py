"""What a host's devices are doing: GPUs through NVML on a thread of its own, and memory."""
