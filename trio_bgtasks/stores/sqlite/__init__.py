"""`SqliteTaskStore`: tasks in one SQLite file that several processes of one host may share."""

from __future__ import annotations

from ._inspect import ExecutorReport as ExecutorReport
from ._inspect import StoreReport as StoreReport
from ._inspect import inspect_file as inspect_file
from ._store import SqliteTaskStore as SqliteTaskStore
