"""Looking at tasks for the wire: what the manager says now, never what this server remembers."""

from __future__ import annotations

from collections.abc import Container

import attrs

from .._errors import UnknownTask
from .._json import JsonObject, check_id
from .._manager import BackgroundTaskManager
from .._records import OutputPage, TaskRecord, TaskStatus
from ._wire import (
    OUTPUT_BYTES,
    Shown,
    legacy_task,
    may_be_unsettled,
    modern_task,
    settled,
    shown,
)


@attrs.frozen
class Seen:
    """One look at a task of an owner, for one client."""

    record: TaskRecord
    state: Shown
    retention_s: float | None

    def modern(self, *, detailed: bool = True) -> JsonObject:
        """Return the task as the extension of 2026-07-28 has it."""
        return modern_task(self.record, self.state, retention_s=self.retention_s, detailed=detailed)

    def legacy(self) -> JsonObject:
        """Return the task as 2025-11-25 has it."""
        return legacy_task(self.record, self.state, retention_s=self.retention_s)


async def look(
    manager: BackgroundTaskManager,
    owner: str,
    task_id: str,
    *,
    can_answer: bool,
    resumable: Container[str],
) -> Seen | None:
    """Return how a task stands; None when this owner has no such task.

    Whether to resume a stopped task is asked only where that can be done: ``resumable`` are the
    task types of the tools that are there.

    Raises:
        TaskStoreError: the store failed.
    """
    try:
        check_id(task_id, "task_id")
    except ValueError:
        return None  # no task has such an id
    record = await manager.record(owner, task_id)
    if record is None:
        return None
    output: OutputPage | None = None
    try:
        if may_be_unsettled(record):
            record = settled(record, await manager.history(owner, task_id))
        if record.status in (TaskStatus.COMPLETED, TaskStatus.FAILED):
            output = await output_end(manager, record)
    except UnknownTask:
        return None  # collected meanwhile
    if record.status is TaskStatus.STOPPED:
        can_answer = can_answer and record.task_type in resumable
    state = shown(record, output, can_answer=can_answer)
    return Seen(record, state, manager.config.retention_s)


async def output_end(manager: BackgroundTaskManager, record: TaskRecord) -> OutputPage | None:
    """Return the end of a task's output log; None if it wrote none."""
    if record.output_bytes == 0:
        return None
    page = await manager.output(
        record.owner_thread_id, record.task_id, offset=-OUTPUT_BYTES, limit=OUTPUT_BYTES
    )
    return page if page.text else None
