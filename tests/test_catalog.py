"""The catalog: every snapshot stays what it was, whatever is put, mapped and dropped after it."""

from __future__ import annotations

import itertools
import os
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_store import META, Model, Tree, bare, blocks_of, directory_put, file_put, flip, groups
from replicad.db.catalog import CACHED_DIRECTORIES, LOOKUP_ROWS, MIGRATIONS, BlockPlace, Catalog
from replicad.db.database import LOG_BYTES, Database
from replicad.db.entries import BATCH_BYTES, BATCH_OPS
from replicad.db.listing import Listing
from replicad.db.paths import DEEP, PAGE_ROWS
from replicad.model.entry import INLINE_BLOCKS, MAP_BLOCKS, Drop, Kind, Map, Meta, Op, Put, encode_ops
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.glob import compile_globs
from replicad.model.position import Position
from replicad.model.snapshot import NO_PARENT, Commit, Head

UUID = bytes(16)
EVERYTHING = compile_globs([])


def ident(number: int) -> bytes:
    """Some block's id."""
    return number.to_bytes(32, "big")


def commit(catalog: Catalog, number: int) -> None:
    """Make what was applied a snapshot."""
    line = Commit(number, number * 10, True, NO_PARENT, 0, bytes(32), 1, 2, 3)
    catalog.commit(line, ident(number), received_ns=number * 100, checkpoint=Position(1, number))


def tree_of(path: Path, number: int, globs: Sequence[bytes] = ()) -> Tree:
    """A snapshot as a dict, in the order told."""
    listing = Listing(path)
    found = listing.find(number)
    assert found is not None
    tree: Tree = {}
    last: Put | None = None
    for op in itertools.chain.from_iterable(listing.operations(found.ordinal, compile_globs(globs))):
        if isinstance(op, Put):
            assert op.path not in tree
            last, tree[op.path] = op, (bare(op), {})
        assert last and not isinstance(op, Drop) and op.file == last.file
        tree[last.path][1].update(blocks_of(op))
    listing.close()
    return tree


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the catalog is."""
    return tmp_path / "catalog.db"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    """A new catalog."""
    made = Catalog(path)
    made.set_owner(UUID, "ams1", "www")
    yield made
    made.close()


changes = groups([ident(number) for number in range(1, 6)])
sessions = st.lists(
    st.tuples(st.booleans(), st.lists(st.lists(changes, max_size=4), max_size=3)), min_size=1, max_size=5
)


@settings(max_examples=250, deadline=None)
@given(sessions)
def test_every_snapshot_equals_a_dict(history: list[tuple[bool, list[list[list[Op]]]]]) -> None:
    """Random puts, maps and drops over several snapshots, some aborted, are what a plain dict says, in tree order."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "catalog.db"
        catalog, model, expected = Catalog(path), Model(), {}
        for number, (sealed, records) in enumerate(history, 1):
            trial = Model()
            trial.entries, trial.files = dict(model.entries), {k: dict(v) for k, v in model.files.items()}
            current: Put | None = None
            for record in records:
                ops = [op for group in record for op in group]
                for cut in (ops[: len(ops) // 2], ops[len(ops) // 2 :]):  # maps may begin a record
                    current = catalog.apply(cut, current)
                for op in ops:
                    trial.apply(op)
            if sealed:
                commit(catalog, number * 3)
                model = trial
                expected[number * 3] = model.tree()
            else:
                catalog.rollback()
        catalog.close()
        for number, tree in expected.items():
            found = tree_of(path, number)
            assert found == tree
            assert list(found) == list(tree)


def test_snapshots_and_checkpoint(catalog: Catalog, path: Path) -> None:
    """What a commit says comes back, numbers may skip, and the checkpoint and head survive a new start."""
    assert catalog.head == Head() and catalog.checkpoint == Position()
    for number in (1, 5, 7):
        catalog.apply([directory_put(b"")])
        commit(catalog, number)
    catalog.keep(Position(2, 8192, 7, b"d" * 16))
    catalog.close()
    again = Catalog(path)
    assert again.head == Head(7, ident(7)) and again.checkpoint == Position(2, 8192, 7, b"d" * 16)
    assert again.owner == (UUID, "ams1", "www") and again.verify() == []
    again.close()
    listing = Listing(path)
    assert [(row.number, row.created_ns, row.received_ns, row.complete) for row in listing.snapshots()] == [
        (1, 10, 100, True),
        (5, 50, 500, True),
        (7, 70, 700, True),
    ]
    assert listing.find(6) is None
    listing.close()


def test_uncommitted_is_unseen(catalog: Catalog, path: Path) -> None:
    """A reader beside the writer sees the last commit and nothing of what is under way; a rollback leaves no trace."""
    catalog.apply([directory_put(b""), file_put(b"a", 1, {0: ident(1)})])
    commit(catalog, 1)
    listing = Listing(path)
    catalog.add_blocks([BlockPlace(ident(9), 1, 0, 1, 1)])
    catalog.apply([Drop(b"a"), file_put(b"deep/er/b", 2, {0: ident(9)})])
    ops = list(itertools.chain.from_iterable(listing.operations(1, EVERYTHING)))
    assert [op.path for op in ops if isinstance(op, Put)] == [b"", b"a"]
    assert listing.places([ident(9)]) == {} and catalog.known([ident(9)]) == {ident(9)}
    listing.close()
    catalog.rollback()
    assert catalog.known([ident(9)]) == set()
    catalog.apply([file_put(b"deep/er/c", 3, {0: ident(3)})])
    commit(catalog, 2)
    assert list(tree_of(path, 2)) == [b"", b"a", b"deep/er/c"]


def test_lookups_of_any_number(catalog: Catalog, path: Path) -> None:
    """Blocks are found whatever their number is, and the later of two places of a block counts."""
    places = [BlockPlace(ident(n), 1, n * 100, 50, 60) for n in range(3 * LOOKUP_ROWS)]
    catalog.add_blocks(places)
    catalog.add_blocks([BlockPlace(ident(7), 2, 0, 50, 60)])
    commit(catalog, 1)
    listing = Listing(path)
    for count in (0, 1, LOOKUP_ROWS, LOOKUP_ROWS + 1, 3 * LOOKUP_ROWS):
        ids = [ident(n) for n in range(count)]
        assert catalog.known([*ids, b"absent" + bytes(26)]) == set(ids)
        assert set(listing.places(ids)) == set(ids)
    assert listing.places([ident(7)])[ident(7)].segment == 2
    listing.close()


def test_hard_links_share_blocks(catalog: Catalog, path: Path) -> None:
    """Two names of one file have its blocks, a rename moves none, and a dropped name takes none along."""
    catalog.apply([file_put(b"a", 1, {0: ident(1), 1: ident(2)}), file_put(b"b", 1, {}, size=16)])
    commit(catalog, 1)
    catalog.apply([Drop(b"a"), file_put(b"c", 1, {0: ident(3)}, size=16)])
    commit(catalog, 2)
    catalog.apply([Drop(b"b"), Drop(b"c")])
    commit(catalog, 3)
    catalog.apply([file_put(b"d", 1, {}, size=16)])
    commit(catalog, 4)
    both = {0: ident(1), 1: ident(2)}
    new = {0: ident(3), 1: ident(2)}
    assert [{p: b for p, (_, b) in tree_of(path, n).items()} for n in (1, 2, 3, 4)] == [
        {b"a": both, b"b": both},
        {b"b": new, b"c": new},
        {},
        {b"d": new},
    ]


def test_a_file_that_shrinks_and_grows_again(catalog: Catalog, path: Path) -> None:
    """Blocks behind a new end are gone for good: when the file grows again zeros stand there."""
    five = {n: ident(n + 1) for n in range(5)}
    for number, put in enumerate(
        [file_put(b"f", 1, five), file_put(b"f", 1, {}, size=9), file_put(b"f", 1, {4: ident(9)}, size=40)], 1
    ):
        catalog.apply([put])
        commit(catalog, number)
    found = [tree_of(path, number)[b"f"][1] for number in (1, 2, 3)]
    assert found == [five, {0: ident(1), 1: ident(2)}, {0: ident(1), 1: ident(2), 4: ident(9)}]


def test_long_lists_come_in_pieces(catalog: Catalog, path: Path) -> None:
    """A directory larger than a page and a file larger than a map come whole, in lists that fit into a message."""
    files = {b"dir/%05d" % n: ident(n + 1) for n in range(2 * PAGE_ROWS + 3)}
    ops: list[Op] = [directory_put(b"dir"), *(file_put(p, i + 2, {0: b}) for i, (p, b) in enumerate(files.items()))]
    catalog.apply(ops)
    big = {n: ident(n + 1) for n in range(2 * MAP_BLOCKS + 5)}
    catalog.apply([file_put(b"big", 1, {}, size=len(big) * 8)])
    for start in range(0, len(big), MAP_BLOCKS):
        part = [n for n in big if start <= n < start + MAP_BLOCKS]
        catalog.apply([Map(1, tuple(part), b"".join(big[n] for n in part))], file_put(b"big", 1, {}))
    sparse = {0: ident(1), INLINE_BLOCKS: ident(2)}
    fat = [Put(b"dir/%05d/x" % n, Kind.FIFO, Meta(0, 0, 0, 0, ((b"user.a", bytes(60_000)),))) for n in range(30)]
    catalog.apply([file_put(b"sparse", 9999, sparse), *fat])
    commit(catalog, 1)
    tree = tree_of(path, 1)
    assert {p: b[1][0] for p, b in tree.items() if b[0].kind is Kind.FILE and p.startswith(b"dir/")} == files
    assert tree[b"big"][1] == big and tree[b"sparse"][1] == sparse
    listing = Listing(path)
    lists = list(listing.operations(1, EVERYTHING))
    listing.close()
    assert len(lists) > 3 and all(len(ops) <= BATCH_OPS for ops in lists)
    assert max(len(encode_ops(ops)) for ops in lists) < 2 * BATCH_BYTES
    inline = [op for ops in lists for op in ops if isinstance(op, Put) and op.blocks]
    assert all(len(op.blocks) <= INLINE_BLOCKS for op in inline)


MIB = 1024 * 1024
FAT = tuple((b"user.%02d" % n, bytes(MIB // 16 - 100)) for n in range(16))
"""Attributes of one entry, about as many as it may have."""


def fat_put(path: bytes, number: int, kind: Kind = Kind.FIFO) -> Put:
    """An entry with all of them, and one that tells it from others."""
    return Put(path, kind, Meta(0, 0, 0, 0, (*FAT, (b"user.own", b"%d" % number))))


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python's objects took at most while this was done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _flat(catalog: Catalog) -> list[bytes]:
    """40 entries with long attributes side by side, then every one of them with another value."""
    paths = [b"dir/%02d" % n for n in range(40)]
    for snapshot in (1, 2):
        for number, path in enumerate(paths):
            catalog.apply([fat_put(path, snapshot * 100 + number)])
        commit(catalog, snapshot)
    return paths


def _deep(catalog: Catalog) -> list[bytes]:
    """20 directories with long attributes one within the other, each beside an entry that has them too."""
    paths = [b"/".join([b"d"] * depth) for depth in range(1, 21)]
    paths += [path + b"e" for path in paths]
    for snapshot in (1, 2):
        for number, path in enumerate(paths):
            kind = Kind.FIFO if path.endswith(b"e") else Kind.DIRECTORY
            catalog.apply([fat_put(path, snapshot * 100 + number, kind)])
        commit(catalog, snapshot)
    return sorted(paths, key=lambda path: path.split(b"/"))


@pytest.mark.parametrize("shape", [_flat, _deep])
def test_long_attributes_are_held_of_few_entries_at_once(
    catalog: Catalog, path: Path, shape: Callable[[Catalog], list[bytes]]
) -> None:
    """Whoever lists, visits, compares or browses many entries of 1 MiB each is told all of them, and holds some MiB."""
    paths = shape(catalog)
    listing = Listing(path)
    every = len(FAT) + 1

    def told(lists: Iterator[list[Op]]) -> list[bytes]:
        puts = (op for ops in lists for op in ops if isinstance(op, Put))
        return [put.path for put in puts if len(put.meta.xattrs) == every]

    def list_some() -> None:
        assert told(listing.operations(1, compile_globs([b"absent", paths[-1]]))) == [
            path for path in paths if path == paths[-1] or paths[-1].startswith(path + b"/")
        ]

    def compare() -> None:
        found = itertools.chain.from_iterable(listing.differences(1, 2, EVERYTHING))
        both = ((one.path, [len(put.meta.xattrs) for put in (one.before, one.after) if put]) for one in found)
        assert [path for path, counts in both if counts == [every, every]] == paths

    def browse() -> None:
        directory, _, last = paths[-1].rpartition(b"/")
        names = list[bytes]()
        while page := listing.browse().page(2, directory, names[-1] if names else b"", 256):
            names += [name for name, put in page if len(put.meta.xattrs) == every]
            del page
        assert names[-1] == last and set(names) <= {path.rpartition(b"/")[2] for path in paths}

    def list_all() -> None:
        assert told(listing.operations(1, EVERYTHING)) == paths

    def visit() -> None:
        assert told(listing.visit(2, b"", 99, blocks=False)) == paths

    peaks = {work.__name__: peak_of(work) for work in (list_all, list_some, visit, compare, browse)}
    listing.close()
    assert max(peaks.values()) < 8 * MIB, peaks


def test_the_history_of_long_attributes_is_held_piece_by_piece(catalog: Catalog, path: Path) -> None:
    """A path that had 1 MiB of other attributes in each of 40 snapshots: each version comes whole, few are held."""
    for snapshot in range(1, 41):
        catalog.apply([fat_put(b"a", snapshot)])
        commit(catalog, snapshot)
    listing = Listing(path)
    seen: list[tuple[bytes, bytes]] = []

    def trace() -> None:
        for versions in listing.versions().of(b"a"):
            seen.extend(version.put.meta.xattrs[-1] for version in versions if version.put.meta.xattrs[:-1] == FAT)
            before = [version.before for version in versions if version.before]
            assert all(len(put.meta.xattrs) == len(FAT) + 1 for put in before)

    peak = peak_of(trace)
    listing.close()
    assert seen == [(b"user.own", b"%d" % snapshot) for snapshot in range(40, 0, -1)]
    assert peak < 8 * MIB


def test_symlinks_with_long_targets_fill_a_list_as_what_they_are(catalog: Catalog, path: Path) -> None:
    """Targets count in the length of a list: a thousand of 4 KiB each come in lists that fit into a message."""
    links = [Put(b"%04d" % n, Kind.SYMLINK, META, target=b"%04d" % n + b"x" * 4000) for n in range(1000)]
    catalog.apply(links)
    commit(catalog, 1)
    listing = Listing(path)
    lists = list(listing.operations(1, EVERYTHING))
    listing.close()
    assert [op for ops in lists for op in ops] == links
    assert max(len(encode_ops(ops)) for ops in lists) < 2 * BATCH_BYTES


def test_deep_directories_are_listed_in_smaller_pages(catalog: Catalog, path: Path) -> None:
    """Far down a walk reads few rows at once, and all of them in order, before and after a change of every one."""
    paths = [b"/".join([*[b"d"] * depth, b"%03d" % n]) for depth in (DEEP + 3, DEEP) for n in range(30)]
    paths.sort(key=lambda path: path.split(b"/"))
    for snapshot in (1, 2):
        catalog.apply([Put(name, Kind.FIFO, Meta(snapshot, 0, 0, 0)) for name in paths])
        commit(catalog, snapshot)
    listing = Listing(path)
    assert [op.path for ops in listing.operations(1, EVERYTHING) for op in ops if isinstance(op, Put)] == paths
    assert [found.path for lines in listing.differences(1, 2, EVERYTHING) for found in lines] == paths
    listing.close()


def test_globs_prune_and_keep_parents(catalog: Catalog, path: Path) -> None:
    """A pattern brings what matches, what is below, and the directories above; directories without a match stay out."""
    every = [b"", b"etc", b"etc/nginx", b"etc/nginx/a.conf", b"etc/ssl", b"home", b"home/etc", b"home/x.conf"]
    catalog.apply([directory_put(p) for p in every])
    commit(catalog, 1)
    for globs, expected in (
        ([b"etc/nginx"], [b"", b"etc", b"etc/nginx", b"etc/nginx/a.conf"]),
        ([b"**/*.conf"], [b"", b"etc", b"etc/nginx", b"etc/nginx/a.conf", b"home", b"home/x.conf"]),
        ([b"home/etc", b"*/ssl"], [b"", b"etc", b"etc/ssl", b"home", b"home/etc"]),
        ([b"absent"], []),
        ([], every),
    ):
        assert list(tree_of(path, 1, globs)) == expected


def test_entries_without_their_directory_are_told(catalog: Catalog, path: Path) -> None:
    """What stands below a directory that has no entry, or below what is a file now, is not silently left out."""
    catalog.apply([file_put(b"lost/deep/file", 1, {0: ident(1)}), file_put(b"was/inner", 2, {0: ident(2)})])
    commit(catalog, 1)
    catalog.apply([file_put(b"was", 3, {0: ident(3)})])
    commit(catalog, 2)
    assert list(tree_of(path, 1)) == [b"lost/deep/file", b"was/inner"]
    assert list(tree_of(path, 2)) == [b"lost/deep/file", b"was", b"was/inner"]


def test_more_directories_than_the_cache_holds(catalog: Catalog, path: Path) -> None:
    """Directory ids that fell out of the cache are found again, and none is made twice."""
    count = CACHED_DIRECTORIES + 100
    for file in (1, 2):
        catalog.apply([Put(b"%05d/%d" % (n, file), Kind.FIFO, META) for n in range(count)])
    commit(catalog, 1)
    assert len(tree_of(path, 1)) == 2 * count


def test_the_log_of_a_large_snapshot_is_given_back(catalog: Catalog, path: Path) -> None:
    """Beside the catalog stays a log of some MiB, whatever was committed in one piece, or rolled back."""

    def log_bytes() -> int:
        return path.with_name("catalog.db-wal").stat().st_size

    for number in (1, 2):
        for n in range(24):
            catalog.apply([fat_put(b"%d-%d" % (number, n), n)])
        assert log_bytes() > LOG_BYTES
        commit(catalog, number)
    catalog.apply([directory_put(b"a")])
    commit(catalog, 3)
    assert log_bytes() <= LOG_BYTES
    for n in range(24):
        catalog.apply([fat_put(b"3-%d" % n, n)])
    assert log_bytes() > LOG_BYTES
    reading = Database(path, MIGRATIONS, readonly=True)
    reading.begin_reading()
    assert reading.value("SELECT count(*) FROM entry") == 49
    catalog.rollback()  # somebody reads what the log holds: it stays
    reading.rollback()
    catalog.apply([directory_put(b"b")])
    catalog.rollback()
    assert log_bytes() == 0 and reading.value("SELECT count(*) FROM entry") == 49
    reading.close()


def test_damage_is_remembered(catalog: Catalog, path: Path) -> None:
    """Noted damage outlives the process, is noted once, and readers see it."""
    for _ in range(2):
        catalog.add_damage(3, 4096, 100, "frame fails its checksum")
    catalog.keep(Position(3, 8192))
    catalog.close()
    again, listing = Catalog(path), Listing(path)
    assert again.damage() == listing.inventory().damage() == [(3, 4096, 100, "frame fails its checksum")]
    again.close()
    listing.close()


def test_bits_that_flip_in_the_catalog(path: Path) -> None:
    """A flipped bit anywhere in the catalog is found at open or when it is read, as what it is."""
    catalog = Catalog(path)
    catalog.set_owner(UUID, "ams1", "www")
    catalog.apply([file_put(b"%d/%d" % (n % 9, n), n + 1, {0: ident(n)}) for n in range(500)])
    commit(catalog, 1)
    catalog.close()
    good = path.read_bytes()
    for step in range(60):
        path.write_bytes(good)
        flip(path, (step * 7919 + 13) % len(good), step % 8)
        with pytest.raises((BookDamagedError, ReplicadError)) as caught:
            again = Catalog(path)
            try:
                problems = again.verify()
                raise BookDamagedError("; ".join(problems)) if problems else AssertionError("not noticed")
            finally:
                again.close()
        assert isinstance(caught.value, BookDamagedError) or "schema version" in str(caught.value)


def test_a_reader_needs_a_catalog(tmp_path: Path) -> None:
    """A reader never makes a catalog."""
    with pytest.raises(ReplicadError):
        Listing(tmp_path / "catalog.db")
    assert os.listdir(tmp_path) == []
