"""The default policy: pure, explained, and as PLC-1 to PLC-3 say."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from llama_orch.core.types import PlacementRequest, PoolView, TaskView
from llama_orch.plugins import InvalidParamsError, PlacementSnapshot
from llama_orch.plugins.policy.placement import DefaultPolicy

POLICY = DefaultPolicy()
GIB = 2**30


def view(name, **changes):
    pool = PoolView(
        pool_id=name,
        engine="llamacpp",
        model_ref="m",
        ready=True,
        draining=False,
        slots=2,
        leases=0,
        ctx=4096,
        device_mask="cpu",
        decode_mtok_s=50_000,
    )
    return msgspec.structs.replace(pool, **changes)


def task(**changes):
    return msgspec.structs.replace(TaskView(task_id="t", model_ref="m", max_tokens=100), **changes)


def asks(**placement):
    return task(placement=PlacementRequest(**placement))


def ask(pools, wanted=None):
    return POLICY.decide(PlacementSnapshot(now_ns=0, pools=tuple(pools)), wanted or task())


def decide(pools, wanted=None):
    """A decision that places the task."""
    decision = ask(pools, wanted)
    assert decision is not None
    return decision


def test_the_pool_that_ends_the_task_first_is_taken():
    decision = decide([view("slow", decode_mtok_s=10_000), view("fast", decode_mtok_s=100_000)])
    assert decision.selected_pool_id == "fast"
    assert decision.scores_ms == {"fast": 1000, "slow": 10_000}
    assert decision.tie_breakers_applied == []
    assert (decision.policy, decision.policy_version) == ("default", "2")


def test_what_others_still_decode_delays_the_end():
    decision = decide([view("busy", leases=1, tokens_outstanding=500), view("idle")])
    assert decision.selected_pool_id == "idle"
    assert decision.scores_ms["busy"] > decision.scores_ms["idle"]


@pytest.mark.parametrize(
    "name, excluded, reason",
    [
        ("ready", view("b", ready=False, cause="starting"), "not ready: starting"),
        ("draining", view("b", draining=True), "it is draining"),
        ("model", view("b", model_ref="other"), "serves other"),
        ("context", view("b", ctx=999), "1000 tokens do not fit 999"),
        ("slots", view("b", leases=2), "2 of 2 slots are taken"),
    ],
)
def test_a_filter_names_what_it_excluded_and_why(name, excluded, reason):
    decision = decide([view("a"), excluded], task(ctx_needed=1000))
    assert decision.selected_pool_id == "a"
    assert [(f.name, f.excluded) for f in decision.filters_applied] == [(name, {"b": reason})]
    assert decision.candidates_considered == ["a", "b"]


def test_a_task_that_wants_an_engine_gets_it():
    decision = decide([view("a"), view("b", engine="vllm")], task(engine="vllm"))
    assert decision.selected_pool_id == "b"
    assert decision.filters_applied[0].excluded == {"a": "runs llamacpp"}


def test_a_device_mask_matches_exactly():
    pools = [view("a", device_mask="GPU-1"), view("b", device_mask="GPU-1,GPU-2")]
    assert decide(pools, asks(require_device_mask="GPU-1,GPU-2")).selected_pool_id == "b"
    assert ask(pools, asks(require_device_mask="GPU-2")) is None


def test_a_pin_means_only_that_pool():
    decision = decide([view("a"), view("b", decode_mtok_s=1000)], asks(mode="pin", pin_pool_id="b"))
    assert (decision.selected_pool_id, decision.pinned) == ("b", True)
    assert decision.decision_reason == "pinned to b"


def test_a_pin_waits_for_its_pool():
    for busy in (view("b", leases=2), view("b", ready=False)):
        assert ask([view("a"), busy], asks(mode="pin", pin_pool_id="b")) is None


def test_an_unknown_pin_is_refused_with_the_names_there_are():
    with pytest.raises(InvalidParamsError) as caught:
        ask([view("a")], asks(mode="pin", pin_pool_id="nowhere"))
    assert caught.value.field == "placement.pin_pool_id"
    assert "a" in caught.value.what_to_do


def test_a_preference_wins_over_speed():
    decision = decide([view("a"), view("b", decode_mtok_s=1000)], asks(mode="prefer", prefer_pools=["b"]))
    assert decision.selected_pool_id == "b"
    assert decision.filters_applied[-1].excluded == {"a": "another pool is preferred"}
    assert decision.fallback_used is False


def test_a_preference_falls_back_only_where_that_is_allowed():
    pools = [view("a"), view("b", leases=2)]
    decision = decide(pools, asks(mode="prefer", prefer_pools=["b"]))
    assert (decision.selected_pool_id, decision.fallback_used) == ("a", True)
    assert "no preferred pool could take it" in decision.decision_reason
    assert ask(pools, asks(mode="prefer", prefer_pools=["b"], allow_fallback=False)) is None


def test_an_avoided_pool_is_never_taken():
    assert decide([view("a"), view("b")], asks(avoid_pools=["a"])).selected_pool_id == "b"
    assert ask([view("a")], asks(avoid_pools=["a"])) is None


@pytest.mark.parametrize(
    "rule, pools, wanted",
    [
        ("affinity", [view("a"), view("b", leases=1)], task(session_pool_id="b")),
        ("least_loaded", [view("a", leases=1), view("b")], task()),
        ("least_loaded", [view("a", leases=1, decode_mtok_s=50_400), view("b")], task()),
        ("least_loaded", [view("a", leases=1, free_bytes=20 * GIB), view("b", free_bytes=GIB)], task()),
        ("most_free_vram", [view("a", free_bytes=GIB), view("b", free_bytes=2 * GIB)], task()),
        ("most_free_vram", [view("a", decode_mtok_s=50_400), view("b", free_bytes=GIB)], task()),
        ("most_free_vram", [view("a", free_bytes=-1), view("b", free_bytes=GIB)], task()),
        ("tokens_per_second", [view("a", decode_mtok_s=50_000), view("b", decode_mtok_s=50_400)], task()),
        ("pool_id", [view("c"), view("b")], task()),
    ],
)
def test_ties_are_broken_in_a_fixed_order_and_the_rule_is_named(rule, pools, wanted):
    decision = decide(pools, wanted)
    assert decision.selected_pool_id == "b"
    assert decision.tie_breakers_applied == [rule]


def test_memory_that_differs_by_a_breath_decides_nothing():
    pools = [view("a", free_bytes=GIB), view("b", free_bytes=GIB + 1, decode_mtok_s=50_400)]
    assert decide(pools, task()).tie_breakers_applied == ["tokens_per_second"]


def test_a_shared_kv_cache_takes_no_task_that_does_not_fit_what_is_left():
    pools = [view("a", kv_tokens_free=99), view("b", leases=1, kv_tokens_free=100)]
    decision = decide(pools, task(ctx_needed=100))
    assert decision.selected_pool_id == "b"
    assert [f.name for f in decision.filters_applied] == ["kv_memory"]
    assert decision.filters_applied[0].excluded == {"a": "100 tokens do not fit the 99 that its KV cache has left"}
    assert decide([view("a", kv_tokens_free=-1)], task(ctx_needed=100)).selected_pool_id == "a"


def test_a_full_pool_means_waiting():
    assert ask([view("a", leases=2), view("b", leases=2)]) is None
    assert ask([]) is None


# --- properties ----------------------------------------------------------------------------------------------


def mostly(usual, *others):
    """The usual value three times in four, so that whole decisions stay possible."""
    return st.sampled_from([usual] * 3 * len(others) + list(others))


names = st.sampled_from(["a", "b", "c", "d", "e"])
pools = st.lists(
    st.builds(
        PoolView,
        pool_id=names,
        engine=mostly("llamacpp", "vllm"),
        model_ref=mostly("m", "other"),
        ready=mostly(True, False),
        draining=mostly(False, True),
        slots=st.integers(1, 3) | st.just(0),
        leases=mostly(0, 1, 2, 3),
        ctx=mostly(4096, 100, 0),
        device_mask=mostly("cpu", "GPU-1"),
        decode_mtok_s=st.sampled_from([0, 1, 10_000, 10_100, 10**9]),
        tokens_outstanding=st.integers(0, 5000),
    ),
    unique_by=lambda pool: pool.pool_id,
    min_size=1,
    max_size=5,
)
tasks = st.builds(
    TaskView,
    task_id=st.just("t"),
    model_ref=st.just("m"),
    engine=mostly("", "vllm"),
    ctx_needed=mostly(0, 100, 101),
    max_tokens=st.sampled_from([0, 1, 100_000]),
    session_pool_id=st.just("") | names,
    placement=st.builds(
        PlacementRequest,
        mode=mostly("auto", "prefer", "pin"),
        pin_pool_id=names,
        prefer_pools=st.lists(names, max_size=2),
        avoid_pools=st.lists(names, max_size=1),
        require_device_mask=mostly(None, "cpu"),
        allow_fallback=st.booleans(),
    ),
)


def outcome(pools, wanted):
    try:
        return ask(pools, wanted)
    except InvalidParamsError as error:
        return error.to_dict()


@given(pools, tasks)
def test_the_same_input_gives_the_same_decision_and_is_left_as_it_was(candidates, wanted):
    before = msgspec.json.encode([candidates, wanted])
    first = outcome(candidates, wanted)
    assert outcome(candidates, wanted) == first
    assert msgspec.json.encode([candidates, wanted]) == before


@given(pools.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))), tasks)
def test_the_order_of_the_pools_does_not_matter(orders, wanted):
    given_order, another = orders
    assert outcome(given_order, wanted) == outcome(another, wanted)


@given(pools, tasks)
def test_an_excluded_pool_is_never_taken_and_every_pool_is_accounted_for(candidates, wanted):
    decision = outcome(candidates, wanted)
    if decision is None or isinstance(decision, dict):
        return
    excluded = [name for record in decision.filters_applied for name in record.excluded]
    assert len(excluded) == len(set(excluded)), "excluded once, by the first filter that applies"
    assert decision.selected_pool_id not in excluded
    assert sorted([*excluded, *decision.scores_ms]) == decision.candidates_considered
    chosen = next(pool for pool in candidates if pool.pool_id == decision.selected_pool_id)
    assert chosen.ready
    assert chosen.leases < chosen.slots
    assert chosen.model_ref == wanted.model_ref
    assert chosen.pool_id not in wanted.placement.avoid_pools
    assert wanted.placement.mode != "pin" or chosen.pool_id == wanted.placement.pin_pool_id


@given(pools, tasks)
def test_waiting_means_that_no_pool_could_take_it(candidates, wanted):
    open_to_all = msgspec.structs.replace(wanted, placement=PlacementRequest(), engine="", ctx_needed=0)
    decision = ask(candidates, open_to_all)
    could = [
        pool
        for pool in candidates
        if pool.ready and not pool.draining and pool.model_ref == "m" and pool.leases < pool.slots
    ]
    assert (decision is None) == (not could)
