"""What types cannot say about a configuration: names that must exist, files that must be there, addresses that are safe."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ..core.errors import ConfigError
from ..core.settings import PoolSettings
from .access import auth_faults
from .config import Loaded, is_path, is_reference
from .config_clients import client_faults
from .config_types import Fault, nearest


def check(loaded: Loaded) -> list[Fault]:
    """All faults of a loaded configuration; empty when it can be served. Reads the disk, changes nothing."""
    from ..plugins.manager import PluginManager

    plugins = PluginManager()
    return list(
        faults(
            loaded,
            engines=plugins.engines(),
            launchers=plugins.launchers(),
            policies=plugins.placement_policies(),
            stores=plugins.journal_stores(),
        )
    )


def require_sound(loaded: Loaded) -> None:
    """Refuse a configuration that cannot be served. :raises ConfigError: tells every fault."""
    found = check(loaded)
    if found:
        lines = [str(fault) for fault in found]
        message = lines[0] if len(lines) == 1 else f"{len(lines)} faults in the configuration:\n  " + "\n  ".join(lines)
        raise ConfigError(message, field=found[0].key, got=found[0].shown, faults=lines)


def faults(
    loaded: Loaded,
    *,
    engines: Collection[str],
    launchers: Collection[str],
    policies: Collection[str],
    stores: Collection[str],
) -> Iterator[Fault]:
    """The faults, given the names that plugins offer."""
    settings = loaded.settings

    def fault(key: str, got: object, message: str) -> Fault:
        origin = loaded.origin(key)
        return Fault("" if origin == "default" else origin, got, key, message)

    bind = bind_fault(settings.bind)
    if bind:
        yield fault("bind", settings.bind, bind)
    for key, got, message in (*auth_faults(settings), *client_faults(settings)):
        yield fault(key, got, message)
    if settings.policies.placement not in policies:
        yield fault(
            "policies.placement",
            settings.policies.placement,
            _unknown("placement policy", settings.policies.placement, policies),
        )
    scheme = re.split(r"[+:]", settings.journal.url, maxsplit=1)[0] if settings.journal.url else "sqlite"
    if scheme not in stores:
        yield fault("journal.url", settings.journal.url, _unknown("kind of database", scheme, stores))
    seen: dict[str, int] = {}
    for number, pool in enumerate(settings.pools):
        key = f"pools[{number}]"
        if pool.id in seen:
            yield fault(
                f"{key}.id", pool.id, f"{pool.id!r} is taken by pools[{seen[pool.id]}]; give each pool its own id"
            )
        seen.setdefault(pool.id, number)
        for name, got, message in _pool_faults(pool, settings.models.get(pool.model, pool.model), engines, launchers):
            yield fault(f"{key}.{name}", got, message)
    hosts = {"local", *(host.id for host in settings.hosts)}
    for number, pool in enumerate(settings.pools):
        if pool.host not in hosts:
            yield fault(f"pools[{number}].host", pool.host, _unknown("host", pool.host, hosts))
    served = {name for pool in settings.pools for name in (pool.model, *pool.aliases)}
    for alias, model in settings.models.items():
        if settings.pools and alias not in served and model not in served:
            yield fault(
                f"models.{alias}", model, f"names the model {model!r}, which no pool serves{nearest(model, served)}"
            )


def bind_fault(bind: str) -> str:
    """What is wrong with a listening address, or "". Whether others may reach it is seen when the server starts: its keys
    are in the journal.
    """
    try:
        host, port = split_bind(bind)
    except ValueError as error:
        return str(error)
    return "" if host else f"got {bind!r}; say 0.0.0.0:{port} for every address of this machine, or name one"


def split_bind(bind: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[::1]:port``. :raises ValueError: it is neither."""
    found = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/\s]*)):(?P<port>\d{1,5})", bind)
    if not found or int(found["port"]) > 65_535:
        raise ValueError(f"got {bind!r}, takes host:port such as 127.0.0.1:8080 or [::1]:8080; port 0 = any free one")
    return found["six"] or found["host"], int(found["port"])


def _pool_faults(
    pool: PoolSettings, model: str, engines: Collection[str], launchers: Collection[str]
) -> Iterator[tuple[str, object, str]]:
    if pool.engine not in engines:
        yield "engine", pool.engine, _unknown("engine", pool.engine, engines)
    if pool.provisioning.mode == "external":
        if not re.fullmatch(r"(https?|grpcs?)://[^\s/]+(/\S*)?", pool.provisioning.url):
            yield (
                "provisioning.url",
                pool.provisioning.url,
                "takes the engine's address, e.g. http://127.0.0.1:8081, because mode is external",
            )
        return
    yield from _provisioning_faults(pool)
    if is_reference(model):
        yield from _reference_faults(model)
        return
    if (pool.engine in launchers and model != "haiku") or is_path(model):
        path = Path(model)
        if not path.exists():
            yield "model", model, f"there is no file {model}; name a GGUF file, or haiku for the bundled model"
        elif not path.is_file():
            yield "model", model, f"{model} is no file; name the GGUF file in it"


def _reference_faults(model: str) -> Iterator[tuple[str, object, str]]:
    from ..pools.models.errors import StagingError
    from ..pools.models.references import parse, public_or_scheme

    try:
        parse(model)
    except StagingError as error:
        yield "model", public_or_scheme(model), error.message


def _provisioning_faults(pool: PoolSettings) -> Iterator[tuple[str, object, str]]:
    """Keys that the mode lacks, and keys that it does not take."""
    given = pool.provisioning
    needs: dict[str, tuple[str, ...]] = {
        "binary": ("url", "sha256"),
        "source": ("git", "ref"),
        "container": ("image",),
    }
    for key in ("url", "sha256", "git", "ref", "image", "cmake_flags", "runtime"):
        value = getattr(given, key)
        if key in needs.get(given.mode, ()):
            if not value:
                yield f"provisioning.{key}", value, f"is missing; mode: {given.mode} needs it"
        elif value and (given.mode, key) not in {("source", "cmake_flags"), ("container", "runtime")}:
            of = next((mode for mode, keys in needs.items() if key in keys), "source" if key == "cmake_flags" else "")
            modes = "mode: external and binary" if key == "url" else f"mode: {of or 'container'}"
            yield f"provisioning.{key}", value, f"is only for {modes}; this pool has mode: {given.mode}"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    hint = nearest(name, known)
    return f"got {name!r}, which is no known {what}{hint or '; known are ' + (', '.join(sorted(known)) or 'none')}"
