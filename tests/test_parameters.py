"""The parameters that a wrapper adds to a tool's schema, whatever the schema is made of."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from trio_bgtasks._json_schema import schema_validator
from trio_bgtasks._parameters import declared, extended, objections

ADDED: dict[str, Any] = {"extra": {"type": "boolean"}}
CLOSED: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
OTHER: dict[str, Any] = {**CLOSED, "properties": {"b": {}}, "required": ["b"]}
NODE: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {}, "below": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
    "additionalProperties": False,
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "empty": {},
    "open": {"type": "object"},
    "closed": CLOSED,
    "typed rest": {"additionalProperties": {"type": "integer"}},
    "unevaluated": {"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False},
    "reference": {"$ref": "#/$defs/A", "$defs": {"A": CLOSED}},
    "reference to a reference": {"$ref": "#/$defs/B", "$defs": {"A": CLOSED, "B": {"$ref": "#/$defs/A"}}},
    "reference and more": {
        "$ref": "#/$defs/A",
        "$defs": {"A": {"properties": {"a": {}}}},
        "properties": {"b": {}},
        "description": "d",
    },
    "escaped reference": {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": CLOSED}},
    "recursive": {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
    "one of": {"oneOf": [CLOSED, OTHER]},
    "any of references": {
        "anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "$defs": {"A": CLOSED, "B": OTHER},
    },
    "nested": {"allOf": [{"anyOf": [{"oneOf": [CLOSED]}, False]}, True]},
    "draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$ref": "#/definitions/A",
        "definitions": {"A": CLOSED},
    },
}  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_the_parameter_is_accepted_and_everything_else_is_as_it_was(schema: Any) -> None:
    """A call is accepted with the parameter exactly if it is accepted without it."""
    before = copy.deepcopy(schema)
    old, new = schema_validator(schema), schema_validator(extended(schema, ADDED))
    assert schema == before
    for call in (
        {},
        {"a": 1},
        {"b": 1},
        {"a": 1, "b": 1},
        {"a": 1, "c": "x"},
        {"c": "x"},
        {"c": 1},
    ):
        assert new.is_valid(call) is old.is_valid(call), call
        assert new.is_valid({**call, "extra": True}) is old.is_valid(call), call
        assert not new.is_valid({**call, "extra": 1})
    assert extended(schema, ADDED)["properties"]["extra"] == {"type": "boolean"}
    assert objections(extended(schema, ADDED), {"extra": True}) == []


def test_only_the_arguments_themselves_get_the_parameter() -> None:
    """A value inside them that is of the same kind does not."""
    new = schema_validator(extended(SCHEMAS["recursive"], ADDED))
    assert new.is_valid({"below": [{"a": 1}], "extra": True})
    assert not new.is_valid({"below": [{"a": 1, "extra": True}]})


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"$ref": "#here"}, {"$ref": "http://x"}, {"$ref": "#/$defs/a", "$defs": {"a": True}}],
)  # fmt: skip
def test_what_leads_nowhere_stays(schema: Any) -> None:
    """A reference to itself, to elsewhere, or to no object is left to the validator."""
    assert extended(schema, ADDED) == {"type": "object", **schema, "properties": ADDED}


def test_a_simple_schema_stays_simple() -> None:
    """A root that is a reference becomes what it points at: some models take no ``allOf`` there."""
    assert extended(SCHEMAS["reference"], ADDED) == {
        **CLOSED,
        "properties": {**CLOSED["properties"], **ADDED},
        "$defs": {"A": CLOSED},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"extra": {}}},
        {"required": ["extra"]},
        {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"extra": {}}}}},
        {"allOf": [{"oneOf": [{"required": ["extra"]}]}]},
        {"anyOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"properties": {"extra": {}}}}},
    ],
)
def test_a_parameter_is_known_wherever_it_is_declared(schema: Any) -> None:
    """Also behind references and combinations, and also one that is only required."""
    assert declared(schema) == {"extra"}


def test_other_places_declare_no_parameter() -> None:
    """The properties of a parameter, and of definitions that nobody uses, are none."""
    schema = {
        "properties": {"a": {"type": "object", "properties": {"extra": {}}}},
        "$defs": {"A": {"properties": {"extra": {}}}},
    }
    assert declared(schema) == {"a"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"propertyNames": {"enum": ["a"]}}, '"extra" is not one of "a"'),
        ({"patternProperties": {".": {"type": "integer"}}}, 'true is not of type "integer"'),
        ({"maxProperties": 0}, '{"extra":true} has more than 0 properties'),
    ],
)
def test_what_still_refuses_the_parameter_is_named(schema: Any, words: str) -> None:
    """Nothing is forced upon a schema that restricts names; what it has against one is said."""
    assert objections(extended(schema, ADDED), {"extra": True}) == [words]


def test_what_is_missing_anyway_is_no_objection() -> None:
    """Required parameters are missing with the parameter and without."""
    assert objections(CLOSED, {}) == []
    assert objections({"required": ["a"]}, {"extra": True}) == []


def chain(steps: int, *, twice: bool) -> dict[str, Any]:
    """Return a schema in which each definition refers to the next one, once or twice."""
    refs = [{"$ref": f"#/$defs/{n + 1}"} for n in range(steps)]
    defs: dict[str, Any] = {
        str(n): {"allOf": [ref, ref] if twice else [ref]} for n, ref in enumerate(refs)
    }
    return {"$ref": "#/$defs/0", "$defs": {**defs, str(steps): CLOSED}}


@pytest.mark.parametrize(("steps", "twice"), [(100, True), (12, True), (1000, False)])
def test_a_schema_whose_references_explode_is_refused(steps: int, *, twice: bool) -> None:
    """At once, and clearly: a schema may come from anywhere."""
    for call in (declared, lambda schema: extended(schema, ADDED)):
        with pytest.raises(ValueError, match="its references lead to too many parts"):
            call(chain(steps, twice=twice))


@pytest.mark.parametrize(("steps", "twice"), [(7, True), (40, False)])
def test_a_schema_of_many_references_is_not(steps: int, *, twice: bool) -> None:
    """What people write is far from that."""
    schema = chain(steps, twice=twice)
    assert declared(schema) == {"a"}
    assert schema_validator(extended(schema, ADDED)).is_valid({"a": 1, "extra": True})
