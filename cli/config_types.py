"""Checks plain values against the settings' types, and says in words what a key takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec import inspect

from ..core.settings import MONEY, PRICE, PRICE_OR_NONE, Settings
from .redact import shown

#: What a key takes, where its type alone would not tell a person.
_IN_WORDS = {
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "a name of at most 64 letters, digits, '.', '_' or '-', the first a letter or digit",
    PRICE: 'a decimal with at most six places, in quotes, such as "0.15"',
    PRICE_OR_NONE: 'a decimal with at most six places, in quotes, such as "0.15", or nothing',
    MONEY: 'a decimal with at most twelve places, in quotes, such as "2.50"',
}
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: who set it, which key, what it got, and what is wrong with it."""

    where: str
    got: object
    key: str
    message: str

    @property
    def shown(self) -> str:
        """What it got, without secrets."""
        return shown(self.key, self.got) if self.got != "" else ""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where and self.where != self.key else ""
        return f"{where}{self.key} {self.message}" if self.key else f"{where}{self.message}"


@cache
def settings_type() -> inspect.StructType:
    """The type of the whole configuration."""
    kind = inspect.type_info(Settings)
    assert isinstance(kind, inspect.StructType)
    return kind


def checked(kind: inspect.Type, value: Any, key: str, origins: Mapping[str, str], faults: list[Fault]) -> Any:
    """``value`` if it fits ``kind``; what does not is left out and told in ``faults``."""
    where = _origin(origins, key)
    match kind:
        case inspect.StructType():
            return _struct(kind, value, key, origins, faults)
        case inspect.ListType():
            if isinstance(value, list):
                return [checked(kind.item_type, item, f"{key}[{n}]", origins, faults) for n, item in enumerate(value)]
        case inspect.DictType():
            if isinstance(value, dict):
                for name in value:
                    if not isinstance(name, str):
                        faults.append(
                            Fault(
                                _origin(origins, f"{key}.{name}"),
                                name,
                                f"{key}.{name}",
                                "must be a text key: put quotes around it",
                            )
                        )
                return {
                    name: checked(kind.value_type, item, f"{key}.{name}", origins, faults)
                    for name, item in value.items()
                    if isinstance(name, str)
                }
        case inspect.AnyType():
            return value
        case inspect.UnionType():
            return value if value is None else checked(_real(kind), value, key, origins, faults)
        case _ if _fits(kind, value):
            return value
    faults.append(Fault(where, value, key or "the configuration", f"got {shown(key, value)}, takes {takes(kind)}"))
    return value


def _real(kind: inspect.UnionType) -> inspect.Type:
    """What a key takes that may also have nothing."""
    (real,) = (one for one in kind.types if not isinstance(one, inspect.NoneType))
    return real


def _struct(kind: inspect.StructType, value: Any, key: str, origins: Mapping[str, str], faults: list[Fault]) -> Any:
    if not isinstance(value, dict):
        faults.append(
            Fault(
                _origin(origins, key),
                value,
                key or "the configuration",
                f"got {shown(key, value)}, takes {takes(kind)}",
            )
        )
        return value
    fields = {field.encode_name: field for field in kind.fields}
    clean: dict[str, Any] = {}
    for name, item in value.items():
        below = f"{key}.{name}" if key else str(name)
        if name not in fields:
            hint = nearest(str(name), fields) or f"; known are {', '.join(fields)}"
            faults.append(Fault(_origin(origins, below), "", below, f"is no setting{hint}"))
        else:
            clean[name] = checked(fields[name].type, item, below, origins, faults)
    for name, field in fields.items():
        if field.required and name not in value:
            faults.append(
                Fault(
                    _origin(origins, key),
                    "",
                    f"{key}.{name}" if key else name,
                    f"is missing; it takes {takes(field.type)}",
                )
            )
    return clean


def _fits(kind: inspect.Type, value: Any) -> bool:
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return (
                isinstance(value, int)
                and not isinstance(value, bool)
                and (kind.ge is None or value >= kind.ge)
                and (kind.le is None or value <= kind.le)
            )
        case inspect.StrType():
            return isinstance(value, str) and (kind.pattern is None or re.search(kind.pattern, value) is not None)
        case inspect.LiteralType():
            return value in kind.values and not isinstance(value, bool)
        case _:
            raise AssertionError(f"no rule for a setting of type {kind}")


def takes(kind: inspect.Type) -> str:
    """What a key takes, in words."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            if kind.ge is not None and kind.le is not None:
                return f"an integer from {kind.ge} to {kind.le}"
            return "an integer" + (f" of at least {kind.ge}" if kind.ge is not None else "")
        case inspect.StrType():
            return _IN_WORDS.get(kind.pattern, f"a text that matches {kind.pattern}") if kind.pattern else "a text"
        case inspect.LiteralType():
            return " or ".join(str(value) for value in kind.values)
        case inspect.ListType():
            return f"a list, each entry {takes(kind.item_type)}"
        case inspect.StructType():
            return f"a table with the keys {', '.join(field.encode_name for field in kind.fields)}"
        case inspect.DictType():
            return "a table"
        case inspect.UnionType():
            return f"{takes(_real(kind))}, or null"
        case _:
            return "any value"


def type_at(kind: inspect.Type, path: Sequence[str]) -> inspect.Type | None:
    """The type of the key at ``path``, or ``None`` where there is no such key."""
    for part in path:
        if isinstance(kind, inspect.StructType):
            found = [field.type for field in kind.fields if field.encode_name == part]
            if not found:
                return None
            kind = found[0]
        elif isinstance(kind, inspect.DictType) and part:
            kind = kind.value_type
        else:
            return None
    return kind


def leaf_keys(kind: inspect.Type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys, tables left out."""
    if isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from leaf_keys(field.type, (*path, field.encode_name))
    else:
        yield path


def parse_text(kind: inspect.Type, text: str) -> Any:
    """The value that the text of a variable or flag means; text that means none is left as it is, to be refused."""
    match kind:
        case inspect.StrType() | inspect.LiteralType():
            return text
        case inspect.BoolType():
            low = text.strip().lower()
            return True if low in _TRUE else False if low in _FALSE else text
        case inspect.IntType():
            return int(text) if re.fullmatch(r"\s*[+-]?\d{1,19}\s*", text) else text
        case inspect.ListType(item_type=inspect.StrType()) if not text.strip().startswith("["):
            return [part.strip() for part in text.split(",") if part.strip()]
        case _:
            import yaml

            try:
                return yaml.safe_load(text)
            except yaml.YAMLError:
                return text


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing when no name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _origin(origins: Mapping[str, str], key: str) -> str:
    """Who set a key: itself, or the nearest level above it that is known."""
    while key not in origins and key:
        key = re.sub(r"(\.[^.\[]*|\[\d+\])$", "", key) if ("." in key or "[" in key) else ""
    return origins.get(key, "")
