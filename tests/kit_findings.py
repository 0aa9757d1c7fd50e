"""Kit: findings of every kind, as the parts that find them would write them, and books that hold them."""

from __future__ import annotations

from pathlib import Path

from kit_daemon import NOW_NS, S
from replicad.db.findings import Findings
from replicad.model.divergence import Affected, Divergence, Event, Look, Part, Side
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, Writing

HOUR_NS = 3600 * S


def a_divergence(**changes: object) -> Divergence:
    """One block of the primary that a scrub has just found to differ."""
    fields: dict[str, object] = {
        "key": "block:77:3",
        "dataset": "www",
        "side": Side.PRIMARY,
        "peer": "",
        "part": Part.BLOCK,
        "what": "the block differs from its record",
        "path": b"img/logo.png",
        "offset": 196608,
        "length": 65536,
        "file": 77,
        "number": 3,
        "blocks": (b"\x07" * 32,),
        "expected": b"1" * 16,
        "seen": b"0" * 16,
        "evidence": Evidence(Sight.DIFFERS, writing=Writing.UNWRITTEN),
    }
    return Divergence(**{**fields, **changes})  # type: ignore[arg-type]  # a table of changes has no one type


def primary_rot(**changes: object) -> Divergence:
    """The same, once the replica has been asked: it has the block."""
    looks = (
        Look(NOW_NS - 2 * HOUR_NS, Side.PRIMARY, Sight.DIFFERS, "media", b"0" * 16),
        Look(NOW_NS - 2 * HOUR_NS + S, Side.PRIMARY, Sight.DIFFERS, "media", b"0" * 16),
        Look(NOW_NS - HOUR_NS, Side.PRIMARY, Sight.DIFFERS, "peer", b"0" * 16),
        Look(NOW_NS - HOUR_NS, Side.REPLICA, Sight.MATCHES, "media", b"1" * 16),
    )
    return a_divergence(
        **{
            "verdict": Verdict.PRIMARY_ROT,
            "evidence": Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.UNWRITTEN, Witness.CONFIRMS),
            "found_ns": NOW_NS - 2 * HOUR_NS,
            "changed_ns": NOW_NS - HOUR_NS,
            "bits": 1,
            "bit_positions": (81_923,),
            "affected": (Affected(b"img/logo.png", 196608, 65536, 12, 0),),
            "affected_count": 1,
            "looks": looks,
            "events": (
                Event(NOW_NS - 2 * HOUR_NS, "found by the scrub"),
                Event(NOW_NS - HOUR_NS, "fra1 has the block and confirms what was seen: primary_rot"),
            ),
            "quarantine": "quarantine/www/7c1e90ab",
            **changes,
        }
    )


def replica_rot(**changes: object) -> Divergence:
    """A block frame of a replica that rotted; the primary has the block."""
    looks = (
        Look(NOW_NS - 2 * HOUR_NS, Side.REPLICA, Sight.DIFFERS, "media", b"0" * 16),
        Look(NOW_NS - 2 * HOUR_NS, Side.REPLICA, Sight.DIFFERS, "media", b"0" * 16),
        Look(NOW_NS - HOUR_NS, Side.PRIMARY, Sight.MATCHES, "media", b"1" * 16),
    )
    return a_divergence(
        **{
            "key": "frame:7:1052672",
            "side": Side.REPLICA,
            "peer": "ams1",
            "verdict": Verdict.REPLICA_ROT,
            "what": "block frame fails its checksum",
            "path": b"segments/00000007.seg",
            "offset": 1_052_672,
            "length": 65_600,
            "file": 0,
            "number": 7,
            "evidence": Evidence(Sight.MATCHES, Sight.DIFFERS, Writing.UNWRITTEN, Witness.CONFIRMS),
            "found_ns": NOW_NS - 2 * HOUR_NS,
            "changed_ns": NOW_NS - HOUR_NS,
            "bits": 2,
            "bit_positions": (81_923, 81_924),
            "affected": (
                Affected(b"img/logo.png", 196608, 65536, 12, 0),
                Affected(b"old/logo.png", 196608, 65536, 3, 9),
            ),
            "affected_count": 2,
            "looks": looks,
            "events": (Event(NOW_NS - 2 * HOUR_NS, "found by the scrub"),),
            "quarantine": "quarantine/00000007-1052672",
            **changes,
        }
    )


def write_book(path: Path, *found: Divergence) -> list[Divergence]:
    """A findings book with these; as they stand in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Findings(path)
    written = [book.report(one) for one in found]
    book.close()
    return written
