"""Shown: listings, differences and histories of snapshots, printed as they come, for people or as one JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from replicad.cli import output
from replicad.cli.entries import NOTHING_DIFFERS, Rows, describe, describe_change, document
from replicad.model.entry import Kind, Put, show_path
from replicad.model.travel import UNKNOWN, Change, Difference, Event, Moment, changes_of
from replicad.model.when import show_time

if TYPE_CHECKING:  # slow to import
    from replicad.link.messages import SnapshotLine

_STYLES: dict[str, output.Style] = {"created": "ok", "changed": "warn", "deleted": "bad"}


class Listed:
    """A directory, or one entry."""

    def __init__(self, dataset: str, at: SnapshotLine, path: bytes, *, json: bool) -> None:
        self._path, self._json = path, json
        self._head: dict[str, object] = {"dataset": dataset, "snapshot": snapshot_document(at), "path": show_path(path)}
        self._stream: output.JsonStream | None = None
        self._rows = Rows()

    def add(self, puts: Sequence[Put]) -> None:
        """What comes next. Of a directory what it holds is shown, and not itself."""
        shown = [put for put in puts if put.path != self._path or put.kind is not Kind.DIRECTORY]
        if self._json:
            self._stream = self._stream or output.JsonStream("entries", self._head)
            self._stream.add([document(put) for put in shown])
        elif shown:
            output.line("\n".join(self._rows.row(put, self._name(put.path)) for put in shown))

    def end(self) -> None:
        """That was all."""
        if self._stream:
            self._stream.end({})

    def _name(self, path: bytes) -> bytes:
        """From the listed directory; the path as it was asked for of the entry itself."""
        return path if path == self._path or not self._path else path[len(self._path) + 1 :]


class Differences:
    """What differs between two snapshots, and the sum of it."""

    def __init__(self, dataset: str, before: SnapshotLine, after: SnapshotLine, *, json: bool) -> None:
        self._before, self._after, self._json = before, after, json
        self._head: dict[str, object] = {
            "dataset": dataset,
            "before": snapshot_document(before),
            "after": snapshot_document(after),
        }
        self._stream: output.JsonStream | None = None
        self._counts: Counter[str] = Counter()
        self._blocks = self._bytes = 0

    @property
    def total(self) -> int:
        """How many paths differ."""
        return self._counts.total()

    def add(self, some: Sequence[Difference]) -> None:
        """What comes next."""
        if not some:
            return
        for one in some:
            self._counts[_what(one)] += 1
            self._blocks += max(0, one.blocks)
            self._bytes += max(0, one.changed_bytes)
        if self._json:
            self._stream = self._stream or output.JsonStream("differences", self._head)
            self._stream.add([_difference_document(one) for one in some])
        else:
            output.line("\n".join(map(_difference_line, some)))

    def end(self) -> None:
        """That was all: the sum."""
        summary = {what: self._counts[what] for what in ("created", "changed", "deleted")}
        if self._json:
            stream = self._stream or output.JsonStream("differences", self._head)
            sums = {**summary, "changed_blocks": self._blocks, "changed_bytes": self._bytes}
            stream.end({"equal": not self.total, "summary": sums})
            return
        sides = " -> ".join(f"{line.number} ({show_time(line.created_ns)})" for line in (self._before, self._after))
        counts = ", ".join(f"{count:,} {what}" for what, count in summary.items())
        blocks = f"; {output.counted(self._blocks, 'block')} of changed files, {output.show_bytes(self._bytes)}"
        said = counts + blocks * bool(self._blocks)
        output.line(f"{sides}: {said if self.total else 'nothing differs'}")


def history_table(events: Sequence[Event], path: bytes) -> None:
    """What happened to a path, newest first."""
    output.table(("SNAPSHOTS", "FROM", "TO", "WHAT"), [_event_row(event, path) for event in events])


def event_document(event: Event) -> dict[str, object]:
    """One line of a history for `--json`; keys are API."""
    version = event.version
    found: dict[str, object] = {"event": event.what, "snapshot": moment_document(event.at)}
    found |= {"first": moment_document(version.first), "last": moment_document(version.last)}
    found |= {"ended": version.ended and moment_document(version.ended), **document(version.put)}
    if event.what not in ("created", "deleted") and version.before:
        found |= _change_document(version.before, version.put, version.blocks, version.changed_bytes)
        if version.before.path != version.put.path:
            found["renamed_from"] = show_path(version.before.path)
    return found


def moment_document(moment: Moment) -> dict[str, object]:
    """A snapshot for `--json`."""
    return {"number": moment.number, "created": show_time(moment.created_ns)}


def snapshot_document(line: SnapshotLine) -> dict[str, object]:
    """A snapshot for `--json`, and how far it can be trusted to be all."""
    return {
        "number": line.number,
        "created": show_time(line.created_ns),
        "complete": line.complete,
        "unread": line.unread,
        "lost_records": line.lost,
    }


def _event_row(event: Event, path: bytes) -> tuple[str, ...]:
    version = event.version
    if event.what == "deleted":
        span, times = str(event.at.number), (show_time(event.at.created_ns), "")
        text = output.mark("deleted", "bad")
    else:
        first, last = version.first, version.last
        span = f"{first.number}" if first == last else f"{first.number} to {last.number}"
        times = show_time(first.created_ns), show_time(last.created_ns) if version.ended else "now"
        text = _event_text(event)
    return (span, *times, text + (f"  (as {show_path(version.put.path)})" if version.put.path != path else ""))


def _event_text(event: Event) -> str:
    version, before = event.version, event.version.before
    if event.what == "created" or before is None:
        return f"created: {describe(version.put)}"
    change = describe_change(before, version.put, version.blocks, version.changed_bytes)
    if event.what == "renamed":
        more = f"; {change}" if change != NOTHING_DIFFERS else ""
        return f"renamed from {show_path(before.path)}{more}"
    return f"{event.what}: {change}"


def _what(one: Difference) -> str:
    if one.before is None:
        return "created"
    return "deleted" if one.after is None else "changed"


def _difference_line(one: Difference) -> str:
    what = _what(one)
    put = one.after or one.before
    assert put, "a difference has a side"
    text = describe(put)
    if one.before and one.after:
        text = describe_change(one.before, one.after, one.blocks, one.changed_bytes)
    return f"{output.mark(what, _STYLES[what])}  {show_path(one.path)}  ({text})"


def _difference_document(one: Difference) -> dict[str, object]:
    found: dict[str, object] = {"path": show_path(one.path), "difference": _what(one)}
    found |= {"before": one.before and document(one.before), "after": one.after and document(one.after)}
    if one.before and one.after:
        found |= _change_document(one.before, one.after, one.blocks, one.changed_bytes)
    return found


def _change_document(before: Put, after: Put, blocks: int, changed_bytes: int) -> dict[str, object]:
    """What differs; a number that is not known is null."""
    changes: list[Change] = changes_of(before, after)
    return {
        "size_before": before.size,
        "changed_blocks": None if blocks == UNKNOWN else blocks,
        "changed_bytes": None if changed_bytes == UNKNOWN else changed_bytes,
        "metadata": changes,
    }
