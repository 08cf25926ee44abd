"""The arithmetic of the output log, against a log that is just the bytes with their offsets."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bgtasks._records import OutputPage
from trio_bgtasks.stores._output import new_chunks, output_page

# One, two, three and four bytes a character.
text = st.text(st.sampled_from("ab\né€\U0001f600"), max_size=30)
keeps = st.integers(0, 80) | st.just(1 << 20)
offsets = st.integers(-130, 130)
limits = st.integers(-1, 40) | st.just(1 << 20)


@attrs.define
class Log:
    """A log as a store keeps it, and beside it everything that was ever appended."""

    keep: int = 1 << 20
    chunks: list[tuple[int, bytes]] = attrs.field(factory=list[tuple[int, bytes]])
    total: int = 0
    said: dict[int, str] = attrs.field(factory=dict[int, str])

    def append(self, offset: int, text: str) -> None:
        """Do what a store does with an append."""
        self.chunks += new_chunks(self.total, offset, text, self.keep)
        while self.kept > self.keep:
            self.chunks.pop(0)
        if text:
            self.total = max(self.total, offset + len(text.encode()))
        for character in text:
            self.said.setdefault(offset, character)
            offset += len(character.encode())

    def after(self, offset: int, text: str) -> Log:
        """Return the log itself, with one more append."""
        self.append(offset, text)
        return self

    @property
    def kept(self) -> int:
        return sum(len(data) for _, data in self.chunks)

    @property
    def retained(self) -> list[tuple[int, str]]:
        """Return every kept character with its offset."""
        characters: list[tuple[int, str]] = []
        for at, data in self.chunks:
            for character in data.decode():
                characters.append((at, character))
                at += len(character.encode())  # noqa: PLW2901
        return characters

    def page(self, offset: int = 0, limit: int = 1 << 20) -> OutputPage:
        return output_page(self.chunks, offset, limit, total=self.total, kept=self.kept)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Draw a log that grew piece by piece, with gaps where output was given up before."""
    log = Log(draw(keeps))
    for gap, piece in draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 7]), text), max_size=8)):
        log.append(log.total + gap, piece)
    return log


def with_offsets(page: OutputPage) -> list[tuple[int, str]]:
    """Return the characters of a page with the offsets that the page gives them."""
    characters: list[tuple[int, str]] = []
    at = page.offset
    for character in page.text:
        characters.append((at, character))
        at += len(character.encode())
    return characters


@given(logs(), offsets, limits)
@example(Log(2, [(0, b"a")], 5), 1, 4)
def test_reading_on_shows_everything_that_is_kept_exactly_once(
    log: Log, offset: int, limit: int
) -> None:
    """Pages read one after the other are the kept text from there on, and end at the total."""
    page = log.page(offset, limit)
    seen = with_offsets(page)
    for _ in range(len(log.retained) + 2):
        if page.next_offset == log.total:
            break
        assert page.text  # or a reader that stops at an empty page would miss the rest
        page = log.page(page.next_offset, limit)
        seen += with_offsets(page)
    assert page.next_offset == log.total
    start = log.total + offset if offset < 0 else offset
    assert seen == [(at, character) for at, character in log.retained if at >= start]


@given(logs(), offsets, limits)
def test_a_page_is_consistent_in_itself(log: Log, offset: int, limit: int) -> None:
    """A page's text has as many bytes as its offsets say, within the limit and without a gap."""
    page = log.page(offset, limit)
    assert page.next_offset - page.offset == len(page.text.encode()) <= max(limit, 4)
    assert (page.total_bytes, page.dropped_bytes) == (log.total, log.total - log.kept)
    start = log.total + offset if offset < 0 else offset
    assert min(max(start, 0), log.total) <= page.offset <= page.next_offset <= log.total
    assert all(log.said[at] == character for at, character in with_offsets(page))


@given(logs(), st.integers(0, 60), text)
def test_an_append_that_is_stored_already_changes_nothing(log: Log, back: int, more: str) -> None:
    """Any part of the log appended again, with or without new text after it, adds only that."""
    log.append(log.total, more)
    before, retained = attrs.asdict(log), log.retained
    starts = [at for at in log.said if at >= log.total - back]
    for start in starts:
        at, again = start, ""
        while at in log.said:  # up to a gap
            again += log.said[at]
            at += len(log.said[at].encode())
        log.append(start, again)
        assert attrs.asdict(log) == before
    if starts:
        start, again = starts[-1], log.said[starts[-1]]
        log.append(start, again + "new")
        assert log.total == before["total"] + 3
        assert log.keep < 3 or log.retained[-3:] == [
            (before["total"] + i, character) for i, character in enumerate("new")
        ]
        assert set(log.retained) - set(retained) <= set(
            zip(range(before["total"], log.total), "new", strict=True)
        )


@given(logs())
@example(Log(1, [(0, b"a")], 1, {0: "a"}).after(1, "é"))
@example(Log(9, [(0, b"a")], 1, {0: "a"}).after(1, "é" * 5))
def test_the_newest_is_kept_within_the_bound(log: Log) -> None:
    """Never more than the bound is kept; what is kept is the newest, nearly as much as allowed."""
    assert log.kept <= log.keep
    said = sorted(log.said.items())
    retained = log.retained
    assert retained == said[len(said) - len(retained) :]
    if len(retained) < len(said):
        assert log.kept > log.keep - max(4, log.keep // 4) - 4


@pytest.mark.parametrize(
    ("keep", "largest"), [(8 << 20, 32 << 10), (100, 25), (16, 4), (3, 4), (0, 4)]
)
def test_chunks_are_small_beside_the_bound(keep: int, largest: int) -> None:
    """A chunk is a quarter of the bound at most, 32 KiB at most, or one character.

    Of an append that is larger than the bound, hardly more is yielded than can be kept.
    """
    chunks = [data for _, data in new_chunks(0, 0, "a€" * 100_000, keep)]
    assert all(0 < len(data) <= largest for data in chunks)
    assert sum(map(len, chunks)) < keep + largest


def test_what_was_given_up_before_it_was_stored_counts_as_dropped() -> None:
    """A gap is no text, and the text after it is not read as if it followed directly."""
    log = Log()
    log.append(0, "abc")
    log.append(10, "xyz")
    assert log.page() == OutputPage("abc", 0, 3, 13, 7)
    assert log.page(3) == OutputPage("xyz", 10, 13, 13, 7)
    assert log.page(5) == OutputPage("xyz", 10, 13, 13, 7)


def test_a_page_from_the_end() -> None:
    """A negative offset counts bytes from the end; a cut character is left out, not cut."""
    log = Log()
    log.append(0, "abcé€")
    assert log.page(-3) == OutputPage("€", 5, 8, 8, 0)
    assert log.page(-4) == OutputPage("€", 5, 8, 8, 0)
    assert log.page(-5) == OutputPage("é€", 3, 8, 8, 0)
    assert log.page(-1) == OutputPage("", 8, 8, 8, 0)
    assert log.page(-99) == OutputPage("abcé€", 0, 8, 8, 0)
    assert log.page(99) == OutputPage("", 8, 8, 8, 0)


def test_an_empty_log_has_one_empty_page() -> None:
    """Where there is nothing, a page says so, whatever was asked for."""
    for offset in (-5, 0, 5):
        assert Log().page(offset) == OutputPage("", 0, 0, 0, 0)


@pytest.mark.parametrize(
    "damage", [b"\xa9" * 40, b"ab\xa9\xa9\xa9\xa9\xa9\xa9\xa9\xa9", b"\xff\xff"]
)
def test_a_damaged_log_is_read_to_its_end(damage: bytes) -> None:
    """Bytes that are no text are replaced or passed over; a reader always gets on."""
    chunks = [(0, b"good"), (4, damage), (4 + len(damage), b"more")]
    total = 8 + len(damage)
    offset, seen, pages = 0, "", 0
    while offset < total:
        page = output_page(chunks, offset, 5, total=total, kept=total)
        assert page.next_offset > offset
        offset, seen, pages = page.next_offset, seen + page.text, pages + 1
    assert seen.startswith("good")
    assert seen.endswith("more")
