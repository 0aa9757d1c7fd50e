"""Kit for retention: histories in which files come, change and go, and catalogs compared row by row."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from kit_store import META, Primary, block, directory_put, fetch_all, read_tree
from replicad.db.catalog import MIGRATIONS, Catalog
from replicad.db.database import Database
from replicad.db.inventory import Inventory
from replicad.model.entry import Drop, Kind, Op, Put
from replicad.store.segments import segment_numbers
from replicad.system.disk import Disk
from replicad.work.archive import Archive, catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.compact import compact_segment
from replicad.work.expire import drop, purge_step
from replicad.work.rebuild import rebuild_catalog
from replicad.work.structure_check import check_structure

KINDS = ("snapshot", "entry", "file_block", "directory", "block", "expired", "orphan", "forgotten")
BLOCK_BYTES = 4096


def history_of(primary: Primary, choose: random.Random, count: int, *, first: int = 1, files: int = 12) -> None:
    """Snapshots of a few files, of which each writes, adds, renames or drops some; contents come back now and then."""
    for number in range(first, first + count):
        ops: list[Op] = [directory_put(b"")]
        for name in sorted(choose.sample(range(files), choose.randint(1, files // 2))):
            path = b"dir%d/f%d" % (name % 3, name)
            file = _file_at(primary, *path.split(b"/")) or number * 100 + name
            if choose.random() < 0.15:
                ops.append(Drop(path))
                continue
            if file < number * 100 and choose.random() < 0.2:  # a rename brings no blocks
                put = Put(b"moved/%d-%d" % (number, name), Kind.FILE, META, 3 * BLOCK_BYTES, file, BLOCK_BYTES)
                ops += [put, Drop(path)]
                continue
            texts = [f"{name} {choose.randint(0, 3)} {i} {number if choose.random() < 0.7 else 0}" for i in range(3)]
            data = [block(text, BLOCK_BYTES)[:BLOCK_BYTES] for text in texts]
            ids = primary.send(*data)
            ops.append(
                Put(path, Kind.FILE, META, 3 * BLOCK_BYTES, file, BLOCK_BYTES, 0, b"", 0, (0, 1, 2), b"".join(ids))
            )
        primary.record(*ops)
        primary.seal(number, complete=choose.random() < 0.8)
    primary.abort()  # the session ends


def _file_at(primary: Primary, directory: bytes, name: bytes) -> int | None:
    """The file that stands there now; a dropped one's number is never used again."""
    found: int | None = primary.archive.inventory.database.value(
        "SELECT e.file FROM entry e JOIN directory d ON d.id = e.directory WHERE d.name = ? AND e.name = ?"
        " AND e.died IS NULL",
        (directory, name),
    )
    return found


@contextmanager
def everything(newest: int, rows: Sequence[tuple[int, int | None]]) -> Iterator[Database]:
    """A catalog with this many snapshots, and with these (born, died) in both tables."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.db"
        Catalog(path).close()
        with closing(Database(path, MIGRATIONS)) as database:
            with database.transaction():
                for at in range(1, newest + 1):
                    line = (at, at, bytes([at]), at, at, 1, 0, 0, 0, 0, 0)
                    database.execute(f"INSERT INTO snapshot VALUES({','.join('?' * 11)})", line)
                for name, (born, died) in enumerate(rows):
                    entry = (1, b"%d" % name, born, died, 1, 0, 0, 0, 0, 0, 0, 0, 0, None)
                    database.execute(f"INSERT INTO entry VALUES({','.join('?' * 14)})", entry)
                    database.execute("INSERT INTO file_block VALUES(1, ?, ?, ?, x'00')", (name, born, died))
            yield database


def books(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of a catalog that say what the store holds."""
    with closing(Database(path, MIGRATIONS)) as database:
        return {kind: sorted(database.all(f"SELECT * FROM {kind}"), key=str) for kind in (*KINDS, "frame_copy")}


def rebuilt_books(store: Path, into: Path) -> dict[str, list[tuple[object, ...]]]:
    """The same of a catalog that is made from the segments alone."""
    into.unlink(missing_ok=True)
    rebuilt = rebuild_catalog(store, into=into)
    assert not rebuilt.damage and not rebuilt.torn
    return books(into)


def clean(store: Path) -> None:
    """Nothing is wrong with the structure of a store: its rows, its chain, its pages."""
    with closing(Inventory.open(catalog_path(store))) as inventory:
        found = check_structure(inventory)
        assert not (found.missing or found.pages or found.false), found


def everything_in(store: Path) -> dict[int, dict[bytes, tuple[Put, list[bytes | None]]]]:
    """Every snapshot that is kept, with the proven bytes of each block; None where one is lost."""
    with closing(ArchiveReader(store)) as reader:
        found = {}
        for line in reader.snapshots():
            tree = read_tree(reader, line.number)
            found[line.number] = {
                path: (put, fetch_all(reader, blocks.values())) for path, (put, blocks) in tree.items()
            }
        lost = [n for n, tree in found.items() for _, data in tree.values() if None in data]
        assert not lost, f"blocks are lost in snapshots {sorted(set(lost))}"
        return found


def let_go_and_compact(archive: Archive, numbers: Sequence[int]) -> None:
    """Drop snapshots, and give back at once whatever room they leave."""
    drop(archive, numbers)
    while purge_step(archive):
        pass
    marks = archive.begin_marking(10_000, 0)
    assert marks is not None
    for page in archive.inventory.file_blocks():
        marks.add(row.id for row in page)
    for number in segment_numbers(archive.store.directory):
        compact_segment(archive, Disk(), number, marks, ())
    archive.end_marking(marks)
