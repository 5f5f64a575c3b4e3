"""Engines on this host: list what is there, install a build, look at it, remove it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..exits import CliError
from ..shell import Shell

if TYPE_CHECKING:
    from ...core.settings import ProvisioningSettings
    from ...pools.provisioning import EngineCatalog, EngineRecord, ProvisionError


@command("engines list", "list the engines that are there: packages, and what was installed", needs="config")
def list_engines(options: argparse.Namespace, shell: Shell) -> int:
    """A package comes with pip; the rest stands in the engine catalog of the data directory."""
    packages, records = _packages(), _catalog(options, shell).records()
    if shell.as_json:
        shell.json({"packages": packages, "engines": [_view(record) for record in records]})
        return exits.OK
    rows: list[tuple[object, ...]] = [
        (package["package"], package["engine"], "package", package["build"], package["version"], "")
        for package in packages
    ]
    rows += [
        (record.name, record.engine, record.mode, record.build, record.version, _day(record.installed_at_ms))
        for record in records
    ]
    shell.table(("NAME", "ENGINE", "MODE", "BUILD", "VERSION", "INSTALLED"), rows, empty="There is no engine.")
    return exits.OK


def _install_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", metavar="ENGINE", nargs="?", default="llamacpp", help="which (default: llamacpp)")
    builds = parser.add_mutually_exclusive_group()
    builds.add_argument(
        "--cuda", dest="build", action="store_const", const="cuda", help="for NVIDIA GPUs (default where there is one)"
    )
    builds.add_argument("--cpu", dest="build", action="store_const", const="cpu", help="for processors")
    parser.add_argument("--pool", metavar="POOL", default="", help="as this pool of the configuration says")
    parser.add_argument("--url", default="", help="fetch this archive or program; needs --sha256")
    parser.add_argument("--sha256", metavar="DIGEST", default="", help="its digest, 64 hex digits")
    parser.add_argument("--git", metavar="URL", default="", help="build this repository (default: upstream's)")
    parser.add_argument("--ref", default="", help="commit, tag or branch to build (default: master)")
    parser.add_argument(
        "--flag",
        metavar="-DNAME=VALUE",
        action="append",
        default=[],
        help="a definition for CMake: --flag=-DGGML_RPC=ON",
    )
    parser.add_argument("--image", default="", help="run this container image, best name@sha256:…")
    parser.add_argument("--runtime", choices=("podman", "docker"), help="what runs it (default: which is there)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--refresh", action="store_true", help="build anew if the branch or tag moved on")


@command(
    "engines install", "get the build of an engine that fits this machine", arguments=_install_arguments, needs="config"
)
def install(options: argparse.Namespace, shell: Shell) -> int:
    """Without more it takes, for NVIDIA GPUs, what a pool of the configuration names; else it builds upstream's sources
    with CUDA where git, cmake, a compiler and nvcc are here; else it pulls upstream's image where podman or docker is.
    Pools of mode `package` that are for GPUs use the result from then on. The same install twice does nothing.

    Example: llama-orch engines install llamacpp --cuda
    """
    from ...pools.provisioning import Preparing, ProvisionError
    from ...pools.provisioning.provision import install as make
    from ..detect import nvidia_device_files
    from ..engine_choice import choose
    from ..following import Terminated, terminations

    loaded = loaded_from(options, shell)
    choice = choose(options, loaded.settings.pools, shell.environ, gpu_seen=nvidia_device_files())
    if options.dry_run:
        return _tell_plan(options.engine, choice.settings, choice.steps, shell)
    for step in choice.steps:
        shell.note(f"{step[0].upper()}{step[1:]}.")
    fresh: list[EngineRecord] = []
    preparing = Preparing(
        catalog=_catalog(options, shell),
        forbid_downloads=loaded.settings.manager.forbid_downloads,
        environment={**shell.environ, **choice.environment},
        progress=_progress(shell),
        installed=fresh.append,
        refresh=options.refresh,
    )
    try:
        with terminations():
            record = make(choice.settings, options.engine, preparing)
    except ProvisionError as error:
        raise _cli_error(error) from error
    except Terminated:
        return exits.TERMINATED
    finally:
        shell.clear_status()
    _tell(record, choice.settings, shell, fresh=bool(fresh))
    return exits.OK


def _name_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as `engines list` shows it")


@command("engines show", "show an installed engine", arguments=_name_arguments, needs="config")
def show(options: argparse.Namespace, shell: Shell) -> int:
    """Version, digest, flags, where it came from, and where its files and the log of its build are."""
    catalog = _catalog(options, shell)
    record = catalog.get(options.name)
    if record is None:
        raise _unknown(options.name)
    log = catalog.log_path(record.name)
    view = _view(record) | {"log": str(log) if log.exists() else ""}
    if shell.as_json:
        shell.json(view)
        return exits.OK
    for key, value in view.items():
        shown = " ".join(value) if isinstance(value, list) else value
        if shown not in {"", None}:
            shell.line(f"{key + ':':<14}{shown}")
    return exits.OK


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="+", help="as `engines list` shows it")


@command("engines rm", "remove installed engines", arguments=_rm_arguments, needs="config")
def remove(options: argparse.Namespace, shell: Shell) -> int:
    """Engines that run go on; what they were started from is gone. A package is removed with pip, an image with podman or
    docker.
    """
    catalog = _catalog(options, shell)
    removed = [name for name in options.name if catalog.remove(name)]
    if shell.as_json:
        shell.json({"removed": removed})
    for name in removed:
        shell.note(f"Removed {name}.")
    missing = [name for name in options.name if name not in removed]
    if missing:
        raise _unknown(missing[0])
    return exits.OK


def _catalog(options: argparse.Namespace, shell: Shell) -> EngineCatalog:
    from ...pools.provisioning import EngineCatalog

    return EngineCatalog(loaded_from(options, shell).data_dir / "engine-catalog")


def _packages() -> list[dict[str, str]]:
    from ...pools.provisioning.provision import PACKAGES, package_build

    found = {engine: (package, *package_build(package)) for engine, package in PACKAGES.items()}
    return [
        {"engine": engine, "package": package, "version": version, "build": build}
        for engine, (package, version, build) in found.items()
        if version
    ]


def _progress(shell: Shell) -> Any:
    """A status line: phase, and how far it is."""

    def tell(phase: str, done: int, total: int, unit: str) -> None:
        if unit == "bytes":
            far = f"{done / 2**20:.0f}" + (f" of {total / 2**20:.0f}" if total else "")
            shell.status(f"{phase}: {far} MiB")
        else:
            shell.status(f"{phase} …")

    return tell


def _tell_plan(engine: str, settings: ProvisioningSettings, steps: tuple[str, ...], shell: Shell) -> int:
    if shell.as_json:
        import msgspec

        defaults = type(settings)()
        plain = {key: value for key, value in msgspec.to_builtins(settings).items() if value != getattr(defaults, key)}
        shell.json({"engine": engine, "would": list(steps), "provisioning": plain})
        return exits.OK
    shell.line(f"{engine}: nothing is done (--dry-run). It would:")
    for step in steps:
        shell.line(f"  {step}")
    return exits.OK


def _tell(record: EngineRecord, settings: ProvisioningSettings, shell: Shell, *, fresh: bool) -> None:
    from ..engine_choice import snippet

    if shell.as_json:
        shell.json({"installed": fresh, "engine": _view(record)})
        return
    shell.line(f"{record.name}: {record.version} ({record.build})" + ("" if fresh else ", was there already"))
    for warning in record.warnings:
        shell.note(f"Note: {warning}.")
    if record.build != "cpu":
        shell.note("Pools of mode package that are for GPUs use it from their next start on.")
    shell.note("A pool that is to run exactly this one says:")
    for line in snippet(settings, commit=record.digest.partition("git:")[2], image=record.image):
        shell.note(f"  {line}")


def _view(record: EngineRecord) -> dict[str, Any]:
    import msgspec

    view: dict[str, Any] = msgspec.to_builtins(record)
    del view["key"], view["options"]
    view["program"] = f"{record.path}/{record.program}" if record.program else ""
    return view


def _day(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000))


def _unknown(name: str) -> CliError:
    return CliError(
        f"there is no installed engine {name!r}",
        remedy="`llama-orch engines list` shows what there is.",
        code="NOT_FOUND",
    )


def _cli_error(error: ProvisionError) -> CliError:
    status = exits.USAGE if error.cause == "bad-configuration" else exits.FAILED
    return CliError(error.message, remedy=error.what_to_do, status=status, code=error.cause)
