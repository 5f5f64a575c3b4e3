"""Parameters that a compatible API does not serve: named in a header, or refused where the client is strict (API-2).

What would change an answer's meaning is refused by name where the request is read; here is all the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from ...core.errors import InvalidParamsError
from ..operations import Call
from ..requests import not_json

IGNORED_HEADER: Final = "X-Ignored-Parameters"
STRICT_HEADER: Final = "X-Strict-Parameters"
#: for the declarations of routes
STRICT_HELP: Final = {STRICT_HEADER: "`true`: parameters that would have no effect are refused with 400 instead."}
IGNORED_HELP: Final = {IGNORED_HEADER: "Parameters of the request that had no effect."}
#: as many are named, and so many characters of each
_MOST = 64
_LONGEST = 100
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value = msgspec.json.Decoder().decode
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def fields_of(kind: Any) -> frozenset[str]:
    """The names that a request's type takes."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def ignored_parameters(
    raw: bytes,
    known: Collection[str],
    inside: Iterable[str] = (),
    within: Mapping[str, Collection[str]] | None = None,
) -> list[str]:
    """Parameters of a body that are not served, in its order; ``null`` asks for nothing, unprintable names are left out.

    :param known: names that are served.
    :param inside: what was found in its depth, such as ``messages.audio``.
    :param within: names that are served of parameters that are objects, such as ``stream_options``.
    :raises InvalidParamsError: something of it is no JSON, which nobody saw while it was skipped.
    """
    found: list[str] = []
    try:
        names = _keys(raw)
        for name, value in names.items():
            if name not in known and bytes(value) != b"null":
                _value(value)
                found.append(name)
        for outer, served in (within or {}).items():
            if outer in names and bytes(names[outer]) != b"null":
                found += [f"{outer}.{name}" for name in _keys(names[outer]) if name not in served]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise not_json(raw, error) from None
    told = [name for name in dict.fromkeys((*found, *inside)) if name.isascii() and name.isprintable()]
    return [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in told[:_MOST]]


def name_or_refuse(call: Call, ignored: list[str], *, strict: bool) -> dict[str, str]:
    """The header that names what had no effect.

    :param strict: what the server's settings say; the request's own header wins.
    :raises InvalidParamsError: the request shall be taken strictly, and something of it would have no effect.
    """
    wish = call.header(STRICT_HEADER)
    if wish is not None:
        if wish.lower() not in _TRUE | _FALSE:
            msg = f"{STRICT_HEADER}: got {wish[:40]!r}, expected true or false"
            raise InvalidParamsError(msg, field=STRICT_HEADER, got=wish[:40], expected="true or false")
        strict = wish.lower() in _TRUE
    if not ignored:
        return {}
    if strict:
        first = ignored[0]
        msg = f"{first}: this parameter would have no effect here"
        raise InvalidParamsError(
            msg,
            field=first,
            got=first,
            remedy=f"Leave it out, or send {STRICT_HEADER}: false to have it named in {IGNORED_HEADER} instead.",
            ignored=ignored,
        )
    return {IGNORED_HEADER: ", ".join(ignored)}
