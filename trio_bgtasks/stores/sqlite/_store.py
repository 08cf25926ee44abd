"""`SqliteTaskStore`: the embedded store of one host."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ..._events import Event
from ..._records import JournalEntry, Notice, OutputPage, TaskRecord, TaskStatus
from .._protocol import (
    PAGE,
    ExecutorHandle,
    LeaseTerms,
    RecordPage,
    SweepReport,
    wall_clock_ms,
)
from . import _changes, _executors, _queries
from ._connection import Synchronous
from ._engine import Engine


class SqliteTaskStore:
    """A `TaskStore` in one file: what was answered survives ``kill -9`` and power loss.

    Several processes of one host may use the file at once, several tasks of each. A call that is
    cancelled while it waits its turn did nothing; one that has begun waits for its answer. Liveness
    is exact: an executor is dead when nobody holds its lock, a file beside the database.

    Use: ``async with SqliteTaskStore.open(path) as store``. Beside the database ``tasks.db`` there
    are ``tasks.db-wal`` or ``tasks.db-journal``, and the folder ``tasks.db.locks``; they belong
    together, and to one user.

    Caveats: a process that is stopped (SIGSTOP) in the middle of a write holds everybody up. Do not
    put the file on a network file system, and do not open it in this process by other means than
    SQLite: closing it would drop SQLite's locks. A child that was forked while a store was open can
    use none: fork before, or use spawn or forkserver. The version of SQLite that made the file
    chose its journal: a write-ahead log since 3.51.3 (and 3.50.7, 3.44.6), before that a slower
    one, because several processes might corrupt the faster.
    """

    def __init__(self, engine: Engine, locks: Path) -> None:
        self._engine = engine
        self._locks = locks

    def __repr__(self) -> str:
        return f"<SqliteTaskStore {self._engine.path}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: str | os.PathLike[str], *, synchronous: Synchronous = "full"
    ) -> AsyncGenerator[SqliteTaskStore, None]:
        """Open the store at ``path``, made (for this user only) if there is none.

        With ``synchronous="normal"`` the last answers may be lost when the power fails (never when
        the process dies).

        Raises:
            TypeError, ValueError: an argument is not as said.
            SchemaTooNew: a newer version of this library wrote the file; it is left as it is.
            TaskStoreError: there is something else, or it cannot be written; it is left as it is.
        """
        file = database_path(path)
        if synchronous not in get_args(Synchronous):
            raise ValueError("synchronous must be 'full' or 'normal'")
        async with Engine.open(file, synchronous) as engine:
            yield cls(engine, locks_folder(file))

    # ---- writing ------------------------------------------------------------------------------

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        """See `TaskStore.apply`."""
        return await self._engine.write(
            lambda connection: _changes.apply_event(connection, task_id, event)
        )

    async def acknowledge(self, owner_thread_id: str, notice_ids: Sequence[int]) -> None:
        """See `TaskStore.acknowledge`."""
        ids = list(notice_ids)
        await self._engine.write(
            lambda connection: _changes.acknowledge(connection, owner_thread_id, ids)
        )

    async def collect(
        self, owner_thread_id: str | None, *, ended_before_ms: int, limit: int = PAGE
    ) -> list[str]:
        """See `TaskStore.collect`."""
        return await self._engine.write(
            lambda connection: _changes.collect(connection, owner_thread_id, ended_before_ms, limit)
        )

    # ---- reading ------------------------------------------------------------------------------

    async def load(self, task_id: str) -> TaskRecord | None:
        """See `TaskStore.load`."""
        return await self._engine.read(lambda connection: _queries.load(connection, task_id))

    async def load_by_key(self, owner_thread_id: str, key: str) -> TaskRecord | None:
        """See `TaskStore.load_by_key`."""
        return await self._engine.read(
            lambda connection: _queries.load_by_key(connection, owner_thread_id, key)
        )

    async def list_owner(
        self,
        owner_thread_id: str,
        *,
        after: int = 0,
        limit: int = PAGE,
        status: TaskStatus | None = None,
        task_type: str | None = None,
    ) -> RecordPage:
        """See `TaskStore.list_owner`."""
        filters: dict[str, Any] = {"owner_thread_id": owner_thread_id}
        if status is not None:
            filters["status"] = str(status)
        if task_type is not None:
            filters["task_type"] = task_type
        return await self._page(filters, after, limit)

    async def children(self, task_id: str, *, after: int = 0, limit: int = PAGE) -> RecordPage:
        """See `TaskStore.children`."""
        return await self._page({"parent_task_id": task_id}, after, limit)

    async def _page(self, filters: dict[str, Any], after: int, limit: int) -> RecordPage:
        return await self._engine.read(
            partial(_queries.page, filters=filters, after=after, limit=limit)
        )

    async def history(self, task_id: str) -> list[JournalEntry]:
        """See `TaskStore.history`."""
        return await self._engine.read(lambda connection: _queries.history(connection, task_id))

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        """See `TaskStore.read_output`."""
        return await self._engine.read(
            lambda connection: _queries.read_output(connection, task_id, offset, limit)
        )

    async def notices(
        self, owner_thread_id: str, *, limit: int = PAGE, background_only: bool = False
    ) -> list[Notice]:
        """See `TaskStore.notices`."""
        return await self._engine.read(
            lambda connection: _queries.notices(
                connection, owner_thread_id, limit, background_only=background_only
            )
        )

    async def owners(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        """See `TaskStore.owners`."""
        return await self._engine.read(lambda connection: _queries.owners(connection, after, limit))

    # ---- executors ----------------------------------------------------------------------------

    def executor(
        self, terms: LeaseTerms, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> AbstractAsyncContextManager[ExecutorHandle]:
        """See `TaskStore.executor`. Held by a file lock; the lease serves after a restart."""
        return _executors.registered(self._engine, self._locks, terms, clock_ms)

    async def sweep(
        self, executor_id: str, at_ms: int, *, suspect: str | None = None
    ) -> SweepReport:
        """See `TaskStore.sweep`."""
        return await _executors.sweep(self._engine, self._locks, executor_id, at_ms, suspect)

    async def cancel_marks(self, executor_id: str) -> list[str]:
        """See `TaskStore.cancel_marks`."""
        return await self._engine.read(
            lambda connection: _queries.cancel_marks(connection, executor_id)
        )


def database_path(path: str | os.PathLike[str]) -> Path:
    """Return the real path, the same for all who use the file, so that they share its locks."""
    name: Any = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or os.PathLike[str], not {type(path).__name__}")
    if not name or name == ":memory:":
        raise ValueError(f"path must name a file, not {name!r}; or use MemoryTaskStore")
    try:
        return Path(os.path.realpath(name))
    except ValueError as error:
        raise ValueError(f"path is not usable: {error}") from None


def locks_folder(file: Path) -> Path:
    """Return where the locks of the executors of this database are."""
    return file.with_name(f"{file.name}.locks")
