"""The command line's HTTP client, on the standard library: plain calls, and streams that resume.

A stream that breaks off is taken up again after the last frame seen (`Last-Event-ID`), with a growing, bounded
pause; a server that was killed and started again goes on where it was. Only when the server says that it no longer
holds that frame (`RESUME_LOST`, after a power loss) does the caller hear of it.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from . import exits
from .exits import AskAgainError, CliError
from .sse import Frame, frames

#: a stream sends a comment at least every 15 s; a silence of this length is a dead connection
STREAM_SILENCE_S = 60.0
#: how often a broken stream is taken up again without a single new frame in between
MOST_RETRIES = 10
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


@dataclass(slots=True)
class Client:
    """Speaks to one server.

    :raises CliError: in every method: unreachable (status 3), refused for now (4), or wrong (1 or 2), as the server
        says it.
    """

    url: str
    timeout_s: float = 30.0
    #: how to pause between retries; tests pass their own
    pause: Callable[[float], object] = time.sleep
    token: str = "local"  # noqa: S105 - what a server without keys accepts
    #: asked before a retry: where the server is now (it may have been started again elsewhere), "" = the same
    relocate: Callable[[], str] = field(default=lambda: "")

    def __post_init__(self) -> None:
        self._check(self.url)

    def get(self, path: str, **query: object) -> Any:
        """The JSON (or text, where it is none) behind a path; query values that are ``None`` are left out."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self._call("GET", path + ("?" + urlencode(given) if given else ""))

    def post(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
        """Send JSON, get the answer's JSON."""
        return self._call("POST", path, body, headers)

    def lines(self, path: str, **query: object) -> Iterator[bytes]:
        """The lines of a long answer as they come; :raises CliError: also when it breaks off before its end."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        connection = self._connect(self.timeout_s)
        try:
            connection.request("GET", path + ("?" + urlencode(given) if given else ""), headers=self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                raise _error(answer.status, _parsed(answer.read()))
            for line in answer:
                yield line.rstrip(b"\n")
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether the server says that it can serve; never raises."""
        try:
            connection = self._connect(2.0)
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return False

    def stream(self, task_id: str, after: str = "", *, progress: bool = True, metrics: bool = False) -> Iterator[Frame]:
        """All frames of a task after the one with the id ``after``, to its ``end`` or ``error``.

        :param metrics: ask for metrics between them.

        Besides the server's frames it yields ``reconnected`` and ``resume_lost`` (data: the id that the server still
        holds) of its own.
        """
        failures = 0
        asked = [name for name, wanted in (("progress=1", progress), ("metrics=1", metrics)) if wanted]
        path = f"/v1/tasks/{quote(task_id, safe='')}/stream" + ("?" + "&".join(asked) if asked else "")
        while True:
            trouble: CliError
            try:
                for frame in self._frames(path, after):
                    failures = 0
                    after = frame.id or after
                    if frame.event == "error" and not frame.id:  # of the transport; the task goes on
                        trouble = _error(503, json.loads(frame.data))
                        break
                    yield frame
                    if frame.event in {"end", "error"}:
                        return
                else:
                    trouble = CliError("the stream broke off", status=exits.UNREACHABLE)
            except CliError as error:
                if error.code == "RESUME_LOST":
                    held = str(error.details.get("last_id_held", ""))
                    yield Frame("resume_lost", json.dumps({"last_id_held": held, "seen": after}))
                    after = held
                    failures += 1
                    if failures <= MOST_RETRIES:
                        continue
                if error.status not in {exits.UNREACHABLE, exits.REFUSED}:
                    raise
                trouble = error
            failures += 1
            if failures > MOST_RETRIES:
                raise CliError(
                    f"{trouble.message} (tried {MOST_RETRIES} times again)",
                    remedy=f"The task may still run. When the server is back: llama-orch stream {task_id}"
                    + (f" --from {after}" if after else ""),
                    status=trouble.status,
                    code=trouble.code,
                    task_id=task_id,
                    last_id=after,
                ) from trouble
            self.pause(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1)))
            self.url = self.relocate() or self.url
            yield Frame("reconnected", json.dumps({"after": after, "attempt": failures}))

    def _frames(self, path: str, after: str) -> Iterator[Frame]:
        connection = self._connect(STREAM_SILENCE_S)
        try:
            headers = {"Accept": "text/event-stream"} | self._headers()
            if after:
                headers["Last-Event-ID"] = after
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise _error(answer.status, _parsed(answer.read()))

            def chunks() -> Iterator[bytes]:
                while chunk := answer.read1(65_536):
                    yield chunk

            yield from frames(chunks())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _call(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
        connection = self._connect(self.timeout_s)
        sent = {"Accept": "application/json"} | self._headers() | (headers or {})
        raw = None
        if body is not None:
            raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, raw, sent)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            # A task that names its own id is the same task when it is sent again.
            repeatable = method == "GET" or (isinstance(body, dict) and "task_id" in body)
            kind = AskAgainError if repeatable and not isinstance(error, TimeoutError) else CliError
            raise self._unreachable(error, kind) from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise _error(answer.status, _parsed(text))
        return _parsed(text)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "User-Agent": "llama-orch-cli"}

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname is not None, "checked when the client was made"
        return kind(parts.hostname, parts.port, timeout=timeout_s)

    def _unreachable(self, error: Exception, kind: type[CliError] = CliError) -> CliError:
        what = "took too long to answer" if isinstance(error, (TimeoutError, socket.timeout)) else "does not answer"
        return kind(
            f"the server at {self.url} {what} ({str(error) or type(error).__name__})",
            remedy="`llama-orch status` shows what runs; `llama-orch serve` starts a server.",
            status=exits.UNREACHABLE,
            code="UNREACHABLE",
            url=self.url,
        )

    @staticmethod
    def _check(url: str) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise exits.UsageError(f"{url!r} is no server address", remedy="It looks like http://127.0.0.1:8080.")


def _parsed(text: bytes) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace")


def _error(status: int, body: Any) -> CliError:
    """An error answer as an exception: the server's own sentence and remedy, and the exit status that fits."""
    told: dict[str, Any] = body if isinstance(body, dict) else {}
    if isinstance(told.get("error"), dict):
        told = told["error"]
    message = str(told.get("message") or (body if isinstance(body, str) and len(body) < 500 else f"HTTP {status}"))
    remedy = str(told.get("remedy") or "")
    if told.get("retry_after_ms"):
        remedy += f" (after {int(told['retry_after_ms']) / 1000:g} s)"
    exit_status = (
        exits.REFUSED if status in {429, 503} else exits.USAGE if status in {400, 413, 415, 422} else exits.FAILED
    )
    details = {name: value for name, value in told.items() if name not in {"message", "remedy", "code"}}
    return CliError(
        message,
        remedy=remedy.strip(),
        status=exit_status,
        code=str(told.get("code", "")),
        **details,
        http_status=status,
    )
