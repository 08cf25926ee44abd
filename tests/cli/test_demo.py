"""``demo``: that the story holds, says when it does not, and leaves nothing behind."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.cli.command import Cli, environment
from trio_bgtasks import Success, TaskRecord, TaskResult, open_task_manager
from trio_bgtasks.cli import _demo
from trio_bgtasks.cli._session import CommandError, find

ROW = re.compile(r"^(bg_\w+)  (\w+) +(\d+)  ", re.MULTILINE)

_ONLY = """
import sys
from trio_bgtasks.cli import _app, _demo

def only(wanted):
    async def nothing(stage):
        pass
    for scene in {"_background", "_cancel", "_crash"} - {wanted}:
        setattr(_demo, scene, nothing)

"""  # the demo with one of its scenes


@pytest.fixture(autouse=True)
def _no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder for temporary files is the test's own, and empty at its end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert list(folder.iterdir()) == []


async def test_the_whole_story(cli: Cli) -> None:
    """Each scene shows what it promises, in order; no file and no process is left."""
    done = await cli("demo")

    assert (done.code, done.errors) == (0, "")
    assert cli.processes.alive() == {}
    scenes = done.out.strip().split("\n\n")
    assert all(scene.startswith("== ") for scene in scenes)
    started, output, tree, cancelled, counting, killed, resumed, history, every = scenes

    ((shell_id, *standing),) = ROW.findall(started)
    assert standing == ["running", "1"]
    lines = [line.split() for line in output.splitlines()[1:-1]]
    assert [" ".join(words[1:]) for words in lines] == [f"line {n}" for n in range(1, 9)]
    assert [words[0] for words in lines].count("running") > 1
    assert ROW.findall(output) == [(shell_id, "completed", "1")]

    ((tree_id, *standing),) = ROW.findall(tree)
    assert standing == ["running", "1"]
    before = [line.split() for line in tree.splitlines()[2:]]
    after = [line.split() for line in cancelled.splitlines()[2:]]
    assert len(before) >= 4
    assert {state for _, _, state in before} == {"alive"}
    assert after == [[pid, name, "gone"] for pid, name, _ in before]
    assert ROW.findall(cancelled) == [(tree_id, "cancelled", "1")]

    ((count_id, *standing),) = ROW.findall(counting)
    assert standing == ["running", "1"]
    assert ROW.findall(killed) == [(count_id, "stopped", "1")]
    checkpoint = killed.splitlines()[-1].removeprefix("checkpoint: ")
    assert f"attempt 2 begins after {checkpoint}\n" in resumed
    assert ROW.findall(resumed) == [(count_id, "completed", "2")]
    assert f'"began_after": {checkpoint}' in resumed.splitlines()[-1]
    kinds = [" ".join(line.split()[2:4]) for line in history.splitlines()[2:]]
    assert kinds == ["registered 1", "orphaned 1", "attempt started", "finished 2"]
    assert ROW.findall(every) == [
        (shell_id, "completed", "1"),
        (tree_id, "cancelled", "1"),
        (count_id, "completed", "2"),
    ]


@pytest.mark.parametrize(
    ("scene", "text"), [("_cancel", "ignores-TERM"), ("_crash", "attempt 1 begins")]
)
async def test_an_interrupted_demo_leaves_nothing_behind(cli: Cli, scene: str, text: str) -> None:
    """Neither files nor processes, neither in the middle of the tree nor of the counting."""
    program = [sys.executable, "-c", f"{_ONLY}only({scene!r}); sys.exit(_app.run_app(['demo']))"]
    async with cli.running(program=program) as run:
        await run.says(text)
        run.process.send_signal(signal.SIGTERM)
        done = await run.end()
        assert cli.processes.alive() == {}

    assert (done.code, done.errors) == (143, "")


def test_a_story_that_does_not_hold_fails(cli: Cli) -> None:
    """The exit code is 1, and the line on standard error says what did not hold."""
    code = (
        "import sys; from trio_bgtasks.cli import _app, _demo; "
        "_demo._LINES = 'exit 1'; "
        "sys.exit(_app.run_app(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 1
    assert done.stderr == "trio-bgtasks: the demo failed, this does not hold: it completed\n"
    assert cli.processes.alive() == {}


async def test_a_story_does_not_wait_for_ever(autojump_clock: MockClock, tmp_path: Path) -> None:
    """What does not come in time fails the demo, and says so."""

    async def never() -> bool:
        return False

    async def endless(_: trio.CancelScope) -> TaskResult:
        await trio.sleep_forever()
        raise AssertionError

    assert autojump_clock is not None
    with pytest.raises(CommandError, match="this takes too long: miracles"):
        await _demo._until(never, "miracles")
    async with open_task_manager() as manager:
        task_id = await manager.spawn("demo", "other", "", endless)
        stage = _demo._Stage(tmp_path, manager)
        with pytest.raises(CommandError, match=f"this takes too long: {task_id}"):
            await stage.relay(task_id, lambda _: False)


async def test_a_worker_that_has_ended_well_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one that ended before what it was to do was done fails the demo."""

    async def ended(_: trio.CancelScope) -> TaskResult:
        return Success()

    async with open_task_manager() as manager, _ended_process() as process:
        task_id = await manager.spawn("demo", "other", "", ended)
        stage = _demo._Stage(tmp_path, manager)

        async def resumed(_: _demo._Stage, task_id: str) -> TaskRecord:
            record = await find(manager, task_id)
            return attrs.evolve(record, attempt=2)

        with pytest.raises(CommandError, match="the process lives"):
            await _demo._until_resumed(stage, task_id, process)
        monkeypatch.setattr(_demo._Stage, "record", resumed)
        await _demo._until_resumed(stage, task_id, process)

        with pytest.raises(CommandError, match="the process lives"):
            await _demo._task_of(stage, process)


@asynccontextmanager
async def _ended_process() -> AsyncGenerator[trio.Process, None]:
    process = await trio.lowlevel.open_process(["true"])
    await process.wait()
    yield process


def test_living_processes_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Elsewhere than on Linux those that are known are asked with a signal that does nothing."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(_demo, "_PROC", tmp_path / "none")
    assert _demo._living("", {gone.pid: "gone", os.getpid(): "we"}) == {os.getpid()}
