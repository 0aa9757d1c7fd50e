"""Two real daemons whose own books and segments rot: it is told as what it is, and what the hint says mends it."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kit_faults import MIB, archive_of, assert_quiet, during, flip, served, synced, tree_at, tree_now
from kit_pair import Pair, assert_same_tree, make_pair, replicad, running, wait_until
from kit_rig import differences, snapshots
from replicad.db.database import PAGE_BYTES
from replicad.db.findings import Findings

Harm = Callable[[Path], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    source = random.Random(1)
    for number in range(400):
        file = path / f"d{number % 7}" / f"file-with-a-long-name-{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.randbytes(2000))
    (path / "big").write_bytes(source.randbytes(3 * MIB))
    return path


@pytest.fixture
def pair(tmp_path: Path, root: Path) -> Iterator[Pair]:
    """A pair with one snapshot and some changes in a second one."""
    made = make_pair(tmp_path / "pair", root, dataset_options="watch = false\nmax_change = 1.0")
    with running(made):
        synced(made)
        (root / "d1" / "more").write_text("more")
        synced(made)
        yield made


def _header(path: Path) -> None:
    for offset in (0, 17, 40):
        flip(path, offset, 4)


def _everywhere(path: Path) -> None:
    source = random.Random(2)
    for start in range(0, path.stat().st_size, PAGE_BYTES):
        flip(path, start + source.randrange(PAGE_BYTES), 1 << source.randrange(8))


def _one_page(path: Path) -> None:
    """One that a pass over everything needs: it names an entry in the middle."""
    named = path.read_bytes().rfind(b"file-with-a-long-name-200")
    flip(path, named if named >= 0 else path.stat().st_size // 2 + 1000)


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(50_000))


HARMS = [_header, _everywhere, _one_page, _cut, _garbage]


def _shown(node_config: Path) -> str:
    return " ".join(replicad("status", "--config", node_config, code=1).stdout.split())


def _open_keys(book: Path) -> list[str]:
    """Keys of the open findings of one side."""
    with closing(Findings(book)) as findings:
        return [found.key for found in findings.listed()]


def _touch_everything(root: Path) -> None:
    """So that a pass looks at each page of the ledger."""
    for path in root.rglob("*"):
        if path.is_file():
            path.chmod(0o640)
    (root / "new").write_text("new")


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("running_on", [False, True], ids=["restarted", "running"])
def test_a_rotten_ledger_is_told_and_the_hint_mends_it(pair: Pair, root: Path, harm: Harm, running_on: bool) -> None:
    """The daemon lives, its status names the ledger and what to do, and a finding says so; the verb, or moving the file
    away and a release, bring back a primary whose next snapshot is exact, and no old one has changed."""
    ledger = pair.primary.state / "ledger" / "www.db"
    old = [tree_at(archive_of(pair), number) for number in (1, 2)]
    if running_on:
        harm(ledger)
        _touch_everything(root)
        served(pair)
    if not running_on or pair.line.pass_ok:
        pair.primary.stop()
        harm(ledger)
        _touch_everything(root)
        pair.primary.start()
    line = during(pair, lambda line: line.state == "failed", "the damage is told")
    assert str(ledger) in line.last_error
    here = _shown(pair.primary.config)
    assert str(ledger) in here and "replicad rebuild --ledger www" in here
    assert _open_keys(pair.primary.state / "findings" / "www.db") == ["book:ledger"]
    count = len(snapshots(archive_of(pair)))
    assert not served(pair).pass_ok
    if running_on:
        ledger.rename(ledger.with_name("moved-away"))
        assert "held" in pair.sync(code=1).stdout
        replicad("release", "www", "--config", pair.primary.config)
    else:
        pair.primary.stop()
        done = replicad("rebuild", "--ledger", "www", "--config", pair.primary.config)
        assert "the old one is kept as www.db.old" in done.stdout
        assert _open_keys(pair.primary.state / "findings" / "www.db") == []
        pair.primary.start()
    pair.sync()
    assert len(snapshots(archive_of(pair))) == count + 1
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    assert [tree_at(archive_of(pair), number) for number in (1, 2)] == old
    wait_until(
        lambda: replicad("status", "--config", pair.primary.config, code=None).returncode == 0,
        "all is well, once a scrub has read the new ledger",
    )
    assert_quiet(pair.primary, pair.replica)


@pytest.mark.parametrize("harm", [_header, _everywhere, _cut, _garbage])
@pytest.mark.parametrize("running_on", [False, True], ids=["restarted", "running"])
def test_a_rotten_catalog_is_told_and_a_rebuild_mends_it(pair: Pair, root: Path, harm: Harm, running_on: bool) -> None:
    """The replica lives, says that the catalog is damaged and how to rebuild it, and refuses its primary with words;
    after the rebuild every snapshot is exact and replication goes on."""
    catalog = archive_of(pair) / "catalog.db"
    old = [tree_at(archive_of(pair), number) for number in (1, 2)]
    if running_on:
        harm(catalog)
        _touch_everything(root)
        served(pair)
    if not running_on or pair.line.pass_ok:
        pair.replica.stop()
        harm(catalog)
        _touch_everything(root)
        pair.replica.start()
    wait_until(lambda: not served(pair).pass_ok, "the primary is refused")
    there = _shown(pair.replica.config)
    assert "damaged" in there and "replicad rebuild" in there, there
    assert _open_keys(archive_of(pair) / "findings.db") == ["book:catalog"]
    here = _shown(pair.primary.config)
    assert "damaged" in here or "fails its checksum" in here or "catalog" in here, here
    if replicad("rebuild", "--config", pair.replica.config, code=None).returncode:
        pair.replica.stop()
        replicad("rebuild", "--config", pair.replica.config)
        pair.replica.start()
    assert _open_keys(archive_of(pair) / "findings.db") == []
    synced(pair)
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    assert [tree_at(archive_of(pair), number) for number in (1, 2)] == old
    wait_until(
        lambda: replicad("status", "--config", pair.replica.config, code=None).returncode == 0,
        "all is well, once the daemon has looked at its findings again",
    )
    assert_quiet(pair.primary, pair.replica)


def test_a_lost_catalog_is_made_anew_by_a_rebuild(pair: Pair, root: Path) -> None:
    """Without its catalog a store is refused, not taken for an empty one."""
    pair.replica.stop()
    for path in archive_of(pair).glob("catalog.db*"):
        path.unlink()
    (root / "new").write_text("new")
    pair.replica.start()
    assert "replicad rebuild" in _shown(pair.replica.config)
    assert not served(pair).pass_ok
    replicad("rebuild", "--config", pair.replica.config)
    assert synced(pair).last_snapshot == 3
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    assert_quiet(pair.primary, pair.replica)


def test_a_rotten_frame_costs_its_bytes_and_nothing_else(pair: Pair, tmp_path: Path, root: Path) -> None:
    """A restore names the path and the bytes that it could not prove, brings everything else, and exits with 1; so from
    the primary, from the store, and after a restart, a rebuild included."""
    content = (root / "big").read_bytes()
    block = content[5 * 65536 : 6 * 65536]
    segment = next(p for p in (archive_of(pair) / "segments").iterdir() if block in p.read_bytes())
    flip(segment, segment.read_bytes().index(block) + 100)
    for number, restore in enumerate((pair.restore, pair.restore_from_store)):
        _assert_all_but_one_block(restore, tmp_path / f"target-{number}", root)
    pair.replica.kill()
    pair.replica.start()
    _assert_all_but_one_block(pair.restore, tmp_path / "after-restart", root)
    (root / "new").write_text("new")
    assert synced(pair).last_snapshot == 3
    pair.replica.stop()
    done = replicad("rebuild", "--config", pair.replica.config, code=1)
    assert "damaged" in done.stdout
    pair.replica.start()
    assert "damaged" in _shown(pair.replica.config)
    _assert_all_but_one_block(pair.restore, tmp_path / "after-rebuild", root)
    assert_quiet(pair.primary, pair.replica)


def _assert_all_but_one_block(restore: Callable[..., object], target: Path, root: Path) -> None:
    done = restore(target, code=1)
    output = " ".join((done.stdout + done.stderr).split())  # type: ignore[attr-defined]
    assert "big" in output
    assert re.search(r"327,?680", output) and re.search(r"393,?21[56]", output), output
    expected = target.with_name(f"{target.name}-expected")
    shutil.copytree(root, expected, copy_function=shutil.copy2)
    got, wanted = (target / "big").read_bytes(), (root / "big").read_bytes()
    assert len(got) == len(wanted)
    assert got[: 5 * 65536] == wanted[: 5 * 65536] and got[6 * 65536 :] == wanted[6 * 65536 :]
    assert got[5 * 65536 : 6 * 65536] in (bytes(65536), wanted[5 * 65536 : 6 * 65536])
    (target / "big").write_bytes(b"")
    (expected / "big").write_bytes(b"")
    shutil.copystat(expected / "big", target / "big")
    shutil.copystat(root, expected)
    shutil.copystat(expected, target)
    assert_same_tree(expected, target)
