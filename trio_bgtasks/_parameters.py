"""The parameters that a wrapped tool has, and the JSON Schema that says so. Pure.

The arguments object is described by the root of the schema and by what the root combines: local
references, ``allOf``, ``anyOf``, ``oneOf``. Each of these parts may know a parameter, and may be
closed to the ones that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, TypeGuard
from urllib.parse import unquote

import attrs

from ._executable import TASK_ID_PARAM, BackgroundExecutable, finds_ids_by_default
from ._json import JsonObject, clone_json
from ._json_schema import schema_validator

Schema: TypeAlias = dict[str, Any]

RUN_IN_BACKGROUND_PARAM = "run_in_background"
"""The parameter that `BackgroundCapable` adds to a tool."""

_RUN_IN_BACKGROUND: JsonObject = {
    "type": "boolean",
    "description": (
        "If true, execute this tool in the background and return immediately with a task_id. "
        "Use task_status to check progress later."
    ),
}
_TASK_ID: JsonObject = {
    "type": "string",
    "description": (
        "The task_id of a stopped task of this tool, to resume it with the arguments that it had; "
        "those passed beside it replace them."
    ),
}
_EXAMPLES: JsonObject = {RUN_IN_BACKGROUND_PARAM: True, TASK_ID_PARAM: "bg_1"}

_COMBINING = ("allOf", "anyOf", "oneOf")
_MOST_PARTS = 1000  # where each is referred to twice by the one before, they double at every step
_MOST_REFERENCES = 50  # on the way to one part
# What may differ beside a reference: it describes, and constrains nothing.
_DESCRIBING = {"$comment", "$defs", "default", "definitions", "description", "examples", "title"}


@attrs.frozen
class Parameters:
    """``own`` are known to the tool itself, ``added`` to the wrapper, all of them to ``schema``."""

    own: set[str]
    added: JsonObject
    schema: Schema


def parameters_of(tool: BackgroundExecutable[Any]) -> Parameters:
    """Return the parameters of a wrapped tool: its own, and ``run_in_background``.

    A resumable tool gets one for the id of the task, too, unless it has its own way for that.

    Raises:
        ValueError: its schema is not valid, has the parameter already, or has no room for it.
    """
    descriptor = tool.descriptor()
    name, schema = descriptor.name, descriptor.parameters
    try:
        schema_validator(schema)
        own = declared(schema)
    except ValueError as error:
        raise ValueError(f"the schema of tool {name!r} is not valid: {error}") from None
    if RUN_IN_BACKGROUND_PARAM in own:
        raise ValueError(
            f"tool {name!r} already has a parameter {RUN_IN_BACKGROUND_PARAM!r}; rename that one"
        )
    added: JsonObject = {RUN_IN_BACKGROUND_PARAM: _RUN_IN_BACKGROUND}
    if finds_ids_by_default(tool) and TASK_ID_PARAM not in own:
        added[TASK_ID_PARAM] = _TASK_ID
    whole = extended(schema, added)
    for parameter in added:
        for why in objections(whole, {parameter: _EXAMPLES[parameter]}):
            raise ValueError(f"the schema of tool {name!r} refuses {parameter!r}: {why}")
    return Parameters(own, added, whole)


def declared(parameters: Schema) -> set[str]:
    """Return the names of the parameters that the schema knows of, or requires."""
    return {
        name
        for part in _parts(_whole(parameters))
        for name in (*part.get("properties", ()), *part.get("required", ()))
    }


def extended(parameters: Schema, added: JsonObject) -> Schema:
    """Return the schema with the properties ``added``, in every part that would refuse them."""
    whole = _whole(parameters)
    for part in _parts(whole):
        if part is whole or _is_closed(part):
            part["properties"] = {**part.get("properties", {}), **clone_json(added)}
    return {"type": "object", **whole}


def without_added(parameters: Schema) -> Schema:
    """Return the schema of a tool without what a wrapper like ours, elsewhere, added to it."""
    if RUN_IN_BACKGROUND_PARAM not in declared(parameters):
        return parameters
    whole = _whole(parameters)
    added = {RUN_IN_BACKGROUND_PARAM}
    if whole.get("properties", {}).get(TASK_ID_PARAM) == _TASK_ID:  # else it is the tool's own
        added.add(TASK_ID_PARAM)
    for part in _parts(whole):
        if "properties" in part:
            part["properties"] = {k: v for k, v in part["properties"].items() if k not in added}
    return whole


def objections(parameters: Schema, args: JsonObject) -> list[str]:
    """Return what the schema has against ``args`` that it has not against no arguments at all."""
    validator = schema_validator(parameters)
    anyway = [error.schema_path for error in validator.iter_errors({})]
    return [e.message for e in validator.iter_errors(args) if e.schema_path not in anyway]


def _parts(schema: Schema) -> Iterator[Schema]:
    yield schema
    for keyword in _COMBINING:
        for member in schema.get(keyword, ()):
            if _is_object(member):
                yield from _parts(member)


def _is_closed(part: Schema) -> bool:
    return part.get("additionalProperties", True) is not True or "unevaluatedProperties" in part


def _whole(root: Schema) -> Schema:
    """Return a private copy of a schema whose parts stand where they are referred to.

    Raises:
        ValueError: that are too many.
    """
    return _inlined(root, root, frozenset(), iter(range(_MOST_PARTS)))


def _inlined(schema: Schema, root: Schema, seen: frozenset[str], left: Iterator[int]) -> Schema:
    """Return a private copy whose parts stand where they are referred to.

    References from within the properties stay as they are: what they lead to is not the arguments
    object. So do those that lead out of the schema, and those that lead back to themselves.
    """
    if next(left, None) is None or len(seen) > _MOST_REFERENCES:
        raise ValueError("its references lead to too many parts")
    reference: Any = schema.get("$ref")
    target = None if reference in seen else target_of(root, reference)
    own: Schema = clone_json(schema)
    for keyword in _COMBINING:
        if keyword in own:
            own[keyword] = [
                _inlined(member, root, seen, left) if _is_object(member) else member
                for member in own[keyword]
            ]
    if target is None:
        return own
    del own["$ref"]
    part = _inlined(target, root, seen | {reference}, left)
    if all(own.get(name, value) == value or name in _DESCRIBING for name, value in part.items()):
        return {**part, **own}
    return {**own, "allOf": [*own.get("allOf", ()), part]}


def target_of(root: Schema, reference: object) -> Schema | None:
    """Return what a JSON pointer into the schema leads to, if that is an object."""
    if not isinstance(reference, str) or not f"{reference}/".startswith("#/"):
        return None
    found: Any = root
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if _is_object(found) else None
    return found if _is_object(found) else None


def _is_object(schema: object) -> TypeGuard[Schema]:
    return isinstance(schema, dict)  # true and false are schemas, too
