"""Mended: what became of an order to repair, or would become of it, as a plain value."""

from __future__ import annotations

from typing import NamedTuple

from replicad.model.remedy import Remedy


class Mended(NamedTuple):
    """What became of one divergence."""

    remedy: Remedy
    result: str
    """planned, repaired, failed, undone, refused (a guard), waiting (for the other side, or for a pass), nothing."""
    text: str
    """In one sentence for a person."""
    is_for_pass: bool = False
    """Whether the next pass may take away what stood in the way."""


PLANS = {
    Remedy.NOTHING: "there is nothing to be repaired",
    Remedy.LOOK_AGAIN: "not enough is known yet: it is looked at again by itself",
    Remedy.MEND_REPLICA: "proven blocks of the primary would be appended to the store in place of the bad ones",
    Remedy.MEND_PRIMARY: "a replica's proven block would be written over the bad bytes",
    Remedy.MEND_METADATA: "the recorded mode, owner and attributes would be set again",
    Remedy.ADOPT_RECORD: "the ledger is what is wrong, it is made anew by hand: replicad rebuild --ledger",
    Remedy.SEND_RECORD: "the next pass would tell the replica the whole record anew: names, not blocks",
    Remedy.LAY_SEGMENT: "the segment would be laid anew from its good frames and the catalog's copies of the others",
    Remedy.REBUILD_BOOK: "the damaged book is made anew: replicad rebuild",
    Remedy.NONE_LEFT: "no side has the bytes any more: restore an older state, then acknowledge the loss",
}
"""What is done about a finding, for a dry run. Every remedy has one."""
