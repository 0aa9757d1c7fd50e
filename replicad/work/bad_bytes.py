"""Bad bytes: what was found at a damaged place of a store, for the primary to compute the same of.

They are kept aside when they are found, and stand there still as long as nobody wrote there. **Never** gives others for
them: what is kept may be of an earlier finding of that place, what stands there of later rot. In any thread.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from replicad.link.messages import MAX_SEEN_BYTES
from replicad.model.block import checksum
from replicad.model.divergence import Divergence
from replicad.model.errors import ReplicadError
from replicad.store.segments import segment_path
from replicad.system.disk import Disk
from replicad.work.quarantine import Quarantine


def seen_bytes(found: Divergence, quarantine: Quarantine, directory: Path, disk: Disk) -> bytes:
    """The bytes that were found, MAX_SEEN_BYTES at most; b"" when they are neither kept nor there any more."""
    kept = quarantine.read(found.quarantine, MAX_SEEN_BYTES)
    if not found.seen or checksum(kept) == found.seen:
        return kept
    stands = standing_bytes(found, directory, disk)
    return stands if checksum(stands) == found.seen else b""


def renewed(found: Divergence, quarantine: Quarantine, directory: Path, disk: Disk, at_ns: int) -> Divergence:
    """The finding, about the bytes that stand there now where those that were found are gone: of these nobody could
    ever say anything."""
    if seen_bytes(found, quarantine, directory, disk):
        return found
    stands = standing_bytes(found, directory, disk)
    if not stands:
        return found
    kept = quarantine.keep(f"{found.number:08d}-{found.offset:08d}-{at_ns}.bad", stands)
    text = "what was found is kept no more, and other bytes stand there by now: those are judged"
    return found.with_event(at_ns, text, seen=checksum(stands), quarantine=kept)


def standing_bytes(found: Divergence, directory: Path, disk: Disk) -> bytes:
    """What stands in that place now, as far; b"" when the medium gives nothing."""
    if not found.number:
        return b""
    try:
        reader = disk.open_read(segment_path(directory, found.number))
        with contextlib.closing(reader):
            size = min(found.length, MAX_SEEN_BYTES, reader.size - found.offset)
            return bytes(reader.read_at(found.offset, size)) if size > 0 else b""
    except (ReplicadError, FileNotFoundError):
        return b""  # as when it is not kept: nobody can be asked about it
