"""Scouts: processes that read for the passes. The right directory or none, and a death that loses nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kit_pair import wait_until
from kit_rig import copied, describe_snapshot, differences, replica, rig, snapshots
from kit_source import KnownTree
from replicad.model.errors import ReplicadError, SourceError
from replicad.source import ahead as ahead_module
from replicad.source import scan
from replicad.source.ahead import Ahead
from replicad.source.exclude import Excluded
from replicad.source.read import Candidate, FileRead
from replicad.source.root import Root, Trouble
from replicad.store.format import plain_payload, split_frames
from replicad.system.child import Child
from replicad.work.scouts import MAX_SCOUTS, MODULE, Scouts

BLOCK = 65536


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


@pytest_asyncio.fixture
async def scouts() -> AsyncIterator[Scouts]:
    """Scouts that are ended afterwards."""
    made = Scouts()
    yield made
    await made.close()


async def test_what_a_scout_reads_is_what_is_there(scouts: Scouts, root: Path) -> None:
    """Files come back in the order asked, each block's frame once, and trouble is a value."""
    twice = random.Random(1).randbytes(5000)
    contents = {b"one": twice, b"two": twice, b"three": b"text " * 9000, b"zeros": bytes(9000)}
    for name, content in contents.items():
        (root / name.decode()).write_bytes(content)
    candidates = [Candidate(name, 1, BLOCK) for name in [*contents, b"none"]]
    with closing(Root(os.fsencode(root))) as opened:
        async with scouts.borrow(opened, 3) as scout:
            small = await scout.read_small(candidates)
    *files, missing = small.read.files
    assert isinstance(missing, Trouble) and missing.vanished
    plain = {frame.id: bytes(plain_payload(frame)) for frame in split_frames(small.frames)}
    assert len(plain) == 2 and b"".join(plain) == small.read.ids
    for file, (name, content) in zip(files, contents.items(), strict=True):
        assert isinstance(file, FileRead) and file.path == name
        assert b"".join(plain[block.id] for block in file.blocks) == content.strip(b"\0")
        assert not any(block.data for block in file.blocks)


async def test_another_directory_than_the_guards_looked_at_is_refused(scouts: Scouts, root: Path) -> None:
    """A root that was replaced between the guards' look and the scout's ends the pass."""
    with closing(Root(os.fsencode(root))) as opened:
        root.rename(root.with_name("old"))
        root.mkdir()
        with pytest.raises(SourceError, match="was replaced"):
            async with scouts.borrow(opened, 1):
                pass


async def test_a_scout_that_was_started_anew_knows_no_root_of_before(scouts: Scouts, root: Path) -> None:
    """A pass whose scout died gets an error, never the files of another pass that has it started anew."""
    (root / "a").write_text("a")
    with closing(Root(os.fsencode(root))) as opened:
        async with scouts.borrow(opened, 1) as scout:
            (pid,) = scouts.pids
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), "it is gone")
            for _ in range(2):
                with pytest.raises(ReplicadError, match=r"killed by signal 9|started anew"):
                    await scout.read_small([Candidate(b"a", 1, BLOCK)])
        async with scouts.borrow(opened, 1) as scout:
            assert isinstance((await scout.read_small([Candidate(b"a", 1, BLOCK)])).read.files[0], FileRead)


async def test_passes_have_scouts_of_their_own_up_to_a_limit(scouts: Scouts, root: Path) -> None:
    """So many processes at most; further passes share them, and when all have ended one process stays."""
    with closing(Root(os.fsencode(root))) as opened:
        async with AsyncExitStack() as passes:
            for number in range(1, MAX_SCOUTS + 3):
                await passes.enter_async_context(scouts.borrow(opened, 1))
                assert len(scouts.pids) == min(number, MAX_SCOUTS)
        assert len(scouts.pids) == 1


class Mortal(Child):
    """A scout that is killed in the middle of its third batch."""

    def __init__(self) -> None:
        super().__init__(MODULE)
        self.lives = 3

    async def call_for_bulk(self, task: Any, asked: Any) -> Any:
        self.lives -= 1
        answer = asyncio.ensure_future(super().call_for_bulk(task, asked))
        await asyncio.sleep(0)
        if not self.lives:
            assert self.pid
            os.kill(self.pid, signal.SIGKILL)
        return await answer


async def test_a_scout_that_is_killed_costs_its_pass_and_nothing_else(tmp_path: Path, root: Path) -> None:
    """The pass ends with one clear error and without a snapshot; the next one goes on, and everything is there."""
    source = random.Random(2)
    for number in range(3000):
        (root / f"f{number:04d}").write_bytes(source.randbytes(source.randrange(1, 20_000)))
    scouts = Scouts(Mortal)
    async with rig(tmp_path, root, scouts=scouts) as primary, replica(tmp_path / "store") as fra1:
        with pytest.raises(ReplicadError, match="killed by signal 9"):
            await primary.sync(fra1)
        assert not primary.status["fra1"].pass_ok
        assert snapshots(fra1.archive) == []
        status = await primary.sync(fra1)
        assert status.pass_ok and not status.unread
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert snapshots(fra1.archive)[-1].complete


# looking ahead


def test_a_walk_tells_where_it_goes_and_goes_there(root: Path) -> None:
    """Every directory that is told comes later in the walk, once; what is excluded is never told, and nothing is when
    only some directories are walked."""
    for number in range(400):
        (root / f"d{number % 20:02d}" / ("skip" if number % 7 == 0 else f"e{number}")).mkdir(
            parents=True, exist_ok=True
        )
    told: list[bytes] = []
    walked: list[bytes] = []
    with closing(Root(os.fsencode(root))) as opened:
        known, excluded = KnownTree(), Excluded(("skip",))
        for diff in scan.walk(opened, known, excluded=excluded, soon=told.extend):
            assert diff.path not in walked
            walked += [diff.path] if diff.path in told else []
            known.apply(diff)
        assert len(told) > 200 and sorted(walked) == sorted(told)
        assert not any(path.endswith(b"skip") for path in told)
        told.clear()
        list(scan.walk(opened, known, excluded=excluded, only=[b"", b"d01"], soon=told.extend))
        assert not told


def test_looking_ahead_harms_nobody(tmp_path: Path, root: Path) -> None:
    """Directories that vanished, that are none, or that are symlinks by now are passed over; no thread and no
    descriptor stays behind."""
    (root / "real").mkdir()
    (root / "file").write_text("x")
    (root / "link").symlink_to(tmp_path)
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with closing(Root(os.fsencode(root))) as opened:
        ahead = Ahead(opened)
        ahead.look([b"", b"real", b"file", b"link", b"none", b"none/below"])
        wait_until(lambda: not ahead._paths.qsize(), "all of them are taken")
        ahead.close()
    wait_until(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before, "all is as before")


async def test_a_pass_that_is_ended_while_it_waits_for_its_scout_leaves_no_root_open(
    scouts: Scouts, root: Path
) -> None:
    """The scout stays for the next pass: what it had open would keep a file system from being unmounted."""
    with closing(Root(os.fsencode(root))) as opened:
        async with scouts.borrow(opened, 1):
            pass
        (pid,) = scouts.pids
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(scouts.borrow(opened, 1).__aenter__())
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        os.kill(pid, signal.SIGCONT)
        async with scouts.borrow(opened, 1) as scout:  # a question behind which all before it are answered
            await scout.read_small([])
        async with scouts.borrow(opened, 1) as scout:
            await scout.read_small([])
            there = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert there.count(str(root)) == 1, there


def test_what_a_walk_has_overtaken_is_not_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slower than the walk leaves a bounded number waiting; when the walk is over none of them is looked
    at, and the root is closed."""
    held, looked = threading.Event(), list[int]()

    def slow(directory: int) -> None:
        looked.append(directory)
        held.wait(30)

    monkeypatch.setattr(ahead_module, "look_at", slow)
    for number in range(20):
        (root / f"{number}").mkdir()
    with closing(Root(os.fsencode(root))) as opened:
        ahead = Ahead(opened)
        for number in range(20_000):
            ahead.look([b"%d" % (number % 20)])
        assert ahead._paths.qsize() <= ahead_module.MAX_WAITING
        fd = ahead.fd
        ahead.close()
        held.set()
        wait_until(lambda: not os.path.lexists(f"/proc/self/fd/{fd}"), "the root is closed")
        assert len(looked) <= ahead_module.THREADS
