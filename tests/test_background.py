"""`BackgroundCapable`: starting, answering, hooks, parents, keys."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import trio

from tests.scripted import (
    CTX,
    OWNER,
    SCHEMA,
    BrokenStore,
    Scripted,
    echo,
    ended,
    forever,
    records,
)
from tests.support import CheckpointingStore, cancelled_at
from trio_bgtasks import (
    RUN_IN_BACKGROUND_PARAM,
    BackgroundCapable,
    BackgroundExecutable,
    BackgroundExecution,
    BackgroundTaskManager,
    Cancelled,
    Denied,
    ExecutionFailed,
    Failed,
    InvalidArguments,
    Rejected,
    Stopped,
    Success,
    TaskResult,
    TaskStatus,
    Tool,
    ToolCallContext,
    ToolResult,
    open_task_manager,
    task_tools,
)

BACKGROUND = {"message": "hi", "run_in_background": True}
NO_THREAD = ToolCallContext("call-1", "tool:scripted")


def key(idempotency_key: str, owner: str = OWNER) -> ToolCallContext:
    """Return the context of a call with that idempotency key."""
    return ToolCallContext(thread_id=owner, idempotency_key=idempotency_key)


def status_data(task_id: str, status: str, error: str | None = None) -> dict[str, Any]:
    """Return the data of a status answer."""
    return {"task_id": task_id, "agent_id": "unknown", "status": status, "error": error}


# ---- the class of a tool -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_type", "error"),
    [
        (None, "must be a string, not NoneType: set it as a plain class attribute"),
        (5, "must be a string, not int: set it as a plain class attribute"),
        (property(lambda _: "x"), "must be a string, not property: set it as a plain class attr"),
        ("", "cannot be empty"),
        ("a\nb", "contains a control character"),
    ],
)
def test_the_task_type_is_checked_when_the_class_is_made(task_type: Any, error: str) -> None:
    """A tool that could not be stored is refused when its class is made, not at its first call."""
    with pytest.raises((TypeError, ValueError), match=f"^task_type of Tool {re.escape(error)}"):
        type("Tool", (Scripted,), {"task_type": task_type})


def test_an_abstract_class_between_needs_no_task_type() -> None:
    """A class that leaves a method abstract may leave the task type to its subclasses."""

    class Base(BackgroundExecutable[None]):
        pass

    class Named(Base):
        task_type = "named"

    assert (hasattr(Base, "task_type"), Named.task_type) == (False, "named")
    with pytest.raises(TypeError, match=r"^task_type of Whole must be a string, not NoneType"):
        type(
            "Whole",
            (Base,),
            {
                "descriptor": Scripted.descriptor,
                "execute_background": Scripted.execute_background,
            },
        )


async def test_a_minimal_tool_needs_three_things(manager: BackgroundTaskManager) -> None:
    """A task type, a descriptor and a body: every hook has a default that works."""

    class Minimal(BackgroundExecutable[None]):
        task_type = "minimal"
        descriptor = Scripted.descriptor
        name, parameters = "Minimal", dict[str, Any]()

        async def execute_background(
            self,
            task_id: str,
            args: dict[str, Any],
            prepared: None,
            execution: BackgroundExecution,
            cancel_scope: trio.CancelScope,
            /,
        ) -> TaskResult:
            assert (prepared, cancel_scope) == (None, execution.cancel_scope)
            return Success([task_id, args])

    for background in (True, False):
        args = {"task_id": "x", "run_in_background": background}
        result = await BackgroundCapable(Minimal(), manager).execute(args, CTX)
        task = (await manager.list_tasks(OWNER))[-1]
        record = await ended(manager, task.task_id, TaskStatus.COMPLETED)
        # It does not support resume, so "task_id" is an argument like any other.
        assert (record.result, record.metadata) == ([task.task_id, {"task_id": "x"}], {})
        assert (record.args, record.description) == ({"task_id": "x"}, "Minimal (background)")
        assert not record.supports_resume
    assert result.data == record.result


async def test_a_tool_without_execute_says_that_it_needs_the_wrapper() -> None:
    """Executed without the wrapper, a tool of one body says what to do."""
    with pytest.raises(Exception, match="runs only in BackgroundCapable") as caught:
        await Scripted().execute({}, CTX)
    assert type(caught.value).__name__ == "InternalError"


# ---- the added parameters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        SCHEMA,
    ],
)
async def test_every_schema_gets_the_parameter(
    parameters: dict[str, Any], manager: BackgroundTaskManager
) -> None:
    """C40: the parameter is advertised also by a schema without properties; others are kept."""
    tool = Scripted(parameters=parameters)
    before = repr(parameters)
    shown = BackgroundCapable(tool, manager).descriptor().parameters
    added = {
        "type": "boolean",
        "description": "If true, execute this tool in the background and return immediately with "
        "a task_id. Use task_status to check progress later.",
    }
    properties = {**parameters.get("properties", {}), RUN_IN_BACKGROUND_PARAM: added}
    assert shown == {"type": "object", **parameters, "properties": properties}
    assert repr(tool.descriptor().parameters) == before


async def test_a_schema_that_is_handed_out_is_the_callers(manager: BackgroundTaskManager) -> None:
    """Who changes a descriptor changes no later one."""
    tool = BackgroundCapable(Scripted(supports_resume=True), manager)
    for name in ("run_in_background", "task_id"):
        tool.descriptor().parameters["properties"][name].clear()  # type: ignore[index,call-overload,union-attr]
    properties: Any = tool.descriptor().parameters["properties"]
    assert properties["run_in_background"]["type"] == "boolean"
    assert properties["task_id"]["type"] == "string"


async def test_a_resumable_tool_gets_a_parameter_for_the_id(manager: BackgroundTaskManager) -> None:
    """A model can pass the id of the task to resume, unless the tool has its own way for it."""

    class OwnWay(Scripted):
        def task_id_from_args(self, args: dict[str, Any], /) -> str | None:
            return args.get("run_id")

    declared = {"properties": {"task_id": {"type": "string", "minLength": 3}}}
    shown: dict[str, Any] = {
        "adds": BackgroundCapable(Scripted(supports_resume=True), manager),
        "not resumable": BackgroundCapable(Scripted(), manager),
        "own way": BackgroundCapable(OwnWay(supports_resume=True), manager),
        "declared": BackgroundCapable(Scripted(supports_resume=True, parameters=declared), manager),
    }
    found = {
        name: tool.descriptor().parameters["properties"].get("task_id")
        for name, tool in shown.items()
    }
    assert found["adds"]["type"] == "string"
    assert found == {
        "adds": found["adds"],
        "not resumable": None,
        "own way": None,
        "declared": {"type": "string", "minLength": 3},
    }


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        (
            {"properties": {"run_in_background": {}}},
            "tool 'Scripted' already has a parameter 'run_in_background'; rename that one",
        ),
        (
            {"anyOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"required": ["run_in_background"]}}},
            "tool 'Scripted' already has a parameter 'run_in_background'; rename that one",
        ),
        (
            {"propertyNames": {"enum": ["a"]}},
            (
                "the schema of tool 'Scripted' refuses 'run_in_background': "
                '"run_in_background" is not one of "a"'
            ),
        ),
        (
            {"properties": []},
            "the schema of tool 'Scripted' is not valid: [] is not of type \"object\"",
        ),
    ],
)
async def test_a_tool_that_cannot_be_wrapped_is_refused_at_once(
    parameters: dict[str, Any], error: str, manager: BackgroundTaskManager
) -> None:
    """A schema without room for the parameter is refused when the tool is wrapped."""
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        BackgroundCapable(Scripted(parameters=parameters), manager)


async def test_a_closed_schema_is_opened_where_it_is_closed(manager: BackgroundTaskManager) -> None:
    """What is advertised accepts the parameters also behind references and combinations."""
    closed = {"properties": {"message": {"type": "string"}}, "additionalProperties": False}
    parameters = {"oneOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": closed}}
    tool = BackgroundCapable(Scripted(supports_resume=True, parameters=parameters), manager)
    for call in ({"message": "hi", "run_in_background": True}, {"task_id": "bg_1"}):
        tool.validate_args(call)
        Tool.validate_args(tool, call)  # as a host does, by the advertised schema
    with pytest.raises(InvalidArguments):
        Tool.validate_args(tool, {"message": "hi", "other": 1})


async def test_wrapping_anything_else_is_refused(manager: BackgroundTaskManager) -> None:
    """What is no tool, or no manager, is named."""
    with pytest.raises(TypeError, match="needs a BackgroundExecutable, not str"):
        BackgroundCapable("shell", manager)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs a BackgroundTaskManager, not NoneType"):
        BackgroundCapable(Scripted(), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^supports_resume must be a boolean, not str$"):
        BackgroundCapable(Scripted(supports_resume="no"), manager)  # type: ignore[arg-type]
    tool = Scripted()
    assert repr(BackgroundCapable(tool, manager)) == f"<BackgroundCapable {tool!r}>"


async def test_a_call_without_a_context_is_told_so(manager: BackgroundTaskManager) -> None:
    """What is no context is named, by the wrapper and by the task tools."""
    for tool in (BackgroundCapable(Scripted(), manager), *task_tools(manager)):
        with pytest.raises(TypeError, match=r"^ctx must be a ToolCallContext, not NoneType$"):
            await tool.execute({"task_id": "x"}, None)  # type: ignore[arg-type]


def test_a_rejection_needs_a_result() -> None:
    """It is the answer of the call."""
    with pytest.raises(TypeError, match=r"^Rejected needs a ToolResult, not str$"):
        Rejected("no")  # type: ignore[arg-type]


# ---- bad calls -----------------------------------------------------------------------------------


def _deep() -> Any:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    return value


BAD_CALLS: list[tuple[Any, str]] = [
    (None, "arguments must be a JSON object (a dict), not NoneType"),
    (["message"], "arguments must be a JSON object (a dict), not list"),
    ({"message": math.nan}, "arguments is not JSON: $.message: float nan is not finite"),
    ({"message": {1}}, "arguments is not JSON: $.message: set"),
    ({1: 2}, "arguments is not JSON: $: key of type int"),
    ({"m": "\ud800"}, "arguments is not JSON: $.m: character U+D800 in a string"),
    ({"m": "a\x00"}, "arguments is not JSON: $.m: character U+0000 in a string"),
    ({"m": "x" * (1 << 21)}, "arguments is not JSON: $.m: larger than 1048576 bytes"),
    ({"m": _deep()}, "arguments is not JSON: $.m" + "[0]" * 63 + ": nested deeper than 64"),
    ({"run_in_background": "true"}, "run_in_background must be a boolean, not str"),
    ({"run_in_background": 1}, "run_in_background must be a boolean, not int"),
    ({"run_in_background": None}, "run_in_background must be a boolean, not NoneType"),
    ({"run_in_background": []}, "run_in_background must be a boolean, not list"),
    ({"task_id": 7}, "task_id must be a string, not int"),
    ({"task_id": {}}, "task_id must be a string, not dict"),
    ({"task_id": "a\nb"}, "task_id contains a control character"),
    ({"task_id": "x" * 201}, "task_id is longer than 200 characters"),
]


@pytest.mark.parametrize(("args", "error"), BAD_CALLS)
async def test_a_bad_call_is_one_clear_error_and_changes_nothing(
    args: Any, error: str, manager: BackgroundTaskManager
) -> None:
    """C40: bad input is refused by validation and by execution alike; nothing is stored."""
    tool = Scripted(supports_resume=True)
    wrapped = BackgroundCapable(tool, manager)
    for _ in range(2):
        with pytest.raises(InvalidArguments) as caught:
            wrapped.validate_args(args)
        assert str(caught.value) == f"Invalid arguments: {error}"
        with pytest.raises(InvalidArguments) as caught:
            await wrapped.execute(args, CTX)
        assert str(caught.value) == f"Invalid arguments: {error}"
    assert (await records(manager), tool.seen) == ([], [])


@pytest.mark.parametrize("extra", [{}, {"run_in_background": True}, {"task_id": " "}])
async def test_validation_is_the_tools_own_without_the_added_parameters(
    extra: dict[str, Any], manager: BackgroundTaskManager
) -> None:
    """A schema that forbids further properties still works, and still forbids them."""
    wrapped = BackgroundCapable(Scripted(supports_resume=True), manager)
    wrapped.validate_args({"message": "hi", **extra})
    with pytest.raises(InvalidArguments, match=r"'other' was unexpected"):
        wrapped.validate_args({"message": "hi", "other": 1, **extra})
    with pytest.raises(InvalidArguments, match=r'"message" is a required property'):
        wrapped.validate_args(extra)


async def test_a_call_with_a_task_id_is_left_to_execution(manager: BackgroundTaskManager) -> None:
    """C13: a call that carries only an id passes validation, whatever the tool requires."""
    BackgroundCapable(Scripted(supports_resume=True), manager).validate_args({"task_id": "bg_1"})
    with pytest.raises(InvalidArguments):
        BackgroundCapable(Scripted(), manager).validate_args({"task_id": "bg_1"})


# ---- in the background ---------------------------------------------------------------------------


async def test_a_background_call_answers_at_once(manager: BackgroundTaskManager) -> None:
    """The answer is word for word; the task runs on, owned by the caller's thread."""
    release = trio.Event()

    async def body(args: dict[str, Any], _: BackgroundExecution) -> TaskResult:
        await release.wait()
        return Success(args)

    tool = Scripted(body, metadata={"agent_id": "a"})
    result = await BackgroundCapable(tool, manager).execute(BACKGROUND, CTX)
    task_id = result.data["task_id"]
    assert result == ToolResult.success(
        "Scripted",
        {
            "task_id": task_id,
            "status": "running_in_background",
            "message": "Task started in background. Use task_status tool with task_id "
            f"'{task_id}' to check progress.",
        },
    )
    assert task_id.startswith("bg_")
    (running,) = await manager.list_tasks(OWNER)
    assert (running.status, running.task_type) == (TaskStatus.RUNNING, "scripted")
    assert running.metadata == {"agent_id": "a"}
    release.set()
    record = await ended(manager, task_id, TaskStatus.COMPLETED)
    # C17: neither the injected parameter nor the id is in what the tool sees, or what is stored.
    assert (record.result, record.args) == ({"message": "hi"}, {"message": "hi"})
    assert record.background
    assert tool.seen == [
        ("metadata", {"message": "hi"}),
        ("prepare", {"message": "hi"}, "call-1", False),
        ("background", {"message": "hi"}, "prepared", 1),
    ]


async def test_arguments_are_copied(manager: BackgroundTaskManager) -> None:
    """What the caller does with its arguments afterwards is not seen by the task."""
    args = {"message": "hi", "run_in_background": True}
    result = await BackgroundCapable(Scripted(), manager).execute(args, CTX)
    args["message"] = "changed"
    record = await ended(manager, result.data["task_id"], TaskStatus.COMPLETED)
    assert (record.result, record.args) == ({"echoed": "hi"}, {"message": "hi"})
    assert args == {"message": "changed", "run_in_background": True}


async def test_an_exception_in_the_background_is_the_tasks_end_only(
    manager: BackgroundTaskManager,
) -> None:
    """C35: a raising body fails its task with type and message; the caller sees nothing of it."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        raise KeyError("lost")

    wrapped = BackgroundCapable(Scripted(body), manager)
    result = await wrapped.execute(BACKGROUND, CTX)
    record = await ended(manager, result.data["task_id"], TaskStatus.FAILED)
    assert record.error == "KeyError: 'lost'"
    assert (await BackgroundCapable(Scripted(), manager).execute(BACKGROUND, CTX)).is_success


async def test_background_work_needs_a_thread(manager: BackgroundTaskManager) -> None:
    """C41: without a thread id there is no owner, and no background work."""
    tool = Scripted()
    result = await BackgroundCapable(tool, manager).execute(BACKGROUND, NO_THREAD)
    assert result == ToolResult.error("Scripted", "Missing caller thread context")
    assert (await records(manager), tool.seen) == ([], [])


# ---- parents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_outside_any_task_the_run_is_the_parent(
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """The parent of a call made outside a task is its run."""
    context = ToolCallContext(thread_id=OWNER, run_id="run-1")
    wrapped = BackgroundCapable(Scripted(), manager)
    await wrapped.execute({"message": "", "run_in_background": background}, context)
    (task,) = await manager.list_tasks(OWNER)
    assert task.parent_task_id == "run-1"


@pytest.mark.parametrize("background", [True, False])
async def test_inside_a_task_that_task_is_the_parent(
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """C18: a tool called from within a task is its child, whoever owns it, without being told."""
    child = BackgroundCapable(Scripted(), manager)

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        context = ToolCallContext(thread_id="sub-agent", run_id="run-1")
        await child.execute({"message": "", "run_in_background": background}, context)
        return Success(execution.task_id)

    result = await BackgroundCapable(Scripted(body), manager).execute({"message": ""}, CTX)
    (task,) = await manager.list_tasks("sub-agent")
    assert task.parent_task_id == result.data


async def test_a_child_of_a_cancelled_task_is_refused(manager: BackgroundTaskManager) -> None:
    """C19: nothing is started below a task whose cancel was accepted; the answer says so."""
    answers: list[ToolResult] = []
    child = BackgroundCapable(Scripted(), manager)

    async def body(_: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        await manager.cancel(OWNER, execution.task_id)
        with trio.CancelScope(shield=True):
            answers.extend(
                [
                    await child.execute({"message": "", "run_in_background": b}, CTX)
                    for b in (True, False)
                ]
            )
        return Cancelled()

    result = await BackgroundCapable(Scripted(body), manager).execute(BACKGROUND, CTX)
    parent = result.data["task_id"]
    await ended(manager, parent, TaskStatus.CANCELLED)
    for answer in answers:
        assert answer.is_error
        assert str(answer.message).endswith(f"is not started: its parent '{parent}' is cancelled")
    assert [task.task_id for task in await manager.list_tasks(OWNER)] == [parent]


# ---- hooks ---------------------------------------------------------------------------------------

HOOKS = (
    "task_metadata",
    "task_id_from_args",
    "with_task_id",
    "stored_args",
    "task_description",
    "prepare_background",
)


def with_hook(hook: str, value: Any, **fields: Any) -> Scripted:
    """Return a tool whose hook returns ``value``, or raises it."""

    def scripted(*_: object, **__: object) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    return type("Hooked", (Scripted,), {hook: scripted})(**fields)  # type: ignore[no-any-return]


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_hook_that_raises_is_the_answer_and_nothing_is_stored(
    hook: str,
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C4: hooks run before anything is stored; what one raises is an error result, and logged."""
    wrapped = BackgroundCapable(with_hook(hook, RuntimeError("no luck")), manager)
    args = {"message": "hi", "run_in_background": background}
    wrapped.validate_args(args)
    result = await wrapped.execute(args, CTX)
    assert result == ToolResult.error("Scripted", "RuntimeError: no luck")
    assert await records(manager) == []
    assert caplog.records[-1].name == "trio_bgtasks.tools"


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_tool_error_of_a_hook_passes_as_it_is(
    hook: str,
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """A hook's `ToolError` is raised, a `Rejected` is answered with its result; nothing stored."""
    args = {"message": "hi", "run_in_background": background}
    denied = Denied("not you")
    with pytest.raises(Denied) as caught:
        await BackgroundCapable(with_hook(hook, denied), manager).execute(args, CTX)
    assert caught.value is denied
    answer = ToolResult.warning("Scripted", None, "not now")
    wrapped = BackgroundCapable(with_hook(hook, Rejected(answer)), manager)
    assert await wrapped.execute(args, CTX) is answer
    assert await records(manager) == []


@pytest.mark.parametrize(
    ("hook", "value", "error"),
    [
        ("task_metadata", [], "TypeError: metadata must be a JSON object (a dict), not list"),
        ("task_metadata", {"a": {1}}, "ValueError: metadata is not JSON: $.a: set"),
        ("task_description", 5, "TypeError: description must be a string, not int"),
        (
            "with_task_id",
            None,
            "TypeError: with_task_id must be a JSON object (a dict), not NoneType",
        ),
        ("with_task_id", {"a": {1}}, "ValueError: with_task_id is not JSON: $.a: set"),
        ("stored_args", None, "TypeError: args must be a JSON object (a dict), not NoneType"),
    ],
)
async def test_what_a_hook_returns_is_checked(
    hook: str, value: Any, error: str, manager: BackgroundTaskManager
) -> None:
    """A hook that returns what cannot be stored is named by its field; nothing is stored."""
    wrapped = BackgroundCapable(with_hook(hook, value), manager)
    assert await wrapped.execute(BACKGROUND, CTX) == ToolResult.error("Scripted", error)
    assert await records(manager) == []


async def test_a_hook_that_finds_no_string_as_id_is_told(manager: BackgroundTaskManager) -> None:
    """An id that is none is the arguments' fault."""
    with pytest.raises(InvalidArguments, match="task_id must be a string, not int"):
        await BackgroundCapable(with_hook("task_id_from_args", 5), manager).execute({}, CTX)


async def test_a_tool_may_see_the_id_in_its_arguments(manager: BackgroundTaskManager) -> None:
    """C17: the id is in the arguments only for a tool that asks for it, and is not stored."""

    class SeesId(Scripted):
        def with_task_id(self, args: dict[str, Any], task_id: str, /) -> dict[str, Any]:
            return {**args, "run_id": task_id}

    tool = SeesId()
    result = await BackgroundCapable(tool, manager).execute(BACKGROUND, CTX)
    record = await ended(manager, result.data["task_id"], TaskStatus.COMPLETED)
    assert record.args == {"message": "hi"}
    seen = {"message": "hi", "run_id": record.task_id}
    assert [entry[1] for entry in tool.seen] == [seen, seen, seen]


async def test_a_tool_may_redact_what_is_stored(manager: BackgroundTaskManager) -> None:
    """What a tool does not want stored is not stored, and its execution sees it all the same."""

    class Redacts(Scripted):
        def stored_args(self, args: dict[str, Any], /) -> dict[str, Any]:
            args["deep"].pop("secret")
            return args

    tool = Redacts()
    args = {"message": "hi", "deep": {"secret": "x"}}
    result = await BackgroundCapable(tool, manager).execute(args, CTX)
    assert result.data == {"echoed": "hi"}
    assert tool.seen[-1] == ("background", args, "prepared", 1)
    ((record),) = await records(manager)
    assert record.args == {"message": "hi", "deep": {}}


@pytest.mark.parametrize(
    ("args", "description"),
    [
        ({"description": "d", "command": "c"}, "d (background)"),
        ({"command": "c"}, "c (background)"),
        ({"description": " ", "command": "c"}, "c (background)"),
        ({"description": 5}, "Scripted (background)"),
        ({}, "Scripted (background)"),
    ],
)
async def test_the_description_comes_from_the_arguments(
    args: dict[str, Any], description: str, manager: BackgroundTaskManager
) -> None:
    """The description is the argument of that name, else the command, else the tool's name."""
    await BackgroundCapable(Scripted(), manager).execute(args, CTX)
    (task,) = await manager.list_tasks(OWNER)
    assert task.description == description


# ---- idempotent starts ---------------------------------------------------------------------------


async def test_a_used_key_starts_nothing_and_is_answered_as_that_start(
    manager: BackgroundTaskManager,
) -> None:
    """While the task runs, the repeated call gets the same answer; no hook runs again."""
    tool = Scripted(forever)
    wrapped = BackgroundCapable(tool, manager)
    first = await wrapped.execute(BACKGROUND, key("k"))
    await trio.testing.wait_all_tasks_blocked()
    assert await wrapped.execute(BACKGROUND, key("k")) == first
    assert [entry[0] for entry in tool.seen] == ["metadata", "prepare", "background"]
    assert len(await manager.list_tasks(OWNER)) == 1
    assert (await wrapped.execute(BACKGROUND, key("k", "other"))).data != first.data


@pytest.mark.parametrize(
    ("outcome", "error"), [(Failed("no"), "no"), (Success(1), None), (Stopped("later"), "later")]
)
async def test_a_used_key_after_the_end_is_answered_like_a_status_call(
    outcome: TaskResult, error: str | None, manager: BackgroundTaskManager
) -> None:
    """A key is used for ever: later calls say how the task ended; nothing runs or resumes."""

    async def body(_: dict[str, Any], __: BackgroundExecution) -> TaskResult:
        return outcome

    wrapped = BackgroundCapable(Scripted(body, supports_resume=True), manager)
    first = await wrapped.execute(BACKGROUND, key("k"))
    task_id = first.data["task_id"]
    await ended(manager, task_id, outcome.status)
    for args in (BACKGROUND, {"task_id": task_id}):
        again = await wrapped.execute(args, key("k"))
        data = status_data(task_id, outcome.status.value, error)
        assert again == ToolResult.success("Scripted", data)


async def test_a_used_key_of_a_completed_foreground_run_gives_its_stored_answer(
    manager: BackgroundTaskManager,
) -> None:
    """C29: the answer of a foreground run is stored, and given again to who repeats the call."""
    runs: list[int] = []

    async def body(args: dict[str, Any], execution: BackgroundExecution) -> TaskResult:
        runs.append(execution.attempt)
        return await echo(args, execution)

    wrapped = BackgroundCapable(Scripted(body), manager)
    first = await wrapped.execute({"message": "hi"}, key("k"))
    assert await wrapped.execute({"message": "other"}, key("k")) == first
    assert first.data == {"echoed": "hi"}
    assert runs == [1]


async def test_a_used_key_of_a_running_foreground_run_gives_its_status(
    manager: BackgroundTaskManager,
) -> None:
    """A repeated foreground call does not wait for the first one, and starts nothing."""
    wrapped = BackgroundCapable(Scripted(forever), manager)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wrapped.execute, {"message": "hi"}, key("k"))
        await trio.testing.wait_all_tasks_blocked()
        (task,) = await manager.list_tasks(OWNER)
        again = await wrapped.execute({"message": "hi"}, key("k"))
        assert again.data == status_data(task.task_id, "running")
        nursery.cancel_scope.cancel()


async def test_a_key_of_another_type_is_refused(manager: BackgroundTaskManager) -> None:
    """A key that started a task of another tool starts nothing here, and shows nothing of it."""

    class Other(Scripted):
        task_type = "other"

    first = await BackgroundCapable(Scripted(), manager).execute(BACKGROUND, key("k"))
    result = await BackgroundCapable(Other(), manager).execute(BACKGROUND, key("k"))
    task_id = first.data["task_id"]
    assert result == ToolResult.error(
        "Scripted", f"idempotency_key 'k' was used already, by task '{task_id}'"
    )
    assert len(await manager.list_tasks(OWNER)) == 1


async def test_a_key_of_a_collected_task_stays_used(manager: BackgroundTaskManager) -> None:
    """A key is never used twice, also when its task was collected."""
    wrapped = BackgroundCapable(Scripted(), manager)
    first = await wrapped.execute(BACKGROUND, key("k"))
    await ended(manager, first.data["task_id"], TaskStatus.COMPLETED)
    assert await manager.gc_terminal(OWNER) == 1
    for background in (True, False):
        result = await wrapped.execute({"message": "hi", "run_in_background": background}, key("k"))
        assert result.is_error
        assert "'k' was used already" in str(result.message)
    assert await manager.list_tasks(OWNER) == []


@pytest.mark.parametrize("background", [True, False])
async def test_of_concurrent_calls_with_one_key_one_starts(
    background: bool,  # noqa: FBT001
    manager: BackgroundTaskManager,
) -> None:
    """Many calls at once with one key are one task; every one of them is answered about it."""
    tool = Scripted(forever)
    wrapped = BackgroundCapable(tool, manager)
    answers: list[ToolResult] = []

    async def call() -> None:
        args = {"message": "hi", "run_in_background": background}
        answers.append(await wrapped.execute(args, key("k")))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = await manager.list_tasks(OWNER)
        assert {answer.data["task_id"] for answer in answers} == {task.task_id}
        assert len(answers) == (10 if background else 9)
        assert [entry[0] for entry in tool.seen].count("background") == 1
        nursery.cancel_scope.cancel()


# ---- when the store fails ------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_a_start_that_is_not_stored_does_not_run(
    background: bool,  # noqa: FBT001
    store: BrokenStore,
    manager: BackgroundTaskManager,
) -> None:
    """C3: what could not be stored was not started, and the caller is told."""
    tool = Scripted()
    store.failing = {"Registered"}
    with pytest.raises(ExecutionFailed) as caught:
        await BackgroundCapable(tool, manager).execute(
            {"message": "", "run_in_background": background}, CTX
        )
    assert str(caught.value) == "Execution failed: task persist failed: the disk is gone"
    assert not any(entry[0] == "background" for entry in tool.seen)
    assert manager.live(OWNER) == []


async def test_a_key_that_cannot_be_looked_up_starts_nothing(
    store: BrokenStore, manager: BackgroundTaskManager
) -> None:
    """When it is not known whether a key was used, nothing is started."""
    store.failing = {"load_by_key"}
    with pytest.raises(ExecutionFailed, match="task lookup failed: the disk is gone"):
        await BackgroundCapable(Scripted(), manager).execute(BACKGROUND, key("k"))
    store.failing.clear()
    assert await records(manager) == []


@pytest.mark.parametrize("background", [True, False])
async def test_a_closed_manager_starts_nothing(
    background: bool,  # noqa: FBT001
) -> None:
    """After its end the manager refuses, and the tool says why."""
    async with open_task_manager() as manager:
        wrapped = BackgroundCapable(Scripted(), manager)
    with pytest.raises(ExecutionFailed, match=r"^Execution failed: the task manager is closed$"):
        await wrapped.execute({"message": "", "run_in_background": background}, CTX)


# ---- when the caller goes ------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_a_caller_that_is_cancelled_anywhere_leaves_nothing_half_done(
    background: bool,  # noqa: FBT001
    autojump_clock: trio.testing.MockClock,
) -> None:
    """C4: cancelled at whatever checkpoint, a call is not stored, or its task comes to an end."""
    ends: set[str] = set()
    args = {"message": "hi", "run_in_background": background}
    for k in range(1, 100):
        async with open_task_manager(CheckpointingStore()) as manager:
            wrapped = BackgroundCapable(Scripted(), manager)
            tried = await cancelled_at(k, partial(wrapped.execute, args, key("k")))
            for task in await manager.list_tasks(OWNER):
                ends.add((await manager.wait(OWNER, task.task_id)).status)
            if tried is None:
                break
            # Who repeats the call, with its key, gets an answer about one task.
            again = await wrapped.execute(args, key("k"))
            assert again.is_success, again
            assert len(await manager.list_tasks(OWNER)) == 1
    else:
        pytest.fail("a call that never ends")
    assert k > 3
    assert ends == ({"completed"} if background else {"completed", "stopped"})
