"""A primary's scrub where very much is wrong at once, or where bad bytes cannot be kept aside."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from kit_scrub_primary import scrubbed
from replicad.db import findings as findings_module
from replicad.db.findings import Findings
from replicad.model.divergence import Side, State, block_key, block_of_key, metadata_key
from replicad.work.scrub_book import tally
from replicad.work.scrub_primary import MAX_DOUBTS, Tally

BLOCK = 65536
COUNT = 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    (path / "a").write_bytes(random.Random(1).randbytes(COUNT * BLOCK))
    return path


async def test_all_findings_end_with_their_cause_also_those_that_no_list_has_room_for(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than one question gives are settled in one round, and none is looked for in a list of all."""
    async with scrubbed(tmp_path, root) as made:
        for number in range(COUNT):
            made.disk.flip(root / "a", number * BLOCK + 5)
        await made.scrub()
        assert len(await made.found()) == COUNT
        made.disk.heal()
        made.clock.advance(3600)
        real, asked = Findings.listed, list[object]()

        def listed(self: Findings, **which: Any) -> object:
            asked.append(which)
            return real(self, **which)

        monkeypatch.setattr(findings_module, "MAX_LISTED", 3)
        monkeypatch.setattr(Findings, "listed", listed)
        book = made.primary.dataset.findings
        counted = await made.primary.dataset.in_findings(tally, book, Side.PRIMARY, None)
        assert counted.divergent == {"inconclusive": COUNT} and not asked, "counted, not listed"
        assert counted.oldest_open_ns == 0 < counted.oldest_inconclusive_ns
        await made.scrub()
        monkeypatch.undo()
        assert await made.found() == []
        assert {one.state for one in await made.found(None)} == {State.GONE}
        assert len(asked) <= 2


async def test_a_finding_is_told_though_its_bytes_cannot_be_kept(tmp_path: Path, root: Path) -> None:
    """Whatever is wrong with the place where bad bytes are kept: here a file stands in its way."""
    async with scrubbed(tmp_path, root) as made:
        directory = made.primary.dataset.quarantine.directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.write_bytes(b"in the way")
        made.disk.flip(root / "a", 5)
        await made.scrub()
        (found,) = await made.found()
        assert not found.quarantine and "could not be kept aside" in found.events[-1].what


async def test_what_a_target_refuses_is_unreadable(tmp_path: Path, root: Path) -> None:
    """EREMOTEIO is what the kernel says where a disk reports an error of its own: its neighbours are verified."""
    async with scrubbed(tmp_path, root) as made:
        made.disk.error = errno.EREMOTEIO
        made.disk.fail(root / "a", 3 * BLOCK)
        await made.scrub()
        assert [one.number for one in await made.found()] == [3]


def test_a_block_is_known_by_its_key() -> None:
    """And nothing else is taken for one."""
    assert block_of_key(block_key(7, 12)) == (7, 12)
    assert block_of_key(metadata_key(b"a:b")) is None
    assert block_of_key("book:ledger") is None and block_of_key("block:00ff") is None


def test_doubts_are_counted_not_kept() -> None:
    """A subtree that cannot be read may have a million files."""
    tally = Tally()
    for number in range(1000):
        tally.doubt(b"%d" % number, "Stale file handle")
    assert len(tally.doubts) == MAX_DOUBTS
    found = tally.verified()
    assert len(found.doubts) + found.more_doubts == 1000
