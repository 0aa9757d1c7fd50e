"""View paths: what a path of a view means: /DATASET/SNAPSHOT/PATH, or /CLIENT/DATASET/SNAPSHOT/PATH.

`latest`, times and pins are links to the number of their snapshot. Links of the dataset are followed within their
snapshot and nowhere else: one with an absolute target, or that climbs out of the dataset, leads nowhere. Nothing here
is ever a path of this host: names are looked up in catalogs, and a name that is not there is not there.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from replicad.link.messages import SnapshotLine
from replicad.link.sftp import PAGE_NAMES, Attributes
from replicad.model.entry import MAX_PATH_BYTES, Kind, Meta, Put
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.show import show_path
from replicad.model.when import LATEST
from replicad.work.archive_reader import ArchiveReader
from replicad.work.gallery import Gallery, Halls, Known, check_proven

MAX_LINKS = 40
"""Links followed for one path, as Linux has it."""
MAX_VIEW_BYTES = 2 * MAX_PATH_BYTES
"""Of a path in a view: one of a dataset, and what stands before it."""
_KINDS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.SOCKET: stat.S_IFSOCK,
}
Names = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: names from the root, without links and dots, and what stands there."""

    names: Names
    attributes: Attributes
    store: Path | None = None
    """None above the datasets."""
    snapshot: int = 0
    """0 above the snapshots."""
    put: Put | None = None
    """The entry, where it is one of a snapshot."""
    target: bytes | None = None
    """Where it leads, of a link."""

    @property
    def path(self) -> bytes:
        """As a client writes it."""
        return b"/" + b"/".join(self.names)


@dataclass(slots=True)
class ViewedDirectory:
    """A directory that is being listed, and the name that was told last."""

    place: Place
    after: bytes = b""
    links_are_told: bool = False
    """Of a dataset: its links come before its numbers."""


class Paths:
    """The paths of one view as they are now. For one thread at a time."""

    def __init__(
        self,
        viewer: str,
        root: Path,
        halls: tuple[Halls, Halls],
        gallery: Gallery,
        open_store: Callable[[Path], ArchiveReader],
    ) -> None:
        self._viewer, self._root, self._gallery, self._open_store = viewer, root, gallery, open_store
        self._listed, self._halls = halls

    def may_view(self, store: Path) -> bool:
        """Whether the store is one of those that lie in this view."""
        return any(
            store == hall or (isinstance(hall, Mapping) and store in hall.values()) for hall in self._halls.values()
        )

    def find(self, path: bytes, *, follow: bool = True) -> Place:
        """Where a path leads; a link with a slash behind it is followed in any case. Raises UsageError when there is
        nothing, ReplicadError when that cannot be found out."""
        if len(path) > MAX_VIEW_BYTES:
            raise UsageError(f"a path of {len(path)} bytes is too long")
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        start: Names = ()
        while b".." in names:
            at = names.index(b"..")
            start = self._find((*start, *names[:at]), follow=True).names[:-1]
            names = names[at + 1 :]
        return self._find((*start, *names), follow=follow or path.endswith(b"/"))

    def page(self, directory: ViewedDirectory) -> list[tuple[bytes, Attributes]]:
        """The next names in it; none at the end."""
        place = directory.place
        if place.store is None:
            found = self._page_of_hall(place, directory.after)
        elif place.put is None:
            found = self._page_of_store(place.store, directory)
        else:
            reader = self._open_store(place.store)
            entries = reader.page(place.snapshot, place.put.path, directory.after, PAGE_NAMES)
            found = [(name, about(put)) for name, put in entries]
        if found:
            directory.after = found[-1][0]
        return found

    def _find(self, names: Names, *, follow: bool) -> Place:
        depth = self._depth(names)
        if depth == 0:
            return Place(names, self._hall())
        store = self._store(names[:depth])
        if len(names) == depth:
            return Place(names, self._about_store(store), store)
        reader = self._open_store(store)
        known = self._gallery.known(store, reader)
        line = self._gallery.choose(self._viewer, store, known, names[depth])
        number, inner = b"%d" % line.number, names[depth + 1 :]
        if number != names[depth] and not inner and not follow:
            return Place(names, about_link(line), store, target=number)
        check_proven(line)
        return self._entry((*names[:depth], number), store, line, inner, follow)

    def _depth(self, names: Names) -> int:
        """How many names lead to a dataset; 0 for a place above all."""
        if not names:
            return 0
        if names[0] not in self._halls:
            raise UsageError(f"there is no dataset {show_path(names[0][:80])} here that this key may view")
        return 1 if isinstance(self._halls[names[0]], Path) else min(len(names) - 1, 1) * 2

    def _store(self, names: Names) -> Path:
        hall = self._halls[names[0]]
        if isinstance(hall, Path):
            return hall
        if names[1] not in hall:
            text = show_path(names[0]), show_path(names[1][:80])
            raise UsageError(f"client {text[0]} has no dataset {text[1]} here that this key may view")
        return hall[names[1]]

    def _hall(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o555, mtime_ns=self._root.stat().st_mtime_ns)

    def _about_store(self, store: Path) -> Attributes:
        """A dataset's directory changes with its snapshots."""
        return Attributes(stat.S_IFDIR | 0o555, mtime_ns=(store / "segments").stat().st_mtime_ns)

    # within a snapshot

    def _entry(self, base: Names, store: Path, line: SnapshotLine, inner: Names, follow: bool) -> Place:
        reader = self._open_store(store)
        put = reader.entry(line.number, b"/".join(inner))
        if put is None or (follow and put.kind is Kind.SYMLINK):
            inner, put = self._walk(reader, line, inner, follow)
        attributes = about(put)
        if not inner:
            attributes = Attributes(attributes.mode, 0, attributes.uid, attributes.gid, line.created_ns)
        target = put.target if put.kind is Kind.SYMLINK else None
        return Place((*base, *inner), attributes, store, line.number, put, target)

    def _walk(self, reader: ArchiveReader, line: SnapshotLine, inner: Names, follow: bool) -> tuple[Names, Put]:
        """Name by name, following links; where it ends and what stands there."""
        asked, links = show_path(b"/".join(inner)[:200]), 0
        todo, done = deque(inner), [_root_of(reader, line)]
        while todo:
            name = todo.popleft()
            if name == b"..":
                if len(done) == 1:
                    raise UsageError(f"{asked}: a link leads out of the dataset")
                done.pop()
                continue
            put = _child(reader, line, done[-1], name)
            if put is None:
                raise UsageError(f"snapshot {line.number} has no {asked}")
            if put.kind is not Kind.SYMLINK or not (todo or follow):
                done.append(put)
                continue
            links += 1
            if links > MAX_LINKS:
                raise ReplicadError(f"{asked}: more than {MAX_LINKS} links on the way")
            if put.target.startswith(b"/"):
                raise UsageError(f"{asked}: a link leads to {show_path(put.target[:200])}, out of the dataset")
            todo.extendleft(reversed([part for part in put.target.split(b"/") if part not in (b"", b".")]))
        return tuple(put.path.rpartition(b"/")[2] for put in done[1:]), done[-1]

    # listings

    def _page_of_hall(self, place: Place, after: bytes) -> list[tuple[bytes, Attributes]]:
        hall = self._halls[place.names[0]] if place.names else self._listed
        assert isinstance(hall, Mapping)
        names = sorted(name for name in hall if name > after)[:PAGE_NAMES]
        return [(name, self._hall()) for name in names]

    def _page_of_store(self, store: Path, directory: ViewedDirectory) -> list[tuple[bytes, Attributes]]:
        reader = self._open_store(store)
        known = self._gallery.known(store, reader)
        if not directory.links_are_told:
            links = [(name, found) for name, found in self._links(store, known) if name > directory.after]
            if links:
                return links[:PAGE_NAMES]
            directory.links_are_told, directory.after = True, b"-1"
        lines = known.since(int(directory.after) + 1, PAGE_NAMES)
        return [(b"%d" % line.number, _about_snapshot(reader, line)) for line in lines]

    def _links(self, store: Path, known: Known) -> list[tuple[bytes, Attributes]]:
        """`latest` and the pins, sorted."""
        found = {
            name: line for name, number in known.pins.items() if not name.isdigit() and (line := known.line(number))
        }
        if known.lines:
            found[LATEST.encode()] = self._gallery.choose(self._viewer, store, known, LATEST.encode())
        return [(name, about_link(found[name])) for name in sorted(found)]


def about(put: Put) -> Attributes:
    """What a view says of an entry: all that is recorded, whoever may have read it at the primary."""
    meta = put.meta
    size = put.size if put.kind is Kind.FILE else len(put.target)
    return Attributes(_KINDS[put.kind] | meta.mode, size, meta.uid, meta.gid, meta.mtime_ns)


def about_link(line: SnapshotLine) -> Attributes:
    """Of a link to a snapshot."""
    return Attributes(stat.S_IFLNK | 0o777, len(str(line.number)), mtime_ns=line.created_ns)


def _about_snapshot(reader: ArchiveReader, line: SnapshotLine) -> Attributes:
    """A snapshot is the dataset's root, as old as the snapshot."""
    put = None
    if not line.lost:
        with suppress(UsageError):  # it is just being dropped
            put = reader.entry(line.number, b"")
    found = about(put or _ROOT)
    return Attributes(found.mode, 0, found.uid, found.gid, line.created_ns)


_ROOT = Put(b"", Kind.DIRECTORY, Meta(0o755, 0, 0, 0))
"""In place of a directory that has no entry of its own, and yet holds something."""


def _root_of(reader: ArchiveReader, line: SnapshotLine) -> Put:
    return reader.entry(line.number, b"") or _ROOT


def _child(reader: ArchiveReader, line: SnapshotLine, parent: Put, name: bytes) -> Put | None:
    path = b"/".join(part for part in (parent.path, name) if part)
    put = reader.entry(line.number, path)
    if put is None and reader.page(line.number, path, b"", 1):
        return Put(path, Kind.DIRECTORY, Meta(0o755, 0, 0, line.created_ns))
    return put
