"""Mirror: what a replica says of its findings and of its scrub, as the primary keeps it.

A primary's own book has a copy of each open finding of its replicas, under the same id, so that one place answers what
is wrong with a dataset, also while the replica is out of reach. **Never** lets a replica touch what is not its own: a
finding of this side, or of another replica, stays as it is whatever id a peer uses.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

from replicad.db.findings import Findings
from replicad.model.attestation import Attestation, DrillNote
from replicad.model.divergence import ID_CHARACTERS, REPAIR_RESULTS, Divergence, Side, State
from replicad.model.errors import PeerError
from replicad.model.verdict import Verdict
from replicad.status import ScrubStatus, printable
from replicad.work.told import told

MAX_MIRRORED = 5000
"""Open findings of one replica that are kept here; the replica's own book has all of them."""
_ID = re.compile(f"[0-9a-f]{{{ID_CHARACTERS}}}")
_TEXT = 300
_VERDICTS = tuple(verdict.value for verdict in Verdict)
_COUNTED = {"divergent": _VERDICTS, "divergences": _VERDICTS, "repairs": REPAIR_RESULTS}
"""The words that a status counts by; they become labels of metrics, which a replica does not choose."""


class Mirror:
    """The findings of one replica in the book of a primary. Its methods run in the books' thread."""

    def __init__(self, findings: Findings, dataset: str, replica: str) -> None:
        self._findings, self._dataset, self._replica = findings, dataset, replica

    def take(self, said: Divergence) -> Divergence:
        """Keep what the replica says of one of its findings. Raises PeerError."""
        if not _ID.fullmatch(said.id):
            raise PeerError("named a finding by what is no id", where=self._replica)
        found = msgspec.structs.replace(told(said), dataset=self._dataset, side=Side.REPLICA, peer=self._replica)
        known = self._findings.get_exactly(found.id)
        if known is not None and (known.side, known.peer) != (Side.REPLICA, self._replica):
            raise PeerError(f"named its finding {found.id} as another one is named", where=self._replica)
        if known is None:
            self._replace_open(found)
        elif known != found and not (known.state is State.ACKNOWLEDGED and found.state is State.OPEN):
            self._findings.update(found)
        return found

    def close_all_but(self, names: Collection[str], at_ns: int) -> None:
        """These are all that are open there."""
        for found in self._open():
            if found.id not in names:
                text = f"it is no longer open on {self._replica}"
                self._findings.update(found.with_event(at_ns, text, state=State.GONE))

    def _replace_open(self, found: Divergence) -> None:
        """Write a finding that is new here. One of the same place under another id is not open there any more."""
        other = self._findings.open_at(Side.REPLICA, self._replica, found.key)
        if other and found.state is State.OPEN:
            text = f"{self._replica} has made another finding of it, {found.id}"
            self._findings.update(other.with_event(found.changed_ns, text, state=State.GONE))
        if self._findings.count_open(Side.REPLICA, self._replica) < MAX_MIRRORED:
            self._findings.report(found)

    def _open(self) -> list[Divergence]:
        return [found for found in self._findings.listed(side=Side.REPLICA) if found.peer == self._replica]


def close_those_of_others(findings: Findings, replicas: Collection[str], at_ns: int) -> None:
    """What is open about a replica that this dataset has no more: nobody is left who would ever close it. Should it be
    one again, it tells what is open there. In the books' thread."""
    for found in findings.listed():
        if found.peer and found.peer not in replicas:
            text = f"{found.peer} is no replica of this dataset any more"
            findings.update(found.with_event(at_ns, text, state=State.GONE))


def mirror_status(into: ScrubStatus, said: ScrubStatus) -> None:
    """What the replica says of its scrub, into the line that the primary shows: every field but whose line it is."""
    for name in ScrubStatus.__struct_fields__:
        if name not in ("dataset", "side", "peer", "mirrored"):
            value = getattr(said, name)
            if isinstance(value, str):
                value = printable(value[:_TEXT])
            elif isinstance(value, dict):
                value = {word: value[word] for word in _COUNTED[name] if word in value}
            setattr(into, name, value)


def mirror_attestation(said: Attestation) -> Attestation:
    """What the replica says of its copy, in words that may be shown."""
    return msgspec.structs.replace(
        said,
        store_state=_shown(said.store_state),
        scrub_state=_shown(said.scrub_state),
        scrub_reason=_shown(said.scrub_reason),
        open={_shown(verdict): count for verdict, count in said.open.items()},
        drills=msgspec.structs.replace(
            said.drills, last=_shown_note(said.drills.last), proven=_shown_note(said.drills.proven)
        ),
    )


def _shown_note(note: DrillNote) -> DrillNote:
    return msgspec.structs.replace(note, kind=_shown(note.kind), digest=_shown(note.digest), reason=_shown(note.reason))


def _shown(text: str) -> str:
    return printable(text[:_TEXT])
