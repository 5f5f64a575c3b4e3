"""What orchestratord and pool-managerd say to each other: one JSON object a line, typed on both sides.

A connection begins with :class:`Hello` and its answer. Behind that the server of the journal sends what it wants
(:class:`Desired`, always all of it) and what it has made durable (:class:`Ack`); the program on the engines' host sends
what happened (:class:`Fact`, again and again until it was acknowledged) and what only concerns who listens just now.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from ..core.engine_ports import EngineProperties
from ..core.settings import ManagerSettings
from .desired import DesiredPool

#: both sides must say the same number; raised when a message changes its meaning
PROTOCOL: Final = 1
#: longest line, bytes; a longer one ends the connection
MAX_LINE: Final = 1_048_576
#: an end that hears nothing for so long asks; twice as long, and the other one is gone
QUIET_S: Final = 5.0


class ProtocolError(Exception):
    """The other side said what is no message of this protocol, or too much at once."""


class _Message(msgspec.Struct, frozen=True, tag=True, tag_field="type", omit_defaults=True):
    """One line."""


# --- from orchestratord ------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True):
    """The first line: who speaks, and by which right. Accepted, it closes the connection of whoever spoke before."""

    #: :data:`PROTOCOL` of the speaker, always said
    protocol: int
    #: the journal that decides; see :func:`~llama_orch.pools.client.owner_of_journal`
    owner: str
    #: the writer's epoch; lower than one that was seen, and it is refused (fenced)
    epoch: int
    #: name that this host has in the configuration; facts about the host bear it
    host: str = "local"
    #: of the program
    version: str = ""
    #: how long to live without a connection, milliseconds, if it was started to be ended so
    linger_ms: int = 600_000
    #: of ``--key-file``, over TCP
    key: str = ""


class Desired(_Message, frozen=True, kw_only=True):
    """All that shall be, from now on. A pool that is missing is stopped and forgotten."""

    epoch: int
    #: counts up within the epoch; facts name the one that they were observed under
    revision: int
    pools: list[DesiredPool]
    manager: ManagerSettings = msgspec.field(default_factory=ManagerSettings)


class Ack(_Message, frozen=True, kw_only=True):
    """The facts of an incarnation up to this number are in the journal: they may be forgotten."""

    incarnation: str
    n: int


class LogsRequest(_Message, frozen=True, kw_only=True):
    """Send the last lines of a pool's log."""

    pool_id: str
    lines: int = 100


class Stop(_Message, frozen=True, kw_only=True):
    """End. The engines end too, or live on until the next start adopts them."""

    kill_engines: bool


class Tunnel(_Message, frozen=True, kw_only=True):
    """The first line of a connection that leads on to an engine's port on the host's loopback."""

    protocol: int
    owner: str
    epoch: int
    pool_id: str
    key: str = ""


class Ping(_Message, frozen=True, kw_only=True):
    """Are you there?"""


# --- from pool-managerd ------------------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, kw_only=True):
    """The Hello was accepted: this epoch commands from now on."""

    boot_id: str
    #: new at each start of the program
    incarnation: str
    version: str = ""
    #: number that the next fact of this incarnation will have
    next_n: int = 1
    #: it was started to end by itself once nobody is connected
    lingers: bool = False


class Refused(_Message, frozen=True, kw_only=True):
    """The Hello (or the command) was not accepted; the connection is closed."""

    #: FENCED: a newer epoch was here. OWNER: it serves another journal. AUTH: wrong key or user. VERSION: another protocol.
    #: UNKNOWN: no such pool. UNWRITABLE: its disk takes nothing, so that it could not remember the epoch
    code: Literal["FENCED", "OWNER", "AUTH", "VERSION", "UNKNOWN", "UNWRITABLE"]
    message: str


class Fact(_Message, frozen=True, kw_only=True):
    """Something that happened, as an event of the journal. It is durable on its host before it is sent."""

    incarnation: str
    #: from 1 within the incarnation, ascending; numbers of facts that a later one made void are missing
    n: int
    boot_id: str
    #: the next fact belongs into the same batch
    more: bool = False
    #: epoch and revision of what was wanted when it was observed
    epoch: int = 0
    revision: int = 0
    #: wire name and version of the event, and its payload
    name: str
    version: int = 1
    payload: msgspec.Raw
    #: what the engine says of itself, with ``pool.ready``
    properties: EngineProperties | None = None


class GpuSample(_Message, frozen=True, kw_only=True):
    """How the GPUs are just now; dropped when nobody listens."""

    sample: msgspec.Raw


class Progress(_Message, frozen=True, kw_only=True):
    """How far something is that takes long; dropped when nobody listens."""

    pool_id: str
    #: "fetch" | "verify" | "install" | "load" …
    phase: str
    done: int
    #: 0 = not known
    total: int = 0
    #: "bytes" | "files" | "steps"
    unit: str = "bytes"


class LogLines(_Message, frozen=True, kw_only=True):
    """The last lines of a pool's log, oldest first."""

    pool_id: str
    lines: list[str]


class Pong(_Message, frozen=True, kw_only=True):
    """Yes."""


class Open(_Message, frozen=True, kw_only=True):
    """The tunnel is open: what follows goes to the engine, and comes from it."""


ToManager = Hello | Desired | Ack | LogsRequest | Stop | Tunnel | Ping
FromManager = Welcome | Refused | Fact | GpuSample | Progress | LogLines | Pong | Open

_to_manager: msgspec.json.Decoder[ToManager] = msgspec.json.Decoder(ToManager)
_from_manager: msgspec.json.Decoder[FromManager] = msgspec.json.Decoder(FromManager)


def encode(message: ToManager | FromManager) -> bytes:
    """A message as its line. :raises ProtocolError: it would be longer than a line may be."""
    line = msgspec.json.encode(message) + b"\n"
    if len(line) > MAX_LINE:
        msg = f"a {type(message).__name__} of {len(line)} bytes is longer than a line may be ({MAX_LINE})"
        raise ProtocolError(msg)
    return line


def to_manager(line: bytes) -> ToManager:
    """What orchestratord said. :raises ProtocolError: it is no message of its."""
    try:
        return _to_manager.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"not understood: {error}"
        raise ProtocolError(msg) from error


def from_manager(line: bytes) -> FromManager:
    """What pool-managerd said. :raises ProtocolError: it is no message of its."""
    try:
        return _from_manager.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"not understood: {error}"
        raise ProtocolError(msg) from error
