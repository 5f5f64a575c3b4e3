"""An orderly stop with tasks that run: it is no engine's fault, and costs no task an attempt."""

from __future__ import annotations

from typing import Any


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
