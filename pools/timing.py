"""How patient pools are."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Ms = Annotated[int, Meta(ge=0)]


class Timing(Struct, frozen=True, kw_only=True):
    """All waits of one pool, in milliseconds."""

    #: pause after the first failure; it doubles with each one in a row
    backoff_first_ms: Ms = 250
    backoff_last_ms: Ms = 60_000
    #: an engine that was ready for so long is forgiven what went before
    stable_ms: Ms = 60_000
    #: so many failures within the window open the circuit; 0 = never
    breaker_failures: Annotated[int, Meta(ge=0)] = 5
    breaker_window_ms: Ms = 600_000
    #: how long an open circuit stays open at first; it doubles with each single try that fails
    open_first_ms: Ms = 60_000
    open_last_ms: Ms = 900_000
    #: pause after a failure that only a person can mend
    permanent_ms: Ms = 600_000
    #: how long a start may take; 0 = for ever
    start_timeout_ms: Ms = 900_000
    #: between the polite and the other signal
    grace_ms: Ms = 5_000
    health_interval_ms: Ms = 2_000
    #: silence for so long fails a health check
    health_timeout_ms: Ms = 5_000
    #: failed health checks in a row until a running engine counts as unhealthy
    health_failures: Annotated[int, Meta(ge=1)] = 3
    #: first pause between two looks at a starting engine; it grows tenfold
    start_poll_ms: Ms = 25
    #: how long preload may take
    preload_timeout_ms: Ms = 300_000
    #: how long an engine may be busy for a server that is gone, before it is started again
    idle_timeout_ms: Ms = 10_000
