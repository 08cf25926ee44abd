"""The agent: one conversation with a model, whose tools may run in the background."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import trio
from anthropic import APIError, AsyncAnthropic

from trio_bgtasks import (
    BackgroundCapable,
    BackgroundTaskManager,
    Subscription,
    TaskReminder,
    TaskStatus,
    ToolCallContext,
    background_tool,
    task_tools,
)
from trio_bgtasks.model_apis import dispatch, to_anthropic
from trio_bgtasks.tools import ShellTool

THREAD = "conversation-1"  # owns the tasks; the same after a restart, so that it finds them again
SYSTEM = "Start what takes long in the background, and go on with the conversation meanwhile."

_Turn = Callable[[], Awaitable[None]]


@background_tool
async def alarm(after_s: float, text: str) -> str:
    """Wait for so many seconds, then give the text back. Start it in the background."""
    await trio.sleep(after_s)
    return text


class Agent:
    """A conversation: its history, its tools, and what the model should know of its tasks."""

    def __init__(
        self,
        client: AsyncAnthropic,
        model: str,
        manager: BackgroundTaskManager,
        say: Callable[[str, str], None],
    ) -> None:
        self._client, self._model, self._manager, self._say = client, model, manager, say
        wrapped = [BackgroundCapable(tool, manager) for tool in (ShellTool(), alarm)]
        self._tools = [*wrapped, *task_tools(manager)]
        self._reminder = TaskReminder(manager)
        self._history: list[Any] = []

    async def converse(self, lines: AsyncIterator[str]) -> None:
        """Take a turn for every line, and when a task ends meanwhile, until the lines end."""
        turns, due = trio.open_memory_channel[_Turn | None](0)

        async def read() -> None:
            async for line in lines:
                await turns.send(partial(self._turn, "you", line))
            await turns.send(None)

        async def watch(changes: Subscription) -> None:
            async for task_id in changes:
                task = await self._manager.get(THREAD, task_id)
                if task is not None and task.status is not TaskStatus.RUNNING:
                    await turns.send(self._wake)

        subscribed = self._manager.subscribe(THREAD)
        async with subscribed as changes, trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(watch, changes)
            turn: _Turn | None = self._wake  # what ended before we listened
            while turn is not None:
                try:
                    await turn()
                except APIError as error:
                    self._say("error", str(error))
                turn = await due.receive()
            nursery.cancel_scope.cancel("no more lines")

    async def _wake(self) -> None:
        """Take a turn for the ends that no reminder has told; they are told if it succeeds."""
        async with self._manager.notices(THREAD, background_only=True) as ended:
            if ended:
                tasks = json.dumps([task.to_json() for task in ended])
                await self._turn("notice", f"(These background tasks have ended: {tasks})")

    async def _turn(self, who: str, text: str) -> None:
        """Let the model answer, and call tools, until it calls none."""
        self._say(who, text)
        said: list[Any] = [{"type": "text", "text": text}]
        while said:
            self._history.append({"role": "user", "content": said})
            answer = await self._ask()
            for block in answer.content:
                if block.type == "text":
                    self._say("model", block.text)
            said = [await self._call(block) for block in answer.content if block.type == "tool_use"]
            self._history.append({"role": "assistant", "content": answer.content})

    async def _ask(self) -> Any:
        """Send the history, the reminder at its end; what that announces is told when we return."""
        async with self._reminder.delivering(THREAD) as reminder:
            *before, last = self._history
            if reminder is not None:
                self._say("reminder", reminder)
                last = {**last, "content": [*last["content"], {"type": "text", "text": reminder}]}
            return await self._client.messages.create(
                model=self._model,
                max_tokens=4096,
                system=SYSTEM,
                tools=to_anthropic(self._tools),
                messages=[*before, last],
            )

    async def _call(self, block: Any) -> Any:
        result = await dispatch(self._tools, block, ToolCallContext(thread_id=THREAD))
        self._say("tool", f"{block.name} {block.input} -> {result['content']}")
        return result
