"""A server with keys, and requests to it byte by byte."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx

from llama_orch.api.auth import LOCAL, Secrets
from llama_orch.core.services.keys import KeySpec, digest_of

from .live_server import LiveServer, mock_settings

BOOTSTRAP = "bootstrap-key-of-the-tests"
SECRETS = Secrets(bootstrap=digest_of(BOOTSTRAP.encode()), local=digest_of(b"lo_local-token-of-the-tests"))
PROMPT = {"model_ref": "mock", "prompt": "x"}


class KeyedServer:
    """A server on which an admin's key, and two keys of others, are accepted."""

    def __init__(self, folder: Path, *, secrets: Secrets | None = SECRETS, **changes: Any) -> None:
        self.live = LiveServer(folder, mock_settings(**changes), secrets=secrets)
        self.live.start()
        self.client = httpx.Client(base_url=self.live.url, timeout=20, trust_env=False, verify=False)
        self.address = (self.live.url.partition("://")[2].rpartition(":")[0], int(self.live.url.rpartition(":")[2]))
        self.ids: dict[str, str] = {}
        self.admin = self.key("admin", scopes=["admin"])
        self.mine = self.key("mine")
        self.theirs = self.key("theirs")

    def key(self, name: str, **spec: Any) -> str:
        """A new key; its id stands in ``ids``."""
        made = self.live.run(self.live.services.keys.create(KeySpec(name=name, **spec), LOCAL, ""))
        self.ids[name] = made[0].key_id
        return made[1]

    def revoke(self, name: str) -> None:
        self.live.run(self.live.services.keys.revoke(self.ids[name], LOCAL, ""))

    def ask(self, key: str | None, method: str, path: str, **rest: Any) -> httpx.Response:
        """One request with a key as bearer."""
        headers = dict(rest.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return self.client.request(method, path, headers=headers, **rest)

    def stop(self) -> None:
        self.client.close()
        self.live.stop()

    def task(self, key: str, **request: Any) -> str:
        """A task that was submitted with a key."""
        answer = self.ask(key, "POST", "/v1/tasks", json=PROMPT | request)
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["task_id"]
        return task_id

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def raw(self, *pieces: bytes) -> list[tuple[int, bytes]]:
        """What is answered to these bytes until the server closes: status and body of each answer."""
        with self.connect() as one:
            for piece in pieces:
                one.sendall(piece)
            said = b""
            try:
                while part := one.recv(65536):
                    said += part
            except ConnectionResetError:
                pass
        return answers_in(said)


def head_of(key: str | None, *lines: str, host: str = "127.0.0.1") -> bytes:
    """Headers of a request after its first line."""
    own = [f"Host: {host}", "Connection: close", *([f"Authorization: Bearer {key}"] if key else []), *lines]
    return "".join(f"{line}\r\n" for line in own).encode("latin-1") + b"\r\n"


def get(path: str, key: str | None, *lines: str, host: str = "127.0.0.1") -> bytes:
    return f"GET {path} HTTP/1.1\r\n".encode("latin-1") + head_of(key, *lines, host=host)


def answers_in(said: bytes) -> list[tuple[int, bytes]]:
    """The answers in what a connection said, all with a Content-Length."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        sizes = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
        size = sizes[0] if sizes else 0
        found.append((int(lines[0].split(b" ")[1]), rest[:size]))
        said = rest[size:]
    return found


def code_of(body: bytes) -> str:
    """The stable code in an error's body."""
    found = json.loads(body)
    return str(found.get("error", found)["code"])
