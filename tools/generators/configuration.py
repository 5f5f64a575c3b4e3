"""docs/reference/configuration.md from core/settings.py."""

from __future__ import annotations

import msgspec
from msgspec import inspect

from llama_orch.cli.config_types import settings_type, takes
from llama_orch.core.field_comments import field_comments

_HEAD = """\
<!-- Generated from core/settings.py by `make generate`; the comments there are the meanings here. -->

# Configuration

One YAML or TOML file, `LLORCH_*` variables, flags: a flag wins over a variable, that over the file, that over the default. Every
key can be set in each way: `journal.commit_window_ms` in the file is `LLORCH_JOURNAL__COMMIT_WINDOW_MS` in the environment and
`--set journal.commit_window_ms=2` on the command line; a list or table is YAML there too. An unknown key or a wrong value is an
error that names the place. Relative paths are relative to the file that holds them.

The file is the one that `--config` or `LLORCH_CONFIG` names, else `config.yaml`, `config.yml` or `config.toml` in the user's
configuration directory (`~/.config/llama-orch` on Linux), else none. `llama-orch config check` checks it,
[the JSON Schema](config.schema.json) lets an editor do so.
"""


def outputs() -> dict[str, bytes]:
    """The page as bytes, under its path."""
    return {"docs/reference/configuration.md": (_HEAD + "".join(_tables(settings_type(), ""))).encode()}


def _tables(kind: inspect.StructType, key: str) -> list[str]:
    """A table for the plain keys of a level, then those of the levels below it."""
    described = field_comments(kind.cls)
    plain, below = [], []
    for field in kind.fields:
        name = f"{key}.{field.encode_name}" if key else field.encode_name
        inner = field.type.item_type if isinstance(field.type, inspect.ListType) else field.type
        if isinstance(inner, inspect.StructType):
            below.append((inner, name + ("[]" if inner is not field.type else "")))
            continue
        row = (f"`{name}`", takes(field.type), _default(field), described.get(field.encode_name, ""))
        plain.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |\n")
    title = f"`{key}`" if key else "The top level"
    text = f"\n## {title}\n\n{(kind.cls.__doc__ or '').strip()}\n\n| key | takes | default | meaning |\n|---|---|---|---|\n"
    parts = [text + "".join(plain)] if plain else []
    for inner, name in below:
        parts += _tables(inner, name)
    return parts


def _default(field: inspect.Field) -> str:
    if field.required:
        return "(must be set)"
    value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    return f"`{msgspec.json.encode(value).decode()}`"
