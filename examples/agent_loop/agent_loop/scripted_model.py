"""A model that follows a script, behind real HTTP on the loopback interface, and who talks to it.

It answers by what is in the request, never by time: so the same is said on a slow machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

TESTS = "sleep 1; echo '3 passed'"
_REMINDED = re.compile(r'<task id="(\w+)" type="(\w+)" status="(\w+)"')
_NOTICE = "(These background tasks have ended: "


class ScriptedModel:
    """The script: what is said to the model, and what it answers."""

    def __init__(self) -> None:
        self.url = ""
        self._reported = trio.Event()
        self._all_over = trio.Event()
        self._alarm = ""
        self._calls = 0

    async def lines(self) -> AsyncGenerator[str, None]:
        """Say something, and wait for what the model reports by itself."""
        yield "Run the tests, and remind me of lunch in an hour."
        yield "What is 6 times 7?"
        await self._reported.wait()
        yield "I have had lunch, forget the alarm."
        await self._all_over.wait()

    def answer(self, messages: list[Any]) -> list[Any]:
        """Return the content of the answer to the last message."""
        content: list[Any] = []
        for block in messages[-1]["content"]:
            if block["type"] == "tool_result":
                content += self._after(messages[-2]["content"], block)
            else:
                content += self._on(block["text"])
        return content or [_text("I have nothing to add.")]

    def _on(self, text: str) -> list[Any]:
        if text.startswith("Run the tests"):
            return [
                self._tool("shell", command=TESTS, run_in_background=True),
                self._tool("alarm", after_s=3600, text="Lunch!", run_in_background=True),
            ]
        if text.startswith("What is"):
            return [_text("6 times 7 is 42.")]
        if text.startswith("I have had lunch"):
            return [self._tool("task_cancel", task_id=self._alarm)]
        if text.startswith(_NOTICE):
            ended = json.loads(text.removeprefix(_NOTICE)[:-1])
            tasks = [(task["task_id"], task["task_type"], task["status"]) for task in ended]
        else:
            tasks = _REMINDED.findall(text)
        return [block for task in tasks for block in self._on_task(*task)]

    def _on_task(self, task_id: str, kind: str, status: str) -> list[Any]:
        if kind == "alarm":
            self._alarm = task_id
        match kind, status:
            case "shell", "completed":  # announced once
                return [self._tool("task_output", task_id=task_id)]
            case "alarm", "cancelled":
                self._all_over.set()
                return [_text("The alarm is off, and nothing runs any more.")]
        return []

    def _after(self, calls: list[Any], result: Any) -> list[Any]:
        (name,) = (call["name"] for call in calls if call.get("id") == result["tool_use_id"])
        if name == "shell":
            return [_text("The tests run in the background; the alarm is set. What else?")]
        if name == "task_output":
            self._reported.set()
            log = json.loads(result["content"])["log"]["text"]
            return [_text(f"The tests are through: {log.strip()}.")]
        return []

    def _tool(self, name: str, **args: Any) -> Any:
        self._calls += 1
        return {"type": "tool_use", "id": f"toolu_{self._calls}", "name": name, "input": args}


def _text(text: str) -> Any:
    return {"type": "text", "text": text}


# ---- HTTP ----------------------------------------------------------------------------------------


@asynccontextmanager
async def served() -> AsyncGenerator[ScriptedModel, None]:
    """Serve a scripted model on a free port of this machine."""
    model = ScriptedModel()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, partial(_handle, model), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        model.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield model
        nursery.cancel_scope.cancel("the session is over")


async def _handle(model: ScriptedModel, stream: trio.SocketStream) -> None:
    """Answer one request of the Messages API, and close."""
    data = b""
    async for chunk in stream:
        data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if length is not None and len(body) == int(length[1]):
            await stream.send_all(_response(model.answer(json.loads(body)["messages"])))
            return


def _response(content: list[Any]) -> bytes:
    calls = any(block["type"] == "tool_use" for block in content)
    body = json.dumps(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "scripted",
            "content": content,
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
    ).encode()
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body
