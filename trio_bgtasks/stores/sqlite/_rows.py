"""Between a row of ``tasks`` and a record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from ..._codec import RECORD_FIELDS, dump_json, parse_json, record_from_json
from ..._errors import CorruptRecord, InvalidValue
from ..._json import JsonObject, NotJson, copy_json
from ..._records import (
    Progress,
    Question,
    TaskRecord,
    copied_questions,
    evolved,
    ref_to_json,
)

_ANY_SIZE: Final = 1 << 62  # sizes are bounded where values are given

COLUMNS: Final = ", ".join(RECORD_FIELDS)
"""What to select for `to_record`, in its order."""

_INSERT: Final = (
    f"INSERT INTO tasks ({', '.join(RECORD_FIELDS[:-1])}) "  # noqa: S608 (seq: by SQLite)
    f"VALUES ({', '.join('?' * (len(RECORD_FIELDS) - 1))})"
)
assert RECORD_FIELDS[0] == "task_id"
assert RECORD_FIELDS[-1] == "seq"


def checked(before: TaskRecord | None, after: TaskRecord) -> TaskRecord:
    """Return ``after`` with checked copies of the JSON that the change brought.

    Raises:
        InvalidValue: it is not JSON.
    """
    given: dict[str, Any] = {}
    for name in ("args", "metadata", "result", "checkpoint", "questions"):
        value = getattr(after, name)
        if value is not None and (before is None or value is not getattr(before, name)):
            try:
                given[name] = (
                    copied_questions(value, _copy) if name == "questions" else _copy(value)
                )
            except NotJson as error:
                raise InvalidValue(
                    f"task '{after.task_id}' cannot be stored: {name}: {error}"
                ) from None
    return evolved(after, **given) if given else after


def _copy(value: Any) -> Any:
    return copy_json(value, max_bytes=_ANY_SIZE)


def _json(value: Any) -> str | None:
    return None if value is None else dump_json(value)


def _progress(value: Progress | None) -> str | None:
    return None if value is None else dump_json(value.to_json())


def _questions(questions: tuple[Question, ...]) -> str:
    return dump_json([attrs.asdict(question, recurse=False) for question in questions])


_TO_COLUMN: Final[dict[str, Callable[[Any], Any]]] = {
    "status": str,
    "background": int,
    "supports_resume": int,
    "args": dump_json,
    "metadata": dump_json,
    "result": _json,
    "checkpoint": _json,
    "progress": _progress,
    "questions": _questions,
    "result_ref": lambda ref: None if ref is None else dump_json(ref_to_json(ref)),
}
_JSON_AT: Final = tuple(
    RECORD_FIELDS.index(name)
    for name in ("args", "metadata", "result", "checkpoint", "progress", "result_ref", "questions")
)
_BOOL_AT: Final = tuple(RECORD_FIELDS.index(name) for name in ("background", "supports_resume"))


def to_record(row: Sequence[Any]) -> TaskRecord:
    """Return the record of a row of `COLUMNS`; raise `CorruptRecord` if it is none."""
    values = list(row)
    for at, value in enumerate(values):
        if type(value) is bytes:
            raise CorruptRecord(str(row[0]), f"{RECORD_FIELDS[at]}: not UTF-8")
    for at in _JSON_AT:
        text = values[at]
        if text is not None:
            try:
                values[at] = parse_json(text)
            except (TypeError, ValueError) as error:
                raise CorruptRecord(str(row[0]), f"{RECORD_FIELDS[at]}: {error}") from error
    for at in _BOOL_AT:
        values[at] = bool(values[at])
    shape: JsonObject = dict(zip(RECORD_FIELDS, values, strict=True))
    return record_from_json(str(row[0]), shape)


def insert(connection: sqlite3.Connection, record: TaskRecord) -> int:
    """Store a new record; return its ``seq``."""
    values = [_column(name, getattr(record, name)) for name in RECORD_FIELDS[:-1]]
    seq = connection.execute(_INSERT, values).lastrowid
    assert seq is not None
    return seq


def update(connection: sqlite3.Connection, before: TaskRecord, after: TaskRecord) -> None:
    """Store what changed from ``before`` to ``after``, and nothing else."""
    changed = [
        (name, value)
        for name in RECORD_FIELDS
        if (value := getattr(after, name)) is not getattr(before, name)
    ]
    if changed:
        assignments = ", ".join(f"{name} = ?" for name, _ in changed)
        values = [_column(name, value) for name, value in changed]
        sql = f"UPDATE tasks SET {assignments} WHERE seq = ?"  # noqa: S608
        connection.execute(sql, (*values, before.seq))


def _column(name: str, value: Any) -> Any:
    convert = _TO_COLUMN.get(name)
    return value if convert is None else convert(value)
