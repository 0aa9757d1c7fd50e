"""Structure check: what no hash can see: whether catalog, segments and snapshots fit together.

Every block that a snapshot names has a place; no file has blocks behind its end; commits follow one another and cover
their records; the header of each segment continues the seal before it. **Owns** these questions, asked of a read-only
connection page by page. That frames stand where the catalog says is for the scrub of the segments.

**Never** takes for wrong what an older replicad or known damage explains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from replicad.db.inventory import CommitRow, FileName, Inventory
from replicad.model.block import block_count
from replicad.model.snapshot import decode_commit, records_digest
from replicad.store.format import (
    NO_DIGEST,
    FrameError,
    FrameType,
    decode_segment_header,
    decode_segment_seal,
    parse_frame,
    plain_payload,
)
from replicad.work.replay import MAX_WAITING

MAX_MISSING = 1000
"""Missing blocks that are named one by one; those beyond are found when these are mended."""
MAX_TEXTS = 20
_TYPE_AT, _ID_AT = 20, 32


@dataclass(slots=True)
class Structure:
    """What was found."""

    missing: list[bytes] = field(default_factory=list)
    """Ids of blocks that files name and the catalog has no place for."""
    pages: list[str] = field(default_factory=list)
    """What is wrong with its pages."""
    false: list[str] = field(default_factory=list)
    """What in the catalog contradicts itself."""

    def contradiction(self, text: str) -> None:
        """Note one; those behind the first MAX_TEXTS say nothing new."""
        if len(self.false) < MAX_TEXTS:
            self.false.append(text)


def check_structure(inventory: Inventory, noted: Container[bytes] = ()) -> Structure:
    """All checks. `noted`: blocks that a person knows to be missing. Raises BookDamagedError, ReplicadError."""
    found = Structure()
    found.pages += inventory.verify()
    if not found.pages:
        _check_coverage(inventory, found, noted)
        _check_ends(inventory, found)
        _check_chain(inventory, found)
    return found


def is_covered(inventory: Inventory, told: Container[bytes]) -> bool:
    """Whether nothing that a snapshot names is missing, no piece of the record and no block but those `told` of."""
    return not inventory.lost and all(name in told for page in inventory.unplaced() for name in page)


def _check_coverage(inventory: Inventory, found: Structure, noted: Container[bytes]) -> None:
    named: dict[bytes, None] = {}
    for page in inventory.unplaced():
        named.update(dict.fromkeys(name for name in page if name not in noted))
        if len(named) >= MAX_MISSING:
            break
    found.missing += list(named)[:MAX_MISSING]


def _check_ends(inventory: Inventory, found: Structure) -> None:
    """A file's blocks end where the longest of its names does."""
    suspects: dict[int, int] = {}
    for beyond in inventory.beyond_end():
        suspects.update(beyond[: MAX_MISSING - len(suspects)])
    for page in inventory.file_names() if suspects else ():  # another name of the file may be longer
        for file, count in _counts(page).items():
            if suspects.get(file, count) < count:
                del suspects[file]
    for file, number in suspects.items():
        found.contradiction(f"file {file} has a block {number} behind its end")


def _counts(page: list[FileName]) -> dict[int, int]:
    """Blocks of the files that live names in a page have; the longest name of each counts."""
    live: dict[int, int] = {}
    for name in page:
        if name.died is None:
            live[name.file] = max(live.get(name.file, 0), block_count(name.size, name.block_bytes))
    return live


def _check_chain(inventory: Inventory, found: Structure) -> None:
    """Headers and seals continue one another, commits follow one another and cover the records before them."""
    chain = _Chain(inventory, found)
    for segment, offset, head in inventory.heads():
        kind = head[_TYPE_AT]
        if kind == FrameType.RECORD:
            chain.records.append(head[_ID_AT:])
        elif kind in (FrameType.HEADER, FrameType.SEAL, FrameType.COMMIT):
            chain.take(segment, offset, FrameType(kind))
    chain.end()


class _Chain:
    """What is known on the way through the copies."""

    def __init__(self, inventory: Inventory, found: Structure) -> None:
        self._inventory, self._found = inventory, found
        self._rows: Iterator[CommitRow] = inventory.commits()
        self._row = next(self._rows, None)
        self._before = b""
        self._seal: tuple[int, bytes] = (0, NO_DIGEST)
        self._is_whole = inventory.uncopied == (0, 0) and not inventory.damage() and not inventory.lost
        self.records = deque[bytes](maxlen=MAX_WAITING)

    def take(self, segment: int, offset: int, kind: FrameType) -> None:
        copy = self._inventory.copy(segment, offset)
        assert copy is not None
        where = f"the copy of a frame of segment {segment} at byte {offset}"
        try:
            frame = parse_frame(copy.frame, 0, offset)
            if kind == FrameType.HEADER:
                self._take_header(segment, decode_segment_header(frame).previous)
            elif kind == FrameType.SEAL:
                self._seal = (segment, decode_segment_seal(frame).after)
            else:
                self._take_commit(bytes(plain_payload(frame)), frame.id)
        except (FrameError, ValueError) as error:
            self._found.contradiction(f"{where}: {error}")

    def end(self) -> None:
        if self._row and self._is_whole:
            self._found.contradiction(f"snapshot {self._row.number} has no commit")

    def _take_header(self, segment: int, previous: bytes) -> None:
        if previous != NO_DIGEST and self._seal[0] == segment - 1 and previous != self._seal[1]:
            self._found.contradiction(f"segment {segment} does not follow the end of segment {segment - 1}")

    def _take_commit(self, payload: bytes, name: bytes) -> None:
        commit = decode_commit(payload)
        while self._row and self._row.digest != name and not self._is_whole:
            self._row = next(self._rows, None)  # its commit was written by an older replicad, or is damaged
            self._before = b""
        if self._row is None and not self._is_whole:
            return
        if self._row is None or self._row.digest != name:
            self._found.contradiction(
                f"the commit of snapshot {commit.number} is not the next in the list of snapshots"
            )
            return
        if self._before and commit.parent != self._before:
            self._found.contradiction(f"snapshot {commit.number} does not follow the one before it")
        claimed = list(self.records)[-commit.records :] if commit.records else []
        if self._is_whole and records_digest(claimed) != commit.records_digest:
            self._found.contradiction(f"snapshot {commit.number} does not cover the records before it")
        self.records.clear()
        self._before, self._row = name, next(self._rows, None)
