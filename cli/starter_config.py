"""The commented configuration that `init` writes."""

from __future__ import annotations

from .detect import Machine

_HEAD = """\
# Configuration of llama-orch. Every key is optional; what stands here as a comment is the default.
# Flags win over LLORCH_* variables, those over this file. `llama-orch config check` checks it,
# `llama-orch config schema` prints every key. Relative paths are relative to this file.

# Where the server listens. Loopback only: there are no keys yet that would protect it elsewhere.
bind: 127.0.0.1:8080

# Journal, logs and engine state (default: the platform's place for a user's data).
# data_dir: ~/.local/share/llama-orch

journal:
  # "" = SQLite in the data directory; postgresql+psycopg://user@host/database for PostgreSQL. Put a
  # password into the variable LLORCH_JOURNAL__URL instead of this file.
  url: ""

# Your models. One that no pool below names gets a pool of its own, loaded when a task asks for it, on a
# GPU that it fits. A name may also stand for another: clients that ask for gpt-4o get the haiku model.
# models:
#   coder: models/coder-q4.gguf
#   writer: hf:org/writer-GGUF/writer-q4_k_m.gguf
#   gpt-4o: haiku

# One entry per engine process. The bundled model shows that everything works; replace it with yours.
pools:
  - id: haiku
    engine: llamacpp
    model: haiku
    devices: cpu
    provisioning:
      mode: package # the llama.cpp server of the xllamacpp package, started and watched by llama-orch
      threads: {threads}
"""

_CPU_EXAMPLE = """
  # A GGUF file of your own on the processors:
  # - id: my-model
  #   engine: llamacpp
  #   model: models/my-model.gguf
  #   devices: cpu
  #   ctx: 8192 # tokens per slot
  #   slots: 2  # tasks at once
  #   provisioning:
  #     threads: {threads}
"""

_GPU = """
  # GPU {index}: {name}, {memory:.0f} GiB. To keep a model on it:
  # - id: gpu{index}
  #   model: models/my-model.gguf
  #   devices: "{uuid}"
"""

_BUILD = """
  # The package's llama.cpp is a build for processors. Once: llama-orch engines install llamacpp --cuda
"""


def render(machine: Machine) -> str:
    """The file for a machine: YAML that works as it stands, with an example per GPU."""
    threads = max(1, min(2, machine.cpus))
    text = _HEAD.format(threads=threads) + _CPU_EXAMPLE.format(threads=machine.cpus)
    for gpu in machine.gpus:
        text += _GPU.format(
            name=" ".join(gpu.name.split()),
            memory=gpu.memory_gib,
            uuid=gpu.uuid,
            index=gpu.index,
        )
    if not machine.gpus:
        text += f"\n  # GPUs: {' '.join(machine.gpu_note.split())}.\n"
    return text
