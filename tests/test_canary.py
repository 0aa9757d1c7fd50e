"""Canaries, one part at a time: what one is, the file that is written and never anybody else's, and the way it goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_daemon import NOW_NS, S, a_canary, a_dataset, a_node
from kit_restore import damage_block
from kit_rig import Replica, Rig, replica, rig
from kit_tree import as_nobody, is_root
from replicad.cli.status import render
from replicad.model.canary import Through, is_late
from replicad.model.canary_text import CANARY_BYTES, REMEMBERED, Canary, awaited, parse
from replicad.model.errors import LinkError, SourceError
from replicad.source.root import Root
from replicad.status import CanaryStatus, findings
from replicad.system.disk import Disk
from replicad.work import canary_book, canary_file
from replicad.work.canary import LOOK_S, Following
from replicad.work.canary_book import CanaryBook
from replicad.work.canary_file import write_canary
from replicad.work.suspicion import FEW_BITS, differing_bits

NAME = ".replicad-canary"
NONCE = "0123456789abcdef" * 2


def a_bird(number: int = 1, written_ns: int = NOW_NS, dataset: str = "www", nonce: str = NONCE) -> Canary:
    """A canary."""
    return Canary(dataset, number, written_ns, nonce)


# ------------------------------------------------------------------------------------------------------ what it is


@given(
    st.integers(1, 10**18 - 1),
    st.integers(0, 2**62),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    st.binary(min_size=16, max_size=16),
)
def test_a_canary_says_of_itself_what_it_is(number: int, written_ns: int, dataset: str, nonce: bytes) -> None:
    """What is written is one sector, and is read as what was written."""
    bird = a_bird(number, written_ns, dataset, nonce.hex())
    assert len(bird.content) == CANARY_BYTES and parse(bird.content) == bird


@given(st.integers(0, CANARY_BYTES * 8 - 1))
def test_nothing_else_is_taken_for_a_canary(bit: int) -> None:
    """One bit that differs, one byte less or more: it is somebody's file."""
    content = bytearray(a_bird().content)
    content[bit // 8] ^= 1 << bit % 8
    assert parse(bytes(content)) is None
    assert parse(a_bird().content[:-1]) is None and parse(a_bird().content + b"\n") is None and parse(b"") is None


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_no_canary_looks_like_another_with_flipped_bits(one: bytes, other: bytes) -> None:
    """So the replica's eye for suspect changes passes over it, whatever chance gives."""
    if one != other:
        first, second = a_bird(1, nonce=one.hex()).content, a_bird(2, nonce=other.hex()).content
        assert differing_bits(first, second)[0] > FEW_BITS


def test_what_came_through_speaks_for_what_it_overwrote() -> None:
    """Awaited are those after it; the oldest of them decides about late."""
    birds = [a_bird(number, NOW_NS + number) for number in (3, 4, 5)]
    assert awaited(birds, Through()) == birds
    assert awaited(birds, Through(number=4)) == birds[2:] and awaited(birds, Through(number=5)) == []
    assert not is_late(0, NOW_NS, 1.0)
    assert not is_late(NOW_NS - S, NOW_NS, 1.0) and is_late(NOW_NS - S - 1, NOW_NS, 1.0)
    assert not is_late(NOW_NS + S, NOW_NS, 1.0), "a clock that went back makes nothing late"


# -------------------------------------------------------------------------------------------------------- the file


def write(root: Path, bird: Canary, disk: Disk | None = None) -> None:
    """Write it there."""
    with Root(os.fsencode(root)) as opened:
        write_canary(opened, NAME.encode(), bird, disk or Disk())


def test_a_canary_is_made_and_rewritten_in_place(tmp_path: Path) -> None:
    """The same file, for its owner alone, and nothing beside it."""
    write(tmp_path, a_bird(1))
    inode = (tmp_path / NAME).stat().st_ino
    write(tmp_path, a_bird(2))
    assert parse((tmp_path / NAME).read_bytes()) == a_bird(2)
    assert (tmp_path / NAME).stat().st_ino == inode and (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [NAME]


def test_an_empty_file_made_for_it_is_written_into(tmp_path: Path) -> None:
    """So a service that may write nothing else can be given this one file; its mode stays as it was made."""
    (tmp_path / NAME).touch(0o640)
    write(tmp_path, a_bird())
    assert parse((tmp_path / NAME).read_bytes()) == a_bird() and (tmp_path / NAME).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["file", "damaged", "longer", "link", "directory", "fifo", "hard link", "other owner"])
def test_somebody_elses_file_is_never_written(tmp_path: Path, kind: str) -> None:
    """Whatever stands there and is no canary of its own stays as it is, and the refusal says so."""
    root, path, beside = tmp_path / "www", tmp_path / "www" / NAME, tmp_path / "beside"
    root.mkdir()
    beside.write_bytes(a_bird().content)
    match kind:
        case "file":
            path.write_bytes(b"mine")
        case "damaged":
            path.write_bytes(a_bird().content[:-2] + b"X\n")
        case "longer":
            path.write_bytes(a_bird().content + b"and more")
        case "link":
            path.symlink_to(beside)
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "hard link":
            os.link(beside, path)
        case "other owner":
            path.touch()
            os.chown(path, 12345, 12345)
    before, told = path.lstat(), "hint"
    with pytest.raises(SourceError) as raised:
        write(root, a_bird(2))
    assert raised.value.where == str(path) and getattr(raised.value, told)
    after = path.lstat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    assert beside.read_bytes() == a_bird().content and os.listdir(root) == [NAME]


def test_a_file_system_without_nameless_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS: the file has its name from the start; what a kill leaves there is empty, and is written into."""
    real = os.open

    def refusing(path: bytes, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(canary_file.os, "open", refusing)
    write(tmp_path, a_bird())
    assert parse((tmp_path / NAME).read_bytes()) == a_bird() and os.listdir(tmp_path) == [NAME]


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
def test_a_daemon_without_the_right_writes_the_one_file_that_it_was_given(tmp_path: Path) -> None:
    """In a directory of somebody else's it is refused, with what to do; an empty file of its own there is enough."""
    tmp_path.chmod(0o755)
    with as_nobody(), pytest.raises(SourceError, match="Permission denied") as raised:
        write(tmp_path, a_bird())
    assert "docs/CANARY.md" in raised.value.hint and os.listdir(tmp_path) == []
    (tmp_path / NAME).touch(0o600)
    shutil.chown(tmp_path / NAME, 65534, 65534)
    with as_nobody():
        write(tmp_path, a_bird(1))
        write(tmp_path, a_bird(2))
    assert parse((tmp_path / NAME).read_bytes()) == a_bird(2) and os.listdir(tmp_path) == [NAME]


@pytest.mark.skipif(not is_root(), reason="mounts, as systemd does")
def test_a_root_that_is_read_only_but_for_this_file_will_do(tmp_path: Path) -> None:
    """What `ProtectSystem=strict` with `ReadWritePaths=` of the file makes of a dataset: it is rewritten in place."""
    root = tmp_path / "www"
    root.mkdir()
    (root / NAME).touch()
    run("mount", "--bind", root, root)
    try:
        run("mount", "--bind", root / NAME, root / NAME)
        run("mount", "-o", "remount,bind,ro", root)
        write(root, a_bird(1))
        write(root, a_bird(2))
        assert parse((root / NAME).read_bytes()) == a_bird(2)
        run("umount", root / NAME)
        with pytest.raises(SourceError, match="Read-only file system"):
            write(root, a_bird(3))
        assert parse((root / NAME).read_bytes()) == a_bird(2)
    finally:
        subprocess.run(["umount", "-R", root], check=True)


def run(*words: object) -> None:
    """A program that has to end well."""
    subprocess.run([*map(str, words)], check=True, capture_output=True)


class _Full(Disk):
    """Has room for a hundred bytes."""

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:  # type: ignore[override] # narrower on purpose
        return super().pwrite(fd, data[:100], offset)


def test_a_full_file_system_leaves_nothing_of_it(tmp_path: Path) -> None:
    """No file where there was none, and an empty one where there was an empty one."""
    with pytest.raises(SourceError, match="No space left"):
        write(tmp_path, a_bird(), _Full())
    assert os.listdir(tmp_path) == []
    (tmp_path / NAME).touch()
    with pytest.raises(SourceError, match="No space left"):
        write(tmp_path, a_bird(), _Full())
    assert (tmp_path / NAME).read_bytes() == b""


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from replicad.model.canary_text import Canary
from replicad.source.root import Root
from replicad.system.disk import Disk
from replicad.work.canary_file import write_canary

class Killing(Disk):
    def pwrite(self, fd, data, offset):
        if {step!r} == "write":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pwrite(fd, data, offset)

    def sync(self, fd):
        os.kill(os.getpid(), signal.SIGKILL)

with Root({root!r}) as root:
    write_canary(root, {name!r}, Canary("www", 2, 2, {nonce!r}), Killing())
"""


@pytest.mark.parametrize("step", ["write", "sync"])
@pytest.mark.parametrize("there", [False, True])
def test_a_kill_while_it_is_written_leaves_no_litter(tmp_path: Path, step: str, there: bool) -> None:
    """A canary or none, whenever the kill comes; the next one is written as if nothing had been."""
    if there:
        write(tmp_path, a_bird(1))
    script = KILLED.format(path=sys.path, step=step, root=os.fsencode(tmp_path), name=NAME.encode(), nonce=NONCE)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path) == ([NAME] if there else [])
    if there:
        assert parse((tmp_path / NAME).read_bytes()) is not None
    write(tmp_path, a_bird(3))
    assert parse((tmp_path / NAME).read_bytes()) == a_bird(3)


# --------------------------------------------------------------------------------------------------------- the way


@dataclass
class Site:
    """A primary with a canary, and its jobs."""

    here: Rig
    book: CanaryBook
    directory: Path

    def following(self, there: Replica, name: str = "fra1") -> Following:
        """The job of one replica."""
        scratch = self.directory / "scratch" / name
        return Following(self.here.dataset, name, lambda: there.dial(), self.book, scratch, self.here.clock)

    def every(self, seconds: float) -> None:
        """Have the next one due after so long."""
        object.__setattr__(self.here.dataset.config, "canary_every_s", seconds)

    @property
    def bird(self) -> Canary | None:
        """What stands in the dataset."""
        path = self.here.root / NAME
        return parse(path.read_bytes()) if path.exists() else None


@asynccontextmanager
async def site(directory: Path, *replicas: str, **options: object) -> AsyncIterator[Site]:
    """A dataset with some files, whose canary is written once in a thousand seconds."""
    root = directory / "www"
    root.mkdir()
    for number in range(30):
        (root / f"file-{number}").write_bytes(os.urandom(500))
    given = {"canary": NAME, "canary_every_s": 1000.0} | options
    async with rig(directory, root, replicas or ("fra1",), **given) as here:
        yield Site(here, CanaryBook(here.dataset, here.clock, Disk()), directory)


async def test_a_canary_goes_all_the_way_and_is_timed(tmp_path: Path) -> None:
    """Written after the first snapshot, awaited until one has it, then read from the medium, restored and compared."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        job = made.following(there)
        await job.step()
        assert (job.status.state, made.bird) == ("paused", None), "what was never replicated gets nothing"
        assert "nothing has been replicated" in job.status.reason
        await made.here.sync(there)
        await job.step()
        assert made.bird is not None and made.bird.number == job.status.number == 1
        assert job.status.state == "waiting" and job.status.oldest_awaited_ns == made.bird.written_ns
        assert job.status.lags is None and not job.status.last_success_ns
        await made.here.sync(there)
        await job.step()
        status, lags = job.status, job.status.lags
        assert status.state == "idle" and status.last_number == 1 and not status.oldest_awaited_ns and lags
        assert 0 < lags.acknowledged_s <= lags.verified_s <= lags.restored_s
        assert status.last_success_ns == made.bird.written_ns + round(lags.restored_s * 1e9)
        assert status.source in ("media", "cache") and not status.failure
        assert list((tmp_path / "scratch" / "fra1").iterdir()) == []


async def test_a_snapshot_without_it_is_looked_into_once(tmp_path: Path) -> None:
    """While nothing new is acknowledged no session is opened, however long a canary is awaited; then it is found."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        await made.here.sync(there)
        job = made.following(there)
        await job.step()
        sessions = len(there.pairs)
        for _ in range(3):
            await job.step()
        assert len(there.pairs) == sessions and job.status.state == "waiting"
        await made.here.sync(there)
        await job.step()
        assert job.status.last_number == 1


async def test_it_is_remembered_over_a_restart(tmp_path: Path) -> None:
    """One that was on its way when the daemon was killed comes through, and is not written anew before it is due."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        await made.here.sync(there)
        await made.following(there).step()
        bird = made.bird
        left = tmp_path / "scratch" / "fra1" / "replicad-drill-canary-00000000"
        left.mkdir()
        (left / ".replicad-drill").touch()
        await made.here.reopen()
        again = Site(made.here, CanaryBook(made.here.dataset, made.here.clock, Disk()), tmp_path)
        await made.here.sync(there)
        job = again.following(there)
        await job.step()
        assert again.bird == bird and job.status.last_number == 1 and job.status.state == "idle"
        assert not left.exists(), "what a killed daemon left in scratch space is gone"
        await made.here.reopen()
        third = Site(made.here, CanaryBook(made.here.dataset, made.here.clock, Disk()), tmp_path)
        job = third.following(there)
        await job.step()
        assert job.status.lags is not None and job.status.last_number == 1, "and so is that it did"


async def test_one_replica_out_of_reach_does_not_hold_up_the_other(tmp_path: Path) -> None:
    """Each is timed by itself; the one that comes back later with a newer canary is through with the older ones too."""
    async with (
        replica(tmp_path / "one") as one,
        replica(tmp_path / "two") as two,
        site(tmp_path, "fra1", "fra2", canary_every_s=0.001) as made,
    ):
        await made.here.sync(one)
        await made.here.sync(two, "fra2")
        jobs = made.following(one), made.following(two, "fra2")

        async def down() -> None:
            raise LinkError("no route", where="fra2")

        jobs[1]._dial = down  # type: ignore[assignment] # a replica that is gone
        await jobs[0].step()
        await made.here.sync(one)
        for job in (jobs[0], jobs[0]):
            await job.step()
            await made.here.sync(one)
        with pytest.raises(LinkError):
            await jobs[1].step()
        assert jobs[1].status.state == "waiting" and "no route" in jobs[1].status.reason
        assert jobs[0].status.last_number > 0 and not jobs[1].status.last_number and jobs[1].status.oldest_awaited_ns
        jobs[1]._dial = two.dial
        newest = jobs[1].status.number
        made.every(1000.0)
        await made.here.sync(two, "fra2")
        await jobs[1].step()
        assert jobs[1].status.last_number == newest and not jobs[1].status.oldest_awaited_ns


async def test_no_canary_is_written_while_the_dataset_is_held(tmp_path: Path) -> None:
    """It is paused and says why; after the release it goes on."""
    async with replica(tmp_path / "store") as there, site(tmp_path, canary_every_s=0.001) as made:
        await made.here.sync(there)
        for path in made.here.root.glob("file-*"):
            path.unlink()
        await made.here.sync(there)
        assert made.here.status["fra1"].held
        job = made.following(there)
        await job.step()
        assert made.bird is None and job.status.state == "paused" and "would be dropped" in job.status.reason
        await made.here.dataset.in_ledger(made.here.dataset.release)
        await job.step()
        assert made.bird is not None and job.status.state == "waiting"


async def test_nothing_is_written_where_the_root_used_to_be(tmp_path: Path) -> None:
    """An empty directory in the root's place, as an unmounted file system leaves it, stays empty; so does nothing."""
    async with replica(tmp_path / "store") as there, site(tmp_path, canary_every_s=0.001) as made:
        await made.here.sync(there)
        job, root = made.following(there), made.here.root
        root.rename(tmp_path / "away")
        root.mkdir()
        await job.step()
        assert list(root.iterdir()) == [] and job.status.state == "paused" and "not mounted" in job.status.reason
        root.rmdir()
        await job.step()
        assert not root.exists() and job.status.state == "paused" and "cannot be opened" in job.status.reason
        assert not job.status.oldest_awaited_ns, "what was not written is not awaited"
        (tmp_path / "away").rename(root)
        await job.step()
        assert made.bird is not None and job.status.state == "waiting"


async def test_a_refused_file_is_a_finding_and_nobody_waits_for_it(tmp_path: Path) -> None:
    """The job goes on; as soon as the name is free, so does the canary."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        await made.here.sync(there)
        (made.here.root / NAME).write_bytes(b"mine")
        job = made.following(there)
        await job.step()
        assert job.status.state == "refused" and "somebody's file" in job.status.reason
        assert (made.here.root / NAME).read_bytes() == b"mine" and not job.status.oldest_awaited_ns
        (found,) = findings(a_node(a_dataset(), job.status))
        assert found.kind == "canary" and "somebody's file" in found.what
        (made.here.root / NAME).unlink()
        await job.step()
        assert made.bird is not None and job.status.state == "waiting"


async def test_what_rotted_on_the_replica_does_not_count(tmp_path: Path) -> None:
    """The replica reads the very block from its medium: damage there is a failure, and moves no success."""
    async with replica(tmp_path / "store") as there, site(tmp_path, canary_every_s=0.001) as made:
        await made.here.sync(there)
        job = made.following(there)
        await job.step()
        await made.here.sync(there)
        assert made.bird is not None
        damage_block(there.archive, made.bird.id)
        made.every(1000.0)
        await job.step()
        assert not job.status.last_success_ns and job.status.oldest_awaited_ns
        assert "is stored and differs" in job.status.failure
        (found,) = findings(a_node(a_dataset(), job.status))
        assert "came back wrong" in found.what
        made.every(0.001)
        await job.step()
        await made.here.sync(there)
        made.every(1000.0)
        await job.step()
        assert not job.status.failure and job.status.last_number == job.status.number, "the next one is well"


async def test_a_restore_that_brings_other_bytes_does_not_count(tmp_path: Path) -> None:
    """What comes back is compared byte by byte with what was written, whatever all checks before said."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        await made.here.sync(there)
        job = made.following(there)
        await job.step()
        await made.here.sync(there)
        other = a_bird(1, 1).content
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("replicad.work.canary._read", lambda path: other)
            await job.step()
        assert "did not come back" in job.status.failure and not job.status.last_success_ns


async def test_a_canary_holds_nothing(tmp_path: Path) -> None:
    """One more file rewritten, by the daemon itself, is never what makes a change too large."""
    async with replica(tmp_path / "store") as there, site(tmp_path, max_change=19 / 31) as made:
        (made.here.root / "file-0").unlink()  # 29 files, and the canary
        await made.here.sync(there)
        job = made.following(there)
        await job.step()
        await made.here.sync(there)
        made.every(0.001)
        await job.step()
        for number in range(1, 20):
            (made.here.root / f"file-{number}").write_bytes(b"rewritten")
        assert not (await made.here.sync(there)).held, "19 of 31 entries, and the canary"
        for number in range(1, 21):
            (made.here.root / f"file-{number}").write_bytes(b"again")
        assert (await made.here.sync(there)).held, "20 of 31 entries are too many"


async def test_only_so_many_are_remembered(tmp_path: Path) -> None:
    """A replica that is away for ever costs no more than that."""
    async with replica(tmp_path / "store") as there, site(tmp_path, canary_every_s=1e-9) as made:
        await made.here.sync(there)
        for _ in range(REMEMBERED + 3):
            assert await made.book.write_if_due() == ""
        written, waiting, _ = await made.book.standing("fra1")
        assert len(written) == len(waiting) == REMEMBERED and written[-1].number == REMEMBERED + 3


async def test_a_clock_set_back_stops_no_canary(tmp_path: Path) -> None:
    """One that seems to be of the future is not waited for."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        await made.here.sync(there)
        await made.book.write_if_due()
        written, _, _ = await made.book.standing("fra1")
        assert 0 < made.book.until_due_s(written) <= 1000
        future = [Canary("www", 1, made.here.clock.now_ns() + 10**15, NONCE)]
        assert made.book.until_due_s(future) == 0 and made.book.until_due_s([]) == 0


# -------------------------------------------------------------------------------------------------- what is shown


def shown(line: CanaryStatus) -> str:
    """The status's own words for it."""
    node = a_node(a_dataset(), line)
    return " ".join(" ".join(text.split()) for text in render(node, findings(node)))


def test_the_status_line_says_how_long_it_took() -> None:
    """The whole way, and what is awaited; a verification through a cache is called one."""
    assert "canary stored, verified and restored within 4.0s, 4m 56s ago" in shown(a_canary())
    assert "verified (through a cache)" in shown(a_canary(source="cache"))
    assert "none has come through yet" in shown(a_canary(lags=None))


def test_late_is_a_finding_and_paused_is_none() -> None:
    """A canary that is awaited for too long is told with its reason; one of a held dataset is not late by itself."""
    old_ns = NOW_NS - 1801 * S
    late = a_canary(oldest_awaited_ns=old_ns, state="waiting", reason="out of reach: no route")
    (found,) = findings(a_node(a_dataset(), late))
    assert found.kind == "canary" and "no route" in found.what
    assert "written 30m 1s ago has not come through, 30m are allowed" in found.what
    assert findings(a_node(a_dataset(), a_canary(oldest_awaited_ns=NOW_NS - 1799 * S))) == []
    (ahead,) = findings(a_node(a_dataset(), a_canary(oldest_awaited_ns=NOW_NS + 3600 * S)))
    assert "written 1h ahead of the clock" in ahead.what
    paused = a_canary(oldest_awaited_ns=old_ns, state="paused", reason="the dataset is held: why")
    assert findings(a_node(a_dataset(), paused)) == [] and "paused: the dataset is held: why" in shown(paused)


async def test_many_steps_at_once_write_one(tmp_path: Path) -> None:
    """The jobs of several replicas share the canary: whoever is first writes it."""
    async with replica(tmp_path / "store") as there, site(tmp_path) as made:
        await made.here.sync(there)
        await asyncio.gather(*(made.book.write_if_due() for _ in range(5)))
        written, _, _ = await made.book.standing("fra1")
        assert [bird.number for bird in written] == [1]


async def test_since_when_one_is_awaited_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many have been written since: a canary that does not come is late at last, whatever `canary_within` is.
    What every replica has given back makes room first."""
    monkeypatch.setattr(canary_book, "REMEMBERED", 4)
    async with (
        replica(tmp_path / "one") as one,
        replica(tmp_path / "two") as two,
        site(tmp_path, "fra1", "fra2", canary_every_s=0.001) as made,
    ):
        await made.here.sync(one)
        await made.here.sync(two, "fra2")
        job, other = made.following(one), made.following(two, "fra2")
        for _ in range(7):
            await job.step()
            await made.here.sync(one)
        assert job.status.number >= 7 and job.status.last_number >= 5
        _, awaited_there, _ = await made.book.standing("fra2")
        assert awaited_there[0].number == 1 and len(awaited_there) == 4 and awaited_there[-1].number >= 7
        await made.here.sync(two, "fra2")
        await other.step()
        await job.step()
        written, _, _ = await made.book.standing("fra2")
        assert len(written) == 4 and written[0].number > 1


async def test_what_cannot_be_written_is_not_tried_every_second(tmp_path: Path) -> None:
    """Each try is two entries in the ledger: while it is paused or refused, one in half a minute is enough."""
    async with replica(tmp_path / "store") as there, site(tmp_path, canary_every_s=0.001) as made:
        await made.here.sync(there)
        job, root = made.following(there), made.here.root
        await job.step()
        assert job._look_s < 2
        root.rename(tmp_path / "away")
        await job.step()
        assert job.status.state == "paused" and job._look_s == LOOK_S
        (tmp_path / "away").rename(root)
        await job.step()
        (root / NAME).write_text("somebody's")
        await job.step()
        assert job.status.state == "refused" and job._look_s == LOOK_S
