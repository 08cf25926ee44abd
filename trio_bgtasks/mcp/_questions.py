"""Questions of tasks as elicitations of MCP, and the answers back. Pure.

An elicitation's form is a flat object of simple fields. A question whose schema is one is asked as
it is; of any other the answer is one field: its value if that is simple, else JSON text.
"""

from __future__ import annotations

import json
from typing import Any, cast

from .._json import JsonObject, JsonValue
from .._json_schema import schema_validator
from .._records import Question, TaskRecord

ANSWER = "answer"
"""The one field of a form for a question that is no form itself."""
RESUME = "resume"

_TEXTS: JsonObject = {"type": "array", "items": {"type": "string"}}
_TITLED: JsonObject = {
    "type": "array",
    "items": {
        "properties": {"const": {"type": "string"}, "title": {"type": "string"}},
        "required": ["const", "title"],
    },
}
_TITLES: JsonObject = {"title": {"type": "string"}, "description": {"type": "string"}}


def _field(kinds: list[str], required: list[str] | None = None, **keywords: Any) -> JsonObject:
    """Return the schema of the schema of a field, of which these keywords have to fit these."""
    properties: JsonObject = {**_TITLES, "type": {"enum": [*kinds]}, **keywords}
    needed: list[JsonValue] = ["type", *(required or [])]
    return {"type": "object", "properties": properties, "required": needed}


_NUMBER: JsonObject = {"type": "number"}
_COUNT: JsonObject = {"type": "integer"}
_TEXT: JsonObject = {"type": "string"}
_FORMATS = ["date", "date-time", "email", "uri"]
_OPTIONS: JsonObject = {
    "anyOf": [
        {
            "properties": {"type": {"const": "string"}, "enum": _TEXTS},
            "required": ["type", "enum"],
        },
        {"properties": {"anyOf": _TITLED}, "required": ["anyOf"]},
    ]
}
# What a form may ask for, of all that a JSON Schema may be.
_SIMPLE: JsonObject = {
    "anyOf": [
        _field(["boolean"], default={"type": "boolean"}),
        _field(["number", "integer"], default=_NUMBER, minimum=_NUMBER, maximum=_NUMBER),
        _field(
            ["string"],
            default=_TEXT,
            minLength=_COUNT,
            maxLength=_COUNT,
            format={"enum": _FORMATS},
            enum=_TEXTS,
            enumNames=_TEXTS,
            oneOf=_TITLED,
        ),
        _field(
            ["array"],
            ["items"],
            default=_TEXTS,
            minItems=_COUNT,
            maxItems=_COUNT,
            items={"type": "object", **_OPTIONS},
        ),
    ]
}


def resume_key(record: TaskRecord) -> str:
    """Return the key of the question whether to resume a task; another one for each attempt."""
    return f"resume-{record.attempt}"


def resume_question(record: TaskRecord) -> Question:
    """Return the question whether to resume a task that stopped."""
    reason = record.error or "no reason was given"
    schema: JsonObject = {
        "type": "object",
        "properties": {RESUME: {"type": "boolean", "title": "Resume", "default": True}},
        "required": [RESUME],
    }
    message = f"The task '{record.description}' was stopped: {reason}. Resume it?"
    at_ms = record.completed_at_ms or record.updated_at_ms
    return Question(resume_key(record), message, schema, at_ms)


def elicitation(question: Question) -> JsonObject:
    """Return the ``elicitation/create`` request that asks the question."""
    return {
        "method": "elicitation/create",
        "params": {
            "mode": "form",
            "message": question.message,
            "requestedSchema": _form(question.schema),
        },
    }


def answer_of(question: Question, content: JsonObject | None) -> Any:
    """Return the answer that a filled form gives to the question; it is not validated.

    Raises:
        ValueError: the form is not the one that was asked with.
    """
    fields = {} if content is None else content
    if _is_form(question.schema):
        return fields
    if ANSWER not in fields:
        raise ValueError(f"content must have a field {ANSWER!r}")
    value = fields[ANSWER]
    if _is_simple(_typed(question.schema)) or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # people leave the quotes out


def _form(schema: JsonObject) -> JsonObject:
    if _is_form(schema):
        kept = ("$schema", "type", "properties", "required")
        form: JsonObject = {name: schema[name] for name in kept if name in schema}
        fields = cast("JsonObject", schema["properties"])
        form["properties"] = {name: _typed(field) for name, field in fields.items()}
        return form
    field: JsonValue = _typed(schema)
    if not _is_simple(field):
        text = f"JSON that fits this schema: {json.dumps(schema)}"
        field = {"type": "string", "description": text}
    properties: JsonObject = {ANSWER: field}
    return {"type": "object", "properties": properties, "required": [ANSWER]}


def _is_form(schema: JsonObject) -> bool:
    properties = schema.get("properties")
    return (
        schema.get("type") == "object"
        and isinstance(properties, dict)
        and all(_is_simple(_typed(field)) for field in properties.values())
    )


def _typed(schema: JsonValue) -> JsonValue:
    """Return the schema of a choice of strings with its type, which a form has to name."""
    if isinstance(schema, dict) and "type" not in schema and {"enum", "oneOf"} & schema.keys():
        return {"type": "string", **schema}
    return schema


def _is_simple(schema: object) -> bool:
    return schema_validator(_SIMPLE).is_valid(schema)
