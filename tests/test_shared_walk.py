"""A walk that a scout shares: it finds what one alone finds, and a scout that dies is an error, not an empty answer."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kit_source import KnownTree
from replicad.db.ledger import EntryRow, Ledger
from replicad.model.entry import Kind, Meta, Put
from replicad.model.errors import ReplicadError
from replicad.source import scan
from replicad.source.exclude import Excluded
from replicad.source.root import Root
from replicad.source.scan import SHARED_AT_ONCE, Comparer, DirectoryDiff, walk
from replicad.work.scout import Book
from replicad.work.scouts import Scouting, Scouts
from replicad.work.shared_walk import UNDER_WAY, SharedWalk

PATTERNS = ("*.tmp",)


@pytest_asyncio.fixture
async def scouts() -> AsyncIterator[Scouts]:
    """Scouts that are ended afterwards."""
    made = Scouts()
    yield made
    await made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Directories in directories, with some files in each."""
    source, root = random.Random(5), tmp_path / "www"
    for number in range(240):
        directory = root / f"d{number % 60:02d}" / ("" if number < 60 else f"e{number}")
        directory.mkdir(parents=True, exist_ok=True)
        for name in range(source.randrange(6)):
            (directory / f"f{name}").write_text(f"{name}")
    return root


@pytest.fixture
def ledger(tmp_path: Path, tree: Path) -> Iterator[Ledger]:
    """A ledger that knows the tree as it was, before some of everything was changed in it."""
    with closing(Ledger(tmp_path / "www.db")) as made:
        with Root(os.fsencode(tree)) as root:
            found = [item for diff in walk(root, KnownTree()) for item in diff.changed]
        made.begin()
        made.record_entries([EntryRow(_put(item, number), item.stamp, 1) for number, item in enumerate(found, 1)])
        made.commit()
        _change(tree)
        yield made


def _put(found: scan.Found, number: int) -> Put:
    stamp = found.stamp
    meta = Meta(stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns)
    if stamp.kind != Kind.FILE:
        return Put(found.path, Kind(stamp.kind), meta)
    return Put(found.path, Kind.FILE, meta, stamp.size, number, 65536)


def _change(tree: Path) -> None:
    for number in range(0, 60, 7):
        (tree / f"d{number:02d}" / "new").mkdir()
        (tree / f"d{number:02d}" / "new" / "file").write_text("new")
        (tree / f"d{number:02d}" / "left-out.tmp").write_text("new")
    for path in sorted(tree.glob("d*/e*/f1"))[::3]:
        path.write_text("another content")
    for path in sorted(tree.glob("d*/e*/f2"))[::3]:
        path.unlink()
    for path in sorted(tree.glob("d*/e*"))[::11]:
        shutil.rmtree(path)
        path.write_text("a file where a directory was")


class Counted(SharedWalk):
    """Counts what was given."""

    given = 0

    def give(self, directories: Sequence[bytes]) -> bool:
        """See SharedWalk."""
        taken = super().give(directories)
        self.given += len(directories) * taken
        return taken


def _told(diffs: Iterable[DirectoryDiff]) -> list[Any]:
    """All that a walk tells, in an order of its own."""
    diffs = list(diffs)
    changed = sorted((one.path, one.stamp, one.links, one.known) for diff in diffs for one in diff.changed)
    gone = sorted((one.path, one.stamp) for diff in diffs for one in diff.gone)
    troubles = sorted(one.path for diff in diffs for one in diff.troubles)
    sums = sum(diff.unchanged for diff in diffs), sum(diff.unchanged_bytes for diff in diffs)
    return [sorted(diff.path for diff in diffs), changed, gone, troubles, sums]


def _opened(pid: int, path: Path) -> int:
    """How often a process has a file open."""
    links = (entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir())
    return sum(link == path for link in links)


async def _shared(scout: Scouting, root: Root, ledger: Ledger) -> tuple[list[DirectoryDiff], int]:
    """A walk in a thread that shares with a scout; how many directories that had."""
    companion = Counted(scout, Book(str(ledger.path), PATTERNS, one_filesystem=True), asyncio.get_running_loop())
    walking = partial(walk, root, ledger, excluded=Excluded(PATTERNS), companion=companion)

    def walked() -> list[DirectoryDiff]:
        with companion:
            return list(walking())

    diffs = await asyncio.to_thread(walked)
    assert not companion.is_busy
    return diffs, companion.given


async def test_a_walk_that_is_shared_finds_what_one_alone_finds(scouts: Scouts, tree: Path, ledger: Ledger) -> None:
    """Every directory is compared once, by one of the two, and after the one that it stands in."""
    with Root(os.fsencode(tree)) as root:
        alone = _told(walk(root, ledger, excluded=Excluded(PATTERNS)))
        async with scouts.borrow(root, 3) as scout:
            diffs, given = await _shared(scout, root, ledger)
            assert _opened(scouts.pids[0], ledger.path) == 0, "it lets go of the ledger before the walk ends"
    assert _told(diffs) == alone and all(alone[:3])
    assert given >= UNDER_WAY * SHARED_AT_ONCE
    met: set[bytes] = {b""}
    for diff in diffs:
        assert diff.path.rpartition(b"/")[0] in met
        met.add(diff.path)


def test_what_differs_too_much_for_one_answer_is_left_to_the_walk(
    tree: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory whose diff comes in pieces is given back; whoever gave it walks it, and nothing is told twice."""
    monkeypatch.setattr(scan, "DIFF_ENTRIES", 4)
    for number in range(5):
        (tree / "d01" / f"new{number}").mkdir()
    with Root(os.fsencode(tree)) as root:
        comparer = Comparer(root, ledger, Excluded(PATTERNS), one_filesystem=True)
        compared = comparer.compare([b"d01", b"d03"])
        alone = _told(walk(root, ledger, excluded=Excluded(PATTERNS)))
        helped = _told(walk(root, ledger, excluded=Excluded(PATTERNS), companion=AtOnce(comparer)))
    assert compared.left == [b"d01"]
    assert [diff.path for diff in compared.diffs] == [b"d03"]
    assert not any(path.startswith(b"d01/") for path in compared.below)
    assert helped == alone


class AtOnce:
    """A companion that compares while it is asked."""

    def __init__(self, comparer: Comparer) -> None:
        self._comparer = comparer
        self._done: list[scan.Compared] = []

    @property
    def is_busy(self) -> bool:
        """See scan.Companion."""
        return bool(self._done)

    def give(self, directories: Sequence[bytes]) -> bool:
        """See scan.Companion."""
        self._done.append(self._comparer.compare(directories))
        return True

    def done(self, *, wait: bool) -> list[scan.Compared]:
        """See scan.Companion."""
        found, self._done = self._done, []
        return found


class Deadly(Counted):
    """Kills the scout as soon as it has something to do."""

    def __init__(self, pid: int, *rest: Any) -> None:
        super().__init__(*rest)
        self._pid, self._is_dead = pid, False

    def give(self, directories: Sequence[bytes]) -> bool:
        """See SharedWalk."""
        if not self.given:
            os.kill(self._pid, signal.SIGSTOP)  # so that it cannot have answered before it dies
        taken = super().give(directories)
        if self.given and len(self._asked) == UNDER_WAY and not self._is_dead:
            os.kill(self._pid, signal.SIGKILL)
            self._is_dead = True
        return taken


async def test_a_scout_that_dies_ends_the_walk(scouts: Scouts, tree: Path, ledger: Ledger) -> None:
    """What it was given is not taken for walked: the walk ends with an error."""
    with Root(os.fsencode(tree)) as root:
        async with scouts.borrow(root, 3) as scout:
            book = Book(str(ledger.path), PATTERNS, one_filesystem=True)
            companion = Deadly(scouts.pids[0], scout, book, asyncio.get_running_loop())
            with pytest.raises(ReplicadError, match="killed by signal 9"):
                await asyncio.to_thread(lambda: list(walk(root, ledger, companion=companion)))
