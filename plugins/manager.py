"""Finds plugins, checks them, and asks each hook once; the rest of llama-orch sees typed registries only."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import TypeVar

import pluggy

from ..core.engine_ports import EngineFactory, LauncherFactory
from ..core.errors import ConfigError
from ..core.ports import PlacementPolicy, StoreFactory
from . import hookspecs

V = TypeVar("V")
ENTRY_POINT_GROUP = "llama_orch"
ENGINES = "llama_orch.plugins.engines"
BUILT_IN = (ENGINES, "llama_orch.plugins.policy", "llama_orch.plugins.storage")


class PluginManager:
    """The registered plugins and what they offer.

    :param built_in: packages whose modules are plugins; who needs engines alone need not import databases.
    :raises ConfigError: a plugin implements an unknown hook, or two plugins offer the same name.
    """

    def __init__(
        self, *, entry_points: bool = True, extra: Iterable[object] = (), built_in: Sequence[str] = BUILT_IN
    ) -> None:
        self._pm = pluggy.PluginManager("llama_orch")
        self._pm.add_hookspecs(hookspecs)
        for package in built_in:
            module = importlib.import_module(package)
            for info in pkgutil.iter_modules(module.__path__):
                if info.name.startswith("_"):  # what several plugins share is no plugin
                    continue
                name = f"{package}.{info.name}"
                self._pm.register(importlib.import_module(name), name)
        if entry_points:
            self._pm.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
        for plugin in extra:
            self._pm.register(plugin)
        try:
            self._pm.check_pending()
        except pluggy.PluginValidationError as error:
            msg = f"plugin {error.plugin!r}: {error}"
            raise ConfigError(
                msg, remedy="Correct or uninstall that plugin; docs/reference/hooks.md lists the hooks."
            ) from error

    def engines(self) -> dict[str, EngineFactory]:
        """Engine factories by name."""
        return _unique("engine", self._pm.hook.llama_orch_engine())

    def launchers(self) -> dict[str, LauncherFactory]:
        """Launch planners by engine name."""
        return _unique("launcher", self._pm.hook.llama_orch_launcher())

    def placement_policies(self) -> dict[str, PlacementPolicy]:
        """Placement policies by name."""
        return _unique("placement policy", [(p.name, p) for p in self._pm.hook.llama_orch_placement_policy()])

    def journal_stores(self) -> dict[str, StoreFactory]:
        """Store factories by URL scheme."""
        return _unique(
            "journal store",
            [(scheme, factory) for schemes, factory in self._pm.hook.llama_orch_journal_store() for scheme in schemes],
        )

    def names(self) -> list[str]:
        """Names of the registered plugins, sorted."""
        return sorted(name for name, plugin in self._pm.list_name_plugin() if plugin is not None)


def _unique(what: str, offers: Iterable[tuple[str, V]]) -> dict[str, V]:
    found: dict[str, V] = {}
    for name, offer in offers:
        if name in found:
            msg = f"two plugins offer the {what} {name!r}"
            raise ConfigError(msg, remedy="Uninstall one of them.")
        found[name] = offer
    return dict(sorted(found.items()))
