"""`SqliteTaskStore`: tasks in one SQLite file that several processes of one host may share."""

from __future__ import annotations

from ._store import SqliteTaskStore

__all__ = ["SqliteTaskStore"]
