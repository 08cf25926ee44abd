"""The reads: functions of a query-only connection, each of which sees one moment of the file."""

from __future__ import annotations

import logging
import sqlite3
from itertools import islice
from typing import Any, Final

from ..._codec import parse_json, summary_from_json
from ..._errors import CorruptRecord
from ..._records import (
    JournalEntry,
    Notice,
    OutputPage,
    TaskRecord,
    TaskStatus,
)
from .._output import output_page
from .._protocol import RecordPage
from ._rows import COLUMNS, to_record

_log = logging.getLogger("trio_bgtasks.store")


def load(connection: sqlite3.Connection, task_id: str) -> TaskRecord | None:
    """Return the record of ``task_id``."""
    sql = f"SELECT {COLUMNS} FROM tasks WHERE task_id = ?"  # noqa: S608
    row = connection.execute(sql, (task_id,)).fetchone()
    return None if row is None else to_record(row)


def load_by_key(
    connection: sqlite3.Connection, owner_thread_id: str, key: str
) -> TaskRecord | None:
    """Return the record that the owner's key started."""
    sql = f"SELECT {COLUMNS} FROM tasks WHERE owner_thread_id = ? AND idempotency_key = ?"  # noqa: S608
    row = connection.execute(sql, (owner_thread_id, key)).fetchone()
    return None if row is None else to_record(row)


def page(
    connection: sqlite3.Connection, filters: dict[str, Any], *, after: int, limit: int
) -> RecordPage:
    """Return the records whose columns equal ``filters``, in order of creation."""
    where = "".join(f" AND {column} = :{column}" for column in filters)
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM tasks WHERE seq > :after{where} ORDER BY seq LIMIT :limit",  # noqa: S608
        {**filters, "after": after, "limit": limit + 1},
    ).fetchall()
    records: list[TaskRecord] = []
    corrupt: list[CorruptRecord] = []
    for row in rows[:limit]:
        try:
            records.append(to_record(row))
        except CorruptRecord as error:
            corrupt.append(error)
    return RecordPage(records, corrupt, rows[limit - 1][-1] if len(rows) > limit else None)


def history(connection: sqlite3.Connection, task_id: str) -> list[JournalEntry]:
    """Return the journal of ``task_id``, oldest first."""
    rows = connection.execute(
        "SELECT at_ms, kind, attempt, status, executor_id, detail FROM task_events "
        "WHERE task_id = ? ORDER BY event_id",
        (task_id,),
    ).fetchall()
    try:
        return [
            JournalEntry(at_ms, kind, attempt, TaskStatus(status), executor_id, detail)
            for at_ms, kind, attempt, status, executor_id, detail in rows
        ]
    except ValueError as error:
        raise CorruptRecord(task_id, f"journal: {error}") from error


def read_output(
    connection: sqlite3.Connection, task_id: str, offset: int, limit: int
) -> OutputPage:
    """Return a page of the output log of ``task_id``."""
    row = connection.execute(
        "SELECT output_bytes, output_kept FROM tasks WHERE task_id = ?", (task_id,)
    ).fetchone()
    total, kept = row or (0, 0)
    first = max(0, total + offset) if offset < 0 else min(offset, total)
    chunks = connection.execute(
        "SELECT start, data FROM task_output WHERE task_id = ?1 AND start >= coalesce("
        "(SELECT max(start) FROM task_output WHERE task_id = ?1 AND start <= ?2), 0) "
        "ORDER BY start",
        (task_id, first),
    )
    shown = output_page(chunks, offset, limit, total=total, kept=kept)
    chunks.close()
    return shown


_OWNERS: Final = """
    WITH RECURSIVE next (owner) AS (
        SELECT min(owner_thread_id) FROM tasks WHERE owner_thread_id > :after
        UNION ALL
        SELECT (SELECT min(owner_thread_id) FROM tasks WHERE owner_thread_id > owner)
        FROM next WHERE owner IS NOT NULL
    )
    SELECT owner FROM next WHERE owner IS NOT NULL
"""  # one look into the index for each owner, not one for each task


def owners(connection: sqlite3.Connection, after: str, limit: int) -> list[str]:
    """Return the next owners that have records; one that is damaged text is passed over."""
    rows = connection.execute(_OWNERS, {"after": after})
    readable = (owner for (owner,) in rows if isinstance(owner, str))
    found = list(islice(readable, limit))
    rows.close()
    return found


def notices(
    connection: sqlite3.Connection, owner_thread_id: str, limit: int, *, background_only: bool
) -> list[Notice]:
    """Return the oldest notices of the owner; one that cannot be read is logged, passed over."""
    found: list[Notice] = []
    rows = connection.execute(
        "SELECT notice_id, task_id, background, summary FROM notices "
        "WHERE owner_thread_id = :owner AND (background OR NOT :background_only) "
        "ORDER BY notice_id",
        {"owner": owner_thread_id, "background_only": background_only},
    )
    for notice_id, task_id, background, text in rows:
        if len(found) == limit:
            break
        try:
            summary = summary_from_json(task_id, parse_json(text))
        except (CorruptRecord, ValueError) as error:
            extra = {"task_id": str(task_id), "owner_thread_id": owner_thread_id}
            _log.error("notice %d is corrupt: %s", notice_id, error, extra=extra)
        else:
            found.append(Notice(notice_id, summary, bool(background)))
    rows.close()
    return found


def cancel_marks(connection: sqlite3.Connection, executor_id: str) -> list[str]:
    """Return the executor's running tasks with an accepted cancel."""
    rows = connection.execute(
        "SELECT task_id FROM tasks WHERE executor_id = ? AND cancel_requested_at_ms IS NOT NULL",
        (executor_id,),
    ).fetchall()
    return [task_id for (task_id,) in rows]
