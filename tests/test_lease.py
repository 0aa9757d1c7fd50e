"""Leases: what somebody reads stays, whoever reads it and from wherever, and only as long as it is read."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kit_retention import history_of
from kit_store import Primary, open_archive
from kit_tree import as_nobody, is_root
from replicad.model.errors import ReplicadError, UsageError
from replicad.work.archive_reader import ArchiveReader
from replicad.work.expire import drop
from replicad.work.lease import FILE, MAX_HELD, Leases, leased, letting_go

NUMBERS = range(1, 12)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A directory, which is all that leases need."""
    yield tmp_path


def goes(store: Path, number: int) -> bool:
    """Whether retention may drop this snapshot now."""
    with letting_go(store, [number]) as free:
        return free == [number]


def test_what_is_held_does_not_go_until_its_reader_closes(store: Path) -> None:
    """And the others do; two readers of one snapshot hold it until the second has gone."""
    one, two = Leases(store), Leases(store)
    assert one.hold(3) and two.hold(3) and one.hold(3)
    assert leased(store, NUMBERS) == {3}
    with letting_go(store, NUMBERS) as free:
        assert free == [number for number in NUMBERS if number != 3]
    one.close()
    assert not goes(store, 3)
    two.close()
    assert goes(store, 3) and leased(store, NUMBERS) == set()


def test_what_is_being_let_go_cannot_be_held(store: Path) -> None:
    """Between retention's look and its decision nobody slips in."""
    with letting_go(store, [1, 2]), closing(Leases(store)) as leases:
        assert not leases.hold(2) and leases.hold(3)
    with closing(Leases(store)) as leases:
        assert leases.hold(2)


def test_a_lease_ends_with_the_process_that_holds_it(store: Path) -> None:
    """Killed without warning, it leaves nothing behind that holds anything."""
    code = (
        "import sys, pathlib; from replicad.work.lease import Leases\n"
        "leases = Leases(pathlib.Path(sys.argv[1])); assert leases.hold(5); print('held', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout and reader.stdout.readline() == "held\n"
    assert not goes(store, 5) and leased(store, NUMBERS) == {5}
    reader.kill()
    reader.communicate()
    assert goes(store, 5)


def test_one_reader_holds_a_few_only(store: Path) -> None:
    """Those it looked at last: looking at a whole history does not keep it."""
    with closing(Leases(store)) as leases:
        assert all(leases.hold(number) for number in range(1, MAX_HELD + 4)) and leases.hold(4)
        assert leases.hold(100)
        assert leased(store, range(200)) == {4, *range(6, MAX_HELD + 4), 100}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_nothing_goes_when_nobody_can_tell_who_reads_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Too many open files, a medium that fails, a file that is not ours: what a restore reads at this moment must not
    go because retention could not ask."""
    with closing(Leases(store)) as leases:
        assert leases.hold(3)
        opened = os.open

        def refused(path: object, *args: object, **kwargs: object) -> int:
            if Path(str(path)).name == FILE:
                raise OSError(code, os.strerror(code))
            return opened(path, *args, **kwargs)  # type: ignore[arg-type, call-overload, no-any-return]

        monkeypatch.setattr(os, "open", refused)
        with pytest.raises(ReplicadError), letting_go(store, NUMBERS) as free:
            assert not free
        with closing(Leases(store)) as other:
            if code == errno.EACCES:
                assert other.hold(3), "a reader who may not make one does without"
            else:
                with pytest.raises(ReplicadError, match="cannot be held"):
                    other.hold(3)


@pytest.mark.skipif(not is_root(), reason="needs another user")
def test_who_may_not_write_in_a_store_is_not_kept_from_reading() -> None:
    """Where the file is there it holds all the same; where it is not, nobody has dropped anything yet."""
    with tempfile.TemporaryDirectory() as base:
        new, used = Path(base, "new"), Path(base, "used")
        for directory in (Path(base), new, used):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        assert goes(used, 1)
        with as_nobody(), closing(Leases(new)) as one, closing(Leases(used)) as other:
            assert one.hold(1) and other.hold(1)
            assert leased(new, [1]) == set() and leased(used, [1]) == {1}
        assert not (new / FILE).exists() and goes(used, 1)


@pytest.mark.skipif(not is_root(), reason="only root can give files away")
def test_the_file_belongs_to_the_owner_of_the_store(tmp_path: Path) -> None:
    """So that a restore that root types does not shut an unprivileged daemon out."""
    os.chown(tmp_path, 12345, 12346)
    with closing(Leases(tmp_path)) as leases:
        assert leases.hold(1)
    found = (tmp_path / FILE).stat()
    assert (found.st_uid, found.st_gid) == (12345, 12346)


def test_whoever_reads_a_record_holds_its_snapshot(tmp_path: Path) -> None:
    """From before the look whether it is kept; one that was dropped is refused and not held."""
    with closing(open_archive(tmp_path / "store")) as archive:
        history_of(Primary(archive), random.Random(1), 4)
        drop(archive, [2])
        with closing(ArchiveReader(tmp_path / "store")) as reader:
            for ask in (reader.record, lambda number: reader.visit(number, b"")):
                with pytest.raises(UsageError, match="not kept any more"):
                    ask(2)
                with pytest.raises(UsageError, match="no snapshot 9"):
                    ask(9)
            assert leased(tmp_path / "store", NUMBERS) == set()
            record = reader.record(1)
            assert leased(tmp_path / "store", NUMBERS) == {1}
            list(record)
            reader.compare(3, 4)
            assert leased(tmp_path / "store", NUMBERS) == {1, 3, 4}
        assert leased(tmp_path / "store", NUMBERS) == set()
        with (
            letting_go(tmp_path / "store", [3]),
            closing(ArchiveReader(tmp_path / "store")) as reader,
            pytest.raises(UsageError, match="not kept any more"),
        ):
            reader.record(3)
