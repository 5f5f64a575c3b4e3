"""Steps of mixed_gpus.feature alone: a real server under a stand-in for NVIDIA's library (`tests/nvml`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from llama_orch.client import Placement
from llama_orch.client.calls import Call

from ..e2e.conftest import Server, wait_until
from ..nvml import RTX_3060, RTX_3090, FakeDriver, build_nvml
from .conftest import ENDLESS, World, pool

scenarios("mixed_gpus.feature")

GIB = 1 << 30
CARDS = {"RTX 3090": RTX_3090, "RTX 3060": RTX_3060}
POOLS = {"RTX 3090": "big", "RTX 3060": "small"}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    folder = tmp_path_factory.mktemp("nvml")
    return FakeDriver(folder, build_nvml(folder))


@pytest.fixture
def server(servers: Callable[..., Server], driver: FakeDriver) -> Iterator[Server]:
    """One server for all scenarios; each finds both cards idle and both pools ready."""
    driver.set(RTX_3090, RTX_3060)
    options: dict[str, Any] = {"ctx": 4096}
    pools = [
        pool(1, id="big", devices=RTX_3090.uuid, provisioning={"options": {"script": {"rate": 400}}}, **options),
        pool(1, id="small", devices=RTX_3060.uuid, provisioning={"options": {"script": {"rate": 20}}}, **options),
    ]
    found = servers({"pools": pools, "manager": {"sample_ms": 100}}, environ=driver.env)
    yield found
    found.post("/v1/pools/big/undrain", {})


@given("a server with a pool of 1 slot on an RTX 3090 and one on a slower RTX 3060")
def a_workstation(world: World, server: Server) -> None:
    world.use(server)

    def idle() -> bool:
        pools = world.client.pools()
        return len(pools) == 2 and all(one.ready and not one.draining and not one.leases for one in pools)

    wait_until(idle, "both pools are ready and idle")


@given(parsers.parse('"{name}" occupies the {card}'))
def occupies(world: World, name: str, card: str) -> None:
    submit(world, name, ENDLESS, card)
    world.until(name, lambda task: task.state == "running", f"{name} runs")
    assert world.tasks[name].get().pool_id == POOLS[card]


def submit(world: World, name: str, prompt: str, card: str) -> None:
    only = Placement(require_device_mask=CARDS[card].uuid)
    world.submit(name, prompt, placement=only, max_tokens=4_000)
    world.accepted(name)


@given(parsers.parse("the operator drains the pool on the {card}"))
def drains(world: World, card: str) -> None:
    world.client.send(Call("POST", f"/v1/pools/{POOLS[card]}/drain", body=b"{}"))


@when(parsers.parse('the client submits "{name}" of {tokens:d} tokens for the {card} alone'))
def submits_for(world: World, name: str, tokens: int, card: str) -> None:
    submit(world, name, f"[[mock tokens={tokens}]]", card)


@when(parsers.parse("another program takes {gib:d} GiB of the {card}"))
def takes(world: World, driver: FakeDriver, gib: int, card: str) -> None:
    world.notes["before"] = free_bytes(world, card)
    others = [other for name, other in CARDS.items() if name != card]
    driver.set(*others, CARDS[card].but(used=(CARDS[card].used or 0) + gib * 1024))


def gpus(world: World) -> dict[str, dict[str, Any]]:
    (host,) = world.server.get("/v1/gpus")["hosts"]
    return {gpu["uuid"]: gpu for gpu in host["gpus"]}


def free_bytes(world: World, card: str) -> int:
    return int(gpus(world)[CARDS[card].uuid]["free_bytes"])


@then(parsers.parse("the server tells of an {one} with {one_gib:d} GiB and an {two} with {two_gib:d} GiB"))
def tells(world: World, one: str, one_gib: int, two: str, two_gib: int) -> None:
    seen = {gpu["name"]: gpu["total_bytes"] for gpu in gpus(world).values()}
    assert seen == {f"NVIDIA GeForce {one}": one_gib * GIB, f"NVIDIA GeForce {two}": two_gib * GIB}


@then(parsers.parse('"{name}" runs on the {card}'))
def runs_on(world: World, name: str, card: str) -> None:
    task = world.wait(name)
    assert (task.state, task.pool_id) == ("completed", POOLS[card])


@then("its decision tells when it would have ended on each card")
def tells_both(world: World) -> None:
    (handle,) = world.tasks.values()
    decision = handle.decision()
    assert decision["candidates_considered"] == sorted(POOLS.values())
    ends = decision["scores_ms"]
    assert ends["big"] < ends["small"]


@then(parsers.parse('"{name}" waits'))
def waits(world: World, name: str) -> None:
    assert world.queue() == [world.accepted(name).task_id]
    waiting_for = world.tasks[name].decision()["waiting_for"]
    assert waiting_for["big"] == "all 1 slots are taken"
    assert "excluded" in waiting_for["small"]


@then(parsers.parse("the server tells of {gib:d} GiB less on it"))
def tells_less(world: World, gib: int) -> None:
    wait_until(lambda: free_bytes(world, "RTX 3060") == world.notes["before"] - gib * GIB, "less memory is free")
