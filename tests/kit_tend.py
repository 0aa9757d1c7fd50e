"""Kit for tending: rot in a primary's files, findings about it, and a store mender that keeps its cases in a dict."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from kit_rig import Replica, Rig
from replicad.db.catalog import MIGRATIONS
from replicad.db.database import Database
from replicad.db.findings import Findings
from replicad.db.ledger import Known, stamp_of
from replicad.db.touched import restamp
from replicad.link.messages import Want
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.entry import Stamp
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, Writing, judge
from replicad.source.root import Root
from replicad.status import CopyStatus, ScrubStatus
from replicad.store.format import plain_payload, split_frames
from replicad.system.disk import Disk
from replicad.work.confirm import Opinions
from replicad.work.elsewhere import Elsewhere
from replicad.work.shelves import OpenStore
from replicad.work.tend import Tending

BLOCK = 65536


async def known_of(primary: Rig, path: bytes) -> Known:
    """What the ledger has of a path."""
    known = await primary.dataset.in_ledger(primary.dataset.ledger.known, path)
    assert known is not None
    return known


def stamp_now(root: Path, path: bytes) -> Stamp:
    """What stands there now."""
    with Root(os.fsencode(root)) as opened:
        stamp = opened.look(path)
    assert stamp is not None
    return stamp


async def rot(primary: Rig, path: bytes, offset: int, data: bytes | None = None, *, bit: int = 0) -> bytes:
    """Change bytes of a recorded file as rot does: identity and record stay as they were. The bytes of before."""
    file = primary.root / os.fsdecode(path)
    before, known = os.stat(file), await known_of(primary, path)
    was_recorded = stamp_of(known).identity == stamp_now(primary.root, path).identity
    with file.open("r+b") as opened:
        was = os.pread(opened.fileno(), len(data or b"x"), offset)
        os.pwrite(opened.fileno(), data if data is not None else bytes([was[0] ^ 1 << bit]), offset)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert was_recorded, "the file was written since it was recorded"
    await primary.dataset.in_ledger(
        restamp, primary.dataset.ledger, path, stamp_of(known), stamp_now(primary.root, path)
    )
    return was


async def report(primary: Rig, path: bytes, number: int = 0) -> Divergence:
    """What a scrub reports of a block that differs."""
    dataset, known = primary.dataset, await known_of(primary, path)
    rows = await dataset.in_ledger(dataset.ledger.blocks, known.file, number, number + 1)
    row, now_ns = rows[number], primary.clock.now_ns()
    found = Divergence(
        key=f"block:{known.file}:{number}",
        dataset="www",
        side=Side.PRIMARY,
        peer="",
        part=Part.BLOCK,
        found_ns=now_ns,
        changed_ns=now_ns,
        what="a block differs",
        path=path,
        offset=number * known.block_bytes,
        length=min(known.block_bytes, known.size - number * known.block_bytes),
        file=known.file,
        number=number,
        blocks=(row.id,),
        expected=row.checksum,
        evidence=Evidence(primary=Sight.DIFFERS, writing=Writing.UNWRITTEN),
    )
    await dataset.open_findings()
    return await dataset.in_findings(dataset.findings.report, found)


def change_catalog(archive: Path, sql: str) -> None:
    """Change one row behind everybody's back, with the checksum of its page right."""
    database = Database(archive / "catalog.db", MIGRATIONS)
    with database.transaction():
        database.execute(sql)
        assert database.changes() == 1, sql
    database.close()


async def standing(primary: Rig, found: Divergence) -> Divergence:
    """How a finding stands in the primary's book."""
    now = await primary.dataset.in_findings(primary.dataset.findings.get_exactly, found.id)
    assert now is not None
    return now


class DictMender:
    """A `StoreMender` that judges as the real one does and holds what it is sent."""

    def __init__(self, opened: OpenStore) -> None:
        self.opened = opened
        self.bytes: dict[str, bytes] = {}
        self.wanted: dict[str, list[Want]] = {}
        self.sights: dict[str, list[Sight]] = {}
        self.mended: list[bytes] = []
        self.auto = True
        self.may_look = asyncio.Event()
        """Places are looked at again once this is set: never, unless a test does."""
        self.look_fails: Exception | None = None
        self.calls: list[str] = []

    @property
    def findings(self) -> Findings:
        return self.opened.findings

    def add(self, number: int, seen: bytes, wants: Sequence[Want], sight: Sight = Sight.DIFFERS) -> Divergence:
        """A finding about frames that hold these blocks. To be called before a session is open."""
        found = Divergence(
            key=f"frame:1:{number}",
            dataset="www",
            side=Side.REPLICA,
            peer="ams1",
            part=Part.BLOCK,
            found_ns=1,
            changed_ns=1,
            what="block frame fails its checksum",
            path=b"segments/00000001.seg",
            blocks=tuple(want.id for want in wants),
            seen=checksum(seen),
            evidence=Evidence(replica=sight),
        )
        found = self.opened.executor.submit(self.findings.report, found).result()
        self.bytes[found.id], self.wanted[found.id] = seen, list(wants)
        return found

    async def verify_divergences(self, turn: asyncio.Lock) -> list[Divergence]:
        async with turn:
            self.calls.append("verify_divergences")
        await self.may_look.wait()
        if self.look_fails:
            raise self.look_fails
        return []

    async def open_cases(self) -> list[Divergence]:
        self.calls.append("open_cases")
        return [one for one in self._ask(self.findings.listed) if one.side is Side.REPLICA]

    async def seen(self, found: Divergence) -> bytes:
        self.calls.append("seen")
        return self.bytes.get(found.id, b"")

    async def wants(self, found: Divergence) -> list[Want]:
        return self.wanted.get(found.id, [])

    async def testimony(self, found: Divergence, checksum_by_peer: bytes, sights: Sequence[Sight]) -> Divergence:
        self.calls.append("testimony")
        self.sights[found.id] = list(sights)
        primary = next((one for one in sights if one is not Sight.MATCHES), Sight.MATCHES)
        witness = Witness.CONFIRMS if checksum_by_peer == found.seen else Witness.CONTRADICTS
        evidence = Evidence(primary=primary, replica=found.evidence.replica, writing=Writing.UNWRITTEN, witness=witness)
        judged = found.with_event(2, "testified", evidence=evidence, verdict=judge(evidence))
        self._ask(lambda: self.findings.update(judged))
        return judged

    async def mend(self, found: Divergence, frames: Sequence[bytes], *, ordered: bool = False) -> Divergence:
        self.calls.append("mend")
        if not (self.auto or ordered):
            return found
        for frame in frames:
            (one,) = split_frames(frame)
            assert block_id(plain_payload(one)) == one.id
            self.mended.append(one.id)
        self.wanted[found.id] = [want for want in self.wanted[found.id] if want.id not in self.mended]
        if not self.wanted[found.id]:
            found = found.with_event(3, "mended", state=State.REPAIRED, verdict=Verdict.REPLICA_ROT)
            self._ask(lambda: self.findings.update(found))
        return found

    def _ask(self, work):  # type: ignore[no-untyped-def]
        return self.opened.executor.submit(work).result()


class Menders:
    """Makes one for each store, and gives it to the test."""

    def __init__(self) -> None:
        self.made: list[DictMender] = []

    def __call__(self, opened: OpenStore) -> DictMender:
        self.made.append(DictMender(opened))
        return self.made[-1]

    @property
    def only(self) -> DictMender:
        """The one that was made."""
        (made,) = self.made
        return made


class Scrub:
    """A replica's scrub that remembers what it was asked for."""

    def __init__(self) -> None:
        self.status = ScrubStatus("www", "replica", "ams1", state="idle", scrub_every_s=604800.0)

    async def request(self, *, from_peer: bool = False) -> int:
        assert from_peer
        self.status.requested += 1
        return self.status.requested


def tending(
    primary: Rig,
    there: Replica,
    name: str = "fra1",
    *,
    opinions: Opinions | None = None,
    disk: Disk | None = None,
    others: dict[str, Replica] | None = None,
) -> Tending:
    """The job of one dataset and replica; to be closed."""
    return Tending(
        primary.dataset,
        name,
        there.dial,
        ScrubStatus("www", "replica", name),
        primary.pool,
        primary.clock,
        disk=disk or Disk(),
        opinions=opinions or Opinions(),
        elsewhere=Elsewhere("www", {key: one.dial for key, one in (others or {}).items()}, primary.pool),
        tell_anew=lambda: None,
        copy=CopyStatus("www", name),
    )
