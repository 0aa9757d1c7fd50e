"""Scratch space: refused where it overlaps live data, removed with all that is in it, and nothing else ever."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from replicad.model.errors import DiskFullError, ReplicadError, UsageError
from replicad.work import scratch
from replicad.work.scratch import MARK, MARKER, Scratch, check_apart, sweep


def test_a_scratch_directory_that_overlaps_live_data_is_refused(tmp_path: Path) -> None:
    """In either direction, the same directory, and through links on both sides."""
    live, free = tmp_path / "live", tmp_path / "free"
    (live / "below").mkdir(parents=True)
    free.mkdir()
    (tmp_path / "link").symlink_to(live)
    (free / "way").symlink_to(live / "below")
    places = [("dataset www", tmp_path / "link")]
    for bad in (live, live / "below", tmp_path, tmp_path / "link" / "below", free / "way"):
        with pytest.raises(UsageError, match="overlaps dataset www"):
            check_apart(bad, places)
    check_apart(free, places)
    check_apart(tmp_path / "live2", places)


def test_a_scratch_directory_goes_with_everything_in_it(tmp_path: Path) -> None:
    """Deep trees, read-only directories, links that lead out: all gone, and nothing outside touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    scratch = Scratch(tmp_path, "www")
    deep = scratch.tree
    for _ in range(60):
        deep = deep / ("d" * 100)
        deep.mkdir()
        (deep / "file").write_text("x")
        if len(str(deep)) > 3000:
            break
    (scratch.tree / "out").symlink_to(outside)
    shut = scratch.tree / "shut"
    shut.mkdir()
    (shut / "in").write_text("x")
    shut.chmod(0)
    scratch.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside"] and (outside / "precious").exists()


def test_a_user_without_rights_can_remove_what_shuts_it_out(tmp_path: Path) -> None:
    """A restored directory that its owner may not enter goes too when the daemon is not root."""
    if os.geteuid():
        pytest.skip("root takes another user's place")
    tmp_path.chmod(0o777)
    pid = os.fork()
    if pid == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            scratch = Scratch(tmp_path, "www")
            for mode in (0, 0o100, 0o400, 0o555):
                directory = scratch.tree / str(mode)
                (directory / "below").mkdir(parents=True)
                (directory / "file").write_text("x")
                (directory / "below").chmod(mode)
                directory.chmod(mode)
            scratch.tree.chmod(0o500)
            scratch.close()
        finally:
            os._exit(len(list(tmp_path.iterdir())))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_a_killed_drill_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    """Only a directory with the name, the marker, this owner and nobody at work in it goes."""
    live = Scratch(tmp_path, "www")
    kept = ["replicad-drill-www-00000001", "replicad-drill-www-00000002", "other-00000003", "replicad-drill-www-4"]
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / kept[1] / MARKER).write_text("a marker of somebody else")
    (tmp_path / kept[2] / MARKER).write_bytes(MARK)
    (tmp_path / kept[3] / MARKER).write_bytes(MARK)
    (tmp_path / "replicad-drill-www-00000005").write_text("a file")
    (tmp_path / "replicad-drill-www-00000006").symlink_to(tmp_path / kept[0])
    left = tmp_path / "replicad-drill-www-0000000a"
    (left / "tree" / "deep").mkdir(parents=True)
    (left / MARKER).write_bytes(MARK)
    half, bare = tmp_path / "replicad-drill-www-0000000b", tmp_path / "replicad-drill-www-0000000c"
    half.mkdir()
    (half / MARKER).write_bytes(b"")
    bare.mkdir()
    before = set(tmp_path.iterdir())
    assert set(sweep(tmp_path)) == {left, half, bare}
    assert set(tmp_path.iterdir()) == before - {left, half, bare} and live.tree.exists()
    live.close()
    assert sweep(tmp_path / "nowhere") == []


def test_a_directory_of_another_user_is_not_swept(tmp_path: Path) -> None:
    """Whatever it holds."""
    if os.geteuid():
        pytest.skip("root makes another user's directory")
    theirs = tmp_path / "replicad-drill-www-0000000a"
    theirs.mkdir()
    (theirs / MARKER).write_bytes(MARK)
    os.chown(theirs, 65534, 65534)
    assert sweep(tmp_path) == [] and theirs.exists()


def test_a_mounted_file_system_stops_the_removal(tmp_path: Path) -> None:
    """What is mounted in a scratch directory is somebody's: it is not emptied, and the error says so."""
    if os.geteuid():
        pytest.skip("only root mounts")
    scratch = Scratch(tmp_path, "www")
    mounted = scratch.tree / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (mounted / "precious").write_text("x")
        with pytest.raises(ReplicadError, match="cannot be removed"):
            scratch.close()
        assert (mounted / "precious").exists()
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert sweep(tmp_path) == [scratch.path], "the marker is still there, so the next start goes on with it"


def test_a_scratch_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Missing, or no directory."""
    (tmp_path / "file").write_text("x")
    for bad in ("nowhere", "file"):
        with pytest.raises(UsageError, match="cannot be used"):
            Scratch(tmp_path / bad, "www")


@pytest.mark.parametrize("step", ["write", "flock", "mkdir"])
def test_a_scratch_directory_that_cannot_be_made_whole_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory, no open file: a scratch space that is full is tried again every hour."""

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    if step == "mkdir":
        real = Path.mkdir
        monkeypatch.setattr(Path, "mkdir", lambda self, **more: full() if self.name == "bench" else real(self, **more))
    elif step == "write":
        monkeypatch.setattr(scratch.os, "write", full)
    else:
        real_lock = scratch.fcntl.flock
        monkeypatch.setattr(
            scratch.fcntl, "flock", lambda fd, how: full() if how & scratch.fcntl.LOCK_NB else real_lock(fd, how)
        )
    for _ in range(3):
        with pytest.raises(DiskFullError):
            Scratch(tmp_path, "www")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [] and len(os.listdir("/proc/self/fd")) == before


def test_a_directory_of_many_directories_goes_in_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked into once, and the one that holds them once in a thousand: a hundred thousand take no hours."""
    made, looks, real = Scratch(tmp_path, "www"), list[int](), scratch._unlink_files
    count = 2500
    for number in range(count):
        (made.tree / f"{number:04}").mkdir()
    (made.tree / "0007" / "deep" / "deeper").mkdir(parents=True)

    def looked(fd: int, keep: str) -> object:
        looks.append(fd)
        return real(fd, keep)

    monkeypatch.setattr(scratch, "_unlink_files", looked)
    made.close()
    assert list(tmp_path.iterdir()) == [] and count < len(looks) < count + 20


async def test_a_scratch_directory_that_is_not_wanted_any_more_is_removed(tmp_path: Path) -> None:
    """A drill that is given up while it waits for the directory, which another one sweeps."""
    before = len(os.listdir("/proc/self/fd"))
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    making = asyncio.create_task(scratch.make_scratch(tmp_path, "www"))
    await asyncio.sleep(0.05)
    making.cancel()
    await asyncio.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
    os.close(held)
    with pytest.raises(asyncio.CancelledError):
        await making
    assert list(tmp_path.iterdir()) == [] and len(os.listdir("/proc/self/fd")) == before
