"""Clients of MCP that others wrote, against `trio-bgtasks serve`; ``nox -s clients``."""
