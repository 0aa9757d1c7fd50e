"""What letting snapshots go would free, held against what it does free."""

from __future__ import annotations

import random
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_retention import history_of, let_go_and_compact
from kit_store import META, Primary, block, directory_put, open_archive
from replicad.db.inventory import Inventory
from replicad.model.entry import Drop, Kind, Put
from replicad.store import store as store_module
from replicad.store.format import HEADER_BYTES
from replicad.store.segments import segment_numbers, segment_path
from replicad.work.archive import Archive, catalog_path
from replicad.work.expire import drop, purge_step
from replicad.work.room import Room, room

BLOCK_BYTES = 4096
FOREVER_NS = 1 << 62


def unused_bytes(store: Path) -> int:
    """What stands in the segments and no row names, counted without any filter."""
    with closing(Inventory.open(catalog_path(store))) as inventory:
        named = {row.id for page in inventory.file_blocks() for row in page}
        return sum(
            HEADER_BYTES + item.stored
            for number in segment_numbers(store)
            for item in inventory.expected(number, 0, FOREVER_NS)
            if item.id and item.id not in named
        )


def let_go(archive: Archive, numbers: list[int]) -> None:
    """Drop them, rows and all."""
    drop(archive, numbers)
    while purge_step(archive):
        pass


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.integers(1, 19), max_size=19), st.sets(st.integers(1, 19), max_size=6))
def test_whatever_goes_the_forecast_is_what_it_frees(seed: int, going: set[int], before: set[int]) -> None:
    """For any history, any snapshots that went before and any that go now: never more than what is unused afterwards,
    and no less than the filter may hide: twice its one block in sixteen, and a few where there are few."""
    directory = Path(tempfile.mkdtemp())
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_module, "SEGMENT_BYTES", 96 * 1024)
            store = directory / "ams1" / "www"
            archive = open_archive(store)
            history_of(Primary(archive), random.Random(seed), 20)
            let_go(archive, sorted(before))
            found = room(store, going - before, FOREVER_NS)
            again = room(store, frozenset(), FOREVER_NS)
            assert again.frees_bytes == 0 and again.unused_bytes == found.unused_bytes
            let_go(archive, sorted(going))
            real = unused_bytes(store)
            archive.close()
        hidden = 4 * (HEADER_BYTES + BLOCK_BYTES) + real / 8
        assert real - hidden <= found.unused_bytes + found.frees_bytes <= real
    finally:
        shutil.rmtree(directory)


def test_what_the_next_run_gives_back_is_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of segments that are full, old and empty enough; the one that is written to gives nothing."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 96 * 1024)
    store = tmp_path / "ams1" / "www"
    archive = open_archive(store)
    history_of(Primary(archive), random.Random(7), 40)
    going = list(range(1, 35))
    assert room(store, frozenset(going), 0).returns_bytes == 0, "none is old enough"
    found = room(store, frozenset(going), FOREVER_NS)
    assert 0 < found.returns_bytes <= found.frees_bytes + found.unused_bytes
    before = sum(segment_path(store, number).stat().st_size for number in segment_numbers(store))
    let_go_and_compact(archive, going)
    after = sum(segment_path(store, number).stat().st_size for number in segment_numbers(store))
    slack = len(segment_numbers(store)) * 8192  # pads, and what retention wrote
    assert found.returns_bytes - slack <= before - after <= found.frees_bytes + found.unused_bytes + slack
    archive.close()


def test_after_a_loss_of_records_nothing_is_foretold(tmp_path: Path) -> None:
    """Whatever looks unused, a record that is missing may have named it; and a run gives nothing back."""
    store = tmp_path / "ams1" / "www"
    archive = open_archive(store)
    history_of(Primary(archive), random.Random(7), 20)
    assert room(store, frozenset(range(1, 15)), FOREVER_NS).frees_bytes
    with archive.upkeep() as (_, catalog):
        catalog.database.execute("UPDATE snapshot SET lost = 1 WHERE number = 9")
    assert room(store, frozenset(range(1, 15)), FOREVER_NS) == Room(0, 0, 0)
    archive.close()


def test_a_deleted_file_counts_once_a_complete_snapshot_knows(tmp_path: Path) -> None:
    """Its blocks stay named until then, as a run leaves them; a rename frees nothing."""
    store = tmp_path / "ams1" / "www"
    archive = open_archive(store)
    primary = Primary(archive)

    def file(path: bytes, number: int, text: str) -> Put:
        name = primary.send(block(text, BLOCK_BYTES)[:BLOCK_BYTES])[0]
        return Put(path, Kind.FILE, META, BLOCK_BYTES, number, BLOCK_BYTES, 0, b"", 0, (0,), name)

    primary.record(directory_put(b""), file(b"deleted", 5, "deleted"), file(b"renamed", 6, "renamed"))
    primary.seal(1)
    primary.record(Drop(b"deleted"), Put(b"new name", Kind.FILE, META, BLOCK_BYTES, 6, BLOCK_BYTES), Drop(b"renamed"))
    primary.seal(2, complete=False)
    assert room(store, {1}, FOREVER_NS).frees_bytes == 0
    primary.seal(3)
    found = room(store, {1, 2}, FOREVER_NS)
    assert HEADER_BYTES < found.frees_bytes <= HEADER_BYTES + BLOCK_BYTES
    assert room(store, {2}, FOREVER_NS).frees_bytes == 0, "the first one shows it"
    primary.abort()
    let_go(archive, [1, 2])
    assert unused_bytes(store) == found.frees_bytes == room(store, frozenset(), FOREVER_NS).unused_bytes
    archive.close()
