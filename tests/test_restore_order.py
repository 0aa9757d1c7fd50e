"""The restore order: what is important comes back first, usable, and everything comes back right all the same."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_restore import ScriptedReader, Writer, archive_tree, damage_block, differences, meta, reading_pair, restore
from kit_tree import build_tree, describe_tree, is_root, unprivileged
from replicad.config import load
from replicad.model.block import block_id
from replicad.model.entry import Op
from replicad.model.errors import ConfigError, LinkError, UsageError
from replicad.model.order import (
    MAX_CLASSES,
    MAX_ORDER_BYTES,
    MAX_PATTERN_BYTES,
    REST,
    Order,
    RestoreClass,
    decode_order_untrusted,
    encode_order,
    first_of,
)
from replicad.model.snapshot import Commit, decode_commit, encode_commit
from replicad.work.account import ClassDone
from replicad.work.planner import Rules
from replicad.work.restore import Restore

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
ORDER = Order([RestoreClass("database", ("pg", "**/*.db")), RestoreClass("mail", ("mail/*", "pg/late"))])


def make_tree(root: Path) -> None:
    """Data of several classes in one another's directories, a file with names in two of them, links, empty places."""
    for directory in ("pg/base", "mail/old/deep", "web/empty"):
        (root / directory).mkdir(parents=True)
    for name in ("pg/base/1", "pg/late", "mail/one", "mail/old/deep/two", "web/page", "web/app.db", "zz"):
        (root / name).write_bytes(name.encode() * 30_000)
    os.link(root / "pg/base/1", root / "mail/linked")
    os.link(root / "mail/one", root / "aaa-linked")
    os.symlink("page", root / "web/link")
    (root / "web").chmod(0o2755)
    (root / "mail/old").chmod(0o500)
    for at, path in enumerate([*sorted(root.rglob("*")), root]):
        os.utime(path, ns=(10**18, 10**18 + at), follow_symlinks=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Such a tree, and a store that holds it."""
    base = tmp_path_factory.mktemp("ordered")
    make_tree(base / "tree")
    archive_tree(base / "store", base / "tree")
    return base / "tree", base / "store"


# pure


def test_an_entry_belongs_to_the_first_class_that_has_it() -> None:
    """By itself or by a directory above it; else to the rest."""
    found = {path: ORDER.names()[ORDER.place_of(path)] for path in (b"pg", b"pg/late", b"web/app.db", b"mail/x/y")}
    assert found == {b"pg": "database", b"pg/late": "database", b"web/app.db": "database", b"mail/x/y": "mail"}
    assert [ORDER.names()[ORDER.place_of(path)] for path in (b"", b"mail", b"web/app")] == [REST] * 3


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ([RestoreClass("a", ())], "between 1 and"),
        ([RestoreClass("rest", ("x",))], "all else"),
        ([RestoreClass("../x", ("x",))], "no name"),
        ([RestoreClass("a", ("x",)), RestoreClass("a", ("y",))], "two classes"),
        ([RestoreClass("a", ("../x",))], "'..'"),
        ([RestoreClass(f"a{n}", ("x",)) for n in range(MAX_CLASSES + 1)], "more than"),
        ([RestoreClass("a", ("x" * 4000, "y" * 4000, "z" * (MAX_PATTERN_BYTES - 7999)))], "longer than"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_in_words(classes: list[RestoreClass], reason: str) -> None:
    """Names are told apart, patterns lead nowhere else, and there are not too many."""
    with pytest.raises(ValueError, match=reason):
        Order(classes)


def test_an_order_travels_and_fits() -> None:
    """What a configuration may say comes out as it went in, and stays below what a peer may send."""
    worst = [RestoreClass(f"c{n:060d}", ('"' * (MAX_PATTERN_BYTES // MAX_CLASSES),)) for n in range(MAX_CLASSES)]
    for classes in (ORDER.classes, (), tuple(worst)):
        data = encode_order(classes)
        assert decode_order_untrusted(data).classes == classes and len(data) <= MAX_ORDER_BYTES


@given(st.binary() | st.text().map(str.encode) | st.just(b"x" * (MAX_ORDER_BYTES + 1)))
def test_an_order_from_a_peer_is_an_order_or_a_value_error(data: bytes) -> None:
    """Nothing else comes of any bytes."""
    try:
        decode_order_untrusted(data)
    except ValueError:
        pass


def test_a_commit_of_either_age_is_read_by_the_other() -> None:
    """An older replica passes over an order that it does not know, and a commit without one has none."""
    whole = encode_commit(Commit(1, 2, True, bytes(32), 3, bytes(32), 4, 5, 6, encode_order(ORDER.classes)))
    fields = msgspec.msgpack.decode(whole)
    assert decode_commit(whole).order == encode_order(ORDER.classes)
    assert decode_commit(msgspec.msgpack.encode(fields[:-1])).order == b""
    assert decode_commit(msgspec.msgpack.encode([*fields, b"of a later version"])).order == decode_commit(whole).order


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ('[[dataset.restore_order]]\nname = "a"\npatterns = ["x"]\n' * 2, "two classes are called 'a'"),
        ('[[dataset.restore_order]]\nname = "a"\n', "`patterns`"),
        ('[[dataset.restore_order]]\nname = "a"\npatterns = ["x"]\nfirst = 1\n', "first"),
        ('[[dataset.restore_order]]\nname = "a"\npatterns = ["../x"]\n', "'..'"),
        ('restore_order = "pg"\n', "must be an array"),
    ],
)
def test_a_configured_order_that_makes_no_sense_is_a_problem_with_its_line(
    tmp_path: Path, tables: str, reason: str
) -> None:
    """The file, the key, and what is wrong with it."""
    text = EXAMPLE.read_text()
    file = tmp_path / "config.toml"
    file.write_text(text.replace("restore_order = []\n", tables))
    with pytest.raises(ConfigError) as caught:
        load(file, check_files=False)
    (problem,) = caught.value.problems
    assert reason in str(problem) and "dataset.restore_order" in str(problem) and problem.line > 150
    file.write_text(text.replace("restore_order = []\n", '[[dataset.restore_order]]\nname = "a"\npatterns = ["x"]\n'))
    assert load(file, check_files=False).datasets[0].restore_order == (RestoreClass("a", ("x",)),)


# restored


@pytest.mark.parametrize("remote", [False, True])
async def test_everything_comes_back_right_in_any_order(made: tuple[Path, Path], tmp_path: Path, remote: bool) -> None:
    """Times of directories and links across classes included; the account is that of a restore without an order."""
    tree, store = made
    plain = await restore(store, tmp_path / "plain")
    orders = [ORDER, Order(first_of(["zz", "web"])), Order(first_of(["**/deep", "mail/old", "mail", "**"]))]
    for number, order in enumerate(orders):
        back = tmp_path / f"{number}"
        if remote:
            async with reading_pair(store) as (reader, _, _):
                [line] = await reader.snapshots()
                account = await Restore(reader, line, back, rules=Rules(order=order)).run()
        else:
            account = await restore(store, back, rules=Rules(order=order))
        assert account.exit_code == 0 and differences(tree, back) == ""
        assert describe_tree(tree) == describe_tree(back)
        assert (account.restored, account.restored_bytes) == (plain.restored, plain.restored_bytes)
        assert [done.name for done in account.classes] == order.names()
        assert sum(done.bytes for done in account.classes) == account.restored_bytes
        again = await restore(store, back, rules=Rules(order=order))
        assert not again.restored and again.unchanged == (await restore(store, back)).unchanged


async def test_a_rich_tree_comes_back_in_an_order(tmp_path: Path) -> None:
    """Every kind of entry; also over a tree that differs, where what is extra goes."""
    build_tree(tmp_path / "tree")
    os.unlink(tmp_path / "tree" / "links" / "hard-symlink")  # records know hard links of files only
    archive_tree(tmp_path / "store", tmp_path / "tree")
    rules = Rules(order=Order(first_of(["links/*", "docs", "**/*.txt"])), delete_extra=True)
    (tmp_path / "back" / "docs" / "extra").mkdir(parents=True)
    (tmp_path / "back" / "more").write_bytes(b"more")
    account = await restore(tmp_path / "store", tmp_path / "back", rules=rules)
    assert account.exit_code == 0 and account.extra_removed == 2
    assert describe_tree(tmp_path / "tree") == describe_tree(tmp_path / "back")


async def test_a_class_is_usable_when_it_is_told(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Complete with its directories' modes and times, reachable for others, while nothing of later classes is there."""
    tree, store = made
    told: list[ClassDone] = []

    def check(done: ClassDone) -> None:
        told.append(done)
        back = tmp_path / "back"
        if done.name == "database":
            for path in ("pg", "pg/base", "pg/base/1", "pg/late", "web/app.db"):
                one, other = (tree / path).stat(), (back / path).stat()
                assert (one.st_mode, one.st_mtime_ns) == (other.st_mode, other.st_mtime_ns), path
            assert (back / "web/app.db").exists() and not (back / "mail").exists() and not (back / "zz").exists()
            assert back.stat().st_mode == tree.stat().st_mode
        elif done.name == "mail":
            assert describe_tree(tree / "mail/old") == describe_tree(back / "mail/old")
            assert (back / "mail/linked").stat().st_ino == (back / "pg/base/1").stat().st_ino
            assert not (back / "zz").exists()

    await restore(store, tmp_path / "back", rules=Rules(order=ORDER), told=check)
    assert [(done.name, done.wrong) for done in told] == [("database", 0), ("mail", 0), (REST, 0)]
    assert [done.files for done in told] == [3, 2, 2]
    assert sorted(done.finished_s for done in told) == [done.finished_s for done in told]


async def test_patterns_choose_within_an_order(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Only what a person wants comes back, in that order; a pattern that nothing matches is a failure."""
    _, store = made
    globs = (b"pg/late", b"web/*.db", b"nothing/*")
    account = await restore(store, tmp_path / "back", rules=Rules(order=ORDER), globs=globs)
    assert account.failed == {"patterns": 1} and account.exit_code == 1
    found = sorted(str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*"))
    assert found == ["pg", "pg/late", "web", "web/app.db"]


@pytest.mark.parametrize("order", [Order(), ORDER])
async def test_patterns_that_match_nothing_at_all_change_nothing(
    made: tuple[Path, Path], tmp_path: Path, order: Order
) -> None:
    """A slip of the finger is a usage error; no target is made for it, and one that is there stays."""
    with pytest.raises(UsageError, match=r"nothing in snapshot 1 matches Pg, \*\*/\*.dB"):
        await restore(made[1], tmp_path / "back", globs=(b"Pg", b"**/*.dB"), rules=Rules(order=order))
    assert not (tmp_path / "back").exists()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="matches Pg"):
        await restore(made[1], tmp_path / "back", globs=(b"Pg",), rules=Rules(order=order))
    assert os.listdir(tmp_path / "back") == ["mine"]


async def test_damage_is_told_with_the_class_it_is_in(tmp_path: Path) -> None:
    """The class says that it is not whole, and the others are complete."""
    content = os.urandom(200_000)
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"a.db", content)
        writer.put(b"b", b"b")
        writer.seal()
    damage_block(tmp_path / "store", block_id(content[:65536]))
    account = await restore(tmp_path / "store", tmp_path / "back", rules=Rules(order=Order(first_of(["*.db"]))))
    assert [(done.files, done.wrong) for done in account.classes] == [(0, 1), (1, 0)]
    assert account.exit_code == 1


class OrderedScript(ScriptedReader):
    """A scripted reader that keeps to patterns, as far as a test needs, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[bytes] = []

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        async for ops in super().record(snapshot):
            yield ops

    async def fetch(self, ids: bytes) -> AsyncIterator[list]:  # type: ignore[type-arg]
        async for answers in super().fetch(ids):
            self.given.extend(answer.id for answer in answers)
            yield answers


async def test_an_interrupted_restore_keeps_its_order(tmp_path: Path) -> None:
    """Cut off in the second class it goes on there: the first is compared and not fetched again."""
    reader = OrderedScript()
    reader.directory(b"")
    names = [b"a-rest", b"b.db", b"c-rest", b"d.db", b"e.log"]
    for name in names:
        reader.file(name, name * 1000)
    rules = Rules(order=Order(first_of(["*.db", "*.log"])))
    reader.fail_after = 2  # one block for each of the first class
    [line] = await reader.snapshots()
    with pytest.raises(LinkError):
        await Restore(reader, line, tmp_path / "back", rules=rules).run()
    assert {path.name for path in (tmp_path / "back").glob("*.db")} == {"b.db", "d.db"}
    assert not (tmp_path / "back" / "a-rest").exists()
    reader.fail_after, before = -1, set(reader.given)
    account = await Restore(reader, line, tmp_path / "back", rules=rules).run()
    assert account.exit_code == 0 and account.unchanged["files"] == 2
    assert before.isdisjoint(reader.given[len(before) :])
    assert all((tmp_path / "back" / os.fsdecode(name)).read_bytes() == name * 1000 for name in names)


@pytest.mark.skipif(not is_root(), reason="needs another user")
async def test_without_rights_a_directory_on_the_way_is_not_shut(tmp_path: Path) -> None:
    """One without its owner's right to write still gets what later classes have in it, and what could not be set is
    told once."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.directory(b"shut", meta=meta(0o555))
    reader.file(b"shut/a.db", b"first")
    reader.file(b"shut/other", b"other")
    place = tmp_path / "nobody"
    place.mkdir()
    os.chown(place, 65534, 65534)
    tmp_path.chmod(0o755)
    [line] = await reader.snapshots()
    with unprivileged():
        account = await Restore(reader, line, place / "back", rules=Rules(order=Order(first_of(["**/*.db"])))).run()
    assert account.restored["files"] == 2 and account.metadata_not_set == 4 and not account.failed
    assert (place / "back" / "shut").stat().st_mode & 0o777 == 0o555
