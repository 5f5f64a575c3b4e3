"""The engine `parrot` and the placement policy `first-fit`."""

from __future__ import annotations

from llama_orch.plugins import EngineFactory, PlacementPolicy, hookimpl

from .engine import Parrot
from .policy import FirstFit


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """The engine."""
    return "parrot", Parrot


@hookimpl
def llama_orch_placement_policy() -> PlacementPolicy:
    """The policy."""
    return FirstFit()
