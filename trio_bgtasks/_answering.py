"""Answering the questions of tasks, in whatever process they run."""

from __future__ import annotations

from ._errors import InvalidAnswer, QuestionClosed
from ._events import QuestionAnswered
from ._hints import Hints
from ._json import JsonValue
from ._json_schema import schema_validator, violations
from ._looking import Looker
from ._questions import NO_SUCH_QUESTION
from ._records import Question, TaskStatus, TaskSummary
from ._requests import ManagerConfig
from .stores import TaskStore


class Answerer:
    """Stores answers, and wakes who waits for them in this process; others poll."""

    def __init__(
        self, store: TaskStore, config: ManagerConfig, looker: Looker, hints: Hints
    ) -> None:
        self._store = store
        self._config = config
        self._looker = looker
        self._hints = hints

    async def answer(
        self, owner_thread_id: str, task_id: str, event: QuestionAnswered
    ) -> TaskSummary:
        """Store the answer; return how the task stands. See `BackgroundTaskManager.answer`."""
        record = await self._looker.known(owner_thread_id, task_id)
        question = record.question(event.question_id)
        if question is None and record.status is TaskStatus.RUNNING:
            # Not to be asked of the store: it may be there by then, and was not looked at.
            raise QuestionClosed(task_id, event.question_id, NO_SUCH_QUESTION)
        if question is not None and question.state == "open" and not event.declined:
            _check(question, event.answer)  # its schema never changes
        after = await self._store.apply(task_id, event)
        self._hints.changed(owner_thread_id, task_id)
        return self._looker.summary(after)


def _check(question: Question, answer: JsonValue) -> None:
    text = violations(schema_validator(question.schema), answer)
    if text:
        raise InvalidAnswer(f"the answer to question '{question.question_id}' does not fit: {text}")
