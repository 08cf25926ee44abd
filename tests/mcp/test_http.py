"""Over HTTP, with real sockets: who may come, and what clients see."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import pytest
import trio
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Result

from tests.mcp.plain_http import bearer, connect, post, request
from tests.mcp.wire import EXTENSION, served
from tests.processes import PATIENCE_S
from trio_bgtasks import BackgroundTaskManager
from trio_bgtasks.mcp import Principal, http_app, principal_owner, serve_http

PROMPT_S = 5


@asynccontextmanager
async def serving(manager: BackgroundTaskManager, **http: Any) -> AsyncGenerator[str, None]:
    """Give the URL of a server."""
    async with trio.open_nursery() as nursery:
        server = served(manager, owner_of=principal_owner)
        yield await nursery.start(partial(serve_http, server, **http))
        nursery.cancel_scope.cancel()


async def create(url: str, **headers: str) -> str:
    """Start a task that has no end; return its id."""
    answer = await post(url, "tools/call", headers, name="patient", arguments={})
    task_id: str = answer.json["result"]["taskId"]
    return task_id


TOKENS = {
    "secret-ann": Principal("ann"),
    "secret-ann-2": Principal("ann"),
    "secret-bob": Principal("bob", expires_at=1 << 40),
    "secret-old": Principal("old", expires_at=1),
}


# ---- who may come --------------------------------------------------------------------------------


async def test_principals(runtime: BackgroundTaskManager) -> None:
    """A principal sees its tasks with any of its tokens; another one's are, byte for byte, unknown."""
    async with serving(runtime, tokens=TOKENS) as url:
        task_id = await create(url, **bearer("secret-ann"))
        seen = await post(url, "tasks/get", bearer("secret-ann-2"), taskId=task_id)
        assert seen.json["result"]["status"] == "working"
        foreign = await post(url, "tasks/get", bearer("secret-bob"), taskId=task_id)
        unknown = await post(url, "tasks/get", bearer("secret-bob"), taskId="task_0")
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
        assert foreign.json["error"]["code"] == -32602


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer("secret-old"), bearer(""), {"Authorization": "secret-ann"}],
)
async def test_without_a_good_token(
    runtime: BackgroundTaskManager, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a token, with a wrong or an expired one nothing is answered; and no token is logged."""
    caplog.set_level(0)
    async with serving(runtime, tokens=TOKENS) as url:
        answer = await post(url, "tools/list", headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("bearer")
        await post(url, "tools/list", bearer("secret-ann"))
    assert "secret" not in caplog.text


async def test_a_browser_is_kept_out(runtime: BackgroundTaskManager) -> None:
    """A request under another host's name, or from another origin, is refused; ours is not, however it is written."""
    async with serving(runtime, allowed_hosts=["Box.local"]) as url:
        port = url.removesuffix("/mcp").rpartition(":")[2]
        assert (await post(url, "tools/list", {"Host": "evil.example"})).status == 421
        assert (await post(url, "tools/list", {"Origin": "https://evil.example"})).status == 403
        for headers in (
            {"Host": f"box.local:{port}"},
            {"Host": f"BOX.local:{port}"},
            {"Origin": f"http://localhost:{port}"},
            {"Origin": f"http://box.local:{port}"},
            {"Origin": f"http://Box.local:{port}"},
        ):
            assert (await post(url, "tools/list", headers)).status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
async def test_others_need_a_token(runtime: BackgroundTaskManager, host: str) -> None:
    """Where others could reach it, nothing is served without tokens."""
    nobody: dict[str, Principal] = {}
    for tokens in (None, nobody):
        with trio.fail_after(PROMPT_S), pytest.raises(ValueError, match="tokens are required"):
            await serve_http(served(runtime), host=host, tokens=tokens)


@pytest.mark.parametrize("host", ["localhost", "::1"])
async def test_loopback(runtime: BackgroundTaskManager, host: str) -> None:
    """This machine's own addresses need none."""
    async with serving(runtime, host=host) as url:
        assert (await post(url, "tools/list")).status == 200


@pytest.mark.parametrize("name", ["", "a\n", 1])
def test_principals_have_names(name: Any) -> None:
    """A principal has a name that can be an owner's."""
    with pytest.raises((TypeError, ValueError), match="name"):
        Principal(name)


async def test_an_app_for_another_host(runtime: BackgroundTaskManager) -> None:
    """The application can be had without a server around it."""
    app: Any = http_app(served(runtime))
    assert [route.path for route in app.routes] == ["/mcp"]


# ---- what clients see ----------------------------------------------------------------------------


async def test_a_header_that_names_another_task(runtime: BackgroundTaskManager) -> None:
    """Mcp-Name has to name the task of the request, if it is there."""
    async with serving(runtime) as url:
        task_id = await create(url)
        good = {"Mcp-Name": task_id}
        assert (await post(url, "tasks/get", good, taskId=task_id)).status == 200
        assert (await post(url, "tasks/get", taskId=task_id)).status == 200
        wrong = await post(url, "tasks/get", {"Mcp-Name": "task_0"}, taskId=task_id)
        assert (wrong.status, wrong.json["error"]["code"]) == (400, -32020)


class Created(Result):
    """The answer that is a task."""

    task_id: str
    status: str
    result_type: Literal["task"]


class Handles(ClientExtension):
    """Declares that its client takes tasks, and hands them out."""

    identifier = EXTENSION

    def claims(self) -> Any:
        return (
            ResultClaim(
                result_type="task",
                model=Created,
                resolve=self.resolve,
                protocol_versions=frozenset({"2026-07-28"}),
            ),
        )

    async def resolve(self, created: Created, _: ClaimContext) -> CallToolResult:
        raise AssertionError(created)


# It leaves its streams to the collector of garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_client_of_the_sdk(runtime: BackgroundTaskManager) -> None:
    """The SDK's own client gets a task from a call that lasts, and a result from one that does not; older ones results."""
    async with serving(runtime) as url:
        async with Client(url, extensions=[Handles()]) as client:
            created: Any = await client.session.call_tool("patient", {}, allow_claimed=True)
            assert created.status == "working"
            assert (await client.call_tool("work", {})).structured_content == {"slept": 0}
        async with Client(url, mode="legacy") as client:
            assert (await client.call_tool("work", {})).structured_content == {"slept": 0}
            status = await client.call_tool("task_status", {"task_id": created.task_id})
            assert status.structured_content is not None
            assert status.structured_content["status"] == "running"


async def test_push_over_http(runtime: BackgroundTaskManager) -> None:
    """Who listens over HTTP is told of the end; who does not read, or ends in the middle, holds up nobody, nor the server's end."""
    leave = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[str]) -> None:
        async with serving(runtime) as url:
            task_status.started(url)
            await leave.wait()

    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve)
        task_id = await create(url)
        listening = request(url, "subscriptions/listen", notifications={"taskIds": [task_id]})
        async with (
            await connect(url) as half,
            await connect(url) as deaf,
            await connect(url) as ears,
        ):
            await half.send_all(b"POST /mcp HTTP/1.1\r\nHost: ")  # and nothing more
            await deaf.send_all(listening)
            await ears.send_all(listening)
            said = b""
            while b'"working"' not in said:
                said += await ears.receive_some()
            await post(url, "tasks/cancel", taskId=task_id)
            while b'"cancelled"' not in said:
                said += await ears.receive_some()
            assert b"notifications/subscriptions/acknowledged" in said
            began = time.monotonic()
            leave.set()
            with trio.fail_after(PATIENCE_S):
                while await ears.receive_some():
                    pass
    assert time.monotonic() - began < PROMPT_S
