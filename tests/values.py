"""JSON values for tests: which parts of one can be changed."""

from __future__ import annotations

from typing import Any, cast


def containers(*values: Any) -> set[int]:
    """Return the identities of every list and object in the values: what could be shared."""
    found: set[int] = set()
    rest: list[Any] = [*values]
    while rest:
        one = rest.pop()
        if isinstance(one, dict | list):
            found.add(id(cast("object", one)))
            rest += one.values() if isinstance(one, dict) else one
    return found
