"""The writes: functions of the connection, each of which is one unit of work of the engine."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Final

from ..._codec import dump_json
from ..._events import Event, Facts, Finished, OutputAppended, Registered
from ..._lifecycle import apply, ends_attempt, journal_line
from ..._records import TaskRecord, evolved
from .._output import new_chunks
from ._rows import COLUMNS, checked, insert, to_record, update

_log = logging.getLogger("trio_bgtasks.store")

_LOAD: Final = f"""
    SELECT
        (SELECT fenced_at_ms IS NULL FROM executors WHERE executor_id = ?),
        {COLUMNS}
    FROM tasks WHERE task_id = ?
"""  # noqa: S608
_FACTS_OF_START: Final = """
    SELECT
        (SELECT fenced_at_ms IS NULL FROM executors WHERE executor_id = :executor),
        EXISTS (SELECT 1 FROM tombstones WHERE task_id = :task),
        coalesce(
            (SELECT task_id FROM tasks
             WHERE owner_thread_id = :owner AND idempotency_key = :key),
            (SELECT task_id FROM tombstones
             WHERE owner_thread_id = :owner AND idempotency_key = :key)
        ),
        (SELECT cancel_requested_at_ms IS NOT NULL OR status = 'cancelled' FROM tasks
         WHERE task_id = :parent)
"""


def apply_event(connection: sqlite3.Connection, task_id: str, event: Event) -> TaskRecord:
    """Load, apply, save, journal, announce."""
    executor_id = getattr(event, "executor_id", None)
    row = connection.execute(_LOAD, (executor_id, task_id)).fetchone()
    before = None if row is None else to_record(row[1:])
    if isinstance(event, Registered):
        facts = _facts_of_start(connection, task_id, event)
    else:
        facts = Facts(executor_fenced=row is None or not row[0])
    after = apply(task_id, before, event, facts)
    if after is before:
        return after
    after = checked(before, after)
    if before is None:
        after = evolved(after, seq=insert(connection, after))
    else:
        update(connection, before, after)
    _append_output(connection, before, event, task_id)
    _journal(connection, before, event, after)
    if ends_attempt(event, after):
        connection.execute(
            "INSERT INTO notices (owner_thread_id, task_id, background, summary) "
            "VALUES (?, ?, ?, ?)",
            (
                after.owner_thread_id,
                task_id,
                after.background,
                dump_json(after.summary().to_json()),
            ),
        )
    return after


def _facts_of_start(connection: sqlite3.Connection, task_id: str, event: Registered) -> Facts:
    alive, id_used, key_used_by, parent_cancelled = connection.execute(
        _FACTS_OF_START,
        {
            "executor": event.executor_id,
            "task": task_id,
            "owner": event.owner_thread_id,
            "key": event.idempotency_key,
            "parent": event.parent_task_id,
        },
    ).fetchone()
    return Facts(
        executor_fenced=not alive,
        id_used=bool(id_used),
        key_used_by=key_used_by,
        parent_cancelled=bool(parent_cancelled),
    )


def _journal(
    connection: sqlite3.Connection, before: TaskRecord | None, event: Event, after: TaskRecord
) -> None:
    line = journal_line(before, event, after)
    if line is not None:
        connection.execute(
            "INSERT INTO task_events (task_id, at_ms, kind, attempt, status, executor_id, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (after.task_id, *line),
        )


# ---- output --------------------------------------------------------------------------------------


def _append_output(
    connection: sqlite3.Connection, before: TaskRecord | None, event: Event, task_id: str
) -> None:
    if isinstance(event, OutputAppended):
        offset, text = event.offset, event.text
    elif isinstance(event, Finished) and event.output:
        offset, text = event.output_offset, event.output
    else:
        return
    assert before is not None
    chunks = list(new_chunks(before.output_bytes, offset, text, event.keep_bytes))
    if not chunks:
        return
    connection.executemany(
        "INSERT INTO task_output (task_id, start, data) VALUES (?, ?, ?)",
        [(task_id, start, data) for start, data in chunks],
    )
    (kept,) = connection.execute(
        "SELECT output_kept FROM tasks WHERE seq = ?", (before.seq,)
    ).fetchone()
    kept += sum(len(data) for _, data in chunks)
    kept -= _drop_oldest(connection, task_id, kept - event.keep_bytes)
    connection.execute("UPDATE tasks SET output_kept = ? WHERE seq = ?", (kept, before.seq))


def _drop_oldest(connection: sqlite3.Connection, task_id: str, excess: int) -> int:
    """Delete the oldest chunks of at least ``excess`` bytes; return how many bytes they had."""
    dropped, last = 0, -1
    if excess > 0:
        oldest = connection.execute(
            "SELECT start, length(data) FROM task_output WHERE task_id = ? ORDER BY start",
            (task_id,),
        )
        for start, size in oldest:  # pragma: no branch (there is more than has to go)
            dropped, last = dropped + size, start
            if dropped >= excess:
                break
        oldest.close()
        connection.execute(
            "DELETE FROM task_output WHERE task_id = ? AND start <= ?", (task_id, last)
        )
    return dropped


# ---- notices -------------------------------------------------------------------------------------


def acknowledge(
    connection: sqlite3.Connection, owner_thread_id: str, notice_ids: Sequence[int]
) -> None:
    """Delete exactly these notices of the owner."""
    connection.executemany(
        "DELETE FROM notices WHERE notice_id = ? AND owner_thread_id = ?",
        [(notice_id, owner_thread_id) for notice_id in notice_ids],
    )


# ---- collection ----------------------------------------------------------------------------------

_COLLECTABLE: Final = """
    WITH RECURSIVE busy (task_id) AS (
        SELECT parent_task_id FROM tasks
        WHERE executor_id IS NOT NULL AND parent_task_id IS NOT NULL
        UNION
        SELECT tasks.parent_task_id FROM busy JOIN tasks USING (task_id)
        WHERE tasks.parent_task_id IS NOT NULL
    )
    SELECT seq, task_id, owner_thread_id, idempotency_key, output_kept FROM tasks
    WHERE completed_at_ms <= :before
        AND (status IN ('completed', 'failed', 'cancelled')
             OR status = 'stopped' AND NOT supports_resume)
        AND task_id NOT IN (SELECT task_id FROM busy)
        {owner}
"""
_LARGEST_COLLECTION: Final = 64 << 20  # bytes of output: to delete them takes time


def collect(
    connection: sqlite3.Connection, owner_thread_id: str | None, before_ms: int, limit: int
) -> list[str]:
    """Delete ended records without a running descendant; leave tombstones."""
    rows = _collectable(connection, owner_thread_id, before_ms, limit)
    connection.executemany(
        "INSERT INTO tombstones (task_id, owner_thread_id, idempotency_key) VALUES (?, ?, ?)",
        [(task_id, None if key is None else owner, key) for _, task_id, owner, key in rows],
    )
    connection.executemany("DELETE FROM tasks WHERE seq = ?", [(row[0],) for row in rows])
    ids = [(row[1],) for row in rows]
    connection.executemany("DELETE FROM task_events WHERE task_id = ?", ids)
    connection.executemany("DELETE FROM task_output WHERE task_id = ?", ids)
    return [task_id for (task_id,) in ids]


def _collectable(
    connection: sqlite3.Connection, owner_thread_id: str | None, before_ms: int, limit: int
) -> list[tuple[int, str, str, str | None]]:
    """Return (seq, id, owner, key) of what may go now; what cannot be read is logged, and stays."""
    only = "" if owner_thread_id is None else "AND owner_thread_id = :owner"
    rows = connection.execute(
        _COLLECTABLE.format(owner=only), {"before": before_ms, "owner": owner_thread_id}
    )
    found: list[tuple[int, str, str, str | None]] = []
    output_bytes = 0
    for seq, task_id, owner, key, kept in rows:
        if len(found) == limit or output_bytes >= _LARGEST_COLLECTION:
            break
        if bytes in (type(task_id), type(owner), type(key)):  # damaged text
            extra = {"task_id": str(task_id), "owner_thread_id": str(owner)}
            text = "not collected: the stored record of task '%s' is corrupt"
            _log.error(text, task_id, extra=extra)
            continue
        found.append((seq, task_id, owner, key))
        output_bytes += kept
    rows.close()
    return found
