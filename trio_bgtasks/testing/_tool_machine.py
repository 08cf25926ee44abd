"""`BackgroundToolMachine`: a tool of one's own, interrupted wherever it can be, and resumed."""

from __future__ import annotations

import copy
import os
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, NoReturn, cast

import hypothesis.strategies as st
import trio
from hypothesis import assume
from hypothesis.stateful import precondition, rule

from trio_bgtasks import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundExecutable,
    InvalidAnswer,
    InvalidArguments,
    Question,
    TaskError,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStatus,
    ToolError,
)

from ._arguments import answers
from ._arguments import arguments as strategy_for
from ._processes import MARK, Marked
from ._questioning import Words, words_of
from ._tool_calls import HOWS, OWNER, Call, How, Process, Task, outcome_of
from ._tool_watch import OURS, SPINS, Attempt, NotingStore, watched
from ._trio_machine import TrioStateMachine, in_trio
from ._trio_run import NO_TIME_S

# A run that nobody interrupts ends within this, in the tool's own time.
RUN_S = 3000.0
# So many steps of a run are tried, evenly spread if it has more.
STEPS_TRIED = 50
# So often a tool may stop by itself before it is done.
ATTEMPTS = 100
# So many attempts are told of, the latest.
TOLD = 5
# After this the lease of a process that crashed has run out.
LEASE_S = 60.0
# A step that takes longer, in real time, blocks the loop, however busy this machine is.
BLOCKS_S = 5.0
# So long, in real time, threads may take to end that were told to.
THREAD_S = 1.0


class BackgroundToolMachine(TrioStateMachine):
    """Checks a tool: wherever it is interrupted, it leaves nothing, and the next attempt ends it.

    Each example draws arguments and first lets the tool do its work undisturbed, in the background
    and in the foreground. Then it interrupts the tool at every step of its way: by a cancel, by the
    end of its caller, by a shutdown, by a crash; and resumes it, if it can be, perhaps to interrupt
    it again. Checked is that

    * it is *cancellable*: it ends within ``bound_s`` wherever it was interrupted, passes
      `trio.Cancelled` on, raises nothing else instead, and blocks the loop at no time;
    * it *leaves nothing*: no Trio task or thread that it started is alive when its body has ended,
      and, on the real clock, no process;
    * it is *resumable*: after interruptions it ends as it does without; and it never saves a
      checkpoint that lies before the one it was given;
    * its outcomes are JSON, it leaves its arguments as they were, and it does the same in the
      foreground.

    Subclass it, say how to make the tool, and run its ``TestCase``::

        class CountMachine(BackgroundToolMachine):
            arguments = st.fixed_dictionaries({"limit": st.integers(0, 5)})  # else by its schema

            def make_tool(self) -> BackgroundExecutable[Any]:
                return count

        TestCount = CountMachine.TestCase

    The clock is virtual. A tool that waits for processes or threads needs the real one:
    ``virtual_time = False``. Crashes are left out then: a simulated one ends the body by a
    cancellation, so its clean-up would end the processes that a killed runtime leaves to others.
    A tool that asks is answered at once, by `answer`; within an example the same question always
    has the same answer. What the tool does outside (files, requests) has to be faked by
    `make_tool`; it is called once for each simulated process. A process that clears its environment
    is not found.

    Raises:
        AssertionError: the tool breaks one of these promises; the text says which, and at which
            step of which attempt.
    """

    arguments: st.SearchStrategy[dict[str, Any]] | None = None
    """What the tool is called with. It has to end with it by itself, within 3000 s of its time.

    None: whatever its schema allows and neither its `validate_args` nor a hook of it refuses.
    """

    bound_s: float = 5.0
    """Seconds that the tool may take for its clean-up."""

    may_raise: tuple[type[Exception], ...] = (ToolError,)
    """What the tool raises to say that it failed; anything else that it raises is a finding."""

    same_in_foreground: bool = True
    """False for a tool that does something else in the foreground on purpose."""

    finishes_when_cancelled: bool = False
    """True for a tool that finishes its work behind a shield, once cancelled, and says Success."""

    def make_tool(self) -> BackgroundExecutable[Any]:
        """Return the tool, as a process that has just begun makes it."""
        raise NotImplementedError(f"{type(self).__name__} needs a method make_tool")

    def resume_arguments(self, arguments: dict[str, Any], task_id: str) -> dict[str, Any]:  # noqa: ARG002
        """Return the arguments of the call that resumes a task; its id alone by default.

        To be overridden for a tool that takes the id elsewhere, or whose `stored_args` redacts.
        """
        return {"task_id": task_id}

    def same_result(self, expected: TaskResult, seen: TaskResult) -> bool:
        """Return whether an interrupted run ended as one does that nobody interrupts.

        To be overridden for a tool whose result is not the same each time.
        """
        return expected == seen

    def answer(self, question: Question) -> Any:
        """Return the answer to a question of the tool; one that its schema allows by default.

        To be overridden for a tool that wants more of an answer than its schema says. It is called
        once for all questions of the same words and schema in an example.
        """
        return self._data.draw(answers(question.schema), label=f"answer to {question.message!r}")

    # ---- the steps ----------------------------------------------------------------------------

    async def set_up(self) -> None:
        """See `TrioStateMachine`."""
        # What outlives the crash of a process does so in real time, too, which is not simulated.
        self._hows: list[How] = [how for how in HOWS if self.virtual_time or how != "crash"]
        self._marked = Marked(uuid.uuid4().hex)
        os.environ[MARK] = self._marked.mark
        self._failed = False
        self._store = NotingStore(self._is_asked)
        self._answers: dict[Words, Any] = {}
        self._process: Process | None = None
        self._attempt = Attempt()
        self._task: Task | None = None  # the one that is interrupted again and again
        self._arguments: dict[str, Any] = {}
        self._expected: TaskResult | None = None
        self._checkpoints: list[Any] = []  # those of a run that nobody interrupts, in their order
        self._steps = 0
        self._untried = list(self._hows)

    @precondition(lambda self: self._expected is None)
    @rule(data=st.data())
    @in_trio
    async def run_undisturbed(self, data: st.DataObject) -> None:
        """See what the tool does when nothing gets in its way."""
        drawn = arguments_of(self.make_tool()) if self.arguments is None else self.arguments
        self._arguments = data.draw(drawn, label="arguments")
        self._data = data
        task = Task()
        await self._run_to_its_end(task)
        self._steps, self._checkpoints = task.steps, task.saved
        self._expected = outcome_of(task.record)
        task = Task()
        await self._run_to_its_end(task, background=False)
        if self.same_in_foreground:
            self._check_result(task, "does something else in the foreground")

    @precondition(lambda self: self._expected is not None and bool(self._untried))
    @rule(data=st.data())
    @in_trio
    async def interrupt_at_every_step(self, data: st.DataObject) -> None:
        """Interrupt one run after the other, each a step later; resume each."""
        how: How = data.draw(st.sampled_from(self._untried), label="how")
        self._untried.remove(how)
        stride = 1 + self._steps // STEPS_TRIED
        first = _part_of(stride, data, "from step, of 65,536")
        for at in range(first, self._steps + 1, stride):
            task = Task()
            await self._run(task, how=how, at=at)
            await self._end(task)

    @precondition(lambda self: self._expected is not None)
    @rule(data=st.data())
    @in_trio
    async def interrupt(self, data: st.DataObject) -> None:
        """Interrupt the next attempt of the task."""
        how: How = data.draw(st.sampled_from(self._hows), label="how")
        at = _part_of(self._steps + 1, data, "at step, of 65,536")
        task = self._task = self._task or Task()
        await self._run(task, how=how, at=at)
        if not task.can_go_on:
            self._task = None
            await self._end(task)

    @precondition(lambda self: self._expected is not None)
    @rule()
    @in_trio
    async def let_it_end(self) -> None:
        """Let the task that was interrupted, if there is one, go on to its end."""
        task, self._task = self._task, None
        if task is not None:
            await self._end(task)

    async def clean_up(self) -> None:
        """End the process in order."""
        if self._process is not None and not self._failed:
            self._process.stop.set()
            await self._process.ended.wait()

    def teardown(self) -> None:
        """See `TrioStateMachine`."""
        try:
            super().teardown()
        finally:
            os.environ.pop(MARK, None)

    # ---- a task -------------------------------------------------------------------------------

    async def _run_to_its_end(self, task: Task, *, background: bool = True) -> None:
        for _ in range(ATTEMPTS):
            await self._run(task, background=background)
            if not task.can_go_on:
                return
        self._fail(task, f"stops itself again and again, {ATTEMPTS} times so far")

    async def _end(self, task: Task) -> None:
        """Let a task end that was interrupted, and check that this made no difference."""
        if task.can_go_on:
            await self._run_to_its_end(task)
        elif self._attempt.struck.is_set() and task.record.status is not TaskStatus.COMPLETED:
            return  # it ended because of that
        self._check_result(task, "is not resumable: it was interrupted, and ends differently")

    def _check_result(self, task: Task, broken: str) -> None:
        assert self._expected is not None
        seen = outcome_of(task.record)
        if not self.same_result(self._expected, seen):
            self._fail(task, f"{broken}\n  undisturbed: {self._expected}\n  now:         {seen}")

    # ---- one attempt --------------------------------------------------------------------------

    async def _run(
        self, task: Task, *, background: bool = True, how: How | None = None, at: int = 0
    ) -> None:
        """Run the next attempt of a task to its end, interrupted at a step; check it."""
        await trio.sleep(2 * NO_TIME_S)  # many runs in which no time passes are no livelock
        process = await self._living_process()
        arguments = copy.deepcopy(self._arguments)
        if task.attempts:
            arguments = self.resume_arguments(arguments, task.task_id)
        if background and how != "cancel its caller":
            arguments[RUN_IN_BACKGROUND_PARAM] = True
        call = Call(process, arguments)
        attempt = self._attempt = Attempt(None if how is None else at, call.striker(how))
        task.attempts.append(attempt)
        self._store.saved = attempt.saved
        with attempt.watching():
            self.run.nursery.start_soon(call.make, attempt, name="call of the tool")
            with trio.move_on_after(RUN_S):
                await attempt.news.wait()
            if call.refused is not None:
                assume(self.arguments is not None or bool(task.story))  # else others are drawn
                self._fail(task, f"refuses a call with the arguments drawn: {call.refused}")
            if not attempt.news.is_set():
                self._fail(task, f"does not end: after {RUN_S:.0f} s it waits {attempt.where()}")
            if attempt.struck.is_set():
                task.tell(f"interrupted ({how}) at step {at}, {attempt.place}")
                await self._interrupt(task, attempt, process, how)
            else:
                how = None
        await self._settle(task, call, how)
        self._check(task, attempt, how)
        if not self.virtual_time:
            await self._check_processes(task)
        self._check_threads(task, process)

    async def _interrupt(
        self, task: Task, attempt: Attempt, process: Process, how: How | None
    ) -> None:
        """Do what takes a call of the manager, then wait for the end of the body."""
        if how == "cancel":
            with suppress(TaskNotRunning):  # it has ended meanwhile
                await process.manager.cancel(OWNER, task.task_id)
        elif how == "shutdown":
            process.stop.set()
        with trio.move_on_after(self.bound_s):
            await attempt.over.wait()
        if attempt.spins:
            what = f"turns in circles, {SPINS} steps so far in no time"
            if attempt.heard:
                what += f": it swallows trio.Cancelled {attempt.heard[0]}"
        elif not attempt.over.is_set():
            what = f"still runs after {self.bound_s:g} s, {attempt.where()}"
        else:
            return
        self._fail(task, f"is not cancellable: it {what}")

    async def _settle(self, task: Task, call: Call, how: How | None) -> None:
        """Wait until the end of the attempt is recorded."""
        process = call.process
        if how in ("shutdown", "crash"):
            await process.ended.wait()
            self._process = None
        else:
            await process.manager.wait(OWNER, task.task_id)
        await call.ended.wait()
        if how == "crash":
            await trio.sleep(LEASE_S)
            await self._living_process()  # finds the orphan
        record = await self._store.load(task.task_id)
        assert record is not None
        task.record = record
        task.tell(f"{record.status}: {record.error}" if record.error else record.status)

    async def _living_process(self) -> Process:
        if self._process is None:
            self._process = Process(self._store)
            tool = watched(self.make_tool(), lambda: self._attempt)
            await self.run.nursery.start(self._process.live, tool)
        return self._process

    # ---- what it asks -------------------------------------------------------------------------

    def _is_asked(self, record: TaskRecord) -> None:
        # By its name no task of the tool, which is about to wait for it.
        self.run.nursery.start_soon(self._answer, record, name=f"{OURS}: answer by the machine")

    async def _answer(self, record: TaskRecord) -> None:
        process = self._process
        if process is None:
            return  # it has crashed, and who asked with it
        for question in record.open_questions:
            words = words_of(question.message, question.schema)
            if words not in self._answers:
                self._answers[words] = self.answer(question)
            about = OWNER, record.task_id, question.question_id
            try:
                await process.manager.answer(*about, copy.deepcopy(self._answers[words]))
            except InvalidAnswer:
                raise
            except TaskError:
                pass  # it was answered, or interrupted, meanwhile

    # ---- what is checked of it ----------------------------------------------------------------

    def _check(self, task: Task, attempt: Attempt, how: How | None) -> None:
        if attempt.left:
            self._fail(task, f"leaves Trio tasks behind: {', '.join(attempt.left)}")
        if attempt.changed is not None:
            self._fail(task, f"changes its arguments: they have become {attempt.changed}")
        if attempt.heard and attempt.succeeded and not self.finishes_when_cancelled:
            self._fail(
                task,
                f"swallows trio.Cancelled: it received it {attempt.heard[0]}, and succeeds all "
                "the same; let it pass on (finishes_when_cancelled = True if it did its work)",
            )
        if attempt.blocked_s > BLOCKS_S:
            what = f"blocks the loop: for {attempt.blocked_s:.1f} s {attempt.blocker}".rstrip()
            self._fail(task, f"is not cancellable: it {what}")
        interrupted = how is not None and _while_cancelled(attempt.raised)
        error = _other_than(() if interrupted else self.may_raise, attempt.raised)
        if error is not None and how != "crash":  # whose calls are refused, too
            when = "" if how is None else " when it is interrupted"
            self._fail(task, f"raises {type(error).__name__}{when}: {error}", error)
        if attempt.raised is None:
            self._check_outcome(task)
        self._check_checkpoints(task, attempt)

    async def _check_processes(self, task: Task) -> None:
        with trio.move_on_after(self.bound_s):
            while self._marked.alive():  # noqa: ASYNC110 - nothing tells the end of a stranger
                await trio.sleep(0.01)
        if left := self._marked.alive():
            self._marked.kill()
            self._fail(task, f"leaves processes behind: {'; '.join(left.values())}")

    def _check_threads(self, task: Task, process: Process) -> None:
        left = set(threading.enumerate()) - process.threads
        left = {thread for thread in left if not thread.name.startswith("Trio thread")}
        until = time.monotonic() + THREAD_S
        for thread in left:
            thread.join(max(0.0, until - time.monotonic()))
        process.threads |= left
        if names := sorted(thread.name for thread in left if thread.is_alive()):
            self._fail(task, f"leaves threads behind: {', '.join(names)}")

    def _check_outcome(self, task: Task) -> None:
        error = task.record.error or ""
        for problem in ("is not JSON", "is not a reference", "instead of a TaskResult"):
            if problem in error:
                self._fail(task, f"has an outcome that cannot be stored: {error}")

    def _check_checkpoints(self, task: Task, attempt: Attempt) -> None:
        """A checkpoint that lies behind the one it was given loses what was done in between."""
        way = self._checkpoints
        if attempt.from_checkpoint not in way:
            return
        here = way.index(attempt.from_checkpoint)
        for value in attempt.saved:
            if value in way and value not in way[here:]:
                self._fail(
                    task,
                    f"ignores its checkpoint: it was given {attempt.from_checkpoint!r} and saved "
                    f"{value!r}, which comes before",
                )

    def _fail(self, task: Task, broken: str, cause: BaseException | None = None) -> NoReturn:
        self._failed = True
        name = self._process.name if self._process else type(self).__name__
        story = [f"  arguments: {self._arguments}", *(f"  {line}" for line in task.story[-TOLD:])]
        raise AssertionError("\n".join([f"{name} {broken}", *story])) from cause


def arguments_of(tool: BackgroundExecutable[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return arguments by the schema of a tool that start a task of it."""

    def without_id(args: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in args.items() if name != "task_id"}

    def starts(args: dict[str, Any]) -> bool:
        try:
            tool.validate_args(args)
        except InvalidArguments:
            return False
        return tool.task_id_from_args(args) is None

    return strategy_for(tool.descriptor().parameters).map(without_id).filter(starts)


def _part_of(number: int, data: st.DataObject, label: str) -> int:
    """Draw one of ``number``. In real time that is another one each time, but the draw is the same.

    Hypothesis takes an example for flaky that draws from other bounds when it is repeated.
    """
    return data.draw(st.integers(0, 0xFFFF), label=label) * number >> 16


def _while_cancelled(error: BaseException | None) -> bool:
    """Was it raised by what handled a `trio.Cancelled`?"""
    while error is not None:
        error = error.__context__
        if isinstance(error, trio.Cancelled):
            return True
    return False


def _other_than(
    kinds: tuple[type[BaseException], ...], error: BaseException | None
) -> BaseException | None:
    """Return what is no `Cancelled` or of these kinds, of an error, or of a group of them."""
    kinds = (trio.Cancelled, *kinds)
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).split(kinds)[1]
    return None if isinstance(error, kinds) else error
