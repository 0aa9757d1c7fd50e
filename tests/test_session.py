"""Session: every combination of state, speaker and message, and the limits of the fields."""

from __future__ import annotations

from typing import get_args

import pytest

from kit_messages import EXAMPLES
from replicad.link.messages import (
    MAX_CREDIT_BYTES,
    MAX_OFFER,
    PROTOCOL,
    Acked,
    Bye,
    Credit,
    Fetch,
    Hello,
    Lost,
    Message,
    Need,
    Offer,
    Opened,
    OpenRead,
    OpenWrite,
    Ping,
    Pong,
    Read,
    Refuse,
    Welcome,
)
from replicad.link.session import MAX_GLOBS, TABLE, Role, Session, State, message_problem, refused, version_refusal
from replicad.model.errors import PeerError
from replicad.model.snapshot import Head

# What each side may say in each state, as one line a case: C = client, S = server. Pings, Pongs and Byes of both
# sides and the server's Refuse are legal in every state but "closed" and are left out here.
LEGAL = """
start          C Hello          greeting
greeting       S Welcome        greeted
greeted        C OpenWrite      opening for writing
greeted        C OpenRead       opening for reading
opening for writing S Opened    writing
opening for reading S Opened    reading
writing        C Offer          writing
writing        C Blocks         writing
writing        C Record         writing
writing        C Seal           writing
writing        S Need           writing
writing        S Credit         writing
writing        S Acked          writing
reading        C ListSnapshots  reading
reading        C Read           reading
reading        C Fetch          reading
reading        C Credit         reading
reading        S Snapshots      reading
reading        S Listing        reading
reading        S Blocks         reading
reading        S Lost           reading
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
    Lost(b"", "gone"),
    Lost(bytes(32), "x" * 5000),
    Ping(-1),
    Pong(2**63),
    Bye("x" * 5000),
)


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
