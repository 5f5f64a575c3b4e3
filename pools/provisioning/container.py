"""Container images of engines: found or pulled by podman or docker, pinned by digest; stale containers are ended."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ...core.engine_ports import ContainerSpec
from ...plugins.containers import OWNER_LABEL
from .building import Workshop
from .catalog import EngineCatalog
from .problems import Progress, ProvisionError, Stop

_IMAGE: Final = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]{0,250}(@sha256:[0-9a-f]{64})?")
_QUICK_S: Final = 60.0
#: a word in an image's name -> its build
_WORDS: Final = (
    (r"cuda|nvidia", "cuda"),
    (r"rocm|hip", "rocm"),
    (r"vulkan", "vulkan"),
    (r"intel|sycl|xpu", "sycl"),
    (r"cpu|:(server|full|light)(-b\d+)?$", "cpu"),
)


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is on this host."""

    spec: ContainerSpec
    digest: str
    build: str
    warnings: tuple[str, ...] = ()


def runtime_of(wanted: str, environment: Mapping[str, str]) -> tuple[Literal["podman", "docker"], str]:
    """Which program runs containers, and where it is.

    Args:
        wanted: "podman", "docker", or "" = the first of them that is there.
        environment: with the PATH to look on.

    Raises:
        ProvisionError: ``missing-tool``.
    """
    import shutil

    kinds: tuple[Literal["podman", "docker"], ...] = ("podman", "docker")
    for kind in kinds:
        found = shutil.which(kind, path=environment.get("PATH", os.defpath))
        if found and wanted in {"", kind}:
            return kind, found
    raise ProvisionError("missing-tool", f"there is no {wanted or 'podman or docker'} on the PATH")


def prepare(
    image: str,
    wanted_runtime: str,
    *,
    place: Path,
    log: Path,
    marker: str,
    environment: Mapping[str, str],
    forbid_downloads: bool,
    progress: Progress,
    stop: Stop,
) -> Image:
    """The image on this host, pulled if need be.

    Args:
        image: as configured.
        wanted_runtime: "podman", "docker", or "" = the first of them that is there.
        place: directory to work in.
        log: what the runtime says while it pulls.
        marker: see :meth:`~.catalog.EngineCatalog.marker`.
        environment: of this program.
        forbid_downloads: an image that is not here is refused.
        progress: hears that it is pulled.
        stop: asked now and then; true = give up.

    Raises:
        ProvisionError: ``bad-configuration``, ``missing-tool``, ``downloads-forbidden``, ``fetch-failed``, ``cancelled``.
    """
    if not _IMAGE.fullmatch(image):
        msg = f"provisioning.image got {image!r}, takes name:tag or, better, name@sha256:…"
        raise ProvisionError("bad-configuration", msg)
    kind, runtime = runtime_of(wanted_runtime, environment)
    told = _inspect(runtime, image, environment)
    if told is None:
        if forbid_downloads:
            raise ProvisionError("downloads-forbidden", f"{kind} does not have the image {image}, and may not pull it")
        progress("pull", 0, 0, "")
        workshop = Workshop(environment, place / "home", marker)
        argv = [runtime, "pull", image]
        passed = {name: environment[name] for name in _CLIENT if name in environment}
        workshop.run(argv, log=log, what=f"{kind} pull {image}", stop=stop, cause="fetch-failed", environment=passed)
        told = _inspect(runtime, image, environment)
        if told is None:
            raise ProvisionError("fetch-failed", f"{kind} pulled {image} and does not have it")
    return _pinned(kind, runtime, image, told)


def end_strays(
    catalog: EngineCatalog, owner: str, kept: Callable[[], Collection[str]], *, environment: Mapping[str, str]
) -> list[str]:
    """End containers of this owner that nobody looks after: an earlier run was killed before it wrote them down.

    Args:
        catalog: without a container in it nothing is asked.
        owner: see :func:`~llama_orch.pools.identity.owner_of`.
        kept: names of those that are looked after; asked once it is known which there are.
        environment: of this program.

    Returns:
        Names of those that were ended.
    """
    ended = []
    for kind in sorted({record.runtime for record in catalog.records() if record.mode == "container"}):
        try:
            _, runtime = runtime_of(kind, environment)
            label = f"label={OWNER_LABEL}={owner}"
            there = _quick([runtime, "ps", "--all", "--filter", label, "--format", "{{.Names}}"], environment).split()
            looked_after = set(kept()) if there else set()
            for name in sorted(set(there) - looked_after):
                _quick([runtime, "rm", "--force", name], environment)
                ended.append(name)
        except ProvisionError:
            continue  # nothing runs in it, then
    return ended


#: how clients of the runtime find it
_CLIENT: Final = (
    "HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "CONTAINER_HOST",
)


def _pinned(kind: Literal["podman", "docker"], runtime: str, image: str, told: Mapping[str, Any]) -> Image:
    """The image by its digest, as the runtime tells it."""
    name, _, digest = image.partition("@")
    repository = re.sub(r":[^:/]*$", "", name)
    warnings: tuple[str, ...] = ()
    if not digest:
        digests = [text for text in told.get("RepoDigests") or () if _IMAGE.fullmatch(str(text))]
        mine = next((text for text in digests if text.partition("@")[0].endswith(repository)), "")
        digest = mine.partition("@")[2]
        pinned = f"{name}@{digest}" if digest else ""
        warnings = (
            f"the image {image} is not pinned; " + (f"image: {pinned} would be" if pinned else "it has no digest"),
        )
        # A name of both a tag and a digest is understood by both; what runs is what was looked at.
        image = f"{repository}@{digest}" if digest else image
    build = next((build for words, build in _WORDS if re.search(words, name)), "unknown")
    return Image(
        spec=ContainerSpec(kind=kind, runtime=runtime, image=image),
        digest=digest or str(told.get("Id", "")),
        build=build,
        warnings=warnings,
    )


def _inspect(runtime: str, image: str, environment: Mapping[str, str]) -> Mapping[str, Any] | None:
    try:
        told = msgspec.json.decode(_quick([runtime, "image", "inspect", image], environment))
    except msgspec.MsgspecError:
        return None
    return told[0] if isinstance(told, list) and told and isinstance(told[0], dict) else None


def _quick(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the runtime answers; "" when it fails."""
    try:
        done = subprocess.run(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_QUICK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProvisionError("missing-tool", f"{Path(argv[0]).name} {argv[1]} does not answer: {error}") from error
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    said = done.stderr.decode("utf-8", "replace").strip()
    if "annot connect to" in said:  # to its daemon, as docker and podman each say it
        raise ProvisionError(
            "missing-tool", f"{Path(argv[0]).name}: {said.splitlines()[0]}", "Start it, and see that you may use it."
        )
    return ""
