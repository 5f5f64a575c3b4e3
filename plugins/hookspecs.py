"""Every hook that a plugin may implement.

Hooks are called once, when the server starts; they are synchronous, have no side effects, and return
factories. What is asynchronous lives in the objects that the factories make. No hook runs per token.
"""

from __future__ import annotations

import pluggy

from ..core.engine_ports import EngineFactory, LauncherFactory
from ..core.ports import PlacementPolicy, StoreFactory

hookspec = pluggy.HookspecMarker("llama_orch")


@hookspec
def llama_orch_engine() -> tuple[str, EngineFactory]:  # type: ignore[empty-body]
    """Called at start. Answers the engine's name (as pools name it in ``engine:``) and a factory.

    The factory gets the pool's settings as a mapping (``url`` and whatever keys the plugin documents) and
    returns an :class:`~llama_orch.plugins.Engine`. It must not connect yet.
    """


@hookspec
def llama_orch_launcher() -> tuple[str, LauncherFactory]:  # type: ignore[empty-body]
    """Called at start. Answers an engine's name and a function that plans how its process is started.

    The function gets the pool's settings (``model_path``, ``port``, ``slots``, ``ctx``, ``devices``, ``provisioned``, …)
    and returns a :class:`~llama_orch.plugins.LaunchPlan`; it starts nothing itself.
    """


@hookspec
def llama_orch_placement_policy() -> PlacementPolicy:  # type: ignore[empty-body]
    """Called at start. Answers a placement policy; configuration picks one by its ``name``.

    ``decide`` must be pure: same snapshot and task, same decision, without clock, randomness or I/O.
    """


@hookspec
def llama_orch_journal_store() -> tuple[tuple[str, ...], StoreFactory]:  # type: ignore[empty-body]
    """Called at start. Answers the database URL schemes it serves (``("sqlite",)``) and a factory.

    The factory gets the URL and options and returns a :class:`~llama_orch.plugins.JournalStore`; it must not
    open the database yet.
    """
