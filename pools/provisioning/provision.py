"""From a pool's settings to an engine that can be started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from ...core.engine_ports import ContainerSpec, ProvisionedEngine
from ...core.settings import ProvisioningSettings
from . import archive, container, download, inspection, source
from .catalog import EngineCatalog, EngineRecord, key_of, name_of
from .problems import Progress, ProvisionError, Stop, disk_problem, never, silent

#: engines that a Python package brings
PACKAGES: Final[dict[str, str]] = {"llamacpp": "xllamacpp"}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Preparing(msgspec.Struct, frozen=True, kw_only=True):
    """What preparing an engine needs to know of its surroundings."""

    catalog: EngineCatalog
    #: nothing is fetched, pulled or built; what is needed has to be there
    forbid_downloads: bool = False
    environment: Mapping[str, str] = os.environ
    progress: Progress = silent
    stop: Stop = never
    #: hears of what was not there before
    installed: Callable[[EngineRecord], None] = lambda _record: None
    #: Unix time, milliseconds
    now_ms: Callable[[], int] = _now_ms
    #: look again what a branch or tag names, and make what was installed anew if that is another commit
    refresh: bool = False


def provision(
    settings: ProvisioningSettings,
    engine: str,
    *,
    catalog: EngineCatalog,
    devices: Sequence[str] = ("cpu",),
    forbid_downloads: bool = False,
    progress: Progress = silent,
    stop: Stop = never,
    installed: Callable[[EngineRecord], None] = lambda _record: None,
    environment: Mapping[str, str] | None = None,
) -> ProvisionedEngine:
    """The engine of a pool, prepared if it is not yet. Blocks, for minutes when it is built: call it in a thread.

    Args:
        settings: of the pool.
        engine: name of the engine's plugin.
        catalog: where installs are.
        devices: GPUs by UUID, or "cpu".
        forbid_downloads: what is not there is refused.
        progress: hears of phases and bytes.
        stop: asked now and then; true = give up.
        installed: hears of what was not there before.
        environment: of this program; ``None`` = the process's.

    Raises:
        ProvisionError: it cannot be had, with a stable cause; ``cpu-build`` when GPUs are meant and it could not use any.
    """
    preparing = Preparing(
        catalog=catalog,
        forbid_downloads=forbid_downloads,
        progress=progress,
        stop=stop,
        installed=installed,
        environment=os.environ if environment is None else environment,
    )
    gpus = [device for device in devices if device != "cpu"]
    match settings.mode:
        case "external":
            return ProvisionedEngine(mode="external")
        case "package":
            return _package(engine, preparing, gpus)
        case _:
            made = install(settings, engine, preparing)
    if gpus and made.build == "cpu":
        raise _cpu_build(f"{made.name} ({made.version or made.mode})", engine, gpus)
    return provisioned(made, preparing.environment)


def install(settings: ProvisioningSettings, engine: str, preparing: Preparing) -> EngineRecord:
    """Prepare an engine of mode ``binary``, ``source`` or ``container``, unless that was done.

    Raises:
        ProvisionError: it cannot be prepared; the catalog is as it was.
    """
    try:
        match settings.mode:
            case "binary":
                return _binary(settings, engine, preparing)
            case "source":
                return _source(settings, engine, preparing)
            case "container":
                return _container(settings, engine, preparing)
    except OSError as error:
        raise disk_problem(error) from error
    raise ProvisionError("bad-configuration", f"an engine of mode {settings.mode!r} is not installed from here")


def provisioned(record: EngineRecord, environment: Mapping[str, str]) -> ProvisionedEngine:
    """What can be started of an install. :param environment: with the PATH to look for a container's runtime on."""
    program = Path(record.path) / record.program
    spec = None
    if record.mode == "container":
        _, runtime = container.runtime_of(record.runtime, environment)
        spec = ContainerSpec(
            kind="podman" if record.runtime == "podman" else "docker", runtime=runtime, image=record.image
        )
    return ProvisionedEngine(
        mode=record.mode,
        name=record.name,
        version=record.version,
        digest=record.digest,
        flags=record.flags,
        build=record.build,
        argv=(str(program),) if record.program else (),
        library_path=str(program.parent) if record.program else "",
        options=record.options,
        container=spec,
        warnings=record.warnings,
    )


def package_build(package: str) -> tuple[str, str]:
    """Version of an installed package, and for which devices it was built; ``("", "")`` when it is not installed."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return "", ""
    files = [Path(str(found.locate_file(file))) for file in found.files or () if ".so" in file.name]
    return found.version, inspection.build_of(files)


# --- the modes --------------------------------------------------------------------------------------------------------


def _package(engine: str, preparing: Preparing, gpus: Sequence[str]) -> ProvisionedEngine:
    """The package's engine; for GPUs, and where there is no package, what ``engines install`` prepared."""
    package = PACKAGES.get(engine)
    if package is None:
        return ProvisionedEngine(mode="package")
    version, build = package_build(package)
    if version and not (gpus and build == "cpu"):
        return ProvisionedEngine(mode="package", version=f"{package} {version}", build=build)
    installs = preparing.catalog.records()
    ready = [record for record in installs if record.engine == engine and not (gpus and record.build == "cpu")]
    if ready:
        return provisioned(ready[-1], preparing.environment)
    if not version:
        raise ProvisionError("missing-package", f"the package {package} is not installed")
    raise _cpu_build(f"{package} {version}", engine, gpus)


def _cpu_build(what: str, engine: str, gpus: Sequence[str]) -> ProvisionError:
    return ProvisionError(
        "cpu-build",
        f"{what} is a build for processors, and the pool is for {', '.join(gpus)}",
        f"Get the build for the GPU: llama-orch engines install {engine} --cuda",
    )


def _binary(settings: ProvisioningSettings, engine: str, preparing: Preparing) -> EngineRecord:
    program = inspection.program_of(engine)
    if not settings.url:
        raise ProvisionError("bad-configuration", "provisioning.url is empty; mode binary takes the archive's address")
    if not settings.sha256:
        raise ProvisionError(
            "bad-configuration",
            "provisioning.sha256 is empty; mode binary runs nothing whose digest nobody wrote down",
            "Put the digest that the publisher names, 64 hex digits, into provisioning.sha256.",
        )
    sha256 = settings.sha256.lower()
    key = key_of(engine, "binary", [sha256])
    name = name_of(engine, "binary", key)
    catalog = preparing.catalog
    if (done := _done(catalog, name, key)) is not None:
        return done
    if preparing.forbid_downloads and not download.is_local(settings.url):
        raise _forbidden(f"{download.without_credentials(settings.url)} is not here")
    with catalog.working(name) as place:
        if (done := _done(catalog, name, key)) is not None:
            return done  # another process was quicker
        part = catalog.part(sha256)
        download.fetch(settings.url, part, sha256=sha256, progress=preparing.progress, stop=preparing.stop)
        preparing.progress("unpack", 0, 0, "")
        tree = place / "tree"
        tree.mkdir(mode=0o700)
        archive.unpack(part, tree, program, stop=preparing.stop)
        part.unlink()
        found = inspection.find_program(tree, program)
        return _add(
            preparing,
            EngineRecord(
                name=name,
                engine=engine,
                mode="binary",
                key=key,
                digest=f"sha256:{sha256}",
                source=download.without_credentials(settings.url),
            ),
            tree,
            found,
        )


def _source(settings: ProvisioningSettings, engine: str, preparing: Preparing) -> EngineRecord:
    program = inspection.program_of(engine)
    sources = source.checked(settings.git, settings.ref, settings.cmake_flags)
    key = key_of(engine, "source", [sources.git, sources.ref, *sources.flags])
    name = name_of(engine, "source", key)
    catalog = preparing.catalog
    done = _done(catalog, name, key)
    if done is not None and not preparing.refresh:
        return done
    shown = download.without_credentials(sources.git)
    if preparing.forbid_downloads:
        raise _forbidden(f"{shown} at {sources.ref} is not built here")
    with catalog.working(name) as place:
        done = _done(catalog, name, key)
        if done is not None and not preparing.refresh:
            return done
        log = place / "build.log"
        build = source.SourceBuild(
            sources,
            place,
            log,
            environment=preparing.environment,
            marker=catalog.marker(name),
            progress=preparing.progress,
            stop=preparing.stop,
        )
        try:
            commit = build.commit()
            if done is not None and done.digest == f"git:{commit}":
                return done
            tree = build.build(commit, program)
        except ProvisionError as error:
            if error.cause != "build-failed":
                raise
            raise ProvisionError(error.cause, error.message, f"The whole log is {catalog.log_path(name)}.") from error
        finally:
            if log.exists():
                log.replace(catalog.log_path(name))
        return _add(
            preparing,
            EngineRecord(
                name=name,
                engine=engine,
                mode="source",
                key=key,
                digest=f"git:{commit}",
                flags=sources.flags,
                source=f"{shown} {sources.ref}",
            ),
            tree,
            tree / program,
        )


def _container(settings: ProvisioningSettings, engine: str, preparing: Preparing) -> EngineRecord:
    key = key_of(engine, "container", [settings.image, settings.runtime])
    name = name_of(engine, "container", key)
    catalog = preparing.catalog
    with catalog.working(name) as place:
        image = container.prepare(
            settings.image,
            settings.runtime,
            place=place,
            log=catalog.log_path(name),
            marker=catalog.marker(name),
            environment=preparing.environment,
            forbid_downloads=preparing.forbid_downloads,
            progress=preparing.progress,
            stop=preparing.stop,
        )
        record = EngineRecord(
            name=name,
            engine=engine,
            mode="container",
            key=key,
            version=settings.image,
            digest=image.digest,
            build=image.build,
            source=settings.image,
            runtime=image.spec.kind,
            image=image.spec.image,
            warnings=image.warnings,
        )
        done = _done(catalog, name, key)
        if done is not None and msgspec.structs.replace(done, installed_at_ms=0) == record:
            return done
        return _told(preparing, msgspec.structs.replace(record, installed_at_ms=preparing.now_ms()), None)


# --- what they share --------------------------------------------------------------------------------------------------


def _done(catalog: EngineCatalog, name: str, key: str) -> EngineRecord | None:
    record = catalog.get(name)
    return record if record is not None and record.key == key else None


def _add(preparing: Preparing, record: EngineRecord, tree: Path, program: Path) -> EngineRecord:
    """Ask the program what it is, and let the install count."""
    preparing.progress("check", 0, 0, "")
    environment = {"PATH": os.defpath, "LD_LIBRARY_PATH": str(program.parent), "HOME": str(tree)}
    found = inspection.ask(program, environment)
    return _told(
        preparing,
        msgspec.structs.replace(
            record,
            version=found.version,
            options=found.options,
            build=inspection.build_of(inspection.programs_and_libraries(tree, program)),
            program=str(program.relative_to(tree)),
            installed_at_ms=preparing.now_ms(),
        ),
        tree,
    )


def _told(preparing: Preparing, record: EngineRecord, tree: Path | None) -> EngineRecord:
    added = preparing.catalog.add(record, tree)
    preparing.installed(added)
    return added


def _forbidden(what: str) -> ProvisionError:
    return ProvisionError("downloads-forbidden", f"{what}, and downloads are forbidden (manager.forbid_downloads)")
