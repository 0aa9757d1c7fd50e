"""Gallery: what a node has on view: its datasets by the names that a viewer gives them, and their snapshots.

One for all views of a node, so that the snapshots of a store are listed once, however many look. `latest` stays what it
was to a viewer who goes on using it: a copy of a tree must not begin in one snapshot and end in the next one.
**Owns** these rules. May be asked from any thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from replicad.config.values import EVERY_DATASET
from replicad.db.findings import Findings
from replicad.link.messages import SnapshotLine
from replicad.model.errors import ReplicadError, StoreDamagedError
from replicad.model.when import LATEST, choose_snapshot, show_time
from replicad.store.store import stores_in
from replicad.system.clock import Clock
from replicad.system.logs import logger
from replicad.work.archive_reader import ArchiveReader
from replicad.work.book_damage import findings_of

log = logger("work.gallery")

FRESH_S = 1.0
"""How old a list of snapshots may be: a new one is on view this much later."""
EFFORT = 20
"""A list is used for so many times as long as it took to read: a store of very many snapshots is not read all day."""
HOLD_S = 60.0
"""`latest` moves on once a viewer has not used it for this long."""
MAX_KNOWN = 16
"""Stores whose snapshots are remembered."""
MAX_HELD = 1024
"""Viewers and stores for which it is remembered what `latest` is."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Halls = Mapping[bytes, Path | Mapping[bytes, Path]]
"""The root of a view: a name and its store, or a client and its datasets."""


@dataclass(frozen=True, slots=True)
class Known:
    """The kept snapshots of a store, ascending, and the pins that name one."""

    lines: Sequence[SnapshotLine]
    pins: Mapping[bytes, int]
    until_s: float

    def line(self, number: int) -> SnapshotLine | None:
        """A snapshot that is kept."""
        found = self.since(number, 1)
        return found[0] if found and found[0].number == number else None

    def since(self, number: int, limit: int) -> Sequence[SnapshotLine]:
        """The next snapshots, beginning with a number."""
        at = bisect_left(self.lines, number, key=lambda line: line.number)
        return self.lines[at : at + limit]


def halls(store: Path, datasets: Sequence[str]) -> tuple[Halls, Halls]:
    """What a viewer of `datasets` (CLIENT/DATASET, or CLIENT/*) finds at the root: what is listed there, and all names
    that lead somewhere.

    A dataset stands there by its own name where that means one thing only, else below its client's; by its client's it
    is found in any case."""
    clients: dict[bytes, dict[bytes, Path]] = {}
    for directory in stores_in(store):
        client, dataset = directory.parent.name, directory.name
        if f"{client}/{dataset}" in datasets or f"{client}/{EVERY_DATASET}" in datasets:
            clients.setdefault(client.encode(), {})[dataset.encode()] = directory
    names = [name for found in clients.values() for name in found]
    short = {name for name in names if names.count(name) == 1 and name not in clients}
    alone = {name: path for found in clients.values() for name, path in found.items() if name in short}
    shared = {client: found for client, found in clients.items() if found.keys() - short}
    return alone | shared, alone | clients


class Gallery:
    """The snapshots of all stores that somebody looks at."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._known: OrderedDict[Path, Known] = OrderedDict()
        self._latest: OrderedDict[tuple[str, Path], tuple[int, float]] = OrderedDict()

    def known(self, directory: Path, reader: ArchiveReader) -> Known:
        """The snapshots of the store in a directory, read if need be. Raises BookDamagedError, ReplicadError."""
        began_s = self._clock.monotonic_s()
        with self._lock:
            known = self._known.get(directory)
        if known and began_s < known.until_s:
            return known
        lines, pins = reader.snapshots(), _pins(directory)
        now_s = self._clock.monotonic_s()
        known = Known(lines, pins, now_s + max(FRESH_S, EFFORT * (now_s - began_s)))
        with self._lock:
            _remember(self._known, directory, known, MAX_KNOWN)
        return known

    def choose(self, viewer: str, directory: Path, known: Known, name: bytes) -> SnapshotLine:
        """The snapshot that a name means: `latest`, a number, a pin, or a time. Raises UsageError."""
        text = name.decode(errors="backslashreplace")
        pinned = None if text == LATEST or text.isdigit() else known.pins.get(name)
        line, _ = choose_snapshot(known.lines, text if pinned is None else str(pinned))
        return self._held(viewer, directory, known, line) if text == LATEST else line

    def _held(self, viewer: str, directory: Path, known: Known, newest: SnapshotLine) -> SnapshotLine:
        now_s = self._clock.monotonic_s()
        with self._lock:
            number, used_s = self._latest.get((viewer, directory), (-1, 0.0))
            held = known.line(number) if now_s - used_s < HOLD_S else None
            line = held or newest
            _remember(self._latest, (viewer, directory), (line.number, now_s), MAX_HELD)
        return line


def check_proven(line: SnapshotLine) -> None:
    """Raises StoreDamagedError for a snapshot that damage took something from: nothing would be proven in it."""
    if line.lost:
        what = f"damage took pieces of the record of snapshot {line.number} ({show_time(line.created_ns)})"
        raise StoreDamagedError(what, hint="take one before it; replicad ls and restore show what is left of it")


def _remember(known: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)


def _pins(directory: Path) -> dict[bytes, int]:
    path = findings_of(directory)
    if not path.exists():
        return {}
    try:
        with closing(Findings(path, readonly=True)) as findings:
            return {pin.name.encode(): pin.snapshot for pin in findings.pins()}
    except ReplicadError as error:  # the snapshots can be looked at all the same, by number and time
        log.warning("a view shows no pins", store=str(directory), reason=str(error))
        return {}
