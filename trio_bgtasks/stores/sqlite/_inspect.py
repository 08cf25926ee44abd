"""What a doctor wants to know about a store. Reads only, in small steps."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from ..._codec import parse_json, summary_from_json
from ..._errors import CorruptRecord
from .._protocol import wall_clock_ms
from ._engine import Engine
from ._executors import Registration, registrations
from ._rows import COLUMNS, to_record

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

    ``integrity`` has the complaints of SQLite's own check, none when the file is sound. ``orphans``
    are the running tasks of executors that are not alive; a sweep ends them. ``corrupt`` names
    every record and notice that cannot be read. Sizes are in bytes.
    """

    path: Path
    sqlite_version: str
    journal_mode: str
    synchronous: str
    schema_version: int
    integrity: Sequence[str]
    executors: Sequence[ExecutorReport]
    orphans: Sequence[str]
    corrupt: Sequence[CorruptRecord]
    file_bytes: int
    free_bytes: int


async def inspect(engine: Engine, locks: Path) -> StoreReport:
    """Look at everything once."""
    schema_version, integrity = await engine.read(_file_state)
    file_bytes, free_bytes = await engine.in_thread(_sizes, engine.path)
    rows, running = await engine.read(_executor_state)
    dead = await engine.in_thread(_dead, rows, locks)
    alive = {row.executor_id for row in rows} - dead
    # Who was found dead may just have retired: then what it ran has ended.
    still = set(await engine.read(_running))
    running = [pair for pair in running if pair in still]
    corrupt = [
        *await _every(engine, _corrupt_records),
        *await _every(engine, _corrupt_notices),
    ]
    return StoreReport(
        path=engine.path,
        sqlite_version=sqlite3.sqlite_version,
        journal_mode=engine.journal_mode,
        synchronous=engine.synchronous,
        schema_version=schema_version,
        integrity=integrity,
        executors=[
            ExecutorReport(
                row.executor_id,
                row.pid,
                row.executor_id in alive,
                row.registered_at_ms,
                sum(name == row.executor_id for _, name in running),
            )
            for row in rows
        ],
        orphans=[task_id for task_id, name in running if name not in alive],
        corrupt=corrupt,
        file_bytes=file_bytes,
        free_bytes=free_bytes,
    )


def _sizes(path: Path) -> tuple[int, int]:
    return path.stat().st_size, shutil.disk_usage(path.parent).free


def _file_state(connection: sqlite3.Connection) -> tuple[int, list[str]]:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    complaints = [line for (line,) in connection.execute("PRAGMA integrity_check(20)")]
    return version, [] if complaints == ["ok"] else complaints


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


async def _every(engine: Engine, look: Callable[..., _Page]) -> list[CorruptRecord]:
    """Return what ``look`` finds, page by page: one long look would hold up the writers."""
    found: list[CorruptRecord] = []
    after: int | None = 0
    while after is not None:
        some, after = await engine.read(partial(look, after=after))
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
        "SELECT notice_id, task_id, summary FROM notices WHERE notice_id > ? "
        "ORDER BY notice_id LIMIT ?",
        (after, _PAGE),
    ).fetchall()
    found = [error for row in rows if (error := _error_of(_to_summary, row))]
    return found, rows[-1][0] if rows else None


def _to_summary(row: tuple[int, str, str]) -> None:
    notice_id, task_id, text = row
    try:
        summary_from_json(task_id, parse_json(text))
    except ValueError as error:
        raise CorruptRecord(task_id, f"notice {notice_id}: {error}") from error


def _error_of(read: Callable[[Any], object], row: Any) -> CorruptRecord | None:
    try:
        read(row)
    except CorruptRecord as error:
        return error
    return None
