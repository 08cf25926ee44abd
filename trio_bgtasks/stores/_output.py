"""The output log as arithmetic: which bytes are new, how they are cut, what a page shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .._records import OutputPage

_CHUNK = 32 << 10


def new_chunks(
    total: int, offset: int, text: str, keep_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of what an append at ``offset`` adds to a log of ``total`` bytes.

    What is stored already is passed over, so that a repeated append adds nothing; what could not be
    kept anyway is left out. Every piece ends between two characters and is small beside
    ``keep_bytes``, so that dropping whole pieces keeps the bound.
    """
    data = text.encode()
    start = max(0, total - offset, len(data) - keep_bytes)
    size = max(4, min(_CHUNK, keep_bytes // 4))
    start = _align(data, start)
    while start < len(data):
        end = min(start + size, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield offset + start, data[start:end]
        start = end


def output_page(
    chunks: Iterable[tuple[int, bytes]], offset: int, limit: int, *, total: int, kept: int
) -> OutputPage:
    """Cut a page out of ``chunks``: (offset, bytes) in order, the first one reaching ``offset``."""
    start = max(0, total + offset) if offset < 0 else min(offset, total)
    limit = max(limit, 4)  # one character at least, or a reader would never get on
    parts: list[bytes] = []
    first = end = start
    for at, data in chunks:
        if at + len(data) <= start:
            continue
        if parts and at != end:
            break  # a gap: what was dropped in between is not to be read as adjacent
        skip = _align(data, max(0, start - at)) if not parts else 0
        if not parts:
            first = end = at + skip
        piece = data[skip:]
        room = limit - (end - first)
        if len(piece) > room:
            piece = piece[: _align_down(piece, room)]
            parts.append(piece)
            end += len(piece)
            break
        parts.append(piece)
        end += len(piece)
    text = b"".join(parts).decode(errors="replace")
    if not parts:
        first = end = total if start >= total or kept == 0 else start
    return OutputPage(text, first, end, total, total - kept)


def _align(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at


def _align_down(data: bytes, at: int) -> int:
    while at > 0 and data[at] & 0xC0 == 0x80:
        at -= 1
    return at
