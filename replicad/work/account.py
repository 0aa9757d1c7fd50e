"""Account: exactly what a restore did, as plain values.

Work in threads returns a `Tally`, the event loop adds it up in one `Account`: nothing here needs a lock. Counts are
exact; lists name the first MAX_NAMED of each sort, and every finding is also given to whoever listens, as it is
made. `Account` printed as JSON is API.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Literal

import msgspec

from replicad.model.entry import Kind, show_path

MAX_NAMED = 1000
"""Findings of one sort that the account itself names; an operator reads the first, a program the stream."""

FILES, DIRECTORIES, SYMLINKS, LINKS, SPECIAL = "files", "directories", "symlinks", "hard_links", "special"
PATTERNS = "patterns"
"""Patterns of --path that nothing matches count among what could not be restored."""


def label_of(kind: Kind) -> str:
    """How an entry of this kind is counted."""
    return _LABELS.get(kind, SPECIAL)


_LABELS = {Kind.FILE: FILES, Kind.DIRECTORY: DIRECTORIES, Kind.SYMLINK: SYMLINKS}


Sort = Literal["damaged", "failed", "metadata", "extra", "conflict", "unsaved", "notice"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that the operator has to know. `first` and `size` say which bytes of a damaged file are not proven."""

    sort: Sort
    path: str
    reason: str
    first: int = 0
    size: int = 0

    def __str__(self) -> str:
        """One line for a person."""
        if self.size:
            return f"{self.path}: bytes {self.first} to {self.first + self.size - 1} are not restored: {self.reason}"
        return f"{self.path}: {_PREFIXES[self.sort]}{self.reason}"


_PREFIXES: dict[Sort, str] = {
    "damaged": "incomplete: ",
    "failed": "not restored: ",
    "metadata": "metadata not set: ",
    "extra": "",
    "conflict": "in the way: ",
    "unsaved": "would be lost: ",
    "notice": "",
}


class Fate(IntEnum):
    """What became of a file, where that is not simply "it is there"."""

    INCOMPLETE = 0
    """Ranges of it are lost."""
    FAILED = 1
    """It was not restored."""
    REPLACED = 2
    """Dry run: a new file would take its name, so its other names would have to follow."""


class Tally:
    """What one piece of work came to."""

    __slots__ = (
        "blocks",
        "damaged_bytes",
        "extra",
        "extra_removed",
        "failed",
        "fates",
        "findings",
        "replaced",
        "restored",
        "restored_bytes",
        "right_bytes",
        "stored_bytes",
        "unchanged",
        "unsettable",
    )

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start anew; what was counted has been added to the account."""
        self.restored: Counter[str] = Counter()
        self.unchanged: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.restored_bytes = self.right_bytes = self.damaged_bytes = self.blocks = self.stored_bytes = 0
        self.extra = self.extra_removed = 0
        self.findings: list[Finding] = []
        self.fates: list[tuple[int, Fate]] = []
        """By file number: what the file's other names have to know."""
        self.replaced: list[bytes] = []
        """Plan: files of the target whose content would be replaced or removed."""
        self.unsettable: Counter[str] = Counter()
        """Plan: metadata that this user may not set."""

    def note(self, sort: Sort, path: bytes, reason: str, first: int = 0, size: int = 0) -> None:
        """Add a finding."""
        self.findings.append(Finding(sort, show_path(path), reason, first, size))

    def fail(self, label: str, path: bytes, reason: str, file: int = 0) -> None:
        """Count an entry that could not be restored, and say why."""
        self.failed[label] += 1
        self.note("failed", path, reason)
        if file:
            self.fates.append((file, Fate.FAILED))


class ClassDone(msgspec.Struct, frozen=True):
    """What one class of a restore order came to."""

    name: str
    files: int
    """Its files that are there and right now."""
    bytes: int
    wrong: int
    """Its entries that are damaged or could not be restored."""
    finished_s: float
    """How long after the beginning of the restore it was complete."""


class Account(msgspec.Struct):
    """The final account of one restore. Sizes in bytes; counts of entries by kind."""

    dataset: str
    source: str
    """The replica or store that it was read from."""
    target: str
    snapshot: int
    created: str
    """When the snapshot's pass began, RFC 3339."""
    complete_snapshot: bool
    unread: int = 0
    """Entries that could not be copied when the snapshot was made: they are as in an earlier one, or not in it."""
    lost_records: int = 0
    """Pieces of the record that the store has lost: entries and bytes may be missing that nothing can name."""
    newest_gone: bool = False
    """The store's newest segment is missing or empty, and with it perhaps a newer snapshot, which was asked for."""
    dry_run: bool = False
    """Nothing was written: "restored" means "would be restored"."""
    finished: bool = False
    """False when the restore was cut off; the same command goes on where it stopped."""
    restored: dict[str, int] = {}
    unchanged: dict[str, int] = {}
    failed: dict[str, int] = {}
    restored_bytes: int = 0
    """Bytes of files that were made right, holes and zeros included."""
    right_bytes: int = 0
    """Bytes that were compared and found right already."""
    blocks_fetched: int = 0
    stored_bytes: int = 0
    """Bytes of these blocks as stored and sent."""
    damaged_files: int = 0
    """Files that are there without some of their bytes; counted here only, not as restored."""
    damaged_ranges: int = 0
    damaged_bytes: int = 0
    """Bytes that could not be proven and were not written."""
    metadata_not_set: int = 0
    extra: int = 0
    """Entries in the target that the snapshot does not have, left alone; not looked for with --path."""
    extra_removed: int = 0
    duration_s: float = 0.0
    rate_bytes_s: float = 0.0
    """Restored bytes a second."""
    classes: list[ClassDone] = []
    """The classes of the restore order that are complete, in that order."""
    set_aside: int = 0
    """Entries that were replaced or removed and are kept where --set-aside says."""
    found: dict[str, int] = {}
    """How many findings there were of each sort."""
    findings: list[Finding] = []
    """The first MAX_NAMED of each sort."""

    @property
    def exit_code(self) -> int:
        """0 when everything is there and right, 1 when anything is missing, damaged or without its metadata."""
        lost = self.lost_records or self.newest_gone
        wrong = self.failed or self.damaged_files or self.metadata_not_set or lost
        return int(not self.finished or bool(wrong))

    @property
    def right_files(self) -> int:
        """Files that are there and right."""
        return self.restored.get(FILES, 0) + self.unchanged.get(FILES, 0)

    @property
    def wrong(self) -> int:
        """Entries that are damaged or could not be restored."""
        return self.damaged_files + sum(self.failed.values())

    @property
    def done_bytes(self) -> int:
        """Bytes that are dealt with, for a progress bar."""
        return self.restored_bytes + self.right_bytes + self.damaged_bytes

    @property
    def done_entries(self) -> int:
        """Entries that are dealt with."""
        return self.damaged_files + sum(sum(c.values()) for c in (self.restored, self.unchanged, self.failed))

    def add(self, tally: Tally, heard: Callable[[Finding], None]) -> None:
        """Add up; `heard` is told each finding."""
        for mine, more in (
            (self.restored, tally.restored),
            (self.unchanged, tally.unchanged),
            (self.failed, tally.failed),
        ):
            for label, count in more.items():
                mine[label] = mine.get(label, 0) + count
        self.restored_bytes += tally.restored_bytes
        self.right_bytes += tally.right_bytes
        self.damaged_bytes += tally.damaged_bytes
        self.blocks_fetched += tally.blocks
        self.stored_bytes += tally.stored_bytes
        self.damaged_files += sum(1 for _, fate in tally.fates if fate is Fate.INCOMPLETE)
        self.extra += tally.extra
        self.extra_removed += tally.extra_removed
        for finding in tally.findings:
            self._find(finding)
            heard(finding)

    def _find(self, finding: Finding) -> None:
        number = self.found.get(finding.sort, 0)
        self.found[finding.sort] = number + 1
        if number < MAX_NAMED:
            self.findings.append(finding)
        self.damaged_ranges += finding.sort == "damaged" and finding.size > 0
        self.metadata_not_set += finding.sort == "metadata"
