"""Enemies of `trio-bgtasks serve --http`, which is a process of its own here, as a user has it.

What is done to it, what comes of it, and which figures were measured is told in
docs/explanation/security.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from trio.testing import MockClock

from tests.cli.command import PROGRAM, environment
from tests.mcp.plain_http import Answer, bearer, connect, exchange, head, post, read_answer, request
from tests.processes import PATIENCE_S, Marked
from trio_bgtasks import SqliteTaskStore, open_task_manager
from trio_bgtasks.mcp._calls import new_task_id
from trio_bgtasks.mcp._connections import BODY_S, WRITE_S, Exchanges, Connection
from trio_bgtasks.testing._processes import MARK

PROMPT_S = 5
ANN, ANN_2, BOB = (f"token-of-{name}-that-nobody-knows" for name in ("ann", "ann-too", "bob"))
SECRET = "a-secret-of-the-servers-environment"
TOKENS = f"ann {ANN}\nann {ANN_2}\nbob {BOB}\n"
BODY_LIMIT = 4 << 20
LEGACY = {"MCP-Protocol-Version": "2025-11-25", "Connection": "close"}


@attrs.frozen
class Serving:
    """The process, and where its files are."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str

    @property
    def root(self) -> Path:
        """Where commands may run."""
        return self.folder / "root"

    @property
    def tokens(self) -> Path:
        """The file of tokens."""
        return self.folder / "tokens"

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "errors").read_text()

    @property
    def memory(self) -> int:
        """How many bytes of memory it has."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def shell(self, command: str, token: str = ANN, **arguments: Any) -> Any:
        """Run a command; return its task."""
        answer = await post(
            self.url,
            "tools/call",
            bearer(token),
            name="shell",
            arguments={"command": command, **arguments},
        )
        assert answer.status == 200, answer
        return answer.json["result"]

    async def is_well(self) -> None:
        """Check that it serves, and promptly."""
        with trio.fail_after(PATIENCE_S):
            assert (await post(self.url, "tools/list", bearer(BOB))).status == 200


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Serve a shell to ann and bob; at the end nothing of it is left."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "root" / "below").mkdir(parents=True)
    (folder / "root" / "out").symlink_to(folder)
    tokens = folder / "tokens"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    mark = uuid.uuid4().hex
    options = (
        *("--http", "127.0.0.1:0", "--tokens", str(tokens), "--root", str(folder / "root")),
        *("--db", str(folder / "state" / "tasks.db"), "--env", MARK),
    )
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [*PROGRAM, "serve", *options],
            stdin=subprocess.DEVNULL,
            stderr=errors,
            env=environment() | {MARK: mark, "API_KEY": SECRET},
        )
    try:
        until = time.monotonic() + PATIENCE_S
        while "serving at" not in (said := (folder / "errors").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.01)
        yield Serving(process, folder, said.split("serving at ")[1].strip())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert not Marked(mark).alive()
    finally:
        process.kill()
        process.wait()
        Marked(mark).kill()


# ---- other principals ----------------------------------------------------------------------------


async def legacy_session(url: str, token: str) -> dict[str, str]:
    """Shake hands as a client of 2025-11-25; return the headers of its further requests."""
    hello = await post(
        url,
        "initialize",
        LEGACY | bearer(token),
        protocolVersion="2025-11-25",
        capabilities={},
        clientInfo={"name": "test", "version": "1"},
    )
    return LEGACY | bearer(token) | {"Mcp-Session-Id": hello.headers["mcp-session-id"]}


QUESTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("modern", "tasks/get", {"taskId": "ID"}),
    ("modern", "tasks/cancel", {"taskId": "ID"}),
    ("modern", "tasks/update", {"taskId": "ID", "inputResponses": {}}),
    ("modern", "tasks/update", {"taskId": "ID", "inputResponses": {"resume-1": {"action": "accept"}}}),
    *(
        (era, "tools/call", {"name": name, "arguments": {"task_id": "ID", **more}})
        for era in ("modern", "legacy")
        for name, more in (
            ("task_status", {}),
            ("task_output", {}),
            ("task_cancel", {}),
            ("shell", {}),
            ("shell", {"command": "true"}),
            ("shell", {"command": "true", "run_in_background": True}),
        )
    ),
    ("legacy", "tools/call", {"name": "shell", "arguments": {"task_id": "ID"}, "task": {}}),
    ("legacy", "tasks/get", {"taskId": "ID"}),
    ("legacy", "tasks/cancel", {"taskId": "ID"}),
    ("legacy", "tasks/result", {"taskId": "ID"}),
    ("legacy", "tasks/list", {"cursor": "ID"}),
]


async def test_foreign_tasks_are_unknown(serving: Serving) -> None:
    """Whatever is asked about another principal's task: the answer is, byte for byte, that about no task; and nothing comes of it."""
    started = await serving.shell("sleep 1000", run_in_background=True)
    running = started["structuredContent"]["task_id"]
    ended = (await serving.shell("sleep 1"))["taskId"]
    unknown = f"task_{uuid.uuid4().hex}"
    assert len(running) == len(ended) == len(unknown)
    before = (await serving_task(serving, running), await serving_task(serving, ended))
    headers = {
        "modern": {**bearer(BOB), "Connection": "close"},
        "legacy": await legacy_session(serving.url, BOB),
    }
    compared = 0
    for era, method, params in QUESTIONS:
        answers: list[tuple[int, dict[str, str], bytes]] = []
        for task_id in (unknown, running, ended):
            asked = json.loads(json.dumps(params).replace("ID", task_id))
            answer = await post(serving.url, method, headers[era], **asked)
            answer.headers.pop("date")
            body = answer.body.replace(task_id.encode(), b"ID")
            answers.append((answer.status, answer.headers, body))
        assert answers[1:] == [answers[0]] * 2, (era, method, params)
        assert b"error" in answers[0][2].lower()
        compared += len(answers[0][2])
    assert compared > 1000
    listed = await post(serving.url, "tasks/list", headers["legacy"])
    assert listed.json["result"]["tasks"] == []
    assert (await serving_task(serving, running), await serving_task(serving, ended)) == before


async def serving_task(serving: Serving, task_id: str) -> Any:
    """Return a task of ann's as another of her tokens sees it."""
    answer = await post(serving.url, "tasks/get", bearer(ANN_2), taskId=task_id)
    return answer.json["result"]
