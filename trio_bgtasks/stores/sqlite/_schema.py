"""The tables, and how a file of an older version becomes one of this version.

Every field that guards a transition is a real column; JSON is checked text. ``seq`` and
``notice_id`` are AUTOINCREMENT because they are handed out: a number that was used names the same
thing for ever, also after what it named was deleted.
"""

from __future__ import annotations

import sqlite3
from typing import Final, Literal, TypeAlias

from ..._errors import SchemaTooNew, TaskStoreError

APPLICATION_ID: Final = 0x74626774  # "tbgt": tells our files from other people's databases

_V1: Final = (
    """
    CREATE TABLE tasks (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        task_id TEXT NOT NULL UNIQUE,
        owner_thread_id TEXT NOT NULL,
        task_type TEXT NOT NULL,
        description TEXT NOT NULL,
        status TEXT NOT NULL
            CHECK (status IN ('running', 'completed', 'failed', 'cancelled', 'stopped')),
        attempt INTEGER NOT NULL CHECK (attempt >= 1),
        created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL,
        background INTEGER NOT NULL CHECK (background IN (0, 1)),
        supports_resume INTEGER NOT NULL CHECK (supports_resume IN (0, 1)),
        parent_task_id TEXT,
        executor_id TEXT CHECK ((executor_id IS NOT NULL) = (status = 'running')),
        idempotency_key TEXT,
        cancel_requested_at_ms INTEGER,
        completed_at_ms INTEGER,
        error TEXT,
        output_bytes INTEGER NOT NULL CHECK (output_bytes >= 0),
        output_kept INTEGER NOT NULL DEFAULT 0 CHECK (output_kept >= 0),
        progress TEXT CHECK (progress IS NULL OR json_valid(progress)),
        result_ref TEXT CHECK (result_ref IS NULL OR json_valid(result_ref)),
        metadata TEXT NOT NULL CHECK (json_valid(metadata)),
        args TEXT NOT NULL CHECK (json_valid(args)),
        result TEXT CHECK (result IS NULL OR json_valid(result)),
        checkpoint TEXT CHECK (checkpoint IS NULL OR json_valid(checkpoint))
    ) STRICT
    """,
    # Every index ends with seq, the rowid, of itself: a page in order of creation needs no sort.
    "CREATE INDEX tasks_by_owner ON tasks (owner_thread_id)",
    "CREATE INDEX tasks_by_owner_status ON tasks (owner_thread_id, status)",
    """
    CREATE INDEX tasks_by_parent ON tasks (parent_task_id) WHERE parent_task_id IS NOT NULL
    """,
    """
    CREATE INDEX tasks_by_executor ON tasks (executor_id) WHERE executor_id IS NOT NULL
    """,
    """
    CREATE INDEX tasks_by_end ON tasks (completed_at_ms) WHERE completed_at_ms IS NOT NULL
    """,
    """
    CREATE UNIQUE INDEX tasks_by_key ON tasks (owner_thread_id, idempotency_key)
        WHERE idempotency_key IS NOT NULL
    """,
    """
    CREATE TABLE task_events (
        event_id INTEGER PRIMARY KEY,
        task_id TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        status TEXT NOT NULL,
        executor_id TEXT,
        detail TEXT
    ) STRICT
    """,
    "CREATE INDEX task_events_by_task ON task_events (task_id)",
    """
    CREATE TABLE task_output (
        task_id TEXT NOT NULL,
        start INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (task_id, start)
    ) STRICT
    """,
    """
    CREATE TABLE notices (
        notice_id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner_thread_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        background INTEGER NOT NULL CHECK (background IN (0, 1)),
        summary TEXT NOT NULL CHECK (json_valid(summary))
    ) STRICT
    """,
    "CREATE INDEX notices_by_owner ON notices (owner_thread_id)",
    # What was collected: its id, and its owner's key if it had one, are never used again.
    """
    CREATE TABLE tombstones (
        task_id TEXT PRIMARY KEY,
        owner_thread_id TEXT,
        idempotency_key TEXT,
        CHECK ((owner_thread_id IS NULL) = (idempotency_key IS NULL))
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE UNIQUE INDEX tombstones_by_key ON tombstones (owner_thread_id, idempotency_key)
        WHERE idempotency_key IS NOT NULL
    """,
    """
    CREATE TABLE executors (
        executor_id TEXT PRIMARY KEY,
        boot_id TEXT NOT NULL,
        pid INTEGER NOT NULL,
        registered_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        fenced_at_ms INTEGER
    ) STRICT, WITHOUT ROWID
    """,
)

# The questions of a running task, and how many it has asked: their ids are never used again.
_V2: Final = (
    """
    ALTER TABLE tasks ADD COLUMN questions TEXT NOT NULL DEFAULT '[]'
        CHECK (json_valid(questions))
    """,
    """
    ALTER TABLE tasks ADD COLUMN questions_asked INTEGER NOT NULL DEFAULT 0
        CHECK (questions_asked >= 0)
    """,
)

MIGRATIONS: Final = (_V1, _V2)
"""What makes version n + 1 of version n, statement by statement. Never edited, only added to."""

SCHEMA_VERSION: Final = len(MIGRATIONS)

Schema: TypeAlias = Literal["current", "older", "newer", "empty", "foreign"]


def check_header(connection: sqlite3.Connection) -> int:
    """Return the schema version of the file, 0 for a new one; call it inside a transaction.

    Raises:
        SchemaTooNew: a newer version of this library wrote it.
        TaskStoreError: the file is another application's.
    """
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    if application != APPLICATION_ID:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application or version or tables:
            raise TaskStoreError("it is a SQLite database of another application")
        return 0
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"its schema version is {version}, this library knows {SCHEMA_VERSION}: "
            "open it with a newer version of trio_bgtasks"
        )
    return version


def schema_of(connection: sqlite3.Connection) -> Schema:
    """Return what the file is to this version of the library; call it inside a transaction."""
    try:
        version = check_header(connection)
    except SchemaTooNew:
        return "newer"
    except TaskStoreError:
        return "foreign"
    if version == SCHEMA_VERSION:
        return "current"
    return "older" if version else "empty"


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to `SCHEMA_VERSION`; call it inside a write transaction."""
    for version in range(check_header(connection), SCHEMA_VERSION):
        for statement in MIGRATIONS[version]:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
