"""The questions of a running task: which ones its record has after an event. Pure.

A question is asked by an attempt and answered, once, by somebody else. Its answer belongs to the
work since the last checkpoint: until the next one it stays in the record, so that an attempt which
resumes from there and asks the same is given the same answer, and nobody is asked twice.
"""

from __future__ import annotations

from collections.abc import Container

from ._errors import QuestionClosed
from ._events import QuestionAnswered, QuestionAsked, QuestionsWithdrawn
from ._json import same_json
from ._records import Question, QuestionState, TaskRecord, TaskStatus, evolved

NO_SUCH_QUESTION = "there is no such question now"


def asked_before(record: TaskRecord, event: QuestionAsked) -> Question | None:
    """Return the question of the record that this one repeats, None when there is none.

    It has the same words and the same schema, and no other call of the attempt holds it: it was
    answered in an earlier attempt, or whoever asked it does not wait for it any more.
    """
    held = {*event.waiting, *event.delivered}
    for question in record.questions:
        if (
            question.question_id not in held
            and question.message == event.message
            and same_json(question.schema, event.schema)
        ):
            return question
    return None


def asked(record: TaskRecord, event: QuestionAsked) -> TaskRecord:
    """Return the record with the question: the last one, unless it repeats one."""
    repeated = asked_before(record, event)
    waiting = event.waiting if repeated is None else (*event.waiting, repeated.question_id)
    kept = _waited_for(record, waiting)
    if not record.supports_resume:  # no later attempt will ask for what was delivered
        kept = _without(kept, event.delivered)
    if repeated is not None:
        return _with(record, kept)
    number = record.questions_asked + 1
    new = Question(f"q{number}", event.message, event.schema, event.at_ms)
    return evolved(record, questions=(*kept, new), questions_asked=number)


def withdrawn(record: TaskRecord, event: QuestionsWithdrawn) -> TaskRecord:
    """Return the record without the open questions for which nobody waits."""
    return _with(record, _waited_for(record, event.waiting))


def answered(record: TaskRecord, event: QuestionAnswered) -> TaskRecord:
    """Return the record with the answer, or raise `QuestionClosed`."""
    task_id, question_id = record.task_id, event.question_id
    found = record.question(question_id)
    if found is None:
        raise QuestionClosed(task_id, question_id, NO_SUCH_QUESTION)
    if found.state != "open":
        raise QuestionClosed(task_id, question_id, f"it was {found.state}")
    if record.cancel_requested_at_ms is not None:
        raise QuestionClosed(task_id, question_id, "the task's cancellation was accepted")
    state: QuestionState = "declined" if event.declined else "answered"
    new = Question(question_id, found.message, found.schema, found.asked_at_ms, state, event.answer)
    questions = tuple(new if question is found else question for question in record.questions)
    return evolved(record, questions=questions)


def kept_by_checkpoint(record: TaskRecord, delivered: Container[str]) -> tuple[Question, ...]:
    """Return what a checkpoint leaves: what was delivered before it is not asked for again."""
    return _without(record.questions, delivered)


def kept_at_end(record: TaskRecord, status: TaskStatus) -> tuple[Question, ...]:
    """Return what an ended attempt leaves to the next one: what was answered."""
    if status is not TaskStatus.STOPPED or not record.supports_resume:
        return ()
    return tuple(question for question in record.questions if question.state != "open")


def _with(record: TaskRecord, kept: tuple[Question, ...]) -> TaskRecord:
    return record if len(kept) == len(record.questions) else evolved(record, questions=kept)


def _waited_for(record: TaskRecord, waiting: Container[str]) -> tuple[Question, ...]:
    return tuple(
        question
        for question in record.questions
        if question.state != "open" or question.question_id in waiting
    )


def _without(questions: tuple[Question, ...], ids: Container[str]) -> tuple[Question, ...]:
    return tuple(question for question in questions if question.question_id not in ids)
