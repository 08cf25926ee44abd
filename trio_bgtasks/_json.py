"""What may be stored: one JSON profile for every store, and clean text and ids.

JSON here means: objects with string keys, lists, strings without lone surrogates or U+0000,
integers of 64 bits, finite floats, booleans and null, within a bound of size and depth. What is not
is refused where it is given (`NotJson`). Free text is never refused: `clean_text` replaces what
cannot be stored.
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

MAX_DEPTH = 64
MAX_BYTES = 1 << 20
MAX_ID = 200

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
# Seeded by the system, once a process: a system call for each id costs more than the rest of it.
_ids = random.Random()  # noqa: S311 - ids are unique, not secret
os.register_at_fork(after_in_child=_ids.seed)
_UUID7 = 0x7 << 76 | 0x2 << 62  # version 7, the variant of RFC 9562
_RANDOM_BITS = ~(0xF << 76 | 0x3 << 62)  # all but those two
# Lone surrogates cannot be encoded, U+0000 cannot be stored by every store.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class NotJson(ValueError):
    """A value is outside the JSON profile: ``path`` says where, ``kind`` what is wrong."""

    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.kind = kind
        super().__init__(f"{path}: {kind}")


def copy_json(value: object, *, max_bytes: int = MAX_BYTES) -> JsonValue:
    """Return a copy of ``value`` that shares nothing mutable with it, or raise `NotJson`.

    Tuples become lists; strings, numbers and objects of subclasses (enums) become plain ones. The
    size is that of the strings in UTF-8 and a few bytes for everything else, so it bounds the
    memory, whatever the encoding.
    """
    if value is None:
        return None
    kind = type(value)
    if kind is dict and not value:
        return {}  # most arguments, metadata and results: not worth a walk
    try:
        return _Copier(max_bytes).copy(value, 0)
    except _Bad as bad:
        raise NotJson("$" + "".join(reversed(bad.steps)), bad.kind) from None


def clone_json(value: Any) -> Any:
    """Return a copy of what `copy_json` returned before; nothing is checked again."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: clone_json(item) for key, item in value.items()} if value else {}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [clone_json(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def same_json(one: object, other: object) -> bool:
    """Tell whether two JSON values are the same: not as Python does, for which True is 1 is 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        ours, others = cast("JsonObject", one), cast("JsonObject", other)
        return ours.keys() == others.keys() and all(same_json(ours[k], others[k]) for k in ours)
    if isinstance(one, list):
        items, other_items = cast("list[object]", one), cast("list[object]", other)
        return len(items) == len(other_items) and all(map(same_json, items, other_items))
    return one == other


class _Bad(Exception):
    """Something is not JSON; every container on the way out adds its step of the path."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps: list[str] = []


class _Copier:
    """One walk over one value; counts what it has seen."""

    def __init__(self, budget: int) -> None:
        self._limit = budget
        self._left = budget

    def copy(self, value: object, depth: int) -> JsonValue:
        # Unbound methods of the plain types: a subclass's own __str__ or __int__ is not its value.
        if isinstance(value, str):
            return self._text(str.__str__(value), "string")
        self._take(8)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            number = int.__int__(value)
            if not _INT_MIN <= number <= _INT_MAX:
                raise _Bad("integer beyond 64 bits")
            return number
        if isinstance(value, float):
            if not math.isfinite(value):
                raise _Bad(f"float {float.__repr__(value)} is not finite")
            return float.__float__(value)
        if not isinstance(value, dict | list | tuple):
            raise _Bad(type(value).__name__)
        if depth == MAX_DEPTH:
            raise _Bad(f"nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            return self._object(cast("dict[object, object]", value), depth)
        return self._array(cast("Sequence[object]", value), depth)

    def _object(self, value: dict[object, object], depth: int) -> JsonObject:
        copied: JsonObject = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _Bad(f"key of type {type(key).__name__}")
            name = self._text(str.__str__(key), "key")
            try:
                copied[name] = self.copy(item, depth + 1)
            except _Bad as bad:
                bad.steps.append(f".{name[:80]}" if name.isidentifier() else f"[{name[:80]!a}]")
                raise
        return copied

    def _array(self, value: Sequence[object], depth: int) -> list[JsonValue]:
        copied: list[JsonValue] = []
        try:
            for item in value:
                copied.append(self.copy(item, depth + 1))  # noqa: PERF401 - its length is the path
        except _Bad as bad:
            bad.steps.append(f"[{len(copied)}]")
            raise
        return copied

    def _text(self, text: str, kind: str) -> str:
        self._take(len(text) + 2)
        if not text.isascii() or "\x00" in text:
            bad = _UNSTORABLE.search(text)
            if bad is not None:
                raise _Bad(f"character U+{ord(bad.group()):04X} in a {kind}")
            self._take(len(text.encode()) - len(text))
        return text

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Bad(f"larger than {self._limit} bytes")


def json_object(value: object, field: str, *, max_bytes: int = MAX_BYTES) -> JsonObject:
    """Return a private copy of a JSON object; TypeError or ValueError names ``field``."""
    if not isinstance(value, dict):
        raise TypeError(f"{field} must be a JSON object (a dict), not {type(value).__name__}")
    return cast("JsonObject", json_value(cast("object", value), field, max_bytes=max_bytes))


def json_value(value: object, field: str, *, max_bytes: int = MAX_BYTES) -> JsonValue:
    """Return a private copy of a JSON value; ValueError names ``field``, path and kind."""
    try:
        return copy_json(value, max_bytes=max_bytes)
    except NotJson as error:
        raise ValueError(f"{field} is not JSON: {error}") from None


def clean_text(text: str) -> str:
    """Return ``text`` with every character that cannot be stored replaced by U+FFFD."""
    if text.isascii() and "\x00" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text)


def shorten(text: str, limit: int) -> str:
    """Return ``text`` cut to ``limit`` >= 1 characters, the last an ellipsis when it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_id(value: object, field: str) -> str:
    """Return ``value`` if it may be an id: 1 to 200 characters, none of them a control character.

    It neither begins nor ends with a blank: surfaces trim what they are asked for.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty or blank, too long, or holds a control character or outer blanks.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, not {type(value).__name__}")
    stripped = value.strip()
    if not stripped:
        raise ValueError(f"{field} cannot be empty")
    if len(value) > MAX_ID:
        raise ValueError(f"{field} is longer than {MAX_ID} characters")
    if not (value.isascii() and value.isprintable()) and _CONTROL.search(value):
        raise ValueError(f"{field} contains a control character")
    if len(stripped) != len(value):
        raise ValueError(f"{field} begins or ends with a blank")
    return str.__str__(value)


def new_id(prefix: str) -> str:
    """Return ``prefix`` and a uuid7 in hex: unique; to the millisecond, in order of creation."""
    millis = time.time_ns() // 1_000_000
    return f"{prefix}{millis << 80 | _ids.getrandbits(80) & _RANDOM_BITS | _UUID7:032x}"
