"""A thousand requests on one budget, with cancels, disconnects and two kills: nothing is spent beyond the cap, nothing stays
reserved, and the books are what an auditor adds up from the exported journal (BUD-1).
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.books import NAMES, Books
from .http_client import BROKEN, Refused, call, stream
from .load import PATIENCE_S
from .world import World, world

REQUESTS = 1_000
SEED = 7
SLOTS = 32
CAPS = {"tokens": 30_000, "decode_ms": 250_000, "cost": "0.05"}
SETTINGS: dict[str, Any] = {
    "prices": {"mock": {"input": "0.5", "cached": "0.05", "output": "1.5", "second": "0.0001"}},
    "journal": {"snapshot_every": 2_000},
    "sessions": {"turn_limit": REQUESTS},
}
POOLS = [{"id": "mock", "engine": "mock", "model": "mock", "slots": SLOTS}]


class Crowd:
    """Clients that all spend the same money."""

    def __init__(self, place: World) -> None:
        self._place = place
        self.outcomes: Counter[str] = Counter()
        self.frames = 0
        #: told whenever somebody heard something
        self.heard = asyncio.Event()

    async def client(self, number: int) -> None:
        """One request: accepted, or refused because the money is gone; read to its end, cancelled, or left."""
        rng = random.Random(SEED * 1_000_003 + number)
        tokens, rate = rng.choice((5, 30, 60)), rng.choice((100, 300, 0))
        way = rng.choice(("reads", "reads", "cancels", "leaves"))
        request = {
            "model_ref": "mock",
            "prompt": f"[[mock tokens={tokens} rate={rate}]] {number}",
            "max_tokens": 100_000,
            "priority": rng.choice(("interactive", "batch")),
            "recovery": rng.choice(("continue", "strict", "none")),
            "cancel_on_disconnect": way == "leaves",
        }
        task_id = await self._submit(request, number)
        if not task_id:
            self.outcomes["refused"] += 1
            return
        after = ""
        stop_at = rng.randrange(0, 20) if way != "reads" else -1
        seen = 0
        while True:
            try:
                async for frame in stream(self._place.port, task_id, after):
                    after = frame.id or after
                    seen += 1
                    self.frames += 1
                    self.heard.set()
                    if frame.event in {"end", "error"} and frame.id:
                        self.outcomes[frame.data.get("code") or frame.data.get("finish_reason")] += 1
                        return
                    if seen > stop_at >= 0:
                        break
            except (*BROKEN, Refused):
                pass
            if seen > stop_at >= 0:
                if way == "cancels":
                    await self._cancel(task_id)
                self.outcomes[way] += 1
                return
            await asyncio.sleep(0.05)  # the server is being started again

    async def _submit(self, request: dict[str, Any], number: int) -> str:
        while True:
            try:
                answer = await self._place.call("POST", "/v1/tasks", request, Idempotency_Key=f"k{number}")
            except BROKEN:
                await asyncio.sleep(0.05)  # the server is being started again
                continue
            if answer.status == 402:
                assert answer.body["code"] == "BUDGET_EXHAUSTED"
                return ""
            if answer.status == 202:
                assert int(answer.headers["x-budget-tokens-remaining"]) <= CAPS["tokens"]
                return str(answer.body["task_id"])
            assert answer.status in {429, 503}, answer
            await asyncio.sleep(0.05)

    async def _cancel(self, task_id: str) -> None:
        while True:
            try:
                answer = await self._place.call("POST", f"/v1/tasks/{task_id}/cancel")
            except BROKEN:
                await asyncio.sleep(0.05)  # the server is being started again
                continue
            if answer.status != 503:
                assert answer.status == 204
                return


async def budget(place: World) -> dict[str, Any] | None:
    """The one budget; ``None`` while no server answers."""
    try:
        answer = await call(place.port, "GET", "/v1/budgets/key/local")
    except BROKEN:
        return None
    if answer.status != 200:
        return None
    (found,) = answer.body["budgets"]
    return dict(found)


def inside(found: dict[str, Any]) -> None:
    """What is committed and reserved is within the caps."""
    for name in ("tokens", "decode_ms", "cost"):
        spent, reserved, cap = (float(found[part][name]) for part in ("spent", "reserved", "caps"))
        assert spent <= cap, f"{spent} {name} were spent of {cap}"
        assert spent + reserved <= cap * (1 + 1e-9), f"{spent} + {reserved} {name} of {cap}"


async def watch(place: World, looks: Counter[str]) -> None:
    """Look at the budget again and again."""
    while True:
        found = await budget(place)
        if found is not None:
            inside(found)
            looks["looks"] += 1
            looks["most"] = max(looks["most"], found["spent"]["tokens"])
        await asyncio.sleep(0.02)


async def spent(place: World, tokens: int, watcher: asyncio.Task[None], looks: Counter[str]) -> None:
    """Wait until so much is committed."""
    async with asyncio.timeout(PATIENCE_S):
        while looks["most"] < tokens:
            if watcher.done():
                watcher.result()
            await asyncio.sleep(0.01)


async def scenario(folder: Path) -> None:
    async with world(folder, POOLS, settings=SETTINGS) as place:
        await place.start()
        await place.ready()
        answer = await place.call("PUT", "/v1/budgets/key/local", CAPS)
        assert answer.status == 200, answer
        crowd, looks = Crowd(place), Counter[str]()
        watcher = asyncio.create_task(watch(place, looks))
        clients = [asyncio.create_task(crowd.client(number)) for number in range(REQUESTS)]
        try:
            for share in (0.15, 0.4):
                await spent(place, int(CAPS["tokens"] * share), watcher, looks)  # type: ignore[call-overload]
                await place.kill()
                await place.start()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*clients)
                while (last := await budget(place)) is None or any(map(float, last["reserved"].values())):
                    await asyncio.sleep(0.02)
        finally:
            watcher.cancel()
            for one in clients:
                one.cancel()
            ended = await asyncio.gather(watcher, *clients, return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError), ended[0]
        inside(last)
        assert crowd.outcomes["BUDGET_EXHAUSTED"] + crowd.outcomes["refused"] > 0, "the budget was never tried"
        assert await place.stop() == 0
        exported = folder / "export.jsonl"
        assert await place.command("journal", "export", "--texts", str(exported)) == 0
        books = Books(map(json.loads, _lines(exported)))
        (account,) = books.accounts.values()
        assert account.held == (0, 0, 0)
        told = last["spent"]
        assert (told["tokens"], round(told["decode_ms"] * 1000)) == account.spent[:2]
        whole, _, places = told["cost"].partition(".")
        assert int(whole) * 10**12 + int(places.ljust(12, "0")) == account.spent[2]
        assert all(most <= cap for most, cap in zip(*_most(books), strict=True))
        print(
            f"\nmoney: {REQUESTS} requests, 2 kills, {looks['looks']} looks, outcomes {dict(crowd.outcomes)}, "
            f"spent {dict(zip(NAMES, account.spent, strict=True))} of {CAPS}"
        )


def _most(books: Books) -> tuple[tuple[int, ...], tuple[int, ...]]:
    (account,) = books.accounts.values()
    (most,) = books.most_spent.values()
    return most, account.caps


def _lines(exported: Path) -> Iterator[str]:
    with exported.open(encoding="utf-8") as lines:
        yield from lines


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_thousand_requests_on_one_budget_spend_no_unit_too_much(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        asyncio.run(scenario(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
