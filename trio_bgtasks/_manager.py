"""`BackgroundTaskManager`: every public operation on tasks; and `open_task_manager`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, final

import attrs
import trio

from ._errors import (
    ExecutorFenced,
    IdempotencyKeyUsed,
    InvalidValue,
    ManagerClosed,
    Refused,
    StoreBusy,
    TaskExists,
    TaskNotRunning,
    TaskNotStopped,
    TaskStoreError,
    UnknownTask,
)
from ._execution import ambient, around
from ._hints import Hints, Subscription
from ._json import JsonObject, check_id, new_id, shorten
from ._lifecycle import AttemptStarted, CancelRequested, Registered
from ._liveness import Liveness
from ._outcome import leaves
from ._records import (
    JournalEntry,
    Notice,
    OutputPage,
    Stopped,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
)
from ._requests import CancelledTree, ManagerConfig, ManagerStatistics, StartRequest
from ._supervision import Body, OwnerNursery, Slot, Supervisor
from .stores import MemoryTaskStore, TaskStore

log = logging.getLogger("trio_bgtasks.manager")
