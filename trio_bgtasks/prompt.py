"""`TaskReminder`: what a model should know of its background tasks, as text for its prompt."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ._json import shorten
from ._manager import BackgroundTaskManager
from ._records import TaskStatus, TaskSummary

MAX_LINES = 20
_FOR_ENDED = 10  # lines that running and stopped tasks leave to ended ones
_MAX_TEXT = 200
# Printable by their category, and yet nothing to see: what Unicode lets a font ignore (joiners,
# fillers, variation selectors), and glyphs that are blank.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0100-\U000e01ef]"
)

_HINT = (
    'Use tool "task_status" to check progress, "task_output" to read results, '
    'or "task_cancel" to cancel active tasks.'
)


class TaskReminder:
    """Tells an owner's running and resumable tasks each time, and every ended task once.

    Background tasks only: how a foreground run ended is its caller's to know, and the end of one
    whose caller was gone is left to ``take_notices``. Of background tasks it takes the notices
    itself: who uses it finds none there.

    The text is escaped and shortened. At most 20 tasks have a line of their own and the others are
    counted. At most 20 ends are announced by one text, the others by the next; of those without a
    line the id and status are told. What a running task asks is told with it.
    """

    def __init__(self, manager: BackgroundTaskManager) -> None:
        if not isinstance(manager, BackgroundTaskManager):  # pyright: ignore[reportUnnecessaryIsInstance]
            kind = type(manager).__name__
            raise TypeError(f"TaskReminder needs a BackgroundTaskManager, not {kind}")
        self._manager = manager

    def __repr__(self) -> str:
        return f"<TaskReminder of {self._manager!r}>"

    async def render(self, owner_thread_id: str) -> str | None:
        """Return the text, None when there is nothing to say. What it announces is acknowledged.

        Raises:
            TaskStoreError: the store failed; nothing was acknowledged.
        """
        async with self.delivering(owner_thread_id) as text:
            return text

    @asynccontextmanager
    async def delivering(self, owner_thread_id: str) -> AsyncGenerator[str | None, None]:
        """Give the text; what it announces is acknowledged when the block succeeds.

        If the block raises, or is cancelled, the same tasks are announced again.

        Raises:
            TaskStoreError: the store failed, or did not take the acknowledgement: then the same
                tasks are announced again.
        """
        manager = self._manager
        noticed = manager.notices(owner_thread_id, background_only=True, limit=MAX_LINES)
        async with noticed as notices:
            active: dict[str, TaskSummary] = {}
            for status in (TaskStatus.RUNNING, TaskStatus.STOPPED):
                tasks = await manager.list_tasks(
                    owner_thread_id, status=status, background_only=True
                )
                active |= {task.task_id: task for task in tasks if _goes_on(task)}
            yield _text(active, await self._news(owner_thread_id, notices, active))

    async def _news(
        self, owner_thread_id: str, notices: list[TaskSummary], active: dict[str, TaskSummary]
    ) -> dict[str, TaskSummary]:
        """Return what was announced, each task once and as it stands now."""
        news: dict[str, TaskSummary] = {}
        # Of several attempts of one task the last one counts.
        for task in {task.task_id: task for task in notices}.values():
            now = active.get(task.task_id)
            if now is None and task.status is TaskStatus.STOPPED and task.supports_resume:
                # Cancelled since, or resumed in the foreground: then its caller gets the answer.
                now = await self._manager.get(owner_thread_id, task.task_id)
                if now is None or now.status is TaskStatus.RUNNING:
                    continue
            news[task.task_id] = task if now is None else now
        return news


def _goes_on(task: TaskSummary) -> bool:
    # A stopped task that cannot be resumed has ended: its notice announces it.
    return task.status is TaskStatus.RUNNING or task.supports_resume


def _text(active: dict[str, TaskSummary], news: dict[str, TaskSummary]) -> str | None:
    ended = [task for task in news.values() if task.task_id not in active]
    for_ended = max(_FOR_ENDED, MAX_LINES - len(active))
    for_active = MAX_LINES - min(len(ended), for_ended)
    shown = list(active.values())[:for_active] + ended[:for_ended]
    if not shown:
        return None
    lines = [_line(task) for task in shown]
    others = len(active) + len(ended) - len(shown)
    if others:
        lines.append(f'{others} more; call "task_status" without task_id to list all tasks.')
    told = {task.task_id for task in shown}
    untold = [task for task in news.values() if task.task_id not in told]
    if untold:
        names = ", ".join(f"{_escaped(task.task_id)} ({task.status})" for task in untold)
        lines[-1] += f" Changed among them: {names}."
    return "\n".join(["<background_tasks>", *lines, "</background_tasks>", _HINT])


def _line(task: TaskSummary) -> str:
    attributes = {
        "id": task.task_id,
        "type": task.task_type,
        "status": task.status.value,
        "description": task.description,
    }
    if task.questions:
        attributes["asks"] = "; ".join(question.message for question in task.questions)
    agent_id = task.metadata.get("agent_id")
    if task.parent_task_id is not None:
        attributes["parent_task_id"] = task.parent_task_id
    if isinstance(agent_id, str) and agent_id:
        attributes["agent_id"] = agent_id
    shown = " ".join(f'{name}="{_escaped(text)}"' for name, text in attributes.items())
    return f"<task {shown}/>"


def _escaped(text: str) -> str:
    """Return ``text`` as one line of an XML attribute, without invisible characters."""
    seen = "".join(
        character if character.isprintable() else " " if character.isspace() else "\ufffd"
        for character in shorten(text, _MAX_TEXT)
    )
    return html.escape(_UNSEEN.sub("\ufffd", seen))
