"""Finds the resources: every class with :func:`~llama_orch.api.operations.resource` in the two packages of routes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from .operations import Resource

PACKAGES = ("resources", "compat")


def resource_types() -> list[type[Resource]]:
    """All resources, by path.

    :raises ValueError: two of them serve one path.
    """
    root = __package__ or "llama_orch.api"
    found: dict[str, type[Resource]] = {}
    for name in PACKAGES:
        package = importlib.import_module(f"{root}.{name}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for _, member in inspect.getmembers(module, inspect.isclass):
                if not issubclass(member, Resource) or not member.path or member.__module__ != module.__name__:
                    continue
                if member.path in found:
                    msg = f"{member.__qualname__} and {found[member.path].__qualname__} both serve {member.path}"
                    raise ValueError(msg)
                found[member.path] = member
    return [found[path] for path in sorted(found)]
