"""The tools of the server that `benchmarks.over_http` loads."""

from __future__ import annotations

import trio

from trio_bgtasks import BackgroundExecution, background_tool

_gate = trio.Event()


@background_tool
async def held(execution: BackgroundExecution, number: int) -> int:
    """Run until all are let go; write some lines, and answer with the square."""
    await execution.report_progress(1, 2, "held")
    await _gate.wait()
    await execution.write_output(f"{number}\n" * 500)
    return number * number


@background_tool
async def let_go() -> None:
    """Let all go."""
    await trio.lowlevel.checkpoint()
    _gate.set()


tools = (held, let_go)
