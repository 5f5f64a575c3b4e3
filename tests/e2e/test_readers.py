"""Sixty-four readers of one long task, one of them stalled and one at 1 KB/s: all get every entry, and the server keeps
no more of it in memory than without them (STR-2, STR-3)."""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

TOKENS = 100_000
READERS = 64
GROWTH_BYTES = 10_000_000
SETTINGS = {"pools": [{"id": "mock", "engine": "mock", "model": "mock", "slots": 1, "ctx": 2 * TOKENS}]}
PROMPT = f"[[mock tokens={TOKENS} rate=12000]]"
PAGE = os.sysconf("SC_PAGE_SIZE")
_TOKEN = re.compile(rb"event: token\nid: (\d+)\.(\d+)\ndata: ([^\n]*)\n\n")


class Memory:
    """The most resident memory of a process while somebody looks."""

    def __init__(self, pid: int) -> None:
        self._statm = Path(f"/proc/{pid}/statm")
        self.peak = 0

    def look(self) -> None:
        self.peak = max(self.peak, int(self._statm.read_text().split()[1]) * PAGE)

    @contextmanager
    def watched(self) -> Iterator[Memory]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                self.look()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield self
        finally:
            over.set()
            watcher.join()


class Reader:
    """One connection that follows the task; keeps a digest of its token frames, not the frames."""

    def __init__(self, url: str, task_id: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.socket.sendall(
            f"GET /v1/tasks/{task_id}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        self.tokens = 0
        self.ended = False
        self.digest = hashlib.sha256()
        self._raw = b""
        self._text = b""

    def read(self, limit: int = 1 << 18) -> bool:
        """Take what is there; ``False`` at the end."""
        piece = self.socket.recv(limit)
        self._raw += piece
        self._dechunk()
        taken = 0
        for found in _TOKEN.finditer(self._text):
            self.tokens += 1
            assert int(found[2]) == self.tokens, "a gap or a repetition"
            self.digest.update(found[3])
            taken = found.end()
        self.ended = self.ended or b"event: end\n" in self._text
        self._text = self._text[taken:]
        if not piece:
            self.socket.close()
        return bool(piece)

    def _dechunk(self) -> None:
        if not self._text and self.tokens == 0 and b"\r\n\r\n" in self._raw and self._raw.startswith(b"HTTP/1.1 200"):
            self._raw = self._raw.partition(b"\r\n\r\n")[2]
        pieces = [self._text]
        while True:
            line, found, rest = self._raw.partition(b"\r\n")
            if not found or line.startswith(b"HTTP/"):
                break
            size = int(line, 16)
            if len(rest) < size + 2:
                break
            pieces.append(rest[:size])
            self._raw = rest[size + 2 :]
        self._text = b"".join(pieces)


def read_all(readers: list[Reader], slow: Reader | None, over: Callable[[], bool]) -> None:
    """Read everything from all of them; from the slow one at 1 KB/s until it is over."""
    selector = selectors.DefaultSelector()
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    due = time.monotonic()
    while selector.get_map() or (slow is not None and not over()):
        for key, _ in selector.select(0.05):
            if not key.data.read():
                selector.unregister(key.fileobj)
        if slow is not None and time.monotonic() >= due:
            due += 1
            slow.read(1024)


@pytest.mark.slow
def test_sixty_four_readers_cost_no_memory_and_get_every_entry(new_server: Callable[..., Any]) -> None:
    server = new_server(SETTINGS).start()
    memory = Memory(server.process.pid)

    def submit(prompt: str) -> str:
        task_id: str = server.post("/v1/tasks", {"model_ref": "mock", "prompt": prompt, "seed": 1})["task_id"]
        return task_id

    def wait(task_id: str) -> str:
        state: str = server.get(f"/v1/tasks/{task_id}?wait=110000")["state"]
        return state

    # Once in small, so that what is loaded and made at the first use counts for nobody.
    task_id = submit("[[mock tokens=3000]]")
    read_all([Reader(server.url, task_id) for _ in range(READERS)], None, lambda: True)

    with memory.watched():
        assert wait(submit(PROMPT)) == "completed"
    without = memory.peak
    memory.peak = 0

    task_id = submit(PROMPT)
    readers = [Reader(server.url, task_id) for _ in range(READERS - 2)]
    stalled, slow = Reader(server.url, task_id), Reader(server.url, task_id)
    over = threading.Event()

    def until_the_end() -> None:
        assert wait(task_id) == "completed"
        over.set()

    waiter = threading.Thread(target=until_the_end)
    with memory.watched():
        waiter.start()
        read_all(readers, slow, over.is_set)
        waiter.join()
        # The engine is done; those who were behind take the rest from the journal.
        read_all([stalled, slow], None, over.is_set)
    grown = memory.peak - without

    everybody = [*readers, stalled, slow]
    assert [reader.tokens for reader in everybody] == [TOKENS] * READERS
    assert all(reader.ended for reader in everybody)
    assert len({reader.digest.hexdigest() for reader in everybody}) == 1
    print(f"without readers {without / 1e6:.1f} MB, with {READERS} {memory.peak / 1e6:.1f} MB")
    assert grown < GROWTH_BYTES, f"the server grew by {grown} bytes"
