"""Time travel, from the catalog to a reader: what stood at a path, its versions, and what differs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_messages import any_of
from kit_restore import ScriptedReader, Writer, damage_block, greeted_pair, meta, reading_pair, served_pair
from kit_store import META, file_put
from replicad.db.catalog import Catalog
from replicad.db.database import Database, Row, Value
from replicad.db.expiry import drop_snapshots, purge
from replicad.db.findings import Findings
from replicad.db.listing import Listing
from replicad.link.messages import (
    Compare,
    Credit,
    ListSnapshots,
    Lost,
    Message,
    Opened,
    OpenRead,
    Snapshots,
    Told,
    Trace,
    Visit,
)
from replicad.link.messages import Listing as ListingMessage
from replicad.model.block import block_id
from replicad.model.divergence import Affected, Divergence, Part, Side, State
from replicad.model.entry import DAMAGED, MAX_DEPTH, Drop, Kind, Map, Op, Put, encode_ops
from replicad.model.errors import PeerError, UsageError
from replicad.model.glob import EVERYTHING, compile_globs
from replicad.model.position import Position
from replicad.model.snapshot import NO_PARENT, Commit, Head
from replicad.model.travel import (
    EVENTS,
    UNKNOWN,
    Difference,
    Moment,
    Version,
    changes_of,
    decode_differences,
    decode_versions,
    encode_told,
    events_of,
    has_changed,
)
from replicad.work.content import AHEAD_BYTES, FETCH_BYTES, Piece, entry_of, pieces
from replicad.work.read_local import LocalReader
from replicad.work.read_remote import RemoteReader
from replicad.work.reader import Reader

BLOCK_BYTES = 8


# a file system that is a dict, and what a primary would tell of it


@dataclass(frozen=True)
class File:
    """A file: its number, its mode, and its blocks; 0 is a zero block."""

    number: int
    mode: int
    blocks: tuple[int, ...]


Tree = dict[bytes, File]
PATHS = [b"a", b"a.b", b"d/a", b"d/\xff\n", b"d/e/z"]


@st.composite
def histories(draw: st.DrawFn) -> list[Tree]:
    """A few states of a tree, one after the other: files are made, written, replaced, renamed, changed and deleted."""
    trees: list[Tree] = []
    tree: Tree = {}
    number = 0
    blocks = st.lists(st.integers(0, 3), max_size=4).map(tuple)
    for _ in range(draw(st.integers(1, 6))):
        used: set[bytes] = set()  # one change of a path in one pass
        for _ in range(draw(st.integers(0, 4))):
            path, other = draw(st.sampled_from(PATHS)), draw(st.sampled_from(PATHS))
            what = draw(st.sampled_from(["replace", "write", "chmod", "rename", "delete"]))
            if {path, other} & used:
                continue
            used |= {path, other}
            if what == "replace" or path not in tree:
                number += 1
                tree[path] = File(number, 0o644, draw(blocks))
            elif what == "write":
                tree[path] = replace(tree[path], blocks=draw(blocks))
            elif what == "chmod":
                tree[path] = replace(tree[path], mode=draw(st.sampled_from([0o600, 0o644])))
            elif what == "rename":
                tree[other] = tree.pop(path)
            else:
                del tree[path]
        trees.append(dict(tree))
    return trees


def ident(block: int) -> bytes:
    """Some block's id."""
    return block.to_bytes(32, "big")


def put_of(path: bytes, file: File) -> Put:
    """The entry, without its blocks."""
    size = len(file.blocks) * BLOCK_BYTES
    return file_put(path, file.number, {}, size=size).__class__(
        path, Kind.FILE, msgspec.structs.replace(META, mode=file.mode), size, file.number, BLOCK_BYTES
    )


def told(before: Tree, after: Tree) -> Iterator[Op]:
    """What a primary records of a pass."""
    known = {file.number: file.blocks for file in before.values()}
    for path in sorted(before.keys() - after.keys()):
        yield Drop(path)
    for path, file in sorted(after.items()):
        if before.get(path) == file:
            continue
        old = known.get(file.number, ())
        changed = [n for n, block in enumerate(file.blocks) if block != (old[n] if n < len(old) else 0)]
        listed = [n for n in changed if file.blocks[n]]
        zeros = tuple((n, 1) for n in changed if not file.blocks[n])
        ids = b"".join(ident(file.blocks[n]) for n in listed)
        yield msgspec.structs.replace(put_of(path, file), blocks=tuple(listed), ids=ids, zeros=zeros)


def written(directory: Path, trees: Sequence[Tree]) -> Path:
    """A catalog with these states as snapshots 3, 6, 9 …"""
    path = directory / "catalog.db"
    with closing(Catalog(path)) as catalog:
        for number, (before, after) in enumerate(pairwise([{}, *trees]), 1):
            catalog.apply(list(told(before, after)))
            line = Commit(number * 3, number * 10, True, NO_PARENT, 0, bytes(32), 1, 2, 3)
            catalog.commit(line, ident(number), received_ns=number, checkpoint=Position(1, number))
    return path


def differing(one: File, other: File) -> int:
    """In how many blocks two contents differ."""
    longest = max(len(one.blocks), len(other.blocks))
    padded = [file.blocks + (0,) * (longest - len(file.blocks)) for file in (one, other)]
    return sum(a != b for a, b in zip(*padded, strict=True))


def order(path: bytes) -> list[bytes]:
    """Depth first."""
    return path.split(b"/")


@settings(max_examples=60, deadline=None)
@given(histories())
def test_differences_are_what_two_dicts_differ_in(trees: list[Tree]) -> None:
    """Of any two snapshots, in either order: paths, sides and numbers of blocks, sorted by path."""
    with tempfile.TemporaryDirectory() as name:
        _check_differences(written(Path(name), trees), trees, range(1, len(trees) + 1))


def _check_differences(path: Path, trees: list[Tree], ordinals: Sequence[int]) -> None:
    """`trees` are the states of the snapshots with these ordinals."""
    with closing(Listing(path)) as listing:
        for one, other in product(range(len(trees)), repeat=2):
            before, after = trees[one], trees[other]
            expected = []
            for name in sorted(before.keys() | after.keys(), key=order):
                old, new = before.get(name), after.get(name)
                if old and new:
                    count = differing(old, new)
                    if (old.mode, len(old.blocks)) == (new.mode, len(new.blocks)) and not count:
                        continue
                else:
                    count = 0
                puts = [put_of(name, file) if file else None for file in (old, new)]
                expected.append(Difference(name, *puts, count, count * BLOCK_BYTES))
            found = list(chain.from_iterable(listing.differences(ordinals[one], ordinals[other], EVERYTHING)))
            assert found == expected


@settings(max_examples=60, deadline=None)
@given(histories())
def test_versions_are_what_the_snapshots_show(trees: list[Tree]) -> None:
    """The versions of a path cover exactly the snapshots that have it, with what they have, and say what changed."""
    with tempfile.TemporaryDirectory() as name:
        _check_versions(written(Path(name), trees), trees, range(1, len(trees) + 1))


@pytest.mark.parametrize("between", [[], [{b"a": File(1, 420, ())}]])
def test_a_rename_of_a_file_that_was_empty_is_known(tmp_path: Path, between: list[Tree]) -> None:
    """Its first block is as young as its second name, or younger, and says nothing about its age."""
    trees = [{b"a.b": File(1, 420, ())}, *between, {b"a": File(1, 420, (1,))}]
    _check_versions(written(tmp_path, trees), trees, range(1, len(trees) + 1))


@settings(max_examples=150, deadline=None)
@given(histories(), st.data())
def test_what_retention_let_go_is_as_if_it_had_never_been(trees: list[Tree], data: st.DataObject) -> None:
    """Whichever snapshots were dropped: versions, renames and differences are those of a history of the others alone,
    before the rows have gone, while they go, and after."""
    numbers = list(range(1, len(trees) + 1))
    dropped = data.draw(st.lists(st.sampled_from(numbers), unique=True))
    kept = [number for number in numbers if number not in dropped or number == numbers[-1]]
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name), trees)
        with closing(Catalog(path)) as catalog:
            drop_snapshots(catalog.database, [number * 3 for number in dropped], 1)
            for steps in (0, 2, 1000):
                while steps and purge(catalog.database, 3):
                    steps -= 1
                _check_versions(path, [trees[number - 1] for number in kept], kept)
                _check_differences(path, [trees[number - 1] for number in kept], kept)


def _check_versions(path: Path, trees: list[Tree], numbers: Sequence[int]) -> None:
    """`trees` are the states of the snapshots that are kept, `numbers` their ordinals."""
    position = {number * 3: place for place, number in enumerate(numbers, 1)}
    with closing(Listing(path)) as listing:
        for name in PATHS:
            versions = list(chain.from_iterable(listing.versions().of(name)))
            assert versions == sorted(versions, key=lambda version: -version.first.number)
            shown: dict[int, Put] = {}
            for version in versions:
                last, born = position[version.last.number], position[version.first.number]
                assert (version.ended is None) is (last == len(trees))
                assert version.ended is None or position[version.ended.number] == last + 1
                for number in range(born, last + 1):
                    if version.put.path == name:
                        assert number not in shown, "two versions at once"
                        shown[number] = version.put
                assert version.put == put_of(version.put.path, trees[last - 1][version.put.path])
                _check_before(version, trees, born)
            assert shown == {n: put_of(name, tree[name]) for n, tree in enumerate(trees, 1) if name in tree}


def _check_before(version: Version, trees: list[Tree], born: int) -> None:
    """A version's predecessor is the file's older name, or what stood at the path before it."""
    path, number = version.put.path, version.put.file
    previous = trees[born - 2] if born > 1 else {}
    moved = [old for old, file in previous.items() if file.number == number and old != path]
    if moved and (path not in previous or previous[path].number != number):
        assert version.before == put_of(moved[0], previous[moved[0]]) and not version.returned
        assert version.blocks == differing(previous[moved[0]], trees[born - 1][path])
        return
    older = [n for n in range(born - 1) if path in trees[n]]
    assert (version.before is None) is (not older)
    if version.before:
        last = trees[older[-1]][path]
        assert version.before == put_of(path, last)
        assert version.returned is (older[-1] != born - 2)
        assert version.blocks == differing(last, trees[born - 1][path])
        assert version.changed_bytes == version.blocks * BLOCK_BYTES


@settings(max_examples=40, deadline=None)
@given(histories(), st.sampled_from([b"", b"a", b"d", b"d/e", b"d/e/z", b"x", b"d/x"]), st.integers(0, 3))
def test_a_visit_shows_a_path_and_what_is_so_far_below_it(trees: list[Tree], path: bytes, depth: int) -> None:
    """In every snapshot the same entries, with the same blocks, as the whole record has."""
    with tempfile.TemporaryDirectory() as name, closing(Listing(written(Path(name), trees))) as listing:
        for ordinal in range(1, len(trees) + 1):
            every = list(chain.from_iterable(listing.operations(ordinal, EVERYTHING)))
            expected = [op for op in every if _is_within(path, depth, op.path)]  # type: ignore[union-attr]
            assert list(chain.from_iterable(listing.visit(ordinal, path, depth, blocks=True))) == expected
            bare = [msgspec.structs.replace(op, blocks=(), ids=b"") for op in expected]
            assert list(chain.from_iterable(listing.visit(ordinal, path, depth, blocks=False))) == bare


def _is_within(top: bytes, depth: int, path: bytes) -> bool:
    if path == top:
        return True
    below = path.removeprefix(top + b"/") if top else path
    return (not top or path.startswith(top + b"/")) and below.count(b"/") < depth


@pytest.mark.parametrize(
    ("sizes", "blocks", "expected"),
    [((20, 20), (2,), 4), ((20, 20), (0, 2), 12), ((20, 23), (2,), 7), ((23, 20), (0,), 8), ((20, 8), (), 12)],
)
def test_the_last_block_counts_with_the_bytes_that_it_has(
    tmp_path: Path, sizes: tuple[int, int], blocks: tuple[int, ...], expected: int
) -> None:
    """Of the longer one of both contents, in a comparison as in a history, whether the file is the same or another."""
    for file in (1, 2):
        path = tmp_path / f"{file}" / "catalog.db"
        path.parent.mkdir()
        with closing(Catalog(path)) as catalog:
            catalog.apply([file_put(b"p", 1, {n: ident(n + 1) for n in range(3)}, size=sizes[0])])
            _commit(catalog, 1)
            every = range(-(-sizes[1] // BLOCK_BYTES)) if file == 2 else blocks
            catalog.apply([file_put(b"p", file, {n: ident(n + 1 + 9 * (n in blocks)) for n in every}, size=sizes[1])])
            _commit(catalog, 2)
        with closing(Listing(path)) as listing:
            [difference] = chain.from_iterable(listing.differences(1, 2, EVERYTHING))
            newest, _ = chain.from_iterable(listing.versions().of(b"p"))
        assert difference.changed_bytes == newest.changed_bytes == expected
        assert difference.blocks == newest.blocks


def test_patterns_restrict_a_comparison(tmp_path: Path) -> None:
    """To what matches and what is below it."""
    trees: list[Tree] = [{}, {path: File(n, 0o644, ()) for n, path in enumerate(PATHS, 1)}]
    with closing(Listing(written(tmp_path, trees))) as listing:
        for globs, expected in (([b"d"], PATHS[2:]), ([b"**/a"], [b"a", b"d/a"]), ([b"x"], [])):
            found = chain.from_iterable(listing.differences(1, 2, compile_globs(globs)))
            assert sorted(one.path for one in found) == sorted(expected)


def test_a_renamed_directory_is_known_by_what_moved_with_it(tmp_path: Path) -> None:
    """The directory and each file in it are followed to the old name, at any depth; an empty one is new."""
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        names = [b"old", b"old/in"]
        catalog.apply([Put(name, Kind.DIRECTORY, META) for name in (*names, b"empty")])
        catalog.apply([file_put(b"old/in/f", 1, {0: ident(1)}), file_put(b"old/in/g", 2, {0: ident(1)})])
        _commit(catalog, 1)
        catalog.apply([file_put(b"old/in/f", 1, {0: ident(2)})])
        _commit(catalog, 2)
        catalog.apply([Drop(b"old/in/f"), Drop(b"old/in/g"), Drop(b"old/in"), Drop(b"old"), Drop(b"empty")])
        catalog.apply([Put(name.replace(b"old", b"new"), Kind.DIRECTORY, META) for name in (*names, b"blank")])
        catalog.apply([file_put(b"new/in/f", 1, {}, size=8), file_put(b"new/in/g", 2, {}, size=8)])
        _commit(catalog, 3)
    for path, was in ((b"new", b"old"), (b"new/in", b"old/in"), (b"new/in/g", b"old/in/g")):
        assert events(tmp_path, path) == [("renamed", 3, path), ("created", 1, was)]
    assert events(tmp_path, b"new/in/f") == [
        ("renamed", 3, b"new/in/f"), ("changed", 2, b"old/in/f"), ("created", 1, b"old/in/f"),
    ]  # fmt: skip
    assert events(tmp_path, b"blank") == [("created", 3, b"blank")]
    assert events(tmp_path, b"empty") == [("deleted", 3, b"empty"), ("created", 1, b"empty")]
    assert events(tmp_path, b"old/in/f")[0] == ("deleted", 3, b"old/in/f")


def test_the_names_of_one_file_in_a_renamed_directory_are_told_apart(tmp_path: Path) -> None:
    """Each hard link is followed to the one that was called the same."""
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        catalog.apply([file_put(b"old/" + name, 1, {0: ident(1)}) for name in (b"a", b"b")])
        _commit(catalog, 1)
        catalog.apply([Drop(b"old/a"), Drop(b"old/b")])
        catalog.apply([file_put(b"new/" + name, 1, {}, size=8) for name in (b"a", b"b")])
        _commit(catalog, 2)
    for name in (b"a", b"b"):
        assert events(tmp_path, b"new/" + name) == [("renamed", 2, b"new/" + name), ("created", 1, b"old/" + name)]


def test_a_rotated_log_is_followed_through_its_names(tmp_path: Path) -> None:
    """log becomes log.1 while a new log takes its place, pass after pass."""
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        catalog.apply([file_put(b"log", 1, {0: ident(1)})])
        _commit(catalog, 1)
        catalog.apply([file_put(b"log", 2, {0: ident(2)}), file_put(b"log.1", 1, {}, size=8)])
        _commit(catalog, 2)
        catalog.apply([file_put(b"log", 3, {}, size=0), file_put(b"log.1", 2, {}, size=8)])
        catalog.apply([file_put(b"log.2", 1, {}, size=8)])
        _commit(catalog, 3)
    assert events(tmp_path, b"log.2") == [("renamed", 3, b"log.2"), ("renamed", 2, b"log.1"), ("created", 1, b"log")]
    assert events(tmp_path, b"log") == [("changed", 3, b"log"), ("changed", 2, b"log"), ("created", 1, b"log")]


def test_a_second_name_of_a_file_is_no_rename(tmp_path: Path) -> None:
    """A hard link that was made later is created; when the first name goes, the second has nothing to tell."""
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        catalog.apply([file_put(b"one", 1, {0: ident(1)})])
        _commit(catalog, 1)
        catalog.apply([file_put(b"two", 1, {}, size=8)])
        _commit(catalog, 2)
        catalog.apply([Drop(b"one")])
        _commit(catalog, 3)
    assert events(tmp_path, b"two") == [("created", 2, b"two")]
    assert events(tmp_path, b"one") == [("deleted", 3, b"one"), ("created", 1, b"one")]


def test_snapshots_that_expired_leave_no_hole_in_a_history(tmp_path: Path) -> None:
    """A version that only expired snapshots showed is left out, and nothing returns that was never seen missing."""
    trees: list[Tree] = [{b"a": File(1, 0o600 + n, ())} if n != 3 else {} for n in range(6)]
    path = written(tmp_path, trees)
    with closing(Catalog(path)) as catalog:
        drop_snapshots(catalog.database, (6, 12), 1)
    assert events(tmp_path, b"a") == [
        ("changed", 18, b"a"), ("changed", 15, b"a"), ("changed", 9, b"a"), ("created", 3, b"a"),
    ]  # fmt: skip


def _commit(catalog: Catalog, number: int) -> None:
    line = Commit(number, number * 10, True, NO_PARENT, 0, bytes(32), 1, 2, 3)
    catalog.commit(line, ident(number), received_ns=number, checkpoint=Position(1, number))


def events(directory: Path, path: bytes) -> list[tuple[str, int, bytes]]:
    """(what, snapshot, path), newest first."""
    with closing(Listing(directory / "catalog.db")) as listing:
        versions = list(chain.from_iterable(listing.versions().of(path)))
    return [(event.what, event.at.number, event.version.put.path) for event in events_of(versions)]


def test_what_is_asked_of_the_catalog_is_what_is_shown_and_not_the_snapshot(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are read for a file, a directory, and the history of a path, in a snapshot of 1,500 entries."""
    read: list[int] = []
    every, one = Database.all, Database.one

    def counting_all(self: Database, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        rows = every(self, sql, values)
        read.append(len(rows))
        return rows

    def counting_one(self: Database, sql: str, values: Sequence[Value] = ()) -> Row | None:
        read.append(1)
        return one(self, sql, values)

    monkeypatch.setattr(Database, "all", counting_all)
    monkeypatch.setattr(Database, "one", counting_one)
    with closing(Listing(store / "catalog.db")) as listing:
        for question, most in (
            (listing.visit(1, b"large/0700", 0, blocks=True), 10),
            (listing.visit(1, b"etc", 1, blocks=False), 10),
            (listing.visit(1, b"large", 1, blocks=False), 1510),
            (listing.versions().of(b"etc/conf"), 40),
            (listing.versions().of(b"large/0700"), 20),
        ):
            read.clear()
            assert list(question)  # type: ignore[call-overload]
            assert sum(read) <= most


# values


def version(first: int, last: int, ended: int | None, before: Put | None = None, **more: object) -> Version:
    """A version of "p" through these snapshots."""
    values: dict[str, object] = {
        "returned": False,
        "blocks": 0,
        "changed_bytes": 0,
        "put": file_put(b"p", 1, {}),
        **more,
    }
    moments = [Moment(number, number * 10) for number in (first, last)]
    end = None if ended is None else Moment(ended, ended * 10)
    return Version(first=moments[0], last=moments[1], ended=end, before=before, **values)  # type: ignore[arg-type]


def test_every_event_has_a_case() -> None:
    """Each word of EVENTS comes about in one way, and no other word does."""
    same, other = file_put(b"p", 1, {}), file_put(b"q", 1, {})
    cases = {
        "created": [version(1, 3, None)],
        "changed": [version(1, 3, None, same, blocks=1)],
        "renamed": [version(1, 3, None, other)],
        "returned": [version(1, 3, None, same, returned=True)],
        "rewritten": [version(1, 3, None, same)],
    }
    found = {what: [event.what for event in events_of(versions)] for what, versions in cases.items()}
    assert found == {what: [what] for what in cases}
    assert [(e.what, e.at.number) for e in events_of([version(1, 3, 4)])] == [("deleted", 4), ("created", 1)]
    assert {*cases, "deleted"} == set(EVENTS)


def test_what_counts_as_changed() -> None:
    """Each thing that a person can see, by name; numbers of files and holes are none."""
    base = file_put(b"p", 1, {}, size=8)
    assert not has_changed(base, msgspec.structs.replace(base, file=2, flags=1), 0)
    assert has_changed(base, base, 1) and has_changed(base, base, UNKNOWN)
    assert has_changed(base, msgspec.structs.replace(base, size=9), 0)
    cases = {
        "mode": {"meta": msgspec.structs.replace(META, mode=0o600)},
        "owner": {"meta": msgspec.structs.replace(META, gid=7)},
        "mtime": {"meta": msgspec.structs.replace(META, mtime_ns=7)},
        "xattrs": {"meta": msgspec.structs.replace(META, xattrs=((b"user.x", b"1"),))},
        "target": {"target": b"x"},
        "device": {"device": 5},
        "kind": {"kind": Kind.SYMLINK},
    }
    for what, fields in cases.items():
        after = msgspec.structs.replace(base, **fields)
        assert [change.what for change in changes_of(base, after)] == [what] and has_changed(base, after, 0)
    one, two = (msgspec.structs.replace(META, xattrs=((b"user.x", value),)) for value in (b"1", b"2"))
    [change] = changes_of(msgspec.structs.replace(base, meta=one), msgspec.structs.replace(base, meta=two))
    assert (change.before, change.after) == ("user.x", "user.x (other value)")


puts = any_of(Put)
moments = any_of(Moment)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            Version,
            puts,
            moments,
            moments,
            moments | st.none(),
            puts | st.none(),
            st.booleans(),
            any_of(int),
            any_of(int),
        ),
        max_size=2,
    ),
    st.lists(
        st.builds(Difference, st.binary(max_size=9), puts | st.none(), puts | st.none(), any_of(int), any_of(int)),
        max_size=2,
    ),
    st.binary(max_size=40),
)
def test_whatever_a_peer_tells_is_either_checked_or_refused(
    versions: list[Version], differences: list[Difference], junk: bytes
) -> None:
    """Nothing but ValueError comes of it, and what passes names paths that may exist."""
    for data in (encode_told(versions), encode_told(differences), junk):
        for decode in (decode_versions, decode_differences):
            try:
                found = decode(data)
            except ValueError:
                continue
            for one in found:
                put = one.put if isinstance(one, Version) else one.after or one.before
                assert put and b".." not in put.path.split(b"/") and not put.path.startswith(b"/")


GOOD = version(1, 2, 3, file_put(b"q", 1, {}))


@pytest.mark.parametrize(
    "bad",
    [
        version(3, 2, None),
        version(1, 2, 2),
        version(-1, 2, None),
        version(1, 2, None, blocks=-2),
        version(1, 2, None, put=file_put(b"../x", 1, {})),
        version(1, 2, None, put=file_put(b"p", 1, {0: ident(1)})),
        version(1, 2, None, before=file_put(b"/x", 1, {})),
    ],
)
def test_a_version_that_cannot_be_is_refused(bad: Version) -> None:
    """Snapshots out of order, counts and paths that cannot be; a good one passes."""
    assert decode_versions(encode_told([GOOD])) == [GOOD]
    with pytest.raises(ValueError, match=r"."):
        decode_versions(encode_told([GOOD, bad]))


@pytest.mark.parametrize(
    "bad",
    [
        Difference(b"p", None, None, 0, 0),
        Difference(b"p", file_put(b"q", 1, {}), None, 0, 0),
        Difference(b"../p", file_put(b"../p", 1, {}), None, 0, 0),
        Difference(b"p", file_put(b"p", 1, {}), None, -5, 0),
    ],
)
def test_a_difference_that_cannot_be_is_refused(bad: Difference) -> None:
    """No side, another path, a path or a count that cannot be."""
    good = Difference(b"p", file_put(b"p", 1, {}), None, 0, 0)
    assert decode_differences(encode_told([good])) == [good]
    with pytest.raises(ValueError, match=r"."):
        decode_differences(encode_told([good, bad]))


# readers


CONTENT = b"".join(n.to_bytes(4, "big") for n in range(1, 64_001))
"""Four blocks of 64 KiB, the last one short, behind 40 blocks of zeros in "sparse"."""
HOLE_BYTES = 40 * 65536


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots, with a large directory and a file of many blocks."""
    directory = tmp_path_factory.mktemp("travel") / "ams1" / "www"
    with Writer(directory) as writer:
        writer.put(b"")
        writer.put(b"etc")
        writer.put(b"etc/conf", b"one")
        writer.put(b"etc/gone", b"gone")
        writer.put(b"sparse", bytes(HOLE_BYTES) + CONTENT)
        writer.put(b"many", b"".join(n.to_bytes(2, "big") * 2048 for n in range(1, 5000)), block_bytes=4096)
        writer.put(b"large")
        for number in range(1500):
            writer.put(b"large/%04d" % number, b"%d" % number)
        writer.seal(3, 3_000_000_000)
        writer.put(b"etc/conf", b"two")
        writer.add(Drop(b"etc/gone"))
        writer.seal(5, 5_000_000_000)
    return directory


@pytest_asyncio.fixture(params=["local", "remote"])
async def reader(request: pytest.FixtureRequest, store: Path) -> AsyncIterator[Reader]:
    """Each implementation in turn."""
    if request.param == "local":
        local = await LocalReader.open(store, "store")
        yield local
        await local.close()
    else:
        async with reading_pair(store) as (remote, _, _):
            yield remote


async def visited(reader: Reader, snapshot: int, path: bytes, depth: int = 0) -> list[bytes]:
    """The paths that a visit shows."""
    return [op.path async for ops in reader.visit(snapshot, path, depth) for op in ops if isinstance(op, Put)]


async def test_a_directory_is_visited_level_by_level(reader: Reader) -> None:
    """Itself, its entries, everything below it; a file alone; nothing where nothing stood."""
    assert await visited(reader, 5, b"etc") == [b"etc"]
    assert await visited(reader, 5, b"etc", 1) == [b"etc", b"etc/conf"]
    assert await visited(reader, 3, b"etc", 1) == [b"etc", b"etc/conf", b"etc/gone"]
    assert await visited(reader, 3, b"", 1) == [b"", b"etc", b"large", b"many", b"sparse"]
    assert len(await visited(reader, 3, b"", MAX_DEPTH)) == 1507
    assert len(await visited(reader, 3, b"large", 1)) == 1501
    assert await visited(reader, 5, b"etc/conf", 5) == [b"etc/conf"]
    for absent in (b"etc/gone", b"etc/conf/x", b"x", b"x/y"):
        assert await visited(reader, 5, absent, 1) == []


async def test_an_unknown_snapshot_is_a_usage_error(reader: Reader) -> None:
    """For a visit; a comparison says the same."""
    with pytest.raises(UsageError, match="no snapshot 4"):
        await visited(reader, 4, b"")


async def test_a_comparison_names_what_differs(reader: Reader) -> None:
    """Over both ways to read; unknown snapshots and bad patterns are usage errors."""
    found = [one async for some in reader.compare(3, 5) for one in some]
    assert [(one.path, one.before is None, one.after is None, one.blocks) for one in found] == [
        (b"etc/conf", False, False, 1),
        (b"etc/gone", False, True, 0),
    ]
    assert [one async for some in reader.compare(3, 5, [b"large"]) for one in some] == []
    with pytest.raises(UsageError, match=r"\.\./x"):
        [one async for some in reader.compare(3, 5, [b"../x"]) for one in some]
    with pytest.raises(UsageError, match="no snapshot 9"):
        [one async for some in reader.compare(3, 9) for one in some]


async def test_the_versions_of_a_path_come_newest_first(reader: Reader) -> None:
    """With numbers and times of snapshots; none of a path that never was."""
    found = [one async for some in reader.trace(b"etc/conf") for one in some]
    assert [(one.first, one.last, one.ended) for one in found] == [
        (Moment(5, 5_000_000_000), Moment(5, 5_000_000_000), None),
        (Moment(3, 3_000_000_000), Moment(3, 3_000_000_000), Moment(5, 5_000_000_000)),
    ]
    assert [one async for some in reader.trace(b"never") for one in some] == []


async def content(reader: Reader, snapshot: int, path: bytes) -> tuple[bytes, list[Piece]]:
    """A file's bytes as the pieces give them, and the pieces."""
    put, operations = await entry_of(reader.visit(snapshot, path, blocks=True))
    assert put
    found = [piece async for piece in pieces(reader, put, operations)]
    data = b"".join(bytes(piece.size) if piece.data is None else bytes(piece.data) for piece in found)  # type: ignore[arg-type]
    return data, found


async def test_content_comes_whole_and_in_order(reader: Reader) -> None:
    """A small file, a hole, and one with more blocks than one operation lists, of the snapshot that was asked for."""
    assert (await content(reader, 3, b"etc/conf"))[0] == b"one"
    assert (await content(reader, 5, b"etc/conf"))[0] == b"two"
    data, found = await content(reader, 3, b"sparse")
    assert data == bytes(HOLE_BYTES) + CONTENT and found[0] == Piece(0, HOLE_BYTES, None)
    assert (await content(reader, 3, b"many"))[0] == b"".join(n.to_bytes(2, "big") * 2048 for n in range(1, 5000))


async def test_content_that_is_left_early_does_not_disturb_what_follows(reader: Reader) -> None:
    """Fetches that are under way end with it."""
    put, operations = await entry_of(reader.visit(3, b"many", blocks=True))
    assert put
    some = pieces(reader, put, operations)
    await anext(some)
    await some.aclose()
    [answers] = [run async for run in reader.fetch(block_id(b"one"))]
    assert not isinstance(answers[0], Lost)


async def test_fetches_run_ahead_and_are_bounded() -> None:
    """As many are under way as the bound allows, and no more."""
    script = ScriptedReader()
    script.file(b"f", b"".join(n.to_bytes(2, "big") * 2048 for n in range(1, 10_000)))
    script.wait_for_open = AHEAD_BYTES // FETCH_BYTES
    put = script.ops[0]
    assert isinstance(put, Put)

    async def operations() -> AsyncIterator[Op]:
        for op in script.ops:
            yield op

    total = 0
    async for piece in pieces(script, put, operations()):  # type: ignore[arg-type]
        assert not isinstance(piece.data, Lost)
        total += piece.size
    assert total == put.size and script.most_bytes <= AHEAD_BYTES and script.most_open == script.wait_for_open


async def test_a_damaged_block_is_a_piece_of_its_own(tmp_path: Path) -> None:
    """The bytes before and behind it come; in its place stands why."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"f", CONTENT)
        writer.seal()
    damage_block(tmp_path / "store", block_id(CONTENT[65536:131072]))
    local = await LocalReader.open(tmp_path / "store")
    put, operations = await entry_of(local.visit(1, b"f", blocks=True))
    assert put
    found = [piece async for piece in pieces(local, put, operations)]
    await local.close()
    assert [(piece.offset, isinstance(piece.data, Lost)) for piece in found] == [
        (0, False), (65536, True), (131072, False), (196608, False),
    ]  # fmt: skip


async def test_known_damage_is_flagged_where_it_shows(tmp_path: Path) -> None:
    """Files that open findings of the store name, in the snapshots that show the bytes; never by a record's word."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"f", b"f")
        writer.put(b"liar", b"liar", flags=DAMAGED)
        for number in (1, 4, 6):
            writer.seal(number)
    with closing(Findings(tmp_path / "store" / "findings.db")) as book:
        for state, path in ((State.OPEN, b"f"), (State.REPAIRED, b"liar")):
            affected = (Affected(path, 0, 1, 2, 4), Affected(b"elsewhere", 0, 1))
            what = {"key": f"block:{state}", "dataset": "www", "side": Side.REPLICA, "peer": "ams1", "part": Part.BLOCK}
            book.report(Divergence(**what, state=state, what="rot", affected=affected))  # type: ignore[arg-type]

    async def flagged(snapshot: int) -> list[bytes]:
        local = await LocalReader.open(tmp_path / "store")
        found = [op async for ops in local.visit(snapshot, b"", 1) for op in ops]
        await local.close()
        return [op.path for op in found if isinstance(op, Put) and op.flags & DAMAGED]

    assert [await flagged(number) for number in (1, 4, 6)] == [[], [b"f"], []]
    (tmp_path / "store" / "findings.db").write_bytes(b"no database" * 1000)
    assert await flagged(4) == []


# the server's side


@pytest.mark.parametrize(
    "question", [Visit(3, b"large", 1, False, 1), Compare(1, 3, [], 1)], ids=lambda question: type(question).__name__
)
async def test_an_answer_waits_for_credit(question: Message, tmp_path: Path) -> None:
    """Each part may overdraw the credit once; the next one comes when more is granted."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"large")
        writer.seal(1)
        for number in range(3000):
            writer.put(b"large/%04d" % number, b"")
        writer.seal(3)
    async with served_pair(tmp_path / "store") as (pair, _):
        await pair.client.send(OpenRead("www"))
        await pair.client.receive()
        await pair.client.send(question)
        parts = 0
        more = True
        while more:
            part = await asyncio.wait_for(pair.client.receive(), 5)
            assert isinstance(part, (ListingMessage, Told))
            parts, more = parts + 1, part.more
            if more and parts < 3:
                await pair.client.send(ListSnapshots())  # comes before the next part, which has to wait
                assert isinstance(await asyncio.wait_for(pair.client.receive(), 5), Snapshots)
            if more:
                await pair.client.send(Credit(len(part.ops if isinstance(part, ListingMessage) else part.told)))
        assert parts > 3


async def test_a_comparison_and_a_history_may_be_long(tmp_path: Path) -> None:
    """A thousand long paths that differ, and versions with as many attributes as an entry may have, come over the
    link."""
    xattrs = tuple((b"user.%02d" % n, bytes(50_000)) for n in range(20))
    with Writer(tmp_path / "store") as writer:
        for snapshot in (1, 2):
            writer.put(b"fat", b"", meta=msgspec.structs.replace(META, mode=snapshot, xattrs=xattrs))
            for number in range(1000):
                writer.put(b"%04d" % number + b"x" * 200, b"", meta=msgspec.structs.replace(META, mode=snapshot))
            writer.seal(snapshot)
    async with asyncio.timeout(15), reading_pair(tmp_path / "store") as (remote, *_):
        found = [one async for lines in remote.compare(1, 2) for one in lines]
        assert len(found) == 1001 and all(one.before and one.after for one in found)
        versions = [one async for lines in remote.trace(b"fat") for one in lines]
        assert [one.put.meta.mode for one in versions] == [2, 1] and versions[0].put.meta.xattrs == xattrs


@pytest.mark.parametrize("second", [Visit(3, b"", 1, False, 1), Trace(b"x", 1), Compare(3, 5, [], 1)])
async def test_a_second_question_while_one_is_answered_breaks_the_protocol(store: Path, second: Message) -> None:
    """A client cannot make the server hold several answers."""
    async with served_pair(store) as (pair, serving):
        await pair.client.send(OpenRead("www"))
        await pair.client.receive()
        await pair.client.send(Visit(3, b"", MAX_DEPTH, True, 0))
        await pair.client.send(second)
        with pytest.raises(PeerError, match="second listing"):
            await asyncio.wait_for(serving, 5)


# what a hostile or broken replica may say


async def answered(question: str, *messages: Message) -> object:
    """What a remote reader makes of these answers to a question."""
    async with greeted_pair() as pair:
        remote_opening = RemoteReader.open(pair.client, "www")

        async def answer() -> None:
            await pair.server.receive()
            await pair.server.send(Opened(Head(), 0))
            await pair.server.receive()
            for message in messages:
                await pair.server.send(message)

        answering = asyncio.create_task(answer())
        remote = await remote_opening
        questions = {
            "visit": lambda: remote.visit(1, b"etc", 1),
            "trace": lambda: remote.trace(b"etc"),
            "compare": lambda: remote.compare(1, 2),
        }
        try:
            async with asyncio.timeout(5):
                return [one async for some in questions[question]() for one in some]
        finally:
            await answering
            await remote.close()


OUTSIDE = encode_ops([Put(b"etcetera", Kind.DIRECTORY, meta())])


@pytest.mark.parametrize(
    ("question", "messages"),
    [
        ("visit", (ListingMessage(OUTSIDE, False),)),
        ("visit", (ListingMessage(b"junk", False),)),
        ("visit", (Told(encode_told([]), False),)),
        ("trace", (ListingMessage(encode_ops([]), False),)),
        ("trace", (Told(b"junk", False),)),
        ("trace", (Told(encode_told([version(3, 2, None)]), False),)),
        ("compare", (Told(encode_told([version(1, 2, None)]), False),)),
        ("compare", (Told(encode_told([Difference(b"p", None, None, 0, 0)]), False),)),
    ],
)
async def test_a_replica_that_answers_something_else_is_a_protocol_error(
    question: str, messages: tuple[Message, ...]
) -> None:
    """Whoever waits is told; nothing of it is passed on."""
    with pytest.raises(PeerError):
        await answered(question, *messages)


async def test_a_history_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path has no more versions than there may be snapshots."""
    monkeypatch.setattr("replicad.work.read_remote.MAX_SNAPSHOTS", 2)
    part = Told(encode_told([version(1, 2, None)] * 2), True)
    with pytest.raises(PeerError, match="more than 2 versions"):
        await answered("trace", part, part)


@pytest.mark.parametrize(
    "later",
    [
        [Map(2, (0,), ident(1))],
        [Map(1, (0,), ident(1)), Map(1, (0,), ident(1))],
        [Map(1, (2,), ident(1))],
        [Put(b"p", Kind.FILE, META, 16, 1, 8)],
        [Drop(b"p")],
    ],
)
async def test_blocks_that_are_not_the_files_are_a_protocol_error(later: list[Op]) -> None:
    """Of another file, twice, beyond the end, or no blocks at all."""
    script = ScriptedReader()
    put = Put(b"p", Kind.FILE, META, 16, 1, 8)

    async def operations() -> AsyncIterator[list[Op]]:
        yield [put, *later]

    found, told_of = await entry_of(operations())
    assert found is put
    with pytest.raises(PeerError):
        async for _ in pieces(script, put, told_of):  # type: ignore[arg-type]
            pass
