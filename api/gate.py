"""Who may speak to a loopback server: the Host and Origin of each request (AUTH-1).

A web page that a browser on this machine shows can send requests to loopback addresses. Its Origin tells, and after
DNS rebinding its Host does; both are checked before anything else is read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from ..core.errors import ForbiddenError

#: verdicts are remembered, up to so many
_REMEMBERED = 1024


def is_loopback(host: str) -> bool:
    """Whether a host (without port) is a loopback address or ``localhost``."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether a host (without port) is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def host_without_port(value: str) -> str:
    """The host of a Host header or authority, without its port."""
    if value.startswith("["):
        return value[: value.find("]") + 1]
    return value.partition(":")[0]


class Gate:
    """Checks Host and Origin.

    :param hosts: names accepted beside loopback ones, with or without port.
    :param origins: Origins accepted from browsers, such as ``https://ui.example``.
    :param addresses: accept any IP address as Host: the server listens on others than loopback ones. No name can be
        made to stand for such a Host, so that rebinding gains nothing.
    """

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = (), *, addresses: bool = False) -> None:
        self._addresses = addresses
        self._hosts = {h.lower() for h in hosts}
        self._origins = {o.lower().rstrip("/") for o in origins}
        self._known_hosts: set[bytes] = set()

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """:raises ForbiddenError: Host or Origin is not one of ours."""
        host = b""
        origin = b""
        hosts = 0
        for name, value in headers:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"origin":
                origin = value
        if host not in self._known_hosts or hosts != 1:
            self._check_host(host, hosts)
        if origin:
            self._check_origin(origin, host)

    def _check_host(self, host: bytes, hosts: int) -> None:
        text = host.decode("latin-1").lower()
        if hosts > 1:
            msg = "the request has more than one Host header"
            raise ForbiddenError(msg, field="Host", got=text[:200], remedy="Send one Host header.")
        name = host_without_port(text)
        if not (
            is_loopback(name) or text in self._hosts or name in self._hosts or (self._addresses and is_address(name))
        ):
            msg = f"the Host {text[:200]!r} is not one of this server's"
            raise ForbiddenError(
                msg,
                field="Host",
                got=text[:200],
                remedy="Call http://127.0.0.1 or http://localhost, or add the name to allowed_hosts in the configuration.",
            )
        if len(self._known_hosts) < _REMEMBERED:
            self._known_hosts.add(host)

    def _check_origin(self, origin: bytes, host: bytes) -> None:
        text = origin.decode("latin-1").lower().rstrip("/")
        own = host.decode("latin-1").lower()
        if text in self._origins or text in (f"http://{own}", f"https://{own}"):
            return
        msg = f"requests from the origin {text[:200]!r} are not accepted"
        raise ForbiddenError(
            msg,
            field="Origin",
            got=text[:200],
            remedy="Add the origin to allowed_origins in the configuration if its pages may use this server.",
        )
