"""A journal's tasks as a trace: simulated again with the same configuration they go where they went (DET-4)."""

from __future__ import annotations

import msgspec
import pytest

from llama_orch.core.events.task import TaskPlaced
from llama_orch.core.journal.replay import records_of
from llama_orch.core.ports import JournalStore
from llama_orch.simulator.baseline import first_come_first_served
from llama_orch.simulator.recorded import trace_of
from llama_orch.simulator.rig import reference_rig
from llama_orch.simulator.trace import TraceError, TraceTask, built_in, read_trace
from llama_orch.simulator.world import World


def decisions(store: JournalStore) -> list[tuple[int, str, str]]:
    """When which pool was chosen, and why."""
    return [
        (record.time_ns, record.payload.pool_id, record.payload.decision.decision_reason)
        for frame_no, epoch, first_seq, _, facts in store.facts(1)
        for record in (records_of(frame_no, epoch, first_seq, facts) if facts else ())
        if isinstance(record.payload, TaskPlaced)
    ]


def test_the_same_configuration_makes_every_recorded_decision_again() -> None:
    lived = World(reference_rig(), read_trace(built_in()["poisson"])[:150])
    lived.run()
    recorded = trace_of(lived.store)
    assert len(recorded) == 150
    # An arrival is told in milliseconds from the first one.
    shift_ms = lived.trace[0].at_ms
    moved = [msgspec.structs.replace(t, at_ms=t.at_ms - shift_ms) for t in lived.trace]
    assert [(t.model, t.prompt_tokens, t.output_tokens, t.priority) for t in recorded] == [
        (t.model, t.prompt_tokens, t.output_tokens, t.priority) for t in moved
    ]
    first, second = World(reference_rig(), moved), World(reference_rig(), recorded)
    first.run()
    second.run()
    assert decisions(first.store) == decisions(second.store)
    assert len(decisions(first.store)) == 150


def test_another_policy_of_loading_decides_differently() -> None:
    trace = read_trace(built_in()["abcabc"])[:30]
    ours, theirs = World(reference_rig(), trace), World(reference_rig(), trace, planner=first_come_first_served)
    ours.run()
    theirs.run()
    assert decisions(ours.store) != decisions(theirs.store)


def test_turns_of_a_session_share_what_came_before() -> None:
    trace = [
        TraceTask(n=0, model="chat-7g", prompt_tokens=100, output_tokens=20, session="s"),
        TraceTask(n=1, after=0, delay_ms=500, model="chat-7g", prompt_tokens=150, output_tokens=30, session="s"),
        TraceTask(n=2, at_ms=10, model="nobody-serves-this"),
    ]
    world = World(reference_rig(), trace)
    world.run()
    first, second = trace_of(world.store)
    assert (first.shared_tokens, second.shared_tokens) == (0, 120)
    assert first.session == second.session != ""
    assert second.at_ms > 500


def test_a_journal_without_tasks_makes_no_trace() -> None:
    world = World(reference_rig(), [TraceTask(n=0, model="nobody-serves-this")])
    world.run()
    with pytest.raises(TraceError, match="holds no task"):
        trace_of(world.store)
