"""Session: who may say what, when. Pure; one table serves both roles.

    START --Hello--> GREETING --Welcome--> GREETED --OpenWrite--> OPENING_WRITE --Opened--> WRITING
                                                   |-OpenRead---> OPENING_READ  --Opened--> READING
                                                   `-OpenTend---> OPENING_TEND  --Opened--> TENDING

The client is the side that dialled. Ping and Pong may be said in every state but CLOSED, Bye by either side ends
the session, and the server may answer anything with Refuse, which ends it too. What the table does not hold is
illegal: our own mistake when we would send it (AssertionError), PeerError when the peer did. A message whose state
allows it must also keep the limits of its fields (`message_problem`), so that no room above has to check them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum
from typing import Any

from replicad.link.messages import (
    BUCKETS,
    MAX_CASES,
    MAX_CREDIT_BYTES,
    MAX_KNOWN,
    MAX_NOTES,
    MAX_OFFER,
    MAX_SEEN_BYTES,
    MAX_TEXT_BYTES,
    MAX_WANTS,
    PROTOCOL,
    Account,
    Accounted,
    Acked,
    Attest,
    Attested,
    Blocks,
    Bye,
    Case,
    Cases,
    Compare,
    Credit,
    Direct,
    Directed,
    Examine,
    Examined,
    Fetch,
    Hello,
    Inquire,
    Keep,
    Kept,
    Listing,
    ListSnapshots,
    Lost,
    Message,
    Need,
    Offer,
    Opened,
    OpenRead,
    OpenTend,
    OpenWrite,
    Ping,
    Pong,
    Read,
    Record,
    Refuse,
    Seal,
    Settled,
    Snapshots,
    Testify,
    Told,
    Trace,
    Visit,
    Welcome,
)
from replicad.model.attestation import Attestation, DrillNote
from replicad.model.block import CHECKSUM_BYTES, ID_BYTES
from replicad.model.divergence import ID_CHARACTERS, MAX_AFFECTED, MAX_BITS, MAX_BLOCKS_NAMED, Divergence
from replicad.model.entry import MAX_DEPTH, MAX_PATH_BYTES, path_problem
from replicad.model.errors import LinkError, PeerError, RefusedError, ReplicadError
from replicad.model.order import MAX_ORDER_BYTES
from replicad.model.snapshot import Head

MAX_GLOBS = 256
"""Patterns in one Read at most; each is matched against every path of a snapshot."""
MAX_EVENTS = 1000
"""Lines of history and looks of one finding."""
MAX_KINDS = 50
"""Verdicts that an attestation counts: more than there are."""
MAX_TIME_S = 1e10
"""Three centuries: what 63 bits of nanoseconds hold, about."""
MAX_STATUS_BYTES = 64 * 1024
"""JSON of one ScrubStatus."""
_FINDING_ID = re.compile(rf"[0-9a-f]{{{ID_CHARACTERS}}}")
MAX_NAME_TEXT_BYTES = 255
"""Longest name of a node, client or dataset: names become directory names."""


class Role(Enum):
    """Which side of the link one is."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Role:
        """The role of the peer."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class State(Enum):
    """How far a session has come."""

    START = "start"
    GREETING = "greeting"
    GREETED = "greeted"
    OPENING_WRITE = "opening for writing"
    OPENING_READ = "opening for reading"
    OPENING_TEND = "opening for tending"
    WRITING = "writing"
    READING = "reading"
    TENDING = "tending"
    CLOSED = "closed"


MessageType = type[Any]
_Row = dict[tuple[State, Role, MessageType], State]


def _stay(state: State, role: Role, *kinds: MessageType) -> _Row:
    return {(state, role, kind): state for kind in kinds}


_LIVE = tuple(state for state in State if state is not State.CLOSED)

TABLE: _Row = {
    (State.START, Role.CLIENT, Hello): State.GREETING,
    (State.GREETING, Role.SERVER, Welcome): State.GREETED,
    (State.GREETED, Role.CLIENT, OpenWrite): State.OPENING_WRITE,
    (State.GREETED, Role.CLIENT, OpenRead): State.OPENING_READ,
    (State.GREETED, Role.CLIENT, OpenTend): State.OPENING_TEND,
    (State.OPENING_WRITE, Role.SERVER, Opened): State.WRITING,
    (State.OPENING_READ, Role.SERVER, Opened): State.READING,
    (State.OPENING_TEND, Role.SERVER, Opened): State.TENDING,
    **_stay(State.WRITING, Role.CLIENT, Offer, Blocks, Record, Seal),
    **_stay(State.WRITING, Role.SERVER, Need, Credit, Acked),
    **_stay(State.READING, Role.CLIENT, ListSnapshots, Read, Visit, Trace, Compare, Fetch, Credit),
    **_stay(State.READING, Role.SERVER, Snapshots, Listing, Told, Blocks, Lost),
    **_stay(State.TENDING, Role.CLIENT, Examine, Inquire, Testify, Blocks, Account, Direct, Attest, Keep),
    **_stay(State.TENDING, Role.SERVER, Examined, Cases, Settled, Accounted, Directed, Attested, Kept),
    **{(state, Role.SERVER, Refuse): State.CLOSED for state in _LIVE},
    **{(state, role, Bye): State.CLOSED for state in _LIVE for role in Role},
    **{(state, role, kind): state for state in _LIVE for role in Role for kind in (Ping, Pong)},
}
"""(state, who speaks, kind of message) -> next state."""


class Session:
    """The state of one session as one side sees it."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.START
        self.dataset = ""
        """What the client has asked to open; "" before."""

    def send(self, message: Message) -> None:
        """Account for a message of ours. AssertionError when it is illegal now: that is our own mistake."""
        following = TABLE.get((self.state, self.role, type(message)))
        assert following is not None, f"{type(message).__name__} may not be sent while {self.state.value}"
        assert not (problem := message_problem(message)), problem
        self._go_on(following, message)

    def receive(self, message: Message) -> None:
        """Account for a message of the peer. Raises PeerError when it is illegal now or breaks a limit."""
        following = TABLE.get((self.state, self.role.other, type(message)))
        if following is None:
            raise PeerError(f"sent {type(message).__name__}, which is not allowed while {self.state.value}")
        problem = message_problem(message)
        if problem:
            raise PeerError(f"sent an invalid {problem}")
        self._go_on(following, message)

    def _go_on(self, following: State, message: Message) -> None:
        self.state = following
        if isinstance(message, OpenWrite | OpenRead | OpenTend):
            self.dataset = message.dataset


def version_refusal(hello: Hello) -> Refuse | None:
    """The server's answer to a client of another protocol version, None when the versions match."""
    if hello.protocol == PROTOCOL:
        return None
    theirs = f"protocol version {hello.protocol} ({show_text(hello.software)[:MAX_NAME_TEXT_BYTES]})"
    return Refuse("version", f"the client speaks {theirs}, this node speaks version {PROTOCOL}")


def refused(refuse: Refuse, peer: str) -> ReplicadError:
    """The peer's Refuse as the error to raise: a RefusedError, or a LinkError where it only has to be waited for."""
    if refuse.code == "stopping":
        return LinkError(show_text(refuse.text), where=peer)
    hint = "install the same release of replicad on both nodes" if refuse.code == "version" else ""
    return RefusedError(f"refused: {show_text(refuse.text)}", where=peer, hint=hint)


def show_text(text: str) -> str:
    """Text from the peer, safe for terminals and logs: control characters become "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)


def message_problem(message: Message) -> str:
    """Which limit a field of `message` breaks, or ""."""
    rule = _RULES.get(type(message))
    return f"{type(message).__name__}: {problem}" if rule and (problem := rule(message)) else ""


def _text(text: str, limit: int = MAX_TEXT_BYTES) -> str:
    return "" if len(text.encode()) <= limit else f"text over {limit} bytes"


def _number(value: int, limit: int = 2**63 - 1, *, least: int = 0) -> str:
    return "" if least <= value <= limit else f"number {value} outside {least} to {limit}"


def _head(head: Head) -> str:
    return _number(head.number) or ("" if len(head.digest) == ID_BYTES else f"digest of {len(head.digest)} bytes")


def _ids(ids: bytes) -> str:
    count, rest = divmod(len(ids), ID_BYTES)
    return "" if not rest and 0 < count <= MAX_OFFER else f"{len(ids)} bytes of block ids"


def _bits(bits: bytes) -> str:
    return "" if 0 < len(bits) <= MAX_OFFER // 8 else f"bitmap of {len(bits)} bytes"


def _globs(globs: Sequence[bytes]) -> str:
    if len(globs) > MAX_GLOBS:
        return f"{len(globs)} patterns; {MAX_GLOBS} are allowed"
    return f"pattern over {MAX_PATH_BYTES} bytes" if any(len(glob) > MAX_PATH_BYTES for glob in globs) else ""


def _path(path: bytes) -> str:
    problem = path_problem(path)
    return f"path that {problem}" if problem else ""


def _seen(size: int) -> str:
    return "" if size <= MAX_SEEN_BYTES else f"{size} bytes to be hashed"


def _hash(value: bytes, *lengths: int) -> str:
    return "" if len(value) in lengths else f"hash of {len(value)} bytes"


def _found(found: Divergence) -> str:
    """A finding of the peer's: it is shown to people and kept in a book."""
    texts = (found.id, found.key, found.dataset, found.peer, found.what, found.quarantine)
    said = [text for look in found.looks for text in (look.source, look.reason)] + [one.what for one in found.events]
    if not _FINDING_ID.fullmatch(found.id):
        return "id of a finding"
    counts = (
        (len(found.affected), MAX_AFFECTED),
        (len(found.bit_positions), MAX_BITS),
        (len(found.blocks) + len(found.mended), MAX_BLOCKS_NAMED),
        (len(found.events), MAX_EVENTS),
        (len(found.looks), MAX_EVENTS),
    )
    names = (*found.blocks, *found.mended)
    if any(count > limit for count, limit in counts) or any(len(name) != ID_BYTES for name in names):
        return "finding that is too long"
    if any(len(path) > MAX_PATH_BYTES for path in (found.path, *(one.path for one in found.affected))):
        return "finding with a path that is too long"
    checks = (*map(_text, (*texts, *said)), _number(found.bits, least=-1), *map(_number, _numbers(found)))
    hashes = (found.expected, found.seen, *(look.checksum for look in found.looks))
    return next(filter(None, (*checks, *(_hash(value, 0, CHECKSUM_BYTES, ID_BYTES) for value in hashes))), "")


def _numbers(found: Divergence) -> Iterator[int]:
    """The numbers of a finding that a book must be able to hold."""
    yield from (found.found_ns, found.changed_ns, found.offset, found.length, found.file, found.number)
    yield found.affected_count
    yield from found.bit_positions
    for one in found.affected:
        yield from (one.offset, one.length, one.first, one.last)
    yield from (look.at_ns for look in found.looks)
    yield from (event.at_ns for event in found.events)


def _names(findings: Collection[str]) -> str:
    if len(findings) > MAX_KNOWN:
        return f"{len(findings)} findings that are known"
    return "" if all(map(_FINDING_ID.fullmatch, findings)) else "id of a finding"


def _cases(cases: Sequence[Case]) -> str:
    if len(cases) > MAX_CASES:
        return f"{len(cases)} findings at once"
    problems = (_seen(sum(len(case.seen) for case in cases)), *map(_wants, cases), *(_found(c.found) for c in cases))
    return next(filter(None, problems), "")


def _wants(case: Case) -> str:
    if len(case.wants) > MAX_WANTS:
        return f"{len(case.wants)} blocks wanted"
    places = (_number(value) for want in case.wants for value in (want.file, want.number))
    return next(filter(None, (*(_hash(want.id, ID_BYTES) for want in case.wants), *places)), "")


def _note(note: DrillNote) -> str:
    numbers = (note.number, note.snapshot, note.ended_ns, note.files, note.bytes)
    return next(
        filter(
            None, (_text(note.kind, 16), _text(note.digest, 2 * ID_BYTES), _text(note.reason), *map(_number, numbers))
        ),
        "",
    )


def _attestation(said: Attestation) -> str:
    numbers = (
        *(said.now_ns, said.created_ns, said.received_ns, said.lost_records, said.total_bytes, said.never_bytes),
        *(said.oldest_verified_ns, said.lost, said.keep_at_least, said.pins_asked, *said.open.values()),
    )
    texts = (said.store_state, said.scrub_state, said.scrub_reason, *said.open)
    checks = (*map(_head, (said.head, said.complete)), *map(_number, numbers), *map(_text, texts))
    notes = (_note(said.drills.last), _note(said.drills.proven))
    floor = "" if 0 <= said.keep_younger_than_s <= MAX_TIME_S else "length of time"
    return next(filter(None, (_number(len(said.open), MAX_KINDS), floor, *checks, *notes)), "")


_RULES: dict[MessageType, Callable[[Any], str]] = {
    Hello: lambda m: _number(m.protocol) or _text(m.software),
    Welcome: lambda m: (
        _number(m.protocol)
        or _text(m.software)
        or _text(m.node, MAX_NAME_TEXT_BYTES)
        or _text(m.client, MAX_NAME_TEXT_BYTES)
    ),
    Refuse: lambda m: _text(m.code) or _text(m.text),
    OpenWrite: lambda m: _text(m.dataset, MAX_NAME_TEXT_BYTES),
    OpenRead: lambda m: _text(m.dataset, MAX_NAME_TEXT_BYTES),
    Opened: lambda m: (
        _head(m.head)
        or _number(m.credit, MAX_CREDIT_BYTES)
        or ("" if len(m.order) <= MAX_ORDER_BYTES else f"order of {len(m.order)} bytes")
    ),
    Offer: lambda m: _ids(m.ids),
    Fetch: lambda m: _ids(m.ids),
    Need: lambda m: _bits(m.bits),
    Acked: lambda m: _head(m.head),
    Credit: lambda m: _number(m.size, MAX_CREDIT_BYTES, least=1),
    Read: lambda m: _number(m.snapshot) or _globs(m.globs) or _number(m.credit, MAX_CREDIT_BYTES),
    Visit: lambda m: (
        _number(m.snapshot) or _path(m.path) or _number(m.depth, MAX_DEPTH) or _number(m.credit, MAX_CREDIT_BYTES)
    ),
    Trace: lambda m: _path(m.path) or _number(m.credit, MAX_CREDIT_BYTES),
    Compare: lambda m: _number(m.before) or _number(m.after) or _globs(m.globs) or _number(m.credit, MAX_CREDIT_BYTES),
    Lost: lambda m: _text(m.reason) or ("" if len(m.id) == ID_BYTES else f"block id of {len(m.id)} bytes"),
    Ping: lambda m: _number(m.token),
    Pong: lambda m: _number(m.token),
    Bye: lambda m: _text(m.reason),
    OpenTend: lambda m: _text(m.dataset, MAX_NAME_TEXT_BYTES),
    Examine: lambda m: _hash(m.id, ID_BYTES) or _seen(len(m.data)),
    Examined: lambda m: (
        _hash(m.checksum, 0, CHECKSUM_BYTES)
        or _hash(m.id, 0, ID_BYTES)
        or _text(m.reason)
        or ("" if m.source in ("", "media", "cache") else "source")
    ),
    Inquire: lambda m: (
        _text(m.after, MAX_NAME_TEXT_BYTES) or _names(m.known) or next(filter(None, map(_number, m.known.values())), "")
    ),
    Cases: lambda m: _cases(m.cases) or _names(m.same),
    Testify: lambda m: (
        _text(m.divergence, MAX_NAME_TEXT_BYTES)
        or _hash(m.checksum, 0, CHECKSUM_BYTES)
        or _number(len(m.sights), MAX_WANTS)
        or _number(m.frames, MAX_WANTS)
    ),
    Settled: lambda m: _found(m.found),
    Accounted: lambda m: (
        _head(m.head)
        or _number(m.entries)
        or ("" if len(m.sums) == BUCKETS else f"account in {len(m.sums)} parts")
        or next((problem for part in m.sums if (problem := _hash(part, ID_BYTES))), "")
    ),
    Direct: lambda m: "" if m.action in ("start", "status", "map") else "action",
    Attest: lambda m: _number(len(m.drills), MAX_NOTES) or next(filter(None, map(_note, m.drills)), ""),
    Attested: lambda m: _attestation(m.said),
    Keep: lambda m: _text(m.name, MAX_NAME_TEXT_BYTES) or _head(m.snapshot) or _text(m.reason),
    Kept: lambda m: _text(m.problem),
    Directed: lambda m: "" if len(m.status) <= MAX_STATUS_BYTES else f"status of {len(m.status)} bytes",
}
"""Limits of the fields; a kind that is not named has none beyond its length."""
