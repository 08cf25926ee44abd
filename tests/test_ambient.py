"""Which attempt a call belongs to: the ambient current attempt, and who is whose child."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import (
    OTHER,
    done,
    request,
    stored,
)
from trio_bgtasks import (
    BackgroundExecution,
    Failed,
    MemoryTaskStore,
    Success,
    TaskResult,
    current_execution,
    open_task_manager,
)
from trio_bgtasks._execution import around

Use = Callable[[BackgroundExecution], Awaitable[Any]]


def current() -> str | None:
    """Return the task of the current execution."""
    try:
        return current_execution().task_id
    except RuntimeError:
        return None


async def test_a_call_in_a_body_knows_its_task(autojump_clock: trio.testing.MockClock) -> None:
    """In the body and every task started there; not outside, not after the body's end."""
    with pytest.raises(RuntimeError, match="works inside a running attempt only"):
        current_execution()
    seen: dict[str, str | None] = {}
    late = trio.Event()

    async def note(where: str) -> None:
        seen[where] = current()

    async def note_late() -> None:
        await late.wait()
        await note("after its end")

    async with open_task_manager() as manager, trio.open_nursery() as outer:

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await note("body")
            assert manager.current_task_id() == "t"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note, "child")
                nursery.start_soon(note, "sibling")
            await trio.to_thread.run_sync(lambda: seen.update(thread=current()))
            outer.start_soon(note_late)
            return Success()

        await note("before")
        await manager.run(request(task_id="t"), body)
        await note("after")
        assert manager.current_task_id() is None
        late.set()
    assert seen == {
        "before": None,
        "body": "t",
        "child": "t",
        "sibling": "t",
        "thread": "t",
        "after": None,
        "after its end": None,
    }


async def test_a_task_started_in_a_body_is_its_child(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever owns it, foreground or background, in a task of the body, too; unless it is told."""
    store, late = MemoryTaskStore(), trio.Event()

    async with open_task_manager(store) as manager, trio.open_nursery() as outer:

        async def start(task_id: str, **fields: Any) -> None:
            await manager.start(request(OTHER, task_id=task_id, **fields), done)

        async def start_late() -> None:
            await late.wait()
            await start("late")

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            await start("background")
            await manager.run(request(task_id="foreground"), done)
            await start("told", parent_task_id="elsewhere")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start, "in a task")
                nursery.start_soon(start, "in another")
            outer.start_soon(start_late)
            return Success()

        await manager.run(request(task_id="root"), body)
        await start("after")
        late.set()
        await trio.testing.wait_all_tasks_blocked()
    parents = {
        task_id: (await stored(store, task_id)).parent_task_id
        for task_id in (
            *("background", "foreground", "told", "in a task"),
            *("in another", "after", "late"),
        )
    }
    assert parents == {
        "background": "root",
        "foreground": "root",
        "told": "elsewhere",
        "in a task": "root",
        "in another": "root",
        "after": None,
        "late": None,
    }


async def test_two_managers_nested(autojump_clock: trio.testing.MockClock) -> None:
    """The ambient parent is a task of the same manager; the current execution is the innermost."""
    outside, inside = MemoryTaskStore(), MemoryTaskStore()
    async with open_task_manager(outside) as outer, open_task_manager(inside) as inner:

        async def innermost(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            assert current() == "in inner"
            assert (outer.current_task_id(), inner.current_task_id()) == ("in outer", "in inner")
            await outer.run(request(task_id="of outer"), done)
            await inner.run(request(task_id="of inner"), done)
            return Success()

        async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
            assert inner.current_task_id() is None
            await inner.run(request(task_id="in inner"), innermost)
            assert current() == "in outer"
            return Success()

        await outer.run(request(task_id="in outer"), body)
    assert (await stored(outside, "of outer")).parent_task_id == "in outer"
    assert (await stored(inside, "of inner")).parent_task_id == "in inner"
    assert (await stored(inside, "in inner")).parent_task_id is None


async def test_a_chain_of_successors_does_not_grow(autojump_clock: trio.testing.MockClock) -> None:
    """A task that starts the next one, for ever, remembers its parent, not all before it."""
    depths: list[int] = []
    over = trio.Event()

    async with open_task_manager() as manager:

        async def body(execution: BackgroundExecution, _: trio.CancelScope) -> TaskResult:
            (here, *above) = around()
            remembered = 0
            outer = here.outer
            while outer is not None:
                remembered, outer = remembered + 1, outer.outer
            lineage = manager._slots[execution.task_id].lineage
            depths.append(max(remembered, len(lineage), len(above)))
            if len(depths) < 100:
                await manager.start(request(), body)
            else:
                over.set()
            return Success()

        await manager.start(request(), body)
        await over.wait()
    assert max(depths) <= 2


async def test_a_failing_body_resets_what_is_current(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whatever ends a body, its caller's context is as it was."""

    async def body(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async with open_task_manager() as manager:
        with pytest.raises(ZeroDivisionError):
            await manager.run(request(), body)
        assert current() is None
        assert isinstance(await manager.run(request(), returns_failed), Failed)


async def returns_failed(_: BackgroundExecution, __: trio.CancelScope) -> TaskResult:
    """Fail without an exception."""
    return Failed("no")
