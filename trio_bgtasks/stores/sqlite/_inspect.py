"""What a doctor wants to know about a store. Reads only, in small steps."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import trio

from ..._codec import parse_json, summary_from_json
from ..._errors import CorruptRecord, TaskStoreError
from .._protocol import wall_clock_ms
from ._connection import SQLITE_ERRORS, open_for_looking, store_error, view, while_busy
from ._executors import Registration, registrations
from ._rows import COLUMNS, to_record
from ._schema import Schema, schema_of
from ._store import database_path, locks_folder

_T = TypeVar("_T")

_PAGE: Final = 1000


@attrs.frozen
class ExecutorReport:
    """An executor that the store knows, the dead ones that left something running included."""

    executor_id: str
    pid: int
    alive: bool
    registered_at_ms: int
    running_tasks: int


@attrs.frozen
class StoreReport:
    """The state of a SQLite store at one moment.

    ``schema`` is "current" for a file that this version of the library reads; else the file is
    "older" or "empty" (opened as a store, it is brought up to date), "newer", or "foreign", and
    nothing is known of executors and records. ``journal_mode`` is "wal" or "rollback".

    ``integrity`` has the complaints of SQLite's own check of the file's structure. ``orphans``
    are the running tasks of executors that are not alive; a sweep ends them. ``corrupt`` names
    every record and notice that cannot be read. Sizes are in bytes.
    """

    path: Path
    sqlite_version: str
    journal_mode: str
    schema: Schema
    schema_version: int
    integrity: Sequence[str]
    file_bytes: int
    free_bytes: int
    executors: Sequence[ExecutorReport] = ()
    orphans: Sequence[str] = ()
    corrupt: Sequence[CorruptRecord] = ()


async def inspect_file(path: str | os.PathLike[str]) -> StoreReport:
    """Return the state of the file at ``path``, of its executors and records; nothing is changed.

    It need not be a store. It reads everything: not for a hot path. While it checks a large file
    that is not in WAL mode, other processes may have to wait, or be refused with `StoreBusy`. One
    in WAL mode may get its ``-wal`` and ``-shm`` files back, empty.

    Raises:
        TypeError, ValueError: ``path`` names no file.
        TaskStoreError: it cannot be read: no SQLite database, damaged beyond that, or half written
            by a process that was killed; whoever opens the store then rolls that back.
    """
    file = database_path(path)
    return await trio.to_thread.run_sync(_inspect, file, limiter=trio.CapacityLimiter(1))


def _inspect(path: Path) -> StoreReport:
    prefix = f"cannot read the task store {path}"
    try:
        with closing(open_for_looking(path)) as connection:
            return _look(connection, path)
    except TaskStoreError as error:
        raise type(error)(f"{prefix}: {error}") from error.__cause__
    except SQLITE_ERRORS as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_ROLLBACK:
            half = "a process was killed while it wrote; whoever opens the store rolls that back"
            raise TaskStoreError(f"{prefix}: {half}") from error
        ours = store_error(error)
        raise type(ours)(f"{prefix}: {ours}") from error


def _look(connection: sqlite3.Connection, path: Path) -> StoreReport:
    """Look at everything once, in steps: one long look would hold up the writers."""
    report = _read(connection, partial(_file_state, path=path))
    if report.schema != "current":
        return report
    rows, running = _read(connection, _executor_state)
    dead = _dead(rows, locks_folder(path))
    alive = {row.executor_id for row in rows} - dead
    # Who was found dead may just have retired: then what it ran has ended.
    still = set(_read(connection, _running))
    running = [pair for pair in running if pair in still]
    return attrs.evolve(
        report,
        executors=[
            ExecutorReport(
                str(row.executor_id),  # damaged text is bytes
                row.pid,
                row.executor_id in alive,
                row.registered_at_ms,
                sum(name == row.executor_id for _, name in running),
            )
            for row in rows
        ],
        orphans=[task_id for task_id, name in running if name not in alive],
        corrupt=[*_every(connection, _corrupt_records), *_every(connection, _corrupt_notices)],
    )


def _read(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]) -> _T:
    trio.from_thread.check_cancelled()
    return while_busy(partial(view, connection, work))


def _file_state(connection: sqlite3.Connection, *, path: Path) -> StoreReport:
    """Return what there is to know of whatever SQLite database."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    complaints = [line for (line,) in connection.execute("PRAGMA integrity_check(20)")]
    return StoreReport(
        path=path,
        sqlite_version=sqlite3.sqlite_version,
        journal_mode="wal" if mode == "wal" else "rollback",
        schema=schema_of(connection),
        schema_version=version,
        integrity=[] if complaints == ["ok"] else complaints,
        file_bytes=path.stat().st_size,
        free_bytes=shutil.disk_usage(path.parent).free,
    )


def _executor_state(
    connection: sqlite3.Connection,
) -> tuple[list[Registration], list[tuple[str, str]]]:
    return registrations(connection), _running(connection)


def _running(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return (task, executor) of what runs; an id that is damaged text is reported elsewhere."""
    rows = connection.execute(
        "SELECT task_id, executor_id FROM tasks WHERE executor_id IS NOT NULL ORDER BY seq"
    )
    return [(task_id, name) for task_id, name in rows if isinstance(task_id, str)]


def _dead(rows: list[Registration], locks: Path) -> set[str]:
    now = wall_clock_ms()
    return {row.executor_id for row in rows if row.is_dead(locks, now)}


_Page = tuple[list[CorruptRecord], int | None]


def _every(connection: sqlite3.Connection, look: Callable[..., _Page]) -> list[CorruptRecord]:
    """Return what ``look`` finds, page by page."""
    found: list[CorruptRecord] = []
    after: int | None = 0
    while after is not None:
        some, after = _read(connection, partial(look, after=after))
        found += some
    return found


def _corrupt_records(connection: sqlite3.Connection, *, after: int) -> _Page:
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM tasks WHERE seq > ? ORDER BY seq LIMIT ?",  # noqa: S608
        (after, _PAGE),
    ).fetchall()
    found = [error for row in rows if (error := _error_of(to_record, row))]
    return found, rows[-1][-1] if rows else None


def _corrupt_notices(connection: sqlite3.Connection, *, after: int) -> _Page:
    rows = connection.execute(
        "SELECT notice_id, task_id, owner_thread_id, summary FROM notices WHERE notice_id > ? "
        "ORDER BY notice_id LIMIT ?",
        (after, _PAGE),
    ).fetchall()
    found = [error for row in rows if (error := _error_of(_to_summary, row))]
    return found, rows[-1][0] if rows else None


def _to_summary(row: tuple[int, Any, Any, Any]) -> None:
    notice_id, *texts = row
    task_id = str(texts[0])
    for name, text in zip(("task_id", "owner_thread_id", "summary"), texts, strict=True):
        if isinstance(text, bytes):
            raise CorruptRecord(task_id, f"notice {notice_id}: {name}: not UTF-8")
    try:
        summary_from_json(task_id, parse_json(texts[-1]))
    except CorruptRecord as error:
        raise CorruptRecord(task_id, f"notice {notice_id}: {error.why}") from error
    except ValueError as error:
        raise CorruptRecord(task_id, f"notice {notice_id}: {error}") from error


def _error_of(read: Callable[[Any], object], row: Any) -> CorruptRecord | None:
    try:
        read(row)
    except CorruptRecord as error:
        return error
    return None
