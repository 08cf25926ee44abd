"""Enemies of `trio-bgtasks serve --http`, which is a process of its own here, as a user has it.

What is done to it, what comes of it, and which figures were measured is told in
docs/explanation/security.md.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.cli.command import PROGRAM, environment
from tests.mcp.plain_http import bearer, connect, exchange, head, post, read_answer, request
from tests.mcp.wire import served
from tests.processes import PATIENCE_S, Marked
from trio_bgtasks import BackgroundTaskManager, SqliteTaskStore, TaskStatus, open_task_manager
from trio_bgtasks.mcp import serve_http
from trio_bgtasks.mcp._calls import new_task_id
from trio_bgtasks.mcp._connections import BODY_S, IDLE_S, WRITE_S, Connection, Exchanges
from trio_bgtasks.testing._processes import MARK

LINUX = sys.platform == "linux"
PROMPT_S = 5
ANN, ANN_2, BOB = (f"token-of-{name}-that-nobody-knows" for name in ("ann", "ann-too", "bob"))
SECRET = "a-secret-of-the-servers-environment"
TOKENS = f"ann {ANN}\nann {ANN_2}\nbob {BOB}\n"
BODY_LIMIT = 4 << 20
FILES = 300
"""How many files the server may open: so few that an enemy can use them up."""
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
        """How many bytes of memory it has; 0 where that cannot be told."""
        if not LINUX:
            return 0
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
    """Serve a shell to ann and bob."""
    with started(tmp_path_factory.mktemp("serving")) as server:
        yield server


@contextmanager
def started(folder: Path) -> Generator[Serving, None, None]:
    """Start a server; end it with SIGTERM, which takes a moment, and leaves nothing of it."""
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
            ["/bin/sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh", *PROGRAM, "serve", *options],
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
    (
        "modern",
        "tasks/update",
        {"taskId": "ID", "inputResponses": {"resume-1": {"action": "accept"}}},
    ),
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
    ended = (await serving.shell("true", run_in_background=True))["structuredContent"]["task_id"]
    with trio.fail_after(PATIENCE_S):
        while (await serving_task(serving, ended))["status"] == "working":
            await trio.sleep(0.01)
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


async def test_foreign_tasks_are_not_listened_to(serving: Serving) -> None:
    """Who listens to another principal's task is told what who listens to no task is told, and nothing more."""
    running = (await serving.shell("sleep 1000", run_in_background=True))["structuredContent"]
    told: list[bytes] = []
    for task_id in (running["task_id"], f"task_{uuid.uuid4().hex}"):
        listen = request(
            serving.url,
            "subscriptions/listen",
            bearer(BOB),
            notifications={"taskIds": [task_id]},
        )
        async with await connect(serving.url) as stream:
            await stream.send_all(listen)
            said = b""
            while b"\r\n\r\n\r\n" not in said:  # the end of the first event
                said += await stream.receive_some()
            cancelled = await serving.shell("true", ANN if len(told) == 0 else BOB)
            assert cancelled["isError"] is False
            with trio.move_on_after(0.2):
                said += await stream.receive_some()
        told.append(said.partition(b"\r\n\r\n")[2].replace(task_id.encode(), b"ID"))
    assert told[0] == told[1]
    assert b"acknowledged" in told[0]
    assert b"ID" not in told[0]


async def test_a_foreign_session_is_unknown(serving: Serving) -> None:
    """The session of an older client is of use to its own principal only."""
    session = await legacy_session(serving.url, ANN)
    assert (await post(serving.url, "tools/list", session | bearer(ANN_2))).status == 200
    foreign = await post(serving.url, "tools/list", session | bearer(BOB))
    unknown = session | bearer(BOB) | {"Mcp-Session-Id": uuid.uuid4().hex}
    nothing = await post(serving.url, "tools/list", unknown)
    assert (foreign.status, foreign.body) == (nothing.status, nothing.body)
    assert foreign.status == 404


def test_ids_cannot_be_guessed() -> None:
    """Each of their 128 bits is set in about half of them, whatever the others are; none comes twice."""
    ids = [new_task_id() for _ in range(4000)]
    assert len(set(ids)) == len(ids)
    numbers = [int(task_id.removeprefix("task_"), 16) for task_id in ids]
    for bit in range(128):
        share = sum(number >> bit & 1 for number in numbers) / len(numbers)
        assert abs(share - 0.5) < 0.05  # six deviations
    assert max(number.bit_length() for number in numbers) == 128


# ---- tokens --------------------------------------------------------------------------------------


async def test_tokens_are_those_of_the_file_now(serving: Serving) -> None:
    """Who is taken out of the file is refused at the next request, who is put in comes in; while the file is wrong, nobody."""

    async def come_in() -> list[bool]:
        answers = [await post(serving.url, "tools/list", bearer(token)) for token in (ANN, BOB)]
        assert {answer.status for answer in answers} <= {200, 401}
        return [answer.status == 200 for answer in answers]

    assert await come_in() == [True, True]
    task_id = (await serving.shell("sleep 1000", run_in_background=True))["structuredContent"]
    try:
        serving.tokens.write_text(f"bob {BOB}\n")
        assert await come_in() == [False, True]
        serving.tokens.write_text(f"ann {ANN} 2001-01-01\nbob {BOB}\n")
        assert await come_in() == [False, True]
        serving.tokens.write_text(f"ann {ANN}\nbob {BOB} soon\n")
        assert await come_in() == [False, False]
        serving.tokens.write_text(TOKENS)
        assert await come_in() == [True, True]
        serving.tokens.chmod(0o644)
        assert await come_in() == [False, False]
        serving.tokens.unlink()
        assert await come_in() == [False, False]
    finally:
        serving.tokens.write_text(TOKENS)
        serving.tokens.chmod(0o600)
    assert await come_in() == [True, True]
    assert serving.errors.count("nobody is let in") == 3
    seen = await serving_task(serving, task_id["task_id"])
    assert seen["status"] == "working"  # what it ran went on


async def test_tokens_are_written_nowhere(serving: Serving) -> None:
    """Neither a good nor a wrong token, wherever a client put it, is in a log, an answer or the database."""
    wrong = "a-wrong-token-that-was-mistyped"
    for headers in (
        bearer(wrong),
        {"Authorization": f"Basic {wrong}"},
        {"Authorization": wrong},
        {"Cookie": f"token={wrong}"},
        {"Mcp-Session-Id": "x", "MCP-Protocol-Version": "2025-11-25"} | bearer(wrong),
    ):
        answer = await post(serving.url, "tools/list", headers)
        assert answer.status == 401
        assert wrong.encode() not in answer.body
        assert wrong not in str(answer.headers)
    for target in (f"/mcp?token={wrong}", f"/{wrong}"):
        sent = request(serving.url, "tools/list").replace(b"/mcp", target.encode(), 1)
        assert (await exchange(serving.url, sent)).status in {401, 404}
    await serving.shell("env; exit 3")
    written = [path for path in serving.folder.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"tasks.db", "errors"}
    for path in written:
        if path != serving.tokens:
            content = path.read_bytes()
            for token in (ANN, ANN_2, BOB, wrong):
                assert token.encode() not in content, path


# ---- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Mcp-Method": "tools/list"}, 400, -32020),
        ({"Mcp-Name": "task_status"}, 400, -32020),
        ({"Mcp-Name": "shell\r\nMcp-Name: task_status"}, 400, -32020),
        ({"MCP-Protocol-Version": "2026-07-27"}, 400, -32020),
        ({"Content-Type": "text/plain"}, 400, None),
        ({"Accept": "text/html"}, 406, None),
        ({"Host": "evil.example"}, 421, None),
        ({"Host": "localhost.evil.example"}, 421, None),
        ({"Host": "127.0.0.1.evil.example:80"}, 421, None),
        ({"Origin": "https://evil.example"}, 403, None),
        ({"Origin": "http://localhost.evil.example"}, 403, None),
        ({"Origin": "null"}, 403, None),
    ],
)
async def test_headers_that_do_not_fit(
    serving: Serving, headers: dict[str, str], status: int, code: int | None
) -> None:
    """A request that says two things, or comes from a page or under a name that is not ours, is refused; nothing was run."""
    mark = serving.root / "mark"
    answer = await post(
        serving.url,
        "tools/call",
        bearer(ANN) | headers,
        name="shell",
        arguments={"command": f"touch {mark}"},
    )
    assert answer.status == status
    if code is not None:
        assert answer.json["error"]["code"] == code
    assert not mark.exists()


# ---- what is sent --------------------------------------------------------------------------------


def nested(depth: int, *, where: str) -> bytes:
    """Return a call with arrays in arrays, in one of its parts."""
    params: dict[str, Any] = {"name": "shell", "arguments": {"command": "true"}}
    sent = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    params["_meta"] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"experimental": {"x": {}}},
    }
    place = {
        "arguments": params["arguments"],
        "meta": params["_meta"],
        "capabilities": params["_meta"]["io.modelcontextprotocol/clientCapabilities"][
            "experimental"
        ]["x"],
    }
    if where == "message":
        return b"[" * depth + b"]" * depth
    place[where]["deep"] = "HERE"
    return json.dumps(sent).encode().replace(b'"HERE"', b"[" * depth + b"]" * depth)


@pytest.mark.parametrize("where", ["message", "arguments", "meta", "capabilities"])
async def test_deeply_nested_messages(serving: Serving, where: str) -> None:
    """However deep, and wherever, a message is answered; in arguments from 64 on with an error; the server goes on."""
    before = serving.memory
    headers = bearer(ANN) | {"Mcp-Method": "tools/call", "Mcp-Name": "shell"}
    for depth in (70, 250, 500, 990, 1100, 10_000, 1_900_000):
        body = nested(depth, where=where)
        answer = await exchange(serving.url, head(serving.url, headers, len(body)) + body)
        assert answer.status in {200, 400}
        if where in {"message", "arguments"} or depth > 1000:
            assert "error" in answer.json or answer.json["result"]["isError"]
    await serving.is_well()
    assert serving.memory - before < 100 << 20


async def test_oversized_messages(serving: Serving) -> None:
    """More than 4 MiB, or 16 KiB of headers, are refused before they came; the server does not grow by them."""
    headers = bearer(ANN) | {"Mcp-Method": "tools/call"}
    largest = b'"%s"' % (b"x" * (BODY_LIMIT - 2))
    await exchange(serving.url, head(serving.url, headers, BODY_LIMIT) + largest)
    before = serving.memory
    for _ in range(10):
        declared = await exchange(serving.url, head(serving.url, headers, BODY_LIMIT + 1))
        assert declared.status == 413  # nothing of the body was sent
        allowed = await exchange(serving.url, head(serving.url, headers, BODY_LIMIT) + largest)
        assert allowed.json["error"]["code"] == -32600
    chunked = head(serving.url, headers, 0).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    async with await connect(serving.url) as stream:
        await stream.send_all(chunked)
        sent = 0
        async with trio.open_nursery() as nursery:

            async def send_for_ever() -> None:
                nonlocal sent
                piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
                try:
                    while True:
                        await stream.send_all(piece)
                        sent += 65536
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(send_for_ever)
            with trio.fail_after(PATIENCE_S):
                assert (await read_answer(stream)).status == 413
            nursery.cancel_scope.cancel()
        assert sent >= BODY_LIMIT
    long = head(serving.url, {"X": "x" * 20_000}, 0)[:-2]  # and more headers to come
    assert (await exchange(serving.url, long)).status == 431
    unknown = await exchange(serving.url, head(serving.url, bearer("x" * 16), 1 << 40))
    assert unknown.status == 401  # who has no token does not even send a body
    assert serving.memory - before < 32 << 20


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"9" * 100_000,
        b'{"jsonrpc": "2.0", "id": NaN, "method": "tools/list"}',
        b'{"jsonrpc": "2.0", "id": null, "method": "tools/list"}',
        b'{"jsonrpc": "2.0", "id": {}, "method": "tools/list"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": 7}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": "\\ud800"}}',
    ],
)
async def test_messages_that_are_none(serving: Serving, body: bytes) -> None:
    """What is no message is refused as the client's error, for clients of both eras."""
    for version in ("2026-07-28", "2025-11-25"):
        headers = bearer(ANN) | {"MCP-Protocol-Version": version, "Mcp-Method": "tools/list"}
        answer = await exchange(serving.url, head(serving.url, headers, len(body)) + body)
        assert 400 <= answer.status < 500
    await serving.is_well()


# ---- connections ---------------------------------------------------------------------------------


@asynccontextmanager
async def holding(serving: Serving, count: int, *sent: bytes) -> AsyncGenerator[Any, None]:
    """Hold connections that said something once, and never say or read anything again."""
    async with AsyncExitStack() as stack:
        streams = []
        for number in range(count):
            stream = await stack.enter_async_context(await connect(serving.url))
            await stream.send_all(sent[number % len(sent)])
            streams.append(stream)
        yield streams


async def deaf(serving: Serving) -> bytes:
    """Return requests with more answers than all buffers between two processes hold."""
    written = await serving.shell("head -c 130000 /dev/zero | tr '\\0' x", run_in_background=True)
    arguments = {"task_id": written["structuredContent"]["task_id"], "wait_s": 10}
    call = {"name": "task_output", "arguments": arguments}
    assert (await post(serving.url, "tools/call", bearer(ANN), **call)).status == 200
    return request(serving.url, "tools/call", bearer(ANN), **call) * 100


async def test_slow_and_half_open_connections(serving: Serving) -> None:
    """Headers and bodies that never end, answers that nobody reads: others are served, in time and in little memory."""
    before = serving.memory
    unread = await deaf(serving)
    halves = (b"", b"POST /mcp HTTP/1.1\r\nHost: ", head(serving.url, bearer(ANN), 100) + b"{")
    async with holding(serving, 90, *halves), holding(serving, 5, unread):
        for _ in range(5):
            began = time.monotonic()
            await serving.is_well()
            assert time.monotonic() - began < PROMPT_S
        assert serving.memory - before < 100 << 20
    await serving.is_well()


async def test_connections_leave_files_for_commands(serving: Serving) -> None:
    """However many somebody without a token opens: who is connected can start commands, and the others wait."""
    async with await connect(serving.url) as mine, AsyncExitStack() as stack:
        await mine.send_all(request(serving.url, "tools/list", bearer(ANN)))
        assert (await read_answer(mine)).status == 200
        opened, full = 0, False
        while opened < FILES - 10 and not full:
            with trio.move_on_after(1) as waiting:
                await stack.enter_async_context(await connect(serving.url))
                opened += 1
            full = waiting.cancelled_caught
        assert opened >= FILES // 3
        call = {"name": "shell", "arguments": {"command": "echo here"}}
        await mine.send_all(request(serving.url, "tools/call", bearer(ANN), **call))
        with trio.fail_after(PATIENCE_S):
            assert "here" in (await read_answer(mine)).json["result"]["content"][0]["text"]
    await serving.is_well()


async def test_a_connection_ends_when_its_client_asks_for_that(serving: Serving) -> None:
    """It is closed right after the answer."""
    headers = bearer(ANN) | {"Connection": "close"}
    async with await connect(serving.url) as stream:
        await stream.send_all(request(serving.url, "tools/list", headers))
        assert (await read_answer(stream)).status == 200
        with trio.fail_after(PROMPT_S - 1):
            assert await stream.receive_some() == b""


async def test_who_does_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """SIGTERM ends the server promptly, whatever is still to be written, and what it ran is stopped."""
    with started(tmp_path) as serving:
        await serving.shell("sleep 1000", run_in_background=True)
        unread = await deaf(serving)
        async with await connect(serving.url) as stream:
            blocked = False
            while not blocked:  # for as long as the server takes requests, it answered some
                with trio.move_on_after(1) as waiting:
                    await stream.socket.send(unread)
                blocked = waiting.cancelled_caught
            serving.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await trio.to_thread.run_sync(serving.process.wait, PATIENCE_S)
            assert time.monotonic() - began < PROMPT_S
    async with (
        SqliteTaskStore.open(serving.folder / "state" / "tasks.db") as store,
        open_task_manager(store) as manager,
    ):
        ran = [task.status for task in await manager.list_tasks("mcp:http:ann")]
        assert ran == [TaskStatus.STOPPED, TaskStatus.COMPLETED]


def _fatal() -> bytes:
    client = H2Connection(H2Configuration(validate_outbound_headers=False))
    client.initiate_connection()
    client.send_headers(1, [(":method", "CONNECT"), (":authority", "x")], end_stream=True)
    return client.data_to_send()


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
        _fatal(),
    ],
    ids=["at once", "later", "by an upgrade", "what hypercorn fails at"],
)
async def test_who_asks_for_http_2_is_cut_off(serving: Serving, data: bytes) -> None:
    """At once: in HTTP/2 a client without a token could keep its connection, and the server, for ever."""
    async with await connect(serving.url) as stream:
        await stream.send_all(data)
        with trio.fail_after(PROMPT_S):
            while await stream.receive_some():
                pass
    await serving.is_well()


# ---- commands ------------------------------------------------------------------------------------


async def test_commands_stay_in_their_folder(serving: Serving) -> None:
    """No cwd leads out of the root, and what is refused is in no record; one below is taken."""
    before = len(await records(serving))
    for cwd in ("..", "below/../..", "out", "out/root/..", "/", "/tmp", str(serving.folder)):
        for background in (False, True):
            refused = await serving.shell("pwd", cwd=cwd, run_in_background=background)
            assert refused["isError"]
            assert "cwd is outside of" in refused["content"][0]["text"]
    assert len(await records(serving)) == before
    inside = await serving.shell("pwd", cwd="below")
    assert inside["content"][0]["text"] == f"{serving.root / 'below'}\n"


async def records(serving: Serving) -> list[Any]:
    """Return the tasks of ann."""
    answer = await post(serving.url, "tools/call", bearer(ANN), name="task_status", arguments={})
    tasks: list[Any] = answer.json["result"]["structuredContent"]["tasks"]
    return tasks


async def test_commands_see_no_secret(serving: Serving) -> None:
    """Of the server's environment, where its secrets are, a command sees what is harmless or named."""
    ran = await serving.shell("env")
    seen = dict(
        line.split("=", 1) for line in ran["content"][0]["text"].splitlines() if "=" in line
    )
    assert MARK in seen  # named
    assert "PATH" in seen
    assert SECRET not in seen.values()
    assert "API_KEY" not in seen
    assert "PYTHONPATH" not in seen


# ---- on virtual time -----------------------------------------------------------------------------


async def test_a_body_that_never_ends(autojump_clock: MockClock) -> None:
    """It is answered with 408 after a minute, whatever trickles in; one that ended in time may be answered for as long as it takes."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append((trio.current_time() - began, message))

    async def trickle() -> Any:
        await trio.sleep(BODY_S / 8)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def app(_: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 204})

    began = trio.current_time()
    with trio.fail_after(10 * BODY_S), pytest.raises(Exception, match="408"):
        await Exchanges(app)({"type": "http"}, trickle, send)
    assert trio.current_time() - began == BODY_S

    parts: Any = iter([{"type": "http.request", "more_body": False}, {"type": "http.disconnect"}])

    async def slow_end() -> Any:
        part = next(parts)
        await trio.sleep(0 if part["type"] == "http.request" else 3 * BODY_S)
        return part

    began = trio.current_time()
    await Exchanges(app)({"type": "http"}, slow_end, send)
    assert sent == [(3 * BODY_S, {"type": "http.response.start", "status": 204})]


@attrs.define
class Unread:
    """A stream of a client that reads nothing, once it took some pieces."""

    takes: int = 0
    every_s: float = 0
    took: int = 0
    closed: bool = False
    socket: Any = None
    receive_some: Any = None
    send_eof: Any = None

    async def send_all(self, data: bytes) -> None:
        if self.takes == 0:
            await trio.sleep_forever()
        await trio.sleep(self.every_s)
        self.takes -= 1
        self.took += len(data)

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_an_answer_that_nobody_reads(autojump_clock: MockClock) -> None:
    """The connection is closed after a minute without any 64 KiB taken, shield or not; when the server ends, at once."""
    stream: Any = Unread(takes=3, every_s=WRITE_S - 1)
    connection = Connection(stream)
    began = trio.current_time()
    with trio.CancelScope(shield=True), pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"x" * (1 << 20))
    assert trio.current_time() - began == 3 * (WRITE_S - 1) + WRITE_S
    assert (stream.took, stream.closed) == (3 << 16, True)

    stream = Unread()
    connection = Connection(stream)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True

        @nursery.start_soon
        async def write() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await connection.send_all(b"x")

        await trio.sleep(1)
        connection.hang_up()
    assert trio.current_time() - began < 2
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"x")
    assert trio.current_time() - began < 2


async def test_who_sends_nothing_is_cut_off(
    runtime: BackgroundTaskManager, mock_clock: MockClock
) -> None:
    """Who has not sent all headers of a request after some seconds, of the first or of the next one, is cut off, whatever trickles in."""
    mock_clock.autojump_threshold = 0.05
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve_http, served(runtime))

        async def hold(sent: bytes, trickle: bytes) -> None:
            async with await connect(url) as stream:
                await stream.send_all(sent)
                began = trio.current_time()
                if trickle == b"":
                    if sent:
                        assert (await read_answer(stream)).status == 200
                        began = trio.current_time()
                    assert await stream.receive_some() == b""
                else:
                    with pytest.raises(trio.BrokenResourceError):
                        while True:
                            await stream.send_all(trickle)
                            await trio.sleep(1)
                assert IDLE_S <= trio.current_time() - began <= IDLE_S + 2

        async with trio.open_nursery() as clients:
            clients.start_soon(hold, b"", b"")
            clients.start_soon(hold, b"POST /mcp HTTP/1.1\r\nX: ", b"x")
            clients.start_soon(hold, request(url, "tools/list"), b"")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("more", [b"x", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_subscriber_that_is_gone_keeps_no_place(
    runtime: BackgroundTaskManager,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    more: bytes,
) -> None:
    """Also one that sent more before, which keeps its end from being read: the next write tells."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2, 2))  # so one place
    mock_clock.autojump_threshold = 0.05
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve_http, served(runtime))
        async with await connect(url) as stream:
            listen = request(url, "subscriptions/listen", notifications={"taskIds": []})
            await stream.send_all(listen)
            assert b"200" in await stream.receive_some()
            await stream.send_all(more)
            await wait_all_tasks_blocked()
        assert (await post(url, "tools/list")).status == 200
        nursery.cancel_scope.cancel()
