"""Refusals: what strangers do is told, and they cannot make it many lines."""

from __future__ import annotations

import pytest

from kit_link import wait_for
from replicad.link import refusals
from replicad.link.refusals import MAX_PEERS, Refusals
from replicad.model.errors import RefusedError, ReplicadError


def refused(where: str, what: str = "no") -> RefusedError:
    return RefusedError(what, where=where, hint="let it in")


async def test_the_first_is_told_at_once_and_the_others_as_one() -> None:
    """With their number, the last reason, and what to do; then all begins anew."""
    told: list[ReplicadError] = []
    book = Refusals(told.append)
    for number in range(5):
        book.tell("a", refused("a", f"reason {number}"))
    book.tell("b", refused("b"))
    assert [(one.where, one.what) for one in told] == [("a", "reason 0"), ("b", "no")]
    book.flush()
    assert (told[2].where, told[2].hint) == ("a", "let it in") and len(told) == 3
    assert "4 more" in told[2].what and "reason 4" in told[2].what
    book.tell("a", refused("a", "again"))
    assert told[3].what == "again"
    book.flush()
    book.flush()
    assert len(told) == 4


async def test_what_was_counted_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for it."""
    monkeypatch.setattr(refusals, "FOLD_S", 0.01)
    told: list[ReplicadError] = []
    book = Refusals(told.append)
    for _ in range(3):
        book.tell("a", refused("a"))
    await wait_for(lambda: len(told) == 2)
    assert "2 more" in told[1].what


async def test_any_number_of_addresses_is_a_bounded_number_of_lines() -> None:
    """Beyond a limit what all of them do is one peer's; a peer that has a line keeps it."""
    told: list[ReplicadError] = []
    book = Refusals(told.append)
    for number in range(10 * MAX_PEERS):
        book.tell(f"host {number}", refused(f"host {number}"))
    book.tell("host 0", refused("host 0"))
    assert len(told) == MAX_PEERS + 1
    book.flush()
    assert [one.where for one in told[MAX_PEERS + 1 :]] == ["host 0", refusals.OTHERS]
    assert f"{9 * MAX_PEERS - 1} more" in told[-1].what
