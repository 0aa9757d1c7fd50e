"""The limit of a restore's bandwidth: held on average, whatever the blocks, and nothing else is changed by it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kit_restore import ScriptedReader, Writer, reading_pair
from replicad.link.bandwidth import BURST_S
from replicad.model.block import block_id
from replicad.store.format import HEADER_BYTES
from replicad.system.clock import Clock
from replicad.work.read_local import LocalReader
from replicad.work.restore import Restore
from replicad.work.throttled import AHEAD, ThrottledReader

RATE = 1_000_000


class StillClock(Clock):
    """Time goes on only while somebody sleeps, one after the other."""

    def __init__(self) -> None:
        self.s = 0.0

    def monotonic_s(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        self.s = max(self.s, self.s + seconds)
        await asyncio.sleep(0)


async def test_a_restore_takes_as_long_as_its_limit_allows(tmp_path: Path) -> None:
    """To within a burst and what is asked for ahead; everything comes back as without one."""
    content = os.urandom(20_000_000)
    with Writer(tmp_path / "store", level=0) as writer:
        writer.put(b"")
        writer.put(b"large", content)
        for number in range(200):
            writer.put(b"small%d" % number, os.urandom(5000))
        writer.seal()
    clock = StillClock()
    async with reading_pair(tmp_path / "store") as (reader, _, _):
        limited = ThrottledReader(reader, RATE, clock)
        [line] = await limited.snapshots()
        account = await Restore(limited, line, tmp_path / "back").run()
    assert account.exit_code == 0 and (tmp_path / "back" / "large").read_bytes() == content
    least_s = account.stored_bytes / RATE - BURST_S - AHEAD * 2 * 1024 * 1024 / RATE
    assert clock.s >= least_s > 10
    assert clock.s <= account.stored_bytes / RATE * AHEAD  # sleeps of several fetches count one after the other here


async def test_no_more_is_asked_for_at_a_time_than_the_limit_is_fair_to() -> None:
    """Others wait for their turn."""
    reader = ScriptedReader()
    blocks = [b"%d" % number for number in range(20)]
    reader.blocks = {block_id(data): data for data in blocks}
    limited = ThrottledReader(reader, RATE, StillClock())

    async def one(data: bytes) -> int:
        return sum([len(answers) async for answers in limited.fetch(block_id(data))])

    assert await asyncio.gather(*map(one, blocks)) == [1] * len(blocks)
    assert 1 < reader.most_open <= AHEAD and HEADER_BYTES > 0


async def test_everything_else_is_passed_on(tmp_path: Path) -> None:
    """A limited reader is the reader behind it."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"file", b"content")
        writer.seal(1)
        writer.put(b"other", b"content")
        writer.seal(2)
    reader = await LocalReader.open(tmp_path / "store")
    limited = ThrottledReader(reader, RATE)
    for ask in (
        lambda one: one.record(2),
        lambda one: one.visit(2, b"file"),
        lambda one: one.trace(b"file"),
        lambda one: one.compare(1, 2),
    ):
        assert [item async for item in ask(limited)] == [item async for item in ask(reader)]
    assert await limited.snapshots() == await reader.snapshots() and await limited.order() == b""
    assert limited.name == reader.name
    await limited.close()
    with pytest.raises(Exception, match="closed"):
        await reader.snapshots()
