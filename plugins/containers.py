"""The argument vector that runs an engine in a container: confined, on loopback, with the GPUs that are meant.

For launchers: what :class:`~llama_orch.plugins.ProvisionedEngine` says of an image, and what the engine is told, become
what podman or docker is told. Nothing is run here.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ..core.engine_ports import ContainerSpec

OWNER_LABEL: Final = "llama-orch.owner"
POOL_LABEL: Final = "llama-orch.pool"
GENERATION_LABEL: Final = "llama-orch.generation"
#: where models are seen inside
MODELS: Final = "/models"
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """How a container is run and ended, and where it sees the model."""

    argv: tuple[str, ...]
    stop_argv: tuple[str, ...]


def inside(model: Path) -> str:
    """Where a container sees a model's file."""
    return f"{MODELS}/{model.name}"


def run(
    spec: ContainerSpec,
    arguments: Sequence[str],
    *,
    marker: str,
    model: Path,
    port: int,
    gpus: Sequence[str] = (),
    variables: Sequence[str] = (),
    memory_mib: int = 0,
    user: tuple[int, int] | None = None,
    shared_mib: int = 0,
) -> Run:
    """Run an image in the foreground, as a child that lives as long as the container does.

    Args:
        spec: the image, and what runs it.
        arguments: for the image's own program.
        marker: ``<owner>/<pool>/<generation>``: names and labels the container, so that it is found again.
        model: file, seen read-only at :func:`inside`; the parts beside it too where it has several.
        port: inside and, on loopback alone, outside.
        gpus: UUIDs; no other GPU is seen inside.
        variables: names of environment variables that are passed on; their values stay out of the arguments.
        memory_mib: limit of the container's memory; 0 = none.
        user: ids of user and group inside; ``None`` = those of this process.
        shared_mib: size of ``/dev/shm``; 0 = the runtime's.
    """
    owner, pool, generation = marker.split("/", 2)
    name = f"llama-orch-{owner[:16]}-{pool}-{generation}"
    uid, gid = user or (os.getuid(), os.getgid())
    source = model.parent if _SHARD.search(model.name) else model
    target = MODELS if source != model else inside(model)
    argv = [
        *(spec.runtime, "run", "--rm", "--pull", "never", "--name", name),
        *("--label", f"{OWNER_LABEL}={owner}", "--label", f"{POOL_LABEL}={pool}"),
        *("--label", f"{GENERATION_LABEL}={generation}"),
        *("--publish", f"127.0.0.1:{port}:{port}/tcp"),
        *("--mount", _fields("type=bind", f"source={source}", f"target={target}", "readonly")),
        *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),  # noqa: S108 - inside the container
        *("--security-opt", "no-new-privileges", "--user", f"{uid}:{gid}", "--stop-timeout", "5"),
    ]
    if spec.kind == "podman":
        # The model's file belongs to who runs this; relabelling it is not ours to do.
        argv += ["--security-opt", "label=disable"]
        argv += ["--userns", "keep-id"] if uid else []
        argv += [word for gpu in gpus for word in ("--device", f"nvidia.com/gpu={gpu}")]
    elif gpus:
        argv += ["--gpus", _fields(f"device={','.join(gpus)}")]
    if memory_mib:
        argv += ["--memory", f"{memory_mib}m"]
    if shared_mib:
        argv += ["--shm-size", f"{shared_mib}m"]
    for variable in variables:
        argv += ["--env", variable]
    return Run(
        argv=(*argv, spec.image, *arguments),
        stop_argv=(spec.runtime, "rm", "--force", name),
    )


def gpu_variables(devices: Sequence[str]) -> Mapping[str, str]:
    """What pins a CUDA program to these GPUs, in this order; to none for ``["cpu"]``."""
    gpus = [device for device in devices if device != "cpu"]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def _fields(*fields: str) -> str:
    """Comma-separated fields as podman and docker read them: one that holds a comma is quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()
