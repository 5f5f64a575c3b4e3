"""`models fit`: on which GPU a model fits, at what context."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import exits
from ..command import command
from ..exits import CliError
from ..model_lookup import ModelPlace, place_of
from ..model_views import bytes_of, size
from ..shell import Shell

if TYPE_CHECKING:
    from ...plugins.memory.need import ModelShape
    from ...pools.models.fitting import Device, Fit


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a name, a reference, or a path; of one that is not here the head is read"
    )
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="tasks at once (default: 1)")
    parser.add_argument(
        "--ctx", type=int, default=0, metavar="N", help="the context that is wanted (default: as large as fits)"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="SIZE",
        help="instead of this machine's devices, a GPU with so much memory, e.g. 24GiB; again for each",
    )


@command("models fit", "say on which GPU a model fits, at what context", arguments=_arguments, needs="config")
def fit(options: argparse.Namespace, shell: Shell) -> int:
    """The memory model's answer for each device, with what is free now and with nothing else loaded: weights, KV cache for
    context × slots, working memory. Exit status 1 when it fits nowhere, even with nothing else loaded.

    Example: llama-orch models fit hf:org/repo:Q4_K_M --gpu 24GiB --gpu 12GiB --slots 4
    """
    from ...pools.models.fitting import fits

    if options.slots < 1 or options.ctx < 0:
        raise CliError("--slots begins at 1, --ctx at 0", status=exits.USAGE, code="USAGE")
    place = place_of(options, shell)
    shape, hf = _shape(place, options.model, shell)
    devices = _devices(options.gpu, place.loaded.settings.swap.gpu_reserve_mib * 2**20)
    found = fits(shape, devices, slots=options.slots, ctx=options.ctx, hf=hf)
    best = _best(found)
    if shell.as_json:
        shell.json(_body(options, shape, found, best))
    else:
        _print(options, shape, found, best, shell)
    return exits.OK if any(one.ctx_empty for one in found) else exits.FAILED


def _shape(place: ModelPlace, text: str, shell: Shell) -> tuple[ModelShape, bool]:
    """The model's shape, and whether it is for vLLM. Of one that is not here the head is fetched."""
    from ...pools.models.errors import BrokenOffError, StagingError
    from ...pools.models.fitting import remote_shape, shape_of
    from ...pools.models.references import is_remote, parse
    from ...pools.models.sources import source_of

    record = place.find(text)
    if record is not None and place.cache.path_of(record).exists():
        return shape_of(place.cache.path_of(record), hf=record.metadata.format == "hf"), record.metadata.format == "hf"
    source = place.source(text)
    if not is_remote(source):
        path = Path(parse(source).path)
        if not path.exists():
            raise CliError(
                f"there is no model {text!r}: no file {path}",
                remedy="`llama-orch models list` shows what is here, `llama-orch models pull` fetches.",
                code="MODEL_NOT_FOUND",
            )
        return shape_of(path, hf=path.is_dir()), path.is_dir()
    if place.loaded.settings.manager.forbid_downloads:
        raise StagingError("offline", f"{source} is not here, and nothing may be fetched")
    remote = source_of(parse(source), shell.environ)
    try:
        return remote_shape(remote, remote.listing().files)
    except BrokenOffError as error:
        raise StagingError(error.cause, str(error)) from error


def _devices(gpus: list[str], reserve_bytes: int) -> list[Device]:
    from ...pools.models.fitting import Device

    if gpus:
        sizes = [bytes_of(text, "--gpu") for text in gpus]
        return [
            Device(
                id=f"gpu{number}",
                name=f"GPU with {size(one)}",
                total_bytes=max(0, one - reserve_bytes),
                free_bytes=max(0, one - reserve_bytes),
            )
            for number, one in enumerate(sizes)
        ]
    from ...pools.telemetry.sampler import look_once

    sample = look_once()
    found = [
        Device(
            id=gpu.uuid,
            name=gpu.name,
            total_bytes=max(0, gpu.total_bytes - (gpu.reserved_bytes or 0) - reserve_bytes),
            free_bytes=max(0, gpu.free_bytes - reserve_bytes),
        )
        for gpu in sample.gpus
        if gpu.total_bytes is not None and gpu.free_bytes is not None
    ]
    if sample.memory is not None:
        memory = sample.memory
        found.append(Device(id="cpu", name="memory", total_bytes=memory.total_bytes, free_bytes=memory.available_bytes))
    if not found:
        raise CliError(
            "neither GPUs nor memory of this machine are known", remedy="Say what there is: --gpu 24GiB --gpu 12GiB"
        )
    return found


def _best(found: list[Fit]) -> Fit | None:
    """Where it should go: one card before several, GPUs before the processors, then the most context now, the least room."""
    usable = [one for one in found if one.ctx]
    return min(
        usable, key=lambda one: (one.devices == ["cpu"], len(one.devices), -one.ctx, one.total_bytes), default=None
    )


def _body(options: argparse.Namespace, shape: ModelShape, found: list[Fit], best: Fit | None) -> dict[str, Any]:
    import msgspec

    return {
        "model": options.model,
        "slots": options.slots,
        "ctx_max": shape.ctx_train,
        "weights_bytes": shape.weights_bytes,
        "fits": [msgspec.to_builtins(one) for one in found],
        "best": best.devices if best else None,
    }


def _print(options: argparse.Namespace, shape: ModelShape, found: list[Fit], best: Fit | None, shell: Shell) -> None:
    rows = [
        (
            one.name,
            ", ".join(one.devices),
            size(one.free_bytes),
            one.ctx or "does not fit",
            one.ctx_empty or "does not fit",
            size(one.need.weights_bytes),
            size(one.need.kv_bytes),
            size(max(one.need.compute_bytes, 0) + one.need.overhead_bytes),
        )
        for one in found
    ]
    shell.table(("DEVICE", "ID", "FREE", "CONTEXT NOW", "CONTEXT EMPTY", "WEIGHTS", "KV CACHE", "WORKING"), rows)
    trained = f", trained for {shape.ctx_train}" if shape.ctx_train else ""
    if best is not None:
        shell.note(f"Best: {best.name}, {best.ctx} tokens for each of {options.slots} slots{trained}.")
    elif any(one.ctx_empty for one in found):
        shell.note("It fits when something else is unloaded first; the server does that by itself.")
    else:
        shell.note("It fits nowhere: take a smaller quantization, fewer slots, or less context (--ctx).")
