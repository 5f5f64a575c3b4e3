"""JSON schemas as grammars: what cannot be enforced is refused, never ignored."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llama_orch.plugins.engines._json_grammar import SchemaError, grammar_of


def rules(schema):
    return dict(line.split(" ::= ", 1) for line in grammar_of(schema).splitlines())


@pytest.mark.parametrize(
    "schema, root",
    [
        (True, "value"),
        ({}, "value"),
        ({"type": "boolean"}, "boolean"),
        ({"type": ["string", "null"]}, "(string | null)"),
        ({"const": 'a "b"\\'}, r'"\"a \\\"b\\\"\\\\\""'),
        ({"enum": ["x", 1, None]}, r'("\"x\"" | "1" | "null")'),
        ({"type": "object"}, "object"),
        ({"type": "string", "maxLength": 3}, r'"\"" char{0,3} "\""'),
        ({"type": "string", "minLength": 1}, r'"\"" char{1,} "\""'),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 2},
            '"[" ws null (ws "," ws null){1,1} ws "]"',
        ),
        ({"type": "array", "maxItems": 0}, '"[" ws "]"'),
        ({"type": "integer", "minimum": 0}, "whole"),
        ({"type": "integer", "exclusiveMinimum": 0}, "[1-9] [0-9]{0,15}"),
        ({"type": "integer", "minimum": -1, "exclusiveMaximum": 2}, '("-1" | "0" | "1")'),
        ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, '("2" | "3")'),
        ({"allOf": [{"type": "null"}], "description": "as pydantic writes it"}, "null"),
    ],
)
def test_a_schema_is_this_expression(schema, root):
    assert rules(schema)["root"] == root


def test_a_recursive_reference_is_a_recursive_rule():
    schema = {
        "$defs": {
            "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
        },
        "$ref": "#/$defs/node",
    }
    found = rules(schema)
    assert found["root"] == "ref-0"
    assert any("ref-0" in body for name, body in found.items() if name != "root")


@pytest.mark.parametrize(
    "schema, says",
    [
        ({"type": "string", "pattern": "^a"}, "$: the keyword 'pattern'"),
        ({"properties": {"a": {"not": {}}}}, "$.a: the keyword 'not'"),
        ({"type": "integer", "minimum": 7}, "minimum"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "minimum, maximum"),
        ({"type": "array", "items": {"type": "text"}}, '$.items: "text" is no type'),
        ({"allOf": [{}, {}]}, "'allOf'"),
        ({"$ref": "https://x/y"}, "only references within the schema"),
        ({"$ref": "#/nowhere"}, "leads nowhere"),
        ({"$ref": "#"}, "leads to itself"),
        ({"enum": []}, "'enum'"),
        ({"required": ["a"], "properties": {}, "additionalProperties": False}, "'a' is required"),
        ({"type": "string", "minLength": 4, "maxLength": 3}, "below"),
        ({"type": "string", "minLength": -1}, "whole numbers"),
        ({"type": "integer", "minimum": "1"}, "bounds are numbers"),
        ({"type": "object", "required": [["a"]]}, "lists names"),
        (False, "not false"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_place_and_keyword(schema, says):
    with pytest.raises(SchemaError) as caught:
        grammar_of(schema)
    assert says in str(caught.value)


scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "type properties required items enum const anyOf $ref minimum maxLength additionalProperties".split()
            )
            | st.text(max_size=3),
            inner | st.sampled_from(["object", "array", "string", "integer", "#", "#/properties/a"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["type", "properties", "items", "anyOf", "$ref", "$defs"]), anything, max_size=4)
)
def test_anything_at_all_is_a_grammar_or_a_refusal(schema):
    try:
        grammar = grammar_of(schema)
    except SchemaError:
        return
    assert grammar.startswith("root ::= ")
    assert grammar.endswith("\n")
