"""Many tasks, some clients, and subscribers that do not read: through the application, on virtual time.

`python -m benchmarks.over_http` does the like to a real server.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from tests.mcp.plain_http import request
from tests.mcp.wire import served
from trio_bgtasks import BackgroundExecution, BackgroundTaskManager, background_tool
from trio_bgtasks.mcp import http_app, principal_owner

TASKS, CLIENTS, DEAD, STEPS = 50, 5, 3, 6
URL = "http://localhost:1/mcp"


@background_tool
async def count(execution: BackgroundExecution, number: int) -> int:
    """Report every second; answer with the square."""
    for step in range(STEPS):
        await execution.report_progress(step, STEPS)
        await trio.sleep(1)
    return number * number


@attrs.define(eq=False)
class Exchange:
    """One request to the application. It reads what comes once it ``reads``."""

    app: Any
    reads: trio.Event = attrs.field(factory=trio.Event)
    body: bytes = b""

    async def run(self, method: str, **params: Any) -> Any:
        """Send it, and return what is answered."""
        top, _, body = request(URL, method, **params).partition(b"\r\n\r\n")
        lines = [line.split(b": ", 1) for line in top.split(b"\r\n")[1:]]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/mcp",
            "query_string": b"",
            "headers": [(name.lower(), value) for name, value in lines],
        }
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            for message in messages:
                return message
            return await trio.sleep_forever()

        async def send(message: Any) -> None:
            await self.reads.wait()
            self.body += message.get("body", b"")

        await self.app(scope, receive, send)
        return json.loads(self.body)["result"]

    @property
    def told(self) -> list[Any]:
        """The tasks that it was told of, in order."""
        events = [json.loads(part.split(b"\r\n")[0]) for part in self.body.split(b"data: ")[1:]]
        return [each["params"] for each in events if each["method"] == "notifications/tasks"]


async def ask(app: Any, method: str, **params: Any) -> Any:
    """Send a request and read its answer."""
    exchange = Exchange(app)
    exchange.reads.set()
    return await exchange.run(method, **params)


async def start_all(app: Any) -> dict[str, int]:
    """Start all tasks, by several clients at a time; return what each has to answer."""
    squares: dict[str, int] = {}

    async def start(client: int) -> None:
        for number in range(client, TASKS, CLIENTS):
            arguments = {"number": number, "run_in_background": True}
            answer = await ask(app, "tools/call", name="count", arguments=arguments)
            squares[answer["structuredContent"]["task_id"]] = number * number

    async with trio.open_nursery() as clients:
        for client in range(CLIENTS):
            clients.start_soon(start, client)
    return squares


async def test_dead_subscribers_hold_up_nobody(
    autojump_clock: MockClock, runtime: BackgroundTaskManager
) -> None:
    """Every task comes to its own result, and a subscriber that reads is told of each end at once; for those that do not, nothing is kept but the latest state."""
    app: Any = http_app(served(runtime, count, owner_of=principal_owner))
    async with app.router.lifespan_context(app), trio.open_nursery() as nursery:
        squares = await start_all(app)
        assert len(squares) == TASKS
        live, *dead = [Exchange(app) for _ in range(1 + DEAD)]
        live.reads.set()
        for one in (live, *dead):

            @nursery.start_soon
            async def listen(one: Exchange = one) -> None:
                await one.run("subscriptions/listen", notifications={"taskIds": list(squares)})

        began = trio.current_time()
        while live.body.count(b'"completed"') < TASKS:
            await trio.sleep(0.5)
        assert trio.current_time() - began <= STEPS + 0.5
        ends = {task["taskId"]: task for task in live.told if task["status"] == "completed"}
        assert len(live.told) > TASKS * STEPS / 2
        for task_id, square in squares.items():
            seen = await ask(app, "tasks/get", taskId=task_id)
            assert seen["result"]["content"][0]["text"] == str(square)
            assert ends[task_id]["result"] == seen["result"]

        for one in dead:
            assert one.body == b""
            one.reads.set()
        await trio.sleep(1)
        for one in dead:
            assert len(one.told) <= TASKS + 1  # one was under way when it did not read
            assert {task["taskId"] for task in one.told if "result" in task} == squares.keys()
        nursery.cancel_scope.cancel()
