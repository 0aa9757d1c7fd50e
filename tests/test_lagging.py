"""Replicas that lag behind, and sides whose history was set back: whatever they missed, they end up with the tree."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kit_faults import Workload
from kit_rig import Replica, Rig, copied, describe_snapshot, differences, replica, rig
from replicad.model.errors import LinkError
from replicad.work import copy as work_copy

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


Change = Callable[[Path, random.Random], None]


def _cut(path: Path, source: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 5)


def _empty(path: Path, source: random.Random) -> None:
    path.write_bytes(b"")


def _regrow(path: Path, source: random.Random) -> None:
    os.truncate(path, path.stat().st_size + 250_000)


def _append(path: Path, source: random.Random) -> None:
    with path.open("ab") as file:
        file.write(source.randbytes(200_000))


def _island(path: Path, source: random.Random) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size + 150_000)
        file.write(source.randbytes(1000))


def _rewrite(path: Path, source: random.Random) -> None:
    with path.open("r+b") as file:
        file.write(source.randbytes(path.stat().st_size // 2))


SEQUENCES: list[list[Change]] = [
    [_cut, _regrow],
    [_empty, _regrow],
    [_cut, _island, _append],
    [_cut, _append, _cut, _regrow],
    [_empty, _append, _island, _rewrite],
    [_cut, _regrow, _cut, _regrow, _append],
]


@pytest.mark.parametrize("size", [400_000, 3 * MIB])
@pytest.mark.parametrize("sequence", range(len(SEQUENCES)))
async def test_a_replica_that_missed_a_files_low_point_shows_none_of_what_was_cut(
    tmp_path: Path, root: Path, size: int, sequence: int
) -> None:
    """A file shrinks and grows again while one replica is away: in what grew, that one shows no old bytes."""
    source = random.Random(size + sequence)
    path = root / "f"
    path.write_bytes(source.randbytes(size))
    os.link(path, root / "other name")
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        await primary.sync(par1, "par1")
        for change in SEQUENCES[sequence]:
            change(path, source)
            await primary.sync(fra1)
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        await primary.sync(par1, "par1")
        assert differences(describe_snapshot(par1.archive), copied(root)) == []
        for _ in range(3):
            _append(path, source)
            _island(path, source)
            await primary.sync(par1, "par1")
            assert differences(describe_snapshot(par1.archive), copied(root)) == []
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@pytest.mark.parametrize("size", [400_000, 3 * MIB])
@pytest.mark.parametrize("sequence", range(len(SEQUENCES)))
async def test_passes_that_end_before_their_snapshot_leave_nothing_of_what_was_cut(
    tmp_path: Path, root: Path, size: int, sequence: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is recorded by a pass that is cut off right before its snapshot; the first one that gets through is
    exact all the same."""
    source = random.Random(size - sequence)
    path = root / "f"
    path.write_bytes(source.randbytes(size))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        for change in SEQUENCES[sequence]:
            change(path, source)
            with monkeypatch.context() as patch:
                patch.setattr(work_copy.Pass, "_seal", _cut_off)
                with pytest.raises(LinkError):
                    await primary.sync(fra1)
            await primary.reopen()
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        _append(path, source)
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def _cut_off(*_: object, **__: object) -> None:
    raise LinkError("cut right before the commit")


@pytest.mark.parametrize("seed", range(12))
async def test_random_edits_reach_replicas_that_come_and_go(
    tmp_path: Path, root: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas, each there for some of the passes, some of which are cut off or followed by a restart: whenever
    one gets through, it holds the tree."""
    source = random.Random(seed)
    work = Workload(root, seed, files=25)
    options = {"max_change": 1.0, "block_bytes": source.choice([0, 4096])}
    async with (
        rig(tmp_path, root, ("fra1", "par1"), **options) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        both = {"fra1": fra1, "par1": par1}
        for _ in range(14):
            work.edit(source.randrange(1, 12))
            (root / "stamp").write_text(str(source.random()))
            name = source.choice(["fra1", "fra1", "par1"])
            if source.random() < 0.4:
                with monkeypatch.context() as patch:
                    patch.setattr(work_copy.Pass, "_seal", _cut_off)
                    with pytest.raises(LinkError):
                        await primary.sync(both[name], name)
                continue
            await _exact(primary, both[name], name, root)
            if source.random() < 0.2:
                await primary.reopen()
        for name in both:
            await _exact(primary, both[name], name, root)


async def _exact(primary: Rig, there: Replica, name: str, root: Path) -> None:
    """A pass, and then a second one for what moved, after which nothing differs."""
    (root / "stamp").write_text(str(random.random()))
    status = await primary.sync(there, name)
    if not status.pass_ok:
        status = await primary.sync(there, name)
    assert status.pass_ok, status.troubles
    assert differences(describe_snapshot(there.archive), copied(root)) == []


@pytest.mark.parametrize("size", [400_000, 3 * MIB])
@pytest.mark.parametrize("what", ["store", "ledger"])
async def test_a_side_that_was_set_back_is_held_and_exact_after_a_release(
    tmp_path: Path, root: Path, size: int, what: str
) -> None:
    """A store, or a ledger, that is brought back from a backup knows less than the other side: nothing goes on by
    itself, and after a release the next snapshot shows the tree and nothing that either had forgotten."""
    source = random.Random(size)
    path = root / "f"
    path.write_bytes(source.randbytes(size))
    async with rig(tmp_path, root, max_change=1.0) as primary:
        async with replica(tmp_path / "store") as fra1:
            await primary.sync(fra1)
        await primary.reopen()
        place = tmp_path / ("store" if what == "store" else "state")
        shutil.copytree(place, tmp_path / "backup")
        async with replica(tmp_path / "store") as fra1:
            for change in (_append, _island, _append):
                change(path, source)
                (root / f"new {change.__name__}").write_bytes(source.randbytes(300_000))
                await primary.sync(fra1)
            _empty(path, source)
            _regrow(path, source)
            for gone in root.glob("new *"):
                gone.unlink()
            if what == "store":
                await primary.sync(fra1)
        await primary.reopen()
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "backup", place)
        await primary.reopen()
        for number in range(4):
            with (root / f"newer {number}").open("wb") as file:
                file.truncate(280_000)
                file.write(b"start")
        async with replica(tmp_path / "store") as fra1:
            assert (await primary.sync(fra1)).held
            await primary.dataset.in_ledger(primary.dataset.release)
            await _exact(primary, fra1, "fra1", root)
            for change in (_append, _island, _cut, _regrow):
                change(path, source)
                await _exact(primary, fra1, "fra1", root)
