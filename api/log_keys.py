"""What the log says of keys: severity, fields and one sentence each (OBS-2, AUTH-2). Never a key, nor its digest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..core.events.key import KeyChanged, KeyCreated, KeyExpired, KeyRevoked, KeyRotated
from ..core.projections.projection import Recorded
from ..core.services.keys import identity_of

Fields = dict[str, Any]
Said = tuple[str, Fields, str]


def _of(key_id: str, digest: str = "") -> Fields:
    return {"key_id": key_id, **({"identity": identity_of(digest)} if digest else {})}


def _created(record: Recorded) -> Said:
    event: KeyCreated = record.payload
    human = f"The key {event.key_id} ({event.name}) was made for {', '.join(event.scopes)}, by {record.actor}."
    return "info", _of(event.key_id, event.digest), human


def _changed(record: Recorded) -> Said:
    event: KeyChanged = record.payload
    human = f"What the key {event.key_id} ({event.name}) may do was changed by {record.actor}."
    return "info", _of(event.key_id), human


def _rotated(record: Recorded) -> Said:
    event: KeyRotated = record.payload
    grace = "; the old secret is accepted for a while" if event.previous_until_ns else ""
    human = f"The key {event.key_id} has a new secret, by {record.actor}{grace}."
    return "info", _of(event.key_id, event.digest), human


def _expired(record: Recorded) -> Said:
    event: KeyExpired = record.payload
    what = "The key" if event.what == "key" else "The old secret of the key"
    return "info", _of(event.key_id), f"{what} {event.key_id} has expired."


def _revoked(record: Recorded) -> Said:
    event: KeyRevoked = record.payload
    return "info", _of(event.key_id), f"The key {event.key_id} was revoked by {record.actor}."


SENTENCES: Final[dict[type, Callable[[Recorded], Said]]] = {
    KeyCreated: _created,
    KeyChanged: _changed,
    KeyRotated: _rotated,
    KeyExpired: _expired,
    KeyRevoked: _revoked,
}
