"""Everything that happens to keys is one sentence in the log, without the key or its digest."""

from __future__ import annotations

import pytest

from llama_orch.api.log_keys import SENTENCES
from llama_orch.api.logs import LEVELS
from llama_orch.core.events.key import KeyChanged, KeyCreated, KeyExpired, KeyRevoked, KeyRotated
from llama_orch.core.projections.projection import Recorded
from llama_orch.core.registry import event_types, load_all

DIGEST = "0123456789abcdef" * 4
TOLD = {
    "key.created": KeyCreated(key_id="key-1", name="agent", digest=DIGEST, scopes=["inference", "read"]),
    "key.changed": KeyChanged(key_id="key-1", name="agent", scopes=["read"]),
    "key.rotated": KeyRotated(key_id="key-1", digest=DIGEST, previous_until_ns=1),
    "key.expired": KeyExpired(key_id="key-1", what="previous"),
    "key.revoked": KeyRevoked(key_id="key-1"),
}


def test_every_event_of_keys_has_its_sentence() -> None:
    load_all()
    assert {kind.name for kind in event_types() if kind.stream == "key"} == set(TOLD)
    assert {type(event) for event in TOLD.values()} == set(SENTENCES)


@pytest.mark.parametrize("name", TOLD)
def test_it_says_which_key_and_no_digest(name: str) -> None:
    record = Recorded(1, 1, 1, "key:key-1", 0, name, 1, "token:abcdef", "", TOLD[name])
    level, fields, human = SENTENCES[type(TOLD[name])](record)
    assert level in LEVELS
    assert fields["key_id"] == "key-1"
    assert "key-1" in human
    assert human.endswith(".")
    assert DIGEST[:12] not in f"{fields} {human}"
    if name in ("key.created", "key.rotated"):
        assert fields["identity"] == "token:012345"
    if name != "key.expired":
        assert "token:abcdef" in human
