"""Blots out what looks like a secret in text that is about to be logged, by the key it stands under and by its shape."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_KEY = re.compile(
    r"(?i)(?:^|[._-])(?:authorization|cookie|api[_-]?key|key|token|secret|password|passwd|passphrase|credentials?)$"
)
#: what a text must hold to be looked at closely; a shape below without one of these is never found
_HINTS = (
    "lo_",
    "sk-",
    "pk-",
    "rk-",
    "earer",
    "EARER",
    "asic",
    "ASIC",
    "://",
    "hf_",
    "gh",
    "glpat",
    "xox",
    "eyJ",
    "AKIA",
    "=",
)
_SHAPES = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9])lo_[A-Za-z0-9_-]{43}"), HIDDEN),
    (re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"\b(?:hf|ghp|gho|ghs|glpat|xox[abp])[_-][A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"\bAKIA[A-Z0-9]{12,}"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"), HIDDEN),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#@\"]*:[^\s/?#@\"]*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)\b((?:api[_-]?key|token|secret|password|passwd)=)[^\s&\"']+"), rf"\1{HIDDEN}"),
)


def redact_text(text: str) -> str:
    """The text without secrets of a known shape."""
    if not any(hint in text for hint in _HINTS):
        return text
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text


def redact(value: Any, key: str = "") -> Any:
    """The value without secrets, of whatever it is made."""
    if key and value not in ("", None) and _KEY.search(key):
        return HIDDEN
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v, key) for v in value]
    return value
