"""The questions of a task a second time, by hand: what each event leaves of them."""

from __future__ import annotations

import json
from typing import Any

from trio_bgtasks import (
    CheckpointSaved,
    Event,
    Finished,
    Orphaned,
    Question,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Stopped,
    TaskRecord,
)


def same_words(question: Question, asked: QuestionAsked) -> bool:
    """Has a question the words and the schema of what is asked? 1 is not 1.0, and not true."""
    mine, others = (json.dumps(thing.schema, sort_keys=True) for thing in (question, asked))
    return question.message == asked.message and mine == others


def wrong_question(record: TaskRecord, event: QuestionAnswered) -> set[str]:
    """Return why a running task would not take an answer, if that is because of the question."""
    states = {question.question_id: question.state for question in record.questions}
    if event.question_id not in states:
        return {"no such question"}
    return set() if states[event.question_id] == "open" else {"question answered before"}


def questions_after(record: TaskRecord | None, event: Event) -> dict[str, Any]:
    """Return the fields about questions after an accepted event that may change them."""
    assert record is not None
    there = {question.question_id: question for question in record.questions}
    is_open = {name for name, question in there.items() if question.state == "open"}
    gone: set[str] = set()
    changes: dict[str, Any] = {}
    match event:
        case QuestionAsked():
            held = set(event.waiting) | set(event.delivered)
            again = [n for n, q in there.items() if n not in held and same_words(q, event)]
            gone = is_open - set(event.waiting) - set(again[:1])
            if not record.supports_resume:
                gone |= set(event.delivered)
            if not again:
                changes["questions_asked"] = record.questions_asked + 1
                name = f"q{record.questions_asked + 1}"
                there[name] = Question(name, event.message, event.schema, event.at_ms)
        case QuestionsWithdrawn():
            gone = is_open - set(event.waiting)
        case QuestionAnswered():
            old = there[event.question_id]
            there[event.question_id] = Question(
                old.question_id,
                old.message,
                old.schema,
                old.asked_at_ms,
                "declined" if event.declined else "answered",
                event.answer,
            )
        case CheckpointSaved():
            gone = set(event.delivered)
        case Finished() | Orphaned():
            marked = record.cancel_requested_at_ms is not None
            if isinstance(event, Finished):
                marked = marked or event.cancel_requested_at_ms is not None
                marked = marked or not isinstance(event.outcome, Stopped)
            gone = set(there) if marked or not record.supports_resume else is_open
        case _:  # pragma: no cover - the model calls this for no other
            raise AssertionError(event)
    changes["questions"] = tuple(q for name, q in there.items() if name not in gone)
    return changes
