"""Every public entry is given what it cannot take: one clear sentence, and nothing is changed.

What stores find on a disk is tested beside them: a corrupt row, a newer schema, a folder that may
not be written, something else in the file's place in ``tests/stores/test_sqlite_schema.py``; a full
disk in ``tests/stores/test_sqlite_engine.py``. What a body returns is no argument: it fails its
task, see ``tests/test_outcome.py``. What is typed into a terminal: ``tests/cli/test_usage.py``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import trio_bgtasks
import trio_bgtasks.tools
from tests.support import OTHER, OWNER, contents, done, forever, opened, request
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecutable,
    BackgroundExecution,
    BackgroundTaskManager,
    InvalidAnswer,
    InvalidArguments,
    LeaseTerms,
    ManagerConfig,
    MemoryTaskStore,
    QuestionClosed,
    Rejected,
    SqliteTaskStore,
    StartRequest,
    TaskReminder,
    TaskResult,
    ToolCallContext,
    ToolDescriptor,
    ToolResult,
    ToolStatus,
    UnknownTask,
    background_tool,
    open_task_manager,
    task_tools,
)
from trio_bgtasks.tools import GuardedShell, ShellTool

MOST_WORDS = 600  # characters: an error goes into logs and prompts


def nested(depth: int) -> Any:
    """Return lists in lists: their repr, their comparison and a naive copy fail for recursion."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


DEEP = nested(100_000)
NAN, INF = float("nan"), float("inf")
VALUES: tuple[Any, ...] = (
    None,
    True,
    1,
    1.5,
    NAN,
    INF,
    10**30,
    b"bytes",
    "text",
    "x" * 10_000,
    [],
    {},
    DEEP,
    int,
    ...,
)


@attrs.frozen
class Bad:
    """A value, and what is said of it."""

    value: Any
    error: type[Exception]
    words: str


Kind = Callable[[str], list[Bad]]


@attrs.frozen
class Given:
    """One argument of one entry, and what it cannot be."""

    call: Callable[[World, Any], Any]
    bad: list[Bad]


@attrs.define(eq=False)
class World:
    """A manager with a running task, and another owner's; and everything that can be called."""

    manager: BackgroundTaskManager
    execution: BackgroundExecution

    @property
    def wrapped(self) -> BackgroundCapable:
        return BackgroundCapable(background_tool(add), self.manager)


async def add(n: int = 1, secret: str = "") -> int:
    """Add one."""
    return n + len(secret)


# ---- kinds of arguments --------------------------------------------------------------------------


def wrong(words: str, takes: Callable[[Any], bool]) -> list[Bad]:
    """Return every value of another type."""
    return [Bad(value, TypeError, words) for value in VALUES if not takes(value)]


def instance(*kinds: type, but: type | None = None) -> Callable[[Any], bool]:
    """Return a test for the type, which one is not even a subclass of ``but``."""
    return lambda value: isinstance(value, kinds) and (but is None or not isinstance(value, but))


def an_id(field: str) -> list[Bad]:
    """An id."""
    refused = {
        "": "cannot be empty",
        " \n": "cannot be empty",
        " id": "begins or ends with a blank",
        "a\nb": "contains a control character",
        "a\x00b": "contains a control character",
        "a\x1b[2Jb": "contains a control character",
        "a\ud800b": "contains a control character",
        "x" * 201: "is longer than 200 characters",
    }
    no_text = wrong(f"{field} must be a string, not ", instance(str))
    return no_text + [Bad(value, ValueError, f"{field} {why}") for value, why in refused.items()]


def not_none(kind: Kind) -> Kind:
    """Return the kind, None being all right."""
    return lambda field: [bad for bad in kind(field) if bad.value is not None]


def a_task_id(field: str) -> list[Bad]:
    """An id, not one of nobody's or somebody else's task."""
    return [*an_id(field), *(Bad(i, UnknownTask, f"Unknown task_id: {i}") for i in ("no", "his"))]


def a_context_id(field: str) -> list[Bad]:
    """An id that is trimmed, and may be blank."""
    outer = ("", " \n", " id")
    return [bad for bad in not_none(an_id)(field) if bad.value not in outer]


def a_text(field: str) -> list[Bad]:
    """A string, free text."""
    return wrong(f"{field} must be a string", instance(str))


def a_boolean(field: str) -> list[Bad]:
    """True or False."""
    return wrong(f"{field} must be a boolean, not ", instance(bool))


def an_integer(field: str, *, least: int | None = None) -> list[Bad]:
    """An integer of 64 bits."""
    bad = wrong(f"{field} must be an integer, not ", instance(int, but=bool))
    if least is not None:
        bad.append(Bad(least - 1, ValueError, f"{field} must be at least {least}"))
    return [*bad, Bad(1 << 63, ValueError, f"{field} must be within 64 bits")]


def a_count(field: str) -> list[Bad]:
    """A number of things, 1 or more."""
    return an_integer(field, least=1)


def a_size(field: str) -> list[Bad]:
    """A number of bytes, 1 KiB or more."""
    return an_integer(field, least=1024)


def seconds(field: str) -> list[Bad]:
    """A number of seconds, 0 or more."""
    odd = (-1, -0.1, NAN, INF, -INF, 10**400)
    no_number = wrong(f"{field} must be a number of seconds, not ", instance(int, float, but=bool))
    return no_number + [
        Bad(value, ValueError, f"{field} must be finite and not negative") for value in odd
    ]


def a_period(field: str) -> list[Bad]:
    """A number of seconds above 0."""
    return [*seconds(field), Bad(0, ValueError, f"{field} must be more than 0")]


def a_number(field: str) -> list[Bad]:
    """A number that JSON has."""
    odd = (NAN, INF, 1 << 64)
    no_number = wrong(f"{field} must be a number, not ", instance(int, float, but=bool))
    return no_number + [Bad(value, ValueError, f"{field} is not JSON: $: ") for value in odd]


def json_in(field: str) -> Iterator[tuple[Any, str]]:
    """Yield what is no JSON, with what is wrong of it."""
    yield {"x": NAN}, f"{field} is not JSON: $.x: float nan is not finite"
    yield {"x": 1 << 64}, f"{field} is not JSON: $.x: integer beyond 64 bits"
    yield {"x": "\ud800"}, f"{field} is not JSON: $.x: "
    yield {"x": "\x00"}, f"{field} is not JSON: $.x: "
    yield {"\ud800": 1}, f"{field} is not JSON: $"
    yield {1: 1}, f"{field} is not JSON: $"
    yield {"x": object()}, f"{field} is not JSON: $.x: "
    yield {"x": b""}, f"{field} is not JSON: $.x: "
    yield {"x": DEEP}, f"{field} is not JSON: $.x"
    yield {"x": "y" * (2 << 20)}, f"{field} is not JSON: $"
    yield {"x": [1] * (2 << 20)}, f"{field} is not JSON: $"
    yield {"x" * 10_000: NAN}, f"{field} is not JSON: $"


def an_object(field: str) -> list[Bad]:
    """A JSON object."""
    no_dict = wrong(f"{field} must be a JSON object (a dict), not ", instance(dict))
    return no_dict + [Bad(value, ValueError, words) for value, words in json_in(field)]


def a_checkpoint(_: str) -> list[Bad]:
    """A JSON value."""
    return [Bad(value, ValueError, words) for value, words in json_in("checkpoint")]


def a_message(field: str) -> list[Bad]:
    """A text that a person is to read."""
    odd = {"": "cannot be empty", " \n": "cannot be empty", "x" * 4001: "is longer than 4000"}
    return a_text(field) + [Bad(v, ValueError, f"{field} {words}") for v, words in odd.items()]


def a_schema(field: str) -> list[Bad]:
    """A JSON Schema."""
    return [*an_object(field), Bad({"type": 1}, ValueError, f"{field} is no JSON Schema: ")]


def a_question_id(field: str) -> list[Bad]:
    """The id of a question that is open."""
    there_is_none = "Question 'no' of task 't': there is no such question now"
    return [*an_id(field), Bad("no", QuestionClosed, there_is_none)]


def an_answer(field: str) -> list[Bad]:
    """A JSON value that fits the schema of the question."""
    misfits: tuple[Any, ...] = ("yes", 1, {}, None, "x" * 10_000)
    words = "the answer to question 'q1' does not fit: $: "
    return [Bad(value, ValueError, words) for value, words in json_in(field)] + [
        Bad(value, InvalidAnswer, words) for value in misfits
    ]


def a_dict(field: str) -> list[Bad]:
    """A dict of whatever."""
    return wrong(f"{field} must be a dict, not ", instance(dict))


def a_status(field: str) -> list[Bad]:
    """The status of a task."""
    choices = f"{field} must be one of running, completed, failed, cancelled, stopped"
    no_text = wrong(f"{field} must be a TaskStatus, not ", instance(str, type(None)))
    return no_text + [Bad(value, ValueError, choices) for value in ("text", "x" * 10_000, "\x00")]


def a_tool_status(field: str) -> list[Bad]:
    """The status of an answer."""
    odd = [Bad(value, ValueError, f"{field} must be one of ") for value in ("text", "x" * 10_000)]
    return wrong(f"{field} must be a ToolStatus, not ", instance(str)) + odd


def a_function(field: str) -> list[Bad]:
    """Something to call."""
    return wrong(f"{field} must be ", callable)


def a(kind: type, *, none: bool = False) -> Kind:
    """Return the kind of argument that is an instance of ``kind``."""
    takes = instance(kind, type(None)) if none else instance(kind)
    return lambda field: wrong(f"{field} must be ", takes)


def needs(words: str, kind: type) -> Kind:
    """Return the same, for what is not called by the argument's name."""
    return lambda _: wrong(f"{words}, not ", instance(kind))


def arguments(_: str) -> list[Bad]:
    """The arguments object of a tool."""
    flags = [{"run_in_background": value} for value in VALUES if not isinstance(value, bool)]
    no_json = [value for value, _ in json_in("")]
    no_number: tuple[Any, ...] = ("1", 1.5, [], {}, "x" * 10_000, DEEP)
    numbers = [{"n": value} for value in no_number]
    no_dict = [value for value in VALUES if not isinstance(value, dict)]
    return [
        Bad(value, InvalidArguments, "Invalid arguments: ")
        for value in chain(no_dict, flags, no_json, numbers)
    ]


def lookups(_: str) -> list[Bad]:
    """The arguments object of a tool that looks after a task."""
    ids = [*(bad.value for bad in not_none(an_id)("task_id")), DEEP]
    no_json = [value for value, _ in json_in("")]
    no_dict = [value for value in VALUES if not isinstance(value, dict)]
    asked = [{"task_id": i} for i in ids if not (isinstance(i, str) and i.strip() in ("", "id"))]
    return [Bad(v, InvalidArguments, "Invalid arguments: ") for v in chain(no_dict, no_json, asked)]


def a_path(field: str) -> list[Bad]:
    """The path of a file."""
    odd: dict[str, str] = {
        "": "name a file",
        ":memory:": "name a file",
        "a\x00b": "usable",
        "a\ud800b": "usable",
    }
    no_path = wrong(f"{field} must be a str or os.PathLike[str], not ", instance(str))
    return no_path + [Bad(value, ValueError, words) for value, words in odd.items()]


def a_folder(field: str) -> list[Bad]:
    """The path of a folder that is there."""
    no_path = wrong(f"{field} must be a str or os.PathLike[str], not ", instance(str, type(None)))
    odd = {"none": "is no directory", "a\x00b": "is no directory", "a\ud800b": "is no directory"}
    return no_path + [Bad(v, ValueError, f"{field} {words}") for v, words in odd.items()]


def a_choice(field: str) -> list[Bad]:
    """How safely SQLite writes."""
    return [Bad(value, ValueError, f"{field} must be 'full' or 'normal'") for value in VALUES]


# ---- the table -----------------------------------------------------------------------------------


def of(find: Callable[[World], Callable[..., Any]], good: dict[str, Any], **kinds: Kind) -> Any:
    """Return the arguments of one entry; the others are as in ``good`` meanwhile."""

    def call(name: str, world: World, value: Any) -> Any:
        return find(world)(**good | {name: value})

    return {name: Given(partial(call, name), kind(name)) for name, kind in kinds.items()}


def new(kind: Callable[..., Any], good: dict[str, Any], **kinds: Kind) -> Any:
    """Return the same of something that needs no manager."""
    return of(lambda _: kind, good, **kinds)


def method(name: str, good: dict[str, Any], **kinds: Kind) -> Any:
    """Return the same of a method of the manager."""
    return of(lambda world: getattr(world.manager, name), good, **kinds)


def one_task(name: str, **kinds: Kind) -> Any:
    """Return the same of a method about one task."""
    known = {"owner_thread_id": OWNER, "task_id": "t"}
    return method(name, known, **{"owner_thread_id": an_id, "task_id": a_task_id} | kinds)


def one_owner(name: str, **kinds: Kind) -> Any:
    """Return the same of a method about one owner."""
    return method(name, {"owner_thread_id": OWNER}, **{"owner_thread_id": an_id} | kinds)


def task_tool(number: int) -> Any:
    """Return the same of one of the tools that look after tasks."""
    return of(
        lambda world: task_tools(world.manager)[number].execute,
        CALL,
        args=lookups,
        ctx=a(ToolCallContext),
    )


def new_tool_type(task_type: Any) -> type:
    """Make a class of tools."""
    members = {"task_type": task_type, "descriptor": None, "execute_background": None}
    return type("Tool", (BackgroundExecutable,), members)


CONTEXT = ToolCallContext(thread_id=OWNER)
ASKED = {"request": request(), "body": forever}
KEY = {"owner_thread_id": OWNER, "task_type": "work", "idempotency_key": "key"}
ANSWER = {"owner_thread_id": OWNER, "task_id": "t", "question_id": "q1"}
SPAWN = {"owner_thread_id": OWNER, "task_type": "work", "description": "", "body": forever}
CALL = {"args": {}, "ctx": CONTEXT}
DESCRIPTOR = {"id": "tool", "name": "tool", "description": ""}
MANAGER = BackgroundTaskManager

TABLE: dict[str, dict[str, Given]] = {
    # ---- the runtime
    "open_task_manager": new(
        open_task_manager,
        {},
        store=a(MemoryTaskStore, none=True),
        config=a(ManagerConfig, none=True),
    ),
    "ManagerConfig": new(
        ManagerConfig,
        {},
        attempts_per_owner=not_none(a_count),
        attempts_total=not_none(a_count),
        output_bytes=a_size,
        description_chars=a_count,
        shutdown_grace_s=seconds,
        attempt_deadline_s=not_none(seconds),
        owner_idle_s=seconds,
        retention_s=not_none(seconds),
        write_grace_s=a_period,
        sweep_s=a_period,
        poll_s=a_period,
        lease=a(LeaseTerms),
        clock_ms=a_function,
    ),
    "LeaseTerms": new(
        LeaseTerms, {}, lease_s=a_period, renew_s=a_period, stall_s=not_none(a_period)
    ),
    "StartRequest": new(
        StartRequest,
        {"owner_thread_id": OWNER, "task_type": "work", "task_id": "new"},
        owner_thread_id=an_id,
        task_type=an_id,
        description=a_text,
        task_id=not_none(an_id),
        parent_task_id=not_none(an_id),
        args=an_object,
        metadata=an_object,
        supports_resume=a_boolean,
        idempotency_key=not_none(an_id),
        deadline_s=not_none(seconds),
        resume_attempt=not_none(a_count),
    ),
    "BackgroundTaskManager.start": method("start", ASKED, request=a(StartRequest), body=a_function),
    "BackgroundTaskManager.run": method("run", ASKED, request=a(StartRequest), body=a_function),
    "BackgroundTaskManager.spawn": method(
        "spawn",
        SPAWN,
        owner_thread_id=an_id,
        task_type=an_id,
        description=a_text,
        body=a_function,
        task_id=not_none(an_id),
        parent_task_id=not_none(an_id),
        metadata=not_none(an_object),
        cancel_scope=a(trio.CancelScope, none=True),
    ),
    "BackgroundTaskManager.recall": method(
        "recall", KEY, owner_thread_id=an_id, task_type=an_id, idempotency_key=an_id
    ),
    "BackgroundTaskManager.cancel": one_task("cancel"),
    "BackgroundTaskManager.cancel_tree": one_task("cancel_tree"),
    "BackgroundTaskManager.answer": method(
        "answer",
        ANSWER | {"value": True},
        owner_thread_id=an_id,
        task_id=a_task_id,
        question_id=a_question_id,
        value=an_answer,
    ),
    "BackgroundTaskManager.decline": method(
        "decline", ANSWER, owner_thread_id=an_id, task_id=a_task_id, question_id=a_question_id
    ),
    "BackgroundTaskManager.wait": one_task("wait"),
    "BackgroundTaskManager.history": one_task("history"),
    "BackgroundTaskManager.output": one_task("output", offset=an_integer, limit=not_none(a_count)),
    # A task that is not theirs is None to these.
    "BackgroundTaskManager.get": one_task("get", task_id=an_id),
    "BackgroundTaskManager.record": one_task("record", task_id=an_id),
    "BackgroundTaskManager.persistence_error": one_task("persistence_error", task_id=an_id),
    "BackgroundTaskManager.find": method("find", {}, task_id=an_id),
    "BackgroundTaskManager.live": one_owner("live"),
    "BackgroundTaskManager.list_tasks": one_owner(
        "list_tasks", status=a_status, task_type=not_none(an_id), background_only=a_boolean
    ),
    "BackgroundTaskManager.has_running_tasks": one_owner("has_running_tasks"),
    "BackgroundTaskManager.notices": one_owner("notices", background_only=a_boolean, limit=a_count),
    "BackgroundTaskManager.take_notices": one_owner("take_notices"),
    "BackgroundTaskManager.subscribe": one_owner("subscribe"),
    "BackgroundTaskManager.gc_terminal": one_owner("gc_terminal", older_than_s=seconds),
    "BackgroundTaskManager.close_owner": one_owner("close_owner"),
    # ---- within a task
    "BackgroundExecution.save_checkpoint": of(
        lambda world: world.execution.save_checkpoint, {}, value=a_checkpoint
    ),
    "BackgroundExecution.ask": of(
        lambda world: world.execution.ask,
        {"message": "Sure?", "schema": {}},
        message=a_message,
        schema=a_schema,
    ),
    "BackgroundExecution.write_output": of(
        lambda world: world.execution.write_output, {}, text=a_text
    ),
    "BackgroundExecution.report_progress": of(
        lambda world: world.execution.report_progress,
        {"done": 1},
        done=a_number,
        total=not_none(a_number),
        message=not_none(a_text),
    ),
    # ---- tools
    "background_tool": new(
        lambda fn=add, **options: background_tool(fn, **options),
        {},
        fn=not_none(needs("background_tool needs an async function", type(add))),
        name=not_none(an_id),
        supports_resume=a_boolean,
    ),
    "BackgroundExecutable": new(
        new_tool_type, {}, task_type=lambda field: an_id(f"{field} of Tool")
    ),
    "Rejected": new(Rejected, {}, result=needs("Rejected needs a ToolResult", ToolResult)),
    "BackgroundCapable": of(
        lambda world: partial(BackgroundCapable, manager=world.manager),
        {"inner": background_tool(add)},
        inner=needs("BackgroundCapable needs a BackgroundExecutable", BackgroundExecutable),
        manager=needs("BackgroundCapable needs a BackgroundTaskManager", MANAGER),
    ),
    "BackgroundCapable.execute": of(
        lambda world: world.wrapped.execute, CALL, args=arguments, ctx=a(ToolCallContext)
    ),
    "BackgroundCapable.validate_args": of(
        lambda world: world.wrapped.validate_args, {}, args=arguments
    ),
    "ToolCallContext": new(
        ToolCallContext,
        {},
        call_id=a_text,
        source=a_text,
        thread_id=a_context_id,
        run_id=a_context_id,
        agent_id=a_context_id,
        idempotency_key=a_context_id,
        task_id=a_context_id,
    ),
    "ToolDescriptor": new(
        ToolDescriptor,
        DESCRIPTOR,
        id=an_id,
        name=an_id,
        description=a_text,
        parameters=a_dict,
        category=not_none(a_text),
        metadata=a_dict,
    ),
    "ToolResult": new(
        ToolResult,
        {"tool_name": "tool", "status": ToolStatus.SUCCESS},
        tool_name=a_text,
        status=a_tool_status,
        message=not_none(a_text),
        metadata=a_dict,
    ),
    "ToolResult.success": new(
        ToolResult.success,
        {"tool_name": "tool", "data": None},
        tool_name=a_text,
        message=not_none(a_text),
    ),
    "ToolResult.warning": new(
        ToolResult.warning,
        {"tool_name": "tool", "data": None, "message": ""},
        tool_name=a_text,
        message=not_none(a_text),
    ),
    "ToolResult.pending": new(
        ToolResult.pending,
        {"tool_name": "tool", "message": ""},
        tool_name=a_text,
        message=not_none(a_text),
    ),
    "ToolResult.error": new(
        ToolResult.error,
        {"tool_name": "tool", "message": "", "code": "code"},
        tool_name=a_text,
        message=a_text,
        code=not_none(a_text),
    ),
    "task_tools": new(
        task_tools, {}, manager=needs("task_tools needs a BackgroundTaskManager", MANAGER)
    ),
    **{f"task_tools.{n}.execute": task_tool(n) for n in range(3)},
    "ShellTool": new(
        ShellTool,
        {},
        supports_resume=a_boolean,
        shell=lambda field: [Bad(v, TypeError, field) for v in VALUES if not isinstance(v, str)],
        grace_s=lambda field: [attrs.evolve(bad, words=field) for bad in seconds(field)],
        env=lambda field: wrong(f"{field} must be a mapping", instance(dict, type(None))),
    ),
    "GuardedShell": new(
        GuardedShell,
        {},
        supports_resume=a_boolean,
        shell=lambda field: [Bad(v, TypeError, field) for v in VALUES if not isinstance(v, str)],
        grace_s=lambda field: [attrs.evolve(bad, words=field) for bad in seconds(field)],
        env=lambda field: wrong(f"{field} must be a mapping", instance(dict, type(None))),
        allow=lambda field: wrong(f"{field} must ", instance(list, type(None))),
        deny=lambda field: wrong(f"{field} must ", instance(list)),
        root=a_folder,
    ),
    # ---- the prompt, and stores
    "TaskReminder": new(
        TaskReminder, {}, manager=needs("TaskReminder needs a BackgroundTaskManager", MANAGER)
    ),
    "TaskReminder.render": of(
        lambda world: TaskReminder(world.manager).render, {}, owner_thread_id=an_id
    ),
    "TaskReminder.delivering": of(
        lambda world: TaskReminder(world.manager).delivering, {}, owner_thread_id=an_id
    ),
    "SqliteTaskStore.open": new(
        SqliteTaskStore.open,
        {"path": "tasks.db"},
        path=a_path,
        synchronous=a_choice,
    ),
}

ROWS = [(entry, name) for entry, arguments in TABLE.items() for name in arguments]


async def attempt(call: Callable[[], Any]) -> None:
    """Make a call, await what is to be awaited, enter what is to be entered."""
    result = call()
    if inspect.isawaitable(result):
        await result
    elif hasattr(result, "__aenter__"):
        async with result:
            pass


@asynccontextmanager
async def a_world(store: MemoryTaskStore) -> AsyncGenerator[World, None]:
    """Open the world of one row."""
    started: list[BackgroundExecution] = []

    async def body(execution: BackgroundExecution, scope: trio.CancelScope) -> TaskResult:
        started.append(execution)
        await execution.ask("Sure?", {"type": "boolean"})
        return await forever(execution, scope)

    async with opened(store) as manager:
        await manager.start(request(task_id="t"), body)
        await manager.start(request(OTHER, task_id="his"), forever)
        await manager.run(request(task_id="done", metadata={"m": 1}), done)
        await trio.testing.wait_all_tasks_blocked()
        yield World(manager, started[0])


@pytest.mark.parametrize(("entry", "name"), ROWS)
async def test_bad_input(
    entry: str,
    name: str,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each bad value is one sentence that names the argument and does not repeat all of it."""
    monkeypatch.chdir(tmp_path)
    given, store = TABLE[entry][name], MemoryTaskStore()
    async with a_world(store) as world:
        before, statistics = await contents(store), world.manager.statistics()
        for bad in given.bad:
            kind = type(bad.value).__name__
            with pytest.raises(bad.error) as caught:
                await attempt(partial(given.call, world, bad.value))
                pytest.fail(f"took a {kind}")
            text = str(caught.value)
            assert bad.words in text, kind
            assert text.isprintable(), kind
            assert len(text) <= MOST_WORDS, kind
            assert " object at 0x" not in text
            if bad.error is TypeError and ", not " in text:
                assert f", not {kind}" in text or ", not the class " in text
        assert await contents(store) == before
        assert world.manager.statistics() == statistics
    assert os.listdir(tmp_path) == []


# ---- nothing is left out -------------------------------------------------------------------------

SHELLS = {"ShellTool", "GuardedShell"}  # in a module of their own
# What a host is given and never makes, or what takes nothing.
RESULTS = {
    *("CancelledTree", "JournalEntry", "ManagerStatistics", "Notice", "OutputPage"),
    *(
        "Question",
        "Subscription",
        "TaskRecord",
        "TaskSummary",
        "MemoryTaskStore",
        "current_execution",
    ),
}
# What a body returns, says or raises: checked when it does.
ENDS = {"Cancelled", "ExternalRef", "Failed", "Progress", "Stopped", "Success", "ThreadMessageRef"}
# What goes between the manager and its store: checked before; so is what a store's methods take.
BETWEEN = {
    *("AttemptStarted", "CancelRequested", "CheckpointSaved", "Facts", "Finished", "Orphaned"),
    *("OutputAppended", "ProgressReported", "Registered", "apply"),
    *("QuestionAnswered", "QuestionAsked", "QuestionsWithdrawn"),
    *("journal_entry", "ends_attempt"),
}
# What is no call: types, enumerations, an abstract class, a constant.
NAMES = {
    *("Event", "TaskResult", "TaskStatus", "ToolStatus", "TaskStore", "Tool"),
    "RUN_IN_BACKGROUND_PARAM",
}
TAKES_NOTHING = {
    *("BackgroundTaskManager.owners", "BackgroundTaskManager.statistics"),
    *("BackgroundTaskManager.current_task_id", "BackgroundCapable.descriptor"),
}
ANYTHING = {f"ToolResult.{way}data" for way in ("", "success.", "warning.")}
WITH_METHODS = (BackgroundTaskManager, BackgroundExecution, BackgroundCapable, TaskReminder)


def public(thing: Any) -> Iterator[str]:
    """Yield the public names of a module or a class."""
    return (name for name in dir(thing) if not name.startswith("_"))


def test_every_public_name_is_here() -> None:
    """A name that is importable from the package is in the table, or in a list with its reason."""
    modules = {
        name for name in public(trio_bgtasks) if inspect.ismodule(getattr(trio_bgtasks, name))
    }
    errors = {
        name
        for name in public(trio_bgtasks)
        if inspect.isclass(kind := getattr(trio_bgtasks, name)) and issubclass(kind, Exception)
    }
    entries = {entry.split(".")[0] for entry in TABLE}
    left_out = (RESULTS | ENDS | BETWEEN | NAMES | modules | errors) - entries
    assert set(public(trio_bgtasks)) - left_out == entries - SHELLS
    assert left_out <= set(public(trio_bgtasks))


@pytest.mark.parametrize("kind", WITH_METHODS)
def test_every_method_is_here(kind: type) -> None:
    """A public method that takes anything is in the table, with everything that it takes."""
    methods = {
        f"{kind.__name__}.{name}"
        for name in public(kind)
        if inspect.isfunction(getattr(kind, name))
    }
    entries = {entry for entry in TABLE if entry.startswith(f"{kind.__name__}.")}
    assert methods - TAKES_NOTHING == entries


@pytest.mark.parametrize("entry", TABLE)
def test_every_argument_is_here(entry: str) -> None:
    """What an entry takes is in the table, but for what may be anything."""
    if entry.startswith("task_tools."):
        taken = {"args", "ctx"}
    elif entry == "BackgroundExecutable":
        taken = {"task_type"}  # of the class
    else:
        home = trio_bgtasks.tools if entry in SHELLS else trio_bgtasks
        found = attrgetter(entry)(home)
        taken = set(inspect.signature(found).parameters) - {"self"}
    assert set(TABLE[entry]) == {name for name in taken if f"{entry}.{name}" not in ANYTHING}
