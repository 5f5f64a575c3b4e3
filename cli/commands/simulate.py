"""Try a configuration on GPUs that one does not have: the real scheduler in simulated time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..exits import CliError, UsageError
from ..shell import Shell

if TYPE_CHECKING:
    from ...core.settings import Settings
    from ...simulator.rig import ModelledDevice, Rig
    from ...simulator.trace import TraceTask


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="CONFIG",
        nargs="?",
        help="configuration to try (default: the reference rig, 24 + 12 GB with eight models of 4 to 20 GB)",
    )
    parser.add_argument(
        "--trace",
        metavar="TRACE",
        default="agents",
        help="a file with one task a line; one of agents, poisson, bursts, abcabc; or journal: the tasks that the server's "
        "own journal recorded (default: agents)",
    )
    parser.add_argument("--gpus", metavar="GB,GB", help="memory of the GPUs (default: this machine's)")
    parser.add_argument(
        "--size",
        metavar="MODEL=GB",
        action="append",
        default=[],
        help="size of a model whose file is not here; may be repeated",
    )
    parser.add_argument(
        "--no-comparison", action="store_true", help="leave out the comparison with first come, first served"
    )


@command("simulate", "try a configuration on modelled GPUs before buying them", arguments=_arguments, needs="config")
def simulate(options: argparse.Namespace, shell: Shell) -> int:
    """Runs queue, placement and swaps as `serve` would, on modelled GPUs and engines, through a trace of tasks; two
    hours take seconds. Beside it the same with models loaded first come, first served. Nothing is loaded and nothing
    is written. The same arguments give the same result, to the byte.
    """
    from ...core.scheduling.swaps import plan_swaps
    from ...simulator.baseline import first_come_first_served
    from ...simulator.report import reports_as_data, table
    from ...simulator.world import World

    rig, settings, trace, remarks = _subject(options, shell)
    if not shell.quiet and not shell.as_json:
        for remark in remarks:
            shell.note(remark)
    planners = [("llama-orch", plan_swaps), ("first come", first_come_first_served)]
    reports = [
        World(rig, trace, settings=settings, planner=planner, name=name).run()
        for name, planner in planners[: 1 if options.no_comparison else 2]
    ]
    if shell.as_json:
        shell.json({"remarks": remarks, "simulations": reports_as_data(reports)})
    else:
        for line in table(reports).splitlines():
            shell.line(line)
    return exits.OK


def _subject(options: argparse.Namespace, shell: Shell) -> tuple[Rig, Settings | None, list[TraceTask], list[str]]:
    """What is simulated: rig, configuration (``None``: the rig's own), trace, and remarks."""
    from ...simulator.configured import RigError, fitted, rig_of, runnable
    from ...simulator.rig import reference_rig
    from ...simulator.trace import TraceError, built_in, read_trace

    known = built_in()
    try:
        if options.trace == "journal":
            trace = _recorded(options, shell)
        else:
            trace = read_trace(known.get(options.trace) or Path(options.trace))
    except OSError as error:
        raise CliError(
            f"the trace {options.trace!r} cannot be read: {error.strerror}",
            remedy=f"Name a file, or one of: {', '.join(known)}, journal.",
            status=exits.USAGE,
        ) from None
    except TraceError as error:
        raise CliError(str(error), remedy="docs/how-to/simulate.md shows a line.", status=exits.USAGE) from None
    options.config = options.file or options.config
    if options.config is None and not options.assignments:
        if options.size:
            raise UsageError("--size is for the models of a configuration", remedy="Name one, or leave it out.")
        rig = reference_rig() if not options.gpus else reference_rig(gpus=_gpus(options.gpus))
        return rig, None, trace, []
    loaded = loaded_from(options, shell)
    try:
        rig, remarks = rig_of(
            loaded.settings,
            _gpus(options.gpus) if options.gpus else _own_gpus(),
            {"haiku": _bundled_bytes()} | dict(_size(text) for text in options.size),
            host_memory_bytes=_own_memory(),
        )
        settings = runnable(loaded.settings, rig)
        trace, more = fitted(trace, settings, by_size=rig if options.trace in known else None)
    except RigError as error:
        raise CliError(str(error), remedy=error.remedy, status=exits.USAGE) from None
    except TraceError as error:
        remedy = "Change the trace's `model`, or the configuration's `models` (other names for them)."
        raise CliError(str(error), remedy=remedy, status=exits.USAGE) from None
    return rig, settings, trace, [*remarks, *more]


def _recorded(options: argparse.Namespace, shell: Shell) -> list[TraceTask]:
    from ...simulator.recorded import trace_of
    from ..journal_access import open_for_reading

    store = open_for_reading(loaded_from(options, shell))
    try:
        return trace_of(store)
    finally:
        store.close()


def _gpus(text: str) -> tuple[ModelledDevice, ...]:
    from ...simulator.rig import gpu

    sizes = text.split(",")
    if not all(size.strip().isdigit() and 0 < int(size) <= 1024 for size in sizes):
        raise UsageError(f"--gpus {text!r} is no list of sizes", remedy="Whole GB between 1 and 1024: --gpus 24,12")
    return tuple(gpu(number, int(size)) for number, size in enumerate(sizes))


def _own_gpus() -> tuple[ModelledDevice, ...]:
    from ...simulator.rig import gpu
    from ..detect import detect

    return tuple(gpu(n, max(1, round(found.memory_gib))) for n, found in enumerate(detect().gpus))


def _own_memory() -> int:
    from ...pools.telemetry.memory import read_memory

    memory = read_memory()
    return memory.total_bytes if memory is not None else 2**34


def _bundled_bytes() -> int:
    from ...haiku import model_path

    try:
        return model_path().stat().st_size
    except FileNotFoundError:
        return 0  # then its size has to be said, as any other's


def _size(text: str) -> tuple[str, int]:
    from ...simulator.configured import size_bytes

    name, _, size = text.rpartition("=")
    try:
        return name or text, size_bytes(size)
    except ValueError:
        raise UsageError(f"--size {text!r} is not understood", remedy="For example: --size coder=16.2") from None
