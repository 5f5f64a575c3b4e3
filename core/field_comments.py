"""The ``#:`` comments above the fields of a struct: what schemas and reference pages say of them."""

from __future__ import annotations

import inspect
import re

_FIELD = re.compile(r"^    (?P<name>[a-z][a-z0-9_]*): ")


def field_comments(cls: type) -> dict[str, str]:
    """The comment above each field of a class and of those that it inherits from, by the field's name."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # built in, or made at run time
            continue
        above: list[str] = []
        for line in source.splitlines():
            if line.startswith("    #: "):
                above.append(line.removeprefix("    #: "))
                continue
            field = _FIELD.match(line)
            if field and above:
                found[field["name"]] = " ".join(above)
            above = []
    return found
