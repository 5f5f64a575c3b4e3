"""Everything that happens to pools and hosts is one sentence in the log."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_orch.api.log_pools import SENTENCES
from llama_orch.api.logs import LEVELS
from llama_orch.core.events.pool import PoolUnready
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.registry import EventType, event_types, load_all

from ...support.structs import structs

load_all()
#: told by other lines: what configuration says, and how far a host's facts were taken
UNSAID = {"pool.declared", "pool.retired", "outbox.received"}
TOLD = [kind for kind in event_types() if kind.stream in ("pool", "host") and not kind.name.startswith("lease.")]


def _record(payload: object, name: str) -> Recorded:
    return Recorded(1, 1, 1, "s", 0, name, 1, "a", "", payload)


@pytest.mark.parametrize("kind", [kind for kind in TOLD if kind.name not in UNSAID], ids=lambda kind: kind.name)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_event_of_pools_and_hosts_is_a_sentence(kind: EventType, data: st.DataObject) -> None:
    payload = data.draw(structs(kind.cls))
    level, fields, human = SENTENCES[kind.cls](_record(payload, kind.name))
    assert level in LEVELS
    assert len(human.split()) >= 3
    assert "pool_id" in fields or "host" in fields


def test_a_pool_that_is_as_it_is_meant_to_be_is_no_warning() -> None:
    def level(cause: str) -> str:
        return SENTENCES[PoolUnready](_record(PoolUnready(pool_id="p", cause=cause), "pool.unready"))[0]

    assert [level(cause) for cause in ("starting", "unloaded", "vram-oom")] == ["info", "info", "warning"]


def test_what_a_person_can_do_and_when_it_is_tried_again_is_said() -> None:
    event = PoolUnready(pool_id="p", cause="vram-oom", detail="no room", advice="Lower ctx.", retry_ms=500)
    human = SENTENCES[PoolUnready](_record(event, "pool.unready"))[2]
    assert human == "Pool p is not ready (vram-oom): no room. Lower ctx. It is tried again in 500 ms."
