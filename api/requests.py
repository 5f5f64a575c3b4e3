"""From bytes to typed requests, and from what is wrong with them to an error that names field, found and wanted (ADM-2)."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from falcon.asgi import Request

from ..core.errors import InvalidParamsError, PayloadTooLargeError
from ..core.services.keys import PLAIN
from ..core.settings import MONEY
from ..core.types import Uuid

T = TypeVar("T")

#: query strings longer than this are refused
QUERY_BYTES = 8192
_AT = re.compile(r" - at `(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*?)`", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>.*?)`", re.DOTALL)
_GOT = re.compile(r", got `[^`]*`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: what patterns of fields mean, for people
_PATTERNS = {
    typing.get_args(Uuid)[1].pattern: "a UUID, e.g. '0b8a6b1e-2f6e-4a43-9d3f-7d3f3c1f6a10'",
    MONEY: "a decimal in quotes that is not negative, with at most 12 places, e.g. '2.50'",
    PLAIN: "a text without line ends and other control characters",
}
#: most characters of a wrong value that an error repeats
GOT_CHARS = 200


async def read_body(req: Request, limit: int) -> bytes:
    """The whole body.

    :param limit: most bytes it may have.
    :raises PayloadTooLargeError: it has more, whatever its Content-Length said.
    """
    body: bytes = await req.stream.read(limit + 1)
    if len(body) > limit:
        raise too_large(len(body), limit)
    return body


def too_large(length: int, limit: int) -> PayloadTooLargeError:
    """The error for a body of more than ``limit`` bytes."""
    msg = f"the body has {length} bytes or more, at most {limit} are taken"
    return PayloadTooLargeError(msg, field="body", got=length, limit_bytes=limit)


def decoder_for(kind: Any) -> Callable[[bytes], Any]:
    """A function that decodes JSON into ``kind`` and explains what is wrong with it.

    The function raises InvalidParamsError: no JSON, not UTF-8, nested too deeply, or a field that is not accepted.
    """
    decode = msgspec.json.Decoder(kind).decode

    def decode_or_explain(raw: bytes) -> Any:
        try:
            return decode(raw)
        except msgspec.ValidationError as error:
            try:
                problem = explain(error, kind, _plain(raw))
            except RecursionError as deep:
                problem = not_json(raw, deep)
            raise problem from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise not_json(raw, error) from None

    return decode_or_explain


def not_json(raw: bytes, error: Exception) -> InvalidParamsError:
    """The error for a body that is no JSON at all."""
    if not raw:
        reason, got = "the body is empty, JSON is expected", ""
    elif isinstance(error, RecursionError):
        reason, got = "the body is nested too deeply", "deeply nested JSON"
    elif isinstance(error, UnicodeDecodeError):
        reason, got = "the body is not UTF-8", "bytes that are no text"
    elif _SURROGATE.search(raw):
        reason, got = "the body is not JSON, or holds a lone surrogate", raw[:40].decode("utf-8", "replace")
    else:
        reason, got = f"the body is not JSON: {error}", raw[:40].decode("utf-8", "replace")
    return InvalidParamsError(reason, field="body", got=got, expected="a JSON object in UTF-8")


def _plain(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def explain(error: msgspec.ValidationError, kind: Any, data: Any, where: str = "body") -> InvalidParamsError:
    """What a validation error means for the caller: the field, what it got, what it takes.

    :param data: the request as plain JSON values, to find what was got.
    """
    text = str(error)
    found = _AT.search(text)
    path = found["path"] if found else "$"
    reason = text[: found.start()] if found else text
    steps = _steps(path, kind, data)
    name = ".".join(str(s) for s in steps)
    unknown, missing = _UNKNOWN.search(reason), _MISSING.search(reason)
    known = _fields_at(kind, steps)
    if unknown is not None:
        key = unknown["name"][:GOT_CHARS]
        near = difflib.get_close_matches(key, known, n=1)
        expected = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
        field = f"{name}.{key}" if name else key
        msg = f"unknown field {field!r}; {expected}"
        return InvalidParamsError(msg, field=field, got=_short(_value_at(data, [*steps, key])), expected=expected)
    if missing is not None:
        field = f"{name}.{missing['name']}" if name else missing["name"]
        msg = f"{field} is missing"
        return InvalidParamsError(msg, field=field, got=None, expected="a value")
    if not steps and reason.startswith("Object contains unknown"):
        return InvalidParamsError(reason, field=where, got=None, expected=f"known are: {', '.join(known)}")
    value = _value_at(data, steps)
    choices = _choices_at(kind, steps)
    expected = f"one of {', '.join(choices)}" if choices else _wanted(reason)
    if choices and isinstance(value, str):
        near = difflib.get_close_matches(value, choices, n=1)
        expected += f"; did you mean {near[0]!r}?" if near else ""
    field = name or where
    msg = f"{field}: got {_short(value)!r}, expected {expected}"
    return InvalidParamsError(msg, field=field, got=_short(value), expected=expected)


def _steps(path: str, kind: Any, data: Any) -> list[str | int]:
    """The path as keys and indexes; for ``[...]``, with which msgspec means any element, the first that is wrong."""
    steps: list[str | int] = []
    for key, index in _STEP.findall(path):
        if key or index:
            steps.append(key or int(index))
            continue
        elements = _value_at(data, steps)
        for option in _unwrap(_info_at(kind, steps)):
            if isinstance(option, msgspec.inspect.ListType) and isinstance(elements, list):
                wrong = next((n for n, e in enumerate(elements) if not _fits(e, option.item_type)), None)
                if wrong is not None:
                    steps.append(wrong)
                break
    return steps


def _fits(value: Any, info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.StructType):
        try:
            msgspec.convert(value, info.cls)
        except msgspec.ValidationError:
            return False
        return True
    if isinstance(info, msgspec.inspect.StrType):
        least, most = info.min_length or 0, info.max_length
        return isinstance(value, str) and least <= len(value) and (most is None or len(value) <= most)
    return not isinstance(info, msgspec.inspect.DictType) or isinstance(value, dict)


def _wanted(reason: str) -> str:
    """What msgspec wanted, in words of JSON."""
    for pattern, words in _PATTERNS.items():
        if reason.endswith(f"matching regex {pattern!r}"):
            return words
    wanted = _GOT.sub("", reason.removeprefix("Expected ")).replace("`", "")
    for ours, theirs in (("int", "an integer"), ("float", "a number"), ("str", "a text"), ("bool", "true or false")):
        wanted = re.sub(rf"\b{ours}\b", theirs, wanted)
    return wanted.replace(" | null", " or null").replace(" | ", " or ")


def _short(value: Any) -> Any:
    if isinstance(value, (bool, type(None))):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else str(value)[:GOT_CHARS]
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:
        text = "deeply nested JSON"
    return text if len(text) <= GOT_CHARS else f"{text[:GOT_CHARS]}… ({len(text)} characters)"


def _value_at(data: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _info_at(kind: Any, steps: list[str | int]) -> msgspec.inspect.Type:
    info = msgspec.inspect.type_info(kind)
    for step in steps:
        inner = _step(info, step)
        if inner is None:
            return msgspec.inspect.AnyType()
        info = inner
    return info


def _unwrap(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    if isinstance(info, msgspec.inspect.UnionType):
        return list(info.types)
    if isinstance(info, msgspec.inspect.Metadata):
        return _unwrap(info.type)
    return [info]


def _step(info: msgspec.inspect.Type, step: str | int) -> msgspec.inspect.Type | None:
    for option in _unwrap(info):
        if isinstance(option, msgspec.inspect.StructType) and isinstance(step, str):
            for field in option.fields:
                if field.encode_name == step:
                    return field.type
        if isinstance(option, msgspec.inspect.ListType) and isinstance(step, int):
            return option.item_type
        if isinstance(option, msgspec.inspect.DictType):
            return option.value_type
    return None


def _fields_at(kind: Any, steps: list[str | int]) -> list[str]:
    for option in _unwrap(_info_at(kind, steps)):
        if isinstance(option, msgspec.inspect.StructType):
            return [f.encode_name for f in option.fields]
    return []


def _choices_at(kind: Any, steps: list[str | int]) -> list[str]:
    for option in _unwrap(_info_at(kind, steps)):
        if isinstance(option, msgspec.inspect.LiteralType):
            return [str(v) for v in option.values]
    return []


@lru_cache(maxsize=64)
def _query_fields(kind: Any) -> dict[str, Any]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return {f.encode_name: f for f in info.fields}


def decode_query(raw: bytes, kind: type[T]) -> T:
    """The query string as a struct; numbers and booleans are read from their text.

    :raises InvalidParamsError: unknown, repeated or unaccepted parameters.
    """
    if not raw:
        return typing.cast("Callable[[], T]", kind)()
    if len(raw) > QUERY_BYTES:
        msg = f"the query string has {len(raw)} bytes, at most {QUERY_BYTES} are taken"
        raise InvalidParamsError(msg, field="query", got=len(raw))
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError as error:
        msg = f"the query string cannot be read: {error}"
        raise InvalidParamsError(msg, field="query", got=raw[:GOT_CHARS].decode("ascii", "replace")) from None
    data: dict[str, str] = {}
    for name, value in pairs:
        if name.endswith("[]") and name in data:  # how OpenAI's clients write lists
            data[name] += f",{value}"
            continue
        if name in data:
            msg = f"the parameter {name!r} was sent twice"
            raise InvalidParamsError(msg, field=name, got=_short(value))
        data[name] = value
    known = _query_fields(typing.cast("Any", kind))
    for name, value in data.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            expected = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
            msg = f"unknown parameter {name!r}; {expected}"
            raise InvalidParamsError(msg, field=name, got=_short(value), expected=expected)
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explain(error, kind, data, "query") from None
