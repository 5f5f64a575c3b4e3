"""A relay in front of PostgreSQL that cuts the connection at the next statement, before or after it arrives."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit


class CuttingProxy:
    """Relays connections to a server on a Unix socket; :meth:`cut` arms it for one statement."""

    def __init__(self, url: str) -> None:
        self._target = f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"
        self._folder = tempfile.TemporaryDirectory(prefix="px-")
        self.url = url.replace(str(Path(self._target).parent), self._folder.name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._folder.name}/.s.PGSQL.5432")
        self._listener.listen()
        self._armed = ""
        self._threads = [threading.Thread(target=self._accept)]

    def cut(self, *, delivered: bool) -> None:
        """Cut at the next thing a client says: hand it on first and drop the answer, or drop it as well."""
        self._armed = "answer" if delivered else "question"

    def __enter__(self) -> CuttingProxy:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._relay, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        back = threading.Thread(target=self._answers, args=(server, client))
        back.start()
        with contextlib.suppress(OSError):
            while said := client.recv(65_536):
                if self._armed == "question":
                    self._armed = ""
                    break
                if self._armed == "answer":
                    self._armed = "cut"
                server.sendall(said)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        back.join()
        client.close()
        server.close()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(65_536):
                if self._armed == "cut":
                    self._armed = ""
                    break
                client.sendall(answer)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
