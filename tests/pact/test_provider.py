"""A real server keeps the pacts of this folder: each of their requests is sent to it, and its answers held against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pact import Verifier

from llama_orch.api.auth import Secrets
from llama_orch.core.services.keys import digest_of
from llama_orch.core.settings import PoolSettings, QueueSettings

from ..contract.api.live_server import LiveServer, mock_settings
from .interactions import ENDED, EVERY, FAILED, MODEL, NARROW, PROMPT, RUNNING, SESSION, TOKEN

HERE = Path(__file__).parent
ENDLESS = "[[mock fault=endless rate=20]]"
IN_SESSION = "00000000-0000-4000-8000-000000000005"
FIRST_NARROW, SECOND_NARROW = "00000000-0000-4000-8000-000000000006", "00000000-0000-4000-8000-000000000007"


class Provider:
    """A server with keys, and what brings it into the states that pacts name; each may be asked for again."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False
        )
        self.failures: list[str] = []
        self.states: dict[str, Callable[[], None]] = {
            "a task of three tokens has ended": lambda: self._ended(ENDED, PROMPT, "completed"),
            "a task has failed": lambda: self._ended(FAILED, "[[mock fault=error]]", "failed"),
            "a task runs": lambda: self._running(RUNNING, MODEL),
            "the queue of the narrow model is full": self._full,
            "the key taken was used": lambda: self._submit(None, MODEL, PROMPT, key="taken"),
            "a session is open": lambda: self._ended(IN_SESSION, PROMPT, "completed", session_id=SESSION),
            "a session has a budget": self._budget,
        }

    def close(self) -> None:
        self._http.close()

    def set(self, state: str, action: str, parameters: dict[str, Any] | None) -> None:
        """Called before and after each interaction that names a state. The library would try a failure again and again."""
        if action == "setup" and state:
            try:
                self.states[state]()
            except Exception as error:
                self.failures.append(f"{state}: {error!r}")

    def _submit(self, task_id: str | None, model: str, prompt: str, *, key: str = "", **fields: Any) -> None:
        body = {"model_ref": model, "prompt": prompt, "seed": 7, **fields} | ({"task_id": task_id} if task_id else {})
        answer = self._http.post("/v1/tasks", json=body, headers={"Idempotency-Key": key} if key else {})
        assert answer.status_code == 202, answer.text

    def _ended(self, task_id: str, prompt: str, state: str, **fields: Any) -> None:
        self._submit(task_id, MODEL, prompt, **fields)
        found = self._http.get(f"/v1/tasks/{task_id}", params={"wait": 30_000}).json()
        assert found["state"] == state, found

    def _running(self, task_id: str, model: str) -> None:
        self._submit(task_id, model, ENDLESS)
        with self._http.stream("GET", f"/v1/tasks/{task_id}/stream") as stream:
            assert any(line.startswith(("event: token", "event: end")) for line in stream.iter_lines())

    def _full(self) -> None:
        self._running(FIRST_NARROW, NARROW)
        self._submit(SECOND_NARROW, NARROW, ENDLESS)

    def _budget(self) -> None:
        self.states["a session is open"]()
        answer = self._http.put(f"/v1/budgets/session/{SESSION}", json={"window": "day", "tokens": 500})
        assert answer.status_code == 200, answer.text


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveServer]:
    narrow = PoolSettings(id=NARROW, engine="mock", model=NARROW, slots=1, queue=QueueSettings(capacity=1))
    settings = mock_settings(pools=[PoolSettings(id=MODEL, engine="mock", model=MODEL, slots=2), narrow])
    secrets = Secrets(bootstrap=digest_of(TOKEN.encode()), local=digest_of(b"nobody's"))
    server = LiveServer(tmp_path, settings, secrets=secrets).start()
    yield server
    server.stop()


@pytest.mark.parametrize("consumer", ["llama-orch-client", "llama-orch-cli"])
def test_the_server_keeps_the_pact_of(consumer: str, live: LiveServer) -> None:
    provider = Provider(live.url)
    try:
        verifier = Verifier("llama-orch", host="127.0.0.1").add_transport(url=live.url)
        verifier.add_source(HERE / f"{consumer}.json").state_handler(provider.set, teardown=True)
        try:
            verifier.verify()
        finally:
            assert provider.failures == []
    finally:
        provider.close()


def test_every_state_that_pacts_name_can_be_brought_about() -> None:
    provider = Provider("http://127.0.0.1:1")
    assert {interaction.state for interaction in EVERY} - {""} == set(provider.states)
    provider.close()


@pytest.mark.parametrize(
    "word, another",
    [
        ('"path": "/v1/capabilities"', '"path": "/v1/capability"'),  # nothing answers there
        ('\\"i\\":2', '\\"i\\":7'),  # tokens are numbered otherwise
        ('"state": "completed"', '"state": "done"'),  # another word in an answer
    ],
)
def test_a_server_that_breaks_its_word_is_noticed(word: str, another: str, live: LiveServer, tmp_path: Path) -> None:
    kept = (HERE / "llama-orch-cli.json").read_text("utf-8")
    broken = tmp_path / "broken.json"
    broken.write_text(kept.replace(word, another), "utf-8")
    assert broken.read_text("utf-8") != kept
    provider = Provider(live.url)
    verifier = Verifier("llama-orch", host="127.0.0.1").add_transport(url=live.url)
    verifier.add_source(broken).state_handler(provider.set, teardown=True)
    with pytest.raises(RuntimeError, match="Failed to execute verifier"):
        verifier.verify()
    assert provider.failures == []
    provider.close()
