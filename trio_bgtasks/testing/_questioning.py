"""Promise 13, from what tools and callers saw: what was asked, answered, and given to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol, TypeAlias

import attrs

from trio_bgtasks import JournalEntry, Question, TaskRecord, TaskStatus

Words: TypeAlias = tuple[str, str]
"""What is asked: the message, and the text of the schema."""

DECLINED = "declined"


def words_of(message: str, schema: Any) -> Words:
    """Return what two calls have in common that ask the same: 1 is not 1.0, and not true."""
    return message, json.dumps(schema, sort_keys=True)


def reply_of(value: object, *, declined: bool = False) -> str:
    """Return the text of an answer, by which it is compared."""
    return DECLINED if declined else json.dumps(value, sort_keys=True)


@attrs.define(eq=False)
class Asked:
    """One call of ``ask``.

    ``reply`` is what it was given, as text: JSON, or ``declined``; None: nothing (yet). ``ended``
    is when it returned or raised; None while it waits.
    """

    words: Words
    began: int
    reply: str | None = None
    ended: int | None = None


@attrs.define(eq=False)
class Answer:
    """One try to answer a question; ``accepted``: when that was confirmed, None if it was not."""

    question_id: str
    reply: str
    asked: int
    accepted: int | None = None


class Saved(Protocol):
    """See `Save`."""

    asked: int
    told: int | None


@attrs.define(eq=False)
class AttemptQuestions:
    """What one execution of a body asked, and the checkpoints that it saved meanwhile.

    ``doubtful``: its store was out of reach, so what it withdrew may still be open.
    """

    attempt: int
    asks: list[Asked] = attrs.field(factory=list[Asked])
    saves: list[Saved] = attrs.field(factory=list[Saved])
    doubtful: bool = False

    @property
    def waiting(self) -> list[Asked]:
        """The calls that wait."""
        return [ask for ask in self.asks if ask.ended is None]

    def used(self, ask: Asked) -> bool:
        """Did it save a checkpoint after it was given that, so that nobody is given it again?"""
        told = [save for save in self.saves if save.told is not None]
        return ask.ended is not None and any(save.asked > ask.ended for save in told)

    def may_be_used(self, ask: Asked) -> bool:
        """Did it perhaps?"""
        last = self.saves[-1] if self.saves else None
        done = None if last is None else last.told or (1 << 62)
        return ask.ended is not None and done is not None and done > ask.ended


@attrs.define(eq=False)
class TaskQuestions:
    """All that was seen of the questions of a task; ``seen`` by those who may answer them."""

    seen: dict[str, Question] = attrs.field(factory=dict[str, Question])
    answers: list[Answer] = attrs.field(factory=list[Answer])
    attempts: list[AttemptQuestions] = attrs.field(factory=list[AttemptQuestions])

    def show(self, questions: tuple[Question, ...]) -> str | None:
        """Note what somebody is asked; return what is wrong with it."""
        for question in questions:
            known = self.seen.setdefault(question.question_id, question)
            if known != question:
                return f"{known} was asked before, now it is {question}"
        return None

    def is_about(self, answer: Answer, words: Words) -> bool:
        """Is it an answer to a question of these words?"""
        question = self.seen.get(answer.question_id)
        return question is None or words_of(question.message, question.schema) == words

    def owed(self, run: AttemptQuestions, words: Words) -> list[Answer]:
        """Return the accepted answers that an attempt has to be given when it asks this."""
        there = [a for a in self.answers if a.accepted is not None and self.is_about(a, words)]
        there = [answer for answer in there if answer.question_id in self.seen]
        for other in self.attempts:
            if other.attempt > run.attempt:
                continue
            for ask in other.asks:
                if ask.words == words and (other is run or other.may_be_used(ask)):
                    match = [answer for answer in there if answer.reply == ask.reply]
                    if match:
                        there.remove(match[0])
        return there

    def overgiven(self) -> Iterator[str]:
        """Yield what an attempt was given more often than it was answered since a checkpoint."""
        used: list[tuple[Words, str | None]] = []
        for run in sorted(self.attempts, key=lambda run: run.attempt):
            given = [(ask.words, ask.reply) for ask in run.asks if ask.reply is not None]
            for words, reply in {*given}:
                ids = {
                    answer.question_id
                    for answer in self.answers
                    if answer.reply == reply and self.is_about(answer, words)
                }
                times = given.count((words, reply))
                if times > len(ids) - used.count((words, reply)):
                    yield (
                        f"attempt {run.attempt} was given {reply} {times} times for {words[0]!r}, "
                        f"answered {len(ids)} times, {used.count((words, reply))} of them used"
                    )
            used += [(ask.words, ask.reply) for ask in run.asks if ask.reply and run.used(ask)]


class Complaining(Protocol):
    """Says which promise is broken, and what is stored."""

    def __call__(self, promise: int, what: str, /) -> NoReturn: ...


def check_questions(
    questions: TaskQuestions,
    record: TaskRecord,
    journal: list[JournalEntry],
    broken: Complaining,
) -> None:
    """Check what the store says of a task's questions against what was seen of them."""
    asked = [e for e in journal if e.kind == "question_asked"]
    ids = [entry.detail for entry in asked]
    if len(set(ids)) != len(ids) or record.questions_asked != len(ids):
        broken(13, f"the journal has the questions {ids}, of {record.questions_asked}")
    for run in questions.attempts:
        times = sum(entry.attempt == run.attempt for entry in asked)
        if times > len(run.asks):
            broken(13, f"attempt {run.attempt} asked {len(run.asks)} times, stored are {times}")
    _check_replies(questions, journal, broken)
    for question in record.questions:
        _check_stored(questions, question, record, broken)
    for what in questions.overgiven():
        broken(13, what)


def _check_replies(
    questions: TaskQuestions, journal: list[JournalEntry], broken: Complaining
) -> None:
    kinds = {"question_answered": False, "question_declined": True}
    replies = [(e.detail, kinds[e.kind]) for e in journal if e.kind in kinds]
    tried = {(a.question_id, a.reply == DECLINED) for a in questions.answers}
    for question_id, declined in replies:
        if [name for name, _ in replies].count(question_id) > 1:
            broken(13, f"question {question_id} was answered more than once")
        if (question_id, declined) not in tried:
            broken(13, f"nobody gave the answer that question {question_id} has")
    for answer in questions.answers:
        told = answer.question_id, answer.reply == DECLINED
        if answer.accepted is not None and told not in replies:
            broken(13, f"an accepted answer to question {answer.question_id} is not stored")


def _check_stored(
    questions: TaskQuestions, question: Question, record: TaskRecord, broken: Complaining
) -> None:
    name = question.question_id
    tries = [answer for answer in questions.answers if answer.question_id == name]
    accepted = [answer.reply for answer in tries if answer.accepted is not None]
    if question.state == "open":
        if accepted:
            broken(13, f"question {name} was answered, and is open")
        if record.status is not TaskStatus.RUNNING:
            broken(13, f"question {name} is open, and its task is {record.status}")
        return
    reply = reply_of(question.answer, declined=question.state == "declined")
    if reply not in (accepted or [answer.reply for answer in tries]):
        broken(13, f"question {name} is stored with {reply}, which nobody answered")


def left_open(run: AttemptQuestions, record: TaskRecord) -> str | None:
    """Return a question that somebody may answer although nobody waits for that."""
    waiting = [ask.words for ask in run.waiting]
    for question in record.open_questions:
        words = words_of(question.message, question.schema)
        if words not in waiting:
            return f"question {question.question_id} is open, and nobody waits for it"
        waiting.remove(words)
    return None
