"""Strict mode: what it cannot express, what comes of a schema, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import event, given
from hypothesis import strategies as st

from tests.model_apis.schemas import CTX, Asked, Schema, chat_call, responses_call, tool_schemas
from trio_bgtasks import InvalidArguments
from trio_bgtasks.model_apis import dispatch, to_openai_responses
from trio_bgtasks.model_apis._strict import NotStrict, has_null, strict_schema, without_nulls
from trio_bgtasks.testing.strategies import arguments


def root(**properties: Any) -> Schema:
    """Return a schema with these properties, none required."""
    return {"type": "object", "properties": properties}


def strict_property(schema: Any, **more: Any) -> Any:
    """Return what comes of one required property."""
    whole = strict_schema({**root(x=schema), "required": ["x"], **more})
    return whole["properties"]["x"]


# ---- the properties ------------------------------------------------------------------------------


@given(st.data())
def test_arguments_of_the_strict_schema_become_those_of_the_tool(data: st.DataObject) -> None:
    """Whatever the strict schema accepts, the tool gets as arguments that its own schema accepts."""
    tool = Asked(data.draw(tool_schemas()))
    (shown,) = to_openai_responses([tool], strict=True)
    assert shown["strict"] is True
    args = data.draw(arguments(shown["parameters"]))
    event(f"with a null: {has_null(args)}")
    call = data.draw(st.sampled_from([responses_call, chat_call]))("asked", args)
    answer = trio.run(dispatch, [tool], call, CTX)
    assert "yes" in (answer.get("output"), answer.get("content")), answer
    tool.validate_args(tool.asked[0][0])


@given(st.data())
def test_no_arguments_are_lost_by_it(data: st.DataObject) -> None:
    """Whatever the tool's schema accepts can be said in strict mode, and comes back unchanged.

    But for the absence of what may be null anyway: that comes back as null.
    """
    schema = data.draw(tool_schemas(closed=True))
    args = data.draw(arguments(schema))
    said = filled(schema, args, schema)
    Asked(strict_schema(schema)).validate_args(said)
    back = without_nulls(schema, said)
    assert back == filled(schema, args, schema, wanted=lambda part: takes_null(part, schema))
    event(f"as it was: {back == args}")


@given(tool_schemas())
def test_the_rules_of_strict_mode(schema: Schema) -> None:
    """Every object is closed and requires all of its properties; every part has a type."""
    strict = strict_schema(schema)
    event(f"definitions: {len(strict.get('$defs', {}))}")
    check(strict, strict)


def filled(
    schema: Schema, value: Any, whole: Schema, wanted: Callable[[Schema], bool] = lambda _: True
) -> Any:
    """Return the value with a null for each absent optional property, of those that are wanted."""
    if "$ref" in schema:
        target = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        return filled(target, value, whole, wanted)
    if isinstance(value, dict):
        return {
            name: filled(part, value[name], whole, wanted) if name in value else None
            for name, part in schema["properties"].items()
            if name in value or wanted(part)
        }
    if isinstance(value, list):
        return [filled(schema["items"], item, whole, wanted) for item in value]
    return value


def takes_null(part: Schema, whole: Schema) -> bool:
    """May the value of a property be null?"""
    try:
        Asked({**root(x=part), "$defs": whole["$defs"]}).validate_args({"x": None})
    except InvalidArguments:
        return False
    return True


def check(part: Schema, whole: Schema) -> None:
    """Check a part as the API does."""
    if "$ref" in part:
        assert list(part) == ["$ref"]
        assert part["$ref"].rpartition("/")[2] in whole["$defs"]
    elif "anyOf" in part:
        assert part.keys() <= {"anyOf", "description"}
        for member in part["anyOf"]:
            check(member, whole)
    else:
        assert part["type"]
        assert "default" not in part
    if part.get("type") == "object":
        assert part["additionalProperties"] is False
        assert part["required"] == list(part["properties"])
        for schema in part["properties"].values():
            check(schema, whole)
    if part.get("type") == "array":
        check(part["items"], whole)
    for schema in part.get("$defs", {}).values():
        check(schema, whole)


# ---- what comes of a schema ----------------------------------------------------------------------


def test_annotations_are_left_out() -> None:
    """A default would be refused; a description is what the model reads."""
    schema = {"type": "string", "default": "x", "title": "X", "examples": [], "description": "an x"}
    assert strict_property(schema) == {"type": "string", "description": "an x"}


def test_what_may_be_null_stays_as_it_is() -> None:
    """An optional property that takes null already is only required, in whatever way it does."""
    for schema in (
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"type": ["string", "null"], "enum": ["a", None]},
        {"$ref": "#/$defs/n"},
    ):
        whole = strict_schema({**root(x=schema), "$defs": {"n": {"type": ["integer", "null"]}}})
        assert whole["properties"]["x"] == schema


def test_values_without_a_type_get_one() -> None:
    """The API wants a type everywhere; that of the values is known."""
    assert strict_property({"enum": ["a", 1, 2.5, None, True]})["type"] == [
        *("boolean", "null", "number", "string")
    ]
    assert strict_property({"const": 3}) == {"type": "number", "const": 3}


def test_nothing_stands_beside_a_reference() -> None:
    """A description does so around it."""
    definitions = {"$defs": {"n": {"type": "integer"}, "unused": {"type": "strange", "x": 1}}}
    schema = {"$ref": "#/$defs/n", "description": "a number", "title": "N"}
    expected = {"anyOf": [{"$ref": "#/$defs/n"}], "description": "a number"}
    assert strict_property(schema, **definitions) == expected
    assert strict_property({"$ref": "#/$defs/n"}, **definitions) == {"$ref": "#/$defs/n"}
    whole = strict_schema({**root(x=schema), **definitions})
    assert whole["$defs"] == {"n": {"type": "integer"}}  # and no other


def test_a_schema_that_refers_to_itself() -> None:
    """By a definition, or by its root."""
    tree = {**root(below={"type": "array", "items": {"$ref": "#/definitions/tree"}})}
    whole = strict_schema({**root(x={"$ref": "#/definitions/tree"}), "definitions": {"tree": tree}})
    assert whole["definitions"]["tree"]["required"] == ["below"]
    assert strict_schema(root(again={"$ref": "#"}))["required"] == ["again"]


def test_a_tool_without_parameters() -> None:
    """The root may be an open object without properties: that means none."""
    expected = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert strict_schema({"type": "object"}) == expected


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "object"}, "#/properties/x: an object of any keys"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "an object of any keys"),
        ({"type": "object", "properties": {}}, "an object of any keys"),
        ({**root(y={"type": "null"}), "additionalProperties": True}, "an object of any keys"),
        ({**root(y={"type": "null"}), "required": ["z"]}, "'z' is required and no property"),
        ({"type": ["object", "null"]}, "an object of any keys"),
        ({}, "a schema without a type"),
        (True, "a schema without a type"),
        ({"description": "anything"}, "a schema without a type"),
        ({"enum": [[1]]}, "a schema without a type"),
        ({"type": "array"}, "#/properties/x/items: a schema without a type"),
        ({"type": "array", "prefixItems": [{"type": "null"}]}, "strict mode has no 'prefixItems'"),
        ({"oneOf": [{"type": "null"}]}, "strict mode has no 'oneOf'"),
        ({"allOf": [{"type": "null"}]}, "strict mode has no 'allOf'"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "no 'uniqueItems'"),
        ({"anyOf": [{"type": "null"}, {}]}, "#/properties/x/anyOf/1: a schema without a type"),
        ({"type": "null", "anyOf": [{"type": "null"}]}, "'anyOf' beside other keywords"),
        ({"$ref": "#/$defs/n", "type": "integer"}, r"'\$ref' beside other keywords"),
        ({"$ref": "#/properties/y"}, "a reference to #/properties/y, which is no definition"),
        ({"$ref": "#/$defs/a~1b"}, "which is no definition"),
        ({"$ref": "https://example.org/n"}, "which is no definition"),
        ({"type": "string", "format": "uri"}, "strict mode has no format 'uri'"),
        ({"type": "string", "pattern": "^(?=a)"}, r"a pattern with '\(\?'"),
        ({"enum": list(range(1001))}, "too many values of enums"),
        (root(**{f"p{n}": {"type": "null"} for n in range(5000)}), "too many properties"),
    ],
    ids=str,
)
def test_what_strict_mode_cannot_express(schema: Any, why: str) -> None:
    """The error leads to the part, and says what of it."""
    definitions = {"n": {"type": "integer"}, "a/b": {"type": "integer"}}
    with pytest.raises(NotStrict, match=why) as refused:
        strict_schema({**root(x=schema, y={"type": "null"}), "$defs": definitions})
    assert refused.value.pointer.startswith("#/properties/x")


def test_a_pattern_with_a_group_that_is_not_captured() -> None:
    """Only what looks around is beyond it."""
    assert strict_property({"type": "string", "pattern": "^(?:a|b)$"})["pattern"] == "^(?:a|b)$"


def test_ten_levels_of_objects() -> None:
    """No more are accepted; lists between them do not count."""
    schema: Schema = {"type": "null"}
    for _ in range(9):
        schema = {"type": "array", "items": root(x=schema)}
    assert strict_schema(root(x=schema))
    with pytest.raises(NotStrict, match="more than 10 levels of objects"):
        strict_schema(root(y=root(x=schema)))


# ---- the way back --------------------------------------------------------------------------------


def test_only_nulls_that_cannot_be_meant_are_left_out() -> None:
    """Not one that the schema takes, nor one for what is required or not known."""
    schema = root(a={"type": "string"}, b={"type": ["string", "null"]}, c={"type": "string"})
    args = {"a": None, "b": None, "c": None, "d": None}
    assert without_nulls({**schema, "required": ["c"]}, args) == {"b": None, "c": None, "d": None}


def test_in_a_union_the_way_that_fits_is_taken() -> None:
    """A null is judged by the alternative that accepts the rest."""
    one = {**root(kind={"const": "one"}, n={"type": "integer"}), "required": ["kind"]}
    two = {**root(kind={"const": "two"}, n={"type": "null"}), "required": ["kind"]}
    schema = root(x={"anyOf": [one, two]})
    assert without_nulls(schema, {"x": {"kind": "one", "n": None}}) == {"x": {"kind": "one"}}
    kept = {"x": {"kind": "two", "n": None}}
    assert without_nulls(schema, kept) == kept
    neither = {"x": {"kind": "three", "n": None}}
    assert without_nulls(schema, neither) == neither


def test_references_are_followed() -> None:
    """To the end; one that goes round, or out of the schema, ends the way."""
    schema = {
        **root(x={"$ref": "#/$defs/a"}, round={"$ref": "#/$defs/c"}, any=True),
        "$defs": {
            "a": {"$ref": "#/$defs/b"},
            "b": root(n={"type": "integer"}),
            "c": {"$ref": "#/$defs/c"},
        },
    }
    assert without_nulls(schema, {"x": {"n": None}}) == {"x": {}}
    for stays in ({"round": {"n": None}}, {"any": {"n": None}}, {"x": [None]}):
        assert without_nulls(schema, stays) == stays


def test_it_is_known_whether_there_is_a_null() -> None:
    """Also far below."""
    assert has_null({"a": [{"b": None}]})
    assert not has_null({"a": [{"b": 0}, "", False]})
