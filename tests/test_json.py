"""What may be stored, and what is refused with which words."""

from __future__ import annotations

import enum
import json
import math
import subprocess
import sys
import time
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.values import containers
from trio_bgtasks._json import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ID,
    NotJson,
    check_id,
    clean_text,
    clone_json,
    copy_json,
    json_object,
    json_value,
    new_id,
    same_json,
    shorten,
)
from trio_bgtasks.testing.strategies import json_values


class Colour(str, enum.Enum):  # noqa: UP042 - its str() is not its value, which is the point
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


class Odd(int):
    def __int__(self) -> int:
        return 99


class Half(float):
    def __float__(self) -> float:
        return 99.0

    def __repr__(self) -> str:
        return "half"


class Point(NamedTuple):
    x: int
    y: int


def nested(depth: int) -> Any:
    """Return a number inside so many lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@given(json_values())
def test_a_copy_is_equal_plain_and_shares_no_container(value: Any) -> None:
    """Every JSON value is taken; its copy and its clone are equal and share nothing mutable."""
    copied = copy_json(value)
    cloned = clone_json(copied)
    assert copied == value
    assert cloned == value
    assert json.loads(json.dumps(copied)) == value
    assert not containers(value) & containers(copied)
    assert not containers(copied) & containers(cloned)


PLAIN: list[tuple[Any, Any]] = [
    (Colour.RED, "red"),
    (Loud("quiet"), "quiet"),
    (Level.HIGH, 3),
    (Odd(7), 7),
    (Half(0.5), 0.5),
    (True, True),
    (Point(1, 2), [1, 2]),
    ((1, (2,)), [1, [2]]),
    (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    ({Colour.RED: 1, Loud("quiet"): 2}, {"red": 1, "quiet": 2}),
    ([{}, [], (), ""], [{}, [], [], ""]),
]


@pytest.mark.parametrize(("given_value", "plain"), PLAIN)
def test_subclasses_become_the_plain_values_that_they_hold(given_value: Any, plain: Any) -> None:
    """Enums and other subclasses are stored as what they are, whatever their own str() says."""
    copied = copy_json(given_value)
    assert copied == plain
    assert type(copied) is type(plain)
    assert json.dumps(copied) == json.dumps(plain)


@pytest.mark.parametrize(
    ("bad", "path", "kind"),
    [
        (math.nan, "$", "float nan is not finite"),
        ({"a": [0, -math.inf]}, "$.a[1]", "float -inf is not finite"),
        ([Half("inf")], "$[0]", "float inf is not finite"),
        ([1 << 63], "$[0]", "integer beyond 64 bits"),
        (-(1 << 63) - 1, "$", "integer beyond 64 bits"),
        ([10**5000], "$[0]", "integer beyond 64 bits"),
        ({"a": {"b": b"x"}}, "$.a.b", "bytes"),
        ({"a b": {1}}, "$['a b']", "set"),
        ({"é\u2028": {1}}, "$['\\xe9\\u2028']", "set"),
        ({"k" * 500: {1}}, "$." + "k" * 80, "set"),
        ([0, [1, object()]], "$[1][1]", "object"),
        (UserDict(a=1), "$", "UserDict"),
        ({1: "x"}, "$", "key of type int"),
        ([{None: 1}], "$[0]", "key of type NoneType"),
        ("\0", "$", "character U+0000 in a string"),
        (["é\ud800"], "$[0]", "character U+D800 in a string"),
        ({"a": {"\udfff": 1}}, "$.a", "character U+DFFF in a key"),
        (nested(MAX_DEPTH + 1), "$" + "[0]" * MAX_DEPTH, f"nested deeper than {MAX_DEPTH}"),
    ],
)
def test_what_is_not_json_is_refused_with_path_and_kind(bad: Any, path: str, kind: str) -> None:
    """A refusal says where the bad value is and what is wrong with it."""
    with pytest.raises(NotJson) as caught:
        copy_json(bad)
    assert (caught.value.path, caught.value.kind) == (path, kind)
    assert str(caught.value) == f"{path}: {kind}"


SIMILAR = st.recursive(
    st.sampled_from([0, 1, 1.0, True, False, None, "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)


@given(st.lists(json_values(), min_size=2, max_size=2) | st.lists(SIMILAR, min_size=2, max_size=2))
def test_same_json_compares_what_is_written(values: list[Any]) -> None:
    """Two values are the same when their text is, whatever the order of keys; copies are."""
    one, other = values
    texts = [json.dumps(value, sort_keys=True) for value in values]
    assert same_json(one, other) is (texts[0] == texts[1])
    assert same_json(one, clone_json(one))


def test_the_deepest_allowed_value_is_taken() -> None:
    """Depth is counted in containers: 64 of them are fine."""
    assert copy_json(nested(MAX_DEPTH)) == nested(MAX_DEPTH)


@pytest.mark.parametrize("size", [10, 1000])
def test_the_size_bound_counts_the_bytes_of_text(size: int) -> None:
    """Text counts by its UTF-8 bytes, whether ASCII or not, and keys count too."""
    for text in ("a" * 4 * size, "é" * 2 * size, "\U0001f600" * size):
        for value in (text, [text], {text: None}):
            copy_json(value, max_bytes=4 * size + 20)
            with pytest.raises(NotJson, match=f"larger than {4 * size} bytes"):
                copy_json(value, max_bytes=4 * size)


def test_many_small_values_are_bounded_too() -> None:
    """Numbers, constants and empty containers count, so that a million of them are refused."""
    values: list[Any] = [None, 0, 0.5, False, [], {}]
    for value in values:
        with pytest.raises(NotJson, match="larger"):
            copy_json([value] * MAX_BYTES)


def test_recursive_and_exploding_structures_are_refused_at_once() -> None:
    """A value that contains itself, or one small in memory but huge when copied, ends quickly."""
    ring: list[Any] = []
    ring.extend([ring, {"again": ring}])
    bomb: Any = "x"
    for _ in range(MAX_DEPTH - 1):
        bomb = [bomb, bomb]
    began = time.monotonic()
    with pytest.raises(NotJson, match="nested deeper"):
        copy_json(ring)
    with pytest.raises(NotJson, match="larger than"):
        copy_json(bomb)
    assert time.monotonic() - began < 10  # 2 ** 63 steps would not have ended at all


class Array:
    """Compares element by element, and has no truth."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        raise ValueError("which element?")


def test_what_is_compared_strangely_is_refused_like_anything_else() -> None:
    """A foreign value is looked at by its type alone: its own ``==`` is never called."""
    for bad, path in ((Array(), "$"), ([Array()], "$[0]"), ({"a": Array()}, "$.a")):
        with pytest.raises(NotJson) as caught:
            copy_json(bad)
        assert (caught.value.path, caught.value.kind) == (path, "Array")


def test_json_value_and_json_object_name_the_field() -> None:
    """Python-level callers get TypeError or ValueError that name the field they passed."""
    assert json_value([1], "checkpoint") == [1]
    assert json_object({"a": 1}, "args") == {"a": 1}
    with pytest.raises(ValueError, match=r"^checkpoint is not JSON: \$: complex$"):
        json_value(1j, "checkpoint")
    with pytest.raises(ValueError, match=r"^args is not JSON: \$\.a: larger than 12 bytes$"):
        json_object({"a": "xxxx"}, "args", max_bytes=12)
    with pytest.raises(TypeError, match=r"^args must be a JSON object \(a dict\), not list$"):
        json_object([], "args")


@given(st.text(st.characters(exclude_categories=[])))
def test_clean_text_can_always_be_stored(text: str) -> None:
    """Any text comes back of the same length, storable, changed only where it had to be."""
    cleaned = clean_text(text)
    cleaned.encode()
    assert "\0" not in cleaned
    assert len(cleaned) == len(text)
    for before, after in zip(text, cleaned, strict=True):
        assert after == ("\ufffd" if before == "\0" or "\ud800" <= before <= "\udfff" else before)


def test_shorten_says_that_it_cut() -> None:
    """Text within the limit is left alone; longer text ends in an ellipsis at the limit."""
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
    assert shorten("ab", 1) == "…"


@pytest.mark.parametrize("good", ["a", "bg_1", "thread é/1 \U0001f600", "x y", "a" * MAX_ID])
def test_ids_that_are_taken(good: str) -> None:
    """An id is any text of up to 200 characters that has no control characters or outer blanks."""
    assert check_id(good, "task_id") == good


def test_an_id_of_a_string_subclass_becomes_plain() -> None:
    """A str enum as an id is its value, also where ids are formatted into text."""
    got = check_id(Colour.RED, "task_id")
    assert type(got) is str
    assert f"{got}" == "red"


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (None, TypeError, "must be a string, not NoneType"),
        (1, TypeError, "must be a string, not int"),
        (b"a", TypeError, "must be a string, not bytes"),
        ("", ValueError, "cannot be empty"),
        (" \t\n", ValueError, "cannot be empty"),
        (" x", ValueError, "begins or ends with a blank"),
        ("x ", ValueError, "begins or ends with a blank"),
        ("\u3000x", ValueError, "begins or ends with a blank"),
        ("a" * (MAX_ID + 1), ValueError, "is longer than 200 characters"),
        ("a\0", ValueError, "contains a control character"),
        ("a\x7f", ValueError, "contains a control character"),
        ("é\x85", ValueError, "contains a control character"),
        ("a\u2028", ValueError, "contains a control character"),
        ("a\ud800", ValueError, "contains a control character"),
    ],
)
def test_ids_that_are_refused(bad: object, error: type[Exception], words: str) -> None:
    """A bad id is answered with one sentence that names the field."""
    with pytest.raises(error, match=f"^task_id {words}$"):
        check_id(bad, "task_id")


def test_new_ids_are_uuid7_unique_and_in_order() -> None:
    """A new id is a prefix and a version 7 uuid; ids of later milliseconds sort later."""
    ids = [new_id("bg_") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [i[:15] for i in ids] == sorted(i[:15] for i in ids)
    for one in ids:
        assert one.startswith("bg_")
        assert len(one) == 35
        assert one[3 + 12] == "7"
        assert one[3 + 16] in "89ab"
    assert abs(int(ids[0][3:15], 16) - time.time() * 1000) < 60_000


def test_a_forked_process_makes_ids_of_its_own() -> None:
    """A child that was forked never repeats the ids that its parent makes."""
    script = """
import os
import subprocess
import sys
import time
from trio_bgtasks._json import new_id

time.time_ns = lambda: 0
new_id("")
child = os.fork()
print(new_id("") + "\\n", end="", flush=True)
if child:
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 2
