"""What every store promises: the same tests for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio

from trio_bgtasks._errors import (
    ExecutorAlive,
    ExecutorFenced,
    IdempotencyKeyUsed,
    InvalidValue,
    ParentCancelled,
    QuestionClosed,
    Refused,
    StaleAttempt,
    TaskExists,
    TaskNotRunning,
    TaskNotStopped,
    UnknownTask,
)
from trio_bgtasks._events import (
    AttemptStarted,
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    Orphaned,
    OutputAppended,
    ProgressReported,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
)
from trio_bgtasks._lifecycle import ORPHAN_ERROR
from trio_bgtasks._records import (
    Cancelled,
    ExternalRef,
    Failed,
    Progress,
    Question,
    Stopped,
    Success,
    TaskRecord,
    TaskStatus,
    ThreadMessageRef,
)
from trio_bgtasks.stores import LeaseTerms, RecordPage, TaskStore

from .conftest import Hand

WEIRD: dict[str, Any] = {
    "text": 'ünï "quoted" \\ 🎈 \n\t',
    "numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, 1e300, -0.0, 5e-324],
    "nested": {"": [[], {}, [None, True, False]]},
}


async def everything(store: TaskStore, task_id: str, owner: str = "ann") -> object:
    """All that a store knows of a task."""
    return (
        await store.load(task_id),
        await store.history(task_id),
        await store.notices(owner),
        await store.read_output(task_id, offset=0, limit=10_000),
        await store.list_owner(owner),
    )


# ---- records -------------------------------------------------------------------------------------


async def test_what_is_stored_comes_back(store: TaskStore, hand: Hand) -> None:
    """Every field of a record is read as it was answered, whatever characters and numbers."""
    started = await hand.start(
        "t",
        background=False,
        supports_resume=True,
        parent_task_id="p",
        args=WEIRD,
        metadata=WEIRD,
        idempotency_key="k",
    )
    loaded = await store.load("t")
    assert loaded is not None
    assert loaded == started
    assert repr(loaded) == repr(started)  # -0.0, too
    assert loaded.args == loaded.metadata == WEIRD
    saved = await hand.checkpoint("t", [WEIRD])
    assert saved == await store.load("t")
    reported = await hand.apply(
        "t", ProgressReported(1, hand.executor_id, 1, Progress(0.5, 2.0, "half"))
    )
    assert reported == await store.load("t")
    assert reported.progress == Progress(0.5, 2.0, "half")
    marked = await hand.cancel("t")
    assert marked == await store.load("t")
    ended = await hand.end("t", Success(WEIRD, ThreadMessageRef("m", "1")), output="héllo")
    assert ended == await store.load("t") == await store.load_by_key("ann", "k")
    assert (ended.status, ended.result, ended.checkpoint) == ("cancelled", WEIRD, [WEIRD])
    assert ended.result_ref == ThreadMessageRef("m", "1")
    assert (await store.list_owner("ann")).records == [ended]
    assert (await store.children("p")).records == [ended]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Success(), "completed"),
        (Success(0, ExternalRef("file:///x")), "completed"),
        (Failed("no", [1]), "failed"),
        (Cancelled(), "cancelled"),
        (Stopped(), "stopped"),
        (Stopped("why"), "stopped"),
    ],
)
async def test_every_outcome_is_stored(
    store: TaskStore, hand: Hand, outcome: Any, status: str
) -> None:
    """An end is stored with its status, value, reference and text."""
    await hand.start("t")
    ended = await hand.end("t", outcome)
    assert (ended.status, ended.executor_id) == (status, None)
    assert ended == await store.load("t")


async def test_a_resume_clears_the_end_and_keeps_the_checkpoint(
    store: TaskStore, hand: Hand
) -> None:
    """A resumed record runs its next attempt with merged arguments and the stored checkpoint."""
    await hand.start("t", supports_resume=True, args={"a": 1})
    await hand.checkpoint("t", {"at": 7})
    await hand.end("t", Stopped("later"), output="one")
    resume = AttemptStarted(5, hand.executor_id, "ann", "shell", 1, {"a": 2}, background=False)
    again = await hand.apply("t", resume)
    assert again == await store.load("t")
    assert (again.status, again.attempt, again.error, again.args) == ("running", 2, None, {"a": 2})
    assert (again.checkpoint, again.background, again.output_bytes) == ({"at": 7}, False, 3)
    with pytest.raises(TaskNotStopped):
        await hand.apply("t", resume)
    with pytest.raises(StaleAttempt):
        await hand.end("t", attempt=1)
    assert (await hand.end("t", attempt=2)).status == "completed"


async def test_an_event_that_changes_nothing_is_answered(store: TaskStore, hand: Hand) -> None:
    """A second cancel mark, and a repeated append with an old clock, leave the record as it is."""
    await hand.start("t")
    await hand.write("t", 0, "abc")
    marked = await hand.cancel("t")
    assert await hand.cancel("t") == marked
    same = OutputAppended(0, hand.executor_id, 1, 0, "abc")
    assert await hand.apply("t", same) == marked == await store.load("t")
    assert len(await store.history("t")) == 2


async def test_unknown_tasks_have_nothing(store: TaskStore, hand: Hand) -> None:
    """What is not there is absent everywhere, and refuses every event but a registration."""
    assert await store.load("t") is None
    assert await store.load_by_key("ann", "k") is None
    assert await store.history("t") == []
    assert await store.notices("ann") == []
    assert list((await store.list_owner("ann")).records) == []
    assert list((await store.children("t")).records) == []
    page = await store.read_output("t", offset=-5, limit=10)
    assert (page.text, page.next_offset, page.total_bytes) == ("", 0, 0)
    with pytest.raises(UnknownTask):
        await hand.cancel("t")


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, -(2**63), -(2**64)])
async def test_no_offset_is_too_far_away(store: TaskStore, hand: Hand, offset: int) -> None:
    """Beyond the end there is nothing, before the beginning everything: in every store."""
    await hand.start("t")
    await hand.write("t", 0, "abc")
    page = await store.read_output("t", offset=offset, limit=10)
    assert page.text == ("" if offset > 0 else "abc")
    assert (page.next_offset, page.total_bytes) == (3, 3)


def refused_events(executor_id: str) -> list[tuple[Event, type[Refused]]]:
    """Events that may not happen to a completed task "t" of ann."""
    return [
        (Registered(1, executor_id, "ann", "shell", "again"), TaskExists),
        (Finished(1, executor_id, 1, Failed("late"), output="x"), TaskNotRunning),
        (CancelRequested(1), TaskNotRunning),
        (CheckpointSaved(1, executor_id, 1, 1), TaskNotRunning),
        (OutputAppended(1, executor_id, 1, 0, "x"), TaskNotRunning),
        (QuestionAsked(1, executor_id, 1, "Sure?", {}), TaskNotRunning),
        (QuestionsWithdrawn(1, executor_id, 1), TaskNotRunning),
        (QuestionAnswered(1, "q1", 1), TaskNotRunning),
        (Orphaned(1, executor_id, 1), TaskNotRunning),
        (AttemptStarted(1, executor_id, "ann", "shell", 1, {}), TaskNotStopped),
        (AttemptStarted(1, executor_id, "bob", "shell", 1, {}), UnknownTask),
    ]


@pytest.mark.parametrize("at", range(11))
async def test_a_refusal_changes_nothing(store: TaskStore, hand: Hand, at: int) -> None:
    """After a refused event all that the store knows is what it was."""
    await hand.start("t")
    await hand.end("t", Success(1), output="out")
    before = await everything(store, "t")
    event, refusal = refused_events(hand.executor_id)[at]
    with pytest.raises(refusal):
        await hand.apply("t", event)
    assert await everything(store, "t") == before


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, {1: 2}, {1, 2}, "\ud800", "\x00", 2**63, object(), [[b"x"]]],
)
async def test_a_value_that_is_not_json_is_refused(store: TaskStore, hand: Hand, bad: Any) -> None:
    """Such a value raises `InvalidValue`, wherever it is given, and changes nothing."""
    with pytest.raises(InvalidValue):
        await hand.start("new", args={"a": bad})
    with pytest.raises(InvalidValue):
        await hand.start("new", metadata={"a": bad})
    assert await store.load("new") is None
    await hand.start("t")
    before = await everything(store, "t")
    with pytest.raises(InvalidValue):
        await hand.checkpoint("t", bad)
    with pytest.raises(InvalidValue):
        await hand.apply("t", QuestionAsked(1, hand.executor_id, 1, "Sure?", {"const": bad}))
    with pytest.raises(InvalidValue):
        await hand.end("t", Success([bad]), output="x")
    assert await everything(store, "t") == before
    await hand.apply("t", QuestionAsked(1, hand.executor_id, 1, "Sure?", {}))
    before = await everything(store, "t")
    with pytest.raises(InvalidValue):
        await hand.apply("t", QuestionAnswered(1, "q1", [bad]))
    assert await everything(store, "t") == before
    assert (await hand.end("t")).status == "completed"


async def test_what_is_handed_out_is_the_callers_own(store: TaskStore, hand: Hand) -> None:
    """Changing an answer, or what was given, changes nothing in the store."""
    given: dict[str, Any] = {"list": [1]}
    records: list[TaskRecord | None] = [await hand.start("t", args=given, metadata=given)]
    value = {"deep": [1]}
    records.append(await hand.checkpoint("t", value))
    records.append(await hand.end("t", Success(value)))
    before = attrs.asdict((await store.list_owner("ann")).records[0])
    assert before["args"] == {"list": [1]}
    given["list"].append(2)
    value["deep"].append(2)
    records += (await store.list_owner("ann")).records
    records += [await store.load("t"), await store.load("t")]
    for record in records:
        assert record is not None
        record.args["new"] = 1
        record.metadata["new"] = 1
        if record.result:
            record.result["deep"].append(3)
        if record.checkpoint:
            record.checkpoint["deep"].append(3)
    for notice in await store.notices("ann"):
        notice.summary.result["deep"].append(4)
        notice.summary.metadata["new"] = 1
    assert attrs.asdict((await store.list_owner("ann")).records[0]) == before
    (notice,) = await store.notices("ann")
    assert (notice.summary.result, notice.summary.metadata) == ({"deep": [1]}, {"list": [1]})


# ---- questions -----------------------------------------------------------------------------------


async def test_questions_are_stored(store: TaskStore, hand: Hand) -> None:
    """Each comes back with its schema and answer as they were, whatever characters and numbers."""
    await hand.start("t", supports_resume=True)
    run = (5, hand.executor_id, 1)
    asked = await hand.apply("t", QuestionAsked(*run, WEIRD["text"], WEIRD))
    assert asked.questions == (Question("q1", WEIRD["text"], WEIRD, 5),)
    answered = await hand.apply("t", QuestionAnswered(6, "q1", WEIRD))
    assert answered.questions == (Question("q1", WEIRD["text"], WEIRD, 5, "answered", WEIRD),)
    more = await hand.apply("t", QuestionAsked(*run, "Why?", {"const": -0.0}, delivered=("q1",)))
    loaded = await store.load("t")
    assert loaded == more
    assert repr(loaded) == repr(more)  # -0.0, too
    assert (more.open_questions, more.questions_asked) == (more.questions[1:], 2)
    (listed,) = (await store.list_owner("ann")).records
    assert listed.summary().questions == (Question("q2", "Why?", {"const": -0.0}, 5),)
    stopped = await hand.end("t", Stopped("later"))
    assert stopped == await store.load("t")
    assert stopped.questions == answered.questions
    (notice,) = await store.notices("ann")
    assert notice.summary.questions == ()
    again = await hand.apply("t", AttemptStarted(7, hand.executor_id, "ann", "shell", 1, {}))
    assert again == await store.load("t")
    same = QuestionAsked(8, hand.executor_id, 2, WEIRD["text"], WEIRD)
    assert await hand.apply("t", same) == again
    kinds = [(entry.kind, entry.detail) for entry in await store.history("t")]
    assert kinds == [
        ("registered", None),
        ("question_asked", "q1"),
        ("question_answered", "q1"),
        ("question_asked", "q2"),
        ("finished", "later"),
        ("attempt_started", None),
    ]


async def test_withdrawn_declined_and_used_questions(store: TaskStore, hand: Hand) -> None:
    """What nobody needs is gone, and its id is not used again; who declined is not asked again."""
    await hand.start("t")
    run = (5, hand.executor_id, 1)
    await hand.apply("t", QuestionAsked(*run, "Why?", {}))
    assert (await hand.apply("t", QuestionsWithdrawn(*run))).questions == ()
    with pytest.raises(QuestionClosed, match="there is no such question now"):
        await hand.apply("t", QuestionAnswered(6, "q1", 1))
    await hand.apply("t", QuestionAsked(*run, "Why?", {}))
    declined = await hand.apply("t", QuestionAnswered(6, "q2", declined=True))
    assert declined.questions == (Question("q2", "Why?", {}, 5, "declined"),)
    with pytest.raises(QuestionClosed, match="it was declined"):
        await hand.apply("t", QuestionAnswered(6, "q2", 1))
    saved = await hand.apply("t", CheckpointSaved(*run, "used", ("q2",)))
    assert saved == await store.load("t")
    assert (saved.questions, saved.questions_asked) == ((), 2)
    await hand.apply("t", QuestionAsked(*run, "Why?", {}))
    assert [entry.detail for entry in await store.history("t")] == [None, "q1", "q2", "q2", "q3"]
    await hand.cancel("t")
    with pytest.raises(QuestionClosed, match="cancellation was accepted"):
        await hand.apply("t", QuestionAnswered(6, "q3", 1))


async def test_the_questions_handed_out_are_the_callers_own(store: TaskStore, hand: Hand) -> None:
    """Changing what was asked or answered, or what a record shows, changes nothing in the store."""
    await hand.start("t")
    schema: dict[str, Any] = {"enum": [1]}
    answer: dict[str, Any] = {"deep": [1]}
    records = [await hand.apply("t", QuestionAsked(5, hand.executor_id, 1, "Sure?", schema))]
    records.append(await hand.apply("t", QuestionAnswered(6, "q1", answer)))
    schema["enum"].append(2)
    answer["deep"].append(2)
    records += (await store.list_owner("ann")).records
    for record in records:
        for question in record.questions:
            question.schema["enum"] = "changed"
            if question.answer is not None:
                question.answer["deep"] = "changed"
    loaded = await store.load("t")
    assert loaded is not None
    expected = Question("q1", "Sure?", {"enum": [1]}, 5, "answered", {"deep": [1]})
    assert loaded.questions == (expected,)


# ---- starting ------------------------------------------------------------------------------------


async def test_ids_are_never_used_twice(store: TaskStore, hand: Hand) -> None:
    """An id is taken, whoever asks, also after its task was collected."""
    await hand.start("t")
    with pytest.raises(TaskExists, match="running"):
        await hand.start("t", owner="bob")
    await hand.end("t")
    with pytest.raises(TaskExists, match="completed"):
        await hand.start("t")
    assert await store.collect(None, ended_before_ms=10**9) == ["t"]
    with pytest.raises(TaskExists, match="collected"):
        await hand.start("t")
    assert await store.load("t") is None


async def test_an_owners_key_starts_one_task_for_ever(store: TaskStore, hand: Hand) -> None:
    """A used key names the task that it started, also a collected one; it is its owner's alone."""
    first = await hand.start("a", idempotency_key="k")
    other = await hand.start("b", owner="bob", idempotency_key="k")
    for task_id in ("a", "c"):
        with pytest.raises(IdempotencyKeyUsed) as refused:
            await hand.start(task_id, idempotency_key="k")
        assert refused.value.task_id == "a"
    assert await store.load_by_key("ann", "k") == first
    assert await store.load_by_key("bob", "k") == other
    await hand.end("a")
    await store.collect("ann", ended_before_ms=10**9)
    assert await store.load_by_key("ann", "k") is None
    with pytest.raises(IdempotencyKeyUsed):
        await hand.start("d", idempotency_key="k")
    await hand.start("e", idempotency_key="K")
    await hand.start("f")
    await hand.start("g")


async def test_no_child_starts_under_an_accepted_cancel(store: TaskStore, hand: Hand) -> None:
    """A marked or cancelled parent refuses children; an absent, running or failed one does not."""
    for parent in ("marked", "ended", "running", "failed"):
        await hand.start(parent)
    await hand.cancel("marked")
    await hand.end("ended", Cancelled())
    await hand.end("failed", Failed("x"))
    for parent in ("marked", "ended"):
        with pytest.raises(ParentCancelled):
            await hand.start("child", parent_task_id=parent)
    for parent in ("absent", "running", "failed", "own"):
        await hand.start(f"child of {parent}", parent_task_id=parent)
    await hand.start("own", parent_task_id="own")


# ---- lists ---------------------------------------------------------------------------------------


async def ids(pages: Any, limit: int) -> list[str]:
    """Read page by page with a function of after and limit."""
    found: list[str] = []
    after: int | None = 0
    while after is not None:
        page = await pages(after=after, limit=limit)
        assert len(page.records) <= limit
        assert [r.seq for r in page.records] == sorted(r.seq for r in page.records)
        found += [record.task_id for record in page.records]
        after = page.next_after
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 100])
async def test_pages_show_everything_once_in_order_of_creation(
    store: TaskStore, hand: Hand, limit: int
) -> None:
    """Pages of any size cover an owner's records, or a parent's, whatever their ids and clocks."""
    names = ["m", "z", "a", "q", "b"]
    for i, name in enumerate(names):
        await hand.start(
            name, parent_task_id="p", owner="ann", task_type="odd" if i % 2 else "even"
        )
        await hand.start(f"foreign {name}", owner="bob", parent_task_id="p")
    for name in ("z", "b"):
        await hand.end(name)

    def of_ann(**filters: Any) -> Any:
        async def pages(*, after: int, limit: int) -> RecordPage:
            return await store.list_owner("ann", after=after, limit=limit, **filters)

        return pages

    def of_parent(*, after: int, limit: int) -> Any:
        return store.children("p", after=after, limit=limit)

    assert await ids(of_ann(), limit) == names
    assert await ids(of_ann(status=TaskStatus.RUNNING), limit) == ["m", "a", "q"]
    assert await ids(of_ann(status=TaskStatus.COMPLETED), limit) == ["z", "b"]
    assert await ids(of_ann(status=TaskStatus.FAILED), limit) == []
    assert await ids(of_ann(task_type="odd"), limit) == ["z", "q"]
    assert await ids(of_ann(task_type="odd", status=TaskStatus.RUNNING), limit) == ["q"]
    assert await ids(of_parent, limit) == [n for name in names for n in (name, f"foreign {name}")]


async def test_no_empty_last_page(store: TaskStore, hand: Hand) -> None:
    """A page that shows the rest says so."""
    for name in "abcd":
        await hand.start(name)
    page = await store.list_owner("ann", limit=2)
    assert page.next_after is not None
    assert page.next_after == page.records[-1].seq
    page = await store.list_owner("ann", limit=2, after=page.next_after)
    assert page.next_after is None


async def test_a_sequence_number_is_never_given_again(store: TaskStore, hand: Hand) -> None:
    """A reader between two pages misses nothing when the newest record is collected."""
    await hand.start("a")
    newest = await hand.end("a")
    await store.collect(None, ended_before_ms=10**9)
    assert (await hand.start("b")).seq > newest.seq


async def test_owners_are_listed_in_pages(store: TaskStore, hand: Hand) -> None:
    """Owners that have records, each once, in order; after an id; those without are gone."""
    for i, owner in enumerate(["b", "a", "ü", "b", "c", "A"]):
        await hand.start(f"t{i}", owner=owner)
    assert await store.owners() == ["A", "a", "b", "c", "ü"]
    assert await store.owners(limit=2) == ["A", "a"]
    assert await store.owners(after="a", limit=2) == ["b", "c"]
    assert await store.owners(after="ü") == []
    await hand.end("t4")
    await store.collect("c", ended_before_ms=10**9)
    assert await store.owners() == ["A", "a", "b", "ü"]


# ---- journal -------------------------------------------------------------------------------------


async def test_the_journal_has_status_changes_and_cancels_only(
    store: TaskStore, hand: Hand
) -> None:
    """It says who did what, when, in which attempt, and what that led to; oldest first."""
    await hand.start("t", supports_resume=True)
    await hand.checkpoint("t", 1)
    await hand.write("t", 0, "x")
    await hand.end("t", Stopped("pause"))
    await hand.apply("t", AttemptStarted(2000, hand.executor_id, "ann", "shell", 1, {}))
    await hand.cancel("t")
    await hand.cancel("t")
    await hand.end("t", Failed("so"), attempt=2)
    me = hand.executor_id
    journal = await store.history("t")
    assert [(e.kind, e.attempt, e.status, e.executor_id, e.detail) for e in journal] == [
        ("registered", 1, "running", me, None),
        ("finished", 1, "stopped", me, "pause"),
        ("attempt_started", 2, "running", me, None),
        ("cancel_requested", 2, "running", None, None),
        ("finished", 2, "cancelled", me, "so"),
    ]
    assert [e.at_ms for e in journal] == [1000, 1003, 2000, 1004, 1006]
    assert all(isinstance(e.status, TaskStatus) for e in journal)


# ---- output --------------------------------------------------------------------------------------


async def test_a_repeated_append_changes_nothing(store: TaskStore, hand: Hand) -> None:
    """Output is placed by its offset: doubled, overlapping and late appends show no byte twice."""
    await hand.start("t")
    for offset, text in [(0, "héllo"), (0, "héllo"), (3, "llo wor"), (0, "h"), (10, "ld")]:
        await hand.write("t", offset, text)
    page = await store.read_output("t", offset=0, limit=100)
    assert (page.text, page.total_bytes, page.dropped_bytes) == ("héllo world", 12, 0)
    await hand.end("t", output="ld!", output_offset=10)
    assert (await store.read_output("t", offset=0, limit=100)).text == "héllo world!"


async def test_a_gap_counts_as_dropped(store: TaskStore, hand: Hand) -> None:
    """What never arrived is counted, and a page does not join what it separates."""
    await hand.start("t")
    await hand.write("t", 0, "abc")
    await hand.write("t", 10, "xyz")
    first = await store.read_output("t", offset=0, limit=100)
    assert (first.text, first.next_offset, first.dropped_bytes) == ("abc", 3, 7)
    second = await store.read_output("t", offset=3, limit=100)
    assert (second.text, second.offset, second.next_offset) == ("xyz", 10, 13)


@pytest.mark.parametrize("limit", [1, 4, 7, 1000])
async def test_pages_of_output_end_between_characters(
    store: TaskStore, hand: Hand, limit: int
) -> None:
    """Reading on at the next offset shows the whole text once, at any page size."""
    text = "aé€🎈\n" * 20
    await hand.start("t")
    for i in range(0, len(text), 7):
        await hand.write("t", len(text[:i].encode()), text[i : i + 7])
    seen, offset = "", 0
    while offset < len(text.encode()):
        page = await store.read_output("t", offset=offset, limit=limit)
        assert page.offset == offset < page.next_offset
        seen, offset = seen + page.text, page.next_offset
    assert seen == text
    assert (await store.read_output("t", offset=offset, limit=limit)).text == ""
    tail = await store.read_output("t", offset=-6, limit=1000)
    assert tail.text == "🎈\n"
    assert (await store.read_output("t", offset=-10_000, limit=10_000)).text == text
    assert (await store.read_output("t", offset=10_000, limit=10)).next_offset == offset


async def test_the_newest_output_is_kept(store: TaskStore, hand: Hand) -> None:
    """Over the cap the oldest goes and is counted; what is kept is never more than the cap."""
    await hand.start("t")
    text = "".join(f"{i:04}\n" for i in range(400))
    at = 0
    page = await store.read_output("t", offset=0, limit=10_000)
    while at < len(text):
        await hand.write("t", at, text[at : at + 37], keep_bytes=500)
        at += 37
        page = await store.read_output("t", offset=0, limit=10_000)
        assert page.total_bytes - page.dropped_bytes <= 500
        assert text[:at].endswith(page.text)
        assert page.offset == page.dropped_bytes
    assert page.total_bytes == len(text)
    assert len(page.text) > 500 - 500 // 4 - 37
    await hand.write("t", len(text), "é" * 1000, keep_bytes=500)
    page = await store.read_output("t", offset=0, limit=10_000)
    assert set(page.text) == {"é"}
    assert page.total_bytes == len(text) + 2000
    assert 375 <= page.total_bytes - page.dropped_bytes <= 500


async def test_output_continues_over_attempts_and_goes_with_the_task(
    store: TaskStore, hand: Hand
) -> None:
    """The log is the task's, not the attempt's; a collected task has none."""
    await hand.start("t", supports_resume=True)
    await hand.end("t", Stopped(), output="one ")
    await hand.apply("t", AttemptStarted(1, hand.executor_id, "ann", "shell", 1, {}))
    await hand.end("t", output="two", output_offset=4, attempt=2)
    assert (await store.read_output("t", offset=0, limit=100)).text == "one two"
    await store.collect(None, ended_before_ms=10**9)
    page = await store.read_output("t", offset=0, limit=100)
    assert (page.text, page.total_bytes) == ("", 0)
    assert await store.history("t") == []


# ---- notices -------------------------------------------------------------------------------------


async def test_every_ended_attempt_is_announced_until_acknowledged(
    store: TaskStore, hand: Hand
) -> None:
    """A notice shows its attempt as it ended, and goes when acknowledged: that one, no other."""
    await hand.start("a", supports_resume=True)
    await hand.end("a", Stopped("first"))
    await hand.apply("a", AttemptStarted(1, hand.executor_id, "ann", "shell", 1, {}))
    await hand.end("a", Failed("second", value={"x": [1]}), attempt=2)
    await hand.start("b", background=False)
    await hand.end("b")
    await hand.start("quiet")
    await hand.end("quiet", announce=False)
    await hand.start("foreign", owner="bob")
    await hand.end("foreign")
    seen = await store.notices("ann")
    assert [(n.summary.task_id, n.summary.attempt, n.summary.error) for n in seen] == [
        ("a", 1, "first"),
        ("a", 2, "second"),
        ("b", 1, None),
    ]
    assert [n.background for n in seen] == [True, True, False]
    ended = await store.load("a")
    assert ended is not None
    assert seen[1].summary == ended.summary()
    assert await store.notices("ann", limit=2) == seen[:2]
    assert await store.notices("ann", background_only=True) == seen[:2]
    await store.acknowledge("bob", [n.notice_id for n in seen])
    assert await store.notices("ann") == seen
    await store.acknowledge("ann", [seen[1].notice_id, seen[1].notice_id, 10**6])
    assert await store.notices("ann") == [seen[0], seen[2]]
    await store.acknowledge("ann", [])
    await store.acknowledge("ann", [n.notice_id for n in seen])
    assert await store.notices("ann") == []
    assert len(await store.notices("bob")) == 1


async def test_notices_of_foreground_attempts_hide_no_other(store: TaskStore, hand: Hand) -> None:
    """``limit`` counts what was asked for, not what was passed over."""
    for n in range(3):
        await hand.start(f"f{n}", background=False)
        await hand.end(f"f{n}")
        await hand.start(f"b{n}")
        await hand.end(f"b{n}")
    seen = await store.notices("ann", background_only=True, limit=2)
    assert [n.summary.task_id for n in seen] == ["b0", "b1"]


async def test_notices_survive_collection_and_never_reuse_a_number(
    store: TaskStore, hand: Hand
) -> None:
    """A late second acknowledgement cannot delete a notice that nobody has seen."""
    await hand.start("a")
    await hand.end("a")
    await store.collect(None, ended_before_ms=10**9)
    (seen,) = await store.notices("ann")
    assert seen.summary.task_id == "a"
    await store.acknowledge("ann", [seen.notice_id])
    await hand.start("b")
    await hand.end("b")
    await store.acknowledge("ann", [seen.notice_id])
    assert [n.summary.task_id for n in await store.notices("ann")] == ["b"]


# ---- collection ----------------------------------------------------------------------------------


async def test_collect_takes_what_has_ended_and_nothing_else(store: TaskStore, hand: Hand) -> None:
    """Exactly the records that `has_ended` calls so go, in every status, resumable or not."""
    for outcome in (Success(), Failed("x"), Cancelled(), Stopped()):
        for resumable in (True, False):
            name = f"{outcome.status} {resumable}"
            await hand.start(name, supports_resume=resumable)
            await hand.end(name, outcome)
    await hand.start("running")
    records = (await store.list_owner("ann")).records
    ended = {record.task_id for record in records if record.has_ended}
    assert set(await store.collect("ann", ended_before_ms=10**9)) == ended
    left = {record.task_id for record in (await store.list_owner("ann")).records}
    assert left == {"running", "stopped True"}
    assert await store.collect("ann", ended_before_ms=10**9) == []


async def test_collect_is_bounded_by_owner_time_and_limit(store: TaskStore, hand: Hand) -> None:
    """The time is inclusive, other owners are left alone, and calling again finds the rest."""
    ends: dict[str, int] = {}
    for owner in ("ann", "bob"):
        for i in range(3):
            await hand.start(f"{owner}{i}", owner=owner)
            ends[f"{owner}{i}"] = (await hand.end(f"{owner}{i}")).completed_at_ms or 0
    assert await store.collect("bob", ended_before_ms=ends["ann2"]) == []
    assert await store.collect("ann", ended_before_ms=ends["ann0"] - 1) == []
    assert await store.collect("ann", ended_before_ms=ends["ann0"]) == ["ann0"]
    assert len(await store.collect(None, ended_before_ms=10**9, limit=3)) == 3
    assert len(await store.collect(None, ended_before_ms=10**9, limit=3)) == 2
    assert await store.owners() == []


async def test_collect_keeps_the_ancestors_of_what_runs(store: TaskStore, hand: Hand) -> None:
    """C25: whoever owns them, and also when parents form a circle."""
    await hand.start("root", owner="bob")
    await hand.start("middle", parent_task_id="root")
    await hand.start("leaf", parent_task_id="middle", owner="eve")
    await hand.start("side", parent_task_id="root")
    await hand.start("x", parent_task_id="y")
    await hand.start("y", parent_task_id="x")
    for name in ("root", "middle", "side", "x"):
        await hand.end(name)
    assert await store.collect(None, ended_before_ms=10**9) == ["side"]
    await hand.end("leaf")
    await hand.end("y")
    assert set(await store.collect(None, ended_before_ms=10**9)) == {
        "root",
        "middle",
        "leaf",
        "x",
        "y",
    }


# ---- executors -----------------------------------------------------------------------------------


async def test_only_a_registered_executor_may_write(store: TaskStore) -> None:
    """Before and after its time an executor is fenced; every incarnation has a fresh id."""
    with pytest.raises(ExecutorFenced):
        await Hand(store, "nobody").start("t")
    async with store.executor(LeaseTerms()) as first:
        hand = Hand(store, first.executor_id)
        await hand.start("t", supports_resume=True)
        await hand.start("u", supports_resume=True)
        await hand.end("u", Stopped())
        assert not first.lost.is_set()
    for event in (
        Finished(1, first.executor_id, 1, Success()),
        CheckpointSaved(1, first.executor_id, 1, 0),
    ):
        with pytest.raises(ExecutorFenced):
            await store.apply("t", event)
    with pytest.raises(ExecutorFenced):
        await hand.start("new")
    with pytest.raises(ExecutorFenced):
        await store.apply("u", AttemptStarted(1, first.executor_id, "ann", "shell", 1, {}))
    async with store.executor(LeaseTerms()) as second:
        assert second.executor_id != first.executor_id
        with pytest.raises(StaleAttempt):
            await Hand(store, second.executor_id).end("t")


class Boom(Exception):
    """The block's own."""


async def test_the_blocks_exception_leaves_executor_as_raised(store: TaskStore) -> None:
    """The very object, not in a group; a group of the block's own is not unwrapped."""
    for error in (Boom(), ExceptionGroup("two", [Boom(), ValueError()])):
        with pytest.raises((Boom, ExceptionGroup)) as caught:
            async with store.executor(LeaseTerms()):
                raise error
        assert caught.value is error
        assert error.__cause__ is None


async def test_a_cancelled_block_leaves_executor_retired(store: TaskStore) -> None:
    """A cancellation passes through, after the executor was fenced."""
    ids: list[str] = []
    with trio.CancelScope() as scope:
        async with store.executor(LeaseTerms()) as executor:
            ids.append(executor.executor_id)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(ExecutorFenced):
        await Hand(store, ids[0]).start("t")


async def test_a_sweep_leaves_the_living_alone(store: TaskStore, hand: Hand) -> None:
    """It ends nothing of live executors, and tells the sweeper what runs under its own id."""
    await hand.start("t")
    await hand.start("u")
    await hand.end("u")
    async with store.executor(LeaseTerms()) as other:
        for sweeper in (hand.executor_id, other.executor_id):
            report = await store.sweep(sweeper, 1)
            assert (list(report.fenced), list(report.ended)) == ([], [])
            own = [("t", 1)] if sweeper == hand.executor_id else []
            assert list(report.own_running) == own
        report = await store.sweep(other.executor_id, 1, suspect=hand.executor_id)
        assert (list(report.ended), list(report.own_running)) == ([], [])
    with pytest.raises(ExecutorAlive):
        await store.apply("t", Orphaned(1, hand.executor_id, 1))
    assert (await hand.end("t")).status == "completed"


async def left_behind(store: TaskStore, names: Sequence[str]) -> str:
    """Return an executor that has gone and left these tasks running; "marked" is cancelled."""
    async with store.executor(LeaseTerms()) as executor:
        hand = Hand(store, executor.executor_id)
        for name in names:
            await hand.start(name, supports_resume=True, owner=f"owner of {name}")
        if "marked" in names:
            await hand.cancel("marked")
    return executor.executor_id


async def test_a_sweep_ends_the_tasks_of_the_dead(store: TaskStore, hand: Hand) -> None:
    """Stopped, or cancelled if a cancel was accepted; journaled, announced; once."""
    names = ["marked", *(f"t{i}" for i in range(250))]
    gone = await left_behind(store, names)
    report = await store.sweep(hand.executor_id, 9999)
    assert sorted(report.ended) == sorted((n, f"owner of {n}") for n in names)
    assert list(report.corrupt) == []
    record = await store.load("t7")
    assert record is not None
    assert (record.status, record.error, record.executor_id) == ("stopped", ORPHAN_ERROR, None)
    assert record.completed_at_ms == 9999
    (notice,) = await store.notices("owner of t7")
    assert notice.summary == record.summary()
    last = (await store.history("t7"))[-1]
    assert (last.kind, last.executor_id, last.at_ms) == ("orphaned", gone, 9999)
    marked = await store.load("marked")
    assert marked is not None
    assert (marked.status, marked.error) == ("cancelled", ORPHAN_ERROR)
    again = await store.sweep(hand.executor_id, 10_000)
    assert (list(again.fenced), list(again.ended)) == ([], [])
    resumed = AttemptStarted(1, hand.executor_id, "owner of t7", "shell", 1, {})
    assert (await hand.apply("t7", resumed)).attempt == 2


async def test_a_sweep_of_one_suspect_ends_its_tasks_only(store: TaskStore, hand: Hand) -> None:
    """Other dead executors wait for a full sweep."""
    one, two = await left_behind(store, ["one"]), await left_behind(store, ["two"])
    report = await store.sweep(hand.executor_id, 1, suspect=one)
    assert list(report.ended) == [("one", "owner of one")]
    report = await store.sweep(hand.executor_id, 1, suspect="never heard of")
    assert list(report.ended) == []
    report = await store.sweep(hand.executor_id, 1)
    assert list(report.ended) == [("two", "owner of two")]
    for executor_id in (one, two):
        with pytest.raises(ExecutorFenced):
            await Hand(store, executor_id).start("new")


async def test_cancel_marks_are_those_of_one_executors_running_tasks(
    store: TaskStore, hand: Hand
) -> None:
    """Level-triggered: as long as the marked task runs."""
    async with store.executor(LeaseTerms()) as other:
        for name in "abc":
            await hand.start(name)
        await Hand(store, other.executor_id).start("foreign")
        for name in ("a", "c", "foreign"):
            await hand.cancel(name)
        assert sorted(await store.cancel_marks(hand.executor_id)) == ["a", "c"]
        assert sorted(await store.cancel_marks(hand.executor_id)) == ["a", "c"]
        await hand.end("a")
        assert await store.cancel_marks(hand.executor_id) == ["c"]
        assert await store.cancel_marks(other.executor_id) == ["foreign"]
        assert await store.cancel_marks("nobody") == []
