"""The output log as arithmetic: which bytes are new, how they are cut, what a page shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .._records import OutputPage

_CHUNK = 32 << 10


def new_chunks(total: int, offset: int, text: str, keep_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of what an append at ``offset`` adds to a log of ``total`` bytes.

    What is stored already is passed over, so that a repeated append adds nothing; what could not be
    kept anyway is left out. Every piece ends between two characters and is small beside
    ``keep_bytes``, so that dropping whole pieces keeps the bound.
    """
    data = text.encode()
    start = _align(data, max(0, total - offset))
    size = max(4, min(_CHUNK, keep_bytes // 4))
    while start < len(data):
        end = _align_down(data, start + size)
        if len(data) - end < keep_bytes:  # else what follows fills the log by itself
            yield offset + start, data[start:end]
        start = end


def output_page(
    chunks: Iterable[tuple[int, bytes]], offset: int, limit: int, *, total: int, kept: int
) -> OutputPage:
    """Cut a page out of ``chunks``: (offset, bytes) in order, the first one reaching ``offset``.

    Reading on at ``next_offset`` shows everything that is kept, once, and ends at ``total``.
    """
    start = max(0, total + offset) if offset < 0 else min(offset, total)
    room = max(limit, 4)  # one character at least, or a reader would never get on
    first = end = total  # when nothing from ``start`` on is kept
    parts: list[bytes] = []
    for at, data in chunks:
        if parts and (at != end or not room):
            break  # after a gap: what was dropped in between is not to be read as adjacent
        skip = _align(data, max(0, start - at)) if not parts else 0
        if skip >= len(data):
            continue
        if not parts:
            first = at + skip
        piece = data[skip : _align_down(data, skip + room)]
        parts.append(piece)
        room -= len(piece)
        end = at + skip + len(piece)
        if skip + len(piece) < len(data):
            break
    return OutputPage(b"".join(parts).decode(errors="replace"), first, end, total, total - kept)


def _align(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at


def _align_down(data: bytes, at: int) -> int:
    if at >= len(data):
        return len(data)
    for start in range(at, max(-1, at - 4), -1):  # a character has four bytes at most
        if data[start] & 0xC0 != 0x80:
            return start
    return at  # damaged text is cut anywhere, or a reader would never get on
