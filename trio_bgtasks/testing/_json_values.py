"""JSON as the stores accept it. Each strategy is made once: making one costs more than drawing."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


@cache
def texts() -> SearchStrategy[str]:
    """Return texts that are stored as they are: no lone surrogates, no U+0000."""
    return st.text(storable(), max_size=20)


@cache
def json_values() -> SearchStrategy[Any]:
    """Return JSON of every kind that all stores accept, and none that one refuses.

    That is null, booleans, integers of 64 bits, finite floats, `texts`, lists, and objects with
    such keys. They are small: for the bounds of size and depth make your own.
    """
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        texts(),
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(), inner, max_size=4),
        max_leaves=5,
    )


@cache
def json_objects() -> SearchStrategy[dict[str, Any]]:
    """Return JSON objects of such values: arguments without a schema, metadata."""
    return st.dictionaries(texts(), json_values(), max_size=2)


@cache
def storable() -> SearchStrategy[str]:
    """Return the characters that can be stored."""
    return st.characters(exclude_categories=["Cs"], exclude_characters="\0")
