"""Lookouts: processes that look at small files for a scrub in a hurry. What they call well is well, of the rest they
say nothing, and a death loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kit_pair import wait_until
from kit_scrub_primary import scrubbed
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Part
from replicad.model.entry import Kind
from replicad.model.errors import ReplicadError
from replicad.source.root import Root
from replicad.source.verify import Examined, Name, Stretch, examine
from replicad.work import lookouts as module
from replicad.work import scrub_primary
from replicad.work.crew import Crew
from replicad.work.lookouts import MAX_LOOKOUTS, Lookouts

BLOCK = 65536


class Row:
    """A block as it is recorded."""

    def __init__(self, data: bytes) -> None:
        self.id, self.checksum = block_id(data), checksum(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


@pytest_asyncio.fixture
async def lookouts() -> AsyncIterator[Lookouts]:
    """Lookouts that are ended afterwards."""
    made = Lookouts()
    yield made
    await made.close()


def recorded(root: Path, name: bytes, data: bytes) -> Stretch:
    """A file with that content, as it would be recorded now."""
    (root / name.decode()).write_bytes(data)
    with Root(os.fsencode(root)) as opened:
        stamp = opened.look(name)
    assert stamp is not None and stamp.kind == Kind.FILE
    return Stretch((Name(name, stamp),), BLOCK, range(256), {0: Row(data)} if data else {})


async def test_what_is_called_well_is_what_a_look_of_one_s_own_gives(lookouts: Lookouts, root: Path) -> None:
    """In the order asked; of what is not plainly well, or is no file of one known block, nothing is said."""
    files = {b"a": b"a" * 100, b"b": b"b" * BLOCK, b"two": b"c" * (BLOCK + 1), b"empty": b"", b"rotten": b"d" * 500}
    files |= {b"gone": b"e", b"written": b"f" * 50, b"mode": b"g" * 4096}
    stretches = [recorded(root, name, data) for name, data in files.items()]
    names = list(files)
    stretches[names.index(b"rotten")].expected[0].checksum = bytes(16)  # type: ignore[index, misc]
    (root / "gone").unlink()
    (root / "written").write_bytes(b"h" * 50)
    (root / "mode").chmod(0o600)
    seen = await lookouts.look(os.fsencode(root), stretches)
    with Root(os.fsencode(root)) as opened:
        own = examine(opened, stretches)
    well = {name: one for name, one in zip(names, seen, strict=True) if one is not None}
    assert well == {name: own[names.index(name)] for name in (b"a", b"b")}
    assert all(isinstance(one, Examined) for one in well.values())
    assert await lookouts.look(os.fsencode(root), stretches[2:4]) == [None, None]


async def test_there_are_a_few_of_them_and_the_idle_ones_end(
    lookouts: Lookouts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as questions are asked at once, up to a limit; without questions they are ended, and come back."""
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    stretch = recorded(root, b"a", b"a")
    path = os.fsencode(root)
    answers = await asyncio.gather(*(lookouts.look(path, [stretch] * 50) for _ in range(MAX_LOOKOUTS + 2)))
    assert all(one is not None for answer in answers for one in answer)
    assert len(lookouts.pids) in range(1, MAX_LOOKOUTS + 1)
    pids = lookouts.pids
    while lookouts.pids or any(Path(f"/proc/{pid}").exists() for pid in pids):
        await asyncio.sleep(0.01)
    assert await lookouts.look(path, [stretch]) == answers[0][:1]


async def test_one_that_is_killed_is_an_error_and_is_replaced(lookouts: Lookouts, root: Path) -> None:
    """Nobody takes its silence for a look."""
    stretch, path = recorded(root, b"a", b"a"), os.fsencode(root)
    await lookouts.look(path, [stretch])
    (pid,) = lookouts.pids
    os.kill(pid, signal.SIGSTOP)
    asked = asyncio.create_task(lookouts.look(path, [stretch]))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ReplicadError, match="killed by signal 9"):
        await asked
    assert await lookouts.look(path, [stretch]) != [None]
    wait_until(lambda: pid not in lookouts.pids, "another one")


async def test_a_scrub_with_lookouts_finds_what_rotted(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many files: all are verified, each of those that rotted is found, and no other."""
    monkeypatch.setattr(scrub_primary, "BATCH_PARTS", 16)
    for number in range(200):
        (root / f"{number:03d}").write_bytes(b"%d " % number * 300)
    async with scrubbed(tmp_path, root) as made:
        asked: list[int] = []
        look = made.surface._lookouts.look

        async def counted(path: bytes, stretches: list[Stretch]) -> object:
            asked.append(len(stretches))
            return await look(path, stretches)

        monkeypatch.setattr(made.surface._lookouts, "look", counted)
        rotten = [root / f"{number:03d}" for number in (3, 77, 199)]
        for path in rotten:
            made.disk.flipped[path.stat().st_ino] = {100: 4}
        calls = await made.scrub()
        assert sum(asked) == 200
        assert sum(call.units for call in calls) >= 200 and sum(call.found for call in calls) == len(rotten)
        found = await made.found()
        assert {one.path for one in found} == {os.fsencode(path.name) for path in rotten}
        assert {one.part for one in found} == {Part.BLOCK}


async def test_a_process_that_is_being_ended_is_given_nothing_to_do() -> None:
    """Ending one takes time, in which a question may come: it goes to one that stays, and ends as it should."""

    class Slow:
        pid = 1

        def __init__(self) -> None:
            self.ended = False

        async def call(self, task: object, asked: object) -> bytes:
            await asyncio.sleep(0.05)
            if self.ended:
                raise ReplicadError("the process died")
            return b""

        async def close(self) -> None:
            await asyncio.sleep(0.02)
            self.ended = True

    crew = Crew(Slow, 3)  # type: ignore[arg-type]
    members = []
    for _ in range(3):
        members.append(crew.choose())
        members[-1].tasks += 1
    for one in members:
        one.tasks -= 1
    ending = asyncio.create_task(crew.thin_out(0))
    await asyncio.sleep(0)
    chosen = crew.choose()
    chosen.tasks += 1
    await chosen.child.call(None, None)  # type: ignore[arg-type]
    await ending
    assert all(one.child.ended for one in members)  # type: ignore[attr-defined]
    assert not chosen.child.ended  # type: ignore[attr-defined]
    await crew.close()
