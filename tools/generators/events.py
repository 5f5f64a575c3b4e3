"""docs/reference/events.md from the event registry."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llama_orch.core.field_comments import field_comments
from llama_orch.core.registry import EventType, event_types, load_all

_HEAD = """\
<!-- Generated from core/events/ by `make generate`; edit the declarations there. -->

# Events

What the journal holds, one declaration per event. *Durable* events are on disk (fsynced) before anybody is told of them.
What engines say is kept beside them in entries, see [the journal](../explanation/index.md).

"""


def outputs() -> dict[str, bytes]:
    """The page as bytes, under its path."""
    load_all()
    types = list(event_types())
    schemas, definitions = msgspec.json.schema_components([t.cls for t in types], ref_template="#/{name}")
    parts = [_HEAD, "| event | stream | durable | meaning |\n|---|---|---|---|\n"]
    for kind in types:
        parts.append(
            f"| [`{kind.name}`](#{_anchor(kind)}) | {_stream(kind)} | {_yes(kind.durable)} | {_said(kind)} |\n"
        )
    for kind, schema in zip(types, schemas, strict=True):
        parts.append(_section(kind, _resolved(schema, definitions), definitions))
    return {"docs/reference/events.md": "".join(parts).encode()}


def _section(kind: EventType, schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    comments = field_comments(kind.cls)
    required = set(schema.get("required", []))
    text = f"\n## {kind.name}\n\nVersion {kind.version}. {_said(kind)}\n\n| field | type | meaning |\n|---|---|---|\n"
    for name, field in schema.get("properties", {}).items():
        optional = "" if name in required else ", optional"
        text += f"| `{name}` | {_type(field)}{optional} | {_cell(comments.get(name, ''))} |\n"
    return text


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    found: dict[str, Any] = definitions[reference.removeprefix("#/")] if reference else schema
    return found


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).removeprefix("#/")
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object":
        return f"map to {_type(field.get('additionalProperties') or {})}"
    return str(field.get("type", "any"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _said(kind: EventType) -> str:
    return re.sub(r"\s+", " ", (kind.cls.__doc__ or "").strip())


def _stream(kind: EventType) -> str:
    return f"`{kind.stream}:<{kind.key}>`" if kind.key else f"`{kind.stream}`"


def _anchor(kind: EventType) -> str:
    return kind.name.replace(".", "")


def _yes(value: bool) -> str:
    return "yes" if value else ""
