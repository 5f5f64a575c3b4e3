"""A GPU that the engine's build cannot use: noticed, in one line with the one command that gets the right build (ENG-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .config import Loaded
    from .detect import Machine

COMMAND: Final = "llama-orch engines install llamacpp --cuda"
_ENGINE: Final = "llamacpp"


def notice(
    loaded: Loaded,
    *,
    seen: Callable[[], bool] | None = None,
    look: Callable[[], Machine] | None = None,
    package: Callable[[], tuple[str, str]] | None = None,
) -> str:
    """What to tell who starts a server here, or "". Costs two looks at files where there is no GPU.

    Args:
        loaded: the configuration: its pools, and the data directory with the engine catalog.
        seen: whether the kernel shows a GPU.
        look: what the driver says of the machine.
        package: version and build of the engine's package.
    """
    from .detect import detect, nvidia_device_files

    if not (seen or nvidia_device_files)():
        return ""
    if not any(pool.engine == _ENGINE and pool.provisioning.mode == "package" for pool in loaded.settings.pools):
        return ""  # every pool says itself what it runs
    version, build = (package or _package)()
    if (version and build != "cpu") or gpu_builds(loaded):
        return ""
    return sentence((look or detect)(), version)


def sentence(machine: Machine, version: str) -> str:
    """The one line."""
    names = ", ".join(gpu.name for gpu in machine.gpus) or "an NVIDIA GPU"
    engine = f"xllamacpp {version} is a build for processors" if version else "no engine is installed"
    return f"{names} is here, and {engine}. Get the right build: {COMMAND}"


def gpu_builds(loaded: Loaded) -> list[str]:
    """Names of installed builds that can use a GPU."""
    from ..pools.provisioning import EngineCatalog

    records = EngineCatalog(loaded.data_dir / "engine-catalog").records()
    return [record.name for record in records if record.engine == _ENGINE and record.build != "cpu"]


def _package() -> tuple[str, str]:
    from ..pools.provisioning.provision import PACKAGES, package_build

    return package_build(PACKAGES[_ENGINE])
