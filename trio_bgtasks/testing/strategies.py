"""Hypothesis strategies for what this library stores, is told and answers.

On the import of ``trio_bgtasks.testing`` they are registered with Hypothesis for the types that
they make, so ``st.from_type(TaskRecord)``, and ``st.builds`` of your own classes, use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from trio_bgtasks import (
    AttemptStarted,
    Cancelled,
    CancelRequested,
    CheckpointSaved,
    Event,
    ExternalRef,
    Facts,
    Failed,
    Finished,
    Orphaned,
    OutputAppended,
    Progress,
    ProgressReported,
    Question,
    QuestionAnswered,
    QuestionAsked,
    QuestionsWithdrawn,
    Registered,
    Stopped,
    Success,
    TaskRecord,
    TaskResult,
    TaskSummary,
    ThreadMessageRef,
    apply,
)

from ._arguments import answers, arguments
from ._json_values import json_objects, json_values, texts
from ._model import STATES as _EVERY_STATE

__all__ = [
    "STATES",
    "answers",
    "arguments",
    "events",
    "json_objects",
    "json_values",
    "outcomes",
    "progress",
    "questions",
    "records",
    "result_refs",
    "task_ids",
    "texts",
]

STATES = _EVERY_STATE[1:]
"""The states of a record, as the table of the lifecycle names them."""

_LIVE, _GONE = "ex_live", "ex_gone"
_EXECUTORS = (_LIVE, "ex_other")
_any = st.booleans()
_times = st.integers(0, 1 << 53)
_numbers = st.integers(-(1 << 53), 1 << 53) | st.floats(allow_nan=False, allow_infinity=False)
# One thing is wrong at a time, and mostly nothing is.
_wrongs = st.sampled_from([*[None] * 6, "executor", "earlier", "later", "owner", "type"])


# ---- values --------------------------------------------------------------------------------------


@cache
def task_ids() -> SearchStrategy[str]:
    """Return ids that the library accepts, of tasks, owners and all else: 1 to 200 characters.

    None is a control character, and none at either end a blank.
    """
    allowed = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
    return st.text(allowed, min_size=1, max_size=200).map(str.strip).filter(bool)


@cache
def progress() -> SearchStrategy[Progress]:
    """Return how far an attempt may say that it is."""
    return st.builds(Progress, _numbers, st.none() | _numbers, st.none() | texts())


_messages = st.builds(ThreadMessageRef, task_ids(), st.none() | task_ids())
_uris = st.builds(ExternalRef, texts())


@cache
def result_refs() -> SearchStrategy[ThreadMessageRef | ExternalRef]:
    """Return places where a result may be."""
    return _messages | _uris


_successes = st.builds(Success, json_values(), st.none() | result_refs())
_failures = st.builds(Failed, texts(), json_values())
_stopped = st.builds(Stopped, st.none() | texts())


@cache
def outcomes() -> SearchStrategy[TaskResult]:
    """Return what a body may return: each of the four kinds of `TaskResult`."""
    return st.one_of(_successes, _failures, st.just(Cancelled()), _stopped)


# So few that a question is repeated now and then.
_MESSAGES = st.sampled_from(["Sure?", "Whose?", "Wie viele, € ?"])
_SCHEMAS: SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"type": "boolean"},
        {"enum": ["mine", "yours", None]},
        {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    ]
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Return questions of a task: open, answered as their schema wants it, or declined."""
    number, schema = draw(st.integers(1, 9)), draw(_SCHEMAS)
    question = Question(f"q{number}", draw(_MESSAGES), schema, draw(_times))
    declined = attrs.evolve(question, state="declined")
    without = draw(st.sampled_from([question, declined, None]))
    return without or attrs.evolve(question, state="answered", answer=draw(answers(schema)))


# ---- events --------------------------------------------------------------------------------------


@st.composite
def events(
    draw: st.DrawFn, record: TaskRecord | None = None, *, executors: Sequence[str] = _EXECUTORS
) -> Event:
    """Return events of every kind that may reach this record, or a store that has none (None).

    Mostly nothing is wrong with one but, perhaps, that the record is in no state for it. Else it is
    one thing: the executor, the attempt (too low or too high), the owner, the task type or the
    question that is answered. An `Orphaned` names the record's executor, whether that is dead or
    not: that is for the facts.

    Args:
        draw: is Hypothesis' own.
        record: what they are to go with.
        executors: who may start and resume.
    """
    starts = record is None and draw(st.booleans())
    kind, wrong = Registered if starts else draw(st.sampled_from(_KINDS)), draw(_wrongs)
    event: Event = _drawn(draw, kind, record, executors=executors, wrong=wrong)
    return event


def _drawn(
    draw: st.DrawFn,
    kind: type[Any],
    record: TaskRecord | None,
    *,
    executors: Sequence[str] = _EXECUTORS,
    wrong: str | None = None,
) -> Any:
    """Draw an event of one kind, with one thing wrong."""
    fields = {name: draw(how) for name, how in _PARTS[kind].items()}
    if record is not None:
        fields |= {
            "attempt": record.attempt,
            "expected_attempt": record.attempt,
            "owner_thread_id": record.owner_thread_id,
            "task_type": record.task_type,
        }
    for name in ("offset", "output_offset"):
        if name in fields and record is not None:
            fields[name] += max(0, record.output_bytes - 4)
    if record is not None and record.executor_id is not None and kind is not AttemptStarted:
        fields["executor_id"] = record.executor_id
    else:
        fields["executor_id"] = draw(st.sampled_from(executors))
    if kind in _ABOUT_QUESTIONS and record is not None:
        fields |= _about_questions(draw, kind, record, right=wrong is None)
    match wrong:
        case "executor":
            fields["executor_id"] = _GONE
        case "earlier" | "later" if record is not None:
            other = record.attempt + (1 if wrong == "later" else -1)
            fields |= {"attempt": other, "expected_attempt": other}
        case "owner" | "type" if record is not None:
            name = "owner_thread_id" if wrong == "owner" else "task_type"
            fields[name] = f"not {fields[name]}"[:200]
        case _:
            pass
    return kind(**{name: value for name, value in fields.items() if name in _FIELDS[kind]})


def _about_questions(
    draw: st.DrawFn, kind: type[Any], record: TaskRecord, *, right: bool
) -> dict[str, Any]:
    """Draw who waits for which of the record's questions, or which one is answered."""
    if kind is QuestionAnswered:
        there = record.open_questions if right else ()
        if not there:
            return {"question_id": draw(st.sampled_from(["q1", "q2"]))}
        question = draw(st.sampled_from(there))
        declined = draw(_any)
        answer = None if declined else draw(answers(question.schema))
        return {"question_id": question.question_id, "answer": answer, "declined": declined}
    held = [question for question in record.questions if draw(_any)]
    delivered = [q.question_id for q in held if q.state != "open" and draw(_any)]
    waiting = [q.question_id for q in held if q.question_id not in delivered]
    return {"waiting": tuple(waiting), "delivered": tuple(delivered)}


_RUN: dict[str, SearchStrategy[Any]] = {"at_ms": _times, "attempt": st.just(1)}
_START: dict[str, SearchStrategy[Any]] = {
    "at_ms": _times,
    "owner_thread_id": task_ids(),
    "task_type": task_ids(),
    "args": json_objects(),
    "background": st.booleans(),
}
_PARTS: dict[type[Any], dict[str, SearchStrategy[Any]]] = {
    Registered: {
        **_START,
        "description": texts(),
        "supports_resume": st.booleans(),
        "parent_task_id": st.none() | task_ids(),
        "metadata": json_objects(),
        "idempotency_key": st.none() | task_ids(),
    },
    Finished: {
        **_RUN,
        "outcome": outcomes(),
        "cancel_requested_at_ms": st.none() | st.none() | _times,
        "output_offset": st.integers(0, 8),
        "output": texts(),
        "announce": st.booleans(),
        "progress": st.none() | progress(),
    },
    CancelRequested: {"at_ms": _times},
    CheckpointSaved: {**_RUN, "value": json_values()},
    ProgressReported: {**_RUN, "progress": progress()},
    OutputAppended: {**_RUN, "offset": st.integers(0, 8), "text": texts()},
    QuestionAsked: {**_RUN, "message": _MESSAGES, "schema": _SCHEMAS},
    QuestionsWithdrawn: _RUN,
    QuestionAnswered: {"at_ms": _times, "question_id": st.just("q1")},
    Orphaned: _RUN,
    AttemptStarted: {**_START, "expected_attempt": st.just(1)},
}
_KINDS: list[type[Any]] = list(_PARTS)
_ABOUT_QUESTIONS = (CheckpointSaved, QuestionAsked, QuestionsWithdrawn, QuestionAnswered)
_FIELDS = {kind: {field.name for field in attrs.fields(kind)} for kind in _KINDS}


# ---- records -------------------------------------------------------------------------------------


@st.composite
def records(draw: st.DrawFn, state: str | None = None) -> TaskRecord:
    """Return records that can be reached, and no other: `apply` has made each from drawn events.

    Args:
        draw: is Hypothesis' own.
        state: one of `STATES`; None: any of them. A `TaskStatus` will do as well.
    """
    goal = draw(st.sampled_from(STATES)) if state is None else str(state)
    if goal not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}, not {goal!r}")
    start = _drawn(draw, Registered, None)
    if goal.startswith("stopped"):
        start = attrs.evolve(start, supports_resume=goal == "stopped")
    record = apply(draw(task_ids()), None, start, Facts())
    while record.supports_resume and record.attempt < 3 and draw(st.booleans()):
        record = _told(draw, _told(draw, _worked(draw, record), _STOP), AttemptStarted)
    record = _worked(draw, record)
    for step in draw(st.sampled_from(_WAYS[goal])):
        record = _told(draw, record, step)
    return record


_STOP, _SUCCEED, _FAIL, _CANCEL, _END, _MARKED_END = (
    *("stopped", "completed", "failed", "cancelled"),
    *("any end", "any end with a mark"),
)
_ENDS: dict[str, SearchStrategy[TaskResult]] = {
    _STOP: _stopped,
    _SUCCEED: _successes,
    _FAIL: _failures,
    _CANCEL: st.just(Cancelled()),
    _END: outcomes(),
    _MARKED_END: outcomes(),
}
_Way = tuple[type[Any] | str, ...]
# How a running record gets there.
_WAYS: dict[str, list[_Way]] = {
    "running": [()],
    "running, cancel accepted": [(CancelRequested,)],
    "stopped": [(_STOP,), (Orphaned,)],
    "stopped, not resumable": [(_STOP,), (Orphaned,)],
    "completed": [(_SUCCEED,)],
    "failed": [(_FAIL,)],
    "cancelled": [
        (_CANCEL,),
        (_MARKED_END,),
        (CancelRequested, _END),
        (CancelRequested, Orphaned),
        (_STOP, CancelRequested),
    ],
}


def _worked(draw: st.DrawFn, record: TaskRecord) -> TaskRecord:
    """Return a running record after some writes of its attempt."""
    for kind in draw(st.lists(_WRITES, max_size=3)):
        record = _told(draw, record, kind)
        if draw(_any) and record.open_questions:
            record = _told(draw, record, draw(_REPLIES))
    return record


_WRITES = st.sampled_from([CheckpointSaved, ProgressReported, OutputAppended, QuestionAsked])
_REPLIES = st.sampled_from([QuestionAnswered, QuestionAnswered, QuestionsWithdrawn])


def _told(draw: st.DrawFn, record: TaskRecord, step: type[Any] | str) -> TaskRecord:
    """Return the record after a right event: of this kind, or the end of its attempt."""
    event: Event
    if isinstance(step, str):
        end = _drawn(draw, Finished, record)
        mark = draw(_times) if step == _MARKED_END else None
        event = attrs.evolve(end, outcome=draw(_ENDS[step]), cancel_requested_at_ms=mark)
    else:
        event = _drawn(draw, step, record)
    return apply(record.task_id, record, event, Facts(executor_fenced=step is Orphaned))


# ---- registered with Hypothesis ------------------------------------------------------------------


@st.composite
def _right(draw: st.DrawFn, kind: type[Any]) -> Any:
    return _drawn(draw, kind, draw(records()))


def _register() -> None:
    st.register_type_strategy(TaskRecord, records())
    st.register_type_strategy(TaskSummary, st.builds(TaskRecord.summary, records()))
    st.register_type_strategy(Progress, progress())
    st.register_type_strategy(Question, questions())
    st.register_type_strategy(Success, _successes)
    st.register_type_strategy(Failed, _failures)
    st.register_type_strategy(Stopped, _stopped)
    st.register_type_strategy(ThreadMessageRef, _messages)
    st.register_type_strategy(ExternalRef, _uris)
    for event in _KINDS:
        st.register_type_strategy(event, _right(event))


_register()
