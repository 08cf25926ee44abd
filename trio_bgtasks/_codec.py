"""The JSON shapes of records, summaries and their parts, and the way back from them.

Text that comes out of a store is checked against a schema before it is structured: the converter
alone would turn ``"false"`` into True. What does not fit raises `CorruptRecord` and says where.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast, get_origin

import attrs
import cattrs
import jsonschema_rs
import msgspec

from ._errors import CorruptRecord
from ._json import MAX_DEPTH, JsonObject, JsonValue
from ._records import (
    ExternalRef,
    Progress,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    ThreadMessageRef,
    ref_to_json,
)

# ---- text ----------------------------------------------------------------------------------------

_DEEPEST: Final = MAX_DEPTH + 1  # a summary is an object around values


def dump_json(value: JsonValue) -> str:
    """Return the compact JSON text of a value that `copy_json` returned."""
    return msgspec.json.encode(value).decode()


def parse_json(text: str) -> JsonValue:
    """Return the value of JSON ``text``; raise ValueError if it is none that we wrote.

    What is nested more deeply than that would break whoever walks through it later.
    """
    try:
        value = cast("JsonValue", msgspec.json.decode(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):
        raise ValueError("nested too deeply")
    return value


def _is_deep(value: JsonValue) -> bool:
    level: Sequence[JsonValue] = [value]
    for _ in range(_DEEPEST):
        level = [item for part in level for item in _items(part)]
    return any(isinstance(part, dict | list) for part in level)


def _items(value: JsonValue) -> Iterable[JsonValue]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


# ---- shapes --------------------------------------------------------------------------------------

_TEXT: Final[JsonObject] = {"type": "string"}
_TEXT_OR_NONE: Final[JsonObject] = {"type": ["string", "null"]}
_INT: Final[JsonObject] = {"type": "integer"}
_INT_OR_NONE: Final[JsonObject] = {"type": ["integer", "null"]}
_BOOL: Final[JsonObject] = {"type": "boolean"}
_OBJECT: Final[JsonObject] = {"type": "object"}
_STATUS: Final[JsonObject] = {"enum": [status.value for status in TaskStatus]}


def _closed(properties: JsonObject, *required: str) -> JsonObject:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_PROGRESS = _closed(
    {"done": {"type": "number"}, "total": {"type": "number"}, "message": _TEXT}, "done"
)
_REF: JsonObject = {
    "oneOf": [
        _closed({"kind": {"const": "external"}, "uri": _TEXT}, "kind", "uri"),
        _closed(
            {"kind": {"const": "thread_message"}, "thread_id": _TEXT, "message_id": _TEXT},
            "kind",
            "thread_id",
        ),
    ]
}
_OPEN_QUESTION: JsonObject = {
    "question_id": _TEXT,
    "message": _TEXT,
    "schema": _OBJECT,
    "asked_at_ms": _INT,
}
_OPEN_QUESTIONS: JsonObject = {
    "type": "array",
    "items": _closed(_OPEN_QUESTION, *_OPEN_QUESTION),
}
_QUESTION: JsonObject = {
    **_OPEN_QUESTION,
    "state": {"enum": ["open", "answered", "declined"]},
    "answer": {},
}
_QUESTIONS: JsonObject = {"type": "array", "items": _closed(_QUESTION, *_QUESTION)}
_RECORD_FIELDS: JsonObject = {
    "task_id": _TEXT,
    "owner_thread_id": _TEXT,
    "task_type": _TEXT,
    "description": _TEXT,
    "status": _STATUS,
    "attempt": {"type": "integer", "minimum": 1},
    "created_at_ms": _INT,
    "updated_at_ms": _INT,
    "background": _BOOL,
    "supports_resume": _BOOL,
    "parent_task_id": _TEXT_OR_NONE,
    "executor_id": _TEXT_OR_NONE,
    "args": _OBJECT,
    "metadata": _OBJECT,
    "idempotency_key": _TEXT_OR_NONE,
    "cancel_requested_at_ms": _INT_OR_NONE,
    "completed_at_ms": _INT_OR_NONE,
    "error": _TEXT_OR_NONE,
    "result": {},
    "result_ref": {"anyOf": [{"type": "null"}, _REF]},
    "checkpoint": {},
    "progress": {"anyOf": [{"type": "null"}, _PROGRESS]},
    "output_bytes": {"type": "integer", "minimum": 0},
    "questions": _QUESTIONS,
    "questions_asked": {"type": "integer", "minimum": 0},
    "seq": _INT,
}
_RECORD = jsonschema_rs.validator_for(_closed(_RECORD_FIELDS, *_RECORD_FIELDS))
_SUMMARY_REQUIRED = ("task_id", "task_type", "description", "status", "created_at_ms", "attempt")
_SUMMARY = jsonschema_rs.validator_for(
    _closed(
        {
            "task_id": _TEXT,
            "task_type": _TEXT,
            "description": _TEXT,
            "status": _STATUS,
            "created_at_ms": _INT,
            "supports_resume": _BOOL,
            "attempt": {"type": "integer", "minimum": 1},
            "error": _TEXT,
            "result": {},
            "result_ref": _REF,
            "completed_at_ms": _INT,
            "parent_task_id": _TEXT,
            "metadata": _OBJECT,
            "progress": _PROGRESS,
            "queued": _BOOL,
            "persistence_error": _TEXT,
            "questions": _OPEN_QUESTIONS,
        },
        *_SUMMARY_REQUIRED,
    )
)

# ---- the converter -------------------------------------------------------------------------------

_converter = cattrs.Converter(detailed_validation=False)


@_converter.register_structure_hook
def _structure_progress(shape: Any, _: type) -> Progress:
    return Progress(**shape)  # numbers as they are: cattrs would make floats of integers


def _is_json(annotation: Any) -> bool:
    return annotation is JsonObject or get_origin(annotation) is dict


# JSON inside JSON was parsed just now: it is nobody else's, and needs no conversion.
_converter.register_structure_hook_func(_is_json, lambda shape, _: shape)
_converter.register_unstructure_hook_func(_is_json, lambda value: value)
_converter.register_unstructure_hook(TaskStatus, lambda status: status.value)
_converter.register_unstructure_hook(ExternalRef, ref_to_json)
_converter.register_unstructure_hook(ThreadMessageRef, ref_to_json)
_converter.register_unstructure_hook(Progress, Progress.to_json)


def record_to_json(record: TaskRecord) -> JsonObject:
    """Return the JSON shape of a record: every field, also those that are not set.

    The JSON values inside are the record's own, not copies.
    """
    return cast("JsonObject", _converter.unstructure(record))


def record_from_json(task_id: str, shape: JsonObject) -> TaskRecord:
    """Return the record of a shape made by `record_to_json`.

    Raises:
        CorruptRecord: the shape does not fit; ``task_id`` and the text say which and where.
    """
    _check(_RECORD, task_id, shape)
    if (shape["executor_id"] is not None) != (shape["status"] == TaskStatus.RUNNING.value):
        raise CorruptRecord(task_id, f"executor_id does not go with status {shape['status']!r}")
    return _converter.structure(shape, TaskRecord)


def summary_from_json(task_id: str, shape: JsonValue) -> TaskSummary:
    """Return the summary of a shape made by `TaskSummary.to_json`.

    Raises:
        CorruptRecord: the shape does not fit.
    """
    _check(_SUMMARY, task_id, shape)
    return _converter.structure(shape, TaskSummary)


def _check(validator: Any, task_id: str, shape: JsonValue) -> None:
    if validator.is_valid(shape):
        return
    first = next(iter(validator.iter_errors(shape)))
    path = ".".join(str(part) for part in first.instance_path)
    raise CorruptRecord(task_id, f"{path or 'record'}: {str(first.message)[:200]}")


RECORD_FIELDS: Final = tuple(field.name for field in attrs.fields(TaskRecord))
"""The names of a record's fields, in order."""
