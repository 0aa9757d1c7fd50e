"""Witness: what a replica says of one of its stores when its client asks, and what it keeps when that asks for it.

Everything comes from the store's own catalog and findings, and from this node's configuration and clock; of drills it
remembers what its client has told, dated by its own clock at the latest. **Never** lets a client shorten anything: it
can add a bounded number of pins, and takes none back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from replicad.db.findings import Findings
from replicad.link.messages import SnapshotLine
from replicad.model.attestation import Attestation, DrillMemory, DrillNote
from replicad.model.divergence import Side, count_open
from replicad.model.errors import UsageError
from replicad.model.pairing import parse_name
from replicad.model.retention import Pin, Rules
from replicad.model.snapshot import Head
from replicad.status import ScrubStatus, StoreStatus, printable
from replicad.system.clock import Clock
from replicad.work.surface import Extent

DRILLS_KEY = "drills"
TEXT_CHARACTERS = 300

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(DrillMemory)


class Witness:
    """Of one store. Its findings belong to the executor."""

    def __init__(
        self,
        findings: Findings,
        executor: ThreadPoolExecutor,
        status: StoreStatus,
        extent: Callable[[], Awaitable[Extent]] | None,
        rules: Callable[[], Rules],
        clock: Clock,
    ) -> None:
        """`extent` says how much there is to verify now; None while nothing can be verified."""
        self._findings, self._executor, self._status, self._rules = findings, executor, status, rules
        self._extent, self._clock = extent, clock

    async def attest(
        self, lines: Sequence[SnapshotLine], scrub: ScrubStatus | None, notes: Sequence[DrillNote]
    ) -> Attestation:
        """What this copy amounts to, given the store's snapshots and its scrub; the drills, which are of snapshots that
        there are or were, are remembered first."""
        extent = await self._extent() if self._extent else None
        said = await asyncio.get_running_loop().run_in_executor(self._executor, lambda: self._attest(lines, notes))
        return _of_scrub(said, scrub, extent) if scrub else said

    async def keep(self, lines: Sequence[SnapshotLine], name: str, head: Head, reason: str) -> str:
        """Pin one of these snapshots; why that is not possible, or ""."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: self._keep(lines, name, head, reason)
        )

    # in the store's thread

    def _attest(self, lines: Sequence[SnapshotLine], notes: Sequence[DrillNote]) -> Attestation:
        now_ns, rules = self._clock.now_ns(), self._rules()
        newest = lines[-1] if lines else None
        whole = next((line for line in reversed(lines) if line.complete), None)
        open_ones = self._findings.listed(side=Side.REPLICA)
        said = Attestation(
            now_ns=now_ns,
            head=Head(newest.number, newest.digest) if newest else Head(),
            lost_records=newest.lost if newest else 0,
            store_state=self._status.state,
            open=count_open(open_ones),
            lost=sum(found.is_lost for found in open_ones),
            drills=self._heard(notes, now_ns),
            keeps_all=rules.is_off,
            keep_younger_than_s=max(rules.younger_than_s, rules.within_s),
            keep_at_least=max(rules.at_least, rules.daily),
            pins_asked=self._findings.asked_pins(),
        )
        return _of_snapshot(said, whole)

    def _heard(self, notes: Sequence[DrillNote], now_ns: int) -> DrillMemory:
        """What is remembered of drills, with those that the client tells of."""
        known = before = recalled_drills(self._findings)
        for note in notes:
            shown = msgspec.structs.replace(note, reason=printable(note.reason[:TEXT_CHARACTERS]))
            known = known.heard(shown, now_ns)
        if known != before:
            self._findings.put(DRILLS_KEY, _encode(known))
        return known

    def _keep(self, lines: Sequence[SnapshotLine], name: str, head: Head, reason: str) -> str:
        if not any((line.number, line.digest) == (head.number, head.digest) for line in lines):
            return f"there is no snapshot {head.number} with that digest here"
        shown = printable(reason[:TEXT_CHARACTERS])
        try:
            pin = Pin(parse_name(name), head.number, self._clock.now_ns(), shown, asked_by=self._status.client)
            self._findings.add_pin(pin)
        except (UsageError, ValueError) as error:
            return str(error)
        return ""


def recalled_drills(findings: Findings) -> DrillMemory:
    """What was remembered; nothing when this version does not understand it: the client tells of the next drill."""
    kept = findings.get(DRILLS_KEY)
    try:
        return _decoder.decode(kept) if isinstance(kept, bytes) else DrillMemory()
    except msgspec.MsgspecError:
        return DrillMemory()


def _of_snapshot(said: Attestation, whole: SnapshotLine | None) -> Attestation:
    if whole is None:
        return said
    return msgspec.structs.replace(
        said,
        complete=Head(whole.number, whole.digest),
        created_ns=whole.created_ns,
        received_ns=whole.received_ns,
    )


def _of_scrub(said: Attestation, scrub: ScrubStatus, extent: Extent | None) -> Attestation:
    """Sizes are those of now; the scrub itself looks at them now and then only."""
    return msgspec.structs.replace(
        said,
        total_bytes=extent.total_bytes if extent else scrub.total_bytes,
        never_bytes=extent.never_bytes if extent else scrub.never_bytes,
        oldest_verified_ns=scrub.oldest_verified_ns,
        scrub_state=scrub.state,
        scrub_reason=scrub.reason[:TEXT_CHARACTERS],
    )
