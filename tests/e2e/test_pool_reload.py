"""Reload and drain with real llama.cpp, under requests: the timeline of readiness is read from the journal."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_orch.pools.identity import owner_of, process_table

from ..engines.tiny_gguf import VARIANTS, Shape, write_model

pytestmark = [pytest.mark.slow, pytest.mark.real_llama]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that are told apart by their digests, and a broken one."""
    folder = tmp_path_factory.mktemp("models")
    broken = folder / "broken.gguf"
    whole = write_model(folder / "old.gguf", VARIANTS["plain"])
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return {"old": whole, "new": write_model(folder / "new.gguf", Shape(seed=99)), "broken": broken}


def settings(model: Path, **pool: Any) -> dict[str, Any]:
    return {
        "models": {"m": f"file:{model}"},
        "pools": [{"id": "p", "model": "m", "slots": 2, "provisioning": {"threads": 1}, **pool}],
    }


def events(server: Any) -> list[tuple[str, Any]]:
    """All facts of the journal in their order."""
    done = server.home.call("journal", "export")
    assert done.status == 0, done.err
    records = [json.loads(line) for line in done.out.splitlines()]
    return [(record["name"], record["payload"]) for record in records if "payload" in record]


def timeline(server: Any) -> list[tuple[str, Any]]:
    """What became of the pool."""
    return [(name, what) for name, what in events(server) if name.startswith("pool.")]


def since(told: list[tuple[str, Any]], name: str) -> list[tuple[str, Any]]:
    """What was told from the first event of this name on."""
    return told[[one for one, _ in told].index(name) :]


def digest(server: Any) -> str:
    return str(server.get("/v1/pools/p/health")["model_digest"])


def ask(server: Any, **more: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 8, **more}
    return server.post("/v1/chat/completions", body)


class Load:
    """Requests without a pause, until it is left; what went wrong is kept."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.answers = 0
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                ask(self._server)
                self.answers += 1
            except urllib.error.HTTPError as error:
                self.failures.append(f"{error.code} {error.read().decode()}")
            except OSError as error:
                self.failures.append(repr(error))


class Watch:
    """Counts the engine processes of a data directory, again and again."""

    def __init__(self, data_dir: Path) -> None:
        self._owner = owner_of(data_dir) + "/"
        self._stop = threading.Event()
        self.most = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        table = process_table()
        while not self._stop.wait(0.005):
            self.most = max(self.most, len({marker for _, marker in table.marked(self._owner)}))


@pytest.fixture
def server(new_server: Callable[..., Any], models: dict[str, Path]) -> Any:
    return new_server(settings(models["old"])).start()


def test_new_first_is_never_a_moment_unready_and_fails_no_request(server, models):
    before = digest(server)
    with Load(server) as load, Watch(server.home.data_dir) as watch:
        done = server.home.call("pools", "reload", "p", str(models["new"]), "--wait")
        assert done.status == 0, done.err
    assert load.failures == []
    assert load.answers > 0
    assert watch.most == 2, "the new engine came up beside the old one"
    assert digest(server) != before
    told = since(timeline(server), "pool.reloading")
    assert told[0][1]["handover"] == "new-first"
    assert [what for name, what in told if name == "pool.unready"] == [], "never a moment unready"
    # The new model decoded before it was said to serve; the old engine ended only when its last task had.
    generations = [what["generation"] for name, what in told if name == "pool.ready"]
    assert generations == sorted(generations)
    names = [f"{name} {what['generation']}" if name == "pool.ready" else name for name, what in told]
    first = [name for n, name in enumerate(names) if name not in names[:n]]
    moves = [name for name in first if name not in {"pool.sized", "pool.measured", "pool.ready 1"}]
    assert moves == ["pool.reloading", "pool.ready 2", "pool.reloaded", "pool.handed_over"]
    assert ask(server, model=str(models["new"]))["choices"], "the new name leads to the pool, too"


def test_stop_first_ends_the_old_engine_before_the_new_one_starts_and_loses_no_request(server, models):
    before = digest(server)
    with Load(server) as load, Watch(server.home.data_dir) as watch:
        done = server.home.call("pools", "reload", "p", str(models["new"]), "--handover", "drain", "--wait")
        assert done.status == 0, done.err
    assert load.failures == [], "requests wait in the queue meanwhile"
    assert watch.most == 1, "memory was never taken twice"
    assert digest(server) != before
    told = since(timeline(server), "pool.reloading")
    moves = []
    for name, what in told:
        said = {
            "pool.ready": lambda what=what: f"ready {what['generation']}",
            "pool.unready": lambda what=what: what["cause"],
            "pool.reloading": lambda what=what: what["handover"],
        }.get(name, lambda name=name: name)()
        if said not in {*moves, "ready 1", "pool.sized", "pool.measured", "loading", "staging", "starting"}:
            moves.append(said)
    assert moves == ["drain", "pool.draining", "stop-first", "reloading", "ready 2", "pool.reloaded"]


@pytest.mark.parametrize("handover", ["new-first", "drain"])
def test_a_bad_model_is_rolled_back_with_its_cause_and_advice(server, models, handover):
    before = digest(server)
    with Load(server) as load:
        done = server.home.call("pools", "reload", "p", str(models["broken"]), "--handover", handover, "--wait")
        assert done.status == 1
        assert "bad-model" in done.err
        server.wait_ready()
    assert load.failures == []
    assert digest(server) == before
    health = server.get("/v1/pools/p/health")
    assert health["ready"]
    assert health["reload"]["trouble"].startswith("bad-model: ")
    assert health["reload"]["advice"]
    told = since(timeline(server), "pool.reloading")
    if handover == "new-first":
        assert [name for name, _ in told if name == "pool.unready"] == []
    assert "pool.reload_failed" in [name for name, _ in told]
    assert ask(server)["choices"]
    shown = server.home.call("pools").out
    assert "its last reload failed: bad-model" in shown


def test_a_second_reload_meanwhile_is_a_conflict(new_server, models):
    server = new_server(settings(models["old"])).start()
    server.post("/v1/pools/p/drain", {"deadline_ms": 1000})
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/v1/pools/p/reload", {"new_model_ref": str(models["new"])})
    assert refused.value.code == 409
    body = json.load(refused.value)
    assert (body["code"], body["pool_id"]) == ("CONFLICT", "p")
    assert "drained" in body["message"]


def test_a_drained_pool_lets_a_stream_end_in_time_and_is_unloaded(new_server, tmp_path):
    slow = write_model(tmp_path / "slow.gguf", VARIANTS["slow"])
    server = new_server(settings(slow)).start()
    task = server.post("/v1/tasks", {"model_ref": "m", "prompt": "Once", "max_tokens": 60})["task_id"]
    _until_running(server, task)
    done = server.home.call("pools", "drain", "p", "--deadline", "100", "--wait")
    assert done.status == 0, done.err
    info = server.get(f"/v1/tasks/{task}")
    assert info["state"] == "completed"
    assert server.get("/v1/pools/p/health")["state"] in ("drained", "unloading")
    attempts = [name for name, told in _task(server, task) if name == "task.attempt_failed"]
    assert attempts == []


def test_what_still_runs_at_the_deadline_goes_on_after_the_pool_is_put_back(new_server, tmp_path):
    slow = write_model(tmp_path / "slow.gguf", VARIANTS["slow"])
    server = new_server(settings(slow)).start()
    task = server.post("/v1/tasks", {"model_ref": "m", "prompt": "Once", "max_tokens": 1500, "seed": 3})["task_id"]
    _until_running(server, task)
    done = server.home.call("pools", "drain", "p", "--deadline", "0.2", "--wait")
    assert done.status == 0, done.err
    assert server.get(f"/v1/tasks/{task}")["state"] == "queued", "requeued, not lost"
    undrained = server.home.call("pools", "undrain", "p")
    assert undrained.status == 0, undrained.err
    server.wait_ready()
    _until_running(server, task)
    codes = [(name, told.get("code")) for name, told in _task(server, task)]
    assert ("task.attempt_failed", "drained") in codes
    server.post(f"/v1/tasks/{task}/cancel", {})


def _task(server: Any, task: str) -> list[tuple[str, Any]]:
    return [(name, what) for name, what in events(server) if what.get("task_id") == task]


def _until_running(server: Any, task: str) -> None:
    from .conftest import wait_until

    wait_until(lambda: server.get(f"/v1/tasks/{task}")["state"] == "running", "the task's start")
