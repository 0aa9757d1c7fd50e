"""A dead mount: a question to the root of one dataset that never returns holds up nothing of the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kit_rig import Replica, Rig, replica, rig
from kit_tend import tending
from replicad.model.drill import Outcome
from replicad.system.disk import Disk
from replicad.work import canary_book, replicate, same_root, scratch
from replicad.work.canary import Following
from replicad.work.canary_book import CanaryBook
from replicad.work.drill_book import DrillBook, drills_path
from replicad.work.drilling import Drilling

CANARY = "canary"


async def a_pass(primary: Rig, there: Replica) -> None:
    await primary.sync(there)


async def a_round(primary: Rig, there: Replica) -> None:
    job = tending(primary, there)
    try:
        await job.step()
    finally:
        await job.close()


async def a_canary(primary: Rig, there: Replica) -> None:
    book = CanaryBook(primary.dataset, primary.clock, Disk())
    await Following(primary.dataset, "fra1", there.dial, book, primary.directory / "scratch", primary.clock).step()


async def a_drill(primary: Rig, there: Replica) -> None:
    state, base = primary.directory / "state", primary.directory / "scratch"
    base.mkdir()
    live = [("dataset www", primary.root)]
    book = DrillBook(drills_path(state, "www"))
    job = Drilling(primary.dataset, "fra1", there.dial, book, lambda: live, primary.clock, asyncio.Lock())
    await job.step()
    await book.close()
    assert job.status.last and job.status.last.outcome is Outcome.PROVEN, job.status


@pytest.mark.parametrize(
    ("job", "module", "question"),
    [
        (a_pass, replicate, "enter_to_read"),
        (a_round, same_root, "root_identity"),
        (a_canary, canary_book, "write_canary"),
        (a_drill, scratch, "check_apart"),
    ],
    ids=["a pass", "tending", "a canary", "a drill"],
)
async def test_whoever_waits_for_a_dead_mount_takes_no_thread_that_others_need(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[Rig, Replica], Awaitable[None]],
    module: object,
    question: str,
) -> None:
    """While the first look at a root hangs, all threads that the datasets share are free, and those that names are
    looked up in; when it returns, the job goes on as if nothing had been."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_text("file")
    asked, answers, ask = threading.Event(), threading.Event(), getattr(module, question)

    def hang(*given: object) -> object:
        asked.set()
        answers.wait(60)
        return ask(*given)

    given: dict[str, Any] = {"canary": CANARY, "drill_scratch": tmp_path / "scratch", "drill_every_s": 86400.0}
    async with rig(tmp_path, root, **given) as primary, replica(tmp_path / "store") as there:
        asyncio.get_running_loop().set_default_executor(primary.pool)
        await primary.sync(there)
        monkeypatch.setattr(module, question, hang)
        running = asyncio.ensure_future(job(primary, there))
        try:
            await asyncio.to_thread(asked.wait, 60)
            both = threading.Barrier(2, timeout=20)  # a rig's pool has two threads
            await asyncio.gather(*(asyncio.wrap_future(primary.pool.submit(both.wait)) for _ in range(2)))
        finally:
            answers.set()
            await running
