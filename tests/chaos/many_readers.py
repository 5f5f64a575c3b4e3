"""Many readers of one stream, in a process of its own: all but two read as fast as they can.

Run as a script: ``many_readers.py PORT PATH COUNT SLOW_BYTES``. Reader 0 stalls after its first bytes and reader 1 takes
``SLOW_BYTES`` a second, until a line comes on standard input: the engine has finished. Then both read on. Answers one JSON
line then (how far each reader is), and one at the end (frames and digest of each); reader 2's bytes go to standard error.
"""

from __future__ import annotations

import hashlib
import json
import selectors
import socket
import sys
import time

STALLED, SLOW, KEPT = 0, 1, 2


class Reader:
    """One connection: counts frames, and digests what it is sent, comments left out."""

    def __init__(self, port: int, path: str, *, narrow: bool) -> None:
        self.socket = socket.socket()
        if narrow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        self.frames = 0
        #: ends of frames so far, those of chunks that are not complete yet included
        self.ends = 0
        self.digest = hashlib.blake2b()
        self.kept: list[bytes] | None = None
        self.over = False
        self._rest = b""
        self._headers = True

    def take(self, most: int) -> None:
        """Read once."""
        data = self.socket.recv(most)
        if not data:
            raise EOFError(f"the stream broke off after {self.frames} frames")
        self.ends += data.count(b"\n\n")
        self._rest += data
        if self._headers:
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 200 "), head
            self._headers, self._rest = False, rest
        at = 0
        rest = self._rest
        while True:
            line = rest.find(b"\r\n", at)
            if line < 0:
                break
            size = int(rest[at:line], 16)
            if len(rest) < line + size + 4:
                break
            chunk = rest[line + 2 : line + 2 + size]
            at = line + size + 4
            if not size:
                self.over = True
            elif not chunk.startswith(b":"):
                self.frames += chunk.count(b"\n\n")
                self.digest.update(chunk)
                if self.kept is not None:
                    self.kept.append(chunk)
        self._rest = rest[at:]


def main() -> None:
    """Read until every stream has ended."""
    port, path, count, slow_bytes = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    readers = [Reader(port, path, narrow=n in (STALLED, SLOW)) for n in range(count)]
    readers[KEPT].kept = []
    readers[STALLED].take(1024)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    for reader in readers[2:]:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    finished = False
    began = time.monotonic()
    taken = 0
    while not (finished and all(reader.over for reader in readers)):
        for key, _ in selector.select(timeout=0.1):
            if key.data is None:
                sys.stdin.readline()
                selector.unregister(sys.stdin)
                finished = True
                print(json.dumps([reader.ends for reader in readers]), flush=True)
                for reader in readers[:2]:
                    selector.register(reader.socket, selectors.EVENT_READ, reader)
                continue
            key.data.take(1 << 18)
            if key.data.over:
                selector.unregister(key.data.socket)
        due = int((time.monotonic() - began) * slow_bytes) - taken
        if not finished and due > 0:
            readers[SLOW].take(due)
            taken += due
    print(json.dumps([(reader.frames, reader.digest.hexdigest()) for reader in readers]), flush=True)
    kept = readers[KEPT].kept
    assert kept is not None
    sys.stderr.buffer.write(b"".join(kept))


if __name__ == "__main__":
    main()
