"""The commands that look at tasks of whatever process, answer, end them, or clear them away."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial

import attrs
import trio

from .. import (
    BackgroundTaskManager,
    InvalidAnswer,
    OutputPage,
    TaskError,
    TaskNotRunning,
    TaskRecord,
    TaskStatus,
    TaskSummary,
)
from ._session import (
    OWNER,
    CommandError,
    Exit,
    Session,
    complain,
    ended,
    exit_code,
    find,
    find_all,
    forget_notices,
    owned,
)
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
        tasks = await _tasks(manager, owner)
    if session.json:
        say_json(tasks_json(tasks))
    else:
        show(tasks_grid(tasks, owners=owner is None))
    return Exit.COMPLETED


async def _tasks(manager: BackgroundTaskManager, owner: str | None) -> list[OwnedTask]:
    tasks = [
        await owned(manager, name, summary)
        for name in await _owners(manager, owner)
        for summary in await manager.list_tasks(name)
    ]
    if owner is not None:
        return tasks
    order = [await _place(manager, task) for task in tasks]
    return [tasks[n] for n in sorted(range(len(tasks)), key=order.__getitem__)]


async def _place(manager: BackgroundTaskManager, task: OwnedTask) -> int:
    """Return the store's number of a task, which grows with each: a clock may step back."""
    record = await manager.record(task.owner_thread_id, task.summary.task_id)
    return 0 if record is None else record.seq


async def gc(session: Session, owner: str | None) -> int:
    """Delete the ended records of ``owner`` (None: of all); say how many.

    Old notices of the command's own owner go too.
    """
    async with session.manager() as manager:
        names = await _owners(manager, owner)
        count = sum([await manager.gc_terminal(name) for name in names])
        if owner in (None, OWNER):
            await forget_notices(manager)
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
    async with session.manager() as manager:
        records = await find_all(manager, task_ids)
        tasks = [await owned(manager, r.owner_thread_id, r.summary()) for r in records]

        async def attend(number: int) -> None:
            tasks[number] = await ended(manager, tasks[number])

        async with trio.open_nursery() as nursery:
            for number in range(len(tasks)):
                nursery.start_soon(attend, number)
    if session.json:
        say_json(tasks_json(tasks))
    else:
        show(tasks_grid(tasks))
    return exit_code(tasks)


async def cancel(session: Session, task_ids: tuple[str, ...], *, tree: bool) -> int:
    """Cancel tasks, running or stopped; with ``tree``, also everything below them.

    A cancel that was accepted is final, and said at once; a task of another process ends soon
    after. What cannot be cancelled does not keep the others from it.
    """
    accepted: dict[str, TaskSummary] = {}
    others, code = 0, Exit.COMPLETED
    async with session.manager() as manager:
        for record in await find_all(manager, task_ids):
            if record.task_id in accepted:
                continue  # with the tree above it
            try:
                own, count = await _cancel(manager, record, tree=tree)
            except TaskError as error:
                complain(str(error))
                code = Exit.OTHER
                continue
            accepted |= {summary.task_id: summary for summary in own}
            others += count
            if not session.json:
                _say_cancelled(own)
    if session.json:
        say_json({"tasks": [each.to_json() for each in accepted.values()], "others": others})
    elif others:
        say(f"and {others} tasks of other owners")
    return code


async def _cancel(
    manager: BackgroundTaskManager, record: TaskRecord, *, tree: bool
) -> tuple[Sequence[TaskSummary], int]:
    """Return whose cancel was accepted, and the number of those of other owners."""
    owner, task_id = record.owner_thread_id, record.task_id
    if not tree:
        return [await manager.cancel(owner, task_id)], 0
    cancelled = await manager.cancel_tree(owner, task_id)
    return cancelled.own, cancelled.others


def _say_cancelled(summaries: Sequence[TaskSummary]) -> None:
    for summary in summaries:
        over = summary.status is TaskStatus.CANCELLED
        say(f"{one_line(summary.task_id)}  {'cancelled' if over else 'cancel accepted'}")


async def answer(session: Session, task_id: str, question_id: str | None, text: str | None) -> int:
    """Answer a question of a task, the only one if it is not named; None: decline to."""
    async with session.manager() as manager:
        record = await find(manager, task_id)
        owner = record.owner_thread_id
        if question_id is None:
            question_id = _only_question(record)
        if text is None:
            summary = await manager.decline(owner, task_id, question_id)
        else:
            give, value = partial(manager.answer, owner, task_id, question_id), _json_or_text(text)
            try:
                summary = await give(value)
            except InvalidAnswer:
                if value == text:
                    raise
                summary = await give(text)  # 123 for a question that wants a string
    if session.json:
        say_json({"owner_thread_id": owner, **summary.to_json()})
    else:
        done = "declined" if text is None else "answered"
        say(f"{one_line(task_id)}  {one_line(question_id)} {done}")
    return Exit.COMPLETED


def _only_question(record: TaskRecord) -> str:
    if record.status is not TaskStatus.RUNNING:
        raise TaskNotRunning(record.task_id, record.status)
    found = [question.question_id for question in record.open_questions]
    if len(found) == 1:
        return found[0]
    which = f"name one of {', '.join(found)} with --question" if found else "it asks nothing"
    raise CommandError(f"task {record.task_id} has {len(found)} open questions: {which}")


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


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
