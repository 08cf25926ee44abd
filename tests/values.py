"""JSON values for tests: a strategy, and which parts of a value can be changed."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import strategies as st

# Hypothesis' own default for text leaves out surrogates; U+0000 is ours to leave out.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


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
