"""The verbs `ls`, `cat`, `history` and `diff`: what was there, and what became of it, read from any copy.

Nothing is ever written. Answers go to stdout as they come, however long they are; what limits them (a partial snapshot,
a record that lost a piece) goes to stderr first.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from replicad.cli import offered, output
from replicad.cli.entries import kind_name
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.cli.reading import (
    DatasetArgument,
    FromOption,
    KeyOption,
    ReplicaOption,
    StoreOption,
    Where,
    configuration,
    reading,
    split_when,
)
from replicad.cli.shown import Differences, Listed, event_document, history_table
from replicad.model.entry import FUZZY, MAX_DEPTH, Kind, Put, path_problem, show_path
from replicad.model.errors import UsageError
from replicad.model.travel import Version, events_of
from replicad.model.when import choose_snapshot, show_time

if TYPE_CHECKING:  # slow to import, and needed when a verb runs only
    from replicad.link.messages import SnapshotLine
    from replicad.work.reader import HistoryReader

FINDING = 1
MAX_SPANS = 5
"""Runs of snapshots that an error names."""

AtArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET[@WHEN]",
        help="The dataset, or CLIENT/DATASET in a store; WHEN is latest, a snapshot number, or an RFC 3339 time.",
        autocompletion=offered.on_either_side,
    ),
]


def ls(
    dataset: AtArgument,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="From the dataset's root, which is the default.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="Everything below PATH too.")] = False,
    replica: FromOption = "",
    line: ReplicaOption = "",
    key: KeyOption = None,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """List what a directory held in a snapshot, or one entry.

    Columns: kind and mode, owner:group as numbers, size in bytes (of a device its number), modification time, name.
    fuzzy: recorded while the file kept changing. damaged: the store is known to have lost some of its bytes.

    Exit codes: 0 listed, 1 listed as far as a damaged record goes, 2 no such path, snapshot or dataset, 3 the replica
    is out of reach.
    """
    name, when = split_when(dataset)
    wanted = _path(path)

    async def run(reader: HistoryReader, at: SnapshotLine) -> None:
        shown = Listed(name, at, wanted, json=json)
        depth = MAX_DEPTH if recursive else 1
        is_there = False
        async for ops in reader.visit(at.number, wanted, depth):
            puts = [op for op in ops if isinstance(op, Put)]
            is_there = is_there or bool(puts)
            shown.add(puts)
        if not is_there:
            raise await _missing(reader, name, wanted, at)
        shown.end()

    _travel(Where(name, config, replica, line, key, store), run, when)


def cat(
    dataset: AtArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, from the dataset's root.")],
    replica: FromOption = "",
    line: ReplicaOption = "",
    key: KeyOption = None,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Print a file as it was in a snapshot: its bytes, nothing else.

    Every block is proven by its BLAKE3 id before a byte of it is printed. At one that cannot be proven it stops and
    names the byte range; a reader that counts bytes will notice, one that does not needs the exit code.

    Exit codes: 0 all of it, 1 cut short by damage, or the record is damaged, 2 no such file, snapshot or dataset, 3 the
    replica is out of reach.
    """
    name, when = split_when(dataset)
    wanted = _path(path)

    async def run(reader: HistoryReader, at: SnapshotLine) -> None:
        from replicad.link.messages import Lost
        from replicad.work.content import ZEROS, entry_of, pieces

        put, told = await entry_of(reader.visit(at.number, wanted, blocks=True))
        if put is None:
            raise await _missing(reader, name, wanted, at)
        _refuse_without_content(name, at, put)
        if put.flags & FUZZY:
            output.note(f"{show_path(wanted)} is fuzzy: it kept changing while it was recorded")
        async with aclosing(pieces(reader, put, told)) as content:
            async for piece in content:
                if isinstance(piece.data, Lost):
                    place = f"bytes {piece.offset} to {piece.offset + piece.size - 1}"
                    output.note(f"replicad: {show_path(wanted)}: stopped at damage: {place}: {piece.data.reason}")
                    raise typer.Exit(FINDING)
                # In a thread: whoever reads may take long, and the link must answer meanwhile.
                await asyncio.to_thread(output.data, ZEROS[: piece.size] if piece.data is None else piece.data)

    _travel(Where(name, config, replica, line, key, store), run, when)


def history(
    dataset: DatasetArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="From the dataset's root.")],
    replica: FromOption = "",
    line: ReplicaOption = "",
    key: KeyOption = None,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """List every version of a path over all snapshots, newest first.

    A file that was renamed is followed to the name that it had before, and so is a directory whose files moved with
    it.

    Exit codes: 0 listed, 1 listed as far as a damaged record goes, 2 no snapshot has such a path, 3 the replica is out
    of reach.
    """
    wanted = _path(path)

    async def run(reader: HistoryReader, *_: SnapshotLine) -> None:
        versions = [version async for some in reader.trace(wanted) for version in some]
        if not versions:
            raise _never_there(dataset, wanted)
        events = events_of(versions)
        if json:
            output.json_document([event_document(event) for event in events])
            return
        history_table(events, wanted)

    _travel(Where(_alone(dataset), config, replica, line, key, store), run)


def diff(
    dataset: DatasetArgument,
    before: Annotated[str, typer.Argument(metavar="A", help="latest, a snapshot number, or an RFC 3339 time.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The same, of the snapshot to compare with A.")],
    path: Annotated[
        list[str] | None, typer.Option("--path", metavar="GLOB", help="Only what matches; may be repeated.")
    ] = None,
    replica: FromOption = "",
    line: ReplicaOption = "",
    key: KeyOption = None,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Show what differs from snapshot A to snapshot B, sorted by path.

    Content is compared by the ids of its blocks. How it is stored (holes, hard links) is no difference.

    Exit codes, as diff has them: 0 nothing differs, 1 something does (or the record is damaged), 2 usage, 3 the replica
    is out of reach.
    """
    globs = [os.fsencode(glob) for glob in path or ()]

    async def run(reader: HistoryReader, one: SnapshotLine, other: SnapshotLine) -> None:
        shown = Differences(dataset, one, other, json=json)
        async for some in reader.compare(one.number, other.number, globs):
            shown.add(some)
        if globs and not shown.total and not await _matches(reader, other, globs):
            patterns = ", ".join(map(show_path, globs))
            what = f"nothing in snapshots {one.number} and {other.number} matches {patterns}"
            raise UsageError(what, hint="a pattern begins at the dataset's root; **/NAME means anywhere")
        shown.end()
        if shown.total:
            raise typer.Exit(FINDING)

    _travel(Where(_alone(dataset), config, replica, line, key, store), run, before, after)


def _travel(where: Where, run: Callable[..., Awaitable[None]], *whens: str) -> None:
    """Run a verb with a reader and the snapshots that it names; what limits them is said first."""
    loaded = configuration(where)

    async def go() -> int:
        async with reading(where, loaded) as reader:
            lines = await reader.snapshots()
            chosen = []
            for when in whens:
                line, notice = choose_snapshot(lines, when)
                if notice:
                    output.note(notice)
                chosen.append(line)
            lost = max((line.lost for line in chosen or lines[-1:]), default=0)
            if lost:
                pieces = output.counted(lost, "piece")
                output.note(
                    f"the store has lost {pieces} of the record: entries may be missing or as they were before, "
                    "and files may have zeros instead of bytes; another replica may have them"
                )
            await run(reader, *chosen)
            return lost

    if asyncio.run(go()):
        raise typer.Exit(FINDING)


def _path(text: str) -> bytes:
    """A path as a person types it. Raises UsageError."""
    names = [name for name in os.fsencode(text).split(b"/") if name not in (b"", b".")]
    path = b"/".join(names)
    problem = path_problem(path)
    if problem:
        raise UsageError(f"path {show_path(path[:80])} {problem}", hint="paths begin at the dataset's root")
    return path


def _alone(dataset: str) -> str:
    """A dataset without a moment. Raises UsageError."""
    if "@" in dataset:
        raise UsageError(f"{dataset!r} names a snapshot, and this verb looks at several", hint="write DATASET alone")
    return dataset


async def _missing(reader: HistoryReader, dataset: str, path: bytes, at: SnapshotLine) -> UsageError:
    """Why a path cannot be shown: where it was instead."""
    versions = [version async for some in reader.trace(path) for version in some if version.put.path == path]
    if not versions:
        return _never_there(dataset, path)
    what = f"snapshot {at.number} of {show_time(at.created_ns)} has no {show_path(path)}"
    return UsageError(what, hint=f"it was in {_spans(versions)}: replicad history {dataset} {_quoted(path)}")


def _never_there(dataset: str, path: bytes) -> UsageError:
    parent = posixpath.dirname(path)
    hint = f"replicad ls {dataset} {_quoted(parent)}".rstrip() + " lists what is there"
    return UsageError(f"no snapshot of {dataset} has {show_path(path)}", hint=hint)


def _spans(versions: Sequence[Version]) -> str:
    """Which snapshots show the path: "snapshots 1 to 3, 7 to 9"; `versions` are newest first."""
    spans: list[tuple[int, int]] = []
    for version in reversed(versions):
        if spans and version.before and not version.returned and version.before.path == version.put.path:
            spans[-1] = spans[-1][0], version.last.number
        else:
            spans.append((version.first.number, version.last.number))
    shown = [f"{first} to {last}" if first != last else str(first) for first, last in spans[-MAX_SPANS:]]
    return "snapshots " + ("…, " if len(spans) > MAX_SPANS else "") + ", ".join(shown)


def _quoted(path: bytes) -> str:
    """A path as it can be typed, as far as it can be shown."""
    return shlex.quote(show_path(path)) if path else ""


def _refuse_without_content(dataset: str, at: SnapshotLine, put: Put) -> None:
    """Raises UsageError, with what to type instead, for what is no file."""
    shown = show_path(put.path)
    if put.kind is Kind.FILE:
        return
    if put.kind is Kind.DIRECTORY:
        raise UsageError(
            f"{shown} is a directory", hint=f"replicad ls {dataset}@{at.number} {_quoted(put.path)}".rstrip()
        )
    if put.kind is not Kind.SYMLINK:
        raise UsageError(f"{shown} is a {kind_name(put)}, which has no content")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(put.path), put.target))
    leads_out = put.target.startswith(b"/") or target.split(b"/")[0] == b".."
    hint = f"it is not followed: replicad cat {dataset}@{at.number} {_quoted(target)}"
    raise UsageError(
        f"{shown} is a symlink to {show_path(put.target)}",
        hint="it is not followed, and leads out of the dataset" if leads_out else hint,
    )


async def _matches(reader: HistoryReader, at: SnapshotLine, globs: Sequence[bytes]) -> bool:
    """Whether a snapshot has anything that matches."""
    async for ops in reader.record(at.number, globs):
        if ops:
            return True
    return False
