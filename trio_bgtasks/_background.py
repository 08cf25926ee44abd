"""`BackgroundCapable`: the wrapper that makes a tool's calls tasks of a manager.

It strips the parameters that it adds, finds out whether a call starts, resumes or only asks for a
task, lets the tool's hooks speak, and only then asks the manager for an attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from ._errors import IdempotencyKeyUsed, ManagerClosed, Refused, TaskError
from ._executable import (
    TASK_ID_PARAM,
    Args,
    BackgroundExecutable,
    ForegroundRun,
    Rejected,
    check_supports_resume,
    is_prepared,
)
from ._execution import BackgroundExecution
from ._json import JsonObject, check_id, clone_json, json_object, new_id
from ._lifecycle import ANONYMOUS
from ._manager import BackgroundTaskManager
from ._parameters import RUN_IN_BACKGROUND_PARAM, parameters_of
from ._records import (
    Failed,
    Stopped,
    TaskRecord,
    TaskResult,
    TaskStatus,
    TaskSummary,
    shown_result,
)
from ._requests import StartRequest
from ._tool import (
    ExecutionFailed,
    InvalidArguments,
    Tool,
    ToolCallContext,
    ToolDescriptor,
    ToolError,
    ToolResult,
    ToolStatus,
    check_context,
)

log = logging.getLogger("trio_bgtasks.tools")


@attrs.frozen
class _Call:
    """What a model asked for, without the parameters that the wrapper added."""

    args: Args
    background: bool
    task_id: str | None
    ctx: ToolCallContext
    owner: str


@attrs.frozen
class _Attempt:
    """What the hooks made of a call: ready to be stored and run."""

    request: StartRequest
    args: Args
    prepared: Any
    task_id: str


class BackgroundCapable(Tool):
    """``inner`` with one more parameter, ``run_in_background``; every call of it is a task.

    In the background a call answers with a task id as soon as its start is stored. In the
    foreground it answers with the tool's own result, and is a supervised, listed and cancellable
    task all the same; if the call has a thread, the task's id is in the result's metadata as
    ``task_id``. A call with the id of an existing task answers how that stands, or resumes it if it
    is stopped and tool and record support that: with the arguments of the last attempt, over them
    those of the call.

    Raises:
        TypeError: ``inner`` is no `BackgroundExecutable`, or ``manager`` no manager; or
            ``supports_resume`` is no boolean.
        ValueError: the tool has a parameter of that name already, or its schema has no room for
            one.
    """

    def __init__(self, inner: BackgroundExecutable[Any], manager: BackgroundTaskManager) -> None:
        for value, kind in ((inner, BackgroundExecutable), (manager, BackgroundTaskManager)):
            if not isinstance(value, kind):  # pyright: ignore[reportUnnecessaryIsInstance]
                given = type(value).__name__
                raise TypeError(f"BackgroundCapable needs a {kind.__name__}, not {given}")
        check_supports_resume(inner.supports_resume)
        self._inner = inner
        self._manager = manager
        self._parameters = parameters_of(inner)

    def __repr__(self) -> str:
        return f"<BackgroundCapable {self._inner!r}>"

    def descriptor(self) -> ToolDescriptor:
        """Return the inner one with the added parameters."""
        schema = clone_json(self._parameters.schema)
        return attrs.evolve(self._inner.descriptor(), parameters=schema)

    def validate_args(self, args: Any) -> None:
        """Check a call that starts a task by the tool's own rules, without the added parameters.

        A call that carries a task id is left to `execute`: a resume is checked with the arguments
        that it goes on with, a status answer needs none.
        """
        try:
            clean, _, task_id = self._parse(args)
        except Rejected:
            return  # a hook raised; execute answers that
        if task_id is None:
            self._inner.validate_args(clean)

    async def execute(self, args: Any, ctx: ToolCallContext) -> ToolResult:
        """Start, resume or look at a task.

        Arguments that start a task are taken as `validate_args` left them.

        Raises:
            InvalidArguments: ``run_in_background`` is no boolean, a task id is no id, or the
                arguments of a resume do not fit.
            ExecutionFailed: the store could not be asked, or the start could not be stored.
            TypeError: ``ctx`` is no `ToolCallContext`.
            Exception: in the foreground, what the tool itself raised.
        """
        check_context(ctx)
        try:
            clean, background, task_id = self._parse(args)
            if background and ctx.thread_id is None:
                return self._error("Missing caller thread context")
            owner = ctx.thread_id or new_id(ANONYMOUS)
            return await self._answer(_Call(clean, background, task_id, ctx, owner))
        except Rejected as rejected:
            return rejected.result

    # ---- reading a call -----------------------------------------------------------------------

    def _parse(self, args: object) -> tuple[Args, bool, str | None]:
        """Return the tool's own arguments, and what the added ones said."""
        try:
            clean: Args = json_object(args, "arguments")
        except (TypeError, ValueError) as error:
            raise InvalidArguments(str(error)) from None
        background = clean.pop(RUN_IN_BACKGROUND_PARAM, False)
        if not isinstance(background, bool):
            kind = type(background).__name__
            raise InvalidArguments(f"{RUN_IN_BACKGROUND_PARAM} must be a boolean, not {kind}")
        with self._hook():
            task_id = self._inner.task_id_from_args(clean)
        if task_id is not None:
            try:
                check_id(task_id, TASK_ID_PARAM)
            except (TypeError, ValueError) as error:
                raise InvalidArguments(str(error)) from None
        elif TASK_ID_PARAM in self._parameters.added:
            clean.pop(TASK_ID_PARAM, None)  # blank: as if it were not there
        return clean, background, task_id

    @contextmanager
    def _hook(self) -> Generator[None, None, None]:
        """Turn what a hook raises into the answer of the call."""
        try:
            yield
        except (ToolError, Rejected):
            raise
        except Exception as error:
            log.exception("a hook of tool %s raised", self._inner.task_type)
            raise Rejected(self._error(f"{type(error).__name__}: {error}")) from error

    async def _answer(self, call: _Call) -> ToolResult:
        key = call.ctx.idempotency_key
        known = None if key is None else await self._recall(call.owner, key)
        if known is not None:
            return known
        if call.task_id is None:
            new = call.ctx.task_id or new_id("bg_")
            return await self._run(call, self._prepare(call, call.args, new))
        record = await self._look_up(call.owner, call.task_id)
        resumable = self._inner.supports_resume and record.supports_resume
        if record.status is not TaskStatus.STOPPED or not resumable:
            return self._status(record)
        return await self._run(call, self._resume(call, record))

    # ---- tasks that exist already -------------------------------------------------------------

    async def _recall(self, owner: str, key: str) -> ToolResult | None:
        """Answer a call whose key was used before, as the one that used it; None: it was not."""
        try:
            record = await self._manager.recall(owner, self._inner.task_type, key)
        except IdempotencyKeyUsed as used:
            return self._error(str(used))
        except Exception as error:
            raise ExecutionFailed(f"task lookup failed: {error}") from error
        if record is None:
            return None
        if record.background and record.status is TaskStatus.RUNNING:
            return self._started(record.task_id)
        if not record.background and record.status is TaskStatus.COMPLETED:
            answer = ToolResult.success(self._name, shown_result(record.result, record.result_ref))
            return attrs.evolve(answer, metadata={"task_id": record.task_id})
        return self._status(record)

    async def _look_up(self, owner: str, task_id: str) -> TaskRecord:
        """Return the record of this owner's task of this tool; any other is unknown."""
        try:
            record = await self._manager.record(owner, task_id)
        except Exception as error:
            for live in self._manager.live(owner):
                if (live.task_id, live.task_type) == (task_id, self._inner.task_type):
                    raise Rejected(self._status(live)) from error
            raise ExecutionFailed(f"task lookup failed: {error}") from error
        if record is None or record.task_type != self._inner.task_type:
            raise Rejected(self._error(f"Unknown task: {task_id}"))
        return record

    def _resume(self, call: _Call, record: TaskRecord) -> _Attempt:
        """Merge the arguments by top-level key, validate them, prepare the next attempt."""
        with self._hook():
            carriers = {
                name: value
                for name, value in call.args.items()
                if not self._finds_id(call.args, record.task_id, without=name)
            }
            given = {name: value for name, value in call.args.items() if name not in carriers}
            merged = {**record.args, **given}
            own = self._parameters.own
            declared = {name: value for name, value in carriers.items() if name in own}
            self._inner.validate_args({**clone_json(merged), **declared})
        return self._prepare(call, merged, record.task_id, record)

    def _finds_id(self, args: Args, task_id: str, *, without: str) -> bool:
        """Does the tool find this id also without that argument?"""
        rest = {name: value for name, value in args.items() if name != without}
        try:
            return self._inner.task_id_from_args(rest) == task_id
        except Exception:  # noqa: BLE001 - it looked for the argument
            return False

    # ---- attempts -----------------------------------------------------------------------------

    def _prepare(
        self,
        call: _Call,
        args: Args,
        task_id: str,
        stopped: TaskRecord | None = None,
    ) -> _Attempt:
        """Let the hooks speak; nothing is stored yet."""
        tool = self._inner
        with self._hook():
            stored = tool.stored_args(clone_json(args))
            own_args = tool.with_task_id(args, task_id)
            if own_args is not args:
                own_args = json_object(own_args, "with_task_id")
            request = StartRequest(
                owner_thread_id=call.owner,
                task_type=tool.task_type,
                description=tool.task_description(own_args),
                task_id=task_id,
                parent_task_id=self._manager.current_task_id() or call.ctx.run_id,
                args=stored,
                metadata=tool.task_metadata(own_args),
                # Without a thread nobody could resume it.
                supports_resume=tool.supports_resume and call.ctx.thread_id is not None,
                idempotency_key=call.ctx.idempotency_key,
                resume_attempt=None if stopped is None else stopped.attempt,
            )
            prepared = None
            if call.background or is_prepared(tool):
                resumes = stopped is not None
                prepared = tool.prepare_background(own_args, call.ctx, is_resume=resumes)
        return _Attempt(request, own_args, prepared, task_id)

    async def _run(self, call: _Call, attempt: _Attempt) -> ToolResult:
        if not call.background:
            return await self._run_here(call, attempt)

        async def body(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
            return await self._inner.execute_background(
                attempt.task_id, attempt.args, attempt.prepared, execution, scope
            )

        try:
            summary = await self._manager.start(attempt.request, body)
        except TaskError as error:
            return await self._not_started(call, attempt, error)
        if summary.task_id != attempt.task_id:
            used = IdempotencyKeyUsed(summary.task_id, call.ctx.idempotency_key or "")
            return await self._not_started(call, attempt, used)
        return self._started(attempt.task_id)

    async def _run_here(self, call: _Call, attempt: _Attempt) -> ToolResult:
        run = ForegroundRun(self._inner, attempt.args, attempt.prepared, call.ctx)
        try:
            outcome = await self._manager.run(attempt.request, run.body)
        except TaskError as error:
            if run.began:
                raise  # the tool's own
            return await self._not_started(call, attempt, error)
        result = run.answer(outcome) or self._ended(attempt, outcome)
        notes: JsonObject = {}
        if call.ctx.thread_id is not None:
            notes["task_id"] = attempt.task_id  # its output can be asked for
        unsaved = self._manager.persistence_error(call.owner, attempt.task_id)
        if unsaved is not None:
            notes["persistence_warning"] = unsaved
        return attrs.evolve(result, metadata={**result.metadata, **notes})

    async def _not_started(self, call: _Call, attempt: _Attempt, error: TaskError) -> ToolResult:
        """Answer for an attempt that the manager did not start."""
        if isinstance(error, IdempotencyKeyUsed):
            # Two calls with one key, and the other was faster.
            known = await self._recall(call.owner, error.key)
            return self._error(str(error)) if known is None else known
        if isinstance(error, Refused) and attempt.request.resume_attempt is not None:
            # Somebody else resumed or cancelled it first.
            return self._status(await self._look_up(call.owner, attempt.task_id))
        if isinstance(error, Refused):
            return self._error(str(error))
        if isinstance(error, ManagerClosed):
            raise ExecutionFailed(str(error)) from error
        raise ExecutionFailed(f"task persist failed: {error}") from error

    # ---- answers ------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._inner.descriptor().name

    def _error(self, message: str) -> ToolResult:
        return ToolResult.error(self._name, message)

    def _started(self, task_id: str) -> ToolResult:
        message = (
            "Task started in background. "
            f"Use task_status tool with task_id '{task_id}' to check progress."
        )
        data = {"task_id": task_id, "status": "running_in_background", "message": message}
        return ToolResult.success(self._name, data)

    def _status(self, task: TaskRecord | TaskSummary) -> ToolResult:
        data = _status_data(task.task_id, task.metadata, task.status, task.error)
        return ToolResult.success(self._name, data)

    def _ended(self, attempt: _Attempt, outcome: TaskResult) -> ToolResult:
        """Answer for a foreground run that did not end as its tool says."""
        match outcome:
            case Failed(error=error) | Stopped(reason=error):
                pass
            case _:
                error = None
        status = outcome.status
        text = f"Task '{attempt.task_id}' ended as {status}" + (f": {error}" if error else "")
        data = _status_data(attempt.task_id, attempt.request.metadata, status, error)
        return ToolResult(self._name, ToolStatus.ERROR, data, text)


def _status_data(
    task_id: str, metadata: JsonObject, status: TaskStatus, error: str | None
) -> JsonObject:
    agent_id = metadata.get("agent_id")
    return {
        "task_id": task_id,
        "agent_id": agent_id if isinstance(agent_id, str) else "unknown",
        "status": status.value,
        "error": error,
    }
