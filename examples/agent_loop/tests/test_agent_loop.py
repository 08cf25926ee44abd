"""The agent, offline: a whole session with real HTTP, a real shell, and a scripted model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import trio
from agent_loop.__main__ import offline
from agent_loop.agent import Agent
from agent_loop.scripted_model import served
from anthropic import AsyncAnthropic

from trio_bgtasks import open_task_manager


class Transcript:
    """What was said, in its order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def __call__(self, who: str, text: str) -> None:
        self.said.append((who, text))

    def first(self, who: str, *parts: str) -> int:
        """Return the place of the first thing that somebody said with these parts."""
        found = (
            place
            for place, (speaker, text) in enumerate(self.said)
            if speaker == who and all(part in text for part in parts)
        )
        place = next(found, None)
        assert place is not None, (who, parts, self.said)
        return place

    def end(self, status: str) -> int:
        """Return the place where an end was told: once, by a reminder or a notice."""
        parts = {("reminder", f'status="{status}"'), ("notice", f'"status": "{status}"')}
        (place,) = (
            place
            for place, (speaker, text) in enumerate(self.said)
            if any(speaker == who and part in text for who, part in parts)
        )
        return place


def test_a_whole_session() -> None:
    """Started in the background, talked on, told of the end, output read, another one cancelled."""
    told = Transcript()
    trio.run(offline, told)
    places = [
        told.first("tool", "shell", "running_in_background"),
        told.first("reminder", 'type="alarm" status="running"'),
        told.first("model", "What else?"),
        told.first("model", "42"),
        told.end("completed"),
        told.first("tool", "task_output", r"3 passed\n"),
        told.first("model", "The tests are through: 3 passed."),
        told.first("tool", "task_cancel", '"cancelled": true'),
        told.end("cancelled"),
        told.first("model", "nothing runs any more"),
    ]
    assert places == sorted(places)
    assert "error" not in dict(told.said)


def test_the_command() -> None:
    """It ends by itself, and warns of nothing."""
    command = [sys.executable, "-W", "error", "-m", "agent_loop", "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("     you | Run the tests")
    assert "   model | The tests are through: 3 passed.\n" in done.stdout
    assert done.stdout.endswith("   model | The alarm is off, and nothing runs any more.\n")


def test_a_model_by_name(tmp_path: Path) -> None:
    """Lines are typed; how the tasks of one run ended, the next one tells first."""
    db = tmp_path / "tasks.sqlite3"
    command = [sys.executable, "-m", "agent_loop", "--model", "scripted", "--db", str(db)]

    async def typed(line: str) -> str:
        async with served() as script:
            env = {**os.environ, "ANTHROPIC_BASE_URL": script.url, "ANTHROPIC_API_KEY": "none"}
            done = await trio.run_process(
                command, stdin=line.encode(), env=env, capture_stdout=True
            )
        return done.stdout.decode()

    with_tasks = trio.run(typed, "\nRun the tests, and set an alarm.\n")
    assert "   model | The tests run in the background; the alarm is set." in with_tasks
    afterwards = trio.run(typed, "What is 6 times 7?")
    assert afterwards.startswith("  notice | (These background tasks have ended: ")
    assert afterwards.endswith("   model | 6 times 7 is 42.\n")


def test_a_model_that_does_not_answer() -> None:
    """The session goes on, and nothing of the line is lost: it is in the next request."""
    told = Transcript()

    async def lines() -> AsyncGenerator[str, None]:
        yield "Hello?"
        yield "Is anybody there?"

    async def main() -> None:
        nobody = AsyncAnthropic(base_url="http://127.0.0.1:9", api_key="none", max_retries=0)
        async with nobody as client, open_task_manager() as manager:
            await Agent(client, "nobody", manager, told).converse(lines())

    trio.run(main)
    assert [who for who, _ in told.said] == ["you", "error", "you", "error"]
