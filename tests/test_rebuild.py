"""A rebuild of a store whose newest segment is gone asks what followed the last seal, and nothing else asks that."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kit_pair import replicad
from kit_restore import Writer
from kit_scrub import SMALL, Rig
from kit_store import CLIENT, DATASET, Primary, block, kill, open_archive, put_files, segment
from replicad.db.catalog import Catalog
from replicad.store import store as store_module
from replicad.store.segments import SegmentWriter, segment_numbers
from replicad.work.archive import catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.rebuild import rebuild_catalog
from replicad.work.replay import NEWEST_GONE

HARMS = {"missing": None, "empty": b"", "header cut": 10, "never written": bytes(4096), "cut later": 1000}
"""What is left of the newest segment: bytes, or how many of its own."""
SILENT = "cut later"
"""What a crash leaves: nobody can tell that more was there."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A closed store of several segments."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    rig = Rig(tmp_path / CLIENT / DATASET)
    rig.fill()
    rig.close()
    assert len(segment_numbers(rig.directory)) > 2
    return rig.directory


def harm(store: Path, how: str) -> int:
    """Take the newest segment, or most of it; its number."""
    newest, left = segment_numbers(store)[-1], HARMS[how]
    path = segment(store, newest)
    data = path.read_bytes()
    path.write_bytes(data[:left] if isinstance(left, int) else left or b"")
    if left is None:
        path.unlink()
    return newest


def two_snapshots(directory: Path) -> Path:
    """A closed store at `directory` in two segments, of which the second has the commit of the second snapshot."""
    with Writer(directory) as writer:
        writer.put(b"")
        for number, names in ((1, "abc"), (2, "ab")):
            for name in names:
                writer.put(name.encode(), random.Random(f"{name}{number}").randbytes(50_000))
            writer.seal(number)
    assert len(segment_numbers(directory)) == 2
    return directory


class PowerCutError(Exception):
    """What nobody catches."""


def cut_power(*_: object) -> NoReturn:
    """Here."""
    raise PowerCutError


def forget(store: Path) -> None:
    """Lose the catalog."""
    for path in store.glob("catalog.db*"):
        path.unlink()


@pytest.mark.parametrize("how", HARMS)
def test_a_newest_segment_that_is_gone_is_noticed_by_the_seal_before_it(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """In the new catalog, in what `rebuild` prints and its exit code, and on standard error where a restore makes a
    catalog elsewhere."""
    newest = harm(store, how)
    wanted = [] if how == SILENT else [(newest, 0, 0, NEWEST_GONE)]
    elsewhere = rebuild_catalog(store, into=tmp_path / "elsewhere.db")
    assert [(d.segment, d.offset, d.length, d.reason) for d in elsewhere.damage] == wanted
    assert ("was there a newer snapshot?" in capsys.readouterr().err) == bool(wanted)
    reader = ArchiveReader(store, catalog=elsewhere.catalog)
    assert reader.newest_gone() == bool(wanted)
    reader.close()
    forget(store)
    done = replicad("rebuild", "--store", tmp_path, code=int(bool(wanted)))
    assert ("was there a newer snapshot?" in done.stdout) == bool(wanted)
    archive = open_archive(store)
    assert [(d.segment, d.offset, d.length, d.reason) for d in archive.damage] == wanted
    archive.close()


def test_a_damaged_segment_with_its_seal_tells_that_the_next_is_gone(store: Path) -> None:
    """What is wrong in the middle of it does not hide what is not behind it."""
    newest = harm(store, "missing")
    path = segment(store, newest - 1)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    damage = rebuild_catalog(store).damage
    assert (damage[-1].segment, damage[-1].reason) == (newest, NEWEST_GONE)
    assert damage[0].segment == newest - 1 and damage[0].length


def test_a_whole_store_and_one_of_a_single_empty_segment_raise_no_question(store: Path, tmp_path: Path) -> None:
    """The first was asked nothing, and the second has no seal before it."""
    assert not rebuild_catalog(store).damage
    first = tmp_path / "other" / DATASET
    (first / "segments").mkdir(parents=True)
    segment(first).touch()
    assert not rebuild_catalog(first).damage


@pytest.mark.parametrize("has_file", [False, True])
def test_a_crash_between_two_segments_is_asked_about_only_where_the_catalog_is_lost(
    store: Path, monkeypatch: pytest.MonkeyPatch, has_file: bool
) -> None:
    """A restart after it finds nothing amiss, and what its catalog knows then answers for a rebuild."""
    archive = open_archive(store)
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(SegmentWriter, "create", cut_power)
        put_files(Primary(archive), 9, {b"large": block("a few ", 3 * SMALL)})
    newest = archive.checkpoint.segment
    kill(archive)
    if has_file:
        segment(store, newest + 1).touch()
    archive = open_archive(store)
    assert archive.checkpoint.segment == newest + 1 and not archive.damage
    archive.close()
    assert not rebuild_catalog(store, knowing=catalog_path(store)).damage
    forget(store)
    for knowing in (None, catalog_path(store)):  # one that was made anew itself knows no better
        assert [found.reason for found in rebuild_catalog(store, knowing=knowing).damage] == [NEWEST_GONE]


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_the_question_is_over_once_something_sound_follows_the_seal(store: Path, how: str) -> None:
    """The daemon opens the store and finds nothing to repair, a pass goes on in the next segment, a scrub verifies it,
    and then neither the catalog nor another rebuild says any more of it."""
    newest = harm(store, how)
    forget(store)
    assert rebuild_catalog(store).damage
    rig = Rig(store)
    rig.expected = {}
    assert rig.scrub() == 0 and not rig.open_ones()
    assert [found.segment for found in rig.archive.damage] == [newest]
    number = rig.archive.head.number + 1
    rig.put(number, {b"again": b"what the primary sends anew"})
    assert segment_numbers(store)[-1] == newest
    assert rig.scrub() == 0 and not rig.open_ones()
    rig.scrub()  # which notes what the last one has verified
    assert not rig.archive.damage
    rig.close()
    assert catalog_path(store).exists() and not rebuild_catalog(store).damage


@pytest.mark.parametrize("how", HARMS)
def test_a_restore_that_takes_the_latest_snapshot_tells_that_a_newer_one_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It and its plan end with 1 and say why, until something follows; whoever names a number gets what he named."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 170_000)
    store = two_snapshots(tmp_path / "store" / CLIENT / DATASET)
    harm(store, how)
    forget(store)
    is_asked = how != SILENT
    replicad("rebuild", "--store", tmp_path / "store", code=int(is_asked))
    words = ("restore", DATASET, tmp_path / "back", "--store", tmp_path / "store", "--config", tmp_path / "none.toml")
    for more in (("--plan",), (), ("--at", "2030-01-01T00:00:00Z", "--dry-run")):
        done = replicad(*words, *more, "--json", code=int(is_asked))
        assert json.loads(done.stdout)["newest_gone"] is is_asked
        assert ("a newer snapshot than 1 may be lost" in done.stderr) is is_asked
    assert "newer" not in replicad(*words, "--at", "1").stderr
    assert ("a newer snapshot than 1" in replicad(*words, "--plan", code=int(is_asked)).stdout) is is_asked
    if is_asked:
        with Writer(store) as writer:
            writer.seal(3)
        assert json.loads(replicad(*words, "--json").stdout)["newest_gone"] is False


def test_a_rebuild_that_was_cut_short_asks_when_it_is_gone_on_with(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next opening of the store ends it, and asks what it would have asked."""
    newest, real = harm(store, "missing"), Catalog.commit
    forget(store)

    def commit(self: Catalog, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        cut_power()

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(Catalog, "commit", commit)
        rebuild_catalog(store)
    archive = open_archive(store)
    assert [(found.segment, found.reason) for found in archive.damage] == [(newest, NEWEST_GONE)]
    archive.close()
