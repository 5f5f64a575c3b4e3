"""Who commands the engines of a host: the newest epoch of one journal, across crashes of everybody.

An orchestratord that was stopped (SIGSTOP, a frozen virtual machine) while another one took its journal over does not
know so when it wakes up. Its epoch is lower, and nothing that it says is heard.
"""

from __future__ import annotations

import contextlib
import hmac
from pathlib import Path

import msgspec

from . import files
from .protocol import PROTOCOL, Hello, Refused, Tunnel


class Fenced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is on disk."""

    #: the journal that commanded last
    owner: str = ""
    #: its highest epoch
    epoch: int = 0
    #: name that it has for this host
    host: str = "local"


class Fence:
    """The gate that every connection passes.

    Args:
        path: of the record.
        key: what a connection over the network has to know; "" = nothing is known that would do.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self._path = path
        self._key = key
        self.held = Fenced()
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self.held = msgspec.json.decode(path.read_bytes(), type=Fenced)

    def refuses(self, hello: Hello | Tunnel, *, from_network: bool, occupied: bool) -> Refused | None:
        """Why it is not let in, or ``None``.

        Args:
            hello: its first line.
            from_network: it did not come over the socket that only this user can open.
            occupied: another connection commands just now.
        """
        if from_network and not (self._key and hmac.compare_digest(hello.key.encode(), self._key.encode())):
            return Refused(code="AUTH", message="the key is not the one of this host")
        if hello.protocol != PROTOCOL:
            return Refused(code="VERSION", message=f"protocol {hello.protocol} is not spoken here, but {PROTOCOL} is")
        held = self.held
        if held.owner and hello.owner != held.owner:
            if occupied or isinstance(hello, Tunnel):
                return Refused(code="OWNER", message="the engines of this host belong to another journal")
            return None
        if hello.epoch < held.epoch:
            return Refused(code="FENCED", message=f"epoch {hello.epoch} is over: epoch {held.epoch} was here")
        return None

    def admit(self, hello: Hello) -> bool:
        """Remember who commands now, before it is told so; whether that is another journal than before.

        :raises OSError: it cannot be remembered, so it must not command.
        """
        wanted = Fenced(owner=hello.owner, epoch=hello.epoch, host=hello.host)
        replaced = self.held.owner != hello.owner
        if wanted != self.held:
            files.replace(self._path, msgspec.json.encode(wanted))
            self.held = wanted
        return replaced
