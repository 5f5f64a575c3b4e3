"""A small HTTP client for large files: certificates checked, proxies of the environment used, redirects followed by rule.

Credentials go to the host that they are for and never along with a redirect; https never leads to http.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

from llama_orch import __version__

from .errors import BrokenOffError, StagingError
from .references import is_loopback, public

TIMEOUT_S: Final = 30.0
MAX_REDIRECTS: Final = 8
_MAX_ERROR_BYTES: Final = 64 * 1024
_RANGE: Final = re.compile(r"^bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)$")


class Response:
    """An answer whose body is read piece by piece."""

    def __init__(self, url: str, answer: http.client.HTTPResponse, sock: socket.socket | None) -> None:
        self.url = url
        self.status = answer.status
        self._answer = answer
        self._socket = sock

    def header(self, name: str) -> str:
        """A header's value; "" when it is not there."""
        return self._answer.getheader(name, "") or ""

    @property
    def length(self) -> int:
        """Bytes of the body that are announced; -1 = not announced."""
        text = self.header("Content-Length")
        return int(text) if re.fullmatch(r"\d{1,19}", text) else -1

    @property
    def content_range(self) -> tuple[int, int]:
        """Where a partial body begins, and the size of the whole (-1 = not told)."""
        found = _RANGE.match(self.header("Content-Range"))
        if found is None:
            raise BrokenOffError(f"{public(self.url)} answers a part without saying which")
        return int(found[1]), -1 if found[3] == "*" else int(found[3])

    @property
    def validator(self) -> str:
        """Changes with the content: the ETag, else the date of the last change; "" = not told."""
        return self.header("ETag") or self.header("Last-Modified")

    def read(self, size: int) -> bytes:
        """The next bytes; b"" at the end. :raises BrokenOffError: the connection failed."""
        try:
            return self._answer.read(size)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise BrokenOffError(f"the connection to {urlsplit(self.url).hostname} failed: {_reason(error)}") from error

    def text(self) -> bytes:
        """A small body as a whole. :raises BrokenOffError: the connection failed, or the body is not small."""
        body = self.read(8 * 1024 * 1024 + 1)
        if len(body) > 8 * 1024 * 1024:
            raise BrokenOffError(f"{public(self.url)} answers more than is to be read")
        return body

    def interrupt(self) -> None:
        """Make a read in another thread end at once."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Done with it."""
        with contextlib.suppress(OSError):
            self._answer.close()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()


class Client:
    """Makes requests.

    Args:
        context: of TLS; the system's certificates by default.
        proxies: as :func:`urllib.request.getproxies` gives them.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        bypass: Callable[[str], bool] | None = None,
    ) -> None:
        self._context = context
        self._proxies = urllib.request.getproxies() if proxies is None else proxies
        self._bypass = bypass or (lambda host: bool(urllib.request.proxy_bypass(host)))
        self._timeout_s = timeout_s

    def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> Response:
        """Follow redirects to an answer of 2xx, 401, 404, 405 or 416.

        Args:
            url: http only on this machine.
            method: GET or HEAD.
            headers: go everywhere.
            secrets: headers that go to the URL's own scheme, host and port alone.

        Raises:
            BrokenOffError: it may work later: no connection, 408, 425, 429, 5xx.
            StagingError: ``unauthorized``, ``not-found``, ``unreachable``.
        """
        home = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": f"llama-orch/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
            sent |= headers or {}
            if _origin(url) == home:
                sent |= secrets or {}
            response = self._request(url, method, sent)
            if response.status in {301, 302, 303, 307, 308}:
                location = response.header("Location")
                response.close()
                url = _followed(url, location)
                continue
            if response.status in {200, 206, 401, 404, 405, 416, 501}:
                return response
            with contextlib.closing(response):
                _refuse(response)
        raise StagingError("unreachable", f"{public(url)} redirects more than {MAX_REDIRECTS} times")

    def _request(self, url: str, method: str, headers: dict[str, str]) -> Response:
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            connection = self._connection(parts.scheme, host, parts.port)
            try:
                connection.connect()
                sock = connection.sock
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request(method, target, headers=headers)
                return Response(url, connection.getresponse(), sock)
            except BaseException:
                connection.close()
                raise
        except ssl.SSLCertVerificationError as error:
            raise StagingError(
                "unreachable",
                f"{public(url)}: its certificate is not trusted: {error.verify_message}",
                remedy="Check the address; SSL_CERT_FILE names certificates of one's own.",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise BrokenOffError(f"{host} cannot be reached: {_reason(error)}", cause="unreachable") from error

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        context = self._context or ssl.create_default_context()
        proxy = self._proxies.get("https", "")
        if proxy and not is_loopback(host) and not self._bypass(host):
            through = urlsplit(proxy if "//" in proxy else f"//{proxy}")
            connection = http.client.HTTPSConnection(
                through.hostname or "", through.port or 8080, timeout=self._timeout_s, context=context
            )
            connection.set_tunnel(host, port or 443)
            return connection
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _followed(url: str, location: str) -> str:
    nowhere = StagingError("unreachable", f"{public(url)} redirects to nowhere")
    try:
        following = urljoin(url, location)
        parts = urlsplit(following)
        scheme, host, _ = _origin(following)
    except ValueError as error:
        raise nowhere from error
    if not location or scheme not in {"https", "http"} or not host:
        raise nowhere
    if scheme == "http" and not (is_loopback(host) and urlsplit(url).scheme == "http"):
        raise StagingError("unreachable", f"{public(url)} redirects to {public(following)}, without TLS")
    return parts._replace(fragment="").geturl()


def _refuse(response: Response) -> None:
    """Say what a status means."""
    where = public(response.url)
    if response.status == 403:
        raise StagingError("unauthorized", f"{where} refuses access (403)")
    if response.status == 410:
        raise StagingError("not-found", f"{where} is gone (410)")
    if response.status in {408, 425, 429} or response.status >= 500:
        asked = response.header("Retry-After")
        raise BrokenOffError(
            f"{where} answers {response.status}",
            cause="unreachable",
            retry_after_s=min(float(asked), 60.0) if re.fullmatch(r"\d{1,6}", asked) else 0,
        )
    raise StagingError("unreachable", f"{where} answers {response.status}")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it says nothing"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]
