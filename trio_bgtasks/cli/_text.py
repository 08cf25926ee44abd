"""Text that is safe to show: nothing that a task said or was called can steer a terminal."""

from __future__ import annotations

import re
import time

# Escape sequences (CSI, OSC and the like, two-character ones), as programs write them for colour.
_SEQUENCE = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[ -/]*[0-Z\\\\`-~])"
)
# What is left of C0 and C1, and what is invisible or turns the direction of writing.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_WORDS = re.compile(r"[ \t\n\r\f\v\u2028\u2029]+")


def one_line(text: str) -> str:
    """Return ``text`` in one line that a terminal only prints."""
    return _UNSAFE.sub("\ufffd", _WORDS.sub(" ", _SEQUENCE.sub("", text)).strip())


def last_line(text: str) -> str:
    """Return the last line of ``text`` that is not blank, as a terminal would show it."""
    for line in reversed(re.split(r"[\r\n]+", text)):
        if shown := one_line(line):
            return shown
    return ""


def moment(at_ms: int | None) -> str:
    """Return a time of the epoch as local date and time."""
    if at_ms is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def span(seconds: float) -> str:
    """Return a length of time in two units at most: ``0.4s``, ``12s``, ``3m05s``, ``2h10m``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes == 0:
        return f"{whole}s"
    if hours == 0:
        return f"{minutes}m{whole % 60:02}s"
    if days == 0:
        return f"{hours}h{minutes % 60:02}m"
    return f"{days}d{hours % 24:02}h"


def size(count: int) -> str:
    """Return a number of bytes in a unit that keeps it short."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"
