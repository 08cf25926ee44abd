"""What may be stored: one JSON profile for every store, and clean text and ids.

JSON here means: objects with string keys, lists, strings without lone surrogates or U+0000,
integers of 64 bits, finite floats, booleans and null, within a bound of size and depth. What is not
is refused where it is given (`NotJson`). Free text is never refused: `clean_text` replaces what
cannot be stored.
"""

from __future__ import annotations

import math
import os
import re
import time
from typing import TypeAlias, cast

JsonValue: TypeAlias = (
    "None | bool | int | float | str | list[JsonValue] | dict[str, JsonValue]"
)
JsonObject: TypeAlias = dict[str, JsonValue]

MAX_DEPTH = 64
MAX_BYTES = 1 << 20
MAX_ID = 200

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
# Lone surrogates cannot be encoded, U+0000 cannot be stored by every store.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PLAIN = frozenset({bool, type(None)})


class NotJson(ValueError):
    """A value is outside the JSON profile: ``path`` says where, ``kind`` what is wrong."""

    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.kind = kind
        super().__init__(f"{path}: {kind}")


def copy_json(value: object, *, max_bytes: int = MAX_BYTES) -> JsonValue:
    """Return a copy of ``value`` that shares nothing mutable with it, or raise `NotJson`.

    The size counted is that of the strings and scalars, a lower bound of the encoded text that no
    encoding can dodge: it is what bounds memory here.
    """
    kind = type(value)
    if kind in _PLAIN:
        return cast("JsonValue", value)
    return _Copier(max_bytes).copy(value, "$", 0)


class _Copier:
    """One walk over one value; counts what it has seen."""

    def __init__(self, budget: int) -> None:
        self._limit = budget
        self._left = budget

    def copy(self, value: object, path: str, depth: int) -> JsonValue:
        kind = type(value)
        if kind is str:
            return self._text(cast("str", value), path)
        if kind in _PLAIN:
            self._take(4, path)
            return cast("JsonValue", value)
        if kind is int:
            self._take(8, path)
            if not _INT_MIN <= cast("int", value) <= _INT_MAX:
                raise NotJson(path, "integer beyond 64 bits")
            return cast("int", value)
        if kind is float:
            self._take(8, path)
            if not math.isfinite(cast("float", value)):
                raise NotJson(path, f"float {value!r} is not finite")
            return cast("float", value)
        if isinstance(value, dict):
            return self._object(cast("dict[object, object]", value), path, depth)
        if isinstance(value, (list, tuple)):
            self._enter(path, depth)
            items = cast("list[object]", value)
            return [self.copy(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
        return self._subclass(value, path, depth)

    def _object(self, value: dict[object, object], path: str, depth: int) -> JsonValue:
        self._enter(path, depth)
        copied: JsonObject = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise NotJson(path, f"key of type {type(key).__name__}")
            name = self._text(str(key), f"{path} (key)")
            copied[name] = self.copy(item, f"{path}.{name[:80]}", depth + 1)
        return copied

    def _subclass(self, value: object, path: str, depth: int) -> JsonValue:
        # str, int and float subclasses (enums) become what they are as plain values.
        for base in (str, int, float):
            if isinstance(value, base):
                return self.copy(base.__call__(value), path, depth)
        raise NotJson(path, type(value).__name__)

    def _enter(self, path: str, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise NotJson(path[:200], f"nested deeper than {MAX_DEPTH}")
        self._take(2, path)

    def _text(self, text: str, path: str) -> str:
        self._take(len(text) + 2, path)
        if not text.isascii() or "\x00" in text:
            bad = _UNSTORABLE.search(text)
            if bad is not None:
                raise NotJson(path, f"character U+{ord(bad.group()):04X} in a string")
        return text

    def _take(self, size: int, path: str) -> None:
        self._left -= size
        if self._left < 0:
            raise NotJson(path[:200], f"larger than {self._limit} bytes")


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
    """Return ``text`` cut to ``limit`` characters, the last one an ellipsis when it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_id(value: object, field: str) -> str:
    """Return ``value`` if it may be an id: 1 to 200 characters, none of them a control character.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty or blank, too long, or holds a control character.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{field} cannot be empty")
    if len(value) > MAX_ID:
        raise ValueError(f"{field} is longer than {MAX_ID} characters")
    if not (value.isascii() and value.isprintable()) and _CONTROL.search(value):
        raise ValueError(f"{field} contains a control character")
    return value


def new_id(prefix: str) -> str:
    """Return ``prefix`` and a uuid7 in hex: unique, and in order of creation by text."""
    millis = time.time_ns() // 1_000_000
    bits = (millis & ((1 << 48) - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    bits = bits & ~(0xF << 76) | 0x7 << 76  # version 7
    bits = bits & ~(0x3 << 62) | 0x2 << 62  # the RFC 9562 variant
    return f"{prefix}{bits:032x}"
