"""Kit: one valid example of every message, for tests that must cover all of them, and any value of a type."""

from __future__ import annotations

from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

from kit_findings import primary_rot, replica_rot
from replicad.link.messages import (
    BUCKETS,
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
    SnapshotLine,
    Snapshots,
    Testify,
    Told,
    Trace,
    Visit,
    Want,
    Welcome,
)
from replicad.model.attestation import Attestation, DrillMemory, DrillNote
from replicad.model.drill import Outcome
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight

_NOTE = DrillNote(5, 8, "00" * 32, "full", Outcome.FAILED, 1_800_000_000, 12, 3456, "etc/passwd differs")

EXAMPLES: tuple[Message, ...] = (
    Hello(PROTOCOL, "replicad 0.1.0"),
    Welcome(PROTOCOL, "replicad 0.1.0", "fra1", "ams1"),
    Refuse("busy", "another session writes this dataset"),
    OpenWrite("www"),
    OpenRead("www"),
    Opened(Head(7, bytes(range(32))), 32 * 1024**2),
    Opened(Head(7, bytes(range(32))), 0, b'[{"name":"database","patterns":["pg"]}]'),
    Offer(bytes(64)),
    Need(b"\x01"),
    Blocks(b"stored frames" * 20),
    Record(b"a record frame"),
    Seal(b"a commit frame"),
    Acked(Head(8, bytes(32))),
    Credit(65536),
    ListSnapshots(),
    Snapshots([SnapshotLine(1, 2, 3, True, 4, 5, 0, bytes(32))], False),
    Read(3, [b"etc/**", "größe".encode()], 1024**2),
    Listing(b"operations", True),
    Visit(3, b"etc/\xff", 1, False, 1024**2),
    Trace(b"etc/passwd", 1024**2),
    Compare(3, 7, [b"etc/**"], 1024**2),
    Told(b"versions or differences", True),
    Fetch(bytes(32)),
    Lost(bytes(32), "checksum differs"),
    OpenTend("www"),
    Examine(bytes(32), b"what was found instead of the block"),
    Examined(bytes(16), bytes(32), Sight.MATCHES, ""),
    Inquire("7c1e90ab"),
    Inquire("", {"0abc1234": 1_900_000_000_000_000_000, "7c1e90ab": 0}),
    Cases([Case(replica_rot(id="7c1e90ab"), b"bad bytes", [Want(bytes(32), 77, 3), Want(bytes(32), 0, 0)])], True),
    Cases([], False, ["0abc1234", "7c1e90ab"]),
    Testify("7c1e90ab", bytes(16), [Sight.MATCHES, Sight.ABSENT], 1),
    Settled(primary_rot(id="0abc1234")),
    Account(),
    Accounted(Head(8, bytes(32)), 1234, [bytes(32)] * BUCKETS),
    Direct("start"),
    Directed(b'{"dataset":"www","side":"replica","peer":"ams1"}'),
    Attest([_NOTE]),
    Attested(Attestation(head=Head(8, bytes(32)), open={"replica_rot": 2}, drills=DrillMemory(_NOTE), keeps_all=True)),
    Keep("before-upgrade", Head(8, bytes(32)), "ticket 4711"),
    Kept("the name is taken"),
    Ping(0),
    Pong(0),
    Bye("done"),
)


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type as it can come from a peer or a book: every field filled, numbers of 64 bits."""
    if kind is int:
        return st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)
    if get_origin(kind) in (tuple, list):
        return st.lists(any_of(get_args(kind)[0]), max_size=3).map(get_origin(kind))
    if get_origin(kind) is dict:
        return st.dictionaries(*map(any_of, get_args(kind)), max_size=3)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.builds(kind, **{name: any_of(hint) for name, hint in get_type_hints(kind).items()})
    return st.from_type(kind)
