"""Plans the start of llama.cpp's server from the `xllamacpp` package, and knows what its log says when it fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from .. import ConfigError, GgufError, LaunchPlan, read_head

PACKAGE: Final = "xllamacpp"
DEFAULT_SLOTS: Final = 4
#: with ``ctx: 0`` all slots together get no more than this, unless the model's context alone is larger
DEFAULT_CTX_TOTAL: Final = 32_768
#: below this size threads cost more than they bring: they wait for each other at every layer, by spinning
SMALL_MODEL_BYTES: Final = 64 * 1024 * 1024
#: keys of ``provisioning.options`` and the server's arguments for them; all take whole numbers
OPTIONS: Final[dict[str, str]] = {
    "batch": "--batch",
    "ubatch": "--ubatch",
    "cache_ram_mib": "--cache-ram-mib",
    "gpu_layers": "--gpu-layers",
}

#: first match wins: ``(pattern, cause, advice)``
LOG_CAUSES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        r"No module named '?xllamacpp|cannot import name .* from 'xllamacpp'",
        "missing-package",
        "Install the engine's package: pip install 'llama-orch[llamacpp]'.",
    ),
    (
        r"error while loading shared libraries|cannot open shared object file",
        "missing-library",
        "A library of the engine is missing; the line names it. Install it, or install the package again.",
    ),
    (
        r"port-taken|[Aa]ddress already in use|couldn't bind",
        "port-taken",
        "Another process listens on that port: stop it, or set provisioning.port to 0 for any free one.",
    ),
    (
        r"out of memory|failed to allocate|bad_alloc|unable to allocate|cudaMalloc failed|Cannot allocate memory",
        "out-of-memory",
        "Model and context do not fit: lower ctx or slots, or use a smaller quantization.",
    ),
    (
        r"bad-model|invalid magic|failed to load model|error loading model|unable to load model|failed to read",
        "bad-model",
        "The model's file is damaged or of a kind that this build does not know; fetch it again.",
    ),
)


def package_version() -> str:
    """Version of the installed package, or "". Engines of another version are not adopted, so this is what runs."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""


def plan(config: Mapping[str, Any]) -> LaunchPlan:
    """How to start the server.

    Args:
        config: ``model_path`` and ``port``; optional ``slots``, ``ctx`` (tokens per slot; 0 = the model's),
            ``threads``, ``alias`` (name of the model) and ``options`` (see :data:`OPTIONS`).

    Raises:
        ConfigError: the package or the model's file is missing, the file is no GGUF, or an option is unknown.
    """
    version = package_version()
    if not version:
        msg = f"the package {PACKAGE} is not installed"
        raise ConfigError(msg, remedy=LOG_CAUSES[0][2])
    path = Path(str(config.get("model_path", "")))
    try:
        trained = read_head(path).context_length
    except OSError as error:
        msg = f"the model's file cannot be read: {error}"
        raise ConfigError(msg, field="model", got=str(path), remedy="Correct the path of the model.") from error
    except GgufError as error:
        raise ConfigError(str(error), field="model", got=str(path), remedy=LOG_CAUSES[4][2]) from error
    slots = int(config.get("slots") or DEFAULT_SLOTS)
    ctx = int(config.get("ctx") or 0) or min(trained or 4096, max(DEFAULT_CTX_TOTAL, trained) // slots)
    port = int(config["port"])
    argv = [
        *(sys.executable, "-m", "llama_orch.pools.llamacpp_server"),
        *("--model", str(path.resolve())),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(slots), "--ctx", str(ctx * slots)),
    ]
    threads = int(config.get("threads") or 0) or (1 if path.stat().st_size < SMALL_MODEL_BYTES else 0)
    if threads:
        argv += ["--threads", str(threads)]
    if config.get("alias"):
        argv += ["--alias", str(config["alias"])]
    for key, value in sorted((config.get("options") or {}).items()):
        if key not in OPTIONS:
            msg = f"provisioning.options.{key} is not known to llamacpp; it takes {', '.join(OPTIONS)}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)
        if not isinstance(value, int) or isinstance(value, bool):
            msg = f"provisioning.options.{key} takes a whole number"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)
        argv += [OPTIONS[key], str(value)]
    return LaunchPlan(
        argv=tuple(argv),
        # An engine that an older package started does not match this plan, and is not adopted.
        env={"LLAMA_ORCH_ENGINE_PACKAGE": f"{PACKAGE} {version}"},
        url=f"http://127.0.0.1:{port}",
        log_causes=LOG_CAUSES,
    )
