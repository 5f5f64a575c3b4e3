"""The server's own life: starts, stops, recoveries, applied configuration."""

from __future__ import annotations

from ..registry import event


@event("server.started", stream="server", key="", durable=True)
class ServerStarted:
    """A writer took the journal over and begins its epoch."""

    epoch: int
    version: str
    #: "start" | "reopen" (after an outcome that was unknown)
    cause: str = "start"


@event("server.stopped", stream="server", key="", durable=True)
class ServerStopped:
    """An orderly stop."""

    epoch: int


@event("config.applied", stream="server", key="", durable=True)
class ConfigApplied:
    """The configuration that decisions read from here on, without secrets."""

    digest: str
    #: canonical JSON of the effective configuration, secrets left out
    config: str
