"""What an engine is started with: settings become the configuration of its plugin, with the files and programs it needs."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from .preparing import Order, Prepared, Progress


class Outfitter:
    """Prepares engines whose program and model are there already.

    Args:
        launched: names of engines that are started as processes, unless they are external.
        models: names of the configuration and what they stand for.
    """

    def __init__(self, launched: Container[str], models: Mapping[str, str]) -> None:
        self._launched = launched
        self._models = models

    def prepare(self, order: Order, *, progress: Progress, cancelled: threading.Event) -> Prepared:
        """See :class:`~llama_orch.pools.preparing.Preparer`."""
        config = config_of(order, launched=is_launched(order, self._launched))
        if config["launched"]:
            config["model_path"] = str(model_path(order.model, self._models))
        return Prepared(config=config)


def is_launched(order: Order, launchers: Container[str]) -> bool:
    """Whether the order's engine is a process that is started here."""
    return order.settings.provisioning.mode != "external" and order.settings.engine in launchers


def config_of(order: Order, *, launched: bool) -> dict[str, Any]:
    """What an engine's plugin gets, but for ``url``, ``port`` and what was prepared."""
    settings = order.settings
    provisioning = settings.provisioning
    return {
        **provisioning.options,
        "model": settings.model,
        "alias": settings.model,
        "slots": settings.slots,
        "ctx": settings.ctx,
        "threads": provisioning.threads,
        "device": settings.devices,
        "devices": list(order.devices),
        "tensor_split": list(settings.tensor_split),
        "options": provisioning.options,
        "env": dict(provisioning.env),
        "launched": launched,
    }


def model_path(model: str, aliases: Mapping[str, str]) -> Path:
    """The file of a model: through ``models`` of the configuration, the bundled one, or a path (``file:`` or plain)."""
    model = aliases.get(model, model)
    if model == "haiku":
        from .. import haiku

        try:
            return haiku.model_path()
        except FileNotFoundError as error:
            # The launcher names the path in its own error, as for every model.
            return Path(str(error.filename or "haiku.gguf"))
    return Path(model.removeprefix("file:")).expanduser()
