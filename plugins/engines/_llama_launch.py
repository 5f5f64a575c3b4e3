"""Plans the start of llama.cpp's server: the one of the `xllamacpp` package, a `llama-server` program, or a container."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from .. import ConfigError, GgufError, GgufHead, LaunchPlan, ProvisionedEngine, containers, read_head, tensor_shares
from ._llama_log import ADVICE, LOG_CAUSES

PACKAGE: Final = "xllamacpp"
DEFAULT_SLOTS: Final = 4
#: with ``ctx: 0`` all slots together get no more than this, unless the model's context alone is larger
DEFAULT_CTX_TOTAL: Final = 32_768
#: below this size threads cost more than they bring: they wait for each other at every layer, by spinning
SMALL_MODEL_BYTES: Final = 64 * 1024 * 1024
#: more than any model has
ALL_LAYERS: Final = 999
KV_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
#: keys of ``provisioning.options`` and the server's arguments for them: whole numbers, or one of these words
OPTIONS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "batch": ("--batch-size", ()),
    "ubatch": ("--ubatch-size", ()),
    "cache_ram_mib": ("--cache-ram", ()),
    "gpu_layers": ("--n-gpu-layers", ()),
    "kv_type_k": ("--cache-type-k", KV_TYPES),
    "kv_type_v": ("--cache-type-v", KV_TYPES),
    "flash_attention": ("--flash-attn", ("on", "off", "auto")),
}
#: switches of ``provisioning.options``: what the server does beside, or instead of, saying texts
SWITCHES: Final[dict[str, str]] = {"embedding": "--embedding", "reranking": "--reranking"}
#: how the vectors of an input's tokens become one
POOLING: Final = ("mean", "cls", "last")
#: an input to embed or to rank is read at once; longer ones than so many tokens cannot be, unless ``ubatch`` says so
VECTOR_BATCH: Final = 8192
#: what a model that ranks has, and others have not
_HEADS: Final = ("cls.output.weight", "cls.weight")
#: of a container alone
MEMORY_OPTION: Final = "memory_limit_mib"
#: what a program that can do it is told besides: no page for browsers, no context that is shifted, no fitting to the
#: memory that happens to be free, nothing fetched. Those of the first line every build of the last two years knows.
_ALWAYS: Final[tuple[tuple[str, ...], ...]] = (("--metrics",), ("--slots",), ("--no-webui",), ("--no-context-shift",))
_IF_KNOWN: Final[tuple[tuple[str, ...], ...]] = (
    ("--offline",),
    ("--fit", "off"),
    ("--no-kv-unified",),
    ("--cors-origins", "http://127.0.0.1"),
    # Its own default, 8 GiB of cached prompts, is memory that nobody planned with.
    ("--cache-ram", "0"),
)
#: builds whose GPUs can be named by UUID
_PINNED_BUILDS: Final = frozenset({"cuda", "unknown"})


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
            ``threads``, ``alias`` (name of the model), ``options`` (see :data:`OPTIONS`), ``env``; ``provisioned``
            (:class:`~llama_orch.plugins.ProvisionedEngine`; none = the package); ``devices`` (UUIDs, or ``["cpu"]``),
            ``tensor_split`` and ``gpu_memory_bytes`` (by UUID); ``marker`` (of a container).

    Raises:
        ConfigError: the package or the model's file is missing, the file is no GGUF, an option is unknown, or the GPUs
            cannot be named to this build.
    """
    engine = config.get("provisioned") or ProvisionedEngine(mode="package")
    path = Path(str(config.get("model_path", "")))
    head = _head(path)
    trained = head.context_length
    port = int(config["port"])
    slots = int(config.get("slots") or DEFAULT_SLOTS)
    ctx = int(config.get("ctx") or 0) or min(trained or 4096, max(DEFAULT_CTX_TOTAL, trained) // slots)
    model = path.resolve()
    inside = engine.container is not None
    arguments = [
        *("--model", containers.inside(model) if inside else str(model)),
        # Inside a container this is its own network; outside, the port is published on loopback alone.
        *("--host", "0.0.0.0" if inside else "127.0.0.1", "--port", str(port)),  # noqa: S104
        *("--parallel", str(slots), "--ctx-size", str(ctx * slots)),
    ]
    threads = int(config.get("threads") or 0) or (1 if path.stat().st_size < SMALL_MODEL_BYTES else 0)
    if threads:
        arguments += ["--threads", str(threads)]
    if config.get("alias"):
        arguments += ["--alias", str(config["alias"])]
    options = dict(config.get("options") or {})
    memory_mib = _memory_limit(options) if inside else 0
    arguments += _vectors(options, head, ctx)
    arguments += _options(options)
    devices = [str(device) for device in config.get("devices") or ["cpu"]]
    arguments += _gpu_arguments(config, engine, devices, "gpu_layers" in options)
    variables = {**containers.gpu_variables(devices), **{k: str(v) for k, v in (config.get("env") or {}).items()}}
    url = f"http://127.0.0.1:{port}"
    if engine.container is not None:
        run = containers.run(
            engine.container,
            [*arguments, *_extras(engine, arguments)],
            marker=str(config.get("marker") or "local/pool/1"),
            model=model,
            port=port,
            gpus=[device for device in devices if device != "cpu"],
            variables=sorted(variables),
            memory_mib=memory_mib,
        )
        return LaunchPlan(argv=run.argv, stop_argv=run.stop_argv, env=variables, url=url, log_causes=LOG_CAUSES)
    if engine.argv:
        if engine.library_path:
            variables.setdefault("LD_LIBRARY_PATH", engine.library_path)
        # An engine of another build does not match this plan, and is not adopted.
        variables["LLAMA_ORCH_ENGINE_BUILD"] = f"{engine.name} {engine.digest}"
        argv = (*engine.argv, *arguments, *_extras(engine, arguments))
        return LaunchPlan(argv=argv, env=variables, url=url, log_causes=LOG_CAUSES)
    version = package_version()
    if not version:
        msg = f"the package {PACKAGE} is not installed"
        raise ConfigError(msg, remedy=ADVICE["missing-package"])
    return LaunchPlan(
        argv=(sys.executable, "-m", "llama_orch.pools.llamacpp_server", *arguments, *_no_prompt_cache(arguments)),
        # As above, of another package.
        env={**variables, "LLAMA_ORCH_ENGINE_PACKAGE": f"{PACKAGE} {version}"},
        url=url,
        log_causes=LOG_CAUSES,
    )


def _no_prompt_cache(given: Sequence[str]) -> tuple[str, ...]:
    return () if "--cache-ram" in given else ("--cache-ram", "0")


def _head(path: Path) -> GgufHead:
    try:
        return read_head(path)
    except OSError as error:
        msg = f"the model's file cannot be read: {error}"
        raise ConfigError(msg, field="model", got=str(path), remedy="Correct the path of the model.") from error
    except GgufError as error:
        raise ConfigError(str(error), field="model", got=str(path), remedy=ADVICE["bad-model"]) from error


def _vectors(options: dict[str, Any], head: GgufHead, ctx: int) -> list[str]:
    """Arguments of a server that embeds or ranks; their keys are taken out of the options."""
    asked = {key: options.pop(key, False) for key in SWITCHES}
    pooling = options.pop("pooling", "")
    for key, value in asked.items():
        if not isinstance(value, bool):
            msg = f"provisioning.options.{key} takes true or false"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)
    if pooling and (pooling not in POOLING or not asked["embedding"]):
        msg = f"provisioning.options.pooling takes one of {', '.join(POOLING)}, and belongs to embedding"
        raise ConfigError(msg, field="provisioning.options.pooling", got=pooling)
    if not any(asked.values()):
        return []
    if all(asked.values()):
        msg = "provisioning.options: a server embeds or ranks, not both"
        raise ConfigError(msg, field="provisioning.options.reranking", got=True, remedy="Make two pools.")
    if asked["reranking"] and not any(tensor.name in _HEADS for tensor in head.tensors):
        # llama.cpp would not refuse it, and make up scores.
        msg = "provisioning.options.reranking: this model has no head that ranks"
        raise ConfigError(msg, field="provisioning.options.reranking", got=True, remedy="Use a model made for ranking.")
    if asked["embedding"] and not pooling and not head.number("pooling_type"):
        msg = f"provisioning.options.pooling: the model does not say how it pools; say {', '.join(POOLING)}"
        remedy = "The model's page says which: mean for most, last for those made of chat models."
        raise ConfigError(msg, field="provisioning.options.pooling", got=pooling, remedy=remedy)
    arguments = [SWITCHES[key] for key, value in asked.items() if value]
    if pooling:
        arguments += ["--pooling", str(pooling)]
    if "ubatch" not in options:
        arguments += ["--ubatch-size", str(min(ctx, VECTOR_BATCH))]
        if "batch" not in options:
            arguments += ["--batch-size", str(min(ctx, VECTOR_BATCH))]
    return arguments


def _options(options: Mapping[str, Any]) -> list[str]:
    arguments = []
    for key, value in sorted(options.items()):
        if key not in OPTIONS:
            known = ", ".join((*OPTIONS, *SWITCHES, "pooling"))
            msg = f"provisioning.options.{key} is not known to llamacpp; it takes {known}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)
        argument, words = OPTIONS[key]
        if words and value not in words:
            msg = f"provisioning.options.{key} takes one of {', '.join(words)}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)
        if not words and (not isinstance(value, int) or isinstance(value, bool)):
            msg = f"provisioning.options.{key} takes a whole number"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)
        arguments += [argument, str(value)]
    return arguments


def _memory_limit(options: dict[str, Any]) -> int:
    value = options.pop(MEMORY_OPTION, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"provisioning.options.{MEMORY_OPTION} takes a whole number of MiB"
        raise ConfigError(msg, field=f"provisioning.options.{MEMORY_OPTION}", got=value)
    return value


def _gpu_arguments(
    config: Mapping[str, Any], engine: ProvisionedEngine, devices: Sequence[str], layers_given: bool
) -> list[str]:
    """All layers on the GPUs that are meant, in explicit shares; none where none is meant."""
    gpus = [device for device in devices if device != "cpu"]
    if gpus and engine.build not in _PINNED_BUILDS:
        msg = f"a {engine.build} build cannot be told GPUs by UUID, and the pool is for {', '.join(gpus)}"
        raise ConfigError(msg, field="devices", got=",".join(gpus), remedy="Use a CUDA build.")
    arguments = []
    if not layers_given and (gpus or engine.build != "cpu"):
        arguments += ["--n-gpu-layers", str(ALL_LAYERS if gpus else 0)]
    if gpus and engine.build == "cuda" and (engine.argv or engine.container) and _knows(engine, "--device"):
        # Those that are seen, in their order: without them the server does not start, instead of using processors.
        arguments += ["--device", ",".join(f"CUDA{number}" for number in range(len(gpus)))]
    if len(gpus) == 1:
        arguments += ["--split-mode", "none", "--main-gpu", "0"]
    elif gpus:
        memory = config.get("gpu_memory_bytes") or {}
        try:
            shares = tensor_shares([int(memory.get(gpu, 0)) for gpu in gpus], config.get("tensor_split") or ())
        except ValueError as error:
            raise ConfigError(str(error), field="tensor_split", got=config.get("tensor_split")) from error
        arguments += ["--split-mode", "layer", "--tensor-split", ",".join(map(str, shares))]
    return arguments


def _knows(engine: ProvisionedEngine, option: str) -> bool:
    """Whether the program takes an option; taken for granted where it was not asked."""
    return not engine.options or option in engine.options


def _extras(engine: ProvisionedEngine, given: Sequence[str]) -> list[str]:
    """Arguments of `llama-server`; what its help does not name is left out, and so is what is given."""
    wanted = [words for words in _ALWAYS if _knows(engine, words[0])]
    wanted += [words for words in _IF_KNOWN if words[0] in engine.options]
    return [word for words in wanted if words[0] not in given for word in words]
