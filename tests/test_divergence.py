"""Divergences: what two byte strings differ in, what finding one again adds, and how one is shown to programs."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_findings import a_divergence
from kit_messages import any_of
from replicad.model.divergence import (
    ID_CHARACTERS,
    MAX_BITS,
    MAX_EVENTS,
    Affected,
    Divergence,
    Event,
    Look,
    Part,
    Receipt,
    Side,
    State,
    Suspect,
    as_document,
    count_open,
    differing_bits,
    divergence_id,
)
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, Writing

HOSTILE = [
    b"",
    b"\xff\xfe",
    b"a\nb",
    b"\x1b[2J\x07",
    b"\xe2\x80\xae.txt",
    "gr\u00f6\u00dfe".encode(),
    b"\\x41",
    b"a" * 4096,
]
"""Paths that are no text, that would move a cursor, turn the writing round, or look like escapes."""


# ------------------------------------------------------------------------------------------------------------- bits


@given(st.binary(max_size=300), st.data())
def test_bits_are_counted_as_one_by_one(expected: bytes, data: st.DataObject) -> None:
    """Number and places of differing bits are those that a loop over all bits finds."""
    seen = data.draw(st.binary(min_size=len(expected), max_size=len(expected)))
    places = [
        8 * byte + bit
        for byte, (one, other) in enumerate(zip(expected, seen, strict=True))
        for bit in range(8)
        if (one ^ other) >> bit & 1
    ]
    assert differing_bits(expected, seen) == (len(places), tuple(places[:MAX_BITS]))


@pytest.mark.parametrize("position", [0, 7, 8, 8 * 1024 * 1024 - 1])
def test_a_single_bit_is_found_in_a_large_block(position: int) -> None:
    """The first and the last bit of the largest block are counted from the first bit of the range."""
    seen = bytearray(1024 * 1024)
    seen[position // 8] ^= 1 << position % 8
    assert differing_bits(bytes(1024 * 1024), bytes(seen)) == (1, (position,))


def test_equal_bytes_do_not_differ() -> None:
    """Nothing differs, nothing is named."""
    assert differing_bits(b"same", b"same") == (0, ())


# -------------------------------------------------------------------------------------------------------------- ids


def test_an_id_depends_on_all_that_makes_a_finding() -> None:
    """The same finding has the same short id everywhere, in hex; another place, side, peer or moment has another."""
    base = ("www", Side.PRIMARY, "fra1", "block:1:2", 7)
    others = [
        ("db", *base[1:]),
        (base[0], Side.REPLICA, *base[2:]),
        ("www", Side.PRIMARY, "", "block:1:2", 7),
        ("www", Side.PRIMARY, "fra1", "block:1:3", 7),
        (*base[:4], 8),
    ]
    ids = {divergence_id(*words) for words in (base, *others)}
    assert divergence_id(*base) == divergence_id(*base) and len(ids) == len(others) + 1
    assert all(len(name) == ID_CHARACTERS and set(name) <= set("0123456789abcdef") for name in ids)


def test_only_bytes_of_files_can_be_lost() -> None:
    """With the same evidence a block is lost; records, metadata, segments and books can be made anew."""
    nowhere = Evidence(Sight.ABSENT, Sight.UNREADABLE)
    lost = {part for part in Part if a_divergence(part=part, evidence=nowhere).is_lost}
    assert lost == {Part.BLOCK}


# ------------------------------------------------------------------------------------------------------ found again


def test_finding_it_again_keeps_what_the_other_side_said() -> None:
    """A scrub that meets known damage knows less than was found out about it: the verdict and its evidence stay, looks
    and events are added once, and what only one of the two knows is kept."""
    settled = a_divergence(
        id="7c1e90ab",
        verdict=Verdict.PRIMARY_ROT,
        found_ns=1,
        bits=3,
        bit_positions=(1, 2, 3),
        affected=(Affected(b"a", 0, 1),),
        affected_count=1,
        quarantine="7c1e90ab.bad",
        events=(Event(1, "found"), Event(2, "judged")),
        evidence=Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.UNWRITTEN, Witness.CONFIRMS),
    )
    look = Look(at_ns=9, side=Side.PRIMARY, sight=Sight.DIFFERS, source="media")
    scrub = a_divergence(
        found_ns=9,
        changed_ns=9,
        looks=(look,),
        events=(Event(1, "found"), Event(9, "found again")),
        evidence=Evidence(Sight.DIFFERS, writing=Writing.UNWRITTEN),
    )
    again = settled.found_again(scrub)
    assert (again.id, again.found_ns, again.changed_ns) == ("7c1e90ab", 1, 9)
    assert (again.verdict, again.evidence, again.bits) == (settled.verdict, settled.evidence, 3)
    assert (again.affected, again.quarantine) == (settled.affected, "7c1e90ab.bad")
    assert [event.what for event in again.events] == ["found", "judged", "found again"]
    assert again.looks == (look,) == again.found_again(scrub).looks


def test_what_was_damaged_stays_named_when_less_of_it_is_found_again() -> None:
    """Blocks that a pass has stored anew meanwhile are no part of the damage any more; they were, and the record of a
    segment that was lost or cut short names them. A block of a file on the primary that has another id was written."""
    names = [bytes([number]) * 32 for number in range(4)]
    known = a_divergence(side=Side.REPLICA, blocks=tuple(names[:3]), mended=(names[3],))
    again = known.found_again(a_divergence(side=Side.REPLICA, blocks=(names[1],)))
    assert (again.blocks, again.mended) == ((names[1],), (names[3], names[0], names[2]))
    worse = again.found_again(a_divergence(side=Side.REPLICA, blocks=(names[0], names[1])))
    assert (worse.blocks, worse.mended) == ((names[0], names[1]), (names[3], names[2]))
    told = known.found_again(a_divergence(side=Side.REPLICA, blocks=(names[2],), mended=(b"5" * 32,)))
    assert told.mended == (names[3], names[0], names[1], b"5" * 32)
    written = a_divergence(side=Side.PRIMARY, blocks=(names[0],)).found_again(
        a_divergence(side=Side.PRIMARY, blocks=(names[1],))
    )
    assert (written.blocks, written.mended) == ((names[1],), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": b"2" * 16},
        {"evidence": Evidence(Sight.DIFFERS, witness=Witness.CONTRADICTS)},
        {"verdict": Verdict.BOTH_ROT},
    ],
    ids=["other bytes", "another answer", "a verdict"],
)
def test_what_is_new_counts(changes: dict[str, object]) -> None:
    """Damage that has become another, and an answer of the other side, replace what was known."""
    settled = a_divergence(id="7c1e90ab", verdict=Verdict.PRIMARY_ROT)
    found = a_divergence(**changes)
    again = settled.found_again(found)
    assert (again.verdict, again.evidence, again.seen) == (found.verdict, found.evidence, found.seen)


def test_a_history_is_bounded() -> None:
    """A finding that is looked at for months keeps how it began and what was last."""
    found = a_divergence()
    for moment in range(3 * MAX_EVENTS):
        found = found.with_event(moment, f"looked {moment}", bits=moment)
    assert len(found.events) == MAX_EVENTS
    assert [found.events[0].at_ns, found.events[1].at_ns, found.events[-1].at_ns] == [
        0,
        2 * MAX_EVENTS + 1,
        3 * MAX_EVENTS - 1,
    ]
    assert found.bits == found.changed_ns == 3 * MAX_EVENTS - 1


def test_only_open_ones_are_counted() -> None:
    """Repaired, acknowledged and gone ones are divergent no more."""
    states = [a_divergence(state=state, verdict=Verdict.BOTH_ROT) for state in State]
    assert count_open([*states, a_divergence()]) == {"both_rot": 1, "inconclusive": 1}


# ------------------------------------------------------------------------------------------------------------- json


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_any_path_is_json_and_harmless(path: bytes) -> None:
    """Whatever a file is called, the document is JSON, and its text has no control character and no broken UTF-8."""
    found = a_divergence(path=path, affected=(Affected(path, 0, 9, 3, 0), Affected(path, 0, 9, 3, 5)))
    text = msgspec.json.encode(as_document(found)).decode()
    document = json.loads(text)
    assert document["path"].isprintable() and document["path"]
    assert [one["path"] for one in document["affected"]] == [document["path"]] * 2
    assert [one["live"] for one in document["affected"]] == [True, False]


def test_the_document_has_every_field() -> None:
    """Nothing is for people only: each field is a key, ids and checksums are hex, and `lost` says what follows."""
    look = Look(at_ns=1, side=Side.REPLICA, sight=Sight.DIFFERS, source="media", checksum=b"\xab" * 16)
    lost = Evidence(Sight.UNREADABLE, Sight.ABSENT, Writing.UNWRITTEN)
    document = as_document(a_divergence(blocks=(b"\x01" * 32,), looks=(look,), evidence=lost))
    assert set(document) == {*Divergence.__struct_fields__, "lost"}
    assert document["blocks"] == ["01" * 32] and document["expected"] == "31" * 16
    looks = document["looks"]
    assert isinstance(looks, list) and looks[0]["checksum"] == "ab" * 16
    assert document["lost"] is True and as_document(a_divergence())["lost"] is False


@given(any_of(Divergence))
def test_any_divergence_is_json_and_survives_the_book_s_encoding(found: Divergence) -> None:
    """The same value comes back from the book and from the wire, and it can be shown."""
    encoded = msgspec.msgpack.encode(found)
    assert msgspec.msgpack.decode(encoded, type=Divergence) == found
    json.loads(msgspec.json.encode(as_document(found)))


@given(any_of(Receipt), any_of(Suspect))
def test_receipts_and_suspects_survive_too(receipt: Receipt, suspect: Suspect) -> None:
    """So do receipts of repairs and suspect changes."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(receipt), type=Receipt) == receipt
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(suspect), type=Suspect) == suspect
