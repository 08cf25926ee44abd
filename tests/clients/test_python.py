"""Clients in Python, each of which plays one story, with a kill -9 of the server in its midst."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.clients.server import SERVE, Server, variables
from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/how-to/clients"
FENCED = re.DOTALL | re.MULTILINE
Seen = list[dict[str, Any]]


def shown(page: str, number: int = 1) -> Seen:
    """Return what a page says that a client sees: the lines of its n-th block of JSON."""
    blocks = re.findall(r"^```json\n(.*?)^```$", (PAGES / page).read_text(), FENCED)
    return [json.loads(line) for line in blocks[number - 1].splitlines()]


async def told(
    folder: Path,
    python: Path,
    script: str,
    target: dict[str, Any],
    *args: str,
    kill: Callable[[int], Awaitable[None]],
) -> Seen:
    """Run a client's script; return what it saw. Where it asks for that, ``kill`` the server."""
    seen: Seen = []
    process = await trio.lowlevel.open_process(
        [str(python), "-m", f"tests.clients.{script}", json.dumps(target), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables(folder),
        cwd=folder,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with trio.fail_after(PATIENCE_S):
            buffer = b""
            async for piece in process.stdout:
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    seen.append(json.loads(line))
                    if seen[-1]["step"] == "kill":
                        await kill(process.pid)
                        await process.stdin.send_all(b"\n")
            assert await process.wait() == 0, seen
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
    return seen


async def over_http(server: Server, python: Path, script: str, *args: str) -> Seen:
    """Have a client tell what it saw of a server over HTTP, which is started again."""

    async def kill(_: int) -> None:
        await server.kill()
        await server.start()

    return await told(server.folder, python, script, server.target, *args, kill=kill)


async def over_stdio(folder: Path, python: Path, script: str, *args: str) -> Seen:
    """Have a client tell what it saw of servers that it starts."""

    async def kill(client: int) -> None:
        await trio.lowlevel.checkpoint()
        os.kill(child_of(client), signal.SIGKILL)

    target = {"command": sys.executable, "args": [*SERVE], "env": variables(folder)}
    return await told(folder, python, script, target, *args, kill=kill)


def child_of(process: int) -> int:
    """Return the one child of a process, whichever of its threads started it."""
    threads = Path(f"/proc/{process}/task").glob("*/children")
    (child,) = [int(number) for thread in threads for number in thread.read_text().split()]
    return child


# ---- the clients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
async def test_the_sdk_over_http(server: Server, loop: str) -> None:
    """The SDK's own client sees on either loop what its page shows."""
    seen = await over_http(server, Path(sys.executable), "sdk", loop)
    assert seen == shown("python-sdk.md")


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
async def test_the_sdk_over_stdio(installed: Path, folder: Path, loop: str) -> None:
    """The same over stdio, where the next connection starts the next server."""
    seen = await over_stdio(folder, Path(sys.executable), "sdk", loop)
    assert seen == shown("python-sdk.md")


async def test_the_sdk_1_over_http(server: Server, sdk_1: Path) -> None:
    """The client of the SDK 1.30, with the tasks of 2025-11-25, sees what its page shows."""
    assert await over_http(server, sdk_1, "sdk_1") == shown("python-sdk.md", 2)


async def test_the_sdk_1_over_stdio(folder: Path, sdk_1: Path) -> None:
    """The same over stdio."""
    assert await over_stdio(folder, sdk_1, "sdk_1") == shown("python-sdk.md", 2)


async def test_fastmcp_over_http(server: Server, fastmcp: Path) -> None:
    """FastMCP's client, which knows of tasks itself, sees what its page shows."""
    assert await over_http(server, fastmcp, "fastmcp_client") == shown("fastmcp.md")


async def test_fastmcp_over_stdio(folder: Path, fastmcp: Path) -> None:
    """The same over stdio."""
    assert await over_stdio(folder, fastmcp, "fastmcp_client") == shown("fastmcp.md")


async def test_the_example_of_fastmcp(folder: Path, fastmcp: Path) -> None:
    """The client that the page of FastMCP gives to readers prints what the page says."""
    page = (PAGES / "fastmcp.md").read_text()
    for name, text in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", page, FENCED):
        (folder / name).write_text(text)
    ((line, printed),) = re.findall(r"^```console\n\$ python (.*?)\n(.*?)^```$", page, FENCED)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            [str(fastmcp), line],
            capture_stdout=True,
            cwd=folder,
            env=variables(folder) | {"PATH": path},
        )
    assert done.stdout.decode() == printed
