"""`replicad rebuild`: a catalog from segments alone, typed as an operator would."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kit_pair import replicad
from kit_store import Primary, open_archive, put_files, segment, trees
from kit_tree import NOBODY, is_root


def make_store(root: Path) -> Path:
    """A store directory with one dataset of two snapshots; the dataset's own directory."""
    directory = root / "ams1" / "www"
    directory.mkdir(parents=True)
    archive = open_archive(directory)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"one", b"b": b"two"})
    put_files(primary, 2, {b"a": b"three"})
    archive.close()
    return directory


def test_a_lost_catalog_is_rebuilt_and_says_what_it_holds(tmp_path: Path) -> None:
    """Every snapshot is back, whether all of the store or one dataset was named."""
    directory = make_store(tmp_path)
    before = trees(directory)
    for words in ((), ("www",), ("ams1/www",)):
        for file in directory.glob("catalog.db*"):
            file.unlink()
        done = replicad("rebuild", *words, "--store", tmp_path)
        assert "ams1/www: catalog rebuilt up to snapshot 2" in done.stdout
        assert trees(directory) == before


def test_the_old_catalog_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    """Nothing is thrown away by a rebuild."""
    directory = make_store(tmp_path)
    done = replicad("rebuild", "--store", tmp_path)
    kept = done.stdout.rpartition("kept as ")[2].strip()
    assert (directory / kept).exists()


@pytest.mark.skipif(not is_root(), reason="only root can give files away")
def test_what_root_rebuilds_or_reads_still_belongs_to_the_daemon_s_user(tmp_path: Path) -> None:
    """A daemon that runs as a user of its own can write its store afterwards."""
    directory = make_store(tmp_path / "store")
    for path in (directory, *directory.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    replicad("rebuild", "--store", tmp_path / "store")
    replicad("restore", "--store", tmp_path / "store", "www", tmp_path / "restored")
    foreign = [path.name for path in directory.rglob("*") if path.stat().st_uid != NOBODY]
    assert foreign == []


def test_damage_found_on_the_way_is_named_and_exits_with_1(tmp_path: Path) -> None:
    """A flipped bit in a segment costs what it hit and nothing else."""
    directory = make_store(tmp_path)
    path = segment(directory)
    data = bytearray(path.read_bytes())
    place = data.index(b"two")
    data[place] ^= 1
    path.write_bytes(data)
    done = replicad("rebuild", "--store", tmp_path, code=1)
    assert "damaged: segment 1" in done.stdout
    document = json.loads(replicad("rebuild", "--store", tmp_path, "--json", code=1).stdout)
    assert document[0]["snapshot"] == 2
    assert document[0]["damage"]


def test_a_dataset_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    """The error names what there is, and nothing is changed."""
    make_store(tmp_path)
    done = replicad("rebuild", "db", "--store", tmp_path, code=2)
    assert "there is ams1/www" in done.stderr
