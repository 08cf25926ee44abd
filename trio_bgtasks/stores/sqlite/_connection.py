"""Connections: how a file is opened, how long a busy one is tried, and what its errors mean."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from ..._errors import InvalidValue, StoreBusy, TaskStoreError
from .._hostlock import make_private_folder
from ._schema import SCHEMA_VERSION, check_header, migrate

_T = TypeVar("_T")

Synchronous: TypeAlias = Literal["full", "normal"]

BUSY_S: Final = 5.0
"""How long a lock that another process holds is tried for."""

_making_file = threading.Lock()

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
    prefix = f"cannot open the task store {path}"
    try:
        return _open_writer(path, synchronous)
    except OSError as error:
        raise TaskStoreError(f"{prefix}: {error.strerror}") from error
    except TaskStoreError as error:
        raise type(error)(f"{prefix}: {error}") from error.__cause__
    except sqlite3.Error as error:
        ours = store_error(error)
        raise type(ours)(f"{prefix}: {ours}") from error


def _open_writer(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise TaskStoreError(f"SQLite {oldest} is needed, this is {sqlite3.sqlite_version}")
    _make_folder(path.parent)
    _make_private_file(path)
    if path.is_dir():
        raise TaskStoreError("it is a folder")
    for needed in (path, path.parent):  # the journal is made in the folder
        if not os.access(needed, os.R_OK | os.W_OK):
            raise TaskStoreError(f"{needed} is not writable")
    connection = _connect(path)
    try:
        version = while_busy(lambda: view(connection, check_header))
        _set_journal_mode(connection, is_new=version == 0)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        if synchronous == "full":  # macOS alone keeps two kinds of flush apart
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA checkpoint_fullfsync = ON")
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


def _make_folder(folder: Path) -> None:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise TaskStoreError(f"{there} is not a folder")
    make_private_folder(folder)


def _make_private_file(path: Path) -> None:
    """Make an empty file, private from its first moment, if there is none; -wal and others follow.

    A file that is there is not opened: to close it would drop every lock that SQLite holds on it in
    this process. For the same reason it is only seen by others here when it is closed again.
    """
    with _making_file:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        os.close(fd)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def open_for_looking(path: Path) -> sqlite3.Connection:
    """Open a connection that changes nothing at all: it does not even roll back or checkpoint.

    Caveat: SQLite's integrity check leaves out the CHECK constraints then.

    Raises:
        TaskStoreError: there is no file that can be read.
    """
    if path.is_dir():
        raise TaskStoreError("it is a folder")
    if not os.access(path, os.R_OK):
        raise TaskStoreError("there is no such file, or it is not readable")
    return _connect(path, "ro")


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",  # a file that was removed is an error, not a new store
        uri=True,
        timeout=_NATIVE_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _text
    return connection


def _text(data: bytes) -> str | bytes:
    """Return text, or the bytes of damaged text: one bad column must not hide a page of rows."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        return data


def _set_journal_mode(connection: sqlite3.Connection, *, is_new: bool) -> None:
    """Use a write-ahead log where that is safe, else a rollback journal.

    The version of SQLite that makes a file decides, alone: nobody knows whether a second process
    will come. Later ones keep to it, because they cannot see which version the others have; but one
    with the race takes the file out of WAL mode, or refuses it.
    """
    (mode,) = while_busy(lambda: connection.execute("PRAGMA journal_mode").fetchone())
    race = has_wal_reset_race()
    if mode == "wal" and not race:
        return
    wanted = "wal" if is_new and not race else "truncate"
    try:
        while_busy(lambda: connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone())
    except sqlite3.OperationalError as error:
        if mode != "wal" or not is_busy(error):
            raise
        raise StoreBusy(
            "another process uses it in WAL mode, which is not safe with this SQLite "
            f"({sqlite3.sqlite_version}): use one version, at least 3.51.3, for all"
        ) from error


def file_identity(path: Path) -> tuple[int, int]:
    """Return what tells the file at ``path`` from one that is put in its place."""
    found = path.stat()
    return found.st_dev, found.st_ino


def check_still_ours(connection: sqlite3.Connection, path: Path, identity: tuple[int, int]) -> None:
    """Look, inside a transaction, whether what it reads or writes is what is found at ``path``.

    Raises:
        SchemaTooNew: a newer version of this library has migrated the file meanwhile.
        TaskStoreError: the file was removed or replaced, or cannot be looked for.
    """
    try:
        moved = file_identity(path) != identity
    except (FileNotFoundError, NotADirectoryError):
        moved = True
    except OSError as error:
        raise TaskStoreError(f"{path} cannot be looked for: {error.strerror}") from error
    if moved:
        raise TaskStoreError(f"{path} was removed or replaced while it was open: open it anew")
    check_header(connection)


def begin(connection: sqlite3.Connection) -> None:
    """Begin a write transaction as soon as no other connection is writing."""
    while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))


def view(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]) -> _T:
    """Return ``work(connection)``, all of whose reads see one moment of the file."""
    connection.execute("BEGIN")
    try:
        return work(connection)
    finally:
        roll_back(connection)


def roll_back(connection: sqlite3.Connection) -> None:
    """End the transaction, if the error that we come from has not done so already."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def while_busy(step: Callable[[], _T], is_enough: Callable[[], bool] | None = None) -> _T:
    """Return ``step()``, repeated while other connections keep the file busy.

    For `BUSY_S`, or until ``is_enough`` says so, which is asked whenever the file was busy.
    """
    is_enough = is_enough or partial(is_overdue, time.monotonic())
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or is_enough():
                raise
        pause()


def is_overdue(since: float) -> bool:
    """Return whether that moment of the monotonic clock is longer ago than `BUSY_S`."""
    return time.monotonic() > since + BUSY_S


def pause() -> None:
    """Wait before a busy file is tried again: shortly and at random, so that nobody starves."""
    time.sleep(random.uniform(0.0005, 0.004))  # noqa: S311


# ---- errors --------------------------------------------------------------------------------------

SQLITE_ERRORS: Final = (sqlite3.Error, OverflowError, UnicodeError)
"""What SQLite, or its binding of values, raises."""

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


def is_busy(error: BaseException) -> bool:
    """Return whether ``error`` says that another connection holds a lock."""
    return isinstance(error, sqlite3.Error) and _primary_code(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def store_error(error: Exception) -> TaskStoreError:
    """Return what one of `SQLITE_ERRORS` means to callers; the only place that decides it.

    "Nothing was changed" may be said of a busy file: its transaction is always rolled back.
    """
    if not isinstance(error, sqlite3.Error):
        return InvalidValue(f"SQLite cannot store a value: {error}")
    code = _primary_code(error)
    unbound = code is None and "binding parameter" in str(error)
    if unbound or code in _BAD_VALUE or isinstance(error, sqlite3.DataError):
        return InvalidValue(f"SQLite refuses a value: {error}")
    if is_busy(error):
        return StoreBusy("other processes keep the file busy; nothing was changed")
    trouble = None if code is None else _TROUBLE.get(code)
    return TaskStoreError(f"{trouble} ({error})" if trouble else f"SQLite failed: {error}")


def _primary_code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
