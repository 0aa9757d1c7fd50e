"""Entries: how an entry of a snapshot, and what changed about it, is shown to people and to programs."""

from __future__ import annotations

import os
import stat

from replicad.cli import output
from replicad.model.entry import DAMAGED, FUZZY, Kind, Put, show_path
from replicad.model.travel import UNKNOWN, changes_of
from replicad.model.when import show_time

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.SOCKET: stat.S_IFSOCK,
}
_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_MOST_MODE = 0o7777
_MOST_DEVICE = 2**64 - 1
NOTHING_DIFFERS = "nothing differs"


def kind_name(put: Put) -> str:
    """What it is: "file", "directory", "block device"."""
    return put.kind.name.lower().replace("_", " ")


class Rows:
    """Entries as `ls -l` prints them; columns widen as they need to, since not all entries are known beforehand."""

    def __init__(self) -> None:
        self._widths = [0, 0]

    def row(self, put: Put, name: bytes) -> str:
        """One line."""
        cells = [f"{put.meta.uid}:{put.meta.gid}", _size(put)]
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)]
        owner, size = cells[0].ljust(self._widths[0]), cells[1].rjust(self._widths[1])
        mode = stat.filemode(_TYPES[put.kind] | put.meta.mode & _MOST_MODE)
        shown = show_path(name) + (f" -> {show_path(put.target)}" if put.kind is Kind.SYMLINK else "")
        return f"{mode} {owner} {size} {show_time(put.meta.mtime_ns)} {shown}{_marks(put)}"


def document(put: Put) -> dict[str, object]:
    """The entry for `--json`; keys are API."""
    found: dict[str, object] = {
        "path": show_path(put.path),
        "kind": kind_name(put),
        "mode": f"{put.meta.mode:04o}",
        "uid": put.meta.uid,
        "gid": put.meta.gid,
        "size": put.size,
        "mtime": show_time(put.meta.mtime_ns),
        "mtime_ns": put.meta.mtime_ns,
    }
    if put.meta.xattrs:
        found["xattrs"] = [show_path(name) for name, _ in put.meta.xattrs]
    if put.kind is Kind.SYMLINK:
        found["target"] = show_path(put.target)
    if put.kind in _DEVICES:
        found["device"] = _device(put)
    if put.kind is Kind.FILE:
        found |= {"file": put.file, "fuzzy": bool(put.flags & FUZZY), "damaged": bool(put.flags & DAMAGED)}
    return found


def describe(put: Put) -> str:
    """The entry in a few words: "file, 1.2 KiB"."""
    if put.kind is Kind.FILE:
        return f"file, {output.show_bytes(put.size)}"
    return f"symlink to {show_path(put.target)}" if put.kind is Kind.SYMLINK else kind_name(put)


def describe_change(before: Put, after: Put, blocks: int, changed_bytes: int) -> str:
    """What differs, in words; a new modification time is worth one only where the content is the same."""
    parts = []
    if before.kind is after.kind is Kind.FILE and (blocks or before.size != after.size):
        parts.append(f"content: {_content(before, after, blocks, changed_bytes)}")
    for change in changes_of(before, after):
        if change.what == "mtime":
            if not parts:
                times = [show_time(put.meta.mtime_ns) for put in (before, after)]
                parts.append(f"mtime {times[0]} -> {times[1]}" if times[0] != times[1] else "mtime within a second")
        else:
            parts.append(f"{change.what} {change.before} -> {change.after}")
    return "; ".join(parts) or NOTHING_DIFFERS


def _content(before: Put, after: Put, blocks: int, changed_bytes: int) -> str:
    sizes = f"{before.size:,} bytes" if before.size == after.size else f"{before.size:,} -> {after.size:,} bytes"
    if blocks == UNKNOWN:
        return f"{sizes}, another file in its place, blocks not compared"
    count = "1 block differs" if blocks == 1 else f"{blocks:,} blocks differ"
    return f"{sizes}, {count} ({output.show_bytes(changed_bytes)})"


def _size(put: Put) -> str:
    return _device(put) if put.kind in _DEVICES else str(put.size)


def _device(put: Put) -> str:
    device = put.device & _MOST_DEVICE  # a peer may say any number
    return f"{os.major(device)},{os.minor(device)}"


def _marks(put: Put) -> str:
    marks = [output.mark("damaged", "bad")] if put.flags & DAMAGED else []
    marks += [output.mark("fuzzy", "warn")] if put.flags & FUZZY else []
    return f"  ({', '.join(marks)})" if marks else ""
