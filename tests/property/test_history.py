"""`check_history` believes tools and callers: what a store says otherwise breaks a promise."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
import trio.testing

from tests.support import OTHER, OWNER, request
from trio_bgtasks import (
    BackgroundExecution,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Event,
    Finished,
    InvalidAnswer,
    MemoryTaskStore,
    QuestionAnswered,
    QuestionClosed,
    QuestionDeclined,
    QuestionsWithdrawn,
    Stopped,
    Success,
    TaskNotRunning,
    TaskRecord,
    TaskResult,
    open_task_manager,
)
from trio_bgtasks.testing import Fault, FaultyStore, History, RecordedManager, check_history
from trio_bgtasks.testing._questioning import Answer


class Forgetful(MemoryTaskStore):
    """Answers, and does not keep, events of some kinds."""

    forgets: tuple[type[Event], ...] = ()

    async def apply(self, task_id: str, event: Event) -> TaskRecord:
        record = await self.load(task_id)
        if record is not None and isinstance(event, self.forgets):
            return record
        return await super().apply(task_id, event)


@pytest.fixture
def history() -> History:
    """An empty history."""
    return History()


@pytest.fixture
def store() -> Forgetful:
    """The store below `manager`."""
    return Forgetful()


@pytest.fixture
async def manager(store: Forgetful, history: History) -> AsyncIterator[RecordedManager]:
    """An open manager, recorded."""
    async with open_task_manager(store) as unrecorded:
        yield RecordedManager(unrecorded, history)


async def working(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
    """Say something, save something, succeed."""
    await execution.write_output("working\n")
    await execution.save_checkpoint("half")
    return Success("done")


async def stopping(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
    """Save something and stop."""
    await execution.save_checkpoint(execution.attempt)
    return Stopped("for now")


async def test_what_is_true_passes(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """A life with everything in it breaks no promise; all of it was recorded."""
    await manager.start(request(task_id="t", supports_resume=True), stopping)
    await manager.wait(OWNER, "t")
    await manager.start(request(task_id="t", supports_resume=True, resume_attempt=1), working)
    assert await manager.run(request(OTHER, task_id="u"), working) == Success("done")
    summary = await manager.wait(OWNER, "t")
    assert await manager.get(OWNER, "t") == summary
    assert len(await manager.take_notices(OWNER)) == 2
    assert len(await manager.list_tasks(OTHER)) == 1
    await check_history(history, store)
    task = history.tasks["t"]
    assert [run.attempt for run in task.runs] == [1, 2]
    assert task.runs[1].checkpoint == 1
    assert task.runs[1].said == ["working\n"]
    assert set(task.announced) == {1, 2}
    await manager.gc_terminal(OWNER)
    await check_history(history, store)


async def test_a_lost_checkpoint(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """A tool that was told that a checkpoint is kept is believed."""
    store.forgets = (CheckpointSaved,)
    await manager.start(request(task_id="t"), working)
    await manager.wait(OWNER, "t")
    with pytest.raises(AssertionError, match="promise 2: the checkpoint is None, saved: 'half'"):
        await check_history(history, store)


async def test_a_lost_end(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """A body that has ended has an end, unless the store had no time yet to take it."""
    store.forgets = (Finished,)
    await manager.start(request(task_id="t"), working)
    await trio.sleep(1)
    await check_history(history, store, settled=False, swept=False)
    with pytest.raises(AssertionError, match="promise 2: attempt 1 ended, and no end of it"):
        await check_history(history, store)


async def test_an_accepted_cancel(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Who was told that a cancel is accepted is believed; the text tells the whole story."""
    await manager.start(request(task_id="t"), stopping)
    await trio.testing.wait_all_tasks_blocked()
    history.accepted(history.tasks["t"])
    with pytest.raises(AssertionError, match="promise 5: an accepted cancel is not stored") as e:
        await check_history(history, store)
    for fact in ("task t of thread-1", "attempt 1: began at", "journal: finished, attempt 1"):
        assert fact in str(e.value)


async def test_a_cancel_that_was_refused_takes_no_other_along(
    history: History, autojump_clock: object
) -> None:
    """Of two cancels the later one counted, and its answer was lost: it was asked for."""
    counted = trio.Event()

    class LosesTheSecond(MemoryTaskStore):
        asked = 0

        async def apply(self, task_id: str, event: Event) -> TaskRecord:
            if not isinstance(event, CancelRequested):
                return await super().apply(task_id, event)
            self.asked += 1
            if self.asked == 1:
                await counted.wait()
                return await super().apply(task_id, event)
            await super().apply(task_id, event)
            counted.set()
            raise ConnectionError

    store = LosesTheSecond()
    async with open_task_manager(store) as unrecorded, trio.open_nursery() as nursery:
        manager = RecordedManager(unrecorded, history)
        await manager.start(request(task_id="t", supports_resume=True), stopping)
        await manager.wait(OWNER, "t")

        async def cancel_in_vain() -> None:
            with pytest.raises(TaskNotRunning):
                await manager.cancel(OWNER, "t")

        nursery.start_soon(cancel_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionError):
            await manager.cancel(OWNER, "t")
    await check_history(history, store)


async def test_a_notice_taken_twice(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """What was acknowledged and comes again breaks promise 11."""
    await manager.start(request(task_id="t"), stopping)
    await manager.wait(OWNER, "t")
    (notice,) = await store.notices(OWNER)
    await manager.take_notices(OWNER)
    history.tasks["t"].announced[1].append(notice.summary.status)
    with pytest.raises(AssertionError, match="promise 11: attempt 1 was announced 2 times"):
        await check_history(history, store)


async def test_an_end_for_no_reason(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """A body that was cancelled although nobody had a reason to breaks promise 9."""

    async def forever(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        await trio.sleep_forever()
        return Cancelled()

    await manager.start(request(task_id="t"), forever)
    await trio.testing.wait_all_tasks_blocked()
    await manager.unrecorded.close_owner(OWNER)  # past the history
    with pytest.raises(AssertionError, match="promise 9: attempt 1 is stopped, should be running"):
        await check_history(history, store)


INTEGER = {"type": "integer"}


async def asking(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
    """Ask for a number, and stop when it is given."""
    await execution.ask("How many?", INTEGER)
    return Stopped("enough")


async def asked(manager: RecordedManager) -> str:
    """Return the id of the question that is open."""
    await trio.testing.wait_all_tasks_blocked()
    summary = await manager.get(OWNER, "t")
    assert summary is not None
    return summary.questions[0].question_id


async def test_questions_are_recorded(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """What was asked, answered, refused and given; a decline is an answer, too."""

    async def both(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        number = await execution.ask("How many?", INTEGER)
        with pytest.raises(QuestionDeclined):
            await execution.ask("How many?", INTEGER)
        return Success(number)

    await manager.start(request(task_id="t"), both)
    with pytest.raises(InvalidAnswer):
        await manager.answer(OWNER, "t", await asked(manager), "many")
    await manager.answer(OWNER, "t", await asked(manager), 7)
    with pytest.raises(QuestionClosed):
        await manager.answer(OWNER, "t", "q1", 8)
    await check_history(history, store)
    await manager.decline(OWNER, "t", await asked(manager))
    assert (await manager.wait(OWNER, "t")).result == 7
    await check_history(history, store)
    task = history.tasks["t"]
    assert [ask.reply for ask in task.runs[0].questions.asks] == ["7", "declined"]
    assert [answer.reply for answer in task.questions.answers] == ["7", "declined"]
    for fact in ("asked 'How many?' at", "given 7", "q2 answered declined at"):
        assert fact in str(task)


async def test_a_lost_answer(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Who was told that an answer is accepted is believed."""
    store.forgets = (QuestionAnswered,)
    await manager.start(request(task_id="t"), asking)
    await manager.answer(OWNER, "t", await asked(manager), 7)
    with pytest.raises(AssertionError, match="promise 13: an accepted answer to question q1 is"):
        await check_history(history, store)


async def test_an_answer_from_nowhere(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Nothing is stored as an answer that nobody gave; nor is another one than that."""
    await manager.start(request(task_id="t", supports_resume=True), asking)
    question_id = await asked(manager)
    await manager.unrecorded.answer(OWNER, "t", question_id, 7)  # past the history
    with pytest.raises(AssertionError, match="promise 13: nobody gave the answer that question q1"):
        await check_history(history, store)
    history.tasks["t"].questions.answers.append(Answer(question_id, "8", history.tick()))
    with pytest.raises(AssertionError, match="promise 13: question q1 is stored with 7, which"):
        await check_history(history, store)


async def test_a_question_that_is_left_open(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Nobody is asked what nobody waits for, unless the store failed when that was to be said."""

    async def leaving(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        with trio.move_on_after(1):
            await execution.ask("How many?", INTEGER)
        await trio.sleep_forever()
        return Success()

    store.forgets = (QuestionsWithdrawn,)
    await manager.start(request(task_id="t"), leaving)
    await trio.sleep(5)
    with pytest.raises(AssertionError, match="promise 13: question q1 is open, and nobody waits"):
        await check_history(history, store)
    history.doubtful("")
    await check_history(history, store)


async def test_an_answer_given_again(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Once to each attempt, and to none after a checkpoint."""

    async def saving(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        outcome = await asking(execution, scope)
        await execution.save_checkpoint("given")
        return outcome

    again = request(task_id="t", supports_resume=True)
    await manager.start(again, asking)
    await manager.answer(OWNER, "t", await asked(manager), 7)
    await manager.wait(OWNER, "t")
    for attempt in (1, 2):
        await manager.start(attrs.evolve(again, resume_attempt=attempt), saving)
        await trio.testing.wait_all_tasks_blocked()
        await check_history(history, store)
    first, second, third = (run.questions.asks for run in history.tasks["t"].runs)
    assert [ask.reply for ask in (*first, *second, *third)] == ["7", "7", None]
    third[0].reply = "7"  # as if it had been given to that, too
    with pytest.raises(
        AssertionError, match="attempt 3 was given 7 1 times for 'How many\\?', ans"
    ):
        await check_history(history, store)


async def test_a_question_that_changes(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """An id is asked for one thing only, whoever is told of it."""
    await manager.start(request(task_id="t"), asking)
    await asked(manager)
    summary = await manager.get(OWNER, "t")
    assert summary is not None
    (question,) = summary.questions
    changed = attrs.evolve(summary, questions=(attrs.evolve(question, message="Who?"),))
    with pytest.raises(AssertionError, match=r"promise 13: .*How many.* was asked before, now"):
        history.told(OWNER, changed)


async def forever(_: trio.CancelScope) -> TaskResult:
    """Wait until it is cancelled."""
    await trio.sleep_forever()
    return Success()


async def test_a_spawn_is_recorded(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Its body, whose child it is, and the cancel of the scope that its caller gave to it."""
    scope = trio.CancelScope()

    async def spawning(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        return Success(await manager.spawn(OWNER, "work", "", forever, cancel_scope=scope))

    await manager.start(request(task_id="t"), spawning)
    task_id = (await manager.wait(OWNER, "t")).result
    await trio.testing.wait_all_tasks_blocked()
    task = history.tasks[task_id]
    assert (task.parent, task.started, task.live) == ("t", {1: 1}, True)
    history.scope_cancelled(task)
    scope.cancel()
    assert (await manager.wait(OWNER, task_id)).status == "cancelled"
    await check_history(history, store)
    assert f"its scope cancelled at {task.scope_cancelled}" in str(task)


async def test_a_spawn_in_a_cancelled_scope(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """Nobody has to note that it was cancelled: that can be seen."""
    scope = trio.CancelScope()
    scope.cancel()
    await manager.spawn(OWNER, "work", "", forever, task_id="t", cancel_scope=scope)
    await manager.wait(OWNER, "t")
    assert not history.tasks["t"].runs
    assert history.tasks["t"].scope_cancelled is not None
    await check_history(history, store)


async def test_a_cancelled_scope_that_cancels_nothing(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """A body in a scope that was cancelled succeeds or is cancelled; all else breaks promise 5."""
    ending = trio.Event()

    async def stopping(_: trio.CancelScope) -> TaskResult:
        await ending.wait()
        return Stopped("for now")

    await manager.spawn(OWNER, "work", "", stopping, task_id="t")
    await trio.testing.wait_all_tasks_blocked()
    history.scope_cancelled(history.tasks["t"])  # another one was
    ending.set()
    await manager.wait(OWNER, "t")
    with pytest.raises(
        AssertionError, match="promise 5: attempt 1 is stopped, should be cancelled"
    ):
        await check_history(history, store)


async def test_a_scope_that_is_cancelled_too_late(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """That is no cancel of what has ended, or of what something else ends already."""

    async def done(_: trio.CancelScope) -> TaskResult:
        return Success()

    await manager.spawn(OWNER, "work", "", done, task_id="t")
    await manager.wait(OWNER, "t")
    await manager.spawn(OWNER, "work", "", forever, task_id="u")
    await trio.testing.wait_all_tasks_blocked()
    history.may_end("owner close", machine="", owner=OWNER)
    for task in history.tasks.values():
        history.scope_cancelled(task)
        assert task.scope_cancelled is None
    await manager.close_owner(OWNER)
    await check_history(history, store)


async def test_a_start_whose_key_leads_to_another_task_begins_nothing(
    manager: RecordedManager, store: Forgetful, history: History, autojump_clock: object
) -> None:
    """The answer is about the task of the first start; nobody was told that a second one began."""
    await manager.start(request(task_id="t", idempotency_key="key"), working)
    await manager.wait(OWNER, "t")
    summary = await manager.start(request(task_id="u", idempotency_key="key"), working)
    assert summary.task_id == "t"
    assert history.tasks["t"].started == {1: 1}
    assert list(history.tasks) == ["t"]
    await check_history(history, store)


async def test_an_acknowledgement_without_an_answer(
    history: History, autojump_clock: object
) -> None:
    """Whoever took those notices may be told of them again, or not: nobody knows."""
    faults: tuple[Fault, ...] = ("before", "after")
    for fault in faults:
        store = FaultyStore()
        async with open_task_manager(store) as unrecorded:
            manager = RecordedManager(unrecorded, history)
            await manager.start(request(task_id=fault), stopping)
            await manager.wait(OWNER, fault)
            store.break_down("acknowledge", fault=fault)
            with pytest.raises(ConnectionError):
                await manager.take_notices(OWNER)
            store.repair()
            assert history.tasks[fault].unsure == {1}
            await check_history(history, store)
            history.tasks.clear()
