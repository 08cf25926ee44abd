"""The commands that look at tasks of whatever process, end them, or clear them away."""

from __future__ import annotations

import os
import sys

import attrs
import trio

from .. import BackgroundTaskManager, OutputPage, TaskRecord, TaskStatus, TaskSummary
from ._session import Exit, Session, complain, exit_code, find, find_all, owned
from ._text import one_line
from ._views import (
    OwnedTask,
    journal_grid,
    record_grid,
    record_json,
    say,
    say_json,
    show,
    tasks_grid,
    tasks_json,
)

_FOLLOW_S = 0.1
_PAGE_BYTES = 256 << 10


async def ls(session: Session, owner: str | None) -> int:
    """List the tasks of ``owner`` (None: of all) in order of creation."""
    async with session.manager() as manager:
        tasks = [
            await owned(manager, name, summary)
            for name in await _owners(manager, owner)
            for summary in await manager.list_tasks(name)
        ]
    if owner is None:
        tasks.sort(key=lambda task: task.summary.created_at_ms)
    if session.json:
        say_json(tasks_json(tasks))
    else:
        show(tasks_grid(tasks, owners=owner is None))
    return Exit.COMPLETED


async def gc(session: Session, owner: str | None) -> int:
    """Delete the ended records of ``owner`` (None: of all); say how many."""
    async with session.manager() as manager:
        names = await _owners(manager, owner)
        count = sum([await manager.gc_terminal(name) for name in names])
    if session.json:
        say_json({"deleted": count})
    else:
        say(f"{count} ended tasks deleted")
    return Exit.COMPLETED


async def _owners(manager: BackgroundTaskManager, owner: str | None) -> list[str]:
    return await manager.owners() if owner is None else [owner]


async def show_task(session: Session, task_id: str) -> int:
    """Print everything that is stored of a task but its output, and its history."""
    async with session.manager() as manager:
        record = await find(manager, task_id)
        journal = await manager.history(record.owner_thread_id, task_id)
    if session.json:
        say_json(record_json(record, journal))
    else:
        show(record_grid(record))
        say()
        show(journal_grid(journal))
    return Exit.COMPLETED


async def wait(session: Session, task_ids: tuple[str, ...]) -> int:
    """Wait until none of the tasks is running; print how they stand then."""
    tasks: list[OwnedTask] = []
    async with session.manager() as manager:
        for record in await find_all(manager, task_ids):
            owner = record.owner_thread_id
            summary = await manager.wait(owner, record.task_id)
            tasks.append(await owned(manager, owner, summary))
    if session.json:
        say_json(tasks_json(tasks))
    else:
        show(tasks_grid(tasks))
    return exit_code(tasks)


async def cancel(session: Session, task_ids: tuple[str, ...], *, tree: bool) -> int:
    """Cancel tasks, running or stopped; with ``tree``, also everything below them.

    A cancel that was accepted is final; a task of another process ends soon after.
    """
    async with session.manager() as manager:
        accepted: list[TaskSummary] = []
        others = 0
        for record in await find_all(manager, task_ids):
            owner = record.owner_thread_id
            if tree:
                cancelled = await manager.cancel_tree(owner, record.task_id)
                accepted += cancelled.own
                others += cancelled.others
            else:
                accepted.append(await manager.cancel(owner, record.task_id))
    if session.json:
        say_json({"tasks": [summary.to_json() for summary in accepted], "others": others})
    else:
        for summary in accepted:
            ended = summary.status is TaskStatus.CANCELLED
            say(f"{one_line(summary.task_id)}  {'cancelled' if ended else 'cancel accepted'}")
        if others:
            say(f"and {others} tasks of other owners")
    return Exit.COMPLETED


# ---- output --------------------------------------------------------------------------------------


async def logs(session: Session, task_id: str, *, follow: bool) -> int:
    """Write exactly the output of a task; with ``follow``, until it is not running any more."""
    parts: list[str] = []
    offset = missing = 0
    async with session.manager() as manager:
        while True:
            # The status first: the end of an attempt is stored together with its last output.
            record = await find(manager, task_id)
            while True:
                page = await _output(manager, record, offset)
                missing += page.offset - offset
                offset = page.next_offset
                if not page.text:
                    break
                if session.json:
                    parts.append(page.text)
                else:
                    await _write(page.text.encode())
            if not follow or record.status is not TaskStatus.RUNNING:
                break
            await trio.sleep(_FOLLOW_S)
    if session.json:
        say_json(attrs.evolve(page, text="".join(parts), offset=missing).to_json())
    elif missing:
        complain(f"{missing} bytes of older output were dropped")
    return Exit.COMPLETED


async def _output(manager: BackgroundTaskManager, record: TaskRecord, offset: int) -> OutputPage:
    owner, task_id = record.owner_thread_id, record.task_id
    return await manager.output(owner, task_id, offset=offset, limit=_PAGE_BYTES)


async def _write(data: bytes) -> None:
    """Write to standard output from a thread: whoever reads it may be slow, a signal is not."""
    while data:
        count = await trio.to_thread.run_sync(
            os.write, sys.stdout.fileno(), data, abandon_on_cancel=True
        )
        data = data[count:]
