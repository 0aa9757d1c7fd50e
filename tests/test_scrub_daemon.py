"""Scrubs in two real daemons: they begin by themselves on both sides, and do what is typed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kit_pair import Pair, make_pair, replicad
from replicad.config import load
from replicad.daemon import Daemon
from replicad.model.divergence import Side
from replicad.system.notify import Notifier
from replicad.work.surface import Extent, Surface, Verified
from replicad.work.surfaces import Surfaces


class Counting:
    """A side of four thousand bytes that are always well."""

    def __init__(self, dataset: str, side: Side, peer: str) -> None:
        self.dataset, self.side, self.peer = dataset, side, peer
        self.verified_ns = self.structures = 0
        self.retry_s = 60.0

    async def extent(self, before_ns: int) -> Extent:
        never = 0 if self.verified_ns else 4000
        return Extent(4000, never, self.verified_ns, 4000 if self.verified_ns < before_ns else 0)

    async def verify(self, budget_bytes: int, since_ns: int) -> Verified:
        self.verified_ns = time.time_ns()
        return Verified(media_bytes=4000, units=1)

    async def structure(self) -> Verified:
        self.structures += 1
        return Verified(units=1)


async def _primary(dataset: object, pool: object, lookouts: object, clock: object) -> Surface:
    return Counting("www", Side.PRIMARY, "")


async def _replica(shelves: object, client: str, dataset: str) -> Surface:
    return Counting(dataset, Side.REPLICA, client)


@asynccontextmanager
async def living(pair: Pair) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Both daemons in this process, with sides that only count."""
    surfaces = Surfaces(primary=_primary, replica=_replica)
    daemons = [Daemon(load(node.config), surfaces=surfaces) for node in (pair.replica, pair.primary)]
    tasks = [asyncio.create_task(daemon.run(Notifier())) for daemon in daemons]
    try:
        for daemon in daemons:
            await until(lambda daemon=daemon: bool(daemon.status().http))
        yield daemons[1], daemons[0]
    finally:
        for daemon in daemons:
            daemon.stop()
        await asyncio.gather(*tasks)


async def until(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    """Wait for a state."""
    end_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


async def typed(*words: object, code: int = 0) -> str:
    """What a command says, typed while the daemons go on."""
    return (await asyncio.to_thread(replicad, *words, code=code)).stdout


async def test_both_sides_are_scrubbed_and_do_what_is_typed(tmp_path: Path) -> None:
    """A scrub begins where a dataset is configured and where a store appears; start, pause and resume work from the
    command line, pauses and requests outlive a daemon, and a changed deadline is in force without a new listener."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "a").write_text("hello")
    pair = make_pair(tmp_path, root)
    here, there = ["--config", pair.primary.config], ["--config", pair.replica.config]
    async with living(pair) as (primary, replica):
        assert [(line.side, line.peer) for line in primary.status().scrubs] == [("primary", ""), ("replica", "fra1")]
        await typed("sync", "www", "--wait", *here)
        await until(lambda: [line.peer for line in replica.status().scrubs] == ["ams1"])
        said = await typed("scrub", "start", "www", "--wait", *here)
        assert said.startswith("www here (primary): clean: ") and primary.status().scrubs[0].served == 1
        assert "store ams1/www (replica): clean" in await typed("scrub", "start", "--wait", *there)
        assert {"scrub primary www", "scrub replica ams1/www"} <= {
            job.name for daemon in (primary, replica) for job in daemon.status().jobs
        }

        told = await typed("scrub", "start", "www", "--side", "replica", "--wait", *here)
        assert "fra1 (replica): clean" in told
        await typed(
            "scrub", "pause", "www", "--side", "replica", *here, code=2
        )  # a primary may hurry it, not hold it up
        await typed("scrub", "start", "nothing", *here, code=2)

        await typed("scrub", "pause", "--for", "1h", *there)
        await until(lambda: replica.status().scrubs[0].state == "paused")
        before = replica._replica
        text = pair.replica.config.read_text()
        pair.replica.config.write_text(text.replace("[listen]\n", '[listen]\nscrub_every = "3d"\nrepair = "ask"\n'))
        assert await replica.reload() == []
        assert replica._replica is before and before is not None and before.config.repair == "ask"
        await until(lambda: replica.status().scrubs[0].scrub_every_s == 3 * 86400)
        text = pair.primary.config.read_text()
        pair.primary.config.write_text(text.replace("[[dataset]]\n", '[[dataset]]\nscrub_every = "2d"\n'))
        media = primary.status().scrubs[0].media_bytes
        assert await primary.reload() == [] and primary.status().scrubs[0].media_bytes >= media > 0
        await until(lambda: primary.status().scrubs[0].scrub_every_s == 2 * 86400)
    async with living(pair) as (primary, replica):
        await until(lambda: bool(replica.status().scrubs) and replica.status().scrubs[0].state == "paused")
        await typed("scrub", "resume", *there)
        await until(lambda: replica.status().scrubs[0].state in ("idle", "running"))
        assert replica.status().scrubs[0].served == 2, "one from here, one from the primary"
