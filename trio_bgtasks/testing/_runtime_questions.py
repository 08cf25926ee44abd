"""What tools ask, and what people answer: the rules of `RuntimeMachine` for promise 13."""

from __future__ import annotations

import math
from typing import Any, Literal

import hypothesis.strategies as st
import trio
import trio.testing
from hypothesis.stateful import precondition, rule

from trio_bgtasks import (
    InvalidAnswer,
    Question,
    QuestionClosed,
    Refused,
    TaskNotRunning,
    UnknownTask,
)

from ._history import TaskHistory
from ._questioning import words_of
from ._runtime_cast import OWNERS, WORDS, few, newest, some
from ._runtime_parts import Asking, Host, Work
from ._runtime_stage import POLLED_S, RuntimeStage
from ._trio_machine import in_trio

words = st.sampled_from(WORDS)


class QuestionRules(RuntimeStage):
    """An accepted answer is final, and is given, once, to whoever asked; nobody is asked twice."""

    # ---- what can be done, and what must be answered ---------------------------------------------

    async def ask_in(
        self, work: Work, message: str, schema: dict[str, Any], bound_s: float = math.inf
    ) -> Asking:
        """Ask in a body that runs: it may; what is answered already, it is given at once."""
        task, run = work.run.task, work.run.questions
        same = words_of(message, schema)
        waiting = sum(ask.words == same for ask in run.waiting)
        owed = task.questions.owed(run, same)[waiting:]  # those before are on their way to others
        asking = await self.world.ask(work, message, schema, bound_s)
        refused = asking.refusal if work.run.live else None
        assert refused is None, f"promise 6: it runs, and may not ask: {refused!r}\n{task}"
        waits = bool(owed) and not asking.over.is_set()
        assert not waits, f"promise 13: {owed[0].question_id} was answered, is asked again\n{task}"
        return asking

    async def questions_of(self, host: Host, task: TaskHistory) -> tuple[Question, ...]:
        """Return what people are asked, as a manager shows it."""
        summary = await host.manager.get(task.owner, task.task_id)
        return () if summary is None else summary.questions

    async def answer_in(
        self, host: Host, task: TaskHistory, number: int, *, declined: bool
    ) -> None:
        """Answer what is shown as open: that is accepted."""
        questions = await self.questions_of(host, task)
        if not questions:
            return
        question_id = newest(list(questions), number).question_id
        try:
            if declined:
                await host.manager.decline(task.owner, task.task_id, question_id)
            else:
                value = self.next_answer()
                await host.manager.answer(task.owner, task.task_id, question_id, value)
        except Refused as refusal:
            shown = f"{question_id} is shown as open, its answer was refused: {refusal!r}"
            raise AssertionError(f"promise 13: {shown}\n{task}") from refusal
        await trio.testing.wait_all_tasks_blocked()

    async def one_that_asks(self, number: int) -> Work:
        """Return a body that waits for an answer; let one ask if there is none."""
        if self.asking:
            return newest(self.asking, number)
        chosen = await self.one_of("talking", number)
        await self.ask_in(chosen, *WORDS[0])
        return chosen

    # ---- the rules -------------------------------------------------------------------------------

    @rule(work=few, words=words, bound_s=st.sampled_from([1, 30, math.inf, math.inf]))
    @in_trio
    async def ask(self, work: int, words: tuple[str, dict[str, Any]], bound_s: float) -> None:
        """A body asks, for ever or for a while."""
        await self.ask_in(await self.one_of("talking", work), *words, bound_s)

    @rule(work=few, host=few, number=few, declined=st.booleans(), then_s=st.sampled_from([0, 3]))
    @in_trio
    async def answer(
        self,
        work: int,
        host: int,
        number: int,
        declined: bool,  # noqa: FBT001
        then_s: float,
    ) -> None:
        """Somebody answers, on any machine; within a poll whoever asked has the answer."""
        chosen = await self.one_that_asks(work)
        await self.answer_in(self.host(host), chosen.run.task, number, declined=declined)
        await self.pass_time_by(then_s)

    @rule(work=few, host=few, after_s=st.sampled_from([0, 1, POLLED_S]))
    @in_trio
    async def leave_a_question(self, work: int, host: int, after_s: float) -> None:
        """A body does not wait for its answers any more, perhaps just when they are given."""
        chosen = await self.one_that_asks(work)
        if after_s:
            await self.answer_in(self.host(host), chosen.run.task, 0, declined=False)
            await trio.sleep(after_s)
        chosen.leave()
        await trio.testing.wait_all_tasks_blocked()

    @rule(work=few, host=few, words=words)
    @in_trio
    async def ask_under_a_cancel(
        self, work: int, host: int, words: tuple[str, dict[str, Any]]
    ) -> None:
        """A body asks, and leaves, before it hears of a cancel: nobody can answer any more."""
        chosen = await self.one_that_asks(work)
        await self.two_hosts()
        task, other = chosen.run.task, self.other_than(chosen.host, host)
        shown = await self.questions_of(other, task)
        await self.cancel_task(other, task)
        if not chosen.run.live:  # pragma: no cover - its machine has just asked for cancels
            return
        await self.ask_in(chosen, *words)
        for question in shown:
            await self.refused(other, task, question.question_id, QuestionClosed)
        chosen.leave()
        await trio.testing.wait_all_tasks_blocked()

    @precondition(some(lambda self: self.tasks))
    @rule(work=few, host=few, how=st.sampled_from(["owner", "schema", "id", "again", "again"]))
    @in_trio
    async def answer_wrongly(
        self, work: int, host: int, how: Literal["owner", "schema", "id", "again"]
    ) -> None:
        """Another owner, another schema, another question, or a second answer: refused."""
        where, chosen = self.host(host), await self.one_that_asks(work)
        task = chosen.run.task
        if how == "again":
            await self.answer_in(where, task, 0, declined=False)
            for answer in task.questions.answers:
                if answer.accepted is not None:
                    await self.refused(where, task, answer.question_id, QuestionClosed)
            return
        for question in await self.questions_of(where, task):
            match how:
                case "owner":
                    await self.refused_to_a_stranger(where, task, question.question_id)
                case "schema":
                    await self.refused(where, task, question.question_id, InvalidAnswer, "text")
                case "id":
                    await self.refused(where, task, f"{question.question_id}1", QuestionClosed)

    async def refused(
        self,
        host: Host,
        task: TaskHistory,
        question_id: str,
        how: type[Exception],
        value: object = -1,
    ) -> None:
        """Answer in vain."""
        try:
            await host.manager.unrecorded.answer(task.owner, task.task_id, question_id, value)
        except (how, TaskNotRunning, UnknownTask):
            return
        raise AssertionError(f"promise 13: {question_id} was answered: {value!r}\n{task}")

    async def refused_to_a_stranger(self, host: Host, task: TaskHistory, question_id: str) -> None:
        """Promise 8: who is no owner is told what one is told who asks for nobody's task."""
        stranger = OWNERS[1 - OWNERS.index(task.owner)]
        self.tried[stranger].add(task.task_id)
        try:
            await host.manager.unrecorded.answer(stranger, task.task_id, question_id, -1)
        except UnknownTask as error:
            same = str(error) == f"Unknown task_id: {task.task_id}"
            assert same, f"promise 8: {stranger} was told {error}"  # noqa: PT017
        else:
            raise AssertionError(f"promise 13: {stranger} answered {question_id}\n{task}")

    @rule(
        work=few,
        words=words,
        reply=st.sampled_from(["answered", "answered", "declined", "none"]),
        polled=st.booleans(),
        saved=st.sampled_from([False, False, True]),
        ends=st.sampled_from(["stop", "crash", "sleep", "no"]),
    )
    @in_trio
    async def ask_the_same_again(
        self,
        work: int,
        words: tuple[str, dict[str, Any]],
        reply: str,
        polled: bool,  # noqa: FBT001
        saved: bool,  # noqa: FBT001
        ends: str,
    ) -> None:
        """It was answered, and given or not; the next attempt, or call, asks the same."""
        chosen = await self.one_of("talking", work)
        task = chosen.run.task
        await self.two_hosts()
        other = self.other_than(chosen.host, 0)
        await self.ask_in(chosen, *words)
        if reply != "none":
            await self.answer_in(other, task, 0, declined=reply == "declined")
        if polled:
            await self.pass_time_by(POLLED_S)
        if not (chosen.run.live and chosen.waits):
            return  # somebody had cancelled it
        if saved:
            await self.save_in(chosen, reply)
        if ends == "no":
            await self.ask_in(chosen, *words)
            return
        await self.interrupt(chosen, ends)
        await self.resume_at_once(task, [other])
        for again in [again for again in self.talking if again.run.task is task]:
            await self.ask_in(again, *words)

    async def interrupt(self, work: Work, ends: str) -> None:
        """Let its attempt end so that another may follow, and others find that."""
        if ends == "crash":
            await self.world.crash(work.host)
        elif ends == "sleep":
            self.world.stall(work.host)
        else:
            work.orders.send_nowait("stop")
        await trio.sleep(0 if ends == "stop" else 45)
        await trio.testing.wait_all_tasks_blocked()
