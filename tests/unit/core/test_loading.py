"""Models are loaded when tasks ask for them, where they fit, and make room for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from llama_orch.core.errors import PoolUnavailableError, PoolUnreadyError
from llama_orch.core.events.gpu import GpuObserved, GpuRecord
from llama_orch.core.events.model import ModelStaged
from llama_orch.core.events.pool import PoolLoading, PoolReady, PoolSized, PoolUnloading, PoolUnready
from llama_orch.core.settings import PoolSettings, Settings, SwapSettings, TimeoutSettings
from llama_orch.core.types import PlacementRequest

from ...support.stage import Stage

MIB = 1024 * 1024
BIG, SMALL = "GPU-big", "GPU-small"


def _settings(*models: str, devices: str = "auto", preload: bool = False, **swap: Any) -> Settings:
    return Settings(
        swap=SwapSettings(**swap),
        pools=[
            PoolSettings(
                id=f"p-{m}",
                engine="mock",
                model=m,
                devices=devices,
                preload=preload,
                timeouts=TimeoutSettings(idle_ms=0),
            )
            for m in models
        ],
    )


class Rig(Stage):
    """Two GPUs, and engines that are ready when a test says so."""

    def __init__(self, settings: Settings) -> None:
        names = {pool.id: 1 for pool in settings.pools}
        self._n = 0
        super().__init__(slots=names, settings=settings, ready=False, launched=frozenset({"mock"}))

    def tell(self, *events: object, host: str = "local") -> None:
        """The host tells."""
        numbered = []
        for event in events:
            self._n += 1
            numbered.append((self._n, event))
        with self.loop.running():
            self.services.pools.received(host, "boot", "one", numbered)
        self.settle()

    def gpus(self, **free_mib: int) -> None:
        """The host has these GPUs, with so much free of 24 and 12 GiB."""
        known = {BIG: 24_576, SMALL: 12_288}
        self.tell(
            GpuObserved(
                host="local",
                memory_total_mib=65_536,
                memory_available_mib=60_000,
                gpus=[
                    GpuRecord(
                        uuid=uuid, index=i, total_mib=total, used_mib=total - free_mib.get(uuid[4:], total), name=uuid
                    )
                    for i, (uuid, total) in enumerate(known.items())
                ],
            )
        )

    def size(self, model: str, mib: int) -> None:
        """The model needs so much."""
        self.tell(
            PoolSized(pool_id=f"p-{model}", weights_bytes=mib * MIB, kv_bytes=0, compute_bytes=0, overhead_bytes=0)
        )

    def pool(self, model: str) -> Any:
        """State of the model's pool."""
        return self.journal.head.pools.by_id[f"p-{model}"]

    def comes_up(self, model: str, generation: int = 1) -> None:
        """The model's engine is ready."""
        pool = self.pool(model)
        self.tell(
            PoolReady(
                pool_id=f"p-{model}",
                replica_id="r0",
                generation=generation,
                engine_version="1",
                slots=1,
                ctx=4096,
                load_ms=1000,
                devices=pool.devices,
            )
        )

    def goes(self, model: str) -> None:
        """The model's engine is seen gone."""
        self.tell(PoolUnready(pool_id=f"p-{model}", cause="unloaded"))

    def finish(self, task_id: str) -> None:
        """The task's engine says all it has to say."""
        attempt = self.attempt(task_id)
        attempt.start()
        attempt.end()
        self.settle()

    def events(self, kind: type) -> list[Any]:
        """All committed events of a kind."""
        return [record.payload for record in self.told if type(record.payload) is kind]


@pytest.fixture(name="make")
def _make() -> Iterator[Callable[[Settings], Rig]]:
    rigs: list[Rig] = []

    def make(settings: Settings) -> Rig:
        rigs.append(Rig(settings))
        return rigs[-1]

    try:
        yield make
        for rig in rigs:
            rig.check()
    finally:
        for rig in rigs:
            rig.end()


@pytest.fixture(name="rig")
def _rig(make: Callable[[Settings], Rig]) -> Rig:
    return make(_settings("a", "b", "c"))


def test_nothing_is_loaded_until_a_task_asks_for_it(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    assert rig.events(PoolLoading) == []
    rig.submit(model_ref="a")
    (loading,) = rig.events(PoolLoading)
    assert (loading.pool_id, len(loading.devices)) == ("p-a", 1)
    assert loading.predicted_bytes == {loading.devices[0]: 4000 * MIB}


def test_what_is_to_be_loaded_at_start_is_loaded_once_its_size_is_known(make: Callable[[Settings], Rig]) -> None:
    rig = make(_settings("a", preload=True))
    rig.gpus()
    assert rig.events(PoolLoading) == []
    rig.size("a", 4000)
    assert [e.pool_id for e in rig.events(PoolLoading)] == ["p-a"]


def test_a_model_that_only_the_larger_card_holds_goes_there(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 20_000)
    rig.submit(model_ref="a")
    assert rig.pool("a").devices == [BIG]


def test_a_task_starts_once_its_model_is_there(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    task_id = rig.submit(model_ref="a").task_id
    assert rig.journal.head.tasks.live[task_id].phase == "queued"
    rig.comes_up("a")
    assert rig.journal.head.tasks.live[task_id].phase != "queued"


def test_an_idle_model_makes_room_and_holds_its_memory_until_it_is_seen_gone(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 20_000)
    rig.size("b", 21_000)
    first = rig.submit(model_ref="a")
    rig.comes_up("a")
    rig.finish(first.task_id)
    rig.submit(model_ref="b")
    rig.advance(400)
    assert [(e.pool_id, e.cause, e.for_group) for e in rig.events(PoolUnloading)] == [("p-a", "swap", "b")]
    assert [e.pool_id for e in rig.events(PoolLoading)] == ["p-a"]
    rig.goes("a")
    rig.gpus()
    assert [e.pool_id for e in rig.events(PoolLoading)] == ["p-a", "p-b"]
    assert rig.pool("a").reserved_bytes == {}


def test_a_busy_model_is_drained_and_its_task_ends(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 20_000)
    rig.size("b", 21_000)
    running = rig.submit(model_ref="a")
    rig.comes_up("a")
    rig.submit(model_ref="b")
    rig.advance(400)
    assert rig.pool("a").draining
    assert rig.events(PoolUnloading) == []
    rig.finish(running.task_id)
    assert [e.pool_id for e in rig.events(PoolUnloading)] == ["p-a"]


def test_facts_that_are_told_twice_are_folded_once(rig: Rig) -> None:
    event = PoolUnready(pool_id="p-a", cause="engine-exited", detail="1")
    with rig.loop.running():
        for _ in range(2):
            rig.services.pools.received("local", "boot", "two", [(1, event)])
    rig.settle()
    assert rig.events(PoolUnready).count(event) == 1
    assert rig.journal.head.outboxes.last("local", "two") == 1


def test_an_engine_that_comes_up_after_it_was_decided_to_unload_it_takes_no_tasks(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    task_id = rig.submit(model_ref="a").task_id
    with rig.loop.running():
        rig.journal.append([PoolUnloading(pool_id="p-a", cause="drain")], actor="test", correlation="")
    rig.comes_up("a")
    assert rig.journal.head.tasks.live[task_id].phase == "queued"


def test_a_model_that_is_not_used_for_its_keep_alive_goes(make: Callable[[Settings], Rig]) -> None:
    settings = Settings(
        pools=[PoolSettings(id="p-a", engine="mock", model="a", devices="auto", preload=False, keep_alive_ms=60_000)]
    )
    rig = make(settings)
    rig.gpus()
    rig.size("a", 4000)
    task = rig.submit(model_ref="a")
    rig.comes_up("a")
    rig.finish(task.task_id)
    rig.advance(59)
    assert rig.events(PoolUnloading) == []
    rig.advance(2)
    assert [(e.pool_id, e.cause) for e in rig.events(PoolUnloading)] == [("p-a", "idle")]


def test_a_task_may_be_pinned_to_a_pool_that_is_loaded_for_it(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    rig.submit(model_ref="a", placement=PlacementRequest(mode="pin", pin_pool_id="p-a"))
    assert [e.pool_id for e in rig.events(PoolLoading)] == ["p-a"]


def test_a_strict_task_loads_its_model_and_is_refused_where_the_engine_cannot(make: Callable[[Settings], Rig]) -> None:
    settings = _settings("a")
    rig = make(msgspec.structs.replace(settings, pools=[msgspec.structs.replace(settings.pools[0], slots=1)]))
    rig.gpus()
    rig.size("a", 4000)
    task_id = rig.submit(model_ref="a", determinism="strict").task_id
    rig.engines["p-a"].strict_capable = False
    rig.comes_up("a")
    end = rig.ended(task_id)
    assert (end.outcome, end.code) == ("failed", "POOL_UNAVAILABLE")


BROKEN = PoolUnready(pool_id="p-a", cause="bad-model", detail="cut", advice="Fetch it again.", permanent=True)


def test_tasks_of_a_model_that_only_a_person_can_mend_are_refused_with_what_to_do(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    waiting = rig.submit(model_ref="a").task_id
    rig.tell(BROKEN)
    with pytest.raises(PoolUnreadyError) as refused:
        rig.submit(model_ref="a")
    assert (refused.value.what_to_do, refused.value.pool_id) == ("Fetch it again.", "p-a")
    assert "bad-model" in refused.value.message
    assert rig.state(waiting) == "queued"
    rig.comes_up("a")
    assert rig.state(waiting) == "placed"


def test_who_waits_for_such_a_model_is_told_after_a_while_and_batch_tasks_wait_on(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    waiting, batch = rig.submit(model_ref="a").task_id, rig.submit(model_ref="a", priority="batch").task_id
    rig.tell(BROKEN)
    rig.advance(9)
    assert rig.state(waiting) == "queued"
    rig.advance(2)
    end = rig.ended(waiting)
    assert (end.code, end.message) == ("POOL_UNAVAILABLE", "pool 'p-a' is not ready (bad-model): cut. Fetch it again.")
    assert rig.state(batch) == "queued"
    rig.comes_up("a")
    assert rig.state(batch) == "placed"


def test_a_model_that_cannot_be_loaded_holds_no_memory(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    rig.submit(model_ref="a")
    rig.tell(BROKEN)
    assert rig.pool("a").reserved_bytes == {}
    rig.comes_up("a")
    assert rig.pool("a").reserved_bytes == {BIG: 4000 * MIB}


def test_what_may_pass_by_itself_is_waited_for(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 4000)
    rig.submit(model_ref="a")
    rig.tell(PoolUnready(pool_id="p-a", cause="engine-crashed", retry_ms=500))
    assert rig.submit(model_ref="a").queue_position == 1


def test_a_model_that_did_not_fit_where_it_was_predicted_to_counts_for_more_and_moves(rig: Rig) -> None:
    rig.gpus(big=1000)
    rig.size("a", 11_000)
    rig.submit(model_ref="a")
    assert rig.pool("a").devices == [SMALL]
    rig.tell(PoolUnready(pool_id="p-a", cause="vram-oom", retry_ms=100))
    assert rig.services.explaining.model("a")["pools"][0]["needs_bytes"] == 11_000 * MIB * 1150 // 1000
    rig.goes("a")
    rig.gpus()
    assert rig.pool("a").devices == [BIG]


def test_a_model_that_no_card_holds_is_refused_with_the_numbers(make: Callable[[Settings], Rig]) -> None:
    rig = make(_settings("a", devices="GPU-small"))
    rig.gpus()
    early = rig.submit(model_ref="a").task_id
    rig.size("a", 20_000)
    with pytest.raises(PoolUnavailableError) as refused:
        rig.submit(model_ref="a")
    assert "pool 'p-a' fits no device: it needs 19.5 GiB, and GPU-small has 11.5 GiB" in refused.value.message
    rig.advance(11)
    assert "it needs 19.5 GiB" in rig.ended(early).message
    assert rig.events(PoolLoading) == []


def test_a_card_that_is_not_there_is_said(make: Callable[[Settings], Rig]) -> None:
    rig = make(_settings("a", devices="7"))
    rig.gpus()
    rig.size("a", 100)
    with pytest.raises(PoolUnavailableError, match="there is no GPU '7'"):
        rig.submit(model_ref="a")


def test_what_two_cards_hold_together_is_not_refused(rig: Rig) -> None:
    rig.gpus()
    rig.size("a", 30_000)
    rig.submit(model_ref="a")
    assert rig.pool("a").devices == [BIG, SMALL]


def test_facts_of_a_host_bear_the_name_that_it_has_here(rig: Rig) -> None:
    rig.tell(ModelStaged(host="local", ref="hf:o/m"), host="attic")
    assert [e.host for e in rig.events(ModelStaged)] == ["attic"]
