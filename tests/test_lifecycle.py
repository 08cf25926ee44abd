"""The lifecycle by example: texts, times, journal and notices.

That every event in every state does what the design says is shown in ``tests/property``.
"""

from __future__ import annotations

import attrs
import pytest

from trio_bgtasks._errors import (
    ExecutorAlive,
    ExecutorFenced,
    IdempotencyKeyUsed,
    ParentCancelled,
    QuestionClosed,
    Refused,
    StaleAttempt,
    TaskExists,
    TaskNotResumable,
    TaskNotRunning,
    TaskNotStopped,
    UnknownTask,
)
from trio_bgtasks._events import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Facts,
    Finished,
    Orphaned,
    OutputAppended,
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
)
from trio_bgtasks._lifecycle import ANONYMOUS, ORPHAN_ERROR, apply, ends_attempt, journal_entry
from trio_bgtasks._records import (
    Cancelled,
    ExternalRef,
    Failed,
    JournalEntry,
    Progress,
    Question,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
)

FENCED = Facts(executor_fenced=True)


def registered(at_ms: int = 10, **changes: object) -> TaskRecord:
    """Return a running record, as its registration makes it."""
    event = Registered(at_ms, "ex_1", "ann", "shell", "sleep", supports_resume=True)
    return apply("bg_1", None, attrs.evolve(event, **changes))  # type: ignore[arg-type]


def stopped() -> TaskRecord:
    """Return a stopped record that can be resumed."""
    return apply("bg_1", registered(), Finished(20, "ex_1", 1, Stopped("shutdown")))


def resume(at_ms: int = 30, **changes: object) -> AttemptStarted:
    """Return the event that resumes `stopped`."""
    event = AttemptStarted(at_ms, "ex_2", "ann", "shell", 1, {"a": 2})
    return attrs.evolve(event, **changes)  # type: ignore[arg-type]


def ask(message: str = "Sure?", *, waiting: str = "", delivered: str = "") -> QuestionAsked:
    """Return the event of attempt 1 that asks; who waits and who was answered in words."""
    held = tuple(waiting.split()), tuple(delivered.split())
    return QuestionAsked(11, "ex_1", 1, message, {"const": 1}, *held)


def told(*events: Event, **changes: object) -> TaskRecord:
    """Return a running record after these events."""
    record = registered(**changes)  # type: ignore[arg-type]
    for event in events:
        record = apply("bg_1", record, event, Facts(executor_fenced=isinstance(event, Orphaned)))
    return record


def shown(record: TaskRecord) -> str:
    """Return the questions of a record, with their states by their first letter."""
    return " ".join(f"{q.question_id}{q.state[0]}" for q in record.questions)


YES = QuestionAnswered(12, "q1", 1)
NO = QuestionAnswered(12, "q1", declined=True)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "event", "facts", "error", "text"),
    [
        (None, CancelRequested(0), Facts(), UnknownTask, "Unknown task_id: bg_1"),
        (
            stopped(),
            resume(owner_thread_id="bob"),
            Facts(),
            UnknownTask,
            "Unknown task_id: bg_1",
        ),
        (
            registered(),
            Registered(0, "ex_1", "bob", "shell", ""),
            Facts(),
            TaskExists,
            "Task 'bg_1' exists already (current status: running)",
        ),
        (
            None,
            Registered(0, "ex_1", "bob", "shell", ""),
            Facts(id_used=True),
            TaskExists,
            "Task 'bg_1' exists already (current status: collected)",
        ),
        (
            None,
            Registered(0, "ex_1", "ann", "shell", "", idempotency_key="k"),
            Facts(key_used_by="bg_7"),
            IdempotencyKeyUsed,
            "idempotency_key 'k' was used already, by task 'bg_7'",
        ),
        (
            None,
            Registered(0, "ex_1", "ann", "shell", "", parent_task_id="bg_0"),
            Facts(parent_cancelled=True),
            ParentCancelled,
            "Task 'bg_1' is not started: its parent 'bg_0' is cancelled",
        ),
        (
            None,
            Registered(0, "ex_1", "ann", "shell", ""),
            FENCED,
            ExecutorFenced,
            "executor ex_1 is fenced: task 'bg_1' stays unregistered",
        ),
        (
            stopped(),
            Finished(0, "ex_1", 1, Success()),
            Facts(),
            TaskNotRunning,
            "Task 'bg_1' is not running (current status: stopped)",
        ),
        (
            registered(),
            CheckpointSaved(0, "ex_1", 2, None),
            Facts(),
            StaleAttempt,
            (
                "attempt 2 of task 'bg_1' may not write any more "
                "(current attempt: 1, current status: running)"
            ),
        ),
        (
            registered(),
            Orphaned(0, "ex_1", 1),
            Facts(),
            ExecutorAlive,
            "Task 'bg_1' is running under a live executor ex_1",
        ),
        (
            registered(),
            resume(),
            Facts(),
            TaskNotStopped,
            "Task 'bg_1' is not stopped (current status: running)",
        ),
        (
            attrs.evolve(stopped(), supports_resume=False),
            resume(),
            Facts(),
            TaskNotResumable,
            "Task 'bg_1' cannot be resumed: its tool does not support it (current status: stopped)",
        ),
        (
            attrs.evolve(stopped(), cancel_requested_at_ms=0),
            resume(),
            Facts(),
            TaskNotResumable,
            "Task 'bg_1' cannot be resumed: its cancellation was accepted (current status: stopped)",
        ),
        (
            stopped(),
            resume(expected_attempt=2),
            Facts(),
            StaleAttempt,
            (
                "attempt 2 of task 'bg_1' may not write any more "
                "(current attempt: 1, current status: stopped)"
            ),
        ),
        (
            stopped(),
            resume(),
            FENCED,
            ExecutorFenced,
            "executor ex_2 is fenced: task 'bg_1' stays stopped",
        ),
        (
            registered(),
            CheckpointSaved(0, "ex_1", 1, None),
            FENCED,
            ExecutorFenced,
            "executor ex_1 is fenced: task 'bg_1' stays running",
        ),
        (
            apply("bg_1", registered(), Finished(20, "ex_1", 1, Success())),
            CancelRequested(30),
            Facts(),
            TaskNotRunning,
            "Task 'bg_1' is not running (current status: completed)",
        ),
    ],
)
def test_refusals_say_what_is_wrong(
    before: TaskRecord | None, event: Event, facts: Facts, error: type[Refused], text: str
) -> None:
    """A refusal has its own type and one sentence for people."""
    with pytest.raises(error) as caught:
        apply("bg_1", before, event, facts)
    assert type(caught.value) is error
    assert str(caught.value) == text


def test_a_stopped_record_with_a_mark_keeps_it() -> None:
    """No event makes such a record; if a store has one all the same, its cancel still holds."""
    damaged = attrs.evolve(stopped(), cancel_requested_at_ms=0)
    assert apply("bg_1", damaged, CancelRequested(99)).cancel_requested_at_ms == 0


# ---- times --------------------------------------------------------------------------------------


def test_the_first_mark_wins_also_at_time_zero() -> None:
    """A mark of the first millisecond of a virtual clock is a mark like any other."""
    marked = apply("bg_1", registered(0), CancelRequested(0))
    assert marked.cancel_requested_at_ms == 0
    assert apply("bg_1", marked, CancelRequested(5)) is marked
    ended = apply("bg_1", marked, Finished(9, "ex_1", 1, Success(), cancel_requested_at_ms=7))
    assert ended.cancel_requested_at_ms == 0
    assert ended.status is TaskStatus.CANCELLED


def test_a_record_tells_when_it_ended_and_when_its_end_was_asked_for() -> None:
    """Whether its executor ended it, somebody else did, or its owner abandoned it."""
    orphan = apply("bg_1", registered(), Orphaned(50, "ex_1", 1), FENCED)
    assert (orphan.completed_at_ms, orphan.updated_at_ms) == (50, 50)
    assert orphan.cancel_requested_at_ms is None
    abandoned = apply("bg_1", orphan, CancelRequested(60))
    assert (abandoned.completed_at_ms, abandoned.updated_at_ms) == (60, 60)
    assert abandoned.cancel_requested_at_ms == 60


@pytest.mark.parametrize(
    "event",
    [
        Finished(-5, "ex_1", 1, Success()),
        Orphaned(-5, "ex_1", 1),
        CancelRequested(-5),
        CheckpointSaved(-5, "ex_1", 1, None),
        ProgressReported(-5, "ex_1", 1, Progress(1)),
        OutputAppended(-5, "ex_1", 1, 0, "x"),
        QuestionAsked(-5, "ex_1", 1, "Sure?", {}),
    ],
)
def test_a_clock_that_jumps_back_ends_nothing_before_it_began(event: Event) -> None:
    """No task is completed before it was created, and no record is updated in the past."""
    facts = FENCED if isinstance(event, Orphaned) else Facts()
    after = apply("bg_1", registered(10), event, facts)
    assert after.updated_at_ms == 10
    assert after.completed_at_ms in (None, 10)


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (registered(10), Finished(99, "ex_1", 1, Success())),
        (registered(10), CancelRequested(99)),
        (registered(10), CheckpointSaved(99, "ex_1", 1, None)),
        (registered(10), ProgressReported(99, "ex_1", 1, Progress(1))),
        (registered(10), OutputAppended(99, "ex_1", 1, 0, "x")),
        (registered(10), QuestionAsked(99, "ex_1", 1, "Sure?", {})),
        (told(ask()), QuestionsWithdrawn(99, "ex_1", 1)),
        (told(ask()), QuestionAnswered(99, "q1")),
        (stopped(), resume(99)),
    ],
)
def test_every_change_has_its_time(before: TaskRecord, event: Event) -> None:
    """A record tells when it was changed last, whatever changed."""
    assert apply("bg_1", before, event).updated_at_ms == 99


# ---- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "error", "result"),
    [
        (Success({"n": 1}), None, {"n": 1}),
        (Failed("no", {"n": 2}), "no", {"n": 2}),
        (Stopped("owner closed"), "owner closed", None),
        (Cancelled(), None, None),
    ],
)
def test_a_cancelled_end_keeps_what_the_attempt_had_to_show(
    outcome: Success | Failed | Stopped | Cancelled, error: str | None, result: object
) -> None:
    """Result, error and reason are kept when an accepted cancel decides the status."""
    marked = apply("bg_1", registered(), CancelRequested(15))
    ended = apply("bg_1", marked, Finished(20, "ex_1", 1, outcome))
    assert (ended.status, ended.error, ended.result) == (TaskStatus.CANCELLED, error, result)


def test_an_orphan_says_why_it_ended_and_keeps_checkpoint_and_output() -> None:
    """What the dead attempt had stored is there for the next one."""
    record = apply("bg_1", registered(), CheckpointSaved(11, "ex_1", 1, {"step": 3}))
    record = apply("bg_1", record, OutputAppended(12, "ex_1", 1, 0, "né\n"))
    orphan = apply("bg_1", record, Orphaned(50, "ex_1", 1), FENCED)
    assert (orphan.status, orphan.error) == (TaskStatus.STOPPED, ORPHAN_ERROR)
    assert orphan.error == "No live executor found; marked stopped"
    assert (orphan.checkpoint, orphan.output_bytes) == ({"step": 3}, 4)
    again = apply("bg_1", orphan, resume(60))
    assert (again.attempt, again.executor_id, again.args) == (2, "ex_2", {"a": 2})
    assert (again.checkpoint, again.output_bytes, again.error) == ({"step": 3}, 4, None)


def test_a_resume_clears_what_the_last_attempt_left() -> None:
    """Error, result, reference, completion time and progress belong to one attempt."""
    record = apply("bg_1", registered(), ProgressReported(11, "ex_1", 1, Progress(1, 2)))
    done = apply("bg_1", record, Finished(12, "ex_1", 1, Success(1, ExternalRef("x:"))))
    assert done.result_ref == ExternalRef("x:")
    left = attrs.evolve(done, status=TaskStatus.STOPPED, error="e")
    again = apply("bg_1", left, resume(20, background=False))
    assert (again.error, again.result, again.result_ref) == (None, None, None)
    assert (again.completed_at_ms, again.progress, again.background) == (None, None, False)


# ---- questions ----------------------------------------------------------------------------------


def test_a_question_is_asked_and_answered() -> None:
    """It is open, then answered or declined; its words stay; others cannot change it."""
    asked = told(ask())
    assert asked.questions == (Question("q1", "Sure?", {"const": 1}, 11),)
    assert (asked.questions_asked, asked.status) == (1, TaskStatus.RUNNING)
    yes, no = told(ask(), YES), told(ask(), NO)
    assert yes.questions == (Question("q1", "Sure?", {"const": 1}, 11, "answered", 1),)
    assert no.questions == (Question("q1", "Sure?", {"const": 1}, 11, "declined"),)
    assert asked.open_questions == asked.questions
    assert yes.open_questions == no.open_questions == ()


@pytest.mark.parametrize(
    ("events", "question_id", "text"),
    [
        ([], "q1", "Question 'q1' of task 'bg_1': there is no such question now"),
        ([ask(), YES], "q1", "Question 'q1' of task 'bg_1': it was answered"),
        ([ask(), NO], "q1", "Question 'q1' of task 'bg_1': it was declined"),
        ([ask(), QuestionsWithdrawn(12, "ex_1", 1)], "q1", "there is no such question now"),
        ([ask(), CancelRequested(12)], "q1", "the task's cancellation was accepted"),
        ([ask()], "q2", "there is no such question now"),
    ],
)
def test_what_cannot_be_answered(events: list[Event], question_id: str, text: str) -> None:
    """Only an open question can be, once, while no cancel is accepted; the refusal says why."""
    with pytest.raises(QuestionClosed, match=text):
        apply("bg_1", told(*events), QuestionAnswered(13, question_id, 2))


def test_what_does_not_run_cannot_be_answered() -> None:
    """Its questions were asked by an attempt that is over."""
    for end in (Success(), Failed("no"), Cancelled(), Stopped()):
        record = told(ask(), Finished(20, "ex_1", 1, end))
        with pytest.raises(TaskNotRunning, match=f"current status: {record.status}"):
            apply("bg_1", record, YES)


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([ask(), ask("Why?", waiting="q1")], "q1o q2o"),
        ([ask(), ask(waiting="q1")], "q1o q2o"),  # two calls that ask the same
        ([ask(), ask()], "q1o"),  # nobody waits for it: asked, and its answer was lost
        ([ask(), ask("Why?")], "q2o"),  # nobody waits for it: withdrawn
        ([ask(), YES, ask()], "q1a"),  # who asked is gone: its answer is the next one's
        ([ask(), NO, ask()], "q1d"),
        ([ask(), YES, ask(waiting="q1")], "q1a q2o"),  # it is on its way
        ([ask(), YES, ask(delivered="q1")], "q1a q2o"),  # it was given
        ([ask(), YES, ask("Why?", delivered="q1")], "q1a q2o"),
        ([ask(), ask(waiting="q1"), ask("Why?", waiting="q2")], "q2o q3o"),
        ([ask(), ask(waiting="q1"), ask()], "q1o"),  # the oldest
        ([ask(), QuestionsWithdrawn(12, "ex_1", 1, ("q1",))], "q1o"),
        ([ask(), QuestionsWithdrawn(12, "ex_1", 1)], ""),
        ([ask(), QuestionsWithdrawn(12, "ex_1", 1), ask()], "q2o"),  # no id is used again
        ([ask(), YES, QuestionsWithdrawn(12, "ex_1", 1)], "q1a"),
        ([ask(), YES, CheckpointSaved(12, "ex_1", 1, None, ("q1",))], ""),
        ([ask(), YES, CheckpointSaved(12, "ex_1", 1, None)], "q1a"),
        ([ask(), YES, ask("Why?", delivered="q1"), Orphaned(20, "ex_1", 1)], "q1a"),
        ([ask(), NO, Finished(20, "ex_1", 1, Stopped()), resume()], "q1d"),
        ([ask(), YES, Finished(20, "ex_1", 1, Stopped()), CancelRequested(30)], ""),
        ([ask(), YES, CancelRequested(12), Orphaned(20, "ex_1", 1)], ""),
        ([ask(), YES, Finished(20, "ex_1", 1, Success())], ""),
    ],
)
def test_which_questions_a_record_has(events: list[Event], left: str) -> None:
    """Those that are open, and those that an attempt may yet ask for again."""
    assert shown(told(*events)) == left


def test_a_task_that_cannot_be_resumed_keeps_no_answer_that_was_given() -> None:
    """Nobody will ask for it again."""
    events = (ask(), YES, ask("Why?", delivered="q1"))
    assert shown(told(*events, supports_resume=False)) == "q2o"
    waiting = (ask(), YES, ask("Why?", waiting="q1"))
    assert shown(told(*waiting, supports_resume=False)) == "q1a q2o"


def test_the_next_attempt_is_given_what_was_answered() -> None:
    """It holds nothing yet, so it repeats the questions in the order in which they were asked."""
    record = told(ask(), YES, ask(waiting="q1"), Finished(20, "ex_1", 1, Stopped()), resume())
    again = QuestionAsked(31, "ex_2", 2, "Sure?", {"const": 1})
    assert apply("bg_1", record, again) is record
    other = attrs.evolve(again, schema={"const": True})  # which is not 1
    after = apply("bg_1", record, other)
    assert (shown(after), after.questions[-1].question_id) == ("q1a q3o", "q3")


# ---- journal and notices ------------------------------------------------------------------------


def test_the_journal_has_a_line_for_every_status_change_and_cancel() -> None:
    """A whole life, told by its journal; what changes neither status nor mark is not in it."""
    steps: list[tuple[Event, Facts]] = [
        (Registered(10, "ex_1", "ann", "shell", "d", supports_resume=True), Facts()),
        (CheckpointSaved(11, "ex_1", 1, 1), Facts()),
        (ProgressReported(11, "ex_1", 1, Progress(1)), Facts()),
        (OutputAppended(11, "ex_1", 1, 0, "x"), Facts()),
        (Orphaned(20, "ex_1", 1), FENCED),
        (resume(30), Facts()),
        (CancelRequested(40), Facts()),
        (CancelRequested(41), Facts()),
        (Finished(50, "ex_2", 2, Failed("cut off")), Facts()),
    ]
    record: TaskRecord | None = None
    journal: list[JournalEntry] = []
    for event, facts in steps:
        after = apply("bg_1", record, event, facts)
        entry = journal_entry(record, event, after)
        if entry is not None:
            journal.append(entry)
        record = after
    assert journal == [
        JournalEntry(10, "registered", 1, TaskStatus.RUNNING, "ex_1"),
        JournalEntry(20, "orphaned", 1, TaskStatus.STOPPED, "ex_1", ORPHAN_ERROR),
        JournalEntry(30, "attempt_started", 2, TaskStatus.RUNNING, "ex_2"),
        JournalEntry(40, "cancel_requested", 2, TaskStatus.RUNNING),
        JournalEntry(50, "finished", 2, TaskStatus.CANCELLED, "ex_2", "cut off"),
    ]


def test_the_journal_has_a_line_for_every_question_and_its_answer() -> None:
    """With its id; a question that is repeated, a withdrawal and a checkpoint have none."""
    steps: list[Event] = [
        ask(),
        ask(),
        YES,
        CheckpointSaved(12, "ex_1", 1, None, ("q1",)),
        ask(),
        QuestionAnswered(13, "q2", declined=True),
        ask(delivered="q2"),
        QuestionsWithdrawn(14, "ex_1", 1),
    ]
    record, journal = registered(), list[JournalEntry | None]()
    for event in steps:
        after = apply("bg_1", record, event)
        journal.append(journal_entry(record, event, after))
        record = after
    running = TaskStatus.RUNNING
    assert journal == [
        JournalEntry(11, "question_asked", 1, running, "ex_1", "q1"),
        None,
        JournalEntry(12, "question_answered", 1, running, None, "q1"),
        None,
        JournalEntry(11, "question_asked", 1, running, "ex_1", "q2"),
        JournalEntry(13, "question_declined", 1, running, None, "q2"),
        JournalEntry(11, "question_asked", 1, running, "ex_1", "q3"),
        None,
    ]


def test_abandoning_a_stopped_task_is_in_the_journal() -> None:
    """A cancel that ends a stopped task is one line, by nobody in particular."""
    before = stopped()
    event = CancelRequested(40)
    entry = journal_entry(before, event, apply("bg_1", before, event))
    assert entry == JournalEntry(40, "cancel_requested", 1, TaskStatus.CANCELLED)


@pytest.mark.parametrize(
    ("event", "announced"),
    [
        (Finished(0, "ex_1", 1, Success()), True),
        (Finished(0, "ex_1", 1, Success(), announce=False), False),
        (Orphaned(0, "ex_1", 1), True),
        (CancelRequested(0), False),
        (resume(), False),
        (OutputAppended(0, "ex_1", 1, 0, "x"), False),
    ],
)
def test_which_events_are_announced(event: Event, *, announced: bool) -> None:
    """An attempt's end is announced, unless its caller has the answer; nothing else is."""
    assert ends_attempt(event, registered()) is announced


@pytest.mark.parametrize("event", [Finished(0, "ex_1", 1, Success()), Orphaned(0, "ex_1", 1)])
def test_the_end_of_an_anonymous_run_is_not_announced(event: Event) -> None:
    """A foreground run without a thread has nobody who could take its notice."""
    anonymous = registered(owner_thread_id=f"{ANONYMOUS}1", background=False)
    assert not ends_attempt(event, anonymous)
    assert ends_attempt(event, registered(background=False))
    assert ends_attempt(event, registered(owner_thread_id=f"{ANONYMOUS}1"))
