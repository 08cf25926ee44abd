"""Every check of `check_history` finds what it is there for: one true story, told falsely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest

from tests.support import OTHER, OWNER
from trio_bgtasks import (
    CorruptRecord,
    Failed,
    JournalEntry,
    Notice,
    OutputPage,
    Question,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
    TaskStore,
)
from trio_bgtasks.testing import History, check_history
from trio_bgtasks.testing._history import Run, Save, TaskHistory
from trio_bgtasks.testing._promises import may_be_orphaned_as, may_end_as
from trio_bgtasks.testing._questioning import DECLINED, Answer, Asked, reply_of, words_of

RUNNING, STOPPED, COMPLETED = TaskStatus.RUNNING, TaskStatus.STOPPED, TaskStatus.COMPLETED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED


@attrs.define
class Story:
    """Task ``t`` stopped at a checkpoint, was resumed and succeeded; also the store that says so.

    The notice of its first attempt was taken, that of the second waits.
    """

    history: History = attrs.field(factory=History)
    task: TaskHistory = attrs.field(init=False)
    record: TaskRecord | CorruptRecord | None = attrs.field(init=False)
    journal: list[JournalEntry] = attrs.field(init=False)
    page: OutputPage = attrs.field(init=False)
    waiting: dict[str, list[Notice]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        tick = self.history.tick
        self.history.machines["m"] = {"ex"}
        self.task = task = self.history.task("t", OWNER)
        first = self.begin(1, said=["one\n"])
        task.saves.append(Save("half", tick(), tick()))
        first.outcome, first.ended = Stopped("for now"), tick()
        second = self.begin(2, said=["two\n"], checkpoint="half")
        second.outcome, second.ended = Success("done"), tick()
        task.started, task.announced = {1: 1, 2: 1}, {1: [STOPPED]}
        self.record = TaskRecord(
            "t",
            OWNER,
            "work",
            "",
            COMPLETED,
            2,
            created_at_ms=1,
            updated_at_ms=4,
            supports_resume=True,
            result="done",
            checkpoint="half",
            completed_at_ms=4,
        )
        self.journal = [
            JournalEntry(1, "registered", 1, RUNNING),
            JournalEntry(2, "finished", 1, STOPPED),
            JournalEntry(3, "attempt_started", 2, RUNNING),
            JournalEntry(4, "finished", 2, COMPLETED),
        ]
        self.page = OutputPage("one\ntwo\n", 0, 8, 8, 0)
        self.waiting = {OWNER: [Notice(2, self.record.summary())]}

    # ---- what a lie is made of ----------------------------------------------------------------

    def begin(self, attempt: int, **fields: Any) -> Run:
        """Add a run on machine ``m``."""
        fields = {"is_resume": attempt > 1, "checkpoint": None, **fields}
        run = Run(self.task, attempt, "m", background=True, began=self.history.tick(), **fields)
        self.task.runs.append(run)
        return run

    def run_on(self, executor_id: str = "ex") -> Run:
        """A third attempt runs: that is no lie yet."""
        self.journal.append(JournalEntry(5, "attempt_started", 3, RUNNING))
        self.stored(attempt=3, status=RUNNING, executor_id=executor_id, result=None)
        return self.begin(3, checkpoint="half")

    def ask(self) -> Answer:
        """A third attempt asks, and somebody answers: that is no lie yet."""
        asked, run = Asked(words_of("Why?", {}), self.history.tick()), self.run_on()
        run.questions.asks.append(asked)
        self.task.questions.attempts.append(run.questions)
        answer = Answer("q1", reply_of(7), self.history.tick(), self.history.tick())
        self.task.questions.answers.append(answer)
        self.journal.append(JournalEntry(6, "question_asked", 3, RUNNING, "ex", "q1"))
        self.journal.append(JournalEntry(7, "question_answered", 3, RUNNING, None, "q1"))
        question = Question("q1", "Why?", {}, 6, "answered", 7)
        self.stored(questions=(question,), questions_asked=1)
        self.task.questions.seen["q1"] = question
        return answer

    def stored(self, **changes: Any) -> None:
        """Let the store show another record."""
        assert isinstance(self.record, TaskRecord)
        self.record = attrs.evolve(self.record, **changes)

    # ---- the store ----------------------------------------------------------------------------

    async def load(self, task_id: str) -> TaskRecord | None:
        """There is one record at most."""
        if isinstance(self.record, CorruptRecord):
            raise self.record
        return self.record if task_id == "t" else None

    async def history_of(self, task_id: str) -> list[JournalEntry]:
        """Of that record."""
        assert task_id == "t"
        return self.journal

    async def read_output(self, task_id: str, *, offset: int, limit: int) -> OutputPage:
        """The whole log."""
        assert (task_id, offset) == ("t", 0)
        return self.page

    async def notices(self, owner_thread_id: str, *, limit: int) -> list[Notice]:
        """Those that wait."""
        return self.waiting.get(owner_thread_id, [])


@attrs.frozen
class Shown:
    """A `Story` as a store, whose journal has the protocol's name."""

    story: Story

    def __getattr__(self, name: str) -> Any:
        return getattr(self.story, "history_of" if name == "history" else name)


async def check(story: Story, *, swept: bool = True) -> None:
    """Compare what was seen with what is shown."""
    await check_history(story.history, cast("TaskStore", Shown(story)), swept=swept)


# ---- what is no lie -----------------------------------------------------------------------------


async def test_the_story_is_true() -> None:
    """Nothing is found in it; nor when a third attempt runs."""
    story = Story()
    await check(story)
    assert repr(story.history) == "<History of 1 tasks, 2 runs>"
    story = Story()
    story.run_on()
    await check(story)


async def test_what_was_dropped_from_a_log_is_not_missed() -> None:
    """A log that is not whole is not compared with what was said."""
    story = Story()
    story.page = OutputPage("wo\n", 5, 8, 8, 5)
    await check(story)


async def test_a_notice_that_was_perhaps_not_acknowledged_may_come_again() -> None:
    """Its block succeeded, and the acknowledgement was not answered."""
    story = Story()
    story.task.unsure.add(2)
    story.task.announced[2] = [COMPLETED]
    await check(story)


async def test_a_damaged_record_is_called_corrupt() -> None:
    """Then nothing else of it can be checked, and nothing is missed."""
    story = Story()
    story.history.damaged(story.task)
    story.record = CorruptRecord("t", "not JSON")
    await check(story)


async def test_a_machine_that_has_closed() -> None:
    """What ran there has ended."""
    story = Story()
    story.history.closed("m")
    await check(story)


async def test_what_a_running_attempt_said_last_may_be_on_its_way() -> None:
    """Only its end says that all is in the log."""
    story = Story()
    story.run_on().said = ["three\n"]
    await check(story)


async def test_a_stopped_task_that_is_cancelled() -> None:
    """Who was told that it is stopped was told the truth, and its cancel is its end."""
    story = Story()
    del story.task.runs[1], story.task.started[2], story.journal[2:]
    story.page = OutputPage("one\n", 0, 4, 4, 0)
    story.waiting.clear()
    story.stored(status=STOPPED, attempt=1, result=None)
    assert isinstance(story.record, TaskRecord)
    story.task.told[1, STOPPED] = story.record.summary()
    await check(story)
    story.history.accepted(story.task)
    story.journal.append(JournalEntry(5, "cancel_requested", 1, CANCELLED))
    story.stored(status=CANCELLED, cancel_requested_at_ms=5)
    await check(story)


@pytest.mark.parametrize(
    ("task", "run", "may"),
    [
        ({}, {"outcome": Success()}, {COMPLETED}),
        ({}, {"raised": ValueError()}, {FAILED}),
        ({}, {"raised": KeyboardInterrupt()}, set()),
        ({"cancels": [2], "cancel_accepted": 2}, {"outcome": Success()}, {CANCELLED}),
        ({"cancels": [4], "cancel_accepted": 4}, {"outcome": Success()}, {CANCELLED, COMPLETED}),
        ({"scope_cancelled": 2}, {"outcome": Stopped()}, {CANCELLED}),
        ({"scope_cancelled": 2}, {"outcome": Success()}, {COMPLETED}),
        ({"scope_cancelled": 2}, {"outcome": Stopped(), "lost": 2}, {CANCELLED, STOPPED}),
        ({}, {"outcome": Failed("x"), "causes": {"shutdown"}, "cancelled": True}, {STOPPED}),
        ({}, {"outcome": Failed("x"), "causes": {"shutdown"}}, {FAILED}),
        ({}, {"outcome": Stopped(), "causes": {"deadline"}, "cancelled": True}, {FAILED}),
        ({}, {"outcome": Success(), "causes": {"deadline"}, "cancelled": True}, {COMPLETED}),
    ],
)
def test_what_an_attempt_may_end_as(
    task: dict[str, Any], run: dict[str, Any], may: set[TaskStatus]
) -> None:
    """Its own outcome, unless somebody had a reason to cancel it, and it has not succeeded."""
    of = TaskHistory("t", OWNER, **task)
    assert may_end_as(Run(of, 1, "m", True, False, None, began=1, ended=3, **run)) == may  # noqa: FBT003


def test_what_an_orphan_may_end_as() -> None:
    """Stopped; cancelled only if somebody asked for that."""
    run = Run(TaskHistory("t", OWNER), 1, "m", True, False, None, began=1, lost=2)  # noqa: FBT003
    assert may_be_orphaned_as(run) == {STOPPED}
    run.task.cancels.append(3)
    assert may_be_orphaned_as(run) == {STOPPED, CANCELLED}


# ---- lies ---------------------------------------------------------------------------------------

Lie = Callable[[Story], object]
LIES: list[tuple[Lie, str]] = []


def lie(says: str) -> Callable[[Lie], Lie]:
    """Put a lie into the table, with what it is to be called."""

    def add(function: Lie) -> Lie:
        LIES.append((function, says))
        return function

    return add


@lie("promise 1: attempt 2 began when it, or a later one, had begun")
def _begun_twice(story: Story) -> None:
    story.begin(2, checkpoint="half")


@lie("promise 1: attempt 2 began while an earlier one ran")
def _overlapping(story: Story) -> None:
    story.task.runs[0].ended = story.history.tick()


@lie("promise 2: attempt 2 was told that is_resume is False")
def _a_resume_that_does_not_know(story: Story) -> None:
    story.task.runs[1].is_resume = False


@lie("promise 2: attempt 2 was given None; saved: 'half'")
def _resumed_from_nothing(story: Story) -> None:
    story.task.runs[1].checkpoint = None


@lie("promise 2: its start was answered, or it ran, and there is no record of it")
def _no_record(story: Story) -> None:
    story.record = None


@lie("promise 2: attempt 3 was seen, but is not stored")
def _a_start_that_is_not_stored(story: Story) -> None:
    story.task.started[3] = 1


@lie("promise 2: attempt 2 ended, and no end of it is stored")
def _an_end_that_is_not_stored(story: Story) -> None:
    del story.journal[-1]
    story.stored(status=RUNNING)


@lie("promise 2: the result 'done' is stored as 'another'")
def _another_result(story: Story) -> None:
    story.stored(result="another")


@lie("promise 2: the checkpoint is None, saved: 'half'")
def _no_checkpoint(story: Story) -> None:
    story.stored(checkpoint=None)


@lie("promise 2: somebody was told of attempt 3")
def _told_of_the_future(story: Story) -> None:
    assert isinstance(story.record, TaskRecord)
    story.task.told[3, RUNNING] = story.record.summary()


@lie("promise 2: somebody was told otherwise: ")
def _told_of_another_result(story: Story) -> None:
    assert isinstance(story.record, TaskRecord)
    story.task.told[2, COMPLETED] = attrs.evolve(story.record, result="another").summary()


@lie("promise 2: somebody was told that attempt 2 is stopped")
def _told_of_another_end(story: Story) -> None:
    assert isinstance(story.record, TaskRecord)
    story.task.told[2, STOPPED] = attrs.evolve(story.record, status=STOPPED).summary()


@lie(r"promise 2: attempt 2 said 'two\\n', the log goes on ''")
def _lost_words(story: Story) -> None:
    story.page = OutputPage("one\n", 0, 4, 4, 0)


@lie(r"promise 2: the log has what nobody said: 'three\\n'")
def _words_of_nobody(story: Story) -> None:
    story.page = OutputPage("one\ntwo\nthree\n", 0, 14, 14, 0)


@lie(r"promise 3: the journal has starts of the attempts \[1\]")
def _a_start_without_a_line(story: Story) -> None:
    del story.journal[2]


@lie("promise 3: a terminal record changed; it was ")
def _a_terminal_record_that_changes(story: Story) -> None:
    assert isinstance(story.record, TaskRecord)
    story.task.ended_as = attrs.evolve(story.record, description="before")


@lie(r"promise 4: the journal has ends of the attempts \[2\]")
def _an_end_without_a_line(story: Story) -> None:
    del story.journal[1]


@lie("promise 4: attempt 2 crashed, and an end of it was stored")
def _written_by_the_dead(story: Story) -> None:
    story.task.runs[1].lost = story.history.tick()


@lie("promise 5: nobody asked for its cancel")
def _a_cancel_of_nobody(story: Story) -> None:
    story.stored(cancel_requested_at_ms=1)


@lie("promise 5: it was resumed after its cancel had been accepted")
def _resumed_after_a_cancel(story: Story) -> None:
    story.task.cancels.append(story.history.tick())
    story.journal.insert(2, JournalEntry(2, "cancel_requested", 1, RUNNING))


@lie("promise 5: an accepted cancel is not stored")
def _a_cancel_that_is_not_stored(story: Story) -> None:
    story.history.accepted(story.task)


@lie("promise 5: its cancel was accepted, and it is completed")
def _a_cancel_without_effect(story: Story) -> None:
    story.history.accepted(story.task)
    story.stored(cancel_requested_at_ms=1)


@lie("promise 6: it runs, and its record is gone")
def _collected_while_it_runs(story: Story) -> None:
    story.run_on()
    story.task.collected = True
    story.record = None


@lie("promise 6: attempt 2 runs, but was finished as completed")
def _ended_while_it_runs(story: Story) -> None:
    story.task.runs[1].ended = None


@lie("promise 6: attempt 2 was taken for an orphan on a living machine")
def _an_orphan_that_is_none(story: Story) -> None:
    story.journal[-1] = JournalEntry(4, "orphaned", 2, STOPPED)


@lie("promise 6: nothing runs it any more, and nobody has found that")
def _an_orphan_that_nobody_finds(story: Story) -> None:
    story.run_on().lost = story.history.tick()


@lie("promise 7: 2 callers were told that they started attempt 2")
def _started_by_two(story: Story) -> None:
    story.task.started[2] = 2


@lie("promise 8: the record says that it is thread-2's")
def _a_record_of_another_owner(story: Story) -> None:
    story.stored(owner_thread_id=OTHER)


@lie("promise 8: thread-2 is told of its end")
def _told_to_another_owner(story: Story) -> None:
    story.history.task("u", OTHER)
    story.waiting[OTHER] = story.waiting.pop(OWNER)


@lie("promise 9: attempt 1 is failed, should be stopped")
def _an_end_that_nobody_caused(story: Story) -> None:
    story.journal[1] = JournalEntry(2, "finished", 1, FAILED)


@lie("promise 10: m has closed, and a body of it runs")
def _a_body_that_runs_on(story: Story) -> None:
    story.run_on("another")
    story.history.closed("m")


@lie("promise 11: attempt 1 was announced 2 times")
def _announced_twice(story: Story) -> None:
    story.task.announced[1].append(STOPPED)


@lie("promise 11: attempt 1 was announced as failed")
def _announced_otherwise(story: Story) -> None:
    story.task.announced[1] = [FAILED]


@lie("promise 11: attempt 3 was announced, and runs")
def _announced_while_it_runs(story: Story) -> None:
    story.run_on()
    assert isinstance(story.record, TaskRecord)
    story.waiting[OWNER].append(Notice(3, story.record.summary()))


@lie("promise 11: attempt 2 is announced, although its caller was answered")
def _announced_and_answered(story: Story) -> None:
    story.task.answered.add(2)


@lie("promise 11: attempt 2 was announced, and is to be once more")
def _announced_and_to_be_announced(story: Story) -> None:
    story.task.announced[2] = [COMPLETED]


@lie("promise 11: attempt 2 ended, and is never announced")
def _never_announced(story: Story) -> None:
    story.waiting.clear()


@lie("promise 12: its record was not damaged, and is called so: ")
def _called_corrupt(story: Story) -> None:
    story.record = CorruptRecord("t", "not JSON")


@lie("promise 12: its record was damaged, and is read as ")
def _read_although_damaged(story: Story) -> None:
    story.history.damaged(story.task)


@lie("promise 13: the journal has the questions \\['q1', 'q1'\\], of 1")
def _a_question_id_is_used_again(story: Story) -> None:
    story.ask()
    story.journal.append(JournalEntry(8, "question_asked", 3, RUNNING, "ex", "q1"))


@lie("promise 13: attempt 3 asked 0 times, stored are 1")
def _a_question_that_nobody_asked(story: Story) -> None:
    story.ask()
    story.task.questions.attempts[0].asks.clear()


@lie("promise 13: question q1 was answered more than once")
def _answered_twice(story: Story) -> None:
    story.ask()
    story.journal.append(story.journal[-1])


@lie("promise 13: nobody gave the answer that question q1 has")
def _an_answer_that_nobody_gave(story: Story) -> None:
    story.ask().reply = DECLINED


@lie("promise 13: an accepted answer to question q1 is not stored")
def _an_answer_is_lost(story: Story) -> None:
    story.ask()
    story.journal.pop()


@lie("promise 13: question q1 was answered, and is open")
def _an_answer_leaves_its_question_open(story: Story) -> None:
    story.ask()
    story.stored(questions=(Question("q1", "Why?", {}, 6),))


@lie("promise 13: question q1 is open, and its task is stopped")
def _open_for_nobody(story: Story) -> None:
    story.ask()
    story.task.questions.answers.clear()
    story.journal.pop()
    story.task.runs[-1].outcome, story.task.runs[-1].ended = Stopped(), story.history.tick()
    story.journal.append(JournalEntry(8, "finished", 3, STOPPED))
    story.stored(status=STOPPED, executor_id=None, questions=(Question("q1", "Why?", {}, 6),))


@lie("promise 13: question q1 is stored with 8, which nobody answered")
def _another_answer_is_stored(story: Story) -> None:
    story.ask()
    story.stored(questions=(Question("q1", "Why?", {}, 6, "answered", 8),))


async def test_a_question_and_its_answer_are_no_lie() -> None:
    """What the lies about them are made of is true."""
    story = Story()
    story.ask()
    await check(story)


@pytest.mark.parametrize(
    ("lie", "says"), LIES, ids=[function.__name__.strip("_") for function, _ in LIES]
)
async def test_a_lie_is_found_and_named(lie: Lie, says: str) -> None:
    """Each is wrong in one way, and that is what is said."""
    story = Story()
    lie(story)
    with pytest.raises(AssertionError, match=f"^{says}"):
        await check(story)


async def test_a_running_record_of_a_closed_machine_is_found() -> None:
    """Also by a check that does not ask whether an orphan was found in time."""
    story = Story()
    story.run_on().lost = story.history.tick()
    story.history.closed("m")
    with pytest.raises(AssertionError, match="promise 10: m has closed, and its record is running"):
        await check(story, swept=False)
