"""The commands that look at tasks, end them or clear them away, from another terminal.

The tasks are those of a manager in the test's process: another process, for the command.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import signal
import subprocess

import pytest
import trio

from tests.cli.command import PROGRAM, Cli, environment
from tests.processes import PATIENCE_S, until
from trio_bgtasks import (
    BackgroundExecution,
    BackgroundTaskManager,
    Failed,
    StartRequest,
    Stopped,
    Success,
    TaskResult,
    TaskStatus,
    TaskSummary,
    current_execution,
)
from trio_bgtasks.cli import _look
from trio_bgtasks.cli._session import Session
from trio_bgtasks.cli._views import OwnedTask
from trio_bgtasks.stores.sqlite import SqliteTaskStore, inspect_file

_ON_A_TASK = [
    *([command, "nobody"] for command in ("show", "logs", "wait", "cancel", "resume")),
    ["answer", "nobody", "text"],
]


async def _completed(_: trio.CancelScope) -> TaskResult:
    return Success({"answer": 42})


async def _failed(_: trio.CancelScope) -> TaskResult:
    return Failed("it \x1b[31mbroke\x1b[0m\nin [bold]two[/bold] lines")


async def _endless(_: trio.CancelScope) -> TaskResult:
    await trio.sleep_forever()
    raise AssertionError


async def _stopped(_: trio.CancelScope) -> TaskResult:
    return Stopped("for now")


async def _ended(manager: BackgroundTaskManager, owner: str = "cli") -> str:
    task_id = await manager.spawn(owner, "other", "a task", _completed)
    await manager.wait(owner, task_id)
    return task_id


async def _writes(manager: BackgroundTaskManager, text: str) -> str:
    """A task of owner ``bob`` that wrote ``text`` and completed."""

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        await execution.write_output(text)
        return Success()

    request = StartRequest(owner_thread_id="bob", task_type="other")
    summary = await manager.start(request, body)
    await manager.wait("bob", summary.task_id)
    return summary.task_id


# ---- ls, show, gc --------------------------------------------------------------------------------


async def test_ls_lists_the_tasks_of_one_owner_or_of_all(cli: Cli) -> None:
    """``cli`` unless an owner is named; ``--all`` names each task's; an empty list is one, too."""
    async with SqliteTaskStore.open(cli.db):
        empty, found = await cli.together(["ls"], ["ls", "--json"])
    assert (empty.code, empty.errors) == (0, "")
    assert empty.out.split() == ["TASK", "STATUS", "ATTEMPT", "TIME", "DESCRIPTION", "DETAIL"]
    assert found.json == {"tasks": []}

    async with cli.manager() as manager:
        mine = await _ended(manager)
        running = await manager.spawn("bob", "other", "of bob", _endless)

        of_cli, of_bob, every = await cli.together(
            ["ls", "--json"], ["--owner", "bob", "ls", "--json"], ["ls", "--all"]
        )
        assert [(t["task_id"], t["status"]) for t in of_cli.json["tasks"]] == [(mine, "completed")]
        assert [(t["task_id"], t["status"]) for t in of_bob.json["tasks"]] == [(running, "running")]
        rows = [line.split()[:3] for line in every.out.splitlines()]
        assert rows == [
            ["TASK", "OWNER", "STATUS"],
            [mine, "cli", "completed"],
            [running, "bob", "running"],
        ]


async def test_ls_of_all_is_in_order_of_creation_when_the_clock_steps_back(cli: Cli) -> None:
    """The store's own order counts, not the time."""
    ids: list[str] = []
    for owner, now_ms in (("bob", 3000), ("cli", 2000), ("bob", 1000)):
        async with cli.manager(clock_ms=lambda now_ms=now_ms: now_ms) as manager:
            ids.append(await _ended(manager, owner))

    listed = await cli("ls", "--all", "--json")
    assert [task["task_id"] for task in listed.json["tasks"]] == ids


async def test_a_task_may_be_collected_while_it_is_listed(cli: Cli) -> None:
    """It has no place any more; that is no error."""
    summary = TaskSummary("gone", "other", "d", TaskStatus.COMPLETED, 1000)
    async with cli.manager() as manager:
        assert await _look._place(manager, OwnedTask("cli", summary, 1000)) == 0


async def test_only_run_makes_a_database(cli: Cli) -> None:
    """The others say that there is none, and make neither folder nor file."""
    commands = (["ls"], ["gc"], ["doctor"], *_ON_A_TASK)
    for done in await cli.together(*commands):
        assert (done.code, done.out) == (1, "")
        assert done.errors == f"trio-bgtasks: there is no database at {cli.db}\n"
    assert not cli.db.parent.exists()


async def test_show_prints_the_record_and_its_history(cli: Cli) -> None:
    """Whoever owns it; text of the task cannot add lines or steer the terminal."""
    async with cli.manager() as manager:
        task_id = await manager.spawn("bob", "other", "a\x1b]0;title\x07 task", _failed)
        await manager.wait("bob", task_id)
        plain, found = await cli.together(["show", task_id], ["show", task_id, "--json"])

    assert (plain.code, plain.errors) == (0, "")
    fields = dict(line.split(None, 1) for line in plain.out.split("\n\n")[0].splitlines())
    assert fields["task"] == task_id
    assert fields["owner"] == "bob"
    assert fields["description"] == "a task"
    assert fields["error"] == "it broke in [bold]two[/bold] lines"
    journal = [line.split() for line in plain.out.split("\n\n")[1].splitlines()]
    assert [row[2:5] for row in journal[1:]] == [
        ["registered", "1", "running"],
        ["finished", "1", "failed"],
    ]
    assert found.json["task"]["status"] == "failed"
    assert found.json["task"]["owner_thread_id"] == "bob"
    assert [entry["kind"] for entry in found.json["journal"]] == ["registered", "finished"]
    assert "\x1b" not in plain.out + found.out


async def test_gc_deletes_what_has_ended(cli: Cli) -> None:
    """Of one owner, or of all; what runs stays."""
    async with cli.manager() as manager:
        for owner in ("cli", "bob"):
            await _ended(manager, owner)
            await manager.spawn(owner, "other", "", _endless)

        assert (await cli("gc")).out == "1 ended tasks deleted\n"
        assert (await cli("gc", "--all", "--json")).json == {"deleted": 1}
        assert (await cli("ls", "--all", "--json")).statuses == ["running", "running"]


async def test_gc_takes_old_notices_of_the_commands_own_owner(cli: Cli) -> None:
    """Nobody else reads them; those of other owners may be meant for a program, and stay."""
    async with SqliteTaskStore.open(cli.db) as store, cli.manager() as manager:
        for args, left in ((("--owner", "bob"), 1), ((), 0), (("--all",), 0)):
            await _ended(manager)
            await _ended(manager, "bob")
            await manager.take_notices("bob")
            await _ended(manager, "bob")
            assert (await cli("gc", *args)).code == 0
            assert len(await store.notices("cli")) == left
            assert len(await store.notices("bob")) == 1


# ---- logs ----------------------------------------------------------------------------------------


async def test_logs_writes_exactly_the_output(cli: Cli) -> None:
    """Byte for byte, over any number of pages, control characters and all."""
    text = "a\x1b[31mred\r\n\u20ac\U0001f600" * 50_000
    async with cli.manager() as manager:
        task_id = await _writes(manager, text)
        done, found = await cli.together(["logs", task_id], ["logs", task_id, "--json"])

    assert (done.code, done.errors) == (0, "")
    assert done.raw == text.encode()
    size = len(text.encode())
    assert found.json == {
        "text": text,
        "offset": 0,
        "next_offset": size,
        "total_bytes": size,
        "dropped_bytes": 0,
    }


async def test_logs_says_what_was_dropped(cli: Cli) -> None:
    """The rest is written, and the number of the lost bytes said."""
    async with cli.manager(output_bytes=1024) as manager:
        task_id = await _writes(manager, "0123456789" * 1000)
        done, found = await cli.together(["logs", task_id], ["logs", task_id, "--json"])
    page = found.json

    kept = len(done.raw)
    assert 0 < kept <= 1024
    assert done.errors == f"trio-bgtasks: {10_000 - kept} bytes of older output were dropped\n"
    assert (page["offset"], page["dropped_bytes"]) == (10_000 - kept, 10_000 - kept)


async def test_logs_follows_until_the_task_has_ended(cli: Cli) -> None:
    """``-f`` writes what is there, then what comes, and ends with the task, nothing lost."""
    go = trio.Event()

    async def body(_: trio.CancelScope) -> TaskResult:
        await current_execution().write_output("first\n")
        await go.wait()
        await current_execution().write_output("last\n")
        return Success()

    async with cli.manager() as manager:
        task_id = await manager.spawn("cli", "other", "", body)
        async with cli.running("logs", "-f", task_id) as run:
            await run.says("first\n")
            assert (await cli("logs", task_id)).raw == b"first\n"
            go.set()
            done = await run.end()

    assert (done.code, done.raw, done.errors) == (0, b"first\nlast\n", "")


async def test_logs_ends_quietly_when_its_reader_does(cli: Cli) -> None:
    """``logs | head`` neither complains nor hangs."""
    async with cli.manager() as manager:
        task_id = await _writes(manager, "line\n" * 200_000)
        process = await trio.lowlevel.open_process(
            [*PROGRAM, "logs", task_id],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(5) == b"line\n"
        await process.stdout.aclose()
        with trio.fail_after(PATIENCE_S):
            errors = b"".join([piece async for piece in process.stderr])
            code = await process.wait()

    assert (code, errors) == (1, b"")


async def test_a_reader_that_does_not_read_cannot_hold_logs(cli: Cli) -> None:
    """With the pipe full, a signal ends it all the same."""
    async with cli.manager() as manager:
        task_id = await _writes(manager, "line\n" * 200_000)
        process = await trio.lowlevel.open_process(
            [*PROGRAM, "logs", task_id],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(5) == b"line\n"
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE_S):
            assert await process.wait() == 143
            assert [piece async for piece in process.stderr] == []
        await process.stdout.aclose()


# ---- wait, cancel --------------------------------------------------------------------------------


async def test_wait_waits_for_the_tasks_of_another_process(cli: Cli) -> None:
    """It returns when all have ended: 0 if all completed, else 1."""
    go = trio.Event()

    async def body(_: trio.CancelScope) -> TaskResult:
        await go.wait()
        return Success()

    async with cli.manager() as manager:
        slow = await manager.spawn("cli", "other", "", body)
        failed = await manager.spawn("bob", "other", "", _failed)
        async with cli.running("wait", slow, "--json") as run:
            await _two_managers(cli)
            go.set()
            done = await run.end()
        assert (done.code, done.statuses) == (0, ["completed"])
        done = await cli("wait", slow, failed)

    assert (done.code, done.errors) == (1, "")
    rows = [line.split()[:2] for line in done.out.splitlines()[1:]]
    assert rows == [[slow, "completed"], [failed, "failed"]]
    assert done.out.splitlines()[2].endswith("it broke in [bold]two[/bold] lines")


async def test_wait_waits_for_all_at_once(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end of one is seen while another runs, and known also when it is collected then."""
    wait = BackgroundTaskManager.wait
    seen: set[str] = set()

    async def noted(manager: BackgroundTaskManager, owner: str, task_id: str) -> TaskSummary:
        summary = await wait(manager, owner, task_id)
        seen.add(task_id)
        return summary

    go = trio.Event()
    codes: list[int] = []

    async def body(_: trio.CancelScope) -> TaskResult:
        await go.wait()
        return Success()

    async def command(*task_ids: str) -> None:
        codes.append(await _look.wait(Session(cli.db, json=True), task_ids))

    async with cli.manager() as manager:
        slow = await manager.spawn("cli", "other", "", body)
        quick = await _ended(manager)
        monkeypatch.setattr(BackgroundTaskManager, "wait", noted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command, slow, quick)
            await until(lambda: quick in seen)
            assert await manager.gc_terminal("cli") == 1
            go.set()

    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert codes == [0]
    assert [(task["task_id"], task["status"]) for task in tasks] == [
        (slow, "completed"),
        (quick, "completed"),
    ]


async def test_wait_says_what_was_collected_unseen(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a task is shown as it was known last, with a warning, and counts as not completed."""
    wait = BackgroundTaskManager.wait
    go = trio.Event()

    async def body(_: trio.CancelScope) -> TaskResult:
        await go.wait()
        return Success()

    async with cli.manager() as manager:
        gone = await manager.spawn("cli", "other", "", body)

        async def late(looking: BackgroundTaskManager, owner: str, task_id: str) -> TaskSummary:
            """The task ends, and is gone, after it was looked up and before it is waited for."""
            go.set()
            await wait(manager, owner, task_id)
            await manager.gc_terminal(owner)
            return await wait(looking, owner, task_id)

        monkeypatch.setattr(BackgroundTaskManager, "wait", late)
        assert await _look.wait(Session(cli.db, json=False), (gone,)) == 1

    out, errors = capsys.readouterr()
    assert out.splitlines()[1].split()[:2] == [gone, "running"]
    assert errors == f"trio-bgtasks: warning: {gone} was collected before its end was seen\n"


async def _two_managers(cli: Cli) -> None:
    """Wait until the command has opened its own manager beside the test's."""
    with trio.fail_after(PATIENCE_S):
        while sum(executor.alive for executor in (await inspect_file(cli.db)).executors) < 2:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [(["wait"], signal.SIGINT, 130), (["logs", "-f"], signal.SIGTERM, 143)],
)
async def test_a_signal_ends_the_waiting(
    cli: Cli, command: list[str], number: int, code: int
) -> None:
    """Quietly, with the signal's exit code; the task is not touched."""
    async with cli.manager() as manager:
        task_id = await manager.spawn("cli", "other", "", _endless)
        async with cli.running(*command, task_id) as run:
            await _two_managers(cli)
            run.process.send_signal(number)
            done = await run.end()
        summary = await manager.get("cli", task_id)

    assert (done.code, done.raw, done.errors) == (code, b"", "")
    assert summary is not None
    assert summary.status is TaskStatus.RUNNING


async def test_a_cancel_reaches_another_process(cli: Cli) -> None:
    """It is accepted at once and the task ends cancelled; afterwards there is nothing to cancel."""
    async with cli.manager() as manager:
        running = await manager.spawn("bob", "other", "", _endless)
        stopped = await manager.spawn("bob", "other", "", _stopped)
        await manager.wait("bob", stopped)

        done = await cli("cancel", running, stopped)
        with trio.fail_after(PATIENCE_S):
            summary = await manager.wait("bob", running)
        assert summary.status is TaskStatus.CANCELLED
        again = await cli("cancel", running)

    assert (done.code, done.errors) == (0, "")
    assert done.out == f"{running}  cancel accepted\n{stopped}  cancelled\n"
    assert (again.code, again.out) == (1, "")
    text = f"Task '{running}' is not running (current status: cancelled)"
    assert again.errors == f"trio-bgtasks: {text}\n"


async def test_one_refusal_does_not_keep_a_cancel_from_the_others(cli: Cli) -> None:
    """Each refusal is a line, what was accepted is printed, and the exit code is 1."""
    async with cli.manager() as manager:
        for flags in ((), ("--json",)):
            first = await manager.spawn("cli", "other", "", _endless)
            ended = await _ended(manager)
            last = await manager.spawn("cli", "other", "", _endless)
            done = await cli("cancel", first, ended, last, *flags)

            assert done.code == 1
            text = f"Task '{ended}' is not running (current status: completed)"
            assert done.errors == f"trio-bgtasks: {text}\n"
            if flags:
                assert [task["task_id"] for task in done.json["tasks"]] == [first, last]
            else:
                assert done.out == f"{first}  cancel accepted\n{last}  cancel accepted\n"
            for task_id in (first, last):
                with trio.fail_after(PATIENCE_S):
                    summary = await manager.wait("cli", task_id)
                assert summary.status is TaskStatus.CANCELLED


async def test_what_a_tree_took_along_is_not_asked_for_again(cli: Cli) -> None:
    """A root and a task below it: each is printed once, and nothing was refused."""
    async with cli.manager() as manager:
        root = await manager.spawn("cli", "other", "", _endless)
        child = await manager.spawn("cli", "other", "", _endless, parent_task_id=root)
        done = await cli("cancel", "--tree", root, child)

    assert (done.code, done.errors) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == [root, child]


async def test_a_tree_is_cancelled_whoever_owns_it(cli: Cli) -> None:
    """``--tree`` ends everything below; the tasks of other owners are counted."""
    async with cli.manager() as manager:
        root = await manager.spawn("cli", "other", "", _endless)
        child = await manager.spawn("cli", "other", "", _endless, parent_task_id=root)
        other = await manager.spawn("bob", "other", "", _endless, parent_task_id=child)

        done = await cli("cancel", "--tree", child)
        assert done.out == f"{child}  cancel accepted\nand 1 tasks of other owners\n"
        done = await cli("cancel", "--tree", root, "--json")
        with trio.fail_after(PATIENCE_S):
            for owner, task_id in (("cli", root), ("cli", child), ("bob", other)):
                summary = await manager.wait(owner, task_id)
                assert summary.status is TaskStatus.CANCELLED

    assert done.code == 0
    assert root in [task["task_id"] for task in done.json["tasks"]]
    assert done.json["others"] in (0, 1)  # the other one may have ended meanwhile


# ---- answer --------------------------------------------------------------------------------------


async def test_an_answer_reaches_another_process(cli: Cli) -> None:
    """`show` and `ls` say what is asked; JSON that fits is taken as that, else it is a string."""
    got: list[object] = []

    async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
        got.append(await execution.ask("Which \x1b[31mcolour?", {"type": "string"}))
        got.append(await execution.ask("Really?", {"type": "boolean"}))
        async with trio.open_nursery() as nursery:
            for message in ("a", "b"):
                nursery.start_soon(execution.ask, message, {})
        return Success()

    async with cli.manager() as manager:
        request = StartRequest(owner_thread_id="bob", task_type="other", task_id="t")
        await manager.start(request, body)
        await _asked(manager, 1)
        nothing, shown, listed, no_answer, twice = await cli.together(
            ["answer", "t", "x", "--question", "no"],
            ["show", "t"],
            ["--owner", "bob", "ls"],
            ["answer", "t"],
            ["answer", "t", "x", "--decline"],
        )
        assert (nothing.code, nothing.errors) == (
            1,
            "trio-bgtasks: Question 'no' of task 't': there is no such question now\n",
        )
        assert 'asks (q1)  Which colour? {"type": "string"}' in shown.out
        assert "asks: Which colour?" in listed.out
        for usage in (no_answer, twice):
            assert (usage.code, usage.out) == (2, "")
            assert usage.errors == "trio-bgtasks: give an answer, or --decline\n"
        done = await cli("answer", "t", "123")  # a string is wanted, so it is one
        assert (done.code, done.out) == (0, "t  q1 answered\n")
        await _asked(manager, 2)
        wrong = await cli("answer", "t", "perhaps")
        assert (wrong.code, "does not fit" in wrong.errors) == (1, True)
        done = await cli("answer", "--json", "t", "true", "--question", "q2")
        assert (done.json["owner_thread_id"], done.json["status"]) == ("bob", "running")
        assert "questions" not in done.json
        await _asked(manager, 4)
        which, declined = await cli.together(["answer", "t", "x"], ["answer", "t", "--decline"])
        for unclear in (which, declined):
            assert unclear.code == 1
            assert "2 open questions: name one of q3, q4 with --question" in unclear.errors
        declined = await cli("answer", "t", "--decline", "--question", "q3")
        assert (declined.code, declined.out) == (0, "t  q3 declined\n")
        assert (await manager.wait("bob", "t")).status is TaskStatus.FAILED
        over = await cli("answer", "t", "x")
        assert (over.code, "is not running" in over.errors) == (1, True)
    assert got == ["123", True]


async def test_a_task_that_asks_nothing(cli: Cli) -> None:
    """There is nothing to answer, and that is said."""
    async with cli.manager() as manager:
        task_id = await manager.spawn("bob", "other", "", _endless)
        done = await cli("answer", task_id, "x")
        assert (done.code, "0 open questions: it asks nothing" in done.errors) == (1, True)


async def _asked(manager: BackgroundTaskManager, count: int) -> None:
    """Wait until the task has asked so many questions."""
    async with manager.subscribe("bob") as hints:
        while True:
            record = await manager.record("bob", "t")
            assert record is not None
            if record.questions_asked == count:
                return
            await hints.receive()


async def test_an_unknown_task_is_exit_code_3(cli: Cli) -> None:
    """Whatever is to be done with it; one line says which."""
    async with SqliteTaskStore.open(cli.db):
        ends = await cli.together(*_ON_A_TASK)
    for done in ends:
        assert (done.code, done.out) == (3, "")
        assert done.errors == "trio-bgtasks: Unknown task_id: nobody\n"


async def test_one_unknown_task_and_nothing_is_cancelled(cli: Cli) -> None:
    """All ids are looked up before the first task is touched."""
    async with cli.manager() as manager:
        task_id = await manager.spawn("cli", "other", "", _endless)
        done = await cli("cancel", task_id, "nobody")
        record = await manager.find(task_id)

    assert (done.code, done.out) == (3, "")
    assert record is not None
    assert not record.cancel_accepted
