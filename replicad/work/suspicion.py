"""Suspicion: which of the changes that one snapshot brought look like damage. On the replica, from its own store.

    few_bits    a block was replaced by one that differs in a few bits
    zeroed      a block that held data is all-zero now, within the file
    emptied     a file with content has none now
    same_mtime  content changed under an unchanged modification time
    scrambled   many files that compressed do so no more

**Never** judges: each of these may be meant. So each rule leaves out what programs do all day (an appended log, a
counter, a page of a database), and the work on one snapshot is bounded, whatever its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from replicad.db.changes import Changes, Ended, Made, Replaced, Version
from replicad.link.messages import Lost
from replicad.model.block import block_count
from replicad.model.divergence import Suspect, differing_bits
from replicad.model.entry import FUZZY, Kind
from replicad.store.format import FrameError, plain_payload, split_frames
from replicad.system.logs import logger
from replicad.work.archive import catalog_path
from replicad.work.archive_reader import ArchiveReader

log = logger("work.suspicion")

FEW_BITS = 4
"""What a failing memory cell or bus flips in a block; whoever writes a page of a database changes far more."""
NEAR_STORED_BYTES = 256
"""Compressed sizes of two blocks that differ by a few bits lie closer than this: others need not be read."""
COMPARED_BYTES = 256 * 1024 * 1024
"""Plain bytes of one snapshot that are compared bit by bit, at most: a minute of a slow disk."""
COMPARED_BLOCKS = 2048
"""Blocks of one snapshot that are compared; of more, one in so many is."""
PAIRS = 8
"""Pairs of blocks read at once: 16 MiB of the largest."""
LATE_NS = 60 * 1_000_000_000
"""A file whose modification time lies no longer than this before the pass that recorded it was perhaps still being
written: one long write, or a mapped page, goes on under the time at which it began."""
SCRAMBLED_FILES = 20
"""So many files at once, and not fewer, are a surge."""
SCRAMBLED_SHARE = 0.5
"""Share of the rewritten compressible files that must not compress any more."""
SQUEEZED = 7 / 8
"""A file compressed well when it was stored in this share of its size."""
SCRAMBLED_BYTES = 512
"""Smaller samples say nothing about compression."""
SAMPLED_BLOCKS = 16
"""Blocks of a file that tell whether it compresses."""
PAGE_ROWS = 500
MAX_ENTRIES = 200_000
"""Changed entries of one snapshot that are examined: of a bigger change the guards on the primary have spoken."""
MAX_SUSPECTS = 1000
"""Rows of one kind that one snapshot adds; the last one says how many more there were."""

_DIGITS = frozenset(b"0123456789")


def differs_by_few_bits(old: bytes, new: bytes) -> int:
    """How many bits differ when they are few, else 0. Pure.

    Digits that became other digits are how a counter counts, in text, and are no bits that flipped."""
    if len(old) != len(new):
        return 0
    count, positions = differing_bits(old, new)
    if not 0 < count <= FEW_BITS:
        return 0
    places = {position // 8 for position in positions}
    return 0 if all(old[at] in _DIGITS and new[at] in _DIGITS for at in places) else count


def was_scrambled(before: Sequence[tuple[int, int]], now: Sequence[tuple[int, int]]) -> bool | None:
    """Whether blocks, as (stored, plain), compressed well before and not at all now; None when they say nothing about
    that. Pure."""
    old_stored, old_plain = (sum(sizes) for sizes in zip(*before, strict=True)) if before else (0, 0)
    stored, plain = (sum(sizes) for sizes in zip(*now, strict=True)) if now else (0, 0)
    if old_plain < SCRAMBLED_BYTES or plain < SCRAMBLED_BYTES or old_stored > SQUEEZED * old_plain:
        return None
    return stored >= plain


def has_same_mtime(old: Version, new: Version, made: Made) -> bool:
    """Whether content that changed has the modification time it had, and was not still being written then. Pure."""
    settled = old.mtime_ns < made.before_created_ns - LATE_NS
    return old.mtime_ns == new.mtime_ns and settled and not (old.flags | new.flags) & FUZZY


def examine(directory: Path, after: int, now_ns: int) -> tuple[int, list[Suspect]]:
    """Examine the first snapshot with a number above `after`: its number (0: there is none) and what is suspect in it.

    In a thread. Raises BookDamagedError, ReplicadError."""
    with ExitStack() as stack:
        changes = stack.enter_context(closing(Changes(catalog_path(directory))))
        made = changes.next_after(after)
        if made is None:
            return 0, []
        if not made.before:
            return made.number, []  # the first one replaces nothing
        reader = stack.enter_context(closing(ArchiveReader(directory)))
        return made.number, _Examination(changes, reader, made, now_ns).run()


@dataclass(slots=True)
class _Content:
    """What became of one file's blocks."""

    ended: int = 0
    zeroed: int = 0
    few_bits: int = 0
    bits: int = 0
    before: list[tuple[int, int]] = field(default_factory=list)
    now: list[tuple[int, int]] = field(default_factory=list)
    """(stored, plain) of the first blocks that were replaced, and of those in their places."""


class _Examination:
    """One snapshot under examination."""

    def __init__(self, changes: Changes, reader: ArchiveReader, made: Made, now_ns: int) -> None:
        self._changes, self._reader, self._made, self._now_ns = changes, reader, made, now_ns
        self._found: dict[str, list[Suspect]] = {}
        self._count: Counter[str] = Counter()
        self._seen: set[int] = set()
        """Files whose content was judged: hard links share it."""
        self._begun: dict[int, Version] | None = None
        """Looked up once, when something has moved."""
        self._scrambled: list[tuple[bytes, int]] = []
        self._compressed = 0
        """Rewritten files that compressed before."""
        self._stride = max(1, -(-changes.count_replaced(made.ordinal) // COMPARED_BLOCKS))
        self._candidates = self._left_out = 0
        self._left_bytes = COMPARED_BYTES

    def run(self) -> list[Suspect]:
        for ended in self._entries():
            if ended.old.kind == Kind.FILE:
                self._file(ended)
        if len(self._scrambled) >= max(SCRAMBLED_FILES, SCRAMBLED_SHARE * self._compressed):
            text = f"{len(self._scrambled)} of {self._compressed} rewritten files that compressed do so no more"
            for path, blocks in self._scrambled:
                self._suspect("scrambled", path, blocks, text)
        if self._left_out:
            compared = self._candidates - self._left_out
            log.info(
                "a large change was compared by samples",
                snapshot=self._made.number,
                compared_blocks=compared,
                of=self._candidates,
            )
        return [suspect for kind in self._found for suspect in self._counted(kind)]

    def _entries(self) -> Iterator[Ended]:
        """The entries that the snapshot replaced or dropped, MAX_ENTRIES at most."""
        after, left = (0, b""), MAX_ENTRIES
        while left > 0 and (page := self._changes.ended(self._made.ordinal, after, min(left, PAGE_ROWS))):
            after, left = (page[-1].directory, page[-1].name), left - len(page)
            yield from page
        if not left:
            log.info(
                "of a large change the first entries were examined", snapshot=self._made.number, entries=MAX_ENTRIES
            )

    def _file(self, ended: Ended) -> None:
        old, new, at = ended.old, ended.new, self._made.ordinal
        if new and new.kind == Kind.FILE and new.file != old.file:  # another file was put in its place
            before = self._changes.sizes(at - 1, old.file, SAMPLED_BLOCKS)
            now = self._changes.sizes(at, new.file, SAMPLED_BLOCKS)
            self._note_scrambled(ended, before, now, block_count(new.size, new.block_bytes))
        elif old.file not in self._seen and self._changes.replaced(at, old.file, -1, 1):
            self._seen.add(old.file)
            is_here = new is not None and new.kind == Kind.FILE
            # a file of which a name ends and the content changes has another name, or its directory has
            self._changed(ended, new if is_here else self._moved(old), "" if is_here else "under another name now")

    def _moved(self, old: Version) -> Version | None:
        """A file that moved, as it is now; None when it is not among the first MAX_ENTRIES."""
        if self._begun is None:
            self._begun = self._changes.begun(self._made.ordinal, MAX_ENTRIES)
        return self._begun.get(old.file)

    def _changed(self, ended: Ended, new: Version | None, detail: str) -> None:
        """Judge what became of a file's content; `new` is None when that is not known."""
        old, content = ended.old, self._content(ended.old, new or ended.old)
        path = self._changes.path(ended.directory, ended.name)
        self._note_scrambled(ended, content.before, content.now, content.ended)
        if new and not new.size:
            self._suspect("emptied", path, content.ended, f"it had {old.size} bytes")
            return
        if content.zeroed:
            self._suspect("zeroed", path, content.zeroed, detail)
        if content.few_bits:
            text = f"{content.bits} bits in all"
            self._suspect("few_bits", path, content.few_bits, f"{text}, {detail}" if detail else text)
        if new and has_same_mtime(old, new, self._made):
            self._suspect("same_mtime", path, content.ended, detail)

    def _content(self, old: Version, new: Version) -> _Content:
        """Go through the blocks of the file that ended."""
        content, after, end = _Content(), -1, block_count(new.size, old.block_bytes)
        while rows := self._changes.replaced(self._made.ordinal, old.file, after, PAGE_ROWS):
            for row in rows[:SAMPLED_BLOCKS] if after < 0 else ():
                content.before.append((row.stored, row.plain))
                content.now.append((row.new_stored, row.new_plain))
            after = rows[-1].number
            content.ended += len(rows)
            content.zeroed += sum(row.new_id is None and row.number < end for row in rows)
            near = [row for row in rows if self._may_be_near(row)]
            for at in range(0, len(near), PAIRS):
                self._compare(near[at : at + PAIRS], content)
        return content

    def _may_be_near(self, row: Replaced) -> bool:
        """Whether two blocks may differ by a few bits, and are among those that are compared."""
        if row.new_id is None or not row.plain or row.plain != row.new_plain:
            return False
        if abs(row.stored - row.new_stored) > NEAR_STORED_BYTES:
            return False
        self._candidates += 1
        if self._candidates % self._stride or self._left_bytes < row.plain:
            self._left_out += 1
            return False
        self._left_bytes -= row.plain
        return True

    def _compare(self, rows: Sequence[Replaced], content: _Content) -> None:
        """Read some pairs of blocks and count those that differ by a few bits."""
        plain: dict[bytes, bytes] = {}
        for answer in self._reader.fetch(b"".join(row.id + (row.new_id or b"") for row in rows)):
            for frame in () if isinstance(answer, Lost) else split_frames(answer):
                try:
                    plain[frame.id] = bytes(plain_payload(frame))
                except FrameError:
                    continue  # damage is for the scrub, which reads every frame
        for row in rows:
            bits = differs_by_few_bits(plain.get(row.id, b""), plain.get(row.new_id or b"", b""))
            content.few_bits += bits > 0
            content.bits += bits

    def _note_scrambled(
        self, ended: Ended, before: Sequence[tuple[int, int]], now: Sequence[tuple[int, int]], blocks: int
    ) -> None:
        scrambled = was_scrambled(before, now)
        self._compressed += scrambled is not None
        if scrambled and len(self._scrambled) < MAX_ENTRIES:
            self._scrambled.append((self._changes.path(ended.directory, ended.name), blocks))

    def _suspect(self, kind: str, path: bytes, blocks: int, detail: str) -> None:
        self._count[kind] += 1
        listed = self._found.setdefault(kind, [])
        if len(listed) < MAX_SUSPECTS:
            listed.append(
                Suspect(
                    path=path,
                    kind=kind,
                    snapshot=self._made.number,
                    before=self._made.before,
                    found_ns=self._now_ns,
                    blocks=blocks,
                    detail=detail,
                )
            )

    def _counted(self, kind: str) -> list[Suspect]:
        """The suspects of one kind; the last one tells of those beyond the limit."""
        listed, hidden = self._found[kind], self._count[kind] - len(self._found[kind])
        if hidden:
            text = f"and {hidden} more files of this snapshot, which are not listed"
            detail = f"{listed[-1].detail}; {text}" if listed[-1].detail else text
            listed[-1] = msgspec.structs.replace(listed[-1], detail=detail)
        return listed
