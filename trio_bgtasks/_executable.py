"""The tool's side of background execution: `BackgroundExecutable`, its hooks and its outcomes."""

from __future__ import annotations

from abc import abstractmethod
from contextvars import ContextVar
from typing import Any, Generic, TypeAlias, TypeVar, cast

import attrs
import trio

from ._checks import check_bool
from ._execution import BackgroundExecution
from ._json import JsonObject, check_id
from ._outcome import BodyEnd, own_outcome
from ._records import (
    Cancelled,
    Failed,
    Stopped,
    Success,
    TaskResult,
    TaskStatus,
    shown_result,
)
from ._tool import InternalError, Tool, ToolCallContext, ToolResult, ToolStatus

TASK_ID_PARAM = "task_id"

Args: TypeAlias = dict[str, Any]
PreparedT = TypeVar("PreparedT")


class Rejected(Exception):
    """A hook refuses the call: ``result`` is the answer, nothing is stored or started."""

    def __init__(self, result: ToolResult) -> None:
        if not isinstance(result, ToolResult):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Rejected needs a ToolResult, not {type(result).__name__}")
        self.result = result
        super().__init__(result.message)


class BackgroundExecutable(Tool, Generic[PreparedT]):
    """A tool whose calls can become tasks. Wrap it in `BackgroundCapable` to use it.

    A subclass has a ``task_type``, a plain class attribute that is checked when the class is made;
    one that leaves a method abstract needs none yet. The hooks are called before anything is
    stored, with arguments that are this call's own and do not hold ``run_in_background``. A hook
    that raises ends the call: a `ToolError` as it is, `Rejected` with its result, anything else as
    an error result.
    """

    task_type: str
    """What its tasks are called in records; a resume must come from a tool of the same type."""

    supports_resume: bool = False
    """May a stopped task be resumed? Stored with each task; asked again at a resume."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        task_type = getattr(cls, "task_type", None)
        if task_type is None and _is_abstract(cls):
            return
        try:
            check_id(task_type, f"task_type of {cls.__name__}")
        except TypeError as error:
            raise TypeError(f"{error}: set it as a plain class attribute") from None

    # ---- hooks --------------------------------------------------------------------------------

    def task_metadata(self, args: Args, /) -> JsonObject:  # noqa: ARG002
        """Return what the task's summary shows beside its description; JSON."""
        return {}

    def task_id_from_args(self, args: Args, /) -> str | None:
        """Return the id of an existing task that the call is about; None: it starts a new one.

        ``args`` were not validated. By default ``args["task_id"]`` if the tool supports resume (the
        wrapper advertises that parameter unless the tool's own schema has it), else None.
        """
        value = args.get(TASK_ID_PARAM) if self.supports_resume else None
        return (value.strip() or None) if isinstance(value, str) else value

    def with_task_id(self, args: Args, task_id: str, /) -> Args:  # noqa: ARG002
        """Return the arguments that hooks and execution get; override to see the id in them."""
        return args

    def stored_args(self, args: Args, /) -> Args:
        """Return what is stored of the arguments, for a resume; override to redact."""
        return args

    def task_description(self, args: Args, /) -> str:
        """Return a line for people and prompts."""
        for name in ("description", "command"):
            text = args.get(name)
            if isinstance(text, str) and text.strip():
                return f"{text} (background)"
        return f"{self.descriptor().name} (background)"

    def prepare_background(
        self,
        args: Args,  # noqa: ARG002
        ctx: ToolCallContext,  # noqa: ARG002
        /,
        *,
        is_resume: bool,  # noqa: ARG002
    ) -> PreparedT:
        """Check and build what `execute_background` needs; raise `Rejected` to refuse the call."""
        return cast("PreparedT", None)

    # ---- execution ----------------------------------------------------------------------------

    @abstractmethod
    async def execute_background(
        self,
        task_id: str,
        args: Args,
        prepared: PreparedT,
        execution: BackgroundExecution,
        cancel_scope: trio.CancelScope,
        /,
    ) -> TaskResult:
        """Do the work of one attempt; ``cancel_scope`` is the scope around it."""

    async def execute(self, args: Args, ctx: ToolCallContext) -> ToolResult:  # noqa: ARG002
        """Override to do something else in the foreground than in the background."""
        name = self.descriptor().name
        raise InternalError(f"tool {name!r} runs only in BackgroundCapable(tool, manager)")

    async def execute_foreground(
        self,
        args: Args,
        ctx: ToolCallContext,
        execution: BackgroundExecution,
        /,
        *,
        is_resume: bool,
    ) -> ToolResult:
        """Run in the caller's task: `execute` if the tool defines it, else `execute_background`.

        What `execute_background` needs was prepared before the start was stored. An override that
        passes other arguments to this default gets them prepared here.
        """
        if not is_prepared(self):
            return await self.execute(args, ctx)
        handed_on = _handed_on.get()
        if handed_on is not None and handed_on.tool is self and handed_on.args is args:
            prepared = handed_on.prepared
        else:
            prepared = self.prepare_background(args, ctx, is_resume=is_resume)
        outcome = await self.execute_background(
            execution.task_id, args, prepared, execution, execution.cancel_scope
        )
        return _result_of(self, execution.task_id, _readable(outcome))

    def foreground_task_status(self, result: ToolResult, /) -> tuple[TaskStatus, str | None]:
        """Return how a foreground result ends its task, and the task's error text."""
        if result.is_error:
            return TaskStatus.FAILED, result.message
        if result.is_pending:
            return TaskStatus.STOPPED, result.message
        return TaskStatus.COMPLETED, None


def _is_abstract(cls: type) -> bool:
    # ABCMeta itself knows only after __init_subclass__.
    names = {name for base in cls.__mro__ for name in vars(base)}
    return any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in names)


def check_supports_resume(value: object) -> None:
    """Raise TypeError unless a tool says plainly whether its tasks may be resumed."""
    check_bool(value, "supports_resume")


def _lacks(tool: BackgroundExecutable[Any], method: str) -> bool:
    return getattr(type(tool), method) is getattr(BackgroundExecutable, method)


def is_prepared(tool: BackgroundExecutable[Any]) -> bool:
    """Is a foreground run of the tool prepared? One that defines `execute` needs it not."""
    return _lacks(tool, "execute")


def has_one_body(tool: BackgroundExecutable[Any]) -> bool:
    """Does `execute_background` serve the foreground as well?"""
    return is_prepared(tool) and _lacks(tool, "execute_foreground")


def finds_ids_by_default(tool: BackgroundExecutable[Any]) -> bool:
    """Does the tool leave it to the default in which argument the id of a task is?"""
    return tool.supports_resume and _lacks(tool, "task_id_from_args")


@attrs.frozen
class _HandedOn:
    """What was prepared of which arguments, on its way through a tool's `execute_foreground`."""

    tool: BackgroundExecutable[Any]
    args: Args
    prepared: Any


_handed_on: ContextVar[_HandedOn | None] = ContextVar("trio_bgtasks_handed_on", default=None)


class ForegroundRun:
    """One run of a tool in its caller's task: the body for the manager, and the tool's answer."""

    def __init__(
        self,
        tool: BackgroundExecutable[PreparedT],
        args: Args,
        prepared: PreparedT,
        ctx: ToolCallContext,
    ) -> None:
        self._tool = tool
        self._args = args
        self._prepared = prepared
        self._ctx = ctx
        self._execution: BackgroundExecution | None = None
        self._outcome: TaskResult | None = None
        self._result: ToolResult | None = None

    @property
    def began(self) -> bool:
        """Was the body called at all?"""
        return self._execution is not None

    async def body(self, execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        """Run the tool; return how its answer ends the task."""
        self._execution = execution
        tool = self._tool
        if has_one_body(tool):
            own = _readable(
                await tool.execute_background(
                    execution.task_id, self._args, self._prepared, execution, scope
                )
            )
            result = _result_of(tool, execution.task_id, own)
            seen = own if isinstance(own, Cancelled) else outcome_of_result(tool, result)
            self._outcome = own if own.status is seen.status else seen
        else:
            token = _handed_on.set(_HandedOn(tool, self._args, self._prepared))
            try:
                result = await tool.execute_foreground(
                    self._args, self._ctx, execution, is_resume=execution.is_resume
                )
            finally:
                _handed_on.reset(token)
            self._outcome = outcome_of_result(tool, result)
        self._result = result
        return self._outcome

    def answer(self, outcome: TaskResult) -> ToolResult | None:
        """Return the tool's answer if the task ended as that says; None: the runtime ended it."""
        if self._execution is None or self._outcome is None:
            return None
        undisturbed = self._execution.stopping is None or isinstance(outcome, Success)
        return self._result if undisturbed and outcome.status is self._outcome.status else None


def _readable(outcome: TaskResult) -> TaskResult:
    """Return an outcome with the text, and the value, that will be stored of it."""
    if isinstance(outcome, Failed | Stopped):
        return own_outcome(BodyEnd(outcome)) or outcome
    return outcome


def _result_of(tool: BackgroundExecutable[Any], task_id: str, outcome: object) -> ToolResult:
    """Return the foreground answer for what `execute_background` returned."""
    tool_name = tool.descriptor().name
    match outcome:
        case Success():
            return ToolResult.success(tool_name, shown_result(outcome.value, outcome.ref))
        case Failed():
            return ToolResult(tool_name, ToolStatus.ERROR, outcome.value, outcome.error)
        case Stopped():
            return ToolResult.pending(tool_name, outcome.reason or f"Task '{task_id}' is stopped")
        case Cancelled():
            return ToolResult.error(tool_name, f"Task '{task_id}' was cancelled")
        case _:
            kind = type(outcome).__name__
            raise InternalError(f"the tool returned {kind} instead of a TaskResult")


def outcome_of_result(tool: BackgroundExecutable[Any], result: object) -> TaskResult:
    """Return how a result ends its task, as the tool sees it."""
    if not isinstance(result, ToolResult):
        kind = type(result).__name__
        raise InternalError(f"the tool returned {kind} instead of a ToolResult")
    status, error = tool.foreground_task_status(result)
    match TaskStatus(status):
        case TaskStatus.COMPLETED:
            return Success(result.data)
        case TaskStatus.FAILED:
            return Failed(error or result.message or "", result.data)
        case TaskStatus.STOPPED:
            return Stopped(error)
        case TaskStatus.CANCELLED:
            return Cancelled()
        case _:
            raise InternalError("foreground_task_status answered 'running' for a run that ended")
