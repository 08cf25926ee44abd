"""Connections: how a file is opened, how long a busy one is tried, and what its errors mean."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from ..._errors import InvalidValue, StoreBusy, TaskError, TaskStoreError
from .._hostlock import make_private_folder
from ._schema import SCHEMA_VERSION, check_header, migrate

_T = TypeVar("_T")

Synchronous: TypeAlias = Literal["full", "normal"]

BUSY_S: Final = 5.0
"""How long a lock that another process holds is tried for."""

_NATIVE_BUSY_S = 0.02  # SQLite's own wait; a longer one starves: it polls ever more rarely
_OLDEST = (3, 37, 0)  # STRICT tables
_CACHE_KIB = 16_384  # a batch must not spill: that would lock readers out in mid-transaction


def has_wal_reset_race(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Return whether this SQLite may corrupt a WAL that several connections checkpoint.

    See https://sqlite.org/wal.html#walresetbug: fixed in 3.51.3, 3.50.7 and 3.44.6.
    """
    fixed = (
        version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    )
    return not fixed


def open_writer(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    """Open the one writing connection of this process; create or migrate the file if need be.

    Raises:
        SchemaTooNew: a newer version of this library wrote the file; it was left as it is.
        StoreBusy: another process would not let go of the file.
        TaskStoreError: it cannot be a store: no database, another application's, not writable.
    """
    try:
        return _open_writer(path, synchronous)
    except (OSError, sqlite3.Error, TaskStoreError) as error:
        raise _opening_error(path, error) from error


def _open_writer(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise TaskStoreError(f"SQLite {needed} is needed, this is {sqlite3.sqlite_version}")
    make_private_folder(path.parent)
    # Made by us first, so that it is private from its first moment; -wal and -journal follow it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = _connect(path)
    try:
        version = while_busy(lambda: check_header(connection))
        _set_journal_mode(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        if version < SCHEMA_VERSION:
            begin(connection)
            migrate(connection)
            while_busy(lambda: connection.execute("COMMIT"))
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=_NATIVE_BUSY_S, isolation_level=None, check_same_thread=False
    )


def _set_journal_mode(connection: sqlite3.Connection) -> None:
    wanted = "truncate" if has_wal_reset_race() else "wal"
    try:
        while_busy(lambda: connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone())
    except StoreBusy:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode == "wal":
            # Only a SQLite with the race gets here: the others want nothing else.
            raise StoreBusy(
                "another process uses it in WAL mode, which is not safe with this SQLite "
                f"({sqlite3.sqlite_version}): use one version, at least 3.51.3, for all"
            ) from None
        # Every version is safe in the mode that the others keep it in.


def begin(connection: sqlite3.Connection) -> None:
    """Begin a write transaction; raise `StoreBusy` if others hold the write lock too long."""
    while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))


def while_busy(step: Callable[[], _T]) -> _T:
    """Return ``step()``, repeated while the file is busy; raise `StoreBusy` after `BUSY_S`.

    The pauses are short and random, so that nobody starves.
    """
    give_up_at = time.monotonic() + BUSY_S
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            if time.monotonic() > give_up_at:
                raise StoreBusy(
                    f"another process kept the file busy for {BUSY_S:g} s; nothing was changed"
                ) from error
        time.sleep(random.uniform(0.0005, 0.004))  # noqa: S311


# ---- errors --------------------------------------------------------------------------------------

_BAD_VALUE = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
}
_TROUBLE = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reported an error",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file or its folder cannot be opened for writing",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database",
}


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether ``error`` says that another connection holds a lock."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def store_error(error: BaseException) -> BaseException:
    """Return what ``error`` means in the words of this library, with ``error`` as its cause.

    The only place where SQLite's errors become ours. Our own errors, and the errors of a faulty
    unit of work, are returned as they are.
    """
    if isinstance(error, TaskError) or not isinstance(
        error, sqlite3.Error | OverflowError | UnicodeError
    ):
        return error
    ours = _translate(error)
    ours.__cause__ = error
    return ours


def _translate(error: Exception) -> TaskStoreError:
    if not isinstance(error, sqlite3.Error):
        return InvalidValue(f"SQLite cannot store a value: {error}")
    code = _primary_code(error)
    unbound = code is None and "binding parameter" in str(error)
    if unbound or code in _BAD_VALUE or isinstance(error, sqlite3.DataError):
        return InvalidValue(f"SQLite refuses a value: {error}")
    if is_busy(error):
        return StoreBusy("another process kept the file busy; nothing was changed")
    trouble = None if code is None else _TROUBLE.get(code)
    return TaskStoreError(f"{trouble} ({error})" if trouble else f"SQLite failed: {error}")


def _primary_code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _opening_error(path: Path, error: Exception) -> TaskStoreError:
    if isinstance(error, TaskStoreError):
        ours, why = error, str(error)
    elif isinstance(error, OSError):
        ours, why = TaskStoreError(), error.strerror or str(error)
    else:
        ours = _translate(error)
        why = str(ours)
    return type(ours)(f"cannot open the task store {path}: {why}")
