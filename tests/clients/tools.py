"""What is served beside the shell: ``serve --tools tests.clients.tools:deploy``."""

from __future__ import annotations

from trio_bgtasks import BackgroundExecution, background_tool


@background_tool(supports_resume=True)
async def deploy(execution: BackgroundExecution, where: str) -> str:
    """Deploy, if somebody agrees."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = await execution.ask(f"Deploy to {where}?", schema)
    return f"deployed to {where}" if answer["ok"] else "not deployed"
