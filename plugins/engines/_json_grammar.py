"""A JSON schema as a grammar in llama.cpp's GBNF.

llama.cpp converts schemas itself, but which it understands depends on its build; builds with llguidance turn the
constraint off without a word when the model's tokens do not suit it. So the grammar is made here, and a schema that
it cannot hold to is refused by naming the keyword.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_PRIMITIVES: Final = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "whole": r'"0" | [1-9] [0-9]{0,15}',
    "integer": r'"-"? whole',
    "number": r'"-"? whole ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": r'"true" | "false"',
    "null": r'"null"',
    "pair": r'string ws ":" ws value',
    "object": r'"{" ws (pair (ws "," ws pair)*)? ws "}"',
    "array": r'"[" ws (value (ws "," ws value)*)? ws "]"',
    "value": "object | array | string | number | boolean | null",
}
_TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
#: keywords that restrict what is valid, and cannot be told in a context-free grammar of sensible size
_REFUSED: Final = (
    "not", "if", "pattern", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "contains",
    "uniqueItems", "multipleOf", "minProperties", "maxProperties", "unevaluatedProperties", "unevaluatedItems",
    "$dynamicRef", "$recursiveRef",
)  # fmt: skip
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
#: a range of integers up to so many is spelt out
_SPELT_OUT: Final = 256
_MAX_RULES: Final = 5_000


class SchemaError(ValueError):
    """A schema that no grammar here holds to; the message names the place and the keyword."""


def grammar_of(schema: Mapping[str, Any]) -> str:
    """A grammar of the JSON texts that a schema allows.

    Objects have their properties in the schema's order, and no others unless ``additionalProperties`` says so.

    Raises:
        SchemaError: a keyword is not understood, or a reference leads nowhere.
    """
    converter = _Converter(schema)
    root = converter.expression(schema, "$")
    return converter.text(root)


class _Converter:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def text(self, root: str) -> str:
        lines = [f"root ::= {root}"]
        lines += [f"{name} ::= {body}" for name, body in self._rules.items()]
        lines += [f"{name} ::= {body}" for name, body in _PRIMITIVES.items()]
        return "\n".join(lines) + "\n"

    def expression(self, schema: Any, place: str) -> str:
        """What a schema allows, as an expression that stands for itself."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            msg = f"{place}: a schema is an object or true, not {json.dumps(schema)}"
            raise SchemaError(msg)
        for keyword in _REFUSED:
            if keyword in schema:
                msg = f"{place}: the keyword {keyword!r} cannot be enforced"
                raise SchemaError(msg)
        if "$ref" in schema:
            return self._reference(schema["$ref"], place)
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return _either([_literal(value) for value in _list(schema["enum"], place, "enum")])
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                parts = _list(schema[keyword], place, keyword)
                return _either([self.expression(part, f"{place}.{keyword}[{n}]") for n, part in enumerate(parts)])
        if "allOf" in schema:
            parts = _list(schema["allOf"], place, "allOf")
            if len(parts) > 1:
                msg = f"{place}: 'allOf' with more than one schema cannot be enforced"
                raise SchemaError(msg)
            return self.expression(parts[0], f"{place}.allOf[0]")
        kinds = schema.get("type", _implied(schema))
        if isinstance(kinds, str):
            return self._typed(kinds, schema, place)
        if not kinds:
            return "value"
        return _either([self._typed(kind, schema, place) for kind in _list(kinds, place, "type")])

    # --- by type

    def _typed(self, kind: Any, schema: Mapping[str, Any], place: str) -> str:
        if kind not in _TYPES:
            msg = f"{place}: {json.dumps(kind)} is no type"
            raise SchemaError(msg)
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            return self._array(schema, place)
        if kind == "string":
            least, most = _size(schema, "minLength", "maxLength", place)
            return "string" if (least, most) == (0, None) else rf'"\"" char{_times(least, most)} "\""'
        if kind in ("integer", "number") and any(bound in schema for bound in _BOUNDS):
            return _bounded(kind, schema, place)
        return str(kind)

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, Mapping):
            msg = f"{place}: 'properties' is an object"
            raise SchemaError(msg)
        required = _list(schema.get("required", []), place, "required", empty=True)
        if not all(isinstance(name, str) for name in required):
            msg = f"{place}: 'required' lists names"
            raise SchemaError(msg)
        additional = schema.get("additionalProperties", not properties)
        members = [
            (f'{_literal(name)} ws ":" ws {self.expression(part, f"{place}.{name}")}', name in required)
            for name, part in properties.items()
        ]
        free = [name for name in required if name not in properties]
        if free:
            if additional is False:
                msg = f"{place}: {free[0]!r} is required, but may not be there"
                raise SchemaError(msg)
            value = self.expression(additional, f"{place}.additionalProperties")
            members += [(f'{_literal(name)} ws ":" ws {value}', True) for name in free]
        if not members and additional is True:
            return "object"
        # From the back: `tail` continues after a member, `head` begins with none before.
        tail = head = '""'
        if additional is not False:
            value = self.expression(additional, f"{place}.additionalProperties")
            member = self._rule(f'string ws ":" ws {value}')
            tail = self._rule(f'(ws "," ws {member})*')
            head = self._rule(f"({member} {tail})?")
        for member, needed in reversed(members):
            rule = self._rule(member)
            begun = f"{rule} {tail}"
            after = f'ws "," ws {rule} {tail}'
            head = self._rule(begun if needed else f"{begun} | {head}")
            tail = self._rule(after if needed else f"{after} | {tail}")
        return f'"{{" ws {head} ws "}}"'

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        if "prefixItems" in schema:
            parts = _list(schema["prefixItems"], place, "prefixItems")
            items = [self.expression(part, f"{place}.prefixItems[{n}]") for n, part in enumerate(parts)]
            inside = ' ws "," ws '.join(items)
            return f'"[" ws {inside} ws "]"'
        least, most = _size(schema, "minItems", "maxItems", place)
        if most == 0:
            return '"[" ws "]"'
        item = self._rule(self.expression(schema.get("items", True), f"{place}.items"))
        more = _times(max(least - 1, 0), None if most is None else most - 1)
        several = f'{item} (ws "," ws {item}){more}'
        return f'"[" ws {several} ws "]"' if least else f'"[" ws ({several})? ws "]"'

    # --- references

    def _reference(self, reference: Any, place: str) -> str:
        if not isinstance(reference, str) or not reference.startswith("#"):
            msg = f"{place}: only references within the schema ('#/…') are followed, not {json.dumps(reference)}"
            raise SchemaError(msg)
        if reference not in self._references:
            name = self._references[reference] = f"ref-{len(self._references)}"
            target: Any = self._root
            for step in reference[1:].split("/")[1:]:
                step = step.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, Mapping) or step not in target:
                    msg = f"{place}: the reference {reference!r} leads nowhere"
                    raise SchemaError(msg)
                target = target[step]
            body = self.expression(target, reference)
            if body == name:
                msg = f"{place}: the reference {reference!r} leads to itself"
                raise SchemaError(msg)
            self._rules[name] = body
        return self._references[reference]

    def _rule(self, body: str) -> str:
        """A name for an expression; a short one needs none."""
        if body.replace("-", "").isalnum() or body == '""':
            return body
        if len(self._rules) >= _MAX_RULES:
            msg = "the schema is too large"
            raise SchemaError(msg)
        name = f"rule-{len(self._rules)}"
        self._rules[name] = body
        return name


def _implied(schema: Mapping[str, Any]) -> str:
    """The type that keywords speak of where none is named."""
    if "properties" in schema or "additionalProperties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema or "minItems" in schema or "maxItems" in schema:
        return "array"
    if "minLength" in schema or "maxLength" in schema:
        return "string"
    return "number" if any(bound in schema for bound in _BOUNDS) else ""


def _bounded(kind: str, schema: Mapping[str, Any], place: str) -> str:
    """Integers within bounds: spelt out, or by their sign; other numbers cannot be bounded by a grammar."""
    bounds = {bound: schema[bound] for bound in _BOUNDS if bound in schema}
    if any(not isinstance(value, int | float) or isinstance(value, bool) for value in bounds.values()):
        msg = f"{place}: bounds are numbers"
        raise SchemaError(msg)
    low = max(
        (v for v in (bounds.get("minimum"), _next(bounds.get("exclusiveMinimum"), 1)) if v is not None), default=None
    )
    high = min(
        (v for v in (bounds.get("maximum"), _next(bounds.get("exclusiveMaximum"), -1)) if v is not None), default=None
    )
    if kind == "integer":
        if low is not None and high is not None and 0 <= high - low <= _SPELT_OUT:
            values = range(-int(-low // 1), int(high // 1) + 1)
            if values:
                return _either([_literal(value) for value in values])
        if high is None and low is not None and 0 <= low <= 1:
            return "whole" if low <= 0 else "[1-9] [0-9]{0,15}"
    elif high is None and bounds == {"minimum": 0}:
        return r'whole ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?'
    msg = f"{place}: the bounds {', '.join(bounds)} cannot be enforced on {kind}s of this range"
    raise SchemaError(msg)


def _next(bound: Any, step: int) -> Any:
    """The first integer beyond an exclusive bound."""
    if bound is None:
        return None
    return bound + step if float(bound).is_integer() else bound


def _size(schema: Mapping[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    for value in (low, high):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 100_000):
            msg = f"{place}: {least} and {most} are whole numbers up to 100000"
            raise SchemaError(msg)
    if high is not None and high < low:
        msg = f"{place}: {most} is below {least}"
        raise SchemaError(msg)
    return low, high


def _times(least: int, most: int | None) -> str:
    if most is None:
        return "*" if least == 0 else f"{{{least},}}"
    return f"{{{least},{most}}}"


def _literal(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _either(parts: Sequence[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else f"({' | '.join(unique)})"


def _list(value: Any, place: str, keyword: str, *, empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or not (value or empty):
        msg = f"{place}: {keyword!r} is a list with at least one element"
        raise SchemaError(msg)
    return value
