"""JSON Schema of the configuration, with the settings' own comments as descriptions."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from ..core import settings

_FIELD = re.compile(r"^    (?P<name>[a-z_]+): ")


def settings_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) that editors complete and check a configuration with."""
    (_root,), definitions = msgspec.json.schema_components([settings.Settings], ref_template="#/$defs/{name}")
    for name, definition in definitions.items():
        described = comments(getattr(settings, name))
        for field, below in definition.get("properties", {}).items():
            if field in described:
                below["description"] = described[field]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of llama-orch",
        "$ref": "#/$defs/Settings",
        "$defs": definitions,
    }


def comments(cls: type) -> dict[str, str]:
    """The ``#:`` comment above each field of a class, by the field's name."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if line.startswith("    #: "):
            above.append(line.removeprefix("    #: "))
        else:
            field = _FIELD.match(line)
            if field and above:
                found[field["name"]] = " ".join(above)
            above = []
    return found
