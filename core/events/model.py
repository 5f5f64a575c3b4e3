"""Models and engines that were prepared on a host: where they came from, and whether that was verified."""

from __future__ import annotations

from ..registry import event


@event("model.staged", stream="host", key="host", durable=True)
class ModelStaged:
    """A model's files are in the host's cache (MOD-2)."""

    host: str
    #: as configured or asked for
    ref: str
    #: where it came from, without credentials
    source_url: str = ""
    revision: str = ""
    #: "sha256:..." of the file, or of the list of files
    digest: str = ""
    size_bytes: int = 0
    files: int = 1
    #: "verified" | "unverified" (no digest was given)
    verification: str = "unverified"
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    ctx_train: int = 0
    #: bytes that were fetched for it; 0 = it was there
    fetched_bytes: int = 0


@event("engine.installed", stream="host", key="host", durable=True)
class EngineInstalled:
    """An engine was prepared on the host (ENG-2)."""

    host: str
    engine: str
    #: provisioning mode
    mode: str
    version: str = ""
    digest: str = ""
    #: how it was built, e.g. CMake flags
    flags: str = ""
    #: "cpu" | "cuda" | "vulkan" | "unknown"
    build: str = "unknown"
