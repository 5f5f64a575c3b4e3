"""An orderly stop with tasks that run: it is no engine's fault, and costs no task an attempt."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.managerd import engine_pids, managerd_pid
from .conftest import HAIKU_POOL

pytestmark = pytest.mark.slow


def test_a_stop_interrupts_running_tasks_as_a_restart_does(new_server: Any, eventually: Any) -> None:
    server = new_server({"pools": [{"id": "mock", "engine": "mock", "model": "mock", "slots": 2}]}).start()
    task_id = server.post("/v1/tasks", {"model_ref": "mock", "prompt": "[[mock fault=endless rate=50]] go on"})[
        "task_id"
    ]
    eventually(lambda: server.get(f"/v1/tasks/{task_id}")["usage"]["completion_tokens"], "the first tokens")
    assert server.stop() == 0
    server.restart()
    eventually(lambda: server.get(f"/v1/tasks/{task_id}")["state"] == "running", "the task to go on")
    tail = server.get(f"/v1/journal/tail?stream=task:{task_id}&limit=100")
    failures = [e["payload"]["code"] for e in tail["events"] if e.get("name") == "task.attempt_failed"]
    assert failures == ["restart"]
    server.post(f"/v1/tasks/{task_id}/cancel", {})


def test_engines_end_with_a_server_that_is_stopped_unless_they_are_kept(new_server: Any, eventually: Any) -> None:
    server = new_server({"pools": [HAIKU_POOL]}).start()
    data = server.home.data_dir
    (engine,) = engine_pids(data)
    assert server.home.call("stop", "--keep-engines").status == 0
    assert list(engine_pids(data)) == [engine]
    assert managerd_pid(data) > 0
    server.restart()
    assert list(engine_pids(data)) == [engine], "the next server goes on with it"
    assert server.get("/v1/pools/haiku/health")["restarts"] == 0
    assert server.home.call("stop").status == 0
    assert engine_pids(data) == {}
    eventually(lambda: not managerd_pid(data), "the end of pool-managerd")


def test_engines_of_a_killed_server_end_when_none_comes_back(new_server: Any, eventually: Any) -> None:
    server = new_server({"pools": [HAIKU_POOL], "manager": {"linger_ms": 300}})
    del server.home.environ["LLORCH_MANAGER__LINGER_MS"]
    server.start()
    data = server.home.data_dir
    assert engine_pids(data)
    server.kill()
    eventually(lambda: not engine_pids(data) and not managerd_pid(data), "the end of engines and pool-managerd")


def test_a_server_that_finds_a_pool_managerd_leaves_it_running(new_server: Any, home: Any, eventually: Any) -> None:
    """Started by itself it belongs to somebody else: only the engines end with the server."""
    process = home.popen_managerd()
    try:
        eventually(lambda: managerd_pid(home.data_dir) == process.pid, "its start")
        server = new_server({"pools": [HAIKU_POOL]}, home=home).start()
        assert engine_pids(home.data_dir)
        assert server.stop() == 0
        eventually(lambda: not engine_pids(home.data_dir), "the end of the engines")
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
