"""``python -m agent_loop``: talk to the agent, or see it talk to a scripted model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import trio
from anthropic import AsyncAnthropic

from trio_bgtasks import MemoryTaskStore, SqliteTaskStore, TaskStore, open_task_manager

from .agent import Agent
from .scripted_model import served

Lines = AsyncGenerator[str, None]
Say = Callable[[str, str], None]

_WIDTH = 110


def show(who: str, text: str) -> None:
    """Print what somebody said; of a long line the beginning."""
    for line in text.splitlines():
        print(f"{who:>8} | {line if len(line) <= _WIDTH else line[:_WIDTH] + '…'}", flush=True)


async def typed() -> Lines:
    """Give what is typed, line by line."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        if line.strip():
            yield line.strip()


async def talk(
    client: AsyncAnthropic, model: str, store: TaskStore, lines: Lines, say: Say
) -> None:
    """Let the agent converse; when the lines end, the client and the tasks are closed."""
    async with client, open_task_manager(store) as manager, aclosing(lines):
        await Agent(client, model, manager, say).converse(lines)


async def online(model: str, db: str) -> None:
    """Talk to a model of Anthropic's; the tasks are in a file, and outlive this program."""
    async with SqliteTaskStore.open(db) as store:
        await talk(AsyncAnthropic(), model, store, typed(), show)


async def offline(say: Say = show) -> None:
    """Play a whole session against the scripted model."""
    async with served() as script:
        client = AsyncAnthropic(base_url=script.url, api_key="none")
        await talk(client, "scripted", MemoryTaskStore(), script.lines(), say)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="agent_loop", description="An agent.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--offline", action="store_true", help="see it talk to a scripted model")
    which.add_argument("--model", help="talk to this model; its key is in ANTHROPIC_API_KEY")
    parser.add_argument("--db", default="agent_loop.sqlite3", help="the file of its tasks")
    options = parser.parse_args()
    if options.offline:
        trio.run(offline)
    else:
        trio.run(online, options.model, options.db)
