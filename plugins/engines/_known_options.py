"""Keys of ``provisioning.options`` that an engine does not have are refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from .. import ConfigError


def require_known(config: Mapping[str, Any], options: Mapping[str, str], engine: str) -> None:
    """See that a pool's options are all known.

    Args:
        config: of the plugin; ``options`` holds what the pool's settings say.
        options: the keys that the engine has, and what each does.
        engine: its name.

    Raises:
        ConfigError: one is not.
    """
    for key in config.get("options") or {}:
        if key not in options:
            near = difflib.get_close_matches(str(key), options, 1)
            meant = f"; the nearest is {near[0]}" if near else f"; it takes {', '.join(options)}"
            msg = f"provisioning.options.{key} is not known to {engine}{meant}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=key)
