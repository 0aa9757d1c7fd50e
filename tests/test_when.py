"""Choosing a snapshot by name, number or time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.errors import UsageError
from replicad.model.when import choose_snapshot, parse_time, show_time, would_take_newer

S = 1_000_000_000


@dataclass(frozen=True)
class Line:
    """A snapshot as far as the choice is concerned."""

    number: int
    created_ns: int
    complete: bool = True
    unread: int = 0


def lines(text: str) -> list[Line]:
    """Of '1@10 2@20? 3@30': snapshot numbers with their second of creation, a question mark for partial ones."""
    result = []
    for word in text.split():
        number, second = word.rstrip("?").split("@")
        result.append(Line(int(number), int(second) * S, not word.endswith("?")))
    return result


@pytest.mark.parametrize(
    ("existing", "when", "number", "notice"),
    [
        ("1@10 2@20", "latest", 2, ""),
        ("1@10 2@20?", "latest", 1, "newer but partial snapshot 2"),
        ("1@10? 2@20?", "latest", 2, "snapshot 2 is partial"),
        ("1@10 2@20?", "2", 2, "snapshot 2 is partial"),
        ("1@10 2@20 3@30?", "1", 1, ""),
        ("1@10 2@20", "1970-01-01T00:00:20Z", 2, ""),
        ("1@10 2@20", "1970-01-01T00:00:19Z", 1, ""),
        ("1@10 2@20? 3@30", "1970-01-01T00:00:29Z", 1, "newer but partial snapshot 2"),
        ("1@10? 2@20", "1970-01-01T00:00:15Z", 1, "snapshot 1 is partial"),
        ("1@10 2@20", "1970-01-01T01:00:20+01:00", 2, ""),
        ("1@10 2@20", "1970-01-01t00:00:20z", 2, ""),
        ("1@10 2@20", "1970-01-01 00:00Z", 2, ""),
        ("1@10 2@20", "2999-01-01T00:00:00Z", 2, ""),
        ("1@10 2@100 3@20 4@21", "latest", 4, ""),
        ("1@10 2@100 3@20 4@21?", "latest", 3, "newer but partial snapshot 4"),
        ("1@10? 2@100? 3@20?", "latest", 3, "snapshot 3 is partial"),
        ("1@10 2@100 3@20 4@21", "1970-01-01T00:00:30Z", 4, ""),
        ("1@10 2@100 3@20 4@21", "1970-01-01T00:02:00Z", 2, "a newer snapshot 4 exists"),
    ],
)
def test_the_newest_complete_snapshot_at_or_before_the_moment_is_chosen(
    existing: str, when: str, number: int, notice: str
) -> None:
    """Partial snapshots are taken only where nothing complete is old enough, or by number; and never silently. The
    latest is the last that was made, also where a clock was ahead for a while."""
    line, said = choose_snapshot(lines(existing), when)
    assert line.number == number
    assert notice in said and bool(notice) == bool(said)


@pytest.mark.parametrize(
    ("when", "would"),
    [
        ("latest", True),
        ("1970-01-01T00:00:20Z", True),
        ("2999-01-01T00:00:00Z", True),
        ("1970-01-01T00:00:19Z", False),
        ("2", False),
    ],
)
def test_only_a_number_or_a_time_before_the_last_snapshot_leaves_no_room_for_a_newer_one(
    when: str, would: bool
) -> None:
    """So that nobody is told of one that may be lost who would not have got it."""
    assert would_take_newer(lines("1@10 2@20"), when) is would


def test_a_printed_time_finds_the_snapshot_that_was_printed() -> None:
    """Times are printed in whole seconds, so a time without a fraction covers its whole second."""
    line = Line(7, 1_700_000_000 * S + 999_999_999)
    assert choose_snapshot([line], show_time(line.created_ns))[0] is line


def test_a_fraction_of_a_second_is_taken_exactly() -> None:
    """With a fraction the moment is that moment."""
    line = Line(7, 10 * S + 500_000_000)
    assert choose_snapshot([line], "1970-01-01T00:00:10.5Z")[0] is line
    with pytest.raises(UsageError, match="no snapshot is as old"):
        choose_snapshot([line], "1970-01-01T00:00:10.4Z")


@pytest.mark.parametrize("when", ["9", "1970-01-01T00:00:01Z"])
def test_what_matches_nothing_is_an_error_that_lists_what_exists(when: str) -> None:
    """An unknown number and a time before the first snapshot name the snapshots there are, partial ones marked."""
    with pytest.raises(UsageError, match=r"1 \(1970-01-01T00:00:10Z\), 2 \(1970-01-01T00:00:20Z, partial\)"):
        choose_snapshot(lines("1@10 2@20?"), when)


def test_a_long_history_is_shortened_in_the_error() -> None:
    """The error stays readable with thousands of snapshots."""
    many = [Line(number, number * S) for number in range(1, 3000)]
    with pytest.raises(UsageError) as caught:
        choose_snapshot(many, "5000")
    assert len(str(caught.value)) < 600 and "1 (" in str(caught.value) and "2999 (" in str(caught.value)


@pytest.mark.parametrize(
    "when", ["", "yesterday", "2026-01-31", "2026-01-31T18:00:00", "2026-13-01T00:00:00Z", "-1", "1" * 40, "٣"]
)
def test_what_is_no_moment_is_refused_with_an_example(when: str) -> None:
    """A time needs its offset; nothing is guessed."""
    with pytest.raises(UsageError, match="2026-01-31T18:00:00Z"):
        choose_snapshot(lines("1@10"), when)


def test_a_partial_snapshot_says_how_many_entries_it_lacks() -> None:
    """The notice carries the number of entries that could not be copied."""
    assert "3 entries could not be copied" in choose_snapshot([Line(1, S, False, 3)])[1]


def test_without_any_snapshot_the_error_says_what_to_do() -> None:
    """A dataset that never completed a pass."""
    with pytest.raises(UsageError, match="sync --wait"):
        choose_snapshot([])


@given(st.integers(0, 200_000_000_000))
def test_printed_times_are_read_back(second: int) -> None:
    """`show_time` and `parse_time` are inverse to the second."""
    assert parse_time(show_time(second * S)) // S == second


@given(st.text(max_size=40))
def test_any_text_is_a_snapshot_or_a_usage_error(text: str) -> None:
    """Nothing else than UsageError comes out."""
    try:
        assert choose_snapshot(lines("1@10"), text)[0].number == 1
    except UsageError:
        pass
