"""Bugs around questions and answers, for `RuntimeMachine`; as in ``runtime_managers``."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Container
from typing import Any

import attrs
import pytest
import trio

from trio_bgtasks import (
    BackgroundTaskManager,
    Question,
    QuestionAnswered,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    _answering,
    _lifecycle,
    _questions,
)
from trio_bgtasks._answering import Answerer
from trio_bgtasks._asking import Asker
from trio_bgtasks._records import evolved

from .runtime_managers import Bug

Patch = pytest.MonkeyPatch


def who_asks_waits_for_a_hint(patch: Patch) -> None:
    """Nobody looks for an answer that another process took."""
    init = Asker.__init__

    def deaf(self: Asker, *args: Any) -> None:
        init(self, *args)
        config = attrs.evolve(self._port.config, poll_s=1e9)
        self._port = attrs.evolve(self._port, config=config)

    patch.setattr(Asker, "__init__", deaf)


def an_answer_is_given_twice(patch: Patch) -> None:
    """The attempt does not note which answers it has."""

    class Forgetful(list[str]):
        def append(self, _: str, /) -> None:
            """Forget it."""

    init = Asker.__init__

    def forgetful(self: Asker, *args: Any) -> None:
        init(self, *args)
        self._delivered = Forgetful()

    patch.setattr(Asker, "__init__", forgetful)


def what_was_left_stays_open(patch: Patch) -> None:
    """A question for which nobody waits any more is not withdrawn."""

    async def kept(_: Asker) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Asker, "_withdraw", kept)


def strangers_may_answer(patch: Patch) -> None:
    """Whose task it is, is not looked at when it is answered."""
    answer = Answerer.answer

    async def from_anybody(
        self: Answerer, _: str, task_id: str, event: QuestionAnswered
    ) -> TaskSummary:
        record = await self._looker.settled(None, task_id)
        owner = "nobody" if record is None else record.owner_thread_id
        return await answer(self, owner, task_id, event)

    patch.setattr(Answerer, "answer", from_anybody)


def answers_of_any_kind_are_taken(patch: Patch) -> None:
    """Whether an answer fits the schema of its question is not looked at."""
    patch.setattr(_answering, "_check", lambda *_: None)


def answers_are_not_durable(patch: Patch) -> None:
    """Whoever answers is told that it was accepted before it is stored, which then fails."""
    decline = BackgroundTaskManager.decline

    async def early(
        self: BackgroundTaskManager, owner_thread_id: str, task_id: str, question_id: str
    ) -> TaskSummary:
        summary = await self.get(owner_thread_id, task_id)
        if summary is None or not summary.questions:
            return await decline(self, owner_thread_id, task_id, question_id)
        return summary

    patch.setattr(BackgroundTaskManager, "decline", early)


def an_end_takes_the_answers(patch: Patch) -> None:
    """The next attempt asks everything again."""
    patch.setattr(_lifecycle, "kept_at_end", lambda *_: ())


def an_end_leaves_its_questions(patch: Patch) -> None:
    """What an attempt asked stays open when it is over."""

    def all_of_them(record: TaskRecord, status: TaskStatus) -> tuple[Question, ...]:
        return record.questions if status is TaskStatus.STOPPED else ()

    patch.setattr(_lifecycle, "kept_at_end", all_of_them)


def a_checkpoint_leaves_what_was_used(patch: Patch) -> None:
    """An answer that the body had before its checkpoint is given once more after a resume."""

    def everything(record: TaskRecord, _: Container[str]) -> tuple[Question, ...]:
        return record.questions

    patch.setattr(_lifecycle, "kept_by_checkpoint", everything)


def the_last_answer_wins(patch: Patch) -> None:
    """What was answered can be answered again."""
    answered = _questions.answered

    def reopened(record: TaskRecord, event: QuestionAnswered) -> TaskRecord:
        questions = tuple(attrs.evolve(q, state="open") for q in record.questions)
        return answered(evolved(record, questions=questions), event)

    patch.setattr(_lifecycle, "answered", reopened)


def the_cancelled_are_answered(patch: Patch) -> None:
    """A cancel that was accepted closes no question."""
    answered = _questions.answered

    def unmarked(record: TaskRecord, event: QuestionAnswered) -> TaskRecord:
        after = answered(evolved(record, cancel_requested_at_ms=None), event)
        return evolved(after, cancel_requested_at_ms=record.cancel_requested_at_ms)

    patch.setattr(_lifecycle, "answered", unmarked)


def ids_are_used_again(patch: Patch) -> None:
    """A question is numbered by how many there are."""
    asked = _questions.asked

    def recounted(record: TaskRecord, event: Any) -> TaskRecord:
        highest = max((int(q.question_id[1:]) for q in record.questions), default=0)
        return asked(evolved(record, questions_asked=highest), event)

    patch.setattr(_lifecycle, "asked", recounted)


PLANTED: list[tuple[Bug, str]] = [
    (who_asks_waits_for_a_hint, "promise 13:"),
    (an_answer_is_given_twice, "promise 13:"),
    (what_was_left_stays_open, "promise 13:"),
    (strangers_may_answer, "promise 13:"),
    (answers_of_any_kind_are_taken, "promise 13:"),
    (answers_are_not_durable, "promise 13:"),
    (an_end_takes_the_answers, "promise 13:"),
    (an_end_leaves_its_questions, "promise 13:"),
    (a_checkpoint_leaves_what_was_used, "promise 13:"),
    (the_last_answer_wins, "promise 13:"),
    (the_cancelled_are_answered, "promise 13:"),
    (ids_are_used_again, "promise 13:"),
]
