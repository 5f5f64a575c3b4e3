"""docs/reference/config.schema.json from core/settings.py."""

from __future__ import annotations

import orjson

from llama_orch.cli.config_schema import settings_schema


def outputs() -> dict[str, bytes]:
    """The schema as bytes, under its path."""
    schema = orjson.dumps(settings_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return {"docs/reference/config.schema.json": schema}
