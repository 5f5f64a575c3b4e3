"""The attacks of docs/reference/attacks.md, by their numbers: each has its expected answer, and nothing else comes of it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from llama_orch.api.auth import Authentication, Secrets
from llama_orch.api.openapi import operations
from llama_orch.core.errors import ForbiddenError
from llama_orch.core.services.keys import digest_of
from llama_orch.core.settings import LimitSettings, PoolSettings, Settings

from .keyed_server import BOOTSTRAP, PROMPT, KeyedServer, code_of, get

LIMITS = LimitSettings(header_bytes=32_768)
DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "attacks.md"
PROTECTED = ["/v1/tasks", "/v1/keys", "/metrics", "/openapi.json", "/v1/journal/export", "/nowhere"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    pools = [PoolSettings(id="m", engine="mock", model="mock", aliases=["mock-alias"])]
    started = KeyedServer(tmp_path_factory.mktemp("attacked"), limits=LIMITS, pools=pools)
    yield started
    started.stop()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_01_no_key(server: KeyedServer) -> None:
    for path in PROTECTED:
        answer = server.ask(None, "GET", path)
        assert (answer.status_code, code_of(answer.content)) == (401, "MISSING_TOKEN"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for kind, method, op in operations():
        if op.scopes != ("public",):
            answer = server.ask(None, method, kind.path.replace("{", "").replace("}", ""))
            assert answer.status_code == 401, f"{method} {kind.path}"
    assert server.ask(None, "GET", "/health").status_code == 200
    ready = server.ask(None, "GET", "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "journal": "", "pools": {}})
    assert server.ask("lo_" + "A" * 43, "GET", "/readyz").json() == ready.json()


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer ", "Bearer", "", "Basic d3Jvbmc6d3Jvbmc=", "Digest x", "Bearer null", "lo_x", "Bearer: x"],
)
def test_02_a_wrong_key(server: KeyedServer, header: str) -> None:
    for path in PROTECTED:
        ((status, body),) = server.raw(get(path, None, f"Authorization: {header}"))
        assert (status, code_of(body)) == (401, "BAD_TOKEN")
    ((status, body),) = server.raw(get("/v1/tasks", None, "x-api-key: wrong"))
    assert (status, code_of(body)) == (401, "BAD_TOKEN")


def test_03_an_expired_key(server: KeyedServer) -> None:
    key = server.key("short-lived", ttl_ms=1)
    journal = server.live.services.journal
    expires = journal.head.keys.by_id[server.ids["short-lived"]].expires_ns
    while server.live.call(journal.now_ns) < expires:
        pass
    answer = server.ask(key, "GET", "/v1/tasks")
    assert (answer.status_code, code_of(answer.content)) == (401, "BAD_TOKEN")


def test_04_a_revoked_key(server: KeyedServer) -> None:
    key = server.key("revoked")
    with httpx.Client(base_url=server.live.url, headers={"x-api-key": key}, trust_env=False) as client:
        assert client.get("/v1/tasks").status_code == 200
        server.revoke("revoked")
        assert client.get("/v1/tasks").status_code == 401, "on the same connection, too"


def test_05_the_secret_before_a_rotation(server: KeyedServer) -> None:
    old = server.key("rotated")
    rotated = server.ask(server.admin, "POST", f"/v1/keys/{server.ids['rotated']}/rotate", json={})
    new = rotated.json()["secret"]
    assert server.ask(old, "GET", "/v1/tasks").status_code == 401
    assert server.ask(new, "GET", "/v1/tasks").status_code == 200


def test_06_a_key_of_another_server(server: KeyedServer, tmp_path: Path) -> None:
    other = KeyedServer(tmp_path, secrets=None)
    try:
        assert server.ask(other.admin, "GET", "/v1/tasks").status_code == 401
        assert other.ask(server.admin, "GET", "/v1/tasks").status_code == 401
    finally:
        other.stop()


def test_07_the_last_keys_end_does_not_open_the_server(tmp_path: Path) -> None:
    closing = KeyedServer(tmp_path, secrets=None)
    try:
        for name in list(closing.ids):
            closing.revoke(name)
        assert closing.ask(closing.admin, "GET", "/v1/tasks").status_code == 401
        assert closing.ask(None, "GET", "/v1/tasks").status_code == 401
        assert closing.ask("any", "POST", "/v1/tasks", json=PROMPT).status_code == 401
    finally:
        closing.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks?api_key={key}",
        "/v1/tasks?api-key={key}",
        "/v1/tasks?limit=1&key={key}",
        "/v1/tasks?token={key}",
        "/v1/tasks?ACCESS_TOKEN={key}",
        "/v1/tasks?%61pi_key={key}",
        "/v1/tasks?x={key}",
        "/v1/tasks/{key}",
        "/v1/tasks/%6co_{rest}",
        "/health?token={key}",
    ],
)
def test_08_a_key_in_the_url(server: KeyedServer, path: str) -> None:
    asked = path.replace("{key}", server.mine).replace("{rest}", server.mine[3:])
    for header in (None, server.mine):
        ((status, body),) = server.raw(get(asked, header))
        assert (status, code_of(body)) == (400, "INVALID_PARAMS")
        assert b"do not belong in URLs" in body
        assert server.mine.encode() not in body
        assert server.mine[3:].encode() not in body


def test_09_a_name_and_a_key_before_the_host(server: KeyedServer) -> None:
    for target in (f"http://user:{server.mine}@127.0.0.1/v1/tasks", f"http://{server.mine}@127.0.0.1/v1/tasks"):
        ((status, body),) = server.raw(get(target, None))
        assert (status, code_of(body)) == (400, "INVALID_PARAMS")
        assert server.mine.encode() not in body


def test_10_two_different_keys(server: KeyedServer) -> None:
    for lines in (
        [f"x-api-key: {server.theirs}"],
        [f"Authorization: Bearer {server.theirs}"],
        ["x-api-key: wrong"],
    ):
        ((status, body),) = server.raw(get("/v1/tasks", server.mine, *lines))
        assert (status, code_of(body)) == (400, "INVALID_PARAMS")
    ((status, _),) = server.raw(get("/v1/tasks", server.mine, f"x-api-key: {server.mine}"))
    assert status == 200, "the same key twice is one key"


def test_11_a_very_long_key(server: KeyedServer) -> None:
    for length in (1_000, 16_385, 30_000):
        answer = server.ask("k" * length, "GET", "/v1/tasks")
        assert (answer.status_code, code_of(answer.content)) == (401, "BAD_TOKEN")
    ((status, _),) = server.raw(get("/v1/tasks", "k" * 40_000))
    assert status == 431


@pytest.mark.parametrize("key", ["schlüssel", "\xff\xfe\xfd", "ключ".encode().decode("latin-1"), "lo_\x80" * 9, "a\tb"])
def test_12_a_key_that_is_not_ascii(server: KeyedServer, key: str) -> None:
    ((status, body),) = server.raw(get("/v1/tasks", key))
    assert (status, code_of(body)) == (401, "BAD_TOKEN")


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key.swapcase(),
        lambda key: "sk-" + key,
        lambda key: key[3:],
        lambda key: key + "=",
        lambda key: f'"{key}"',
        lambda key: f"{key} {key}",
        lambda key: f"{key},{key}",
        lambda key: digest_of(key.encode()),
        lambda key: f"token:{digest_of(key.encode())[:6]}",
    ],
)
def test_13_a_key_that_is_nearly_one(server: KeyedServer, change: Callable[[str], str]) -> None:
    ((status, body),) = server.raw(get("/v1/tasks", change(server.mine)))
    assert (status, code_of(body)) == (401, "BAD_TOKEN")


# --- 14: tests/unit/core/test_key_timing.py --------------------------------------------------------------------------


def test_15_a_scope_that_the_key_has_not(server: KeyedServer) -> None:
    reader = server.key("reader", scopes=["read"])
    for key, method, path in (
        (server.mine, "GET", "/v1/keys"),
        (server.mine, "POST", "/v1/keys"),
        (server.mine, "GET", "/v1/journal/export"),
        (server.mine, "POST", "/v1/pools/m/drain"),
        (reader, "POST", "/v1/tasks"),
        (reader, "POST", "/v1/chat/completions"),
    ):
        answer = server.ask(key, method, path)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN"), path


def test_16_a_model_path_or_priority_that_the_key_is_not_for(server: KeyedServer) -> None:
    narrow = server.key("narrow", models=["mock-a*"], routes=["/v1/tasks*"], batch_only=True)
    batch = {"priority": "batch"}
    assert server.ask(narrow, "POST", "/v1/tasks", json=PROMPT | batch | {"model_ref": "mock-alias"}).status_code == 202
    for path, body in (
        ("/v1/tasks", PROMPT | batch),
        ("/v1/tasks", PROMPT | {"model_ref": "mock-alias"}),
        ("/v1/tasks", PROMPT | {"model_ref": "mock-alias", "priority": "interactive"}),
        ("/v1/chat/completions", {"model": "mock-alias", "messages": [{"role": "user", "content": "x"}]}),
    ):
        answer = server.ask(narrow, "POST", path, json=body)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN"), body
    assert server.ask(narrow, "GET", "/v1/queue").status_code == 403


def test_17_a_restricted_key_that_would_make_a_free_one(server: KeyedServer) -> None:
    limited = server.key("limited-admin", scopes=["admin"], models=["mock"])
    own = f"/v1/keys/{server.ids['limited-admin']}"
    for method, path, body in (
        ("POST", "/v1/keys", {"name": "free", "scopes": ["admin"]}),
        ("PATCH", own, {"models": []}),
        ("POST", f"/v1/keys/{server.ids['admin']}/rotate", {}),
    ):
        answer = server.ask(limited, method, path, json=body)
        assert (answer.status_code, code_of(answer.content)) == (403, "FORBIDDEN")


def test_18_the_machines_own_key_from_another_machine() -> None:
    class NoKeys:
        any = True

    local = "lo_of-this-machine"
    keys: object = NoKeys()
    auth = Authentication(
        keys,  # type: ignore[arg-type]
        Settings(),
        secrets=Secrets(local=digest_of(local.encode())),
        provider=None,
        public=frozenset(),
    )
    scope = {
        "path": "/v1/tasks",
        "raw_path": b"/v1/tasks",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + local.encode())],
        "client": ("127.0.0.1", 1),
    }
    caller = auth.caller_of(scope)
    assert caller is not None
    assert caller.owner == "local"
    for address in ("192.168.1.9", "10.0.0.1", "2001:db8::1"):
        with pytest.raises(ForbiddenError):
            auth.caller_of(scope | {"client": (address, 1)})


# --- what belongs to others ------------------------------------------------------------------------------------------


def test_19_anothers_task(server: KeyedServer) -> None:
    task_id = server.task(server.mine)
    stranger = str(uuid.uuid4())
    for method, path in (
        ("GET", "/v1/tasks/{}"),
        ("GET", "/v1/tasks/{}?wait=1"),
        ("GET", "/v1/tasks/{}/stream"),
        ("GET", "/v1/tasks/{}/decision"),
        ("POST", "/v1/tasks/{}/cancel"),
    ):
        answer = server.ask(server.theirs, method, path.format(task_id))
        absent = server.ask(server.theirs, method, path.format(stranger))
        assert (answer.status_code, code_of(answer.content)) == (404, "NOT_FOUND"), path
        assert same_but_for(answer, absent, task_id, stranger), "it is told apart from a task that there is not"
        assert server.ask(server.admin, method, path.format(task_id)).status_code == 404, "admins look at the journal"
    assert task_id not in server.ask(server.theirs, "GET", "/v1/tasks").text
    assert server.ask(server.mine, "GET", f"/v1/tasks/{task_id}?wait=10000").json()["state"] == "completed"


def same_but_for(one: httpx.Response, other: httpx.Response, this: str, that: str) -> bool:
    def plain(answer: httpx.Response, name: str) -> str:
        found = json.loads(answer.text.replace(name, "ID"))
        found.pop("correlation_id", None)
        return json.dumps(found)

    return plain(one, this) == plain(other, that)


def test_20_anothers_session(server: KeyedServer) -> None:
    session_id = str(uuid.uuid4())
    server.task(server.mine, session_id=session_id)
    answer = server.ask(server.theirs, "GET", f"/v1/sessions/{session_id}")
    assert (answer.status_code, code_of(answer.content)) == (404, "NOT_FOUND")
    # Closing what is not there is no error: somebody else's session is not there, and stays.
    assert server.ask(server.theirs, "DELETE", f"/v1/sessions/{uuid.uuid4()}").status_code == 204
    assert server.ask(server.theirs, "DELETE", f"/v1/sessions/{session_id}").status_code == 204
    assert session_id not in server.ask(server.theirs, "GET", "/v1/sessions").text
    turn = server.ask(server.theirs, "POST", "/v1/tasks", json=PROMPT | {"session_id": session_id})
    assert turn.status_code in {404, 409}
    assert server.ask(server.mine, "GET", f"/v1/sessions/{session_id}").json()["turns"] == 1


def test_21_anothers_response(server: KeyedServer) -> None:
    made = server.ask(server.mine, "POST", "/v1/responses", json={"model": "mock", "input": "x", "store": True})
    assert made.status_code == 200, made.text
    response_id = made.json()["id"]
    for method, path in (
        ("GET", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}/input_items"),
        ("POST", "/v1/responses/{}/cancel"),
        ("DELETE", "/v1/responses/{}"),
    ):
        assert server.ask(server.theirs, method, path.format(response_id)).status_code == 404, path
    follow = {"model": "mock", "input": "y", "previous_response_id": response_id}
    assert server.ask(server.theirs, "POST", "/v1/responses", json=follow).status_code in {400, 404}
    assert server.ask(server.mine, "GET", f"/v1/responses/{response_id}").status_code == 200


def test_22_anothers_budget(server: KeyedServer) -> None:
    mine = f"/v1/budgets/key/{server.ids['mine']}"
    assert server.ask(server.admin, "PUT", mine, json={"tokens": 1_000_000_000}).status_code == 200
    assert server.ask(server.mine, "GET", mine).status_code == 200
    answer = server.ask(server.theirs, "GET", mine)
    assert (answer.status_code, code_of(answer.content)) == (404, "NOT_FOUND")
    assert server.ids["mine"] not in server.ask(server.theirs, "GET", "/v1/budgets").text
    for key in (server.mine, server.theirs):
        assert server.ask(key, "PUT", mine, json={"tokens": 1}).status_code == 403
        assert server.ask(key, "DELETE", mine).status_code == 403


def test_23_anothers_idempotency_key_and_task_id(server: KeyedServer) -> None:
    headers = {"Idempotency-Key": "shared"}
    one = server.ask(server.mine, "POST", "/v1/tasks", json=PROMPT, headers=headers).json()
    other = server.ask(server.theirs, "POST", "/v1/tasks", json=PROMPT, headers=headers).json()
    assert one["task_id"] != other["task_id"]
    assert not other["attached"]
    taken = server.ask(server.theirs, "POST", "/v1/tasks", json=PROMPT | {"task_id": one["task_id"]})
    assert (taken.status_code, code_of(taken.content)) == (409, "CONFLICT")


# --- the list itself -------------------------------------------------------------------------------------------------

#: numbers whose tests stand elsewhere, because they need another stage
ELSEWHERE = {
    14: "tests/unit/core/test_key_timing.py",
    43: "tests/contract/api/test_hostile_connections.py",
    44: "tests/contract/api/test_key_canary.py",
    45: "tests/contract/api/test_proxy_identity.py",
    46: "tests/contract/api/test_tls.py",
    47: "tests/contract/api/test_oidc.py",
    48: "tests/contract/api/test_key_limits.py",
}


def test_every_attack_of_the_list_has_its_test_and_every_test_its_line() -> None:
    listed = [int(n) for n in re.findall(r"^\| (\d+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)]
    folder = Path(__file__).parent
    tests = "".join((folder / name).read_text("utf-8") for name in ("test_attacks.py", "test_attacks_http.py"))
    here = {int(number) for number in re.findall(r"^def test_(\d\d)_", tests, re.MULTILINE)}
    assert listed == sorted(listed)
    assert set(listed) == here | set(ELSEWHERE)
    root = Path(__file__).parents[3]
    assert [path for path in ELSEWHERE.values() if not (root / path).is_file()] == []


def test_the_bootstrap_key_is_a_key(server: KeyedServer) -> None:
    assert server.ask(BOOTSTRAP, "GET", "/v1/keys").status_code == 200
    assert server.ask(BOOTSTRAP[:-1], "GET", "/v1/keys").status_code == 401
