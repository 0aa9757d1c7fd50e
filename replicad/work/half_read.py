"""Half read: entries that are recorded without an attribute that could not be read, and may be read some day.

**Owns** the stamp that they are recorded under: one that no entry has, so that each walk finds them again, no pass that
left one out counts as complete, and no scrub takes the attribute, once it shows, for one that came without a write.
**Never** has content read anew for an attribute's sake: it is recorded like any other, and whoever reads a block of it
again asks for the identity under which it was read.
"""

from __future__ import annotations

from msgspec.structs import replace

from replicad.db.ledger import EntryRow, Known, Ledger, put_of, stamp_of
from replicad.model.entry import Identity, Stamp
from replicad.source.meta import Described


def half_read(stamp: Stamp) -> Stamp:
    """What an entry with this stamp is recorded under. No file was changed before 1970."""
    return stamp._replace(ctime_ns=~stamp.ctime_ns)


def is_half_read(known: Known) -> bool:
    """Whether an entry is recorded so."""
    return known.ctime_ns < 0


def content_identity(known: Known) -> Identity:
    """The identity that a file had when its content was read."""
    identity = stamp_of(known).identity
    return replace(identity, ctime_ns=~identity.ctime_ns) if identity.ctime_ns < 0 else identity


def read_whole(ledger: Ledger, item: Described, seq: int) -> Known | None:
    """Record the attributes of a file that can be read by now; None when somebody has written it since. In the ledger's
    thread."""
    known = ledger.known(item.path)
    if known is None or stamp_of(known) != half_read(item.stamp):
        return None
    put = replace(put_of(item.path, known), meta=item.description.meta)
    ledger.record_entries([EntryRow(put, item.stamp, seq)])
    return ledger.known(item.path)
