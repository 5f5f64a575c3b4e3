"""The key of an engine's server, from the environment: no configuration holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .. import ConfigError


def authorization(config: Mapping[str, Any]) -> dict[str, str]:
    """The header that carries the key that the variable ``api_key_env`` names; none where none is named.

    Raises:
        ConfigError: the variable is not set, or holds what no header can.
    """
    variable = str(config.get("api_key_env") or "")
    if not variable:
        return {}
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable():
        msg = f"the environment variable {variable} " + ("holds no key" if key else "is not set")
        remedy = "Set it to the server's API key where the orchestrator is started."
        raise ConfigError(msg, field="provisioning.options.api_key_env", got=variable, remedy=remedy)
    return {"Authorization": f"Bearer {key}"}
