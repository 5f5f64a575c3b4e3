"""What a projection is: handlers by event type, and a state that can be dumped and loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import msgspec

H = TypeVar("H", bound=Callable[..., None])

_FOLDS: dict[object, tuple[type, ...]] = {}


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """One event with its envelope, as appended or replayed."""

    seq: int
    frame_no: int
    epoch: int
    stream: str
    position: int
    name: str
    time_ns: int
    actor: str
    correlation: str
    payload: Any


class EntriesRecorded(msgspec.Struct, frozen=True, gc=False):
    """One chunk of entries: what the fold of tokens needs, without their text."""

    frame_no: int
    epoch: int
    task_no: int
    attempt: int
    first_ordinal: int
    entries: int
    tokens: int
    #: microseconds from the previous entry to the first of the chunk
    first_us: int
    #: microseconds from the previous entry to the last of the chunk
    elapsed_us: int


def on(*types: type) -> Callable[[H], H]:
    """Mark a method as the handler of these event types."""

    def mark(method: H) -> H:
        _FOLDS[method] = types
        return method

    return mark


class Projection:
    """State that events build. Subclasses set ``name`` and ``version`` and mark handlers with :func:`on`.

    A handler reads only its own projection, so that the order of projections does not matter.
    """

    name: ClassVar[str]
    #: raise it when the meaning of the dumped state changes; older snapshots are then not used
    version: ClassVar[int] = 1
    _handlers: ClassVar[dict[type, str]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._handlers = {
            event: attribute
            for attribute, member in vars(cls).items()
            for event in (_FOLDS.get(member, ()) if callable(member) else ())
        }

    def handlers(self) -> dict[type, Callable[[Recorded], None]]:
        """Bound handlers by event type."""
        return {event: getattr(self, attribute) for event, attribute in self._handlers.items()}

    def fold_entries(self, chunk: EntriesRecorded) -> None:
        """Fold a chunk of entries; only projections of live tasks care."""

    def dump(self) -> Any:
        """The state as JSON-like data, the same for the same events."""
        raise NotImplementedError

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        raise NotImplementedError
