"""The SDK's client as commands use it: plain JSON by path, streams as frames, and errors that carry an exit status.

A stream that breaks off is taken up again after the last frame seen (`Last-Event-ID`), with a growing, bounded
pause; a server that was killed and started again goes on where it was. Only when the server says that it no longer
holds that frame (`RESUME_LOST`, after a power loss) does the caller hear of it.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..client.calls import Call
from ..client.errors import ApiError, LlamaOrchError, SilentError, StreamBrokenError, UnreachableError
from ..client.sse import Frame
from ..client.sync import Client as Sdk
from ..client.target import Server, Target, checked, shown
from . import exits
from .exits import AskAgainError, CliError

#: how often a broken stream is taken up again without a single new frame in between
MOST_RETRIES = 10
_READY_S = 2.0
#: what a server without keys accepts, where nobody named one
KEYLESS = "local"
_UNAUTHORIZED = 401


@dataclass(slots=True)
class Client:
    """Speaks to one server.

    :raises CliError: in every method: unreachable (status 3), refused for now (4), or wrong (1 or 2), as the server
        says it.
    """

    url: str
    timeout_s: float = 30.0
    #: how to pause between retries, and the jitter of pauses; tests pass their own
    pause: Callable[[float], object] = time.sleep
    token: str = KEYLESS
    #: asked before a retry: where the server is now (it may have been started again elsewhere), "" = the same
    relocate: Callable[[], str] = field(default=lambda: "")
    #: asked then as well: which key it takes now, "" = the same
    renew: Callable[[], str] = field(default=lambda: "")
    #: whom to trust for https; "" = the system's authorities
    ca_file: str = ""
    rand: Callable[[], float] = random.random
    _sdk: Sdk = field(init=False)

    def __post_init__(self) -> None:
        with _told(self.url):
            self.url = checked(self.url)
            server = Server(self.url, self.token)
        self._sdk = Sdk(
            target=Target(server, self._found),
            ca_file=self.ca_file or None,
            retries=0,
            stream_retries=MOST_RETRIES,
            agent="llama-orch-cli",
            sleep=self.pause,
            rand=self.rand,
        )

    def get(self, path: str, **query: object) -> Any:
        """The JSON (or text, where it is none) behind a path; query values that are ``None`` are left out."""
        return self._send(Call("GET", path, bytes, query=query, repeatable=True))

    def post(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
        """Send JSON, get the answer's JSON."""
        # A task that names its own id is the same task when it is sent again.
        again = isinstance(body, dict) and "task_id" in body
        return self._send(Call("POST", path, bytes, body=_encoded(body), headers=headers or {}, repeatable=again))

    def put(self, path: str, body: object) -> Any:
        """Set what is behind a path to JSON, get the answer's JSON."""
        return self._send(Call("PUT", path, bytes, body=_encoded(body)))

    def patch(self, path: str, body: object) -> Any:
        """Change what is behind a path, get the answer's JSON."""
        return self._send(Call("PATCH", path, bytes, body=_encoded(body)))

    def delete(self, path: str) -> Any:
        """Remove what is behind a path."""
        return self._send(Call("DELETE", path, bytes))

    def lines(self, path: str, **query: object) -> Iterator[bytes]:
        """The lines of a long answer as they come; :raises CliError: also when it breaks off before its end."""
        self._sdk.timeout_s = self.timeout_s
        with _told(self.url):
            yield from self._sdk.lines(Call("GET", path, bytes, query=query))

    def ready(self) -> bool:
        """Whether the server says that it can serve; never raises."""
        self._sdk.timeout_s = _READY_S
        try:
            self._sdk.send(Call("GET", "/readyz"))
        except LlamaOrchError:
            return False
        return True

    def stream(self, task_id: str, after: str = "", *, progress: bool = True, metrics: bool = False) -> Iterator[Frame]:
        """All frames of a task after the one with the id ``after``, to its ``end`` or ``error``.

        :param metrics: ask for metrics between them.

        Besides the server's frames there are ``reconnected`` and ``resume_lost`` (data: the id that the server still
        holds) of the client's own.
        """
        frames = self._sdk.frames(task_id, after=after, progress=progress, metrics=metrics, restart_lost=True)
        try:
            with frames, _told(self.url, keyless=self.token == KEYLESS):
                yield from frames
        except CliError as error:
            if isinstance(error.__cause__, StreamBrokenError):
                last = error.__cause__.last_id
                error.details |= {"task_id": task_id, "last_id": last}
                error.remedy = f"The task may still run. When the server is back: llama-orch stream {task_id}" + (
                    f" --from {last}" if last else ""
                )
            raise

    def _found(self) -> Server:
        self.url = self.relocate() or self.url
        self.token = self.renew() or self.token
        return Server(self.url, self.token)

    def _send(self, call: Call[bytes]) -> Any:
        self._sdk.timeout_s = self.timeout_s
        with _told(self.url, again=call.repeatable, keyless=self.token == KEYLESS):
            return _parsed(self._sdk.send(call))


@contextlib.contextmanager
def _told(url: str, *, again: bool = False, keyless: bool = False) -> Iterator[None]:
    """Within the block the SDK's errors become those of commands.

    :param again: what is asked may be asked again without being done twice.
    :param keyless: nobody named a key.
    """
    try:
        yield
    except StreamBrokenError as error:
        trouble = error.__cause__
        assert isinstance(trouble, LlamaOrchError), "what broke it"
        raise CliError(error.message, status=_status(trouble), code=trouble.code) from error
    except UnreachableError as error:
        kind = AskAgainError if again and not isinstance(error, SilentError) else CliError
        raise kind(
            error.message, remedy=error.remedy, status=exits.UNREACHABLE, code=UnreachableError.code, url=shown(url)
        ) from error
    except ApiError as error:
        refused = _refused(error)
        if keyless and error.status == _UNAUTHORIZED:
            refused = CliError(
                f"{url} asks for a key, and none is named",
                remedy="Set LLORCH_API_TOKEN to one; `llama-orch keys create NAME` makes it, on the server's own machine.",
                status=refused.status,
                code="MISSING_TOKEN",
                **refused.details,
            )
        raise refused from error
    except LlamaOrchError as error:
        raise exits.UsageError(error.message, remedy=error.remedy) from error


def _refused(error: ApiError) -> CliError:
    """An error answer: the server's own sentence and remedy, and the exit status that fits."""
    remedy = error.remedy
    if error.retry_after_ms:
        remedy += f" (after {error.retry_after_ms / 1000:g} s)"
    details = {name: value for name, value in error.body.items() if name not in {"message", "remedy", "code"}}
    return CliError(
        error.message,
        remedy=remedy.strip(),
        status=_status(error),
        code=error.code,
        **details,
        http_status=error.status,
    )


def _status(error: LlamaOrchError) -> int:
    if not isinstance(error, ApiError):
        return exits.UNREACHABLE
    if error.status in {429, 503}:
        return exits.REFUSED
    return exits.USAGE if error.status in {400, 413, 415, 422} else exits.FAILED


def _encoded(body: object) -> bytes | None:
    if body is None:
        return None
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _parsed(text: bytes) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace")
