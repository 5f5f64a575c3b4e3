"""What it costs to tell whose request it is: `python -m benchmarks.key_lookup`."""

from __future__ import annotations

import timeit
from types import SimpleNamespace
from typing import Any, cast

from llama_orch.api.auth import Authentication, Secrets
from llama_orch.core.events.key import KeyCreated
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.services.keys import KeyService, digest_of
from llama_orch.core.settings import Settings

KEYS, REQUESTS, ROUNDS = 1_000, 20_000, 5


def main() -> None:
    """Print microseconds per request, the best of five rounds."""
    head = Head()
    for n in range(KEYS):
        made = KeyCreated(key_id=f"key-{n}", name=f"k{n}", digest=digest_of(b"lo_%040d" % n), scopes=["inference"])
        head.keys.handlers()[KeyCreated](Recorded(1, 1, 1, f"key:{n}", 0, "key.created", 1, "localhost", "", made))
    service = KeyService(cast("Any", SimpleNamespace(head=head, now_ns=lambda: 2)), bytes, cast("Any", None))
    secrets = Secrets(bootstrap=digest_of(b"bootstrap"), local=digest_of(b"local"))
    auth = Authentication(service, Settings(), secrets=secrets, provider=None, public=frozenset({"/health"}))
    names = (b"host", b"user-agent", b"accept", b"content-type", b"content-length")
    scope = {
        "path": "/v1/tasks",
        "raw_path": b"/v1/tasks",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [*((name, b"x") for name in names), (b"authorization", b"Bearer lo_%040d" % 500)],
    }

    def ask() -> None:
        caller = auth.caller_of(scope)
        assert caller is not None
        caller.require_route(("inference",), "/v1/tasks")

    took = min(timeit.repeat(ask, number=REQUESTS, repeat=ROUNDS))
    print(f"{took / REQUESTS * 1e6:.1f} µs per request, with {KEYS} keys")


if __name__ == "__main__":
    main()
