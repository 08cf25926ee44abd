"""`History`: what tools and callers themselves saw, to be compared with what a store says.

Nothing in it comes from a manager's account of itself: a run is there because its body began, an
end because its body ended, an answer because a caller was given it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import attrs
import trio

from trio_bgtasks import (
    BackgroundExecution,
    QuestionDeclined,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
)

from ._questioning import (
    DECLINED,
    Asked,
    AttemptQuestions,
    TaskQuestions,
    reply_of,
    words_of,
)

Body: TypeAlias = Callable[[BackgroundExecution, trio.CancelScope], Awaitable[TaskResult]]
SpawnedBody: TypeAlias = Callable[[trio.CancelScope], Awaitable[TaskResult]]
Cause: TypeAlias = Literal["owner close", "shutdown", "caller", "deadline"]


@attrs.define(eq=False)
class Save:
    """One call of ``save_checkpoint``; ``told``: when it returned, None if it did not."""

    value: Any
    asked: int
    told: int | None = None


@attrs.define(eq=False)
class Run:
    """One execution of a body, as the tool itself saw it.

    Times are places in the order of everything in the history.

    Attributes:
        task: Whose attempt it is.
        attempt: The number that the body was given.
        machine: Where it runs.
        background: Does it run in its owner's nursery?
        is_resume: What the body was told.
        checkpoint: What the body was given to go on from.
        began: When its body was called.
        said: Its output.
        questions: What it asked.
        causes: Why the runtime may cancel it, beside an accepted cancel.
        lost: When its machine crashed.
        suspended: When its machine was suspended, or failed to store its end; it may have been
            fenced since.
        outcome: What the body returned.
        raised: What the body raised; a `trio.Cancelled` was passed on.
        ended: When it returned or raised.
        cancelled: Was it cancelled by then, whether it saw that or not?
    """

    task: TaskHistory
    attempt: int
    machine: str
    background: bool
    is_resume: bool
    checkpoint: Any
    began: int
    said: list[str] = attrs.field(factory=list[str])
    questions: AttemptQuestions = attrs.field(init=False)
    causes: set[Cause] = attrs.field(factory=set[Cause])
    lost: int | None = None
    suspended: int | None = None
    outcome: TaskResult | None = None
    raised: BaseException | None = None
    ended: int | None = None
    cancelled: bool = False

    def __attrs_post_init__(self) -> None:
        self.questions = AttemptQuestions(self.attempt)

    @property
    def live(self) -> bool:
        """Does its body run, on a machine that is there?"""
        return self.ended is None and self.undisturbed

    @property
    def undisturbed(self) -> bool:
        """Was its machine there all the time?"""
        return self.lost is None and self.suspended is None

    def __str__(self) -> str:
        where = f" on {self.machine}" if self.machine else ""
        parts = [f"attempt {self.attempt}{where}: began at {self.began}"]
        if self.causes:
            parts.append(f"to be ended by {', '.join(sorted(self.causes))}")
        if self.suspended is not None:
            parts.append(f"suspended at {self.suspended}")
        if self.lost is not None:
            parts.append(f"crashed at {self.lost}")
        if self.ended is not None:
            how = repr(self.outcome) if self.raised is None else f"raised {self.raised!r}"
            parts.append(f"ended at {self.ended}: {how}")
        for ask in self.questions.asks:
            given = "" if ask.reply is None else f", given {ask.reply}"
            end = "" if ask.ended is None else f" until {ask.ended}"
            parts.append(f"asked {ask.words[0]!r} at {ask.began}{end}{given}")
        return ", ".join(parts)


@attrs.define(eq=False)
class TaskHistory:
    """What is known of one task by those who started it, ran it and asked for it.

    Attributes:
        task_id: The task.
        owner: Who owns it.
        resumable: May it be resumed?
        parent: Its parent in the lineage.
        runs: Its executions, in the order in which they began.
        saves: The checkpoints of all of them.
        questions: What was asked and answered.
        started: The attempts whose start was answered, each with the number of the answers.
        cancels: When cancels were asked for, but those that were refused.
        cancel_accepted: When somebody was told first that a cancel is accepted.
        scope_cancelled: When the scope that it was spawned with was cancelled, if it ran, or was
            about to, and nothing else was to end it.
        told: What anybody was told of it, by attempt and status.
        announced: How often the notice of each attempt was taken, and with which status.
        unsure: Attempts whose notice was handed out, but perhaps not acknowledged.
        answered: Attempts in the foreground whose caller was answered.
        collected: May its record be gone?
        damaged: When its record was damaged: nobody can read it any more.
        ended_as: Its record, once that was terminal.
    """

    task_id: str
    owner: str
    resumable: bool = False
    parent: str | None = None
    runs: list[Run] = attrs.field(factory=list[Run])
    saves: list[Save] = attrs.field(factory=list[Save])
    questions: TaskQuestions = attrs.field(factory=TaskQuestions)
    started: dict[int, int] = attrs.field(factory=dict[int, int])
    cancels: list[int] = attrs.field(factory=list[int])
    cancel_accepted: int | None = None
    scope_cancelled: int | None = None
    told: dict[tuple[int, TaskStatus], TaskSummary] = attrs.field(
        factory=dict[tuple[int, TaskStatus], TaskSummary]
    )
    announced: dict[int, list[TaskStatus]] = attrs.field(factory=dict[int, list[TaskStatus]])
    unsure: set[int] = attrs.field(factory=set[int])
    answered: set[int] = attrs.field(factory=set[int])
    collected: bool = False
    damaged: int | None = None
    ended_as: TaskRecord | None = None

    @property
    def cancel_asked(self) -> int | None:
        """When was a cancel asked for first?"""
        return min(self.cancels, default=None)

    @property
    def known(self) -> bool:
        """Was a start of it ever answered, or did a body of it ever run?"""
        return bool(self.started or self.runs)

    @property
    def live(self) -> bool:
        """Does a body of it run, on a machine that is there?"""
        return any(run.live for run in self.runs)

    def last_save(self, before: int) -> Save | None:
        """Return the last checkpoint of which a tool was told before that time."""
        told = [save for save in self.saves if save.told is not None and save.told < before]
        return max(told, key=lambda save: save.told or 0, default=None)

    def checkpoints(self, before: int) -> list[Any]:
        """Return what may be the checkpoint at that time: the last one kept, or a later try."""
        last = self.last_save(before)
        since = -1 if last is None else last.told or 0
        unsure = [s.value for s in self.saves if since < s.asked < before]
        return [None if last is None else last.value, *unsure]

    def __str__(self) -> str:
        lines = [f"task {self.task_id} of {self.owner}:", *(f"  {run}" for run in self.runs)]
        if self.cancel_asked is not None:
            told = "" if self.cancel_accepted is None else f", accepted at {self.cancel_accepted}"
            lines.append(f"  cancel asked at {self.cancel_asked}{told}")
        if self.scope_cancelled is not None:
            lines.append(f"  its scope cancelled at {self.scope_cancelled}")
        if self.damaged is not None:
            lines.append(f"  record damaged at {self.damaged}")
        for answer in self.questions.answers:
            said = "" if answer.accepted is None else f", accepted at {answer.accepted}"
            lines.append(f"  {answer.question_id} answered {answer.reply} at {answer.asked}{said}")
        lines += [f"  told that attempt {n} is {status}" for n, status in self.told]
        lines += [f"  notice of attempt {n}: {', '.join(s)}" for n, s in self.announced.items()]
        return "\n".join(lines)


class History:
    """What tools and callers saw, in one order; to be judged by `check_history`.

    `body` records what a tool sees, a `RecordedManager` what callers are answered. Several managers
    may be recorded into one history, each under a name of its own. What is done to a manager as a
    whole, to a record, or to the scope of a spawn, is noted by hand, before it is done: `may_end`
    and `closed`, `lost`, `suspended`, `doubtful`, `damaged`, `scope_cancelled`.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, TaskHistory] = {}
        self.machines: dict[str, set[str]] = {}  # the executor ids of each
        self.closed_machines: set[str] = set()
        self._now = 0

    def __repr__(self) -> str:
        return f"<History of {len(self.tasks)} tasks, {len(list(self.runs()))} runs>"

    def tick(self) -> int:
        """Return the next place in the order of everything."""
        self._now += 1
        return self._now

    def task(self, task_id: str, owner: str) -> TaskHistory:
        """Return what is known of a task; it is new if it was not heard of before."""
        if task_id not in self.tasks:
            self.tasks[task_id] = TaskHistory(task_id, owner)
        return self.tasks[task_id]

    def runs(self, machine: str | None = None) -> Iterator[Run]:
        """Yield every run (None), or those of one machine."""
        for task in self.tasks.values():
            for run in task.runs:
                if machine is None or run.machine == machine:
                    yield run

    # ---- what tools see -----------------------------------------------------------------------

    def body(self, body: Body, *, machine: str = "", background: bool = True) -> Body:
        """Return ``body``, recorded: its start and its end, what it saves, says and asks.

        It is handed an execution that records and is otherwise its own.
        """

        async def recorded(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            task = self.task(execution.task_id, execution.owner_thread_id)
            task.parent = execution.parent_task_id
            run = Run(
                task,
                execution.attempt,
                machine,
                background,
                execution.is_resume,
                execution.checkpoint,
                self.tick(),
            )
            handed = cast("BackgroundExecution", _RecordedExecution(execution, run, self))
            return await self._watched(run, scope, partial(body, handed, scope))

        return recorded

    def spawned(
        self, body: SpawnedBody, task_id: str, owner: str, parent: str | None, *, machine: str = ""
    ) -> SpawnedBody:
        """Return the ``body`` of a spawn, recorded: its start and its end.

        It is told of a scope only, so whose it is, is said here.
        """

        async def recorded(scope: trio.CancelScope) -> TaskResult:
            task = self.task(task_id, owner)
            task.parent = parent
            run = Run(
                task,
                attempt=1,
                machine=machine,
                background=True,
                is_resume=False,
                checkpoint=None,
                began=self.tick(),
            )
            return await self._watched(run, scope, partial(body, scope))

        return recorded

    async def _watched(
        self, run: Run, scope: trio.CancelScope, body: Callable[[], Awaitable[TaskResult]]
    ) -> TaskResult:
        run.task.runs.append(run)
        run.task.questions.attempts.append(run.questions)
        try:
            run.outcome = await body()
        except BaseException as error:
            run.raised = error
            raise
        finally:
            run.ended = self.tick()
            now = trio.current_time()
            run.cancelled = scope.cancel_called or trio.current_effective_deadline() <= now
        return run.outcome

    # ---- what callers are answered ------------------------------------------------------------

    def told(self, owner: str, summary: TaskSummary) -> None:
        """Note that an owner was told how a task stands.

        Raises:
            AssertionError: promise 8: it is the task of another one. Promise 13: a question is
                not what it was before.
        """
        task = self.task(summary.task_id, owner)
        assert task.owner == owner, f"promise 8: {owner} was told of {summary!r}\n{task}"
        wrong = task.questions.show(summary.questions)
        assert wrong is None, f"promise 13: {wrong}\n{task}"
        task.told[summary.attempt, summary.status] = summary

    def accepted(self, task: TaskHistory) -> None:
        """Note that somebody was told that a cancel of the task is accepted."""
        now = self.tick()
        task.cancels.append(now)
        task.cancel_accepted = task.cancel_accepted or now

    def scope_cancelled(self, task: TaskHistory) -> None:
        """Note that the scope that a task was spawned with is cancelled by whoever gave it.

        That is a cancel, unless its body has ended or succeeds, or something else was to end it
        before. That a scope's deadline passes is noted by hand, too.
        """
        if any(run.ended is not None or not run.undisturbed or run.causes for run in task.runs):
            return
        task.scope_cancelled = task.scope_cancelled or self.tick()

    def below(self, root: TaskHistory) -> list[TaskHistory]:
        """Return a task and everything that was started below it."""
        found = [root]
        for above in found:  # it grows meanwhile
            found += [
                t for t in self.tasks.values() if t.parent == above.task_id and t not in found
            ]
        return found

    # ---- what is done to machines -------------------------------------------------------------

    def may_end(self, cause: Cause, *, machine: str, owner: str | None = None) -> list[Run]:
        """Note, before it is done, why the runs of a machine (of one owner) are cancelled.

        Returns those that run.
        """
        runs = [
            run
            for run in self.runs(machine)
            if run.ended is None and owner in (None, run.task.owner)
        ]
        for run in runs:
            run.causes.add(cause)
        return runs

    def closed(self, machine: str) -> None:
        """Note that a machine's manager has closed: nothing of it may be left."""
        self.closed_machines.add(machine)

    def lost(self, machine: str) -> None:
        """Note that a machine crashes: what runs there is no more."""
        now = self.tick()
        for run in self.runs(machine):
            if run.ended is None:
                run.lost = now

    def suspended(self, machine: str, *, since: int | None = None) -> None:
        """Note that a machine is suspended: others may take it for dead from now on.

        ``since``: from then on its store failed, so that what ended may not be stored.
        """
        now = self.tick()
        for run in self.runs(machine):
            if run.ended is None or (since is not None and run.ended > since):
                run.suspended = now

    def doubtful(self, machine: str) -> None:
        """Note that a machine's store is out of reach: what its runs withdraw now may stay open."""
        for run in self.runs(machine):
            if run.ended is None:
                run.questions.doubtful = True

    def damaged(self, task: TaskHistory) -> None:
        """Note that the stored record of a task cannot be read any more."""
        task.damaged = self.tick()

    def recovered(self, machine: str) -> None:
        """Note that a machine went on long ago: what runs there still was not taken for dead."""
        for run in self.runs(machine):
            if run.ended is None:
                run.suspended = None


class _RecordedExecution:
    """An execution that notes what is saved, said and asked."""

    def __init__(self, execution: BackgroundExecution, run: Run, history: History) -> None:
        self._execution = execution
        self._run = run
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._execution, name)

    async def save_checkpoint(self, value: object) -> None:
        save = Save(value, self._history.tick())
        self._run.task.saves.append(save)
        self._run.questions.saves.append(save)
        await self._execution.save_checkpoint(value)
        save.told = self._history.tick()

    async def ask(self, message: str, schema: dict[str, Any]) -> Any:
        asked = Asked(words_of(message, schema), self._history.tick())
        self._run.questions.asks.append(asked)
        try:
            answer = await self._execution.ask(message, schema)
            asked.reply = reply_of(answer)
        except QuestionDeclined:
            asked.reply = DECLINED
            raise
        finally:
            asked.ended = self._history.tick()
        return answer

    async def write_output(self, text: str) -> None:
        self._run.said.append(text)
        await self._execution.write_output(text)
