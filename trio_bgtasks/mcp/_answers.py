"""What clients answer to questions of tasks, and to ours whether to resume one."""

from __future__ import annotations

from typing import Any, cast

import trio
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import INVALID_PARAMS, ElicitRequest, ElicitRequestFormParams, ElicitResult

from .._errors import InvalidAnswer, QuestionClosed, Refused, TaskNotRunning
from .._json import JsonObject
from .._manager import BackgroundTaskManager
from .._records import Question, TaskRecord, TaskStatus
from .._tool import ToolError
from ._protocol import Context, log, task_errors
from ._questions import RESUME, answer_of, resume_key
from ._toolbox import Toolbox
from ._watch import News
from ._wire import shown

RELATED_TASK = "io.modelcontextprotocol/related-task"
_ACTIONS = ("accept", "decline", "cancel")


class WrongAnswer(MCPError):
    """A response that nothing can be done with; the question stays open."""

    def __init__(self, text: str) -> None:
        super().__init__(INVALID_PARAMS, text)


class Answers:
    """Passes answers on. What is not asked, or not any more, is ignored."""

    def __init__(self, manager: BackgroundTaskManager, toolbox: Toolbox) -> None:
        self._manager = manager
        self._toolbox = toolbox

    async def ask_new(self, ctx: Context, record: TaskRecord, asked: set[str], news: News) -> bool:
        """Ask the client, within its request, one thing that the task asks and is not in ``asked``.

        Tell if there was one: then look again. What is not answered, or not well, stays open; what
        is not open any more is withdrawn, so that no form holds up the request.
        """
        questions = cast("dict[str, Any]", shown(record, can_answer=True).questions or {})
        for key in questions:
            if key not in asked:
                asked.add(key)
                await self._ask(ctx, record, key, questions[key]["params"], news)
                return True
        return False

    async def _ask(
        self, ctx: Context, record: TaskRecord, key: str, form: dict[str, Any], news: News
    ) -> None:
        try:
            response = await self._response(ctx, record, key, form, news)
            if response is not None:
                with task_errors():
                    await self.give(record, key, response)
        except Exception as error:  # noqa: BLE001 - whatever the client says, the request goes on
            log.warning("question %s of %s is not answered: %s", key, record.task_id, error)

    async def _response(
        self, ctx: Context, record: TaskRecord, key: str, form: dict[str, Any], news: News
    ) -> JsonObject | None:
        """Return what the client answers; None if the question was closed before that."""
        related = {RELATED_TASK: {"taskId": record.task_id}}
        params = ElicitRequestFormParams.model_validate({**form, "_meta": related})
        channel = ServerMessageMetadata(related_request_id=ctx.request_id)
        responses: list[JsonObject] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._closed, record, key, news, nursery.cancel_scope)
            answer = await ctx.session.send_request(
                ElicitRequest(params=params), ElicitResult, metadata=channel
            )
            responses.append(answer.model_dump(mode="json", by_alias=True, exclude_none=True))
            nursery.cancel_scope.cancel()
        return responses[0] if responses else None

    async def _closed(
        self, record: TaskRecord, key: str, news: News, scope: trio.CancelScope
    ) -> None:
        """Cancel the scope as soon as the question is not open any more."""
        while True:
            try:
                now = await self._manager.record(record.owner_thread_id, record.task_id)
            except Exception as error:  # noqa: BLE001 - a store may fail in any way
                log.warning("not seen if %s of %s is open: %s", key, record.task_id, error)
            else:
                if now is None or key not in (shown(now, can_answer=True).questions or {}):
                    scope.cancel()
                    return
            await news.next()

    async def give(self, record: TaskRecord, key: str, response: object) -> None:
        """Pass on one response, which should be an ``ElicitResult``.

        Raises:
            WrongAnswer: it is none, or does not fit the question.
            TaskStoreError: the store failed.
        """
        try:
            if record.status is TaskStatus.STOPPED and key == resume_key(record):
                await self._resume(record, *_elicited(key, response))
                return
            for question in record.open_questions:
                if key == question.question_id:
                    await self._answer(record, question, *_elicited(key, response))
        except (QuestionClosed, TaskNotRunning):
            pass  # somebody else was faster, or the task has ended

    async def _answer(
        self, record: TaskRecord, question: Question, action: str, content: JsonObject | None
    ) -> None:
        owner, task_id, question_id = record.owner_thread_id, record.task_id, question.question_id
        if action != "accept":
            await self._manager.decline(owner, task_id, question_id)
            return
        try:
            value = answer_of(question, content)
            await self._manager.answer(owner, task_id, question_id, value)
        except (InvalidAnswer, ValueError) as error:
            raise WrongAnswer(f"{question_id}: {error}") from None

    async def _resume(self, record: TaskRecord, action: str, content: JsonObject | None) -> None:
        """Resume, or give up for good; a form that was only closed decides nothing."""
        if action == "cancel":
            return
        wanted = (content or {}).get(RESUME) if action == "accept" else False
        if not isinstance(wanted, bool):
            raise WrongAnswer(f"{resume_key(record)}: {RESUME!r} must be a boolean")
        if not wanted:
            await self._manager.cancel(record.owner_thread_id, record.task_id)
            return
        try:
            await self._toolbox.resume(record)
        except (ToolError, Refused) as error:
            raise WrongAnswer(f"{resume_key(record)}: {error}") from None


def _elicited(key: str, response: object) -> tuple[str, JsonObject | None]:
    fields = cast("dict[str, Any]", response) if isinstance(response, dict) else {}
    action = fields.get("action")
    if action not in _ACTIONS:
        raise WrongAnswer(f"{key}: action must be one of {', '.join(_ACTIONS)}")
    content = fields.get("content")
    if content is not None and not isinstance(content, dict):
        raise WrongAnswer(f"{key}: content must be an object")
    return action, cast("JsonObject | None", content)
