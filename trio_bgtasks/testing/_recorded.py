"""`RecordedManager`: a manager whose callers' questions and answers are noted in a `History`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import trio

from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    CancelledTree,
    InvalidAnswer,
    Refused,
    StartRequest,
    TaskResult,
    TaskStatus,
    TaskSummary,
)

from ._history import Body, History, Run, SpawnedBody, TaskHistory
from ._questioning import Answer, reply_of


class RecordedManager:
    """What callers use in place of a manager: the same calls; questions and answers are recorded.

    ``unrecorded`` is the manager itself. Needed for what is not here, harmless for anything that
    only looks; what changes tasks past the history would be a surprise to it.
    """

    def __init__(self, manager: BackgroundTaskManager, history: History, machine: str = "") -> None:
        self.unrecorded = manager
        self._history = history
        self._machine = machine

    def _recorded(self, body: Body, *, background: bool) -> Body:
        self._note_executor()
        return self._history.body(body, machine=self._machine, background=background)

    def _note_executor(self) -> None:
        executors = self._history.machines.setdefault(self._machine, set())
        executors.add(self.unrecorded.statistics().executor_id)

    async def start(self, request: StartRequest, body: Body) -> TaskSummary:
        """See `BackgroundTaskManager.start`; the body is recorded."""
        recorded = self._recorded(body, background=True)
        summary = await self.unrecorded.start(request, recorded)
        task = self._history.task(summary.task_id, request.owner_thread_id)
        if request.task_id in (None, summary.task_id):  # else an earlier start's key led there
            task.started[summary.attempt] = task.started.get(summary.attempt, 0) + 1
            task.resumable = request.supports_resume
        self._history.told(request.owner_thread_id, summary)
        return summary

    async def spawn(
        self,
        owner_thread_id: str,
        task_type: str,
        description: str,
        body: SpawnedBody,
        *,
        task_id: str | None = None,
        parent_task_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        cancel_scope: trio.CancelScope | None = None,
    ) -> str:
        """See `BackgroundTaskManager.spawn`; the body is recorded.

        Whoever cancels ``cancel_scope`` afterwards, or lets its deadline pass, notes that by
        `History.scope_cancelled`.
        """
        self._note_executor()
        if task_id is None:
            task_id = f"bg_{uuid4().hex}"  # the body is not told its own
        if parent_task_id is None:
            parent_task_id = self.unrecorded.current_task_id()
        dead = cancel_scope is not None and cancel_scope.cancel_called  # else the runtime did that
        answer = await self.unrecorded.spawn(
            owner_thread_id,
            task_type,
            description,
            self._history.spawned(
                body, task_id, owner_thread_id, parent_task_id, machine=self._machine
            ),
            task_id=task_id,
            parent_task_id=parent_task_id,
            metadata=metadata,
            cancel_scope=cancel_scope,
        )
        task = self._history.task(answer, owner_thread_id)
        task.parent = parent_task_id
        task.started[1] = task.started.get(1, 0) + 1
        if dead:
            self._history.scope_cancelled(task)
        return answer

    async def run(self, request: StartRequest, body: Body) -> TaskResult:
        """See `BackgroundTaskManager.run`; the body is recorded."""
        began: list[Run] = []

        async def noted(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            task = self._history.task(execution.task_id, execution.owner_thread_id)
            task.resumable = request.supports_resume
            began.append(task.runs[-1])
            return await body(execution, scope)

        recorded = self._recorded(noted, background=False)
        try:
            return await self.unrecorded.run(request, recorded)
        except trio.Cancelled:
            began.clear()  # its caller is gone
            raise
        finally:
            for run in began:
                run.task.answered.add(run.attempt)

    async def cancel(self, owner_thread_id: str, task_id: str) -> TaskSummary:
        """See `BackgroundTaskManager.cancel`."""
        task = self._history.tasks.get(task_id)
        with self._asked_to_cancel([] if task is None else [task]):
            summary = await self.unrecorded.cancel(owner_thread_id, task_id)
        self._cancelled(owner_thread_id, summary)
        return summary

    async def cancel_tree(self, owner_thread_id: str, task_id: str) -> CancelledTree:
        """See `BackgroundTaskManager.cancel_tree`."""
        root = self._history.tasks.get(task_id)
        with self._asked_to_cancel([] if root is None else self._history.below(root)):
            tree = await self.unrecorded.cancel_tree(owner_thread_id, task_id)
        for summary in tree.own:
            self._cancelled(owner_thread_id, summary)
        return tree

    @contextmanager
    def _asked_to_cancel(self, tasks: list[TaskHistory]) -> Generator[None, None, None]:
        """Note it, unless it is refused."""
        now = self._history.tick()
        for task in tasks:
            task.cancels.append(now)
        try:
            yield
        except Refused:
            for task in tasks:
                task.cancels.remove(now)
            raise

    def _cancelled(self, owner: str, summary: TaskSummary) -> None:
        self._history.told(owner, summary)
        if summary.persistence_error is None:
            self._history.accepted(self._history.tasks[summary.task_id])

    async def answer(
        self, owner_thread_id: str, task_id: str, question_id: str, value: object
    ) -> TaskSummary:
        """See `BackgroundTaskManager.answer`."""
        with self._answering(task_id, question_id, reply_of(value)):
            summary = await self.unrecorded.answer(owner_thread_id, task_id, question_id, value)
        self._history.told(owner_thread_id, summary)
        return summary

    async def decline(self, owner_thread_id: str, task_id: str, question_id: str) -> TaskSummary:
        """See `BackgroundTaskManager.decline`."""
        with self._answering(task_id, question_id, reply_of(None, declined=True)):
            summary = await self.unrecorded.decline(owner_thread_id, task_id, question_id)
        self._history.told(owner_thread_id, summary)
        return summary

    @contextmanager
    def _answering(self, task_id: str, question_id: str, reply: str) -> Generator[None, None, None]:
        """Note it, unless it is refused."""
        task = self._history.tasks.get(task_id)
        answers = [] if task is None else task.questions.answers
        answer = Answer(question_id, reply, self._history.tick())
        answers.append(answer)
        try:
            yield
        except (Refused, InvalidAnswer):
            answers.remove(answer)
            raise
        answer.accepted = self._history.tick()

    async def close_owner(self, owner_thread_id: str) -> None:
        """See `BackgroundTaskManager.close_owner`.

        Raises:
            AssertionError: promise 10: a body of the owner still runs here.
        """
        runs = self._history.may_end("owner close", machine=self._machine, owner=owner_thread_id)
        await self.unrecorded.close_owner(owner_thread_id)
        for run in runs:
            assert run.ended, f"promise 10: {owner_thread_id} was closed, it runs\n{run.task}"

    async def get(self, owner_thread_id: str, task_id: str) -> TaskSummary | None:
        """See `BackgroundTaskManager.get`."""
        summary = await self.unrecorded.get(owner_thread_id, task_id)
        if summary is not None:
            self._history.told(owner_thread_id, summary)
        return summary

    async def list_tasks(self, owner_thread_id: str) -> list[TaskSummary]:
        """See `BackgroundTaskManager.list_tasks`."""
        summaries = await self.unrecorded.list_tasks(owner_thread_id)
        for summary in summaries:
            self._history.told(owner_thread_id, summary)
        return summaries

    async def wait(self, owner_thread_id: str, task_id: str) -> TaskSummary:
        """See `BackgroundTaskManager.wait`.

        Raises:
            AssertionError: promise 2: it returned while the task is running.
        """
        summary = await self.unrecorded.wait(owner_thread_id, task_id)
        running = summary.status is TaskStatus.RUNNING
        assert not running, f"promise 2: wait() returned {summary!r}"
        self._history.told(owner_thread_id, summary)
        return summary

    @asynccontextmanager
    async def notices(self, owner_thread_id: str) -> AsyncGenerator[list[TaskSummary], None]:
        """See `BackgroundTaskManager.notices`."""
        handed: list[TaskSummary] = []
        taken = False
        try:
            async with self.unrecorded.notices(owner_thread_id) as summaries:
                yield summaries
                handed, taken = summaries, True
        except Exception:
            if taken:  # the block succeeded, its acknowledgement did not, or is not known to have
                for summary in handed:
                    self._history.task(summary.task_id, owner_thread_id).unsure.add(summary.attempt)
            raise
        for summary in handed:
            self._history.told(owner_thread_id, summary)
            announced = self._history.tasks[summary.task_id].announced
            announced.setdefault(summary.attempt, []).append(summary.status)

    async def take_notices(self, owner_thread_id: str) -> list[TaskSummary]:
        """See `BackgroundTaskManager.take_notices`."""
        async with self.notices(owner_thread_id) as summaries:
            return summaries

    async def gc_terminal(self, owner_thread_id: str) -> int:
        """See `BackgroundTaskManager.gc_terminal`."""
        try:
            return await self.unrecorded.gc_terminal(owner_thread_id)
        finally:
            for task in self._history.tasks.values():
                if task.owner == owner_thread_id and not task.live:
                    task.collected = True
