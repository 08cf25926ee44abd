"""One attempt of a call at another server: to its answer, or after its task to the end of that.

The checkpoint is ``{"task_id", "answers"}``: which remote task it became, and of what that asked
the responses, each until it was sent; None from then on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import trio
from mcp.client import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    REQUEST_TIMEOUT,
    ElicitResult,
    InputRequiredResult,
    InputResponse,
    Result,
)

from .._errors import QuestionDeclined, Refused
from .._execution import BackgroundExecution
from .._json import JsonObject, shorten
from .._outcome import BodyEnd
from .._records import Failed, Stopped, Success, TaskResult
from .._tool import ExecutionFailed
from ._protocol import EXTENSION, log
from ._remote_task import RemoteTask, TaskHandle, TaskState

HANDLE_S = 1.0
"""How long a call that is given up may take to say which task it became."""
CANCEL_S = 2.0
"""How long a server may take to accept that a task is cancelled."""
LEAST_PAUSE_S = 0.1
MOST_PAUSE_S = 30.0
_PAUSE_S = 1.0  # where the server does not say how often to ask
_MOST_MESSAGE = 4000  # of a question


class RemoteCall:
    """What an attempt knows of its call: which task it became, and what that was answered."""

    def __init__(self, session: ClientSession, name: str, execution: BackgroundExecution) -> None:
        self._session = session
        self._name = name
        self._execution = execution
        self._task: RemoteTask | None = None
        self._answers: dict[str, JsonObject | None] = {}
        self._asking: dict[str, trio.CancelScope] = {}
        self._saving = trio.Lock()
        self._told: str | None = None
        saved: Any = execution.checkpoint
        if saved is not None:
            self._task = RemoteTask(session, saved["task_id"])
            self._answers = dict(saved["answers"])

    async def run(self, args: JsonObject) -> TaskResult:
        """Make the call, unless its task is known already; return how it ended."""
        try:
            return await self._run(args)
        except BaseException as error:
            if self._task is not None and self._ends_it(error):
                with trio.move_on_after(CANCEL_S, shield=True):
                    await self._cancel(self._task)
            raise

    async def _run(self, args: JsonObject) -> TaskResult:
        if self._task is None:
            result = await self._call(args)
            if isinstance(result, MCPError):
                return Failed(self._refusal(result))
            if self._task is None:
                return _outcome_of_call(_plain(result))
        return await self._follow(self._task)

    # ---- the call -----------------------------------------------------------------------------

    async def _call(self, args: JsonObject) -> Result | MCPError:
        """Send the call; return its answer. If that is a task, this is stored when it returns.

        One that is cancelled may learn for a moment which task it became.
        """
        capabilities = self._session.server_capabilities
        declared = (capabilities and capabilities.extensions) or {}
        patience_s = HANDLE_S if EXTENSION in declared else 0
        sending = trio.CancelScope(shield=True)
        result: Result | MCPError | None = None

        async def limit() -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:  # noqa: ASYNC103 - what comes in time is not to be lost by it
                sending.deadline = trio.current_time() + patience_s

        async with trio.open_nursery() as nursery:
            nursery.start_soon(limit)
            with sending:
                try:
                    result = await self._answered_call(args)
                except MCPError as error:
                    result = error
                if isinstance(result, TaskHandle):
                    self._task = RemoteTask(self._session, result.task_id)
                    await self._save()
            nursery.cancel_scope.cancel()
        if result is None:
            await trio.lowlevel.checkpoint()  # of the scope that was cancelled
        assert result is not None
        return result

    async def _answered_call(self, args: JsonObject) -> Result:
        """Send the call, again and again with what was asked meanwhile; return what ends it."""
        answers: dict[str, InputResponse] | None = None
        state: str | None = None
        while True:
            result = await self._session.call_tool(
                self._name,
                args,
                progress_callback=self._progress,
                input_responses=answers,
                request_state=state,
                allow_input_required=True,
                allow_claimed=True,
            )
            if not isinstance(result, InputRequiredResult):
                return result
            requests = _plain(result).get("inputRequests", {})
            answers = {
                key: ElicitResult.model_validate(await self._response(request))
                for key, request in requests.items()
            }
            state = result.request_state

    async def _progress(self, progress: float, total: float | None, message: str | None) -> None:
        with suppress(Refused, ValueError):  # it comes late, or is beyond what a record takes
            await self._execution.report_progress(progress, total, message)

    def _refusal(self, error: MCPError) -> str:
        if error.code in (CONNECTION_CLOSED, REQUEST_TIMEOUT):
            return f"the connection was lost, it is unknown whether {self._name!r} ran: {error}"
        return f"the server refused the call: {error}"

    # ---- its task -----------------------------------------------------------------------------

    async def _follow(self, task: RemoteTask) -> TaskResult:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    state = await task.get()
                except MCPError as error:
                    outcome = _outcome_unknown(task, error)
                    break
                ended = _outcome(state)
                if ended is not None:
                    outcome = ended
                    break
                await self._tell(state.status_message)
                self._ask(nursery, task, state.input_requests or {})
                await trio.sleep(_pause_s(state))
            nursery.cancel_scope.cancel()
        return outcome

    async def _tell(self, message: str | None) -> None:
        if message and message != self._told:
            self._told = message
            await self._execution.write_output(f"{message}\n")

    def _ends_it(self, error: BaseException) -> bool:
        """Is nobody interested in the remote task any more, as the attempt ends by that?"""
        stopping = self._execution.stopping
        if stopping is None:  # what is no mere cancellation fails the task, unless it lost it
            return isinstance(error, Exception) and not BodyEnd(raised=error).has(Refused)
        return stopping in ("cancel", "deadline")

    async def _cancel(self, task: RemoteTask) -> None:
        try:
            await task.cancel()
        except Exception as error:  # noqa: BLE001 - how the attempt ended is to be told all the same
            log.warning("remote task %s may go on: it was not cancelled: %r", task.task_id, error)

    # ---- what it asks -------------------------------------------------------------------------

    def _ask(self, nursery: trio.Nursery, task: RemoteTask, requests: dict[str, Any]) -> None:
        """Ask for what is asked now, and not any more for what is not."""
        for key in self._asking.keys() - requests.keys():
            self._asking[key].cancel()
        for key, request in requests.items():
            if key not in self._asking:
                self._asking[key] = trio.CancelScope()
                nursery.start_soon(self._answer, task, key, request)

    async def _answer(self, task: RemoteTask, key: str, request: JsonObject) -> None:
        """Get the answer, store it, send it, store that."""
        with self._asking[key]:
            if key not in self._answers:
                self._answers[key] = await self._response(request)
        response = self._answers.get(key)
        if response is not None:  # it is there, and was not sent
            await self._save()
            try:
                await task.answer(key, response)
                self._answers[key] = None
            except MCPError as error:
                # If the connection is lost, the next look says so. A wrong answer is asked anew.
                await self._execution.write_output(f"An answer was not taken: {error}\n")
                if error.code == INVALID_PARAMS:
                    del self._answers[key]
            await self._save()
        del self._asking[key]

    async def _response(self, request: JsonObject) -> JsonObject:
        """Return an ``ElicitResult``: what a person answers."""
        match request:
            case {"method": "elicitation/create", "params": {"url": str(url), **params}}:
                message, schema = f"{params.get('message', '')}\n{url}", {}
            case {
                "method": "elicitation/create",
                "params": {"requestedSchema": dict(form), **params},
            }:
                message, schema = str(params.get("message", "")), cast("dict[str, Any]", form)
            case _:
                raise ExecutionFailed(
                    f"the server asks for {request.get('method')!r}; only elicitations are answered"
                )
        message = shorten(message.strip(), _MOST_MESSAGE) or f"{self._name} asks"
        try:
            answer = await self._execution.ask(message, schema)
        except QuestionDeclined:
            return {"action": "decline"}
        return {"action": "accept", "content": answer} if schema else {"action": "accept"}

    async def _save(self) -> None:
        assert self._task is not None
        async with self._saving:
            state = {"task_id": self._task.task_id, "answers": dict(self._answers)}
            await self._execution.save_checkpoint(state)


def _outcome(state: TaskState) -> TaskResult | None:
    """Return how the remote task ended; None: it has not."""
    match state.status:
        case "completed":
            return _outcome_of_call(state.result or {})
        case "failed":
            error = state.error or {}
            return Failed(str(error.get("message") or state.status_message or "the task failed"))
        case "cancelled":
            return Failed("the task was cancelled at its server")
        case _:
            return None


def _outcome_unknown(task: RemoteTask, error: MCPError) -> TaskResult:
    if error.code == INVALID_PARAMS:
        return Failed(
            f"the server does not know the task {task.task_id!r} any more: what became of it is "
            f"unknown, and it was not run again ({error})"
        )
    return Stopped(f"the server could not be asked for the task {task.task_id!r}: {error}")


def _outcome_of_call(result: dict[str, Any]) -> TaskResult:
    """Return what a ``CallToolResult`` says."""
    value = {name: result[name] for name in ("content", "structuredContent") if name in result}
    if not result.get("isError"):
        return Success(value)
    texts = [block["text"] for block in result.get("content", ()) if block.get("type") == "text"]
    return Failed("\n".join(texts) or "the tool failed", value)


def _plain(result: Result) -> dict[str, Any]:
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


def _pause_s(state: TaskState) -> float:
    wished_s = _PAUSE_S if state.poll_interval_ms is None else state.poll_interval_ms / 1000
    return min(max(LEAST_PAUSE_S, wished_s), MOST_PAUSE_S)
