from __future__ import annotations

from tests.processes import marked

__all__ = ["marked"]
