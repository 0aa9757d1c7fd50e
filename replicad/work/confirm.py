"""Confirm: a primary's own findings, looked at again and judged with what a replica says of them.

    read again from the medium → the replica hashes the same bytes and looks at its copy → evidence → verdict

**Owns** the evidence of the primary's findings. Rot is what the medium gives twice, of a file that nobody wrote; that
it was written, or is read well twice, closes the finding. **Never** says that bytes are lost before every replica was
asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from replicad.db.ledger import UNKNOWN_CHECKSUM, ZERO, BlockRow, Known, Ledger, put_of, stamp_of
from replicad.db.look_up import LookUp
from replicad.db.unnamed import is_unnamed
from replicad.db.whole import files_numbered
from replicad.link.messages import Examined
from replicad.model.block import block_id, checksum, is_zero
from replicad.model.divergence import Divergence, Look, Part, Side, State, differing_bits, first_and_latest
from replicad.model.entry import Kind, Put
from replicad.model.verdict import Books, Evidence, Sight, Verdict, Witness, Writing, judge
from replicad.source.meta import Described, describe
from replicad.source.reread import Ask, Moved, Reread, block_length, reread
from replicad.source.root import Root, Trouble
from replicad.system.clock import Clock
from replicad.work.dataset import Dataset
from replicad.work.half_read import content_identity
from replicad.work.medium import is_medium
from replicad.work.store_case import as_one
from replicad.work.where_now import where_now

Result = TypeVar("Result")

WELL = "read well twice"
WRITTEN = "written since"
TRIES = 3
"""A finding that somebody else changes while both sides are asked about it is judged anew, as it is then."""


class Peer(Protocol):
    """What a replica is asked."""

    name: str
    covered: int
    """What its history has: rows of the ledger up to this number."""

    async def examine(self, name: bytes, data: bytes) -> Examined:
        """See `Conversation.examine`."""

    async def fetch(self, name: bytes, size: int) -> bytes | str:
        """The block, proven, or why it cannot be had."""

    async def names(self, path: bytes, file: int, number: int) -> bytes:
        """The id that the replica's record has at this place; b"" = none, or unknown."""


class Own(NamedTuple):
    """One look of our own."""

    sight: Sight
    writing: Writing
    data: bytes = b""
    source: str = "media"
    reason: str = ""


@dataclass(slots=True)
class Opinions:
    """What the replicas of one dataset said about its own findings since the daemon started; shared by their jobs."""

    said: dict[str, dict[str, Sight]] = field(default_factory=dict)
    """By finding, then by replica."""

    def has(self, finding: str, replica: str) -> bool:
        """Whether this replica was asked."""
        return replica in self.said.get(finding, {})

    def add(self, finding: str, replica: str, sight: Sight, replicas: Sequence[str]) -> Sight:
        """Remember what a replica said; what all say together, whoever was asked last: one good copy is enough, and
        while somebody was not asked nothing is lost."""
        said = self.said.setdefault(finding, {})
        said[replica] = sight
        return as_one([said.get(name, Sight.UNKNOWN) for name in {*replicas, replica}])

    def holds(self, finding: str, replica: str) -> bool:
        """Whether this replica said that it has the block."""
        return self.said.get(finding, {}).get(replica) is Sight.MATCHES

    def keep(self, findings: set[str]) -> None:
        """Forget all others."""
        self.said = {name: said for name, said in self.said.items() if name in findings}


class Confirming:
    """Judges a dataset's own findings with one replica."""

    def __init__(self, dataset: Dataset, root: Root, pool: Executor, clock: Clock, opinions: Opinions) -> None:
        self._dataset, self._root, self._pool, self._clock, self._opinions = dataset, root, pool, clock, opinions

    async def judge(self, found: Divergence, peer: Peer) -> Divergence:
        """The finding as it stands after one more look of both sides, in the book already. What a scrub, a repair or
        another replica's job has made of it meanwhile stays."""
        work, findings = {Part.BLOCK: self._block, Part.METADATA: self._metadata}[found.part], self._dataset.findings
        for _ in range(TRIES):
            known = await self._dataset.in_findings(findings.get_exactly, found.id)
            found = known if known is not None else found
            now = await work(found, peer) if found.state is State.OPEN else found
            if now == found or await self._dataset.in_findings(findings.revise, found, now) == now:
                return now
        return found

    # blocks

    async def _block(self, found: Divergence, peer: Peer) -> Divergence:
        recorded = await self._dataset.in_ledger(recorded_block, self._dataset.ledger, found)
        if recorded is None:
            if await self._dataset.in_ledger(is_unnamed, self._dataset.ledger, found.file):
                return found  # it may only have moved
            return self._gone(found, "the record has another block there now: the file was written, cut or dropped")
        path, known, row = recorded
        own = await self._in_pool(partial(look_at_block, self._root, await self._where_now(path), known, row))
        if own.writing is Writing.WRITTEN:
            return self._gone(found, f"the file was {WRITTEN}: {own.reason}", verdict=Verdict.CHANGED)
        if (own.sight, own.writing) == (Sight.UNKNOWN, Writing.UNKNOWN) and found.verdict is not Verdict.INCONCLUSIVE:
            return found  # it may only have moved: that takes nothing back
        if own.sight is Sight.MATCHES:
            return self._gone(found, f"{WELL} from the medium: it is as recorded")
        examined = await peer.examine(row.id, own.data)
        if not found.blocks:  # zeros are recorded, not stored: what the record says is what the replica gives
            examined = replace(examined, sight=Sight.MATCHES, reason="")
        evidence = await self._evidence(found, known, row, own, examined, peer)
        return await self._judged(replace(found, path=path), row, own, examined, evidence, peer)

    async def _evidence(
        self, found: Divergence, known: Known, row: BlockRow, own: Own, examined: Examined, peer: Peer
    ) -> Evidence:
        sight = self._opinions.add(found.id, peer.name, examined.sight, self._dataset.replicas)
        books = Books.AGREE if max(known.seq, row.seq) <= peer.covered else Books.UNKNOWN
        witness = _witness(own, examined)
        if own.sight is not Sight.DIFFERS and sight is Sight.DIFFERS:
            witness = await self._witness_there(row.id)
        same = await self._is_same(found, row, own, examined, peer)
        return Evidence(
            primary=own.sight,
            replica=Sight.DIFFERS if same else sight,
            writing=own.writing,
            witness=witness,
            books=books,
            same_bytes=same,
        )

    async def _is_same(self, found: Divergence, row: BlockRow, own: Own, examined: Examined, peer: Peer) -> bool:
        """Whether the replica holds, proven, the very bytes that were found, and as the block that belongs here: then
        it is this ledger alone that says otherwise."""
        if own.sight is not Sight.DIFFERS:
            return False
        name = block_id(own.data)
        if name == row.id:
            return examined.sight is Sight.MATCHES
        if examined.sight is Sight.MATCHES or (await peer.examine(name, own.data)).sight is not Sight.MATCHES:
            return False
        return await peer.names(found.path, row.file, row.number) == name

    async def _witness_there(self, name: bytes) -> Witness:
        """The replica's copy differs, which we cannot confirm by ourselves; a finding of its own may have been."""
        findings = self._dataset.findings
        for other in await self._dataset.in_findings(partial(findings.listed, side=Side.REPLICA)):
            if name in other.blocks and other.evidence.witness is Witness.CONFIRMS:
                return Witness.CONFIRMS
        return Witness.SILENT

    async def _judged(
        self, found: Divergence, row: BlockRow, own: Own, examined: Examined, evidence: Evidence, peer: Peer
    ) -> Divergence:
        verdict = judge(evidence)
        seen = checksum(own.data) if own.data else b""
        told = replace(evidence, books=found.evidence.books)  # another replica may have more of the record, or less
        if (verdict, told, seen or found.seen) == (found.verdict, found.evidence, found.seen):
            return found
        bits: tuple[int, tuple[int, ...]] = (found.bits, found.bit_positions) if seen == found.seen else (-1, ())
        if own.data and examined.sight is Sight.MATCHES and row.id != examined.id:
            bits = await self._bits(row.id, own.data, peer)
        now_ns = self._clock.now_ns()
        looks = (
            Look(now_ns, Side.PRIMARY, own.sight, own.source, seen, own.reason),
            *((Look(now_ns, Side.PRIMARY, own.sight, "peer", examined.checksum, peer.name),) if own.data else ()),
            Look(now_ns, Side.REPLICA, examined.sight, "media", b"", _joined(peer.name, examined.reason)),
        )
        return found.with_event(
            now_ns,
            _story(peer.name, evidence, verdict),
            verdict=verdict,
            evidence=evidence,
            seen=seen or found.seen,
            bits=bits[0],
            bit_positions=bits[1],
            looks=first_and_latest((*found.looks, *looks)),
        )

    async def _bits(self, name: bytes, data: bytes, peer: Peer) -> tuple[int, tuple[int, ...]]:
        zeros = bytes(len(data))
        good = zeros if block_id(zeros) == name else await peer.fetch(name, len(data))
        return differing_bits(good, data) if isinstance(good, bytes) else (-1, ())

    # metadata

    async def _metadata(self, found: Divergence, peer: Peer) -> Divergence:
        """The entry's own metadata against the ledger's; what the replica was told of it is the ledger's as well."""
        recorded = await self._dataset.in_ledger(recorded_entry, self._dataset.ledger, found)
        if recorded is None:
            if await self._dataset.in_ledger(is_unnamed, self._dataset.ledger, found.file):
                return found  # it may only have moved
            return self._gone(found, "the entry was dropped")
        path, known = recorded
        (entry,) = await self._in_pool(partial(describe, self._root, [await self._where_now(path)]))
        if isinstance(entry, Trouble):
            return found  # where it vanished, it may only have moved: the next pass records where it is
        if entry.stamp.identity != stamp_of(known).identity:
            return self._gone(found, f"the entry was {WRITTEN}", verdict=Verdict.CHANGED)
        if is_as_recorded(put_of(path, known), entry):
            return self._gone(found, "the entry is as recorded")
        found = replace(found, path=path)
        evidence = Evidence(
            primary=Sight.MATCHES,
            replica=Sight.MATCHES if known.seq <= peer.covered else Sight.UNKNOWN,
            writing=Writing.UNWRITTEN,
            books=Books.AGREE if known.seq <= peer.covered else Books.UNKNOWN,
            metadata_differs=True,
        )
        verdict = judge(evidence)
        if (verdict, evidence) == (found.verdict, found.evidence):
            return found
        story = _story(peer.name, evidence, verdict)
        return found.with_event(self._clock.now_ns(), story, verdict=verdict, evidence=evidence)

    async def _where_now(self, path: bytes) -> bytes:
        return await where_now(self._dataset, self._root, self._pool, path)

    def _gone(self, found: Divergence, why: str, **changes: object) -> Divergence:
        return found.with_event(self._clock.now_ns(), why, state=State.GONE, **changes)

    async def _in_pool(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def recorded_block(ledger: Ledger, found: Divergence) -> tuple[bytes, Known, BlockRow] | None:
    """What the ledger has where the finding was made, if that still is what was expected there; None when it is not.

    Of a block that should be all-zero the ledger has no id, or no row at all: here it has those of its zeros."""
    known = ledger.known(found.path)
    path = found.path
    if known is None or known.file != found.file:
        renamed = files_numbered(ledger, [found.file]).get(found.file)
        if renamed is None:
            return None
        path, known = renamed
    row = ledger.blocks(found.file, found.number, found.number + 1).get(found.number)
    length = length_of(known, found.number)
    if length <= 0 or (row.id if row else ZERO) != (found.blocks[0] if found.blocks else ZERO):
        return None
    if not found.blocks:
        zeros, seq = bytes(length), row.seq if row else known.seq
        return path, known, BlockRow(found.file, found.number, block_id(zeros), checksum(zeros), seq)
    return None if row is None or (found.expected and row.checksum != found.expected) else (path, known, row)


def recorded_entry(ledger: Ledger, found: Divergence) -> tuple[bytes, Known] | None:
    """The entry whose metadata a finding speaks of, and where it is recorded by now: a file keeps its number when it
    gets another name, all else is what stands at its path."""
    known = ledger.known(found.path)
    if known is not None and (found.file <= 0 or known.file == found.file):
        return found.path, known
    named = LookUp(ledger.database).named(found.file, 1) if found.file > 0 else []
    return named[0] if named else None


def look_at_block(root: Root, path: bytes, known: Known, row: BlockRow) -> Own:
    """Read a block twice from the medium, each time between two looks at the file's identity. In a thread."""
    ask = Ask(path, (row.number,), known.block_bytes, content_identity(known))
    first, second = (reread(root, [ask], medium=True)[0] for _ in range(2))
    for one in (first, second):
        if isinstance(one, Moved):
            return Own(Sight.UNKNOWN, Writing.WRITTEN, reason="its size, times or inode changed")
        if isinstance(one, Trouble) and one.vanished:  # it may only have moved: the next pass records where it is
            return Own(Sight.UNKNOWN, Writing.UNKNOWN, reason=one.reason)
    if isinstance(first, Trouble) and isinstance(second, Trouble):
        sight = Sight.UNREADABLE if is_medium(first) and is_medium(second) else Sight.UNKNOWN
        return Own(sight, Writing.UNWRITTEN, reason=first.reason)
    if not (isinstance(first, Reread) and isinstance(second, Reread)) or first.blocks != second.blocks:
        return Own(Sight.UNKNOWN, Writing.UNWRITTEN, reason="two looks from the medium gave two answers")
    data = first.blocks[0]
    is_well = is_recorded_block(data, row)
    source = "media" if first.medium and second.medium else "cache"
    return Own(Sight.MATCHES if is_well else Sight.DIFFERS, Writing.UNWRITTEN, b"" if is_well else data, source)


def is_recorded_block(data: bytes, row: BlockRow | None) -> bool:
    """Whether these bytes are what the ledger has of a block: the id says which block that is, and the checksum, once
    it is known, must agree. No bytes are what a row says that contradicts itself."""
    if row is None or row.id == ZERO:
        return is_zero(data)
    return block_id(data) == row.id and row.checksum in (UNKNOWN_CHECKSUM, checksum(data))


def is_as_recorded(put: Put, entry: Described) -> bool:
    """Whether an entry's metadata is what the ledger has. A symlink has no mode of its own."""
    meta, now = put.meta, entry.description.meta
    return (
        put.kind == entry.stamp.kind
        and (meta.uid, meta.gid, meta.xattrs) == (now.uid, now.gid, now.xattrs)
        and (put.kind is Kind.SYMLINK or meta.mode == now.mode)
        and (put.target, put.device) == (entry.description.target, entry.description.device)
    )


def length_of(known: Known, number: int) -> int:
    """Bytes of a recorded block."""
    return block_length(known.size, known.block_bytes, number)


def _witness(own: Own, examined: Examined) -> Witness:
    if own.sight is not Sight.DIFFERS:
        return Witness.SILENT
    same = (examined.checksum, examined.id) == (checksum(own.data), block_id(own.data))
    return Witness.CONFIRMS if same else Witness.CONTRADICTS


def _story(replica: str, evidence: Evidence, verdict: Verdict) -> str:
    said = f"here the block {evidence.primary}, on {replica} it {evidence.replica}"
    if evidence.metadata_differs:
        said = "the metadata differs though nobody changed the entry"
    elif evidence.witness is Witness.CONTRADICTS:
        said += f", but {replica} computes something else of the bytes that were found"
    return f"{said}: {verdict.value}"


def _joined(name: str, reason: str) -> str:
    return f"{name}: {reason}" if reason else name
