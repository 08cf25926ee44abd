"""`RemoteTool`: the tools of another server as ours, whatever happens on the way there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from mcp import Client
from mcp.client.extension import UnexpectedClaimedResult
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    REQUEST_TIMEOUT,
    CallToolRequestParams,
    ListToolsResult,
    PaginatedRequestParams,
    ToolAnnotations,
)
from mcp_types import Tool as ToolDefinition
from trio.testing import MockClock

import trio_bgtasks.mcp
from tests.mcp.wire import EXTENSION, FORM, Function, pause, served
from tests.processes import PATIENCE_S
from tests.support import StallingStore, assert_idle
from trio_bgtasks import (
    BackgroundCapable,
    BackgroundExecutable,
    BackgroundExecution,
    BackgroundTaskManager,
    ManagerConfig,
    MemoryTaskStore,
    StaleAttempt,
    StoreBusy,
    TaskRecord,
    TaskStatus,
    TaskSummary,
    ToolCallContext,
    background_tool,
    open_task_manager,
)
from trio_bgtasks._parameters import declared
from trio_bgtasks.mcp import (
    RemoteTool,
    principal_owner,
    remote_client,
    remote_tools,
    serve_http,
)
from trio_bgtasks.mcp._protocol import TaskParams, UpdateParams
from trio_bgtasks.testing import BackgroundToolMachine, StoreWrapper

HERE = "here"
THERE = "mcp-owner"
HANDLE: dict[str, Any] = {
    "resultType": "task",
    "taskId": "r1",
    "status": "working",
    "createdAt": "2026-01-01T00:00:00Z",
    "lastUpdatedAt": "2026-01-01T00:00:00Z",
    "ttlMs": None,
}
WORKING: dict[str, Any] = {**HANDLE, "resultType": "complete"}
TEXT: dict[str, Any] = {"content": [{"type": "text", "text": "done"}]}
PLAIN: dict[str, Any] = {"resultType": "complete", **TEXT}
DONE: dict[str, Any] = {**WORKING, "status": "completed", "result": TEXT}
ASKED: dict[str, Any] = {
    "method": "elicitation/create",
    "params": {"mode": "form", "message": "Sure?", "requestedSchema": FORM},
}
ASKING: dict[str, Any] = {**WORKING, "status": "input_required", "inputRequests": {"k": ASKED}}
EMPTY: dict[str, Any] = {"resultType": "complete"}


# ---- what the tests are made of ------------------------------------------------------------------


class Counted(Function):  # type: ignore[misc]
    """A tool of a server that counts its runs, and runs until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.opened = trio.Event()

        async def counted(execution: BackgroundExecution) -> str:
            """Run until let go."""
            self.runs += 1
            await execution.report_progress(self.runs, 4, "waiting")
            await self.opened.wait()
            return "done"

        super().__init__(counted, supports_resume=False, name="counted")


class Scripted:
    """A server that answers what it is told to, the last answer for ever; ``seen`` is what came."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.seen: list[tuple[str, Any]] = []
        self.server: Server[Any] = Server("scripted")
        self.server.extensions[EXTENSION] = {}
        for name, params in (
            ("tools/list", PaginatedRequestParams),
            ("tools/call", CallToolRequestParams),
            ("tasks/get", TaskParams),
            ("tasks/update", UpdateParams),
            ("tasks/cancel", TaskParams),
        ):
            self.server.add_request_handler(name, params, partial(self.answer, name))

    async def answer(self, method: str, _: object, params: Any) -> Any:
        name = method.rpartition("/")[2]
        if name == "list":
            return ListToolsResult(tools=[definition()])
        sent = params.input_responses if name == "update" else getattr(params, "arguments", None)
        self.seen.append((name, sent))
        left: list[Any] = self.answers.get(name, [EMPTY])
        answer = left.pop(0) if len(left) > 1 else left[0]
        if not isinstance(answer, dict | Exception):
            answer = await answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def named(self, name: str) -> list[Any]:
        """Return what came with the requests of that name."""
        return [sent for seen, sent in self.seen if seen == name]


def definition(name: str = "tool", **fields: Any) -> ToolDefinition:
    """Return a tool of a server."""
    return ToolDefinition(name=name, **{"input_schema": {"type": "object"}, **fields})


@asynccontextmanager
async def remote(server: Any, name: str, **options: Any) -> AsyncGenerator[RemoteTool, None]:
    """Give a tool of a server, over a connection of its own."""
    async with remote_client(server, **options) as client:
        (tool,) = [t for t in await remote_tools(client) if t.descriptor().name == name]
        yield tool


@asynccontextmanager
async def scripted(script: Scripted, **fields: Any) -> AsyncGenerator[RemoteTool, None]:
    """Give the tool of a scripted server."""
    async with remote_client(script.server) as client:
        yield RemoteTool(client, definition(**fields))


async def start(
    manager: BackgroundTaskManager, tool: BackgroundExecutable[Any], **args: Any
) -> str:
    """Start, or resume, a call in the background; return the task's id."""
    call = {"run_in_background": True, **args}
    answer = await BackgroundCapable(tool, manager).execute(call, ToolCallContext(thread_id=HERE))
    assert answer.is_success, answer
    task_id: str = answer.data["task_id"]
    return task_id


async def run(
    manager: BackgroundTaskManager, tool: BackgroundExecutable[Any], **args: Any
) -> TaskSummary:
    """Start, or resume, a call; return how it ended."""
    return await manager.wait(HERE, await start(manager, tool, **args))


async def until(
    manager: BackgroundTaskManager, task_id: str, met: Callable[[TaskRecord], Any]
) -> TaskRecord:
    """Wait until a task here is like that."""
    with trio.fail_after(60):
        while True:
            record = await manager.record(HERE, task_id)
            assert record is not None
            if met(record):
                return record
            await trio.sleep(0.01)


def known(record: TaskRecord) -> Any:
    """Return the remote task that a record has stored."""
    return record.checkpoint and record.checkpoint["task_id"]


async def statuses(manager: BackgroundTaskManager) -> list[TaskStatus]:
    """Return how the tasks of a server stand."""
    return [task.status for task in await manager.list_tasks(THERE)]


def texts(summary: TaskSummary) -> list[str]:
    """Return the texts of a result."""
    return [block["text"] for block in summary.result["content"]]


# ---- what a tool is ------------------------------------------------------------------------------


async def test_what_the_model_is_told(runtime: BackgroundTaskManager) -> None:
    """Every tool of a server is one here, without what the server's own wrapper added to its parameters."""

    @background_tool
    async def own(task_id: str = "") -> str:
        """Have a parameter of that name."""
        await trio.lowlevel.checkpoint()
        return task_id

    async with remote_client(served(runtime, pause, own)) as client:
        tools = {tool.descriptor().name: tool for tool in await remote_tools(client)}
    assert [*tools] == ["pause", "own", "task_status", "task_cancel", "task_output"]
    described = tools["pause"].descriptor()
    assert (described.id, described.description) == ("pause", "Stop at every attempt but one.")
    assert declared(described.parameters) == {"until"}
    assert declared(tools["own"].descriptor().parameters) == {"task_id"}
    assert tools["pause"].task_type == "mcp:pause"
    assert repr(tools["pause"]) == "<RemoteTool pause>"
    resumable = [name for name, tool in tools.items() if tool.supports_resume]
    assert resumable == ["pause"]  # of the others the parameter says something else


async def test_names_and_bad_definitions() -> None:
    """A tool may be called otherwise here; it is called by its own name there. A schema that is none is named."""
    script = Scripted(call=[PLAIN])
    async with open_task_manager() as here, remote_client(script.server) as client:
        tool = RemoteTool(client, definition(title="Titled"), name="other")
        assert (tool.descriptor().name, tool.task_type) == ("other", "mcp:other")
        assert tool.descriptor().description == "Titled"
        assert RemoteTool(client, definition()).descriptor().description == ""
        assert (await run(here, tool)).status == "completed"
        wrong: Any = definition(input_schema={"type": "wrong"})
        with pytest.raises(ValueError, match="schema of tool 'tool' is not valid"):
            RemoteTool(client, wrong)


async def test_run_in_background_of_closed_parts() -> None:
    """Also in the parts of a schema that know it, the parameter of another wrapper is left out."""
    schema = {
        "type": "object",
        "properties": {"run_in_background": {"type": "boolean"}},
        "anyOf": [{"properties": {"a": {}, "run_in_background": {}}}, {"required": ["b"]}],
    }
    async with scripted(Scripted(), input_schema=schema) as tool:
        parameters = tool.descriptor().parameters
    assert parameters["properties"] == {}
    assert parameters["anyOf"] == [{"properties": {"a": {}}}, {"required": ["b"]}]


async def test_all_pages_are_listed() -> None:
    """The tools of every page are there."""

    class Paged:
        """A client whose server has two pages."""

        async def list_tools(self, *, cursor: str | None) -> Any:
            await trio.lowlevel.checkpoint()
            page = Page([definition("one")], "more") if cursor is None else Page([], None)
            return page if cursor is None else Page([definition("two")], None)

    class Page:
        """One of them."""

        def __init__(self, tools: list[ToolDefinition], next_cursor: str | None) -> None:
            self.tools, self.next_cursor = tools, next_cursor

    client: Any = Paged()
    assert [tool.descriptor().name for tool in await remote_tools(client)] == ["one", "two"]


async def test_not_connected(runtime: BackgroundTaskManager) -> None:
    """Without a connection a call is refused, and nothing is started or stored."""
    tool = RemoteTool(remote_client(Scripted().server), definition())
    answer = await BackgroundCapable(tool, runtime).execute(
        {"run_in_background": True}, ToolCallContext(thread_id=HERE)
    )
    assert (answer.status, answer.message) == ("error", "The server is not connected")
    assert await runtime.list_tasks(HERE) == []


async def test_the_client_is_not_for_calls_of_its_own(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call that became a task raises what says so in the SDK's own call_tool."""
    async with remote_client(served(runtime)) as client:
        with pytest.raises(UnexpectedClaimedResult):
            await client.call_tool("patient", {})


def test_the_names_are_lazy() -> None:
    """What is no name of the module is none."""
    with pytest.raises(AttributeError, match="no attribute 'RemoteToll'"):
        _ = trio_bgtasks.mcp.RemoteToll  # pyright: ignore[reportAttributeAccessIssue]


# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_that_is_answered(
    autojump_clock: MockClock,
    runtime: BackgroundTaskManager,
    task_manager: BackgroundTaskManager,
    mode: Any,
) -> None:
    """A call that is answered at once ends as that says; so does every call of an older connection."""
    async with remote(served(runtime), "work", mode=mode) as tool:
        ended = await run(task_manager, tool, seconds=0.2)
        assert ended.status == "completed"
        assert ended.result["structuredContent"] == {"slept": 0.2}
        assert texts(ended)[-1] == '{"slept": 0.2}'
    async with remote(served(runtime), "fail", mode=mode) as tool:
        ended = await run(task_manager, tool)
        assert (ended.status, ended.error) == ("failed", "ValueError: wrong")
        assert texts(ended) == ["ValueError: wrong"]


async def test_progress_of_a_call(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """The progress that is told of within a call is that of the task here."""
    async with remote(served(runtime), "patient", mode="legacy") as tool:
        task_id = await start(task_manager, tool)
        record = await until(task_manager, task_id, lambda record: record.progress)
        assert record.progress is not None
        assert (record.progress.done, record.progress.message) == (1, "a quarter")


async def test_a_call_that_becomes_a_task(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """A call that lasts ends with the result of its task; what that said is in the output."""
    async with remote(served(runtime, counted := Counted()), "counted") as tool:
        task_id = await start(task_manager, tool)
        record = await until(task_manager, task_id, known)
        assert record.checkpoint == {"task_id": known(record), "answers": {}}
        assert await runtime.get(THERE, known(record)) is not None
        await trio.sleep(5)
        counted.opened.set()
        ended = await task_manager.wait(HERE, task_id)
        assert (ended.status, texts(ended)) == ("completed", ["done"])
        assert (await task_manager.output(HERE, task_id)).text == "1 of 4: waiting\n"


async def test_in_the_foreground(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """A call in the foreground waits for the remote task, too, and answers with its result."""
    async with remote(served(runtime), "work") as tool:
        wrapped = BackgroundCapable(tool, task_manager)
        answer = await wrapped.execute({"seconds": 3}, ToolCallContext(thread_id=HERE))
        assert answer.data["structuredContent"] == {"slept": 3}


# It leaves its streams to the collector of garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_over_http(runtime: BackgroundTaskManager) -> None:
    """Over HTTP a call becomes a task, is answered, and cancelled with the task here; every request names it in a header."""
    named: set[tuple[str, str, str]] = set()

    async def note(ctx: Any, call_next: Any) -> Any:
        if ctx.method.startswith("tasks/"):
            named.add((ctx.method, ctx.request.headers["mcp-name"], ctx.params["taskId"]))
        return await call_next(ctx)

    server = served(runtime, owner_of=principal_owner)
    server.middleware.append(note)
    async with open_task_manager() as here, trio.open_nursery() as nursery:
        url = await nursery.start(serve_http, server)
        async with remote(url, "ask") as tool:
            task_id = await start(here, tool, questions=2)
            record = await until(here, task_id, lambda record: len(record.open_questions) == 2)
            there = known(record)
            await here.answer(HERE, task_id, record.open_questions[0].question_id, {"ok": True})
            await until(here, task_id, lambda record: None in record.checkpoint["answers"].values())
            await here.cancel(HERE, task_id)
            assert (await here.wait(HERE, task_id)).status == "cancelled"
        found = await runtime.find(there)
        assert found is not None
        assert (await runtime.wait(found.owner_thread_id, there)).status == "cancelled"
        nursery.cancel_scope.cancel()
    assert named == {(f"tasks/{name}", there, there) for name in ("get", "update", "cancel")}


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({"call": [MCPError(INVALID_PARAMS, "no such tool")]}, "the server refused the call: no"),
        ({"call": [MCPError(CONNECTION_CLOSED, "gone")]}, "it is unknown whether 'tool' ran: gone"),
        ({"call": [MCPError(REQUEST_TIMEOUT, "late")]}, "it is unknown whether 'tool' ran: late"),
        ({"call": [{**PLAIN, "content": [], "isError": True}]}, "the tool failed"),
        ({"get": [{**WORKING, "status": "failed", "error": {"message": "no"}}]}, "no"),
        ({"get": [{**WORKING, "status": "failed", "statusMessage": "why"}]}, "why"),
        ({"get": [{**WORKING, "status": "failed"}]}, "the task failed"),
        ({"get": [{**WORKING, "status": "cancelled"}]}, "the task was cancelled at its server"),
        (
            {"get": [{**DONE, "result": {**TEXT, "isError": True}}]},
            "done",
        ),
        (
            {"get": [MCPError(INVALID_PARAMS, "Task not found")]},
            (
                "the server does not know the task 'r1' any more: what became of it is unknown, and it "
                "was not run again (Task not found)"
            ),
        ),
    ],
)
async def test_failures(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, answers: Any, error: str
) -> None:
    """Whatever fails there fails the task here, in the words of the server; it is called once."""
    script = Scripted(**{"call": [HANDLE], **answers})
    async with scripted(script) as tool:
        ended = await run(runtime, tool)
    assert ended.status == "failed"
    assert ended.error is not None
    assert error in ended.error
    assert len(script.named("call")) == 1
    assert script.named("cancel") == []


@pytest.mark.parametrize(("wished", "pauses"), [(None, 1.0), (0, 0.1), (250, 0.25), (1e9, 30.0)])
async def test_how_often_it_asks(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, wished: float | None, pauses: float
) -> None:
    """A task is asked for as often as its server wishes, within bounds."""
    times: list[float] = []

    async def note() -> Any:
        await trio.lowlevel.checkpoint()
        times.append(trio.current_time())
        return DONE if len(times) == 3 else {**WORKING, "pollIntervalMs": wished}

    async with scripted(Scripted(call=[HANDLE], get=[note])) as tool:
        assert (await run(runtime, tool)).status == "completed"
    assert [b - a for a, b in pairwise(times)] == pytest.approx([pauses] * 2)


# ---- cancelling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_what_ends_the_task_ends_the_remote_one(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, how: str
) -> None:
    """A cancel and a deadline cancel the remote task."""
    config = ManagerConfig(attempt_deadline_s=5 if how == "deadline" else None)
    async with (
        open_task_manager(config=config) as here,
        remote(served(runtime), "patient") as tool,
    ):
        task_id = await start(here, tool)
        record = await until(here, task_id, known)
        if how == "cancel":
            await here.cancel(HERE, task_id)
        ended = await here.wait(HERE, task_id)
        assert ended.status == ("cancelled" if how == "cancel" else "failed")
        assert (await runtime.wait(THERE, known(record))).status == "cancelled"


@pytest.mark.parametrize("how", ["shutdown", "caller"])
async def test_what_stops_the_task_leaves_the_remote_one(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, how: str
) -> None:
    """After a shutdown, or when its caller has gone, the remote task goes on; a resume finds it."""
    store = MemoryTaskStore()
    async with remote(served(runtime, counted := Counted()), "counted") as tool:
        async with open_task_manager(store) as here:
            if how == "shutdown":
                task_id = await start(here, tool)
                await until(here, task_id, known)
            else:
                with trio.move_on_after(2):
                    await BackgroundCapable(tool, here).execute({}, ToolCallContext(thread_id=HERE))
                (task_id,) = [task.task_id for task in await here.list_tasks(HERE)]
        async with open_task_manager(store) as here:
            assert await statuses(runtime) == ["running"]
            assert await until(here, task_id, lambda record: record.status == "stopped")
            await start(here, tool, task_id=task_id)
            counted.opened.set()
            ended = await here.wait(HERE, task_id)
            assert (ended.status, texts(ended), counted.runs) == ("completed", ["done"], 1)


@pytest.mark.parametrize(("how", "left"), [("cancel", "cancelled"), ("shutdown", "running")])
async def test_given_up_before_it_is_a_task(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, how: str, left: str
) -> None:
    """A call that is given up learns which task it became: to cancel it, or for the resume."""
    store = MemoryTaskStore()
    async with remote(served(runtime, counted := Counted()), "counted") as tool:
        async with open_task_manager(store) as here:
            task_id = await start(here, tool)
            while not counted.runs:
                await trio.sleep(0.01)
            if how == "cancel":
                await here.cancel(HERE, task_id)
        await trio.sleep(1)
        assert await statuses(runtime) == [left]
        record = await store.load(task_id)
        assert record is not None
        assert (record.status, bool(known(record))) == (
            ("cancelled", True) if how == "cancel" else ("stopped", True)
        )


@pytest.mark.parametrize(("takes_s", "status"), [(0.5, "completed"), (50, "stopped")])
async def test_answered_when_it_is_given_up(
    autojump_clock: MockClock, takes_s: float, status: str
) -> None:
    """A result that comes while the call is given up is not lost; none is waited for long."""

    async def late() -> Any:
        await trio.sleep(takes_s)
        return PLAIN

    store, script = MemoryTaskStore(), Scripted(call=[late])
    async with scripted(script) as tool:
        async with open_task_manager(store) as here:
            task_id = await start(here, tool)
            while not script.seen:
                await trio.sleep(0.01)
            began = trio.current_time()
        assert trio.current_time() - began < 1.5
    record = await store.load(task_id)
    assert record is not None
    assert record.status == status


async def test_a_plain_call_is_given_up_at_once(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """Where no call becomes a task, nobody waits for one."""
    async with remote(served(runtime), "patient", mode="legacy") as tool:
        task_id = await start(task_manager, tool)
        await until(task_manager, task_id, lambda record: record.progress)
        began = trio.current_time()
        await task_manager.cancel(HERE, task_id)
        assert (await task_manager.wait(HERE, task_id)).status == "cancelled"
        assert trio.current_time() - began < 0.5


@pytest.mark.parametrize("answer", [MCPError(INTERNAL_ERROR, "no"), trio.sleep_forever])
async def test_a_cancel_that_is_not_taken(
    autojump_clock: MockClock,
    runtime: BackgroundTaskManager,
    caplog: pytest.LogCaptureFixture,
    answer: Any,
) -> None:
    """A server that does not take the cancel holds up nothing; if it says no, that is logged."""
    async with scripted(Scripted(call=[HANDLE], get=[WORKING], cancel=[answer])) as tool:
        task_id = await start(runtime, tool)
        await until(runtime, task_id, known)
        await runtime.cancel(HERE, task_id)
        began = trio.current_time()
        assert (await runtime.wait(HERE, task_id)).status == "cancelled"
        assert trio.current_time() - began < 3
    assert ("remote task r1 may go on" in caplog.text) is isinstance(answer, MCPError)


@pytest.mark.parametrize(
    ("error", "then"), [(StoreBusy("full"), ["cancel"]), (StaleAttempt("t", 1, 2, "running"), [])]
)
async def test_a_task_that_cannot_be_stored(
    autojump_clock: MockClock, error: Exception, then: list[str]
) -> None:
    """If the id of the remote task cannot be stored, none is left behind; unless another attempt has the task now."""

    class Broken(StoreWrapper):
        """A store that takes no checkpoint."""

        async def apply(self, task_id: str, event: Any) -> Any:
            if type(event).__name__ == "CheckpointSaved":
                raise error
            return await super().apply(task_id, event)

    script = Scripted(call=[HANDLE], get=[WORKING])
    async with open_task_manager(Broken()) as here, scripted(script) as tool:
        ended = await run(here, tool)
    assert (ended.status, ended.error) == ("failed", f"{type(error).__name__}: {error}")
    assert [name for name, _ in script.seen] == ["call", *then]


# ---- crashes and lost connections ----------------------------------------------------------------


async def test_a_resume_after_a_crash(
    autojump_clock: MockClock,
    runtime: BackgroundTaskManager,
    task_store: MemoryTaskStore,
    task_manager: BackgroundTaskManager,
    crash: Callable[[], Awaitable[None]],
) -> None:
    """A resume after a crash goes on with the remote task; the remote tool ran once."""
    async with remote(served(runtime, counted := Counted()), "counted") as tool:
        task_id = await start(task_manager, tool)
        await until(task_manager, task_id, known)
        await crash()
        assert await statuses(runtime) == ["running"]
        counted.opened.set()
        async with open_task_manager(task_store) as here:
            await trio.sleep(60)
            ended = await run(here, tool, task_id=task_id)
            assert (ended.status, texts(ended), counted.runs) == ("completed", ["done"], 1)


async def test_a_task_that_was_lost_to_another_executor(autojump_clock: MockClock) -> None:
    """An attempt that lost its task leaves the remote one to the attempt that has it now."""
    store = MemoryTaskStore()
    script = Scripted(call=[HANDLE], get=[WORKING])
    async with (
        scripted(script) as tool,
        open_task_manager(StallingStore(store)) as first,
        open_task_manager(store) as second,
    ):
        task_id = await start(first, tool)
        await until(first, task_id, known)
        with trio.fail_after(60):
            assert (await second.wait(HERE, task_id)).status == "stopped"
        await trio.sleep(10)
        assert_idle(first)
        script.answers["get"] = [DONE]
        assert (await run(second, tool, task_id=task_id)).status == "completed"
    assert {name for name, _ in script.seen} == {"call", "get"}
    assert len(script.named("call")) == 1


@pytest.mark.parametrize("hints", [None, ToolAnnotations(idempotent_hint=True)])
async def test_a_crash_within_the_call(
    autojump_clock: MockClock,
    task_store: MemoryTaskStore,
    task_manager: BackgroundTaskManager,
    crash: Callable[[], Awaitable[None]],
    hints: Any,
) -> None:
    """What was interrupted in the call is not called again, unless the definition says that it may be."""
    script = Scripted(call=[trio.sleep_forever, PLAIN])
    async with scripted(script, annotations=hints) as tool:
        task_id = await start(task_manager, tool)
        while not script.seen:
            await trio.sleep(0.01)
        await crash()
        async with open_task_manager(task_store) as here:
            await trio.sleep(60)
            ended = await run(here, tool, task_id=task_id)
    if hints is not None:
        assert (ended.status, len(script.named("call"))) == ("completed", 2)
    else:
        assert (ended.status, len(script.named("call"))) == ("failed", 1)
        assert ended.error is not None
        assert "it is unknown whether 'tool' ran" in ended.error


@pytest.mark.parametrize("code", [CONNECTION_CLOSED, REQUEST_TIMEOUT, INTERNAL_ERROR])
async def test_a_lost_connection(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, code: int
) -> None:
    """A task that cannot be asked for stops, and can be resumed; it is neither cancelled nor called again."""
    script = Scripted(call=[HANDLE], get=[WORKING, MCPError(code, "gone"), DONE])
    async with scripted(script) as tool:
        ended = await run(runtime, tool)
        text = "the server could not be asked for the task 'r1': gone"
        assert (ended.status, ended.error) == ("stopped", text)
        ended = await run(runtime, tool, task_id=ended.task_id)
    assert (ended.status, texts(ended)) == ("completed", ["done"])
    assert [name for name, _ in script.seen] == ["call", "get", "get", "get"]


async def test_a_client_that_is_closed(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """When the client is closed in the middle the task stops; a new connection finds what it became."""
    server = served(runtime, counted := Counted())
    async with remote(server, "counted") as tool:
        task_id = await start(task_manager, tool)
        await until(task_manager, task_id, known)
    ended = await task_manager.wait(HERE, task_id)
    assert ended.status == "stopped"
    counted.opened.set()
    async with remote(server, "counted") as tool:
        ended = await run(task_manager, tool, task_id=task_id)
    assert (ended.status, counted.runs) == ("completed", 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_server_that_is_gone(runtime: BackgroundTaskManager) -> None:
    """When the server of an HTTP connection goes away the task stops; the next one finds what it became."""
    counted, task_id = Counted(), ""

    async def serve(task_status: trio.TaskStatus[tuple[str, Any]]) -> None:
        with trio.CancelScope() as scope:
            server = served(runtime, counted, owner_of=principal_owner)
            async with trio.open_nursery() as nursery:
                url = await nursery.start(serve_http, server)
                task_status.started((url, scope))

    async with open_task_manager() as here, trio.open_nursery() as nursery:
        url, scope = await nursery.start(serve)
        with pytest.raises(BaseExceptionGroup):  # that is how the SDK's client ends
            async with remote(url, "counted") as tool:
                task_id = await start(here, tool)
                await until(here, task_id, known)
                scope.cancel()
                await trio.sleep(PATIENCE_S)
        with trio.fail_after(PATIENCE_S):
            assert (await here.wait(HERE, task_id)).status == "stopped"
        counted.opened.set()
        url, scope = await nursery.start(serve)
        async with remote(url, "counted") as tool:
            ended = await run(here, tool, task_id=task_id)
        assert (ended.status, counted.runs) == ("completed", 1)
        scope.cancel()


# ---- questions -----------------------------------------------------------------------------------


async def test_a_question(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """What the remote task asks is asked here; each answer gets back to who asked, also a refusal."""
    async with remote(served(runtime), "ask") as tool:
        task_id = await start(task_manager, tool, questions=2)
        record = await until(task_manager, task_id, lambda record: len(record.open_questions) == 2)
        for question in record.open_questions:
            assert question.schema == FORM
            answer = {"ok": question.message == "Question 0?"}
            await task_manager.answer(HERE, task_id, question.question_id, answer)
        ended = await task_manager.wait(HERE, task_id)
        assert ended.result["structuredContent"] == {"0": {"ok": True}, "1": {"ok": False}}
        after = await until(task_manager, task_id, known)
        assert sorted(after.checkpoint["answers"].values(), key=str) == [None, None]
        task_id = await start(task_manager, tool)
        record = await until(task_manager, task_id, lambda record: record.open_questions)
        await task_manager.decline(HERE, task_id, record.open_questions[0].question_id)
        ended = await task_manager.wait(HERE, task_id)
        assert ended.error is not None
        assert "QuestionDeclined" in ended.error


async def answer_it(manager: BackgroundTaskManager, task_id: str, value: Any) -> str:
    """Answer the question of a task here; return its text."""
    record = await until(manager, task_id, lambda record: record.open_questions)
    (question,) = record.open_questions
    await manager.answer(HERE, task_id, question.question_id, value)
    return question.message


async def test_an_answer_is_sent_once(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A key that is still there after its answer is not answered again, also not after a resume."""
    gone = MCPError(CONNECTION_CLOSED, "gone")
    script = Scripted(call=[HANDLE], get=[ASKING, ASKING, ASKING, gone, ASKING, ASKING, DONE])
    async with scripted(script) as tool:
        task_id = await start(runtime, tool)
        assert await answer_it(runtime, task_id, {"ok": True}) == "Sure?"
        assert (await runtime.wait(HERE, task_id)).status == "stopped"
        assert (await run(runtime, tool, task_id=task_id)).status == "completed"
    assert script.named("update") == [{"k": {"action": "accept", "content": {"ok": True}}}]


async def test_an_answer_that_was_not_sent(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """An answer is stored before it is sent, and if it could not be, sent by the resume; nobody is asked again."""
    stored: list[Any] = []
    gone = MCPError(CONNECTION_CLOSED, "gone")
    broken = False

    async def get() -> Any:
        await trio.lowlevel.checkpoint()
        return gone if broken else ASKING

    async def update() -> Any:
        nonlocal broken
        (task,) = await runtime.list_tasks(HERE)
        record = await until(runtime, task.task_id, known)
        stored.append(record.checkpoint["answers"])
        broken = True
        return gone

    script = Scripted(call=[HANDLE], get=[get], update=[update, EMPTY])
    async with scripted(script) as tool:
        task_id = await start(runtime, tool)
        await answer_it(runtime, task_id, {"ok": True})
        stopped = await runtime.wait(HERE, task_id)
        assert stopped.status == "stopped"
        script.answers["get"] = [ASKING, DONE]
        assert (await run(runtime, tool, task_id=task_id)).status == "completed"
    answers = {"k": {"action": "accept", "content": {"ok": True}}}
    assert script.named("update") == [answers] * 2
    assert stored == [answers]


async def test_an_answer_that_is_declined(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Who is asked may decline; the server is told so."""
    script = Scripted(call=[HANDLE], get=[ASKING, ASKING, DONE])
    async with scripted(script) as tool:
        task_id = await start(runtime, tool)
        record = await until(runtime, task_id, lambda record: record.open_questions)
        await runtime.decline(HERE, task_id, record.open_questions[0].question_id)
        assert (await runtime.wait(HERE, task_id)).status == "completed"
    assert script.named("update") == [{"k": {"action": "decline"}}]


async def test_an_answer_that_is_wrong(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What the server finds wrong is said, and asked anew."""
    taken = trio.Event()

    async def get() -> Any:
        await trio.lowlevel.checkpoint()
        return DONE if taken.is_set() else ASKING

    async def update() -> Any:
        await trio.lowlevel.checkpoint()
        taken.set()
        return EMPTY

    wrong = MCPError(INVALID_PARAMS, "too young")
    script = Scripted(call=[HANDLE], get=[get], update=[wrong, update])
    async with scripted(script) as tool:
        task_id = await start(runtime, tool)
        await answer_it(runtime, task_id, {"ok": False})
        await until(runtime, task_id, lambda record: not record.open_questions)
        await answer_it(runtime, task_id, {"ok": True})
        assert (await runtime.wait(HERE, task_id)).status == "completed"
        output = await runtime.output(HERE, task_id)
        assert output.text == "An answer was not taken: too young\n"
    assert [sent["k"]["content"]["ok"] for sent in script.named("update")] == [False, True]


async def test_a_question_that_is_gone(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What the remote task does not ask any more nobody is asked here."""
    script = Scripted(call=[HANDLE], get=[ASKING, ASKING, WORKING])
    async with scripted(script) as tool:
        task_id = await start(runtime, tool)
        await until(runtime, task_id, lambda record: record.open_questions)
        await until(runtime, task_id, lambda record: not record.open_questions)
        script.answers["get"] = [DONE]
        assert (await runtime.wait(HERE, task_id)).status == "completed"
    assert script.named("update") == []


async def test_what_is_asked_of_machines(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """What no person can answer fails the task, and ends the remote one."""
    sampling = {**ASKING, "inputRequests": {"k": {"method": "sampling/createMessage"}}}
    script = Scripted(call=[HANDLE], get=[sampling])
    async with scripted(script) as tool:
        ended = await run(runtime, tool)
    assert ended.status == "failed"
    assert "the server asks for 'sampling/createMessage'" in (ended.error or "")
    assert len(script.named("cancel")) == 1


async def test_questions_within_a_call(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """A call that is answered with questions is made again with the answers; a URL is part of its question."""
    visit = {
        "method": "elicitation/create",
        "params": {"mode": "url", "message": "Visit", "url": "https://example.org/"},
    }
    silent = {**ASKED, "params": {**ASKED["params"], "message": " "}}
    asking = {"resultType": "input_required", "requestState": "s"}
    rounds = [{**asking, "inputRequests": {"k": asked}} for asked in (ASKED, visit, silent)]
    script = Scripted(call=[*rounds, asking, PLAIN])
    sent: list[Any] = []
    seen = script.answer

    async def note(method: str, ctx: object, params: Any) -> Any:
        sent.append((params.input_responses, params.request_state))
        return await seen(method, ctx, params)

    script.server.add_request_handler(
        "tools/call", CallToolRequestParams, partial(note, "tools/call")
    )
    async with scripted(script) as tool:
        task_id = await start(runtime, tool)
        assert await answer_it(runtime, task_id, {"ok": True}) == "Sure?"
        assert await answer_it(runtime, task_id, None) == "Visit\nhttps://example.org/"
        assert await answer_it(runtime, task_id, {"ok": True}) == "tool asks"
        assert (await runtime.wait(HERE, task_id)).status == "completed"
    assert [state for _, state in sent] == [None, "s", "s", "s", "s"]
    given = [answers and answers["k"] for answers, _ in sent[1:4]]
    assert [(g.action, g.content) for g in given] == [
        ("accept", {"ok": True}),
        ("accept", None),
        ("accept", {"ok": True}),
    ]


async def test_what_older_servers_ask(
    autojump_clock: MockClock, runtime: BackgroundTaskManager, task_manager: BackgroundTaskManager
) -> None:
    """What an older connection asks within a call cannot be told from others: the server hears that nobody answered."""
    async with remote(served(runtime), "ask", mode="legacy") as tool:
        ended = await run(task_manager, tool)
    assert ended.status == "failed"
    assert "QuestionDeclined" in (ended.error or "")


# ---- the machine ---------------------------------------------------------------------------------


class RemoteMachine(BackgroundToolMachine):
    """A remote tool that may be called twice, interrupted at its every step."""

    arguments = st.fixed_dictionaries({"seconds": st.sampled_from([0.1, 3])})

    async def set_up(self) -> None:
        await super().set_up()
        self.client: Client = await self.run.nursery.start(self.serve)

    async def serve(self, task_status: trio.TaskStatus[Client]) -> None:
        """Be the server, and the connection to it."""
        async with open_task_manager() as there, remote_client(served(there)) as client:
            task_status.started(client)
            await trio.sleep_forever()

    def make_tool(self) -> BackgroundExecutable[Any]:
        schema = {"type": "object", "properties": {"seconds": {"type": "number"}}}
        hints = ToolAnnotations(idempotent_hint=True)
        return RemoteTool(self.client, definition("work", input_schema=schema, annotations=hints))


def test_interrupted_anywhere() -> None:
    """Wherever it is interrupted, it leaves nothing here, and the next attempt ends it."""
    how = settings(max_examples=3, stateful_step_count=6, deadline=None, derandomize=True)
    run_state_machine_as_test(RemoteMachine, settings=how)
