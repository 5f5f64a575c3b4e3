"""Loads the configuration: flag over environment over file over default, strictly (CFG-1).

A file is YAML or TOML; `LLORCH_*` variables name keys with `__` between levels (`LLORCH_JOURNAL__URL`); flags are
`--bind`, `--data-dir` and `--set KEY=VALUE`. Every layer is checked on its own, so that an error names the line,
variable or flag that is wrong. Relative paths are relative to the file that names them, else to the working
directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..core.errors import ConfigError
from ..core.settings import PoolSettings, Settings
from .config_files import read_file
from .config_types import Fault, checked, nearest, parse_text, settings_type, type_at

#: Variables of the command line itself, which are no keys of the configuration.
RESERVED = frozenset({"LLORCH_CONFIG", "LLORCH_URL", "LLORCH_DEBUG", "LLORCH_API_TOKEN", "LLORCH_CA_FILE"})
#: files that keys name, by the table that they stand in
_FILES = {"auth": ("token_file",), "auth.oidc": ("ca_file",), "tls": ("cert_file", "key_file", "client_ca_file")}
FILE_NAMES = ("config.yaml", "config.yml", "config.toml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An effective configuration, and where it came from."""

    settings: Settings
    #: the file that was read, if any
    path: Path | None
    #: dotted key -> "config.yaml:3", "LLORCH_BIND", "--bind"; keys at their default are not in it
    set_by: Mapping[str, str]
    data_dir: Path

    def origin(self, key: str) -> str:
        """Who set a key, or the nearest level above it: for messages."""
        while key:
            if key in self.set_by:
                return self.set_by[key]
            key = key.rpartition(".")[0] if "." in key else re.sub(r"\[\d+\]$", "", key) if "[" in key else ""
        return "default"


@dataclass(slots=True)
class _Layer:
    values: dict[str, Any]
    #: dotted key -> who says so
    origins: dict[str, str] = field(default_factory=dict)
    base: Path = field(default_factory=Path.cwd)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
) -> Loaded:
    """The effective configuration.

    :param path: the file; ``None`` = ``LLORCH_CONFIG``, else the one in the user's configuration directory, else none.
    :param environ: ``os.environ`` by default.
    :param flags: dotted key -> text, for flags of their own (``{"bind": "127.0.0.1:0"}``).
    :param assignments: ``KEY=VALUE`` texts of ``--set``.
    :raises ConfigError: names each key, what it got, what it takes and who set it; all faults at once.
    """
    environ = os.environ if environ is None else environ
    chosen = _choose(path, environ)
    faults: list[Fault] = []
    layers: list[_Layer] = []
    if chosen is not None:
        values, lines, file_faults = read_file(chosen)
        faults += file_faults
        layers.append(
            _Layer(
                values,
                {key: f"{chosen.name}:{line}" if line else chosen.name for key, line in lines.items()},
                chosen.parent,
            )
        )
    layers += [_environment(environ, faults), _flags(flags or {}, assignments, faults)]
    merged: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    for layer in layers:
        clean = checked(settings_type(), layer.values, "", layer.origins, faults)
        if not faults:
            merged = _merge(merged, _absolute(clean, layer.base))
            set_by |= layer.origins
    if faults:
        raise _error(faults, chosen)
    settings = with_named_models(msgspec.convert(merged, Settings))
    return Loaded(settings, chosen, set_by, data_directory(settings))


def with_named_models(settings: Settings) -> Settings:
    """The settings with every model file under a name: the one that ``models`` gives it, else the file's own.

    Clients ask for names and never see a path.

    :raises ConfigError: two files would have one name.
    """
    models = dict(settings.models)
    names = {path: name for name, path in reversed(models.items()) if is_source(path)}
    pools = []
    for number, pool in enumerate(settings.pools):
        if pool.provisioning.mode != "external" and is_source(pool.model):
            path = pool.model
            name = names.setdefault(path, source_name(path))
            if models.setdefault(name, path) != path or name == "haiku":
                raise ConfigError(
                    f"pools[{number}].model: {path} would be named {name!r}, which is taken",
                    field=f"pools[{number}].model",
                    got=path,
                    remedy="Give the file another name under `models`, e.g. models: {my-model: " + path + "}.",
                )
            pool = msgspec.structs.replace(pool, model=name)
        pools.append(pool)
    for name, path in models.items():
        if names.get(path, name) != name:
            models[name] = names[path]
    return with_implied_pools(msgspec.structs.replace(settings, models=models, pools=pools))


def with_implied_pools(settings: Settings) -> Settings:
    """The settings with a pool for every model that none names: it is loaded when a task asks for it."""
    served = {name for pool in settings.pools for name in (pool.model, *pool.aliases)}
    taken = {pool.id for pool in settings.pools}
    common = settings.model_pools
    implied = []
    for name, model in settings.models.items():
        if name in served or model in served or not (is_source(model) or model == "haiku"):
            continue
        pool_id = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "model"
        while pool_id in taken:
            pool_id = f"{pool_id[:60]}-1" if not re.search(r"-\d+$", pool_id) else _next_number(pool_id)
        taken.add(pool_id)
        implied.append(
            PoolSettings(
                id=pool_id,
                engine=common.engine,
                model=name,
                devices=common.devices,
                ctx=common.ctx,
                slots=common.slots,
                keep_alive_ms=common.keep_alive_ms,
                provisioning=common.provisioning,
                preload=False,
            )
        )
    return msgspec.structs.replace(settings, pools=[*settings.pools, *implied])


def _next_number(name: str) -> str:
    stem, _, number = name.rpartition("-")
    return f"{stem}-{int(number) + 1}"


def data_directory(settings: Settings) -> Path:
    """Where journal, logs and engine state live."""
    if settings.data_dir:
        return Path(settings.data_dir)
    from platformdirs import user_data_path

    return user_data_path("llama-orch", appauthor=False)


def default_config_path() -> Path:
    """Where `init` writes and the server looks when no file is named."""
    from platformdirs import user_config_path

    return user_config_path("llama-orch", appauthor=False) / FILE_NAMES[0]


def make_data_directory(path: Path) -> Path:
    """Create the directory for its owner alone (0700). :raises ConfigError: it cannot be used, with the reason."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(
            f"data_dir: {path} cannot be used: {error.strerror or error}",
            field="data_dir",
            got=str(path),
            remedy="Name a directory that you may write: --data-dir DIR, LLORCH_DATA_DIR, or data_dir in the configuration.",
        ) from error
    return path


def _choose(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    named = path or environ.get("LLORCH_CONFIG")
    if named:
        return Path(named).expanduser().absolute()
    folder = default_config_path().parent
    found = [folder / name for name in FILE_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise ConfigError(
            f"there are {len(found)} configuration files: {', '.join(map(str, found))}",
            remedy="Keep one of them, or name one with --config.",
        )
    return found[0] if found else None


def _environment(environ: Mapping[str, str], faults: list[Fault]) -> _Layer:
    layer = _Layer({})
    for name in sorted(environ):
        if not name.startswith("LLORCH_") or name in RESERVED:
            continue
        path = [part.lower() for part in name.removeprefix("LLORCH_").split("__")]
        if type_at(settings_type(), path) is None:
            known = [f"LLORCH_{key.upper()}" for key in settings_type_keys()] + sorted(RESERVED)
            faults.append(Fault(name, "", name, f"is no setting{nearest(name, known)}"))
            continue
        _assign(layer, path, environ[name], name, faults)
    return layer


def _flags(flags: Mapping[str, str], assignments: Sequence[str], faults: list[Fault]) -> _Layer:
    layer = _Layer({})
    given = [(key, text, f"--{key.replace('_', '-')}") for key, text in flags.items()]
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            faults.append(Fault("--set", assignment, key, "takes KEY=VALUE, e.g. --set journal.commit_window_ms=2"))
        else:
            given.append((key, text, f"--set {key}"))
    for key, text, origin in given:
        path = key.split(".")
        if type_at(settings_type(), path) is None:
            known = [known.replace("__", ".") for known in settings_type_keys()]
            faults.append(Fault(origin, "", key, f"is no setting{nearest(key, known)}"))
            continue
        _assign(layer, path, text, origin, faults)
    return layer


def _assign(layer: _Layer, path: list[str], text: str, origin: str, faults: list[Fault]) -> None:
    at = layer.values
    for part in path[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            faults.append(Fault(origin, text, ".".join(path), "sets a part of what is set as a whole as well"))
            return
    kind = type_at(settings_type(), path)
    assert kind is not None, "the caller looked it up"
    at[path[-1]] = parse_text(kind, text)
    layer.origins[".".join(path)] = origin


def settings_type_keys() -> list[str]:
    """Every key that has a name of its own, levels joined by two underscores."""
    from .config_types import leaf_keys

    return ["__".join(path) for path in leaf_keys(settings_type())]


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; everything else, lists too, is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _absolute(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """The layer with its relative paths made absolute."""

    def absolute(text: str) -> str:
        return str(Path(os.path.normpath(base / Path(text).expanduser())))

    if values.get("data_dir"):
        values["data_dir"] = absolute(values["data_dir"])
    for above, names in _FILES.items():
        table = values
        for part in above.split("."):
            table = table.get(part, {})
        for name in names:
            if table.get(name):
                table[name] = absolute(table[name])
    url = values.get("journal", {}).get("url", "")
    sqlite = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/?][^?]*)(\?.*)?", url)
    if sqlite and sqlite[2] != ":memory:":
        values["journal"]["url"] = sqlite[1] + absolute(sqlite[2]) + (sqlite[3] or "")
    for name, model in values.get("models", {}).items():
        if is_path(model):
            values["models"][name] = absolute(model.removeprefix("file:"))
    for pool in values.get("pools", []):
        model = pool.get("model", "haiku")
        external = pool.get("provisioning", {}).get("mode", "package") == "external"
        if not external and is_path(model):
            pool["model"] = absolute(model.removeprefix("file:"))
    return values


def is_reference(model: str) -> bool:
    """Whether a model is to be fetched: ``hf:``, ``https:``, ``s3:`` and other schemes."""
    from ..pools.models.references import is_remote

    return is_remote(model)


def is_source(model: str) -> bool:
    """Whether a model says where it is, as a file or a reference, rather than a name that an engine knows."""
    return is_path(model) or is_reference(model)


def source_name(model: str) -> str:
    """The name of a file's or reference's model, where the configuration gives it none."""
    from ..pools.models.errors import StagingError
    from ..pools.models.references import default_name

    try:
        return default_name(model) or model
    except StagingError:  # it is refused by name when the configuration is checked
        return model


def is_path(model: str) -> bool:
    """Whether a pool's model is a file rather than a name that an engine knows."""
    return not is_reference(model) and ("/" in model or model.startswith(("file:", "~")) or model.endswith(".gguf"))


def _error(faults: list[Fault], path: Path | None) -> ConfigError:
    first = faults[0]
    lines = [str(fault) for fault in faults]
    message = lines[0] if len(lines) == 1 else f"{len(lines)} faults in the configuration:\n  " + "\n  ".join(lines)
    return ConfigError(
        message,
        field=first.key,
        got=first.shown,
        faults=[{"where": f.where, "key": f.key, "got": f.shown, "message": f.message} for f in faults],
        file=str(path) if path else "",
    )
