"""A server that stops while answers are waited for says so, in the words of each route (ADM-4, STR-3)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .live_server import LiveServer, mock_settings

SLOW = "[[mock tokens=5000 rate=20]]"
CHAT = {"model": "mock", "messages": [{"role": "user", "content": SLOW}], "max_tokens": 3000}
WAITED_FOR: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": {"model": "mock", "input": SLOW, "max_output_tokens": 3000},
    "/v1/completions": {"model": "mock", "prompt": [SLOW, SLOW], "max_tokens": 3000},
}


def test_who_waits_for_an_answer_when_the_server_stops_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = LiveServer(tmp_path, mock_settings()).start()
    tasks = server.services.journal.head.tasks
    with ThreadPoolExecutor(len(WAITED_FOR)) as pool:
        answers = {
            path: pool.submit(httpx.post, server.url + path, json=body, timeout=30) for path, body in WAITED_FOR.items()
        }
        deadline = time.monotonic() + 20
        while server.call(lambda: len(tasks.live)) < 5:
            assert time.monotonic() < deadline, "the tasks were never admitted"
            time.sleep(0.005)
        server.stop()
        for path, answer in answers.items():
            told = answer.result()
            assert told.status_code == 503, path
            assert told.headers["retry-after"] == "1", path
            assert told.headers["x-correlation-id"], path
            error = told.json()["error"]
            assert (error["code"], error["message"]) == ("JOURNAL_UNAVAILABLE", "the server stops"), path
            assert "send the request again" in error["remedy"], path
            assert (told.json().get("type") == "error") is (path == "/v1/messages")
    assert not [record for record in caplog.records if record.exc_info]
