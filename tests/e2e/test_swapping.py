"""Real llama.cpp pools that do not fit together: nothing is lost, nothing is placed on an unready pool."""

from __future__ import annotations

from pathlib import Path

from benchmarks.swapping import run


def test_three_models_take_turns_on_memory_that_holds_two(tmp_path: Path) -> None:
    found = run(tmp_path, clients=4, tasks=48)
    assert found.faults == []
    assert found.completed == found.tasks == 48
    # Two fit, so that three models cannot be served without at least one swap.
    assert all(found.loads.values())
    assert sum(found.loads.values()) > len(found.loads) - 1
    assert found.held_mib <= found.cap_mib
