"""The account of a record: equal from both books after every complete pass, and a difference is named."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit_rig import Replica, Rig, replica, rig
from kit_source import await_tick
from kit_tend import change_catalog
from kit_tree import build_tree
from replicad.model.entry import Op
from replicad.source.read import Access
from replicad.work import account_record
from replicad.work.account_record import (
    Narrowing,
    Sums,
    account_of_ledger,
    bucket_of_file,
    bucket_of_path,
    differing,
)
from replicad.work.archive_reader import ArchiveReader


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


def account_of_store(archive: Path) -> Sums:
    """What the replica computes."""
    sums = Sums()
    with closing(ArchiveReader(archive)) as reader:
        for ops in reader.record(reader.snapshots()[-1].number):
            sums.add(ops)
    return sums


async def both(primary: Rig, fra1: Replica, name: str = "fra1") -> tuple[Sums, Sums]:
    """The accounts of both sides."""
    standing = await primary.dataset.in_ledger(primary.dataset.ledger.standing, name)
    return await account_of_ledger(primary.dataset, standing.covered), account_of_store(fra1.archive)


async def listing(archive: Path) -> AsyncIterator[list[Op]]:
    with closing(ArchiveReader(archive)) as reader:
        for ops in reader.record(reader.snapshots()[-1].number):
            yield ops


async def named(primary: Rig, fra1: Replica, limit: int = 100) -> set[bytes]:
    """The paths in which the two books differ."""
    ours, theirs = await both(primary, fra1)
    parts = differing(ours.encoded(), theirs.encoded())
    standing = await primary.dataset.in_ledger(primary.dataset.ledger.standing, "fra1")
    narrowing = Narrowing(primary.dataset, standing.covered, parts, limit)
    return {one.path for one in await narrowing.run(listing(fra1.archive))}


@pytest.mark.parametrize("pieces", [(500, 4096), (1, 1)])
async def test_every_kind_of_entry_counts_alike_in_both_books(
    tmp_path: Path, root: Path, pieces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes, zeros, hard links, devices, attributes and odd names included, in however small pieces it is summed."""
    build_tree(root)
    monkeypatch.setattr(account_record, "PIECE_ENTRIES", pieces[0])
    monkeypatch.setattr(account_record, "PIECE_BLOCKS", pieces[1])
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        ours, theirs = await both(primary, fra1)
        assert ours.entries == theirs.entries > 60
        assert ours.encoded() == theirs.encoded() and len(set(theirs.encoded())) > 60


EDITS = [
    "new",
    "large",
    "rewrite",
    "grow",
    "cut",
    "zero",
    "drop",
    "rename",
    "link",
    "mode",
    "directory",
    "symlink",
    "punch",
]


class Editor:
    """Changes a small tree at random."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root, self._random, self._number = root, random.Random(seed), 0

    def edit(self) -> None:
        """One change."""
        self._number += 1
        files = sorted(p for p in self._root.rglob("*") if p.is_file() and not p.is_symlink())
        choice = self._random.choice(EDITS)
        path = self._root / self._random.choice(["", "d", "d/e"]) / f"{self._number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        old = self._random.choice(files) if files else None
        if choice == "new" or old is None:
            path.write_bytes(self._random.randbytes(self._random.choice([0, 10, 65536, 200_000])))
        elif choice == "large":
            path.write_bytes(self._random.randbytes(1_500_000))
        elif choice == "rewrite":
            self._write(old, self._random.randbytes(70_000))
        elif choice == "grow":
            with old.open("ab") as file:
                file.truncate(old.stat().st_size + 5_000_000)
        elif choice == "cut":
            os.truncate(old, old.stat().st_size // 2)
        elif choice == "zero":
            self._write(old, bytes(70_000))
        elif choice == "drop":
            old.unlink()
        elif choice == "rename":
            old.rename(path)
        elif choice == "link":
            os.link(old, path)
        elif choice == "mode":
            old.chmod(self._random.choice([0o600, 0o644]))
        elif choice == "directory":
            path.mkdir()
        elif choice == "symlink":
            path.symlink_to(self._random.choice(["a", "b"]))
        elif choice == "punch":
            with old.open("r+b") as file:
                file.truncate(max(0, old.stat().st_size - 65536))
                file.truncate(old.stat().st_size)

    def _write(self, path: Path, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(self._random.choice([0, 65536, 100_000]))
            file.write(data)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), steps=st.lists(st.integers(1, 6), min_size=1, max_size=5), lags=st.booleans())
def test_the_accounts_agree_after_every_complete_pass(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: list[int], lags: bool
) -> None:
    """Whatever was done to the tree, also on a second replica that was away for a while."""
    directory = tmp_path_factory.mktemp("account")
    root = directory / "www"
    root.mkdir()
    editor = Editor(root, seed)

    async def run() -> None:
        async with (
            rig(directory, root, ("fra1", "ber1"), max_change=1.0) as primary,
            replica(directory / "fra1") as fra1,
            replica(directory / "ber1") as ber1,
        ):
            for step, edits in enumerate(steps):
                for _ in range(edits):
                    editor.edit()
                await_tick()
                status = await primary.sync(fra1)
                assert status.pass_ok, status.troubles
                ours, theirs = await both(primary, fra1)
                assert (ours.entries, ours.encoded()) == (theirs.entries, theirs.encoded())
                if not lags or step == len(steps) - 1:
                    await primary.sync(ber1, "ber1")
                    ours, theirs = await both(primary, ber1, "ber1")
                    assert (ours.entries, ours.encoded()) == (theirs.entries, theirs.encoded())

    asyncio.run(run())


CHANGES = {
    b"d/file": "UPDATE entry SET mtime_ns = mtime_ns + 1 WHERE name = x'66696c65' AND died IS NULL",
    b"d/large": "UPDATE file_block SET id = randomblob(32) WHERE number = 77 AND died IS NULL",
    b"d/gone": "DELETE FROM entry WHERE name = x'676f6e65'",
    b"d/link": "UPDATE entry SET extra = (SELECT extra FROM entry WHERE name = x'6f74686572') WHERE name = x'6c696e6b'",
}


@pytest.mark.parametrize("path", sorted(CHANGES))
async def test_any_single_changed_row_is_named(tmp_path: Path, root: Path, path: bytes) -> None:
    """A time, a block, an entry that is missing, a symlink's target: exactly that path differs."""
    tree(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        assert await named(primary, fra1) == set()
        await fra1.close()
        change_catalog(fra1.archive, CHANGES[path])
        assert await named(primary, fra1) == {path}


async def test_what_only_the_replica_has_is_named(tmp_path: Path, root: Path) -> None:
    """An entry that the ledger lost is a difference as well; the number of paths named is bounded."""
    tree(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await primary.dataset.in_ledger(primary.dataset.ledger.drop, [b"d/file", b"d/link"], 1)
        assert await named(primary, fra1) == {b"d/file", b"d/link"}
        assert len(await named(primary, fra1, limit=1)) == 1


async def test_what_the_replica_was_not_told_yet_is_left_out(tmp_path: Path, root: Path) -> None:
    """Entries above what it has, and those with blocks that were read for the next snapshot; all else is compared."""
    tree(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        assert (await account_of_ledger(primary.dataset, 0)).lacking
        ledger = primary.dataset.ledger
        known = await primary.dataset.in_ledger(ledger.known, b"d/large")
        assert known
        rows = await primary.dataset.in_ledger(ledger.blocks, known.file, 70, 71)
        await primary.dataset.in_ledger(ledger.record_blocks, [rows[70]._replace(seq=2**62)])
        ours, theirs = await both(primary, fra1)
        assert ours.lacking == {bucket_of_path(b"d/large"), bucket_of_file(known.file)}
        assert differing(ours.encoded(), theirs.encoded()) <= ours.lacking


async def test_a_file_that_shrank_while_it_was_read_counts_alike(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is recorded, on both sides, with the bytes that were read."""
    tree(root)
    file = root / "d/file"

    def read(self: Access, fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == file.stat().st_ino and not offset:
            os.truncate(file, max(1, file.stat().st_size - 1000))
        return os.pread(fd, size, offset)

    monkeypatch.setattr(Access, "read", read)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        status = await primary.sync(fra1)
        assert status.fuzzy == 1
        ours, theirs = await both(primary, fra1)
        assert ours.encoded() == theirs.encoded()


def tree(root: Path) -> None:
    """A small tree."""
    (root / "d").mkdir()
    (root / "d/file").write_bytes(b"x" * 5000)
    (root / "d/gone").write_bytes(b"")
    (root / "d/large").write_bytes(random.Random(1).randbytes(6_000_000))
    (root / "d/link").symlink_to("somewhere")
    (root / "d/other").symlink_to("elsewhere")
