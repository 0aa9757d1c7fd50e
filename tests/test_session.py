"""Session: every combination of state, speaker and message, and the limits of the fields."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_findings import replica_rot
from kit_messages import EXAMPLES, any_of
from replicad.link import messages  # Testify would be taken for a test by its name
from replicad.link.messages import (
    BUCKETS,
    MAX_CASES,
    MAX_CREDIT_BYTES,
    MAX_KNOWN,
    MAX_NOTES,
    MAX_OFFER,
    MAX_SEEN_BYTES,
    MAX_WANTS,
    PROTOCOL,
    Accounted,
    Acked,
    Attest,
    Attested,
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
    Refuse,
    Settled,
    Trace,
    Visit,
    Want,
    Welcome,
    decode_untrusted,
    encode,
)
from replicad.link.session import (
    MAX_EVENTS,
    MAX_GLOBS,
    MAX_KINDS,
    MAX_STATUS_BYTES,
    TABLE,
    Role,
    Session,
    State,
    message_problem,
    refused,
    version_refusal,
)
from replicad.model import divergence
from replicad.model.attestation import Attestation, DrillMemory, DrillNote
from replicad.model.divergence import MAX_AFFECTED, MAX_BITS, MAX_BLOCKS_NAMED, Affected, Event, Look, Side
from replicad.model.entry import MAX_DEPTH
from replicad.model.errors import PeerError
from replicad.model.order import MAX_ORDER_BYTES
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight

# What each side may say in each state, as one line a case: C = client, S = server. Pings, Pongs and Byes of both
# sides and the server's Refuse are legal in every state but "closed" and are left out here.
LEGAL = """
start          C Hello          greeting
greeting       S Welcome        greeted
greeted        C OpenWrite      opening for writing
greeted        C OpenRead       opening for reading
greeted        C OpenTend       opening for tending
opening for writing S Opened    writing
opening for reading S Opened    reading
opening for tending S Opened    tending
writing        C Offer          writing
writing        C Blocks         writing
writing        C Record         writing
writing        C Seal           writing
writing        S Need           writing
writing        S Credit         writing
writing        S Acked          writing
reading        C ListSnapshots  reading
reading        C Read           reading
reading        C Visit          reading
reading        C Trace          reading
reading        C Compare        reading
reading        C Fetch          reading
reading        C Credit         reading
reading        S Snapshots      reading
reading        S Listing        reading
reading        S Told           reading
reading        S Blocks         reading
reading        S Lost           reading
tending        C Examine        tending
tending        C Inquire        tending
tending        C Testify        tending
tending        C Blocks         tending
tending        C Account        tending
tending        C Direct         tending
tending        C Attest         tending
tending        C Keep           tending
tending        S Examined       tending
tending        S Cases          tending
tending        S Settled        tending
tending        S Accounted      tending
tending        S Directed       tending
tending        S Attested       tending
tending        S Kept           tending
"""


def legal() -> dict[tuple[str, str, str], str]:
    cases = {}
    for line in LEGAL.strip().splitlines():
        words = line.split()
        speaker = next(i for i, word in enumerate(words) if word in ("C", "S"))
        cases[" ".join(words[:speaker]), words[speaker], words[speaker + 1]] = " ".join(words[speaker + 2 :])
    for state in State:
        if state is not State.CLOSED:
            for speaker_name in "CS":
                cases |= {(state.value, speaker_name, name): state.value for name in ("Ping", "Pong")}
                cases[state.value, speaker_name, "Bye"] = "closed"
            cases[state.value, "S", "Refuse"] = "closed"
    return cases


def session_in(state: State, role: Role) -> Session:
    session = Session(role)
    session.state = state
    return session


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("speaker", Role)
@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_combination(state: State, speaker: Role, message: Message) -> None:
    """A message is taken and moves the state, alike at both ends, when the table says so; else it is an error."""
    expected = legal().get((state.value, speaker.value[0].upper(), type(message).__name__))
    sender, receiver = session_in(state, speaker), session_in(state, speaker.other)
    if expected is None:
        with pytest.raises(AssertionError):
            sender.send(message)
        with pytest.raises(PeerError, match=type(message).__name__):
            receiver.receive(message)
        assert sender.state is receiver.state is state
    else:
        sender.send(message)
        receiver.receive(message)
        assert sender.state.value == receiver.state.value == expected


def test_the_examples_cover_every_message() -> None:
    """No message of the protocol is left out of these tests, and each is legal for somebody."""
    assert {type(message) for message in EXAMPLES} == set(get_args(Message))
    assert {kind for _, _, kind in TABLE} == set(get_args(Message))


def test_the_wire_has_no_verb_for_deletion() -> None:
    """Nothing that a client can send while writing is anything but an offer, data, a record or its seal."""
    said = {kind.__name__ for state, role, kind in TABLE if state is State.WRITING and role is Role.CLIENT}
    assert said == {"Offer", "Blocks", "Record", "Seal", "Ping", "Pong", "Bye"}


def test_a_tending_client_gives_evidence_and_nothing_else() -> None:
    """While tending, a client asks, testifies, and sends proven blocks; a scrub can be hurried and not held up."""
    said = {kind.__name__ for state, role, kind in TABLE if state is State.TENDING and role is Role.CLIENT}
    assert said == {
        "Examine",
        "Inquire",
        "Testify",
        "Blocks",
        "Account",
        "Direct",
        "Attest",
        "Keep",
        "Ping",
        "Pong",
        "Bye",
    }
    assert [
        action for action in ("start", "status", "map", "pause", "resume", "") if not message_problem(Direct(action))
    ] == [
        "start",
        "status",
        "map",
    ]


BAD = (
    Hello(-1, ""),
    Hello(PROTOCOL, "x" * 5000),
    Welcome(PROTOCOL, "", "n" * 256, "c"),
    Welcome(PROTOCOL, "", "n", "c" * 256),
    Refuse("busy", "ü" * 3000),
    OpenWrite("d" * 256),
    OpenRead("d" * 256),
    Opened(Head(-1), 0),
    Opened(Head(1, b"short"), 0),
    Opened(Head(), -1),
    Opened(Head(), 0, bytes(MAX_ORDER_BYTES + 1)),
    Opened(Head(), MAX_CREDIT_BYTES + 1),
    Offer(b""),
    Offer(bytes(31)),
    Offer(bytes(32 * (MAX_OFFER + 1))),
    Fetch(bytes(33)),
    Need(b""),
    Need(bytes(MAX_OFFER // 8 + 1)),
    Acked(Head(1, bytes(33))),
    Credit(0),
    Credit(-5),
    Credit(MAX_CREDIT_BYTES + 1),
    Read(-1, [], 0),
    Read(1, [b"*"] * (MAX_GLOBS + 1), 0),
    Read(1, [b"x" * 5000], 0),
    Read(1, [], -1),
    Visit(-1, b"", 0, False, 0),
    Visit(1, b"/etc", 0, False, 0),
    Visit(1, b"a/../b", 0, False, 0),
    Visit(1, b"x" * 5000, 0, False, 0),
    Visit(1, b"", MAX_DEPTH + 1, False, 0),
    Visit(1, b"", -1, False, 0),
    Visit(1, b"", 0, False, MAX_CREDIT_BYTES + 1),
    Trace(b"a\0", 0),
    Trace(b"a", -1),
    Compare(-1, 2, [], 0),
    Compare(1, 2**63, [], 0),
    Compare(1, 2, [b"*"] * (MAX_GLOBS + 1), 0),
    Compare(1, 2, [], MAX_CREDIT_BYTES + 1),
    Lost(b"", "gone"),
    Lost(bytes(32), "x" * 5000),
    OpenTend("d" * 256),
    Examine(b"", b""),
    Examine(bytes(33), b""),
    Examine(bytes(32), bytes(MAX_SEEN_BYTES + 1)),
    Examined(bytes(15), bytes(32), Sight.MATCHES, ""),
    Examined(bytes(16), bytes(16), Sight.MATCHES, ""),
    Examined(b"", b"", Sight.UNKNOWN, "x" * 5000),
    Examined(b"", b"", Sight.UNKNOWN, "", "hearsay"),
    Inquire("7" * 256),
    Inquire("", {"no id": 1}),
    Inquire("", {"7c1e90ab": -1}),
    Inquire("", {f"{number:08x}": 1 for number in range(MAX_KNOWN + 1)}),
    Cases([], False, ["no id"]),
    Cases([], False, ["7c1e90ab"] * (MAX_KNOWN + 1)),
    Cases([Case(replica_rot(id="7c1e90ab"), b"", [])] * (MAX_CASES + 1), False),
    Cases([Case(replica_rot(id="7c1e90ab"), bytes(MAX_SEEN_BYTES // 2 + 1), [])] * 2, False),
    Cases([Case(replica_rot(id="7c1e90ab"), b"", [Want(bytes(32), 1, 1)] * (MAX_WANTS + 1))], False),
    Cases([Case(replica_rot(id="7c1e90ab"), b"", [Want(b"", 1, 1)])], False),
    Cases([Case(replica_rot(id="7c1e90ab"), b"", [Want(bytes(32), -1, 1)])], False),
    Cases([Case(replica_rot(id="7c1e90ab"), b"", [Want(bytes(32), 1, 2**63)])], False),
    Cases([Case(replica_rot(id=""), b"", [])], False),
    messages.Testify("7" * 256, b"", [], 0),
    messages.Testify("7c1e90ab", bytes(17), [], 0),
    messages.Testify("7c1e90ab", b"", [Sight.ABSENT] * (MAX_WANTS + 1), 0),
    messages.Testify("7c1e90ab", b"", [], -1),
    messages.Testify("7c1e90ab", b"", [], MAX_WANTS + 1),
    Accounted(Head(1, b"short"), 0, [bytes(32)] * BUCKETS),
    Accounted(Head(), -1, [bytes(32)] * BUCKETS),
    Accounted(Head(), 0, [bytes(32)] * (BUCKETS - 1)),
    Accounted(Head(), 0, [bytes(32)] * (BUCKETS - 1) + [b""]),
    Direct("pause"),
    Direct(""),
    Directed(bytes(MAX_STATUS_BYTES + 1)),
    Attest([DrillNote()] * (MAX_NOTES + 1)),
    Attest([DrillNote(number=-1)]),
    Attest([DrillNote(ended_ns=2**63)]),
    Attest([DrillNote(kind="k" * 17)]),
    Attest([DrillNote(digest="0" * 65)]),
    Attest([DrillNote(reason="x" * 5000)]),
    Attested(Attestation(now_ns=-1)),
    Attested(Attestation(head=Head(1, b"short"))),
    Attested(Attestation(complete=Head(-1))),
    Attested(Attestation(never_bytes=2**63)),
    Attested(Attestation(scrub_reason="x" * 5000)),
    Attested(Attestation(open={"replica_rot": -1})),
    Attested(Attestation(open={"x" * 5000: 1})),
    Attested(Attestation(open={str(n): 1 for n in range(MAX_KINDS + 1)})),
    Attested(Attestation(keep_younger_than_s=float("nan"))),
    Attested(Attestation(keep_younger_than_s=-1.0)),
    Attested(Attestation(keep_younger_than_s=1e11)),
    Attested(Attestation(drills=DrillMemory(last=DrillNote(files=-1)))),
    Attested(Attestation(drills=DrillMemory(proven=DrillNote(bytes=2**63)))),
    Keep("n" * 256, Head(), ""),
    Keep("n", Head(1, b""), ""),
    Keep("n", Head(), "x" * 5000),
    Kept("x" * 5000),
    Ping(-1),
    Pong(2**63),
    Bye("x" * 5000),
)

BAD_FINDINGS: tuple[dict[str, object], ...] = (
    {"id": ""},
    {"id": "7c1e90a"},
    {"id": "7c1e90ab0"},
    {"id": "7C1E90AB"},
    {"id": "../../ab"},
    {"key": "k" * 5000},
    {"dataset": "d" * 5000},
    {"peer": "p" * 5000},
    {"what": "ü" * 3000},
    {"quarantine": "q" * 5000},
    {"path": b"p" * 5000},
    {"found_ns": -1},
    {"changed_ns": 2**63},
    {"offset": -1},
    {"length": 2**63},
    {"file": -1},
    {"number": 2**64 - 1},
    {"affected_count": -1},
    {"expected": b"short"},
    {"seen": bytes(33)},
    {"bits": -2},
    {"bits": 2**63},
    {"bit_positions": (0,) * (MAX_BITS + 1)},
    {"bit_positions": (-1,)},
    {"blocks": (bytes(32),) * (MAX_BLOCKS_NAMED + 1)},
    {"blocks": (bytes(31),)},
    {"affected": (Affected(b"a", 0, 1),) * (MAX_AFFECTED + 1)},
    {"affected": (Affected(b"a" * 5000, 0, 1),)},
    {"affected": (Affected(b"a", -1, 1),)},
    {"affected": (Affected(b"a", 0, 2**63),)},
    {"affected": (Affected(b"a", 0, 1, -1, 0),)},
    {"affected": (Affected(b"a", 0, 1, 0, -1),)},
    {"events": (Event(0, ""),) * (MAX_EVENTS + 1)},
    {"events": (Event(0, "x" * 5000),)},
    {"events": (Event(-1, ""),)},
    {"looks": (Look(0, Side.REPLICA, Sight.DIFFERS, "media"),) * (MAX_EVENTS + 1)},
    {"looks": (Look(-1, Side.REPLICA, Sight.DIFFERS, "media"),)},
    {"looks": (Look(0, Side.REPLICA, Sight.DIFFERS, "s" * 5000),)},
    {"looks": (Look(0, Side.REPLICA, Sight.DIFFERS, "media", b"short"),)},
    {"looks": (Look(0, Side.REPLICA, Sight.DIFFERS, "media", b"", "x" * 5000),)},
)


@pytest.mark.parametrize("changes", BAD_FINDINGS, ids=lambda changes: ",".join(changes))
def test_a_finding_beyond_a_limit_is_refused(changes: dict[str, object]) -> None:
    """Whatever field of a peer's finding breaks its limit, the message is refused, in a list and alone: what gets in
    can be kept in a book and shown to a person."""
    found = replica_rot(**{"id": "7c1e90ab", **changes})
    for message in (Settled(found), Cases([Case(found, b"", [])], False)):
        with pytest.raises(PeerError, match="invalid"):
            session_in(State.TENDING, Role.CLIENT).receive(message)


def test_a_finding_that_a_book_keeps_is_one_that_travels() -> None:
    """The limits of the wire leave room for every history that a book keeps."""
    assert divergence.MAX_EVENTS <= MAX_EVENTS


@given(st.one_of([any_of(kind) for kind in get_args(Message)]))
def test_any_fields_are_taken_or_refused(message: Message) -> None:
    """Whatever stands in the fields of a message that can be decoded, it is taken or it is refused with a PeerError, by
    the side that may hear it; what is taken is what was sent."""
    state, role, _ = next(key for key in TABLE if key[2] is type(message))
    received = decode_untrusted(encode(message))
    assert received == message
    try:
        session_in(state, role.other).receive(received)
    except PeerError:
        assert message_problem(message)


@given(any_of(Settled))
def test_a_finding_that_is_taken_can_be_kept(message: Settled) -> None:
    """Numbers of a peer's finding that pass are ones that a book can hold, and its id names no path."""
    if not message_problem(message):
        found = message.found
        assert all(0 <= number < 2**63 for number in (found.found_ns, found.changed_ns, found.length))
        assert len(found.id) == 8 and found.id.isalnum()


@pytest.mark.parametrize("message", BAD, ids=lambda message: type(message).__name__)
def test_a_field_beyond_its_limit_is_refused(message: Message) -> None:
    """The peer's limits are checked where its state is, and name the message; we never send such a thing ourselves."""
    state, role, _ = next(key for key in TABLE if key[2] is type(message))
    with pytest.raises(PeerError, match=type(message).__name__):
        session_in(state, role.other).receive(message)
    with pytest.raises(AssertionError):
        session_in(state, role).send(message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_valid_fields_pass(message: Message) -> None:
    """The examples break no limit."""
    assert message_problem(message) == ""


def test_another_protocol_version_is_refused_with_both_versions() -> None:
    """The refusal says which version each side speaks and what to do; control characters of the peer are gone."""
    assert version_refusal(Hello(PROTOCOL, "any")) is None
    refusal = version_refusal(Hello(99, "replicad 9.0\x1b[2J"))
    assert refusal and refusal.code == "version"
    text = str(refused(refusal, "fra1"))
    assert "99" in text and f"version {PROTOCOL}" in text and "install the same release" in text and "\x1b" not in text
