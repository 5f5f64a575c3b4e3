"""What services ask of whoever runs the engines."""

from __future__ import annotations

from typing import Protocol

from ..engine_ports import Engine, EngineProperties


class EngineDirectory(Protocol):
    """The engines of the pools that are ready."""

    def engine(self, pool_id: str) -> Engine | None:
        """The pool's engine; ``None`` while it is not ready."""
        ...

    def properties(self, pool_id: str) -> EngineProperties | None:
        """What the pool's engine said of itself when it became ready."""
        ...
