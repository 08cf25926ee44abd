"""A body asks; whoever may answers, once; the answer is given to whoever asked, once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    OWNER,
    CheckpointingStore,
    Fault,
    FaultyStore,
    StallingStore,
    assert_idle,
    cancelled_at,
    ended,
    opened,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    CorruptRecord,
    InvalidAnswer,
    MemoryTaskStore,
    Question,
    QuestionAnswered,
    QuestionClosed,
    QuestionDeclined,
    SqliteTaskStore,
    StaleAttempt,
    Stopped,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    TaskStatus,
    UnknownTask,
)
from trio_bgtasks._asking import MAX_QUESTIONS

YES_NO: dict[str, Any] = {"type": "boolean"}
Step = Callable[[BackgroundExecution], Awaitable[Any]]


@attrs.define(eq=False)
class Script:
    """A body that takes its steps in turn and notes what each returned."""

    steps: list[Step]
    result: TaskResult | None = None
    seen: list[Any] = attrs.field(factory=list[Any])

    async def __call__(self, execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        for step in self.steps:
            self.seen.append(await step(execution))
        return Success(self.seen) if self.result is None else self.result


def ask(message: str = "Sure?", schema: Any = YES_NO) -> Step:
    """Return a step that asks."""
    return lambda execution: execution.ask(message, schema)


async def blocked_for_good(_: BackgroundExecution) -> None:
    """Be a step that never ends."""
    await trio.sleep_forever()


async def after_a_while(_: BackgroundExecution) -> None:
    """Be a step that takes five seconds."""
    await trio.sleep(5)


async def questions(manager: BackgroundTaskManager, task_id: str = "t") -> dict[str, str]:
    """Return the open questions of a task: id and words."""
    await trio.testing.wait_all_tasks_blocked()
    summary = await manager.get(OWNER, task_id)
    assert summary is not None
    return {question.question_id: question.message for question in summary.questions}


async def test_an_answer_is_given_to_who_asked(autojump_clock: trio.testing.MockClock) -> None:
    """It is the question that is seen, and the answer that was accepted, within no time."""
    async with opened() as manager:
        body = Script([ask()])
        await manager.start(request(task_id="t"), body)
        await trio.testing.wait_all_tasks_blocked()
        summary = await manager.get(OWNER, "t")
        assert summary is not None
        (question,) = summary.questions
        assert question == Question("q1", "Sure?", YES_NO, question.asked_at_ms)
        assert summary.status is TaskStatus.RUNNING
        assert summary.to_json()["questions"] == [
            {
                "question_id": "q1",
                "message": "Sure?",
                "schema": YES_NO,
                "asked_at_ms": question.asked_at_ms,
            }
        ]
        before = trio.current_time()
        answered = await manager.answer(OWNER, "t", "q1", value=True)
        assert (answered.status, answered.questions) == (TaskStatus.RUNNING, ())
        assert (await ended(manager, summary)).result == [True]
        assert trio.current_time() == before
        assert [entry.kind for entry in await manager.history(OWNER, "t")] == [
            "registered",
            "question_asked",
            "question_answered",
            "finished",
        ]
        assert {entry.detail for entry in await manager.history(OWNER, "t")} == {None, "q1"}
        assert_idle(manager)


async def test_declined(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever asked is told that the answer was declined; that is an answer, too."""
    told = trio.Event()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with pytest.raises(QuestionDeclined, match=r"^the answer was declined: Sure\?$") as found:
            await execution.ask("Sure?", YES_NO)
        await told.wait()
        return Success(found.value.message)

    async with opened() as manager:
        summary = await manager.start(request(task_id="t"), body)
        assert await questions(manager) == {"q1": "Sure?"}
        await manager.decline(OWNER, "t", "q1")
        with pytest.raises(QuestionClosed, match="it was declined"):
            await manager.answer(OWNER, "t", "q1", value=True)
        told.set()
        assert (await ended(manager, summary)).result == "Sure?"
        kinds = [entry.kind for entry in await manager.history(OWNER, "t")]
        assert kinds[2] == "question_declined"


async def test_only_one_answer_is_accepted(autojump_clock: trio.testing.MockClock) -> None:
    """The first; who comes later, or with what does not fit, is told, and nothing is changed."""
    async with opened() as manager:
        body = Script([ask(), blocked_for_good])
        await manager.start(request(task_id="t"), body)
        await questions(manager)
        for owner, task_id in ((OTHER, "t"), (OWNER, "unknown")):
            with pytest.raises(UnknownTask, match=f"^Unknown task_id: {task_id}$"):
                await manager.answer(owner, task_id, "q1", value=True)
        with pytest.raises(InvalidAnswer, match="answer to question 'q1' does not fit: \\$: 1 is"):
            await manager.answer(OWNER, "t", "q1", 1)
        with pytest.raises(QuestionClosed, match="no such question"):
            await manager.answer(OWNER, "t", "q2", value=True)
        assert await questions(manager) == {"q1": "Sure?"}
        accepted: list[bool] = []

        async def answer(value: bool) -> None:  # noqa: FBT001
            try:
                await manager.answer(OWNER, "t", "q1", value)
            except QuestionClosed as refusal:
                assert refusal.reason == "it was answered"  # noqa: PT017
            else:
                accepted.append(value)

        async with trio.open_nursery() as nursery:
            for value in (True, False):
                nursery.start_soon(answer, value)
        await trio.testing.wait_all_tasks_blocked()
        assert len(accepted) == 1
        assert body.seen == accepted


async def test_several_questions_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """Each of the same words, too, is one of its own, and gets its own answer."""

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        answers: dict[str, list[int]] = {"a": [], "b": []}

        async def one(message: str) -> None:
            answers[message].append(await execution.ask(message, {"type": "integer"}))

        async with trio.open_nursery() as nursery:
            for message in ("a", "b", "a"):
                nursery.start_soon(one, message)
        return Success(answers)

    async with opened() as manager:
        summary = await manager.start(request(task_id="t"), body)
        found = await questions(manager)
        assert sorted(found.values()) == ["a", "a", "b"]
        for number, question_id in enumerate(sorted(found, key=found.__getitem__)):
            await manager.answer(OWNER, "t", question_id, number)
            assert len(await questions(manager)) == 2 - number
        result = (await ended(manager, summary)).result
        assert {name: sorted(values) for name, values in result.items()} == {"a": [0, 1], "b": [2]}


async def test_who_does_not_wait_any_more_asks_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A question that was left is withdrawn: it is not shown, and cannot be answered."""

    async def for_a_minute(execution: BackgroundExecution) -> str:
        with trio.move_on_after(60):
            await execution.ask("Sure?", YES_NO)
        return "left"

    async with opened() as manager:
        body = Script([for_a_minute, ask("Why?", {}), blocked_for_good])
        await manager.start(request(task_id="t"), body)
        assert await questions(manager) == {"q1": "Sure?"}
        await trio.sleep(61)
        assert await questions(manager) == {"q2": "Why?"}
        with pytest.raises(QuestionClosed, match="no such question"):
            await manager.answer(OWNER, "t", "q1", value=True)
        await manager.answer(OWNER, "t", "q2", None)
        await trio.testing.wait_all_tasks_blocked()
        assert body.seen == ["left", None]


async def test_an_answer_that_came_too_late_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Accepted just when the body stopped waiting, it goes to the next call that asks the same."""
    store = FaultyStore()

    async def with_a_bound(execution: BackgroundExecution) -> str:
        with trio.move_on_after(60):
            await execution.ask("Sure?", YES_NO)
        return "left"

    async with opened(store) as manager:
        body = Script([with_a_bound, ask("Sure?", {"type": "string"}), ask()])
        summary = await manager.start(request(task_id="t"), body)
        await questions(manager)
        await trio.sleep(59.5)
        # As another process does it: nobody is woken, and the next poll comes too late.
        await store.inner.apply("t", QuestionAnswered(0, "q1", answer=True))
        await trio.sleep(1)
        assert await questions(manager) == {"q2": "Sure?"}  # of another schema: not the same
        await manager.answer(OWNER, "t", "q2", "text")
        assert (await ended(manager, summary)).result == ["left", "text", True]


@pytest.mark.parametrize("supports_resume", [True, False])
async def test_an_answer_from_another_process_is_seen(
    autojump_clock: trio.testing.MockClock, *, supports_resume: bool
) -> None:
    """Within the time of a poll, also when the store cannot be read in between."""
    store = FaultyStore()
    async with opened(store) as manager, opened(store) as other:
        body = Script([ask()])
        asked = request(task_id="t", supports_resume=supports_resume)
        summary = await manager.start(asked, body)
        await questions(manager)
        await other.answer(OWNER, "t", "q1", value=False)
        store.break_down("load", last=1)
        assert (await ended(manager, summary)).result == [False]
        assert trio.current_time() <= 5


async def test_nobody_is_asked_twice(autojump_clock: trio.testing.MockClock) -> None:
    """Answered before the machine went down: the attempt that resumes gets the answer at once.

    In the order in which it was given; what was not answered is asked again, under another id.
    """
    store = MemoryTaskStore()
    async with opened(StallingStore(store)) as first, opened(store) as second:
        told = request(task_id="t", supports_resume=True)
        body = Script([ask(), ask(), ask(), blocked_for_good])
        await first.start(told, body)
        for question_id, value in (("q1", True), ("q2", False)):
            assert list(await questions(first)) == [question_id]
            await second.answer(OWNER, "t", question_id, value)
            await trio.sleep(3)  # by then it was polled
        assert body.seen == [True, False]
        assert list(await questions(first)) == ["q3"]
        with trio.fail_after(60):
            stopped = await second.wait(OWNER, "t")
        assert (stopped.status, stopped.questions) == (TaskStatus.STOPPED, ())
        with pytest.raises(TaskNotRunning):
            await second.answer(OWNER, "t", "q3", value=True)
        again = Script([ask(), ask("Other?"), ask(), ask()])
        summary = await second.start(attrs.evolve(told, resume_attempt=1), again)
        await trio.testing.wait_all_tasks_blocked()
        assert again.seen == [True]
        await second.answer(OWNER, "t", "q4", value=True)
        await trio.testing.wait_all_tasks_blocked()
        assert again.seen == [True, True, False]
        assert await questions(second) == {"q5": "Sure?"}
        await second.answer(OWNER, "t", "q5", value=True)
        assert (await ended(second, summary)).result == [True, True, False, True]


async def test_what_a_checkpoint_holds_is_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An answer that the body had before its checkpoint is used; one that came later is not."""
    async with opened() as manager:
        asked = request(task_id="t", supports_resume=True)
        save: Step = lambda execution: execution.save_checkpoint("saved")  # noqa: E731
        body = Script([save, ask("a"), ask("b"), save, ask("c"), ask("a")], Stopped("enough"))
        await manager.start(asked, body)
        for number in range(1, 5):
            assert list(await questions(manager)) == [f"q{number}"]
            await manager.answer(OWNER, "t", f"q{number}", value=number % 2 == 0)
        await manager.wait(OWNER, "t")
        record = await manager.record(OWNER, "t")
        assert record is not None
        assert [q.question_id for q in record.questions] == ["q3", "q4"]
        again = Script([ask("b"), ask("c"), ask("a"), blocked_for_good])
        await manager.start(attrs.evolve(asked, resume_attempt=1), again)
        assert await questions(manager) == {"q5": "b"}
        await manager.answer(OWNER, "t", "q5", value=True)
        await trio.testing.wait_all_tasks_blocked()
        assert again.seen == [True, False, True]


@pytest.mark.parametrize("steps", range(8))
async def test_a_checkpoint_holds_what_was_answered_before_it(
    autojump_clock: trio.testing.MockClock, steps: int
) -> None:
    """An answer that comes while a checkpoint is saved is in the checkpoint, or still in the record."""
    async with opened() as manager:
        asked, answered = trio.Event(), trio.Event()

        async def body(execution: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            answers: list[Any] = []

            async def one() -> None:
                answers.append(await execution.ask("Sure?", YES_NO))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                asked.set()
                await answered.wait()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                await execution.save_checkpoint(answers)
            return Stopped("enough")

        await manager.start(request(task_id="t", supports_resume=True), body)
        await asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        answered.set()
        await manager.answer(OWNER, "t", "q1", value=True)
        await manager.wait(OWNER, "t")
        record = await manager.record(OWNER, "t")
        assert record is not None
        assert bool(record.checkpoint) is not bool(record.questions)


@pytest.mark.parametrize("how", ["cancel", "completed", "stopped"])
async def test_a_task_that_ended_asks_nothing(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Nor does one that is being cancelled; and no such record keeps its questions."""
    shielded = trio.Event()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            await execution.ask("Sure?", YES_NO)
        await shielded.wait()
        return Stopped() if how == "stopped" else Success()

    async with opened() as manager:
        summary = await manager.start(request(task_id="t"), body)
        assert await questions(manager) == {"q1": "Sure?"}
        if how == "cancel":
            await manager.cancel(OWNER, "t")
            assert await questions(manager) == {}
            with pytest.raises(QuestionClosed, match="cancellation was accepted"):
                await manager.answer(OWNER, "t", "q1", value=True)
        shielded.set()
        with trio.fail_after(60):
            await manager.wait(OWNER, "t")
        record = await manager.record(OWNER, "t")
        assert record is not None
        assert (record.questions, record.questions_asked) == ((), 1)
        with pytest.raises(TaskNotRunning):
            await manager.answer(OWNER, "t", summary.task_id, value=True)


async def test_too_many_questions(autojump_clock: trio.testing.MockClock) -> None:
    """A task keeps so many since its last checkpoint; one that cannot resume keeps none."""
    many: list[Step] = [ask()] * MAX_QUESTIONS
    save: Step = lambda execution: execution.save_checkpoint("saved")  # noqa: E731
    store = MemoryTaskStore()
    async with opened(store) as manager:

        async def answer_all(task_id: str) -> None:
            while found := await questions(manager, task_id):
                for question_id in found:
                    await manager.answer(OWNER, task_id, question_id, value=True)

        forgets = await manager.start(request(task_id="t"), Script([*many, ask(), ask()]))
        await answer_all("t")
        assert (await ended(manager, forgets)).status is TaskStatus.COMPLETED
        for task_id, steps in (("saves", [*many, save, ask()]), ("keeps", [*many, ask()])):
            summary = await manager.start(
                request(task_id=task_id, supports_resume=True), Script(steps)
            )
            await answer_all(task_id)
            end = await ended(manager, summary)
            if task_id == "saves":
                assert end.status is TaskStatus.COMPLETED
            else:
                assert end.status is TaskStatus.FAILED
                assert end.error is not None
                assert "save one before it asks again" in end.error


async def test_a_resume_after_too_many_questions(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What earlier attempts left does not count, and what they asked can be asked again."""
    asked = request(task_id="t", supports_resume=True)
    steps = [ask(str(number)) for number in range(MAX_QUESTIONS)]
    async with opened() as manager:
        await manager.start(asked, Script(steps, Stopped("enough")))
        for number in range(MAX_QUESTIONS):
            await questions(manager)
            await manager.answer(OWNER, "t", f"q{number + 1}", value=True)
        await manager.wait(OWNER, "t")
        again = Script([ask("0"), ask("new"), ask("1")])
        summary = await manager.start(attrs.evolve(asked, resume_attempt=1), again)
        assert list((await questions(manager)).values()) == ["new"]
        await manager.answer(OWNER, "t", f"q{MAX_QUESTIONS + 1}", value=False)
        assert (await ended(manager, summary)).result == [True, False, True]


async def test_an_answer_before_its_question(autojump_clock: trio.testing.MockClock) -> None:
    """Ids can be guessed: who answers too early has not answered, whatever is asked by then."""
    store = FaultyStore()
    async with opened(store) as manager:
        body = Script([after_a_while, ask(), blocked_for_good])
        await manager.start(request(task_id="t"), body)
        store.break_down("apply", fault="slow")
        with pytest.raises(QuestionClosed, match="there is no such question now"):
            await manager.answer(OWNER, "t", "q1", {"not": "a boolean"})
        store.repair()
        await trio.sleep(20)
        assert list(await questions(manager)) == ["q1"]
        assert body.seen == [None]


async def test_an_answer_to_a_later_attempt_is_not_for_this_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An executor that slept reads what another attempt was given: it is told that it is late."""

    class Later(FaultyStore):
        async def load(self, task_id: str) -> TaskRecord | None:
            record = await super().load(task_id)
            if record is None or not record.questions:
                return record
            answered = attrs.evolve(record.questions[0], state="answered", answer=True)
            return attrs.evolve(record, attempt=2, questions=(answered,))

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with pytest.raises(StaleAttempt):
            await execution.ask("Sure?", YES_NO)
        return Success("told")

    async with opened(Later()) as manager:
        summary = await manager.start(request(task_id="t"), body)
        assert (await ended(manager, summary)).result == "told"


async def test_ask_cancelled_anywhere(autojump_clock: trio.testing.MockClock) -> None:
    """A call that was left at any checkpoint leaves no question behind, and loses no answer."""
    k, done = 0, False
    while not done:
        k += 1
        store = CheckpointingStore()

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            nonlocal done
            tried = await cancelled_at(k, lambda: execution.ask("Sure?", YES_NO))  # noqa: B023
            done = tried is None
            if tried is not None and tried.cancelled:
                record = await stored(store, "t")  # noqa: B023
                assert all(question.state != "open" for question in record.questions)
                return Success(await execution.ask("Sure?", YES_NO))
            return Success(value=True)

        async with opened(store) as manager:
            summary = await manager.start(request(task_id="t"), body)
            answered = False
            while (await manager.get(OWNER, "t") or summary).status is TaskStatus.RUNNING:
                for question_id in await questions(manager):
                    await manager.answer(OWNER, "t", question_id, value=True)
                    assert not answered
                    answered = True
                await trio.sleep(1)
            assert (await ended(manager, summary)).result is True
    assert k > 4


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_question_that_is_not_stored(
    fault: Fault, autojump_clock: trio.testing.MockClock
) -> None:
    """The body is told; whether or not it was stored, the next call asks it once."""
    store = FaultyStore()

    async def twice(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        store.break_down("apply", fault=fault, last=2)  # the withdrawal, too
        with pytest.raises(ConnectionError):
            await execution.ask("Sure?", YES_NO)
        return Success(await execution.ask("Sure?", YES_NO))

    async with opened(store) as manager:
        summary = await manager.start(request(task_id="t"), twice)
        found = await questions(manager)
        assert list(found.values()) == ["Sure?"]
        (question_id,) = found
        await manager.answer(OWNER, "t", question_id, value=True)
        assert (await ended(manager, summary)).result is True


async def test_a_stale_attempt_asks_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """One whose task runs elsewhere now is told so, or sees its scope cancelled."""
    store = MemoryTaskStore()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with trio.CancelScope(shield=True), pytest.raises(StaleAttempt):
            await execution.ask("Sure?", YES_NO)
        return Success()

    async with opened(StallingStore(store)) as first, opened(store) as second:
        await first.start(request(task_id="t", supports_resume=True), body)
        await questions(first)
        with trio.fail_after(60):
            await second.wait(OWNER, "t")
        await trio.sleep(10)
        assert_idle(first)


async def test_after_the_end_of_the_body(autojump_clock: trio.testing.MockClock) -> None:
    """Who keeps the execution cannot ask with it."""
    kept: list[BackgroundExecution] = []

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        kept.append(execution)
        await trio.lowlevel.checkpoint()
        return Success()

    async with opened() as manager:
        await manager.run(request(task_id="t"), body)
        with pytest.raises(StaleAttempt):
            await kept[0].ask("Sure?", YES_NO)


async def test_a_question_that_outlives_its_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is told so, also when the manager has closed and the store cannot be read any more."""
    store, reads = FaultyStore(), 0
    told = trio.Event()

    def broken() -> Exception:
        nonlocal reads
        reads += 1
        if reads > 20:
            pytest.fail("it reads again and again, and no time passes")
        return ConnectionError("closed")

    async with trio.open_nursery() as nursery:

        async def ask_outside(execution: BackgroundExecution) -> None:
            with pytest.raises(StaleAttempt):
                await execution.ask("Sure?", YES_NO)
            told.set()

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            nursery.start_soon(ask_outside, execution)
            await trio.sleep(1)
            store.break_down("load", error=broken)
            return Success()

        async with opened(store) as manager:
            await manager.start(request(task_id="t"), body)
            await trio.sleep(1.5)
        with trio.fail_after(10):
            await told.wait()


async def test_subscribers_are_told(autojump_clock: trio.testing.MockClock) -> None:
    """A question, its withdrawal and its answer are each a hint to look."""

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with trio.move_on_after(60):
            await execution.ask("Sure?", YES_NO)
        return Success(await execution.ask("Why?", {}))

    async with opened() as manager, manager.subscribe(OWNER) as hints:
        summary = await manager.start(request(task_id="t"), body)
        assert await hints.receive() == "t"
        while not await questions(manager):
            assert await hints.receive() == "t"
        with trio.fail_after(61):
            while await questions(manager) != {"q2": "Why?"}:
                assert await hints.receive() == "t"
        await manager.answer(OWNER, "t", "q2", 0)
        assert await hints.receive() == "t"
        assert (await ended(manager, summary)).result == 0


async def test_on_a_file_after_a_restart(tmp_path: Path) -> None:
    """The question is on disk before it is asked, its answer before it is accepted."""
    path = tmp_path / "tasks.db"
    told = request(task_id="t", supports_resume=True)
    async with SqliteTaskStore.open(path) as store, opened(store) as manager:
        schema = {"type": "object", "properties": {"é": {"enum": [1, "x", None]}}}
        await manager.start(told, Script([ask("Was nun, € ?", schema), blocked_for_good]))
        async with manager.subscribe(OWNER) as hints:
            while not (await manager.record(OWNER, "t") or told).questions:  # type: ignore[union-attr]
                await hints.receive()
        async with SqliteTaskStore.open(path) as other, opened(other) as elsewhere:
            await elsewhere.answer(OWNER, "t", "q1", {"é": "x"})
    async with SqliteTaskStore.open(path) as store, opened(store) as manager:
        again = Script([ask("Was nun, € ?", schema)])
        summary = await manager.start(attrs.evolve(told, resume_attempt=1), again)
        assert (await manager.wait(OWNER, summary.task_id)).result == [{"é": "x"}]


async def test_a_corrupt_record_ends_the_question(autojump_clock: trio.testing.MockClock) -> None:
    """It could never be answered: the body is told."""
    store = FaultyStore()

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with pytest.raises(CorruptRecord):
            await execution.ask("Sure?", YES_NO)
        return Success()

    async with opened(store) as manager:
        summary = await manager.start(request(task_id="t"), body)
        await questions(manager)
        store.break_down("load", last=1, error=lambda: CorruptRecord("t", "it was damaged"))
        assert (await ended(manager, summary)).status is TaskStatus.COMPLETED
