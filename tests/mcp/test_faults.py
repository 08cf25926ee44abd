"""What clients are told when the store fails, and when something else happens in between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
from mcp.shared.exceptions import MCPError
from trio.testing import MockClock

import trio_bgtasks.mcp
from tests.mcp.wire import OWNER, TASKS, Refusal, connected, served
from trio_bgtasks import Finished, StoreBusy, Success, UnknownTask, open_task_manager
from trio_bgtasks.mcp._protocol import task_errors
from trio_bgtasks.mcp._watch import Watch
from trio_bgtasks.testing import StoreWrapper

T = TypeVar("T")


class Meddler(StoreWrapper):
    """A store before whose next call of one kind something happens."""

    when: tuple[str, Callable[[], Awaitable[object]]] | None = None

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        if self.when is not None and self.when[0] == call:
            (_, happens), self.when = self.when, None
            await happens()
        return await afn()


class Broken(StoreWrapper):
    """A store that cannot be read while it is broken."""

    broken = False

    async def around(self, call: str, afn: Callable[[], Awaitable[T]]) -> T:
        if self.broken and call in ("load", "list_owner"):
            raise StoreBusy("the disk of ann is full")
        return await afn()


async def test_a_store_that_fails(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store fails a request is answered with an error that tells nothing of it; whoever listens hears later."""
    store = Broken()
    async with (
        open_task_manager(store) as manager,
        connected(served(manager), TASKS) as client,
        connected(served(manager), modern=False) as old,
    ):
        task_id = (await client.call("patient"))["taskId"]
        await client.post("subscriptions/listen", {"notifications": {"taskIds": [task_id]}})
        await client.until(lambda: len(client.told) == 2)
        store.broken = True
        for method in ("tasks/get", "tasks/cancel"):
            with pytest.raises(Refusal) as refusal:
                await client.request(method, {"taskId": task_id})
            assert refusal.value.error == {
                "code": -32603,
                "message": "The task could not be looked up",
            }
        with pytest.raises(Refusal):
            await old.request("tasks/list")
        assert "the disk of ann is full" in caplog.text
        await manager.cancel(OWNER, task_id)
        await trio.sleep(7)
        assert len(client.told) == 2
        store.broken = False
        await client.until(lambda: client.told[-1]["params"]["status"] == "cancelled")


async def test_a_result_without_its_output(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What a tool answered is told, also where the store fails when its output is read."""

    async def fail() -> None:
        raise OSError("the disk is gone")

    store = Meddler()
    async with open_task_manager(store) as manager, connected(served(manager)) as client:
        store.when = "read_output", fail
        answer = await client.call("work", output="text")
        assert [block["text"] for block in answer["content"]] == ['{"slept": 0}']
    assert "the disk is gone" in caplog.text


async def test_what_cannot_be_passed_on(autojump_clock: MockClock) -> None:
    """A call is answered, also where the store fails when its progress is to be told."""
    store = Broken()
    async with (
        open_task_manager(store) as manager,
        connected(served(manager), modern=False) as client,
    ):
        store.broken = True
        params = {"name": "work", "arguments": {"seconds": 1}, "_meta": {"progressToken": 1}}
        answer = await client.request("tools/call", params)
        assert answer["structuredContent"] == {"slept": 1}


async def test_a_form_while_the_store_fails(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is asked within a request is left alone while the store fails, and hears how it ended after that."""
    store = Broken()
    async with (
        open_task_manager(store) as manager,
        connected(served(manager), {"elicitation": {}}, modern=False) as client,
    ):
        params = {"name": "ask", "arguments": {}, "task": {}}
        task_id = (await client.request("tools/call", params))["task"]["taskId"]
        number = await client.post("tasks/result", {"taskId": task_id})
        await client.until(lambda: client.asked)
        store.broken = True
        await manager.cancel(OWNER, task_id)
        await trio.sleep(7)
        assert number not in client.answers
        assert "the disk of ann is full" in caplog.text
        store.broken = False
        with pytest.raises(Refusal, match="The task was cancelled"):
            await client.answer_to(number)


async def test_collected_in_between(autojump_clock: MockClock) -> None:
    """A task that is collected while it is looked at is unknown."""
    store = Meddler()
    async with open_task_manager(store) as manager, connected(served(manager), TASKS) as client:
        await client.call("work", output="text")
        (task,) = await manager.list_tasks(OWNER)
        assert (await client.get(task.task_id))["status"] == "completed"

        async def seen_once() -> None:
            store.when = "load", lambda: manager.gc_terminal(OWNER)

        store.when = "load", seen_once
        with pytest.raises(Refusal, match="Task not found"):
            await client.get(task.task_id)


async def test_ended_in_between(autojump_clock: MockClock) -> None:
    """A cancel that comes too late is acknowledged, and so is an answer."""
    store = Meddler()
    async with open_task_manager(store) as manager, connected(served(manager), TASKS) as client:
        for method in ("cancel", "update"):
            task_id = (await client.call("ask"))["taskId"]
            (key,) = (await client.get(task_id))["inputRequests"]
            record = await manager.record(OWNER, task_id)
            assert record is not None

            async def end(record: Any = record) -> None:
                finished = Finished(0, record.executor_id, record.attempt, Success("early"))
                await store.inner.apply(record.task_id, finished)

            store.when = "apply", end
            params = {"taskId": task_id, "inputResponses": {key: {"action": "decline"}}}
            assert (await client.request(f"tasks/{method}", params))["resultType"] == "complete"
            ended = await client.get(task_id)
            assert ended["result"]["content"][0]["text"] == "early"


async def test_a_manager_that_closes(autojump_clock: MockClock) -> None:
    """When the manager closes, hints end; whoever watches still looks now and then."""
    async with trio.open_nursery() as nursery:
        async with open_task_manager() as manager:
            watch = Watch(manager, nursery)
            context = watch.watch(OWNER, ["t"])
            news = await context.__aenter__()
            await trio.testing.wait_all_tasks_blocked()
        assert await news.next() == {"t"}
        assert await news.next() == {"t"}
        await context.__aexit__(None, None, None)


def test_importing_is_cheap() -> None:
    """The SDK, which takes a second, is imported when it is first used, not with the package."""
    program = (
        "import sys, trio_bgtasks.mcp\n"
        "assert not {'mcp', 'mcp_types', 'pydantic', 'hypercorn'} & sys.modules.keys()\n"
        "assert callable(trio_bgtasks.mcp.build_server)\n"
        "assert 'mcp' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_not_there() -> None:
    """The package has the names that it says, and no others."""
    with pytest.raises(AttributeError, match="has no attribute 'build_servers'"):
        getattr(trio_bgtasks.mcp, "build_servers")  # noqa: B009 - not the name of an attribute


def test_unknown_in_between() -> None:
    """A task that is gone when something is to be done with it is unknown."""
    with pytest.raises(MCPError, match="Task not found"), task_errors():
        raise UnknownTask("task_0")
