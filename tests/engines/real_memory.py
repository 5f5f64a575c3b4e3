"""What a real llama.cpp server takes of the host's memory under load, beside what is predicted of it.

``TUNED`` are the cases that the constants of the memory model were found with, ``HELD_OUT`` those that it never saw.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llama_orch.core.gguf import read_model
from llama_orch.plugins.memory.need import MemoryNeed, need, shape_of_gguf
from llama_orch.pools.hosts import free_port

from .shaped_gguf import FIRST_WORD, ModelPlan, write_shaped

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and how it is run."""

    name: str
    plan: ModelPlan
    ctx: int
    slots: int = 1
    ubatch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash: bool = True


@dataclass(frozen=True)
class Measured:
    """Bytes, as predicted and as the process's peak."""

    case: Case
    file_bytes: int
    predicted: MemoryNeed
    observed_bytes: int

    @property
    def error_permille(self) -> int:
        """Of what was observed; positive = more was predicted."""
        return (self.predicted.host_bytes - self.observed_bytes) * 1000 // self.observed_bytes


_BASE = ModelPlan(embedding=512, layers=8, heads=8, kv_heads=4, feed_forward=1_408, vocab=4_000)

TUNED = (
    Case(name="f16", plan=_BASE, ctx=2_048),
    Case(name="f16, 4 slots", plan=_BASE, ctx=1_024, slots=4),
    Case(name="f16, long context", plan=replace(_BASE, layers=4), ctx=4_096),
    Case(name="q8_0", plan=replace(_BASE, quantization="Q8_0", embedding=768, heads=12, feed_forward=2_048), ctx=2_048),
    Case(
        name="q4_0, copied by the CPU", plan=replace(_BASE, quantization="Q4_0", embedding=1_024, heads=16), ctx=1_024
    ),
    Case(
        name="f32, wide feed-forward", plan=replace(_BASE, quantization="F32", layers=4, feed_forward=4_096), ctx=1_024
    ),
    Case(name="vocabulary of 64,000", plan=replace(_BASE, vocab=64_000, layers=4), ctx=1_024, slots=2),
    Case(name="byte-pair tokenizer", plan=replace(_BASE, vocab=60_000, merges=60_000, layers=4, tied=True), ctx=1_024),
    Case(name="no flash attention", plan=replace(_BASE, layers=4), ctx=2_048, flash=False),
    Case(name="q8_0 cache", plan=replace(_BASE, layers=16), ctx=768, slots=2, kv_type_k="q8_0", kv_type_v="q8_0"),
    Case(name="ubatch 128", plan=_BASE, ctx=1_024, ubatch=128),
    Case(
        name="windowed layers",
        plan=replace(_BASE, architecture="gemma3", layers=12, feed_forward=2_048, vocab=24_000, window=512, tied=True),
        ctx=1_536,
        slots=2,
    ),
    Case(
        name="recurrent layers",
        plan=ModelPlan(architecture="mamba", embedding=768, layers=8, heads=0, kv_heads=0, feed_forward=0, vocab=8_000),
        ctx=1_024,
        slots=2,
    ),
    Case(
        name="experts, 4 of 16",
        plan=replace(
            _BASE, architecture="qwen3moe", layers=4, feed_forward=384, experts=16, experts_used=4, quantization="Q8_0"
        ),
        ctx=1_024,
    ),
)

HELD_OUT = (
    Case(
        name="f16, deep and narrow",
        plan=ModelPlan(embedding=256, layers=24, heads=8, kv_heads=8, feed_forward=704, vocab=8_000),
        ctx=1_024,
        slots=3,
    ),
    Case(
        name="f16, few key heads",
        plan=ModelPlan(embedding=768, layers=6, heads=12, kv_heads=2, feed_forward=2_048, vocab=12_000),
        ctx=1_536,
    ),
    Case(
        name="f16, 8 slots",
        plan=ModelPlan(embedding=384, layers=6, heads=6, kv_heads=6, feed_forward=1_024, vocab=16_000),
        ctx=512,
        slots=8,
    ),
    Case(
        name="q8_0, wide",
        plan=ModelPlan(
            embedding=1_536, layers=4, heads=12, kv_heads=4, feed_forward=4_096, vocab=20_000, quantization="Q8_0"
        ),
        ctx=1_024,
    ),
    Case(
        name="q8_0, tied, long heads",
        plan=ModelPlan(
            embedding=640, layers=10, heads=4, kv_heads=1, feed_forward=2_048, vocab=48_000, quantization="Q8_0",
            head_length=256, tied=True,
        ),
        ctx=1_280,
    ),
    Case(
        name="q4_0",
        plan=ModelPlan(
            embedding=1_024, layers=8, heads=16, kv_heads=8, feed_forward=2_816, vocab=32_000, quantization="Q4_0"
        ),
        ctx=1_024,
    ),
    Case(
        name="q4_0, q4_0 cache, 3 slots",
        plan=ModelPlan(
            embedding=768, layers=12, heads=12, kv_heads=12, feed_forward=2_048, vocab=10_000, quantization="Q4_0"
        ),
        ctx=512,
        slots=3,
        kv_type_k="q4_0",
        kv_type_v="q4_0",
    ),
    Case(
        name="q4_K, byte-pair tokenizer",
        plan=ModelPlan(
            embedding=1_024, layers=6, heads=8, kv_heads=2, feed_forward=3_072, vocab=40_000, merges=40_000,
            quantization="Q4_K",
        ),
        ctx=1_024,
    ),
    Case(
        name="f32, no flash attention",
        plan=ModelPlan(embedding=448, layers=6, heads=7, kv_heads=7, feed_forward=1_200, vocab=3_000, quantization="F32"),
        ctx=1_536,
        flash=False,
    ),
    Case(
        name="windowed layers, wide window",
        plan=ModelPlan(
            architecture="gemma3", embedding=384, layers=8, heads=6, kv_heads=6, feed_forward=1_536, vocab=32_000,
            window=768, quantization="Q8_0",
        ),
        ctx=2_048,
        ubatch=256,
        slots=2,
    ),
    Case(
        name="experts, 2 of 8",
        plan=ModelPlan(
            embedding=512, layers=4, heads=8, kv_heads=2, feed_forward=1_024, vocab=8_000, quantization="Q4_0",
            experts=8, experts_used=2,
        ),
        ctx=2_048,
        ubatch=256,
    ),
)  # fmt: skip


def predict(case: Case, model: Path) -> MemoryNeed:
    """What the memory model says, from the file's head alone."""
    return need(
        shape_of_gguf(read_model(model)),
        ctx=case.ctx,
        slots=case.slots,
        ubatch=case.ubatch,
        kv_type_k=case.kv_type_k,
        kv_type_v=case.kv_type_v,
        flash_attention=case.flash,
    )


def measure(case: Case, folder: Path) -> Measured:
    """Write the model, run it, fill every slot's context, and look at the process's peak."""
    model = write_shaped(folder / "model.gguf", case.plan)
    predicted = predict(case, model)
    with _server(case, model) as (url, pid):
        rng = random.Random(7)
        _complete(url, [rng.choices(range(FIRST_WORD, 1_000), k=case.ctx - 8) for _ in range(case.slots)])
        observed = peak_bytes(pid)
    file_bytes = model.stat().st_size
    model.unlink()
    return Measured(case, file_bytes, predicted, observed)


def measure_all(cases: Sequence[Case]) -> Iterator[Measured]:
    """One after the other, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            yield measure(case, Path(folder))


def peak_bytes(pid: int) -> int:
    """The most that a process has had resident: its own memory and the pages of files that it maps."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    msg = f"process {pid} has ended"
    raise ProcessLookupError(msg)


@contextmanager
def _server(case: Case, model: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llama_orch.pools.llamacpp_server", "--model", str(model), "--port", str(port)),
            *("--parallel", str(case.slots), "--ctx-size", str(case.ctx * case.slots), "--threads", "1"),
            *("--ubatch-size", str(case.ubatch), "--flash-attn", "auto" if case.flash else "off", "--cache-ram", "0"),
            *("--cache-type-k", case.kv_type_k, "--cache-type-v", case.kv_type_v, "--n-gpu-layers", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        # The line comes once the model is loaded; the end of the output, when it could not be.
        said = process.stdout.readline()
        if "listening" not in said:
            msg = f"{case.name}: the server ended with status {process.wait()}"
            raise RuntimeError(msg)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.communicate()


def _complete(url: str, prompts: Sequence[Sequence[int]]) -> None:
    """Let every slot complete its prompt, all at the same time."""
    failures: list[Exception] = []

    def complete(slot: int, prompt: Sequence[int]) -> None:
        body = json.dumps({"prompt": list(prompt), "n_predict": 4, "id_slot": slot, "cache_prompt": True}).encode()
        request = urllib.request.Request(f"{url}/completion", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=900) as answer:
                told = json.load(answer)
            assert told["tokens_evaluated"] == len(prompt), told
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=complete, args=(slot, prompt)) for slot, prompt in enumerate(prompts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
