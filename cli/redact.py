"""Keeps secrets out of what is printed, logged and journaled."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(?i)(?:^|[._-])(?:api[_-]?key|key|token|secret|password|passwd|passphrase|credentials?)$")
#: ``user:password@`` of a URL; the password runs to the last @, and is no port before a path
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/?#@:\s]*):(?!\d{1,5}[/?#])[^\s]*@")
_QUERY = re.compile(r"(?i)(?P<name>[?&](?:[a-z_-]*(?:password|token|secret|api[_-]?key)))=[^&#\s]*")


def redact_text(text: str) -> str:
    """The text without the passwords of URLs in it."""
    return _QUERY.sub(rf"\g<name>={HIDDEN}", _USERINFO.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text))


def redact(value: Any, name: str = "") -> Any:
    """The value without secrets: passwords of URLs, and everything under a name such as ``api_key``."""
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if value not in ("", None) and _SECRET_NAME.search(name):
        return HIDDEN
    return redact_text(value) if isinstance(value, str) else value


def shown(key: str, value: object, longest: int = 80) -> str:
    """A value for an error message: short, and without secrets."""
    text = repr(redact(value, key))
    return text if len(text) <= longest else text[: longest - 1] + "…"
