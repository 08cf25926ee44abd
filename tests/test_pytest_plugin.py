"""The plugin for pytest: its fixtures, and that nobody else notices it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support import forever, request
from trio_bgtasks import (
    BackgroundTaskManager,
    LeaseTerms,
    ManagerClosed,
    MemoryTaskStore,
    TaskStatus,
    TaskStoreError,
    open_task_manager,
)


async def test_the_manager_is_open_on_the_store(
    task_manager: BackgroundTaskManager, task_store: MemoryTaskStore
) -> None:
    """What is started with one fixture is stored in the other."""
    summary = await task_manager.start(request("ann"), forever)
    record = await task_store.load(summary.task_id)
    assert record is not None
    assert record.executor_id == task_manager.statistics().executor_id


async def test_a_crash_leaves_an_orphan(
    task_manager: BackgroundTaskManager,
    task_store: MemoryTaskStore,
    crash: Callable[[], Awaitable[None]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The record runs on, under a dead executor; who opens the store later finds and stops it."""
    summary = await task_manager.start(request("ann", supports_resume=True), forever)
    await crash()
    with pytest.raises((ManagerClosed, TaskStoreError)):
        await task_manager.start(request("ann"), forever)
    record = await task_store.load(summary.task_id)
    assert record is not None
    assert record.status is TaskStatus.RUNNING
    await trio.sleep(LeaseTerms().lease_s)
    async with open_task_manager(task_store) as other:
        found = await other.get("ann", summary.task_id)
    assert found is not None
    assert found.status is TaskStatus.STOPPED


async def test_a_crash_takes_no_time(
    task_manager: BackgroundTaskManager,
    crash: Callable[[], Awaitable[None]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nobody tries to store the ends of a process that is gone: a test on real time goes on."""
    await task_manager.start(request("ann"), forever)
    began = trio.current_time()
    await crash()
    assert trio.current_time() - began < 1


def run_pytest(
    folder: Path, test: str, *options: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a session of its own in ``folder``."""
    (folder / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    (folder / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_session_that_uses_no_fixture_imports_nothing_of_us(tmp_path: Path) -> None:
    """Neither the package nor what its extra needs: such a session is as fast as without us."""
    test = (
        "import sys\n"
        "def test_it():\n"
        "    assert '_trio_bgtasks_pytest' in sys.modules\n"
        "    assert 'trio_bgtasks' not in sys.modules\n"
        "    assert 'greenlet' not in sys.modules or 'coverage' in sys.modules  # which needs it, too\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(test)
    done = run_pytest(tmp_path, test)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fixtures_need_nothing_of_the_extra_but_pytest_trio(tmp_path: Path) -> None:
    """Where greenlet and hypothesis cannot be imported, the fixtures work all the same."""
    (tmp_path / "greenlet.py").write_text("raise ImportError('not installed')\n")
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not installed')\n")
    test = (
        "from trio_bgtasks import StartRequest, Success\n"
        "async def body(execution, scope):\n"
        "    return Success(7)\n"
        "async def test_it(task_manager, crash, autojump_clock):\n"
        "    request = StartRequest(owner_thread_id='ann', task_type='work')\n"
        "    task = await task_manager.start(request, body)\n"
        "    assert (await task_manager.wait('ann', task.task_id)).result == 7\n"
        "    await crash()\n"
    )
    plugins = ("-p", "pytest_trio.plugin", "-p", "_trio_bgtasks_pytest")
    done = run_pytest(
        tmp_path, test, *plugins, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_pytest_trio_a_session_runs(tmp_path: Path) -> None:
    """The fixtures are there, and nobody has to use them."""
    plugins = ("-p", "_trio_bgtasks_pytest")
    test = "def test_it(task_store):\n    assert 'MemoryTaskStore' in repr(task_store)\n"
    options = (*plugins, "-o", "trio_mode=")
    done = run_pytest(tmp_path, test, *options, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout + done.stderr
