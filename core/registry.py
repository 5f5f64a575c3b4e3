"""One declaration per event: from it follow canonical bytes, decoding with upcasters, and JSON Schema.

An event type is declared with :func:`event`. Its wire name never depends on where the class lives,
so a module may move without breaking a journal (JRN-2). Encoding is canonical: keys are sorted,
integers and strings only; floats are refused at declaration (JRN-9).
"""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, dataclass_transform

import msgspec

from .errors import CorruptJournalError

T = TypeVar("T")
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

_ENCODER = msgspec.json.Encoder(order="sorted")


class EventBase(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What every declared event inherits; use :func:`event`, never this class directly."""


class EventType(msgspec.Struct, frozen=True):
    """The declaration of one event type."""

    #: wire name, e.g. ``task.admitted``
    name: str
    #: current version; older ones are carried forward by upcasters
    version: int
    cls: type[EventBase]
    #: first part of the stream's name, e.g. ``task``
    stream: str
    #: the field that names the stream within its kind, or "" for a single stream
    key: str
    #: fsynced before anybody is told (JRN-3)
    durable: bool
    decode: Callable[[bytes | msgspec.Raw], Any]


_by_name: dict[str, EventType] = {}
_by_class: dict[type, EventType] = {}
_upcasters: dict[tuple[str, int], Upcaster] = {}


def _refuse_floats(name: str, annotation: Any, seen: frozenset[Any] = frozenset()) -> None:
    if annotation is float:
        msg = f"event {name}: floats are not allowed, use an integer with its unit or a decimal string"
        raise TypeError(msg)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) and annotation not in seen:
        for hint in typing.get_type_hints(annotation).values():
            _refuse_floats(name, hint, seen | {annotation})
    for part in typing.get_args(annotation):
        _refuse_floats(name, part, seen)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def event(
    name: str, *, version: int = 1, stream: str = "task", key: str = "task_id", durable: bool = False
) -> Callable[[type[T]], type[T]]:
    """Declare an event type.

    :param name: wire name, past tense, ``<stream>.<what happened>``; never changes once released.
    :param version: raise it when a field changes meaning or a required one is added, and add an upcaster.
    :param stream: kind of stream it belongs to; with ``key`` the stream is ``<stream>:<value of key>``.
    :param durable: whether it must be fsynced before it is acknowledged.

    A field at its default is not written, which halves the bytes of a task's facts; so a default is part of the
    version: changing one needs a new version and an upcaster that writes the old one out.
    :raises TypeError: the name is taken, or a field is a float.
    """

    def declare(plain: type[T]) -> type[T]:
        if name in _by_name:
            msg = f"event {name} is declared twice"
            raise TypeError(msg)
        namespace = {k: v for k, v in vars(plain).items() if k not in ("__dict__", "__weakref__")}
        metaclass: Any = type(EventBase)
        cls: Any = metaclass(
            plain.__name__, (EventBase,), namespace, frozen=True, kw_only=True, gc=False, omit_defaults=True
        )
        for hint in typing.get_type_hints(cls).values():
            _refuse_floats(name, hint)
        declared = EventType(
            name=name,
            version=version,
            cls=cls,
            stream=stream,
            key=key,
            durable=durable,
            decode=msgspec.json.Decoder(cls).decode,
        )
        _by_name[name] = declared
        _by_class[cls] = declared
        return typing.cast("type[T]", cls)

    return declare


def upcaster(name: str, from_version: int) -> Callable[[Upcaster], Upcaster]:
    """Register how a payload of ``from_version`` becomes one of ``from_version + 1``."""

    def register(function: Upcaster) -> Upcaster:
        _upcasters[(name, from_version)] = function
        return function

    return register


def type_of(payload: object) -> EventType:
    """The declaration of an event object's type. :raises KeyError: it is not an event."""
    return _by_class[type(payload)]


def type_named(name: str) -> EventType:
    """The declaration with this wire name. :raises CorruptJournalError: unknown (written by a newer version?)."""
    found = _by_name.get(name)
    if found is None:
        msg = f"event type {name!r} is not known to this version"
        raise CorruptJournalError(msg, remedy="Open this journal with the version that wrote it, or a newer one.")
    return found


def event_types() -> Iterator[EventType]:
    """All declared events, by wire name."""
    for name in sorted(_by_name):
        yield _by_name[name]


def encode_payload(payload: object) -> bytes:
    """Canonical bytes of an event's payload: JSON with sorted keys, no spaces."""
    return _ENCODER.encode(payload)


def decode_payload(name: str, version: int, raw: bytes | msgspec.Raw) -> Any:
    """The event object behind canonical bytes, carried forward to the current version."""
    declared = _by_name.get(name) or type_named(name)
    if version == declared.version:
        return declared.decode(raw)
    if version > declared.version:
        msg = f"event {name} has version {version}, this program knows up to {declared.version}"
        raise CorruptJournalError(msg, remedy="Open this journal with the version that wrote it, or a newer one.")
    data: dict[str, Any] = msgspec.json.decode(raw)
    for step in range(version, declared.version):
        data = _upcasters[(name, step)](data)
    return msgspec.convert(data, declared.cls)


def json_schema() -> dict[str, Any]:
    """JSON Schema of every event's payload, by wire name."""
    types = list(event_types())
    schemas, definitions = msgspec.json.schema_components([t.cls for t in types], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "events": {
            t.name: {"version": t.version, "durable": t.durable, "stream": t.stream, "schema": s}
            for t, s in zip(types, schemas, strict=True)
        },
        "$defs": definitions,
    }


def load_all(package: str = "llama_orch.core.events") -> None:
    """Import every module of the events package, so that each declaration is known."""
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"{package}.{info.name}")
