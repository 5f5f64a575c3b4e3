"""Strategies: any object that a struct of this project, an event above all, may be."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that events use."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is str:
        return TEXT
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return NUMBERS
    if annotation is type(None):
        return st.none()
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return structs(annotation)
    return st.one_of([values(a) for a in arguments])


def structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any object of an event's type."""
    return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})
