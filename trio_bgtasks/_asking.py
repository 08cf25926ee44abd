"""`Asker`: the questions of one attempt, each from the call that asks to its answer."""

from __future__ import annotations

import logging
from typing import Any

import trio

from ._attempt_log import AttemptLog
from ._errors import CorruptRecord, QuestionDeclined, StaleAttempt
from ._events import QuestionAsked, QuestionsWithdrawn
from ._json import JsonObject, clone_json
from ._questions import asked_before
from ._records import Question, TaskRecord

log = logging.getLogger("trio_bgtasks.execution")

MAX_QUESTIONS = 100


class Asker:
    """What one attempt asks.

    It asks one question at a time, so that what the store is told of the others is exact: for which
    ones somebody waits, and of which ones the body has the answer.
    """

    def __init__(self, attempt_log: AttemptLog, scope: trio.CancelScope) -> None:
        self._log = attempt_log
        self._port = attempt_log.port
        self._scope = scope  # of the body
        self._record = attempt_log.record
        self._earlier = {question.question_id for question in self._record.questions}
        self._lock = trio.Lock()
        self._waiting: list[str] = []
        self._delivered: list[str] = []

    async def ask(self, message: str, schema: JsonObject) -> Any:
        """Ask, wait for the answer and return it. See `BackgroundExecution.ask`."""
        question: Question | None = None
        with self._port.hints.watch(self._record.task_id) as watch:
            try:
                changed = watch.event
                question = await self._put(message, schema)
                while question.state == "open":
                    with trio.move_on_after(self._port.config.poll_s):
                        await changed.wait()
                    self._log.check_open()  # who outlives the attempt would wait for ever
                    changed = watch.event  # before reading: what changes then is not missed
                    question = await self._read(question)
            except BaseException:
                if question is not None:
                    self._waiting.remove(question.question_id)
                if not self._scope.cancel_called:  # else the end of the attempt does that
                    with self._port.waits.bound(self._port.config.write_grace_s, shield=True):
                        await self._withdraw()  # noqa: ASYNC102 - the scope is shielded and bounded
                raise
        self._waiting.remove(question.question_id)
        self._delivered.append(question.question_id)
        if question.state == "declined":
            raise QuestionDeclined(message)
        return clone_json(question.answer)

    @property
    def delivered(self) -> tuple[str, ...]:
        """The questions of which the body has the answer, since the last checkpoint."""
        return tuple(self._delivered)

    def saved(self, record: TaskRecord, used: tuple[str, ...]) -> None:
        """Note that a checkpoint is stored, and with it that these answers are used."""
        self._record = record
        self._delivered = [name for name in self._delivered if name not in used]

    async def _put(self, message: str, schema: JsonObject) -> Question:
        async with self._lock:
            told = message, schema, tuple(self._waiting), tuple(self._delivered)
            event = QuestionAsked(0, "", 0, *told)
            if self._is_full() and asked_before(self._record, event) is None:
                raise RuntimeError(
                    f"this attempt of task '{self._record.task_id}' has {MAX_QUESTIONS} questions "
                    "that are open or were answered since its last checkpoint: save one before it "
                    "asks again"
                )
            self._record = await self._log.store(QuestionAsked, *told)
            question = asked_before(self._record, event)
            assert question is not None
            self._waiting.append(question.question_id)
        self._tell()
        return question

    def _is_full(self) -> bool:
        """Has it asked all that it may? What earlier attempts left is not its to use up."""
        kept = self._record.questions
        return len(kept) - sum(q.question_id in self._earlier for q in kept) >= MAX_QUESTIONS

    async def _read(self, question: Question) -> Question:
        """Return how the question stands; as it did while the store does not answer."""
        task_id = self._record.task_id
        try:
            record = await self._port.store.load(task_id)
        except CorruptRecord:
            raise
        except Exception as error:  # noqa: BLE001 - a store may fail in any way
            text = "answer to question %s not read yet: %s: %s"
            name = type(error).__name__
            log.warning(text, question.question_id, name, error, extra=self._log.extra())
            return question
        found = None if record is None else record.question(question.question_id)
        mine = (self._record.attempt, self._record.executor_id)
        if record is None or found is None or (record.attempt, record.executor_id) != mine:
            current = (0, "collected") if record is None else (record.attempt, record.status)
            raise StaleAttempt(task_id, self._record.attempt, *current)
        return found

    async def _withdraw(self) -> None:
        """Withdraw every open question that no one waits for; if that fails, the next ask does."""
        async with self._lock:
            try:
                record = await self._log.store(QuestionsWithdrawn, tuple(self._waiting))
            except Exception as error:  # noqa: BLE001 - a store may fail in any way
                text = "question not withdrawn: %s: %s"
                log.warning(text, type(error).__name__, error, extra=self._log.extra())
            else:
                self._record = record
                self._tell()

    def _tell(self) -> None:
        record: TaskRecord = self._record
        self._port.hints.changed(record.owner_thread_id, record.task_id, wake=False)
