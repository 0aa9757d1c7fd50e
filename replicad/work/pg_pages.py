"""PostgreSQL pages: their checksums, for hosts where the server's own `pg_checksums` is missing.

A page's checksum is PostgreSQL's own (FNV-1a over 32 interleaved sums, storage/checksum_impl.h), computed here with one
large number whose 64-bit lanes are the 32 sums: 66 rounds a page instead of 2,112 steps.

Pages that the write-ahead log will write anew (their LSN is beyond the point where recovery begins) may be torn in a
copy of a running cluster, and say nothing.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 8192
SEGMENT_PAGES = 131_072
"""Pages in one file of a relation: 1 GiB; the next is called .1"""
_RELATION = re.compile(r"\d+(?:_(?:fsm|vm|init))?(?:\.(\d+))?")
_LANES = 32
_PRIME = 16777619
_MASK = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * _LANES, "little")
_BASES = (
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
)  # fmt: skip
"""The 32 sums before the first round."""
_START = int.from_bytes(struct.pack("<32Q", *_BASES), "little")
_REDO_AT = 40
"""Where pg_control has the LSN at which recovery begins (PostgreSQL 11 and newer)."""
_LABEL = re.compile(rb"START WAL LOCATION: ([0-9A-F]+)/([0-9A-F]+)")


@dataclass(slots=True)
class Pages:
    """What a look at all pages came to."""

    checked: int = 0
    without: int = 0
    """Pages without a checksum."""
    bad: int = 0
    first_bad: str = ""


def checksum_of_page(page: bytes, number: int) -> int:
    """What the checksum of page `number` of a relation should be."""
    words = array("I", page[:8] + b"\0\0" + page[10:])
    lanes = array("Q", words).tobytes()
    sums, width = _START, 8 * _LANES
    for at in (*range(0, len(lanes), width), -1, -1):
        value = int.from_bytes(lanes[at : at + width], "little") if at >= 0 else 0
        mixed = sums ^ value
        sums = ((mixed * _PRIME) ^ ((mixed >> 17) & _SHIFTED)) & _MASK
    result = number
    for lane in struct.unpack("<32Q", sums.to_bytes(width, "little")):
        result ^= lane
    return result % 65535 + 1


_SHIFTED = int.from_bytes(b"\xff\x7f\0\0\0\0\0\0" * _LANES, "little")
"""The bits of each lane that remain when 17 are shifted out."""


def look_at_pages(cluster: Path) -> Pages:
    """Check every page of a cluster that does not run. Raises OSError."""
    found, redo = Pages(), recovery_begin(cluster)
    for path, segment in _relations(cluster):
        with path.open("rb") as file:
            number = segment * SEGMENT_PAGES
            while page := file.read(PAGE_BYTES):
                _look(found, page, number, redo, f"{path.relative_to(cluster)} page {number}")
                number += 1
    return found


def recovery_begin(cluster: Path) -> int:
    """The LSN at which recovery of this copy begins. Raises OSError."""
    label = cluster / "backup_label"
    if label.exists() and (match := _LABEL.search(label.read_bytes())):
        return int(match[1], 16) << 32 | int(match[2], 16)
    control = (cluster / "global" / "pg_control").read_bytes()
    return int(struct.unpack_from("<Q", control, _REDO_AT)[0]) if len(control) >= _REDO_AT + 8 else 0


def _look(found: Pages, page: bytes, number: int, redo: int, name: str) -> None:
    if len(page) < PAGE_BYTES:
        return  # a relation that was being extended
    high, low, checksum, _flags, _lower, upper = struct.unpack_from("<IIHHHH", page)
    if upper == 0 or (high << 32 | low) >= redo:
        return  # a new page has no checksum yet; a younger one is written anew by recovery
    if not checksum:
        found.without += 1
        return
    found.checked += 1
    if checksum_of_page(page, number) != checksum:
        found.bad += 1
        found.first_bad = found.first_bad or name


def _relations(cluster: Path) -> Iterator[tuple[Path, int]]:
    """Files of relations, and which segment of its relation each is."""
    for place in (cluster / "global", *sorted((cluster / "base").glob("*"))):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if (match := _RELATION.fullmatch(path.name)) and path.is_file() and not path.is_symlink():
                yield path, int(match[1] or 0)
