"""Marks on tests: which requirements a test stands for. Pages of the documentation are generated from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def covers(*requirements: str) -> Callable[[F], F]:
    """Say which requirements a test covers, by their ids (``"JRN-3"``)."""

    def mark(test: F) -> F:
        test.requirements = requirements  # type: ignore[attr-defined]
        return test

    return mark
