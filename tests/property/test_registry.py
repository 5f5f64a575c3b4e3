"""Events: one declaration, canonical bytes, old versions carried forward (JRN-2, JRN-6, JRN-9)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core import registry
from llama_orch.core.errors import CorruptJournalError

from ..support.structs import structs


class Part(msgspec.Struct):
    """Holds floats, deep inside."""

    ratios: dict[str, list[float]]


registry.load_all()
TYPES = list(registry.event_types())


@pytest.mark.parametrize("declared", TYPES, ids=lambda t: t.name)
@given(data=st.data())
def test_every_event_comes_back_from_its_bytes_which_are_canonical(
    declared: registry.EventType, data: st.DataObject
) -> None:
    event = data.draw(structs(declared.cls))
    raw = registry.encode_payload(event)
    again = registry.decode_payload(declared.name, declared.version, raw)
    assert again == event
    assert registry.encode_payload(again) == raw
    keys = list(json.loads(raw))
    assert keys == sorted(keys)


def test_every_event_has_a_schema_and_is_described() -> None:
    schema = registry.json_schema()
    assert set(schema["events"]) == {t.name for t in TYPES}
    assert all(t.cls.__doc__ for t in TYPES)


def test_a_float_in_an_event_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match="floats are not allowed"):

        @registry.event("test.float")
        class _Float:
            task_id: str
            seconds: float


def test_a_float_deep_in_an_event_is_refused_too() -> None:
    with pytest.raises(TypeError, match="floats are not allowed"):

        @registry.event("test.deep_float")
        class _Deep:
            task_id: str
            part: Part


def test_a_name_is_declared_once() -> None:
    with pytest.raises(TypeError, match="declared twice"):

        @registry.event("task.admitted")
        class _Again:
            task_id: str


@given(st.text(max_size=3), st.characters(categories=["Cs"]))
def test_a_lone_surrogate_never_gets_into_bytes(text: str, surrogate: str) -> None:
    rejected = registry.type_named("task.rejected").cls
    event = rejected(task_id="t", owner="o", model_ref="m", code="C", reason=text + surrogate)  # type: ignore[call-arg]
    with pytest.raises(UnicodeEncodeError):
        registry.encode_payload(event)


def test_an_old_version_is_carried_forward_step_by_step() -> None:
    @registry.event("test.grown", version=3)
    class _Grown:
        task_id: str
        total_ms: int
        unit: str

    @registry.upcaster("test.grown", 1)
    def _to_milliseconds(old: dict[str, Any]) -> dict[str, Any]:
        return {"task_id": old["task_id"], "total_ms": old["seconds"] * 1000}

    @registry.upcaster("test.grown", 2)
    def _name_the_unit(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "unit": "ms"}

    first = registry.decode_payload("test.grown", 1, b'{"seconds":2,"task_id":"t"}')
    second = registry.decode_payload("test.grown", 2, b'{"task_id":"t","total_ms":2000}')
    assert first == second == _Grown(task_id="t", total_ms=2000, unit="ms")


def test_what_a_newer_program_wrote_is_refused_with_what_to_do() -> None:
    for name, version in (("task.invented", 1), ("task.admitted", 99)):
        with pytest.raises(CorruptJournalError) as told:
            registry.decode_payload(name, version, b"{}")
        assert "version that wrote it" in told.value.what_to_do
