"""Numbers and flags that are given, checked where they are given; errors name the field."""

from __future__ import annotations

import sys

_INT_MAX = (1 << 63) - 1  # what every store can hold


def check_seconds(value: object, field: str) -> float:
    """Return ``value`` if it is a number of seconds, 0 or more, that a float can hold.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, infinite or not a number, or beyond a float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{field} must be finite and not negative")
    return value


def check_period(value: object, field: str) -> float:
    """Return ``value`` if it is a number of seconds above 0; see `check_seconds`."""
    seconds = check_seconds(value, field)
    if seconds == 0:
        raise ValueError(f"{field} must be more than 0")
    return seconds


def check_int(value: object, field: str, *, least: int = -_INT_MAX) -> int:
    """Return ``value`` if it is an integer of 64 bits, ``least`` or more.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is too small or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an integer, not {type(value).__name__}")
    if not least <= value <= _INT_MAX:
        bound = f"at least {least}" if value < least else "within 64 bits"
        raise ValueError(f"{field} must be {bound}")
    return value


def check_bool(value: object, field: str) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{field} must be a boolean, not {type(value).__name__}")
    return value
