"""A session, or a prompt that begins alike, goes back to the slot that worked on it last (SES-2)."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core.events.lease import LeaseGranted
from llama_orch.core.projections.affinity import Affinity
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.services.bodies import RequestBody, prefixes
from llama_orch.core.types import ChatMessage

from ...support.stage import Stage, on_stage

ONE, TWO = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def _granted(stage: Stage, task_id: str) -> LeaseGranted:
    (lease,) = stage.payloads(LeaseGranted, task_id)
    return lease  # type: ignore[no-any-return]


def _ends(stage: Stage, task_id: str) -> None:
    attempt = stage.attempt(task_id)
    attempt.start()
    attempt.end()
    stage.settle()


def _runs(stage: Stage, prompt: str = "hi", **fields: Any) -> LeaseGranted:
    task_id = stage.submit(prompt, **fields).task_id
    lease = _granted(stage, task_id)
    _ends(stage, task_id)
    return lease


def test_a_session_returns_to_its_slot_and_others_leave_it_alone() -> None:
    with on_stage(slots={"p": 3}) as stage:
        first = _runs(stage, session_id=ONE)
        assert not first.warm
        other = _runs(stage, session_id=TWO)
        assert other.slot != first.slot
        assert _runs(stage).slot not in (first.slot, other.slot)
        again = _runs(stage, session_id=ONE)
        assert (again.slot, again.warm) == (first.slot, True)


def test_a_session_whose_slot_is_taken_takes_another_and_is_not_warm() -> None:
    with on_stage(slots={"p": 2}) as stage:
        first = _runs(stage, session_id=ONE)
        _runs(stage, session_id=TWO)
        blockers = [stage.submit(f"b{n}").task_id for n in range(2)]
        on_first = next(t for t in blockers if _granted(stage, t).slot == first.slot)
        (on_other,) = [t for t in blockers if t != on_first]
        waiting = stage.submit(session_id=ONE).task_id
        _ends(stage, on_other)
        lease = _granted(stage, waiting)
        assert (lease.slot == first.slot, lease.warm) == (False, False)
        _ends(stage, on_first)
        _ends(stage, waiting)


def test_an_engine_that_was_started_again_is_cold() -> None:
    with on_stage(slots={"p": 2}) as stage:
        _runs(stage, session_id=ONE)
        properties = stage.engines["p"].own_properties()
        with stage.loop.running():
            stage.host.ready("p", properties, generation=2)
        stage.settle()
        assert not _runs(stage, session_id=ONE).warm


def test_a_conversation_without_a_session_is_known_by_how_it_begins() -> None:
    with on_stage(slots={"p": 3}) as stage:
        first = _runs(stage, "x" * 300)
        _runs(stage, "y" * 300)
        again = _runs(stage, "x" * 300 + "and more")
        assert (again.slot, again.warm) == (first.slot, True)


def test_what_others_own_is_not_warm() -> None:
    with on_stage(slots={"p": 2}) as stage:
        _runs(stage, "x" * 300, owner="a")
        assert not _runs(stage, "x" * 300, owner="b").warm


def test_of_equal_pools_the_one_that_holds_the_session_is_chosen() -> None:
    with on_stage(slots={"a": 2, "b": 2}) as stage:
        blocker = stage.submit().task_id
        first = _runs(stage, session_id=ONE)
        _ends(stage, blocker)
        assert _runs(stage, session_id=ONE).pool_id == first.pool_id


@given(st.text(max_size=3000), st.text(max_size=2000))
def test_prompts_that_begin_alike_share_the_digests_of_that(common: str, rest: str) -> None:
    short, long = prefixes(RequestBody(prompt=common)), prefixes(RequestBody(prompt=common + rest))
    assert long[len(long) - len(short) :] == short
    assert len(long) <= 6


def test_messages_are_known_by_how_they_begin() -> None:
    system = ChatMessage(role="system", content="s" * 300)
    one = prefixes(RequestBody(messages=[system, ChatMessage(role="user", content="a" * 900)]))
    two = prefixes(RequestBody(messages=[system, ChatMessage(role="user", content="b" * 900)]))
    assert one[-1] == two[-1]
    assert one[0] != two[0]


@given(
    st.lists(
        st.tuples(st.sampled_from("pq"), st.integers(0, 3), st.lists(st.sampled_from("abcdef"), max_size=3)),
        max_size=40,
    )
)
def test_a_key_is_where_it_was_last_unless_something_else_is_there_now(
    grants: list[tuple[str, int, list[str]]],
) -> None:
    projection, where, content = Affinity(), {}, {}
    for seq, (pool, slot, keys) in enumerate(grants, 1):
        event = LeaseGranted(lease_id=str(seq), pool_id=pool, task_id="t", attempt=1, slot=slot, keys=keys)
        record = Recorded(seq, 1, 1, f"pool:{pool}", seq, "lease.granted", seq, "a", "", event)
        for handler in (projection.handlers()[LeaseGranted],):
            handler(record)
        for key in content.pop((pool, slot), []):
            if where.get(key) == (pool, slot):
                del where[key]
        if keys:
            content[pool, slot] = keys
        for key in keys:
            where[key] = (pool, slot)
    found = {key: (warm.pool_id, warm.slot) for key, warm in projection.by_key.items()}
    assert found == where
    again = Affinity()
    again.load(projection.dump())
    assert again.dump() == projection.dump()
