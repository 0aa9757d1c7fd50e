"""Explain: a divergence in words for whoever is woken by it. Pure.

**Owns** what `replicad divergence show` says about a finding: what is broken and on which side, what is safe, which
bytes of which files it touches, and why that is believed. What to type next is cli/advice.py. **Never** calls a copy
good that was not seen to be good: each sentence about a side follows from a look at it.

Every combination of part, verdict and state has its words; the tables below are read aloud in its test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from replicad.cli.output import show_bytes
from replicad.model.divergence import Affected, Divergence, Look, Part, Receipt, Side, State
from replicad.model.entry import show_path
from replicad.model.remedy import Remedy, remedy_of
from replicad.model.verdict import Books, Sight, Verdict, Witness, Writing
from replicad.model.when import show_time

SHOWN_FILES = 20
SHOWN_LOOKS = 8
SHOWN_EVENTS = 20
SHOWN_BYTES = 8
"""More of each would push what matters off the screen; --json has all that is known."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where the reader sits, and how that node names things."""

    side: Side
    """Whose book the finding was read from."""
    dataset: str
    """What to type for the dataset on this node: "www", on a replica "ams1/www"."""
    directory: str
    """Of this node's copy: the dataset's root, or the store's directory of the dataset."""
    books: str
    """Directory of this node's books."""
    replicas: tuple[str, ...] = ()
    """At a primary: the names of the dataset's replicas."""
    options: str = ""
    """What every command typed here needs besides, such as " --config FILE"."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is said about a finding."""

    headline: str
    means: str
    """What follows from it until it is settled; "" when nothing does."""
    safe: tuple[str, ...]
    affected: tuple[str, ...]
    why: tuple[str, ...]
    history: tuple[str, ...]


def explain(found: Divergence, seat: Seat, receipts: Iterable[Receipt] = ()) -> Explanation:
    """The finding in words."""
    return Explanation(
        headline(found, seat),
        _means(found, seat) if found.state in (State.OPEN, State.ACKNOWLEDGED) else "",
        tuple(_safe(found, seat)),
        tuple(_affected(found)),
        tuple(_why(found, seat)),
        tuple(_history(found, receipts)),
    )


def holder(side: Side, found: Divergence, seat: Seat) -> str:
    """The node that has that side's copy, as the reader calls it."""
    if side is seat.side:
        return "this host"
    names = [found.peer] if found.peer else [*seat.replicas]
    if side is Side.PRIMARY:
        return f"primary {found.peer}" if found.peer else "the primary"
    return f"replica {names[0]}" if len(names) == 1 else "a replica"


# the first line

_STATES = {
    State.OPEN: "",
    State.REPAIRED: "repaired: ",
    State.ACKNOWLEDGED: "acknowledged: ",
    State.GONE: "gone: ",
}
_WHAT = {
    Verdict.OK: "{is} as recorded on both sides",
    Verdict.CHANGED: "{was} written since: no damage",
    Verdict.REPLICA_ROT: "changed on {disk} since {it} {was} stored",
    Verdict.PRIMARY_ROT: "changed on {disk} though nobody wrote the file",
    Verdict.BOTH_ROT: "{is} lost: neither side can give the recorded bytes",
    Verdict.RECORD_ROT: "{is} recorded wrongly: both copies agree, the ledger alone says otherwise",
    Verdict.PRIMARY_UNREADABLE: "cannot be read from {disk}",
    Verdict.REPLICA_UNREADABLE: "cannot be read from {disk}",
    Verdict.MISSING_ON_REPLICA: "{is} missing on {holder}: its record names {it}, no segment has {it}",
    Verdict.METADATA_DRIFT: "changed on {disk} though nobody changed the entry",
    Verdict.RECORD_DIVERGENCE: "{is} recorded differently by ledger and catalog",
    Verdict.INCONCLUSIVE: "{is} in doubt on {disk}: not settled yet",
}
_DOUBT_IS_OVER = "{was} in doubt on {disk}"
_WHAT_OF_A_STRUCTURE = dict.fromkeys(Verdict, "{is} damaged on {disk}") | {
    verdict: _WHAT[verdict]
    for verdict in (
        Verdict.OK,
        Verdict.PRIMARY_UNREADABLE,
        Verdict.REPLICA_UNREADABLE,
        Verdict.INCONCLUSIVE,
    )
}
_WHAT_OF_A_STRUCTURE[Verdict.CHANGED] = "{was} written anew since: no damage"
_WHAT_OF_A_STRUCTURE[Verdict.MISSING_ON_REPLICA] = "{is} missing on {holder}"
_WHAT_OF_METADATA = _WHAT | dict.fromkeys(
    (Verdict.PRIMARY_ROT, Verdict.PRIMARY_UNREADABLE), _WHAT[Verdict.METADATA_DRIFT]
)
_TABLES = {Part.BLOCK: _WHAT, Part.ENTRY: _WHAT, Part.METADATA: _WHAT_OF_METADATA}


def headline(found: Divergence, seat: Seat) -> str:
    """What is broken and on which side, in one sentence."""
    subject, many = _subject(found)
    table = _TABLES.get(found.part, _WHAT_OF_A_STRUCTURE)
    is_doubt_over = found.verdict is Verdict.INCONCLUSIVE and found.state is not State.OPEN
    what = (_DOUBT_IS_OVER if is_doubt_over else table[found.verdict]).format(
        disk=_disk(found, seat),
        holder=holder(found.side, found, seat),
        **{"is": "are" if many else "is", "was": "were" if many else "was", "it": "them" if many else "it"},
    )
    lost = found.is_lost and found.verdict is not Verdict.BOTH_ROT
    return f"{seat.dataset}: {_STATES[found.state]}{subject} {what}" + (", and no side has the bytes" if lost else "")


def _disk(found: Divergence, seat: Seat) -> str:
    if found.side is seat.side:
        return "this host's disk"
    return f"the disk of {holder(found.side, found, seat)}"


def _subject(found: Divergence) -> tuple[str, bool]:
    """What is broken, and whether that is many things."""
    match found.part:
        case Part.BLOCK if found.verdict is Verdict.PRIMARY_ROT and found.bits > 0:
            return f"{found.bits} bit{'s' * (found.bits > 1)} of {show_path(found.path)}", found.bits > 1
        case Part.BLOCK if found.side is Side.PRIMARY:
            return f"a block of {show_path(found.path)} ({show_bytes(found.length)} at {found.offset})", False
        case Part.BLOCK:
            count = len(found.blocks)
            return f"{count} stored blocks" if count > 1 else "a stored block" + _of_file(found), count > 1
        case Part.METADATA:
            return f"mode, owner or attributes of {show_path(found.path)}", True
        case Part.ENTRY:
            return f"the entry {show_path(found.path)}", False
        case Part.BOOK:
            return f"the {_book(found)}", False
    names = {
        Part.RECORD: "a record of names in segment {}",
        Part.COMMIT: "the record of a snapshot in segment {}",
        Part.STRUCTURE: "the frame of segment {} (no user data)",
        Part.SEGMENT: "segment {}",
    }
    return names[found.part].format(found.number), False


def _of_file(found: Divergence) -> str:
    if not found.affected:
        return ""
    return f" of {show_path(found.affected[0].path)}{and_more(found)}"


def and_more(found: Divergence) -> str:
    """What stands behind the first of several affected places."""
    return f" (and {found.affected_count - 1} more)" if found.affected_count > 1 else ""


def _book(found: Divergence) -> str:
    """Which of the books: its key says so."""
    return found.key.removeprefix("book:") if found.key.startswith("book:") else f"book {show_path(found.path)}"


# what follows from it, and what does not

_MEANS = {
    Remedy.MEND_METADATA: "The entry has other rights, or another owner, than it should; nothing of that is sent.",
    Remedy.ADOPT_RECORD: "The block cannot be verified here until the ledger is right; it is not sent anew.",
    Remedy.SEND_RECORD: "No byte can be judged there until both sides record the same.",
    Remedy.LOOK_AGAIN: "It is looked at again by itself; nothing is repaired with or because of it until then.",
    Remedy.NOTHING: "",
}
_MEANS_OF_BOOKS = {
    "ledger": "Nothing of this dataset is replicated or verified here until its ledger is made anew.",
    "catalog": "Nothing can be stored or restored through this catalog until it is made anew.",
}
_MEANS_OF_FINDINGS = "What was found before may be forgotten; what is still wrong is found again."


def _means(found: Divergence, seat: Seat) -> str:
    remedy, replica = remedy_of(found), holder(Side.REPLICA, found, seat)
    if remedy is Remedy.MEND_PRIMARY and found.part is not Part.METADATA:
        return f"{_reads(found, seat)} until it is repaired."
    if remedy in (Remedy.MEND_REPLICA, Remedy.NONE_LEFT) or found.is_lost:
        reads = f"{_reads(found, seat)}. " if found.evidence.primary in _GETS else ""
        return f"{reads}A restore from {replica} leaves out, and names, the ranges below."
    if remedy is Remedy.LAY_SEGMENT and found.part is Part.SEGMENT:
        return f"A restore from {replica} leaves out, and names, what only this segment has."
    if remedy is Remedy.LAY_SEGMENT:
        return "A catalog made anew from the segments alone would lack what stands there."
    if remedy is Remedy.REBUILD_BOOK:
        return _MEANS_OF_BOOKS.get(_book(found), _MEANS_OF_FINDINGS)
    return _MEANS.get(remedy, _MEANS[Remedy.MEND_METADATA])


_GETS = {Sight.DIFFERS: "the bad bytes", Sight.UNREADABLE: "an error"}


def _reads(found: Divergence, seat: Seat) -> str:
    gets = _GETS.get(found.evidence.primary, "something else")
    return f"Whoever reads the file on {holder(Side.PRIMARY, found, seat)} gets {gets} there"


_GOOD = {
    Remedy.MEND_PRIMARY: "The copy on {replica}: it has these bytes, and proved them. Nothing of the damage was sent.",
    Remedy.MEND_METADATA: "The content: what was looked at is as recorded. What the entry should be is known as well.",
    Remedy.ADOPT_RECORD: "All data: both copies hold the same bytes. Only the ledger is wrong.",
    Remedy.SEND_RECORD: "All data, as far as it was looked at. What was acknowledged stands as it was acknowledged.",
}
_GOOD_PARTS = {
    Part.RECORD: "All content of files: none stands there. Snapshots are listed and restored by the catalog as before.",
    Part.COMMIT: "All content of files: none stands there. Snapshots are listed and restored by the catalog as before.",
    Part.STRUCTURE: "All data: none stands there, and every frame around it is checked by itself.",
    Part.SEGMENT: "All other segments of {replica}. The data on {primary} is not touched by this.",
}
_GOOD_BOOKS = {
    "ledger": "The files on {primary} and the copy on {replica}: the ledger only records what they should be.",
    "catalog": "The segments of {replica}, which are the truth, and the data on {primary}: the catalog is an index.",
}
_GOOD_FINDINGS = "All data, on both sides: this book only remembers what was found."


def _safe(found: Divergence, seat: Seat) -> Iterator[str]:
    """What the reader need not fear for; at least one sentence."""
    if found.state is State.REPAIRED:
        yield "It was repaired. What was written was read again from the medium, and is as recorded."
    elif found.state is State.GONE:
        yield "What was found can be found no more: it was written or dropped since, or read well again."
    elif found.is_lost:
        yield "Everything but the ranges below, as far as this finding goes."
    else:
        sentence = _good(found, seat)
        names = {"primary": holder(Side.PRIMARY, found, seat), "replica": holder(Side.REPLICA, found, seat)}
        text = sentence.format(**names)
        yield text[:1].upper() + text[1:]
    if found.affected and not any(one.is_live for one in found.affected[: found.affected_count]):
        yield "The dataset as it is now: it does not use these bytes, only the snapshots below do."


def _good(found: Divergence, seat: Seat) -> str:
    """Which copy is good, with {primary} and {replica} for their names."""
    remedy = remedy_of(found)
    if remedy is Remedy.MEND_REPLICA and found.evidence.primary is Sight.MATCHES:
        return "The data on {primary}: these bytes were read from its medium, and are as recorded."
    if remedy is Remedy.MEND_REPLICA:
        return "The rest of both copies. Whether {primary} still has these bytes is not known yet."
    if remedy is not Remedy.NOTHING and found.part in _GOOD_PARTS:
        return _GOOD_PARTS[found.part]
    if remedy is not Remedy.NOTHING and found.part is Part.BOOK:
        return _GOOD_BOOKS.get(_book(found), _GOOD_FINDINGS)
    if remedy is Remedy.LOOK_AGAIN:
        return _good_so_far(found)
    if remedy is Remedy.NOTHING and found.verdict is Verdict.CHANGED:
        return "{replica} keeps the version before in its snapshots; the next pass replicates what was written."
    return _GOOD.get(remedy, "Both copies: what was looked at is as recorded.")


def _good_so_far(found: Divergence) -> str:
    if found.evidence.primary is Sight.MATCHES:
        return "The data on {primary}: what was looked at is as recorded."
    if found.evidence.replica is Sight.MATCHES:
        return "The copy on {replica}: what was looked at is as recorded, and can be restored from there."
    return "No copy was changed because of this. What stands there is proven on neither side yet."


# what it touches


def _affected(found: Divergence) -> Iterator[str]:
    """The byte ranges of files, and in which states of the dataset; then the place of the damage itself."""
    for one in found.affected[:SHOWN_FILES]:
        yield f"{show_path(one.path)}: {_range(one)}"
    more = max(found.affected_count, len(found.affected)) - min(len(found.affected), SHOWN_FILES)
    if more > 0:
        yield f"and {more} more"
    if found.affected or found.part not in (Part.BLOCK, Part.SEGMENT):
        return
    if found.side is Side.PRIMARY:
        yield f"{show_path(found.path)}: {_range(Affected(found.path, found.offset, found.length))}"
    else:
        yield "which files use these bytes is not known yet"


def _range(one: Affected) -> str:
    states = _states(one)
    if not one.length:
        return states
    last = one.offset + one.length - 1
    return f"bytes {one.offset} to {last} ({show_bytes(one.length)}), {states}"


def _states(one: Affected) -> str:
    if one.is_live:
        return f"since snapshot {one.first} and now" if one.first else "now"
    if not one.first:
        return f"up to snapshot {one.last}"
    return f"in snapshot {one.last} only" if one.first == one.last else f"in snapshots {one.first} to {one.last} only"


# why it is believed

_SIGHTS = {
    Sight.MATCHES: "as recorded",
    Sight.DIFFERS: "differs from the record",
    Sight.UNREADABLE: "cannot be read",
    Sight.ABSENT: "not there",
    Sight.UNKNOWN: "no clear answer",
}
_SOURCES = {
    "media": "from the medium",
    "cache": "through a cache, not proven to be the medium",
    "peer": "as the other side computes it",
}
_WITNESSES = {
    Witness.CONFIRMS: "the other side's processor computes the same from these bytes: they do differ",
    Witness.CONTRADICTS: "the other side's processor computes something else from the very same bytes: the memory or "
    "processor of one of the two is at fault, rather than a disk",
}
_WRITINGS = {
    Writing.UNWRITTEN: "change time and inode of the file are the recorded ones: nobody wrote it",
    Writing.WRITTEN: "the file was written since it was recorded",
}


def _why(found: Divergence, seat: Seat) -> Iterator[str]:
    if found.what:
        yield f"found: {found.what}"
    if found.side is Side.REPLICA or found.part is Part.BOOK:
        yield _place(found)
    if found.expected or found.seen:
        yield f"expected checksum {found.expected.hex() or 'not known'}"
        yield f"seen checksum     {found.seen.hex() or 'not known'}"
    if found.bits > 0:
        yield _bits(found)
    for looks in _first_and_latest(_alike(found.looks), SHOWN_LOOKS):
        yield _look(looks, found, seat)
    if found.evidence.witness is not Witness.SILENT:
        yield _WITNESSES[found.evidence.witness]
    elif found.part is Part.BLOCK and Sight.DIFFERS in (found.evidence.primary, found.evidence.replica):
        yield "the other side has not been asked about these bytes yet"
    if found.evidence.writing in _WRITINGS and found.side is Side.PRIMARY and found.part is not Part.BOOK:
        yield _WRITINGS[found.evidence.writing]
    if found.evidence.books is Books.DIFFER:
        yield "ledger and catalog name different content for this place"
    if found.quarantine:
        yield f"the bad bytes are kept on {holder(found.side, found, seat)}: {found.quarantine}"


def _place(found: Divergence) -> str:
    path = show_path(found.path) if found.path else found.key
    return f"at {path}" + (f", bytes {found.offset} to {found.offset + found.length - 1}" if found.length else "")


def _bits(found: Divergence) -> str:
    """How many, and in which bytes of the file that was read."""
    places = list(dict.fromkeys(found.offset + position // 8 for position in found.bit_positions))
    shown = ", ".join(map(str, places[:SHOWN_BYTES])) + (" …" if len(places) > SHOWN_BYTES else "")
    where = f", in byte{'s' * (len(places) > 1)} {shown}" if places else ""
    return f"{found.bits} bit{'s differ' if found.bits > 1 else ' differs'}" + where


def _alike(looks: Sequence[Look]) -> list[list[Look]]:
    """Looks in a row that gave the same."""
    groups = groupby(looks, lambda look: (look.side, look.sight, look.source, look.checksum, look.reason))
    return [list(group) for _, group in groups]


def _look(looks: Sequence[Look], found: Divergence, seat: Seat) -> str:
    look, last = looks[0], looks[-1]
    reason = f" ({look.reason})" if look.reason else ""
    until = f" until {show_time(last.at_ns)}" if show_time(last.at_ns) != show_time(look.at_ns) else ""
    times = f", {len(looks)} times{until}" if len(looks) > 1 else ""
    source = _SOURCES.get(look.source, look.source or "in a way that was not noted")
    where = f"copy of {holder(look.side, found, seat)}, {source}"
    return f"{show_time(look.at_ns)} {where}: {_SIGHTS[look.sight]}{reason}{times}"


# what has happened


def _history(found: Divergence, receipts: Iterable[Receipt]) -> Iterator[str]:
    lines = [(event.at_ns, event.what) for event in found.events]
    for receipt in receipts:
        detail = f": {receipt.detail}" if receipt.detail else ""
        text = f"repair {receipt.number} from {receipt.source}: {receipt.result}{detail}"
        lines.append((receipt.at_ns, text))
    for at_ns, text in _first_and_latest(sorted(lines, key=lambda line: line[0]), SHOWN_EVENTS):
        yield f"{show_time(at_ns)} {text}"


Lines = TypeVar("Lines")


def _first_and_latest(lines: Sequence[Lines], count: int) -> Sequence[Lines]:
    return lines if len(lines) <= count else [lines[0], *lines[1 - count :]]
