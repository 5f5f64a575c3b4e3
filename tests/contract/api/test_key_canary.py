"""A planted key is looked for wherever things are kept or told; it is nowhere (JRN-9, OBS-2, attack 44)."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from llama_orch.api.auth import Secrets
from llama_orch.api.logs import EventLog, LineWriter, start_logging
from llama_orch.api.redact import redact_text
from llama_orch.core.services.keys import digest_of

from .keyed_server import PROMPT, KeyedServer

BOOTSTRAP = "canary-bootstrap-5f2c9a71e0"
LOCAL = "lo_canaryLocal0123456789abcdefghijklmnopqrstuvwxyz"


def places(server: KeyedServer, logged: io.StringIO, answers: list[str]) -> dict[str, bytes]:
    """Everything that is kept or told, by where."""
    folder = server.live.folder
    found = {f"file {path.name}": path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for path in ("/metrics", "/v1/journal/export", "/v1/journal/stats", "/v1/keys", "/v1/capabilities", "/v1/tasks"):
        found[path] = server.ask(server.admin, "GET", path).content
    found["/v1/journal/tail"] = server.ask(server.admin, "GET", "/v1/journal/tail?limit=1000").content
    found["log"] = logged.getvalue().encode()
    found["answers"] = "\n".join(answers).encode()
    found["process arguments"] = Path("/proc/self/cmdline").read_bytes()
    return found


def test_no_key_is_kept_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logged = io.StringIO()
    log = EventLog(LineWriter(logged), level="debug")
    secrets = Secrets(bootstrap=digest_of(BOOTSTRAP.encode()), local=digest_of(LOCAL.encode()))
    server = KeyedServer(tmp_path, secrets=secrets)
    try:
        server.live.call(log.subscribe, server.live.services.journal)
        answers: list[str] = []

        def ask(key: str | None, method: str, path: str, **rest: Any) -> Any:
            answer = server.ask(key, method, path, **rest)
            answers.append(f"{answer.status_code} {dict(answer.headers)} {answer.text}")
            return answer

        made = json.loads(ask(server.admin, "POST", "/v1/keys", json={"name": "planted"}).text)
        answers.clear()  # the one answer that tells the secret
        planted, key_id = made["secret"], made["key"]["key_id"]
        canaries = {"planted": planted, "bootstrap": BOOTSTRAP, "local": LOCAL, "admin": server.admin}
        for key in canaries.values():
            ask(key, "POST", "/v1/tasks", json=PROMPT)
            ask(None, "POST", "/v1/chat/completions", json={"nonsense": 1}, headers={"x-api-key": key})
            ask(key, "POST", "/v1/tasks", json={"model_ref": "none", "prompt": "x"})
            ask(key, "GET", "/v1/tasks/unknown")
            ask(key, "GET", "/nowhere")
            ask(f"{key}x", "GET", "/v1/tasks")
            ask(key, "GET", "/v1/tasks", headers={"x-api-key": "another"})
            for path in (f"/v1/tasks?api_key={key}", f"/v1/tasks/{key}", f"/{key}", f"/v1/queue?limit={key}"):
                if key.startswith("lo_") or "api_key" in path:
                    ask(key, "GET", path)
            server.raw(f"GET http://x:{key}@127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        ask(server.admin, "PATCH", f"/v1/keys/{key_id}", json={"requests_per_minute": 5})
        rotated = server.ask(server.admin, "POST", f"/v1/keys/{key_id}/rotate", json={"grace_ms": 1000}).json()
        canaries["rotated"] = rotated["secret"]
        ask(rotated["secret"], "GET", "/v1/tasks")
        ask(server.admin, "DELETE", f"/v1/keys/{key_id}")
        found = places(server, logged, answers)
        said = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]  # the clients
        found["program's log"] = "\n".join(said).encode()
        assert b"do not belong in URLs" in found["program's log"]
        assert b"key.created" in found["/v1/journal/export"], "the journal tells of keys"
        assert f"token:{digest_of(planted.encode())[:6]}".encode() in found["log"], "the log tells who"
        for name, canary in canaries.items():
            for where, text in found.items():
                assert canary.encode() not in text, f"the {name} key stands in {where}"
                assert canary[3:].encode() not in text, f"the {name} key stands in {where}"
    finally:
        server.stop()


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The control: a secret in a prompt is the caller's own affair, is kept, and is found where it is kept."""
    server = KeyedServer(tmp_path)
    try:
        task_id = server.task(server.mine, prompt="my canary-in-a-prompt")
        server.ask(server.mine, "GET", f"/v1/tasks/{task_id}?wait=10000")
        held = [where for where, text in places(server, io.StringIO(), []).items() if b"canary-in-a-prompt" in text]
        assert held
    finally:
        server.stop()


def test_the_log_blots_a_key_out_by_its_shape() -> None:
    key = "lo_" + "Ab3-_" * 8 + "xyz"
    for text in (f"GET /v1/tasks?x={key}", f"x-api-key: {key}", f"got {key!r}", f"({key})"):
        assert key[3:] not in redact_text(text)
    assert redact_text("lo_short and hello_world stay") == "lo_short and hello_world stay"


def test_what_programs_log_is_blotted_out_too() -> None:
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        log = start_logging("info", "json")
        logging.getLogger("llama_orch.test").warning("the key is %s", "lo_" + "k" * 43)
        log.flush()
    assert "kkkk" not in stream.getvalue()
