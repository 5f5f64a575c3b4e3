"""JSON Schema of the configuration, with the settings' own comments as descriptions."""

from __future__ import annotations

from typing import Any

import msgspec

from ..core import auth_settings, settings
from ..core.field_comments import field_comments


def settings_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) that editors complete and check a configuration with."""
    (_root,), definitions = msgspec.json.schema_components([settings.Settings], ref_template="#/$defs/{name}")
    for name, definition in definitions.items():
        described = field_comments(getattr(auth_settings if hasattr(auth_settings, name) else settings, name))
        for field, below in definition.get("properties", {}).items():
            if field in described:
                below["description"] = described[field]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of llama-orch",
        "$ref": "#/$defs/Settings",
        "$defs": definitions,
    }
