"""Which build of an engine `engines install` makes: as it is told, as a pool says, or what this machine can."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .exits import CliError, UsageError

if TYPE_CHECKING:
    from ..core.settings import PoolSettings, ProvisioningSettings

#: where engines come from when nobody says otherwise; a branch is pinned to the commit that it has on that day
UPSTREAM = {"llamacpp": "https://github.com/ggml-org/llama.cpp"}
BRANCH = "master"
IMAGES = {
    ("llamacpp", "cuda"): "ghcr.io/ggml-org/llama.cpp:server-cuda",
    ("llamacpp", "cpu"): "ghcr.io/ggml-org/llama.cpp:server",
}
FLAGS = {"cuda": ("-DGGML_CUDA=ON",), "cpu": ()}
#: what a build from sources calls, and how it is said that one is missing
_BUILDERS = {"git": ("git",), "cmake": ("cmake",), "a C++ compiler": ("c++", "g++", "clang++")}
#: where the CUDA toolkit installs itself, beside the PATH
CUDA_FOLDERS = ("/usr/local/cuda/bin", "/opt/cuda/bin")


@dataclass(frozen=True, slots=True)
class Choice:
    """What will be installed, and how it came to that."""

    settings: ProvisioningSettings
    #: sentences for a person
    steps: tuple[str, ...]
    #: more environment of what builds
    environment: Mapping[str, str] = field(default_factory=dict)


def choose(
    options: argparse.Namespace,
    pools: Sequence[PoolSettings],
    environ: Mapping[str, str],
    *,
    gpu_seen: bool,
    cuda_folders: Sequence[str] = CUDA_FOLDERS,
) -> Choice:
    """What a call of `engines install` means.

    Raises:
        UsageError: its options contradict each other.
        CliError: this machine has no way to it, with what each way lacks.
    """
    engine = options.engine
    if options.pool:
        return _of_pool(options.pool, engine, pools)
    told = _told(options)
    if told is not None:
        return Choice(told, (describe(told),))
    build = options.build or ("cuda" if gpu_seen else "cpu")
    for pool in pools:
        if pool.engine == engine and build == "cuda" and _is_cuda(pool.provisioning):
            return Choice(
                pool.provisioning, (f"pool {pool.id} of the configuration says how", describe(pool.provisioning))
            )
    if engine not in UPSTREAM:
        raise UsageError(
            f"it is not known where a build of {engine} comes from",
            remedy="Name it: --url with --sha256, --git with --ref, or --image.",
        )
    return _by_what_is_here(engine, build, environ, cuda_folders)


def describe(settings: ProvisioningSettings) -> str:
    """What will be done, in words."""
    from ..pools.provisioning.download import without_credentials

    match settings.mode:
        case "binary":
            return f"fetch {without_credentials(settings.url)}, and refuse it unless its SHA-256 is {settings.sha256}"
        case "source":
            flags = f" with {' '.join(settings.cmake_flags)}" if settings.cmake_flags else ""
            return f"fetch {without_credentials(settings.git)} at {settings.ref} and build it{flags}; this takes minutes to an hour"
        case "container":
            return f"pull the image {settings.image} with {settings.runtime or 'podman or docker'}"
        case mode:
            return f"nothing: mode {mode} needs no install"


def snippet(settings: ProvisioningSettings, *, commit: str = "", image: str = "") -> list[str]:
    """Lines of a configuration that name exactly this install."""
    lines = ["provisioning:", f"  mode: {settings.mode}"]
    match settings.mode:
        case "binary":
            lines += [f"  url: {settings.url}", f"  sha256: {settings.sha256}"]
        case "source":
            lines += [f"  git: {settings.git}", f"  ref: {commit or settings.ref}"]
            if settings.cmake_flags:
                lines += ["  cmake_flags:", *(f'    - "{flag}"' for flag in settings.cmake_flags)]
        case _:
            lines += [f"  image: {image or settings.image}"]
    return lines


def _told(options: argparse.Namespace) -> ProvisioningSettings | None:
    """What the options name themselves."""
    from ..core.settings import ProvisioningSettings

    ways = {
        "--url": bool(options.url or options.sha256),
        "--git": bool(options.git or options.ref or options.flag),
        "--image": bool(options.image),
    }
    named = [way for way, given in ways.items() if given]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} exclude each other", remedy="Name one way.")
    if not named:
        return None
    if named == ["--url"]:
        if not options.url or not options.sha256:
            raise UsageError(
                "--url and --sha256 go together: nothing is run whose digest nobody named",
                remedy="Give the digest that the publisher names.",
            )
        return ProvisioningSettings(mode="binary", url=_absolute(options.url), sha256=options.sha256)
    if named == ["--git"]:
        git = options.git or UPSTREAM.get(options.engine, "")
        if not git:
            raise UsageError(f"there is no known repository of {options.engine}", remedy="Name it with --git.")
        flags = [*FLAGS.get(options.build or "cpu", ()), *options.flag]
        return ProvisioningSettings(mode="source", git=_absolute(git), ref=options.ref or BRANCH, cmake_flags=flags)
    return ProvisioningSettings(mode="container", image=options.image, runtime=options.runtime or "")


def _of_pool(pool_id: str, engine: str, pools: Sequence[PoolSettings]) -> Choice:
    pool = next((pool for pool in pools if pool.id == pool_id), None)
    if pool is None:
        known = ", ".join(pool.id for pool in pools) or "none"
        raise UsageError(f"the configuration has no pool {pool_id!r}", remedy=f"It has: {known}.")
    if pool.engine != engine:
        raise UsageError(
            f"pool {pool_id} runs {pool.engine}, not {engine}", remedy=f"Say: engines install {pool.engine}."
        )
    if pool.provisioning.mode in {"external", "package"}:
        raise CliError(
            f"pool {pool_id} has mode {pool.provisioning.mode}: there is nothing to install for it",
            remedy="Give it mode binary, source or container, or install a build for all pools without --pool.",
        )
    return Choice(pool.provisioning, (f"as pool {pool_id} of the configuration says", describe(pool.provisioning)))


def _by_what_is_here(engine: str, build: str, environ: Mapping[str, str], cuda_folders: Sequence[str]) -> Choice:
    """From sources where the compilers are here, else an image where something runs containers."""
    from ..core.settings import ProvisioningSettings

    path = os.pathsep.join([environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    missing = [what for what, names in _BUILDERS.items() if not any(shutil.which(name, path=path) for name in names)]
    found: dict[str, str] = {}
    if build == "cuda":
        compiler = _cuda_compiler(environ, cuda_folders)
        if compiler:
            found["CUDACXX"] = compiler
        else:
            missing.append("nvcc of the CUDA toolkit")
    if not missing:
        settings = ProvisioningSettings(mode="source", git=UPSTREAM[engine], ref=BRANCH, cmake_flags=list(FLAGS[build]))
        return Choice(settings, ("git, cmake and the compilers are here", describe(settings)), found)
    for runtime in ("podman", "docker"):
        if shutil.which(runtime, path=environ.get("PATH", os.defpath)):
            settings = ProvisioningSettings(
                mode="container", image=IMAGES[engine, build], runtime="podman" if runtime == "podman" else "docker"
            )
            return Choice(settings, (f"to build it, {_listed(missing)} would be needed", describe(settings)))
    raise CliError(
        f"there is no way to a {build} build of {engine} on this machine: {_listed(missing)} to build it, "
        "and podman or docker to run its image, are missing",
        remedy="Install one of the two; or name a build with --url and --sha256.",
        code="NO_WAY",
    )


def _cuda_compiler(environ: Mapping[str, str], cuda_folders: Sequence[str]) -> str:
    named = environ.get("CUDACXX", "")
    if named and shutil.which(named):
        return named
    homes = [f"{environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    path = os.pathsep.join([environ.get("PATH", os.defpath), *homes, *cuda_folders])
    return shutil.which("nvcc", path=path) or ""


def _is_cuda(settings: ProvisioningSettings) -> bool:
    told = " ".join([settings.url, settings.image, *settings.cmake_flags]).upper()
    return settings.mode in {"binary", "source", "container"} and "CUDA" in told


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _absolute(place: str) -> str:
    """An address as it is; a path of this machine from its root."""
    if re.match(r"[\w.@+-]+:", place):  # a URL, or host:path
        return place
    return str(Path(place).expanduser().absolute())
