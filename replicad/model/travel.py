"""Travel: what became of a path over the snapshots, and what two snapshots differ in. Pure.

Owns the values that answer `history` and `diff`, their encoding, and what in an entry counts as changed. The entries
in them carry no blocks: how much of a file's content differs is told as a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from replicad.model.entry import Kind, Put, op_problem, path_problem, show_path
from replicad.model.packed import unpacked

UNKNOWN = -1
"""Number of changed blocks or bytes when it is not known."""


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot, and when its pass began (ns since 1970)."""

    number: int
    created_ns: int


class Version(msgspec.Struct, frozen=True, array_like=True):
    """What stood at a path through some snapshots that follow one another."""

    put: Put
    first: Moment
    """The first snapshot that shows it."""
    last: Moment
    """The last one that does."""
    ended: Moment | None
    """The snapshot that shows it no more; None: the newest does."""
    before: Put | None
    """The version before it: at the same path, or at the path from which it was renamed; None: there was none."""
    returned: bool
    """Between the version before it and this one there were snapshots without it."""
    blocks: int
    """Blocks in which its content differs from the version before it; UNKNOWN."""
    changed_bytes: int
    """How many bytes these blocks have; UNKNOWN."""


class Difference(msgspec.Struct, frozen=True, array_like=True):
    """One path that is not the same in two snapshots."""

    path: bytes
    before: Put | None
    """What it is in the one snapshot; None: nothing."""
    after: Put | None
    """What it is in the other one."""
    blocks: int
    """Blocks in which the content of a file that is in both differs; UNKNOWN."""
    changed_bytes: int


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a path: what, in which snapshot, and the version that it made or ended."""

    what: str
    """One of EVENTS."""
    at: Moment
    version: Version


EVENTS = {
    "created": "there was nothing at this path before",
    "changed": "content or metadata is not what it was",
    "renamed": "it stood at another path until then",
    "returned": "it is there again after snapshots without it",
    "rewritten": "it was recorded anew, and nothing of it differs",
    "deleted": "it is there no more, under no name that is known",
}
"""What can happen to a path, and what that means."""


class Change(msgspec.Struct, frozen=True):
    """One thing about an entry that is not what it was, for people and JSON."""

    what: str
    before: str
    after: str


Told = TypeVar("Told", Version, Difference)
_encoder = msgspec.msgpack.Encoder()
_versions = msgspec.msgpack.Decoder(list[Version])
_differences = msgspec.msgpack.Decoder(list[Difference])


def encode_told(told: Sequence[Version] | Sequence[Difference]) -> bytes:
    """Versions or differences as one msgpack array."""
    return _encoder.encode(told)


def decode_versions(data: bytes) -> list[Version]:
    """The inverse of `encode_told`, every field checked. Raises ValueError with the reason."""
    return _checked(unpacked(_versions.decode, data), _version_problem)


def decode_differences(data: bytes) -> list[Difference]:
    """The inverse of `encode_told`, every field checked. Raises ValueError with the reason."""
    return _checked(unpacked(_differences.decode, data), _difference_problem)


def events_of(versions: Sequence[Version]) -> list[Event]:
    """What happened, newest first. A version that another one took the place of, or took on as its new name, was not
    deleted."""
    followed = {(version.first.number, version.put.path) for version in versions}
    moved = {(v.first.number, v.before.path) for v in versions if v.before and v.before.path != v.put.path}
    events = [Event(_what(version), version.first, version) for version in versions]
    for version in versions:
        if version.ended and (version.ended.number, version.put.path) not in followed | moved:
            events.append(Event("deleted", version.ended, version))
    return sorted(events, key=lambda event: event.at.number, reverse=True)


def _what(version: Version) -> str:
    before = version.before
    if before is None:
        return "created"
    if before.path != version.put.path:
        return "renamed"
    if version.returned:
        return "returned"
    return "changed" if has_changed(before, version.put, version.blocks) else "rewritten"


def has_changed(before: Put, after: Put, blocks: int) -> bool:
    """Whether a person would call it changed: `blocks` is how many blocks of its content differ."""
    return blocks != 0 or before.size != after.size or bool(changes_of(before, after))


def changes_of(before: Put, after: Put) -> list[Change]:
    """What apart from a file's content is not the same. Numbers of files, and whether zeros are holes, do not count."""
    pairs = [
        ("kind", before.kind.name.lower().replace("_", " "), after.kind.name.lower().replace("_", " ")),
        ("mode", f"{before.meta.mode:04o}", f"{after.meta.mode:04o}"),
        ("owner", _owner(before), _owner(after)),
        ("mtime", str(before.meta.mtime_ns), str(after.meta.mtime_ns)),
        ("xattrs", *_xattrs(before, after)),
        ("target", show_path(before.target), show_path(after.target)),
        ("device", str(before.device), str(after.device)),
    ]
    return [Change(what, one, other) for what, one, other in pairs if one != other]


def _owner(put: Put) -> str:
    return f"{put.meta.uid}:{put.meta.gid}"


def _xattrs(before: Put, after: Put) -> tuple[str, str]:
    """The names of the attributes that differ, on either side."""
    one, other = dict(before.meta.xattrs), dict(after.meta.xattrs)
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    # A name that both have stands on both sides, though its values differ; the sides must not be equal then.
    shown = [", ".join(show_path(name) for name in names if name in side) or "none" for side in (one, other)]
    return (shown[0], f"{shown[1]} (other value)") if names and shown[0] == shown[1] else (shown[0], shown[1])


def _checked(told: list[Told], problem_of: object) -> list[Told]:
    assert callable(problem_of)
    for one in told:
        problem = problem_of(one)
        if problem:
            raise ValueError(problem)
    return told


def _version_problem(version: Version) -> str:
    moments = [version.first, version.last, *([version.ended] if version.ended else [])]
    numbers = [moment.number for moment in moments]
    if min(numbers) < 0 or numbers != sorted(numbers) or (numbers[-1] == numbers[-2] and version.ended):
        return f"snapshots {numbers} of a version are not in order"
    return _puts_problem(version.put, version.before) or _counts_problem(version.blocks, version.changed_bytes)


def _difference_problem(difference: Difference) -> str:
    puts = [put for put in (difference.before, difference.after) if put]
    if not puts or any(put.path != difference.path for put in puts):
        return "a difference is about no path or another one"
    reason = path_problem(difference.path)
    return reason or _puts_problem(*puts) or _counts_problem(difference.blocks, difference.changed_bytes)


def _puts_problem(*puts: Put | None) -> str:
    for put in puts:
        if put and (problem := op_problem(put) or ("has blocks" if put.ids or put.zeros else "")):
            return problem
    return ""


def _counts_problem(*counts: int) -> str:
    return next((f"count {count} is out of range" for count in counts if not UNKNOWN <= count < 2**63), "")


def is_file(put: Put | None) -> bool:
    """Whether it is a regular file."""
    return put is not None and put.kind is Kind.FILE
