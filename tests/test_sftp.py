"""SFTP packets: what is asked becomes a request or PeerError, and what is answered can be read by a real client."""

from __future__ import annotations

import stat

import pytest
from asyncssh.packet import SSHPacket
from asyncssh.sftp import SFTPAttrs, SFTPName
from hypothesis import given
from hypothesis import strategies as st

from kit_view import reading, text
from replicad.link import sftp
from replicad.link.sftp import Attributes, Request, Verb
from replicad.model.errors import PeerError

NUMBERS = st.integers(0, 2**32 - 1)
MODES = st.integers(0, 0o177777)


def fields(packet: bytes) -> SSHPacket:
    """The fields of an answer behind its length."""
    assert int.from_bytes(packet[:4], "big") == len(packet) - 4
    return SSHPacket(packet[4:])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error_of_the_peer(packet: bytes) -> None:
    """Nothing else comes out of a packet, whatever is in it."""
    try:
        assert isinstance(sftp.parse(packet), Request)
    except PeerError:
        pass


@given(st.sampled_from(Verb), NUMBERS, st.binary(max_size=50), st.integers(0, 2**64 - 1), NUMBERS)
def test_a_packet_that_ends_early_is_an_error(verb: Verb, id: int, name: bytes, offset: int, size: int) -> None:
    """Every request is read field by field, and none of its beginnings is taken for it."""
    rest = reading(name, offset, size) if verb == Verb.READ else text(name) + size.to_bytes(4, "big")
    packet = bytes([verb]) + id.to_bytes(4, "big") + rest
    found = sftp.parse(packet)
    assert (found.verb, found.id) == (verb, id)
    if verb == Verb.READ:
        assert found == Request(verb, id, name, offset, size)
        with pytest.raises(PeerError):
            sftp.parse(packet[:-1])
    if verb == Verb.OPEN:
        assert (found.text, found.flags) == (name, size)


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=255),
            st.builds(Attributes, MODES, st.integers(0, 2**63), NUMBERS, NUMBERS, st.integers(-(2**63), 2**63 - 1)),
        ),
        max_size=sftp.PAGE_NAMES,
    )
)
def test_a_directory_is_read_by_a_real_client(entries: list[tuple[bytes, Attributes]]) -> None:
    """Names, sizes, modes, owners and times arrive as they were given, and a full page fits into a packet."""
    packet = sftp.names(7, entries)
    assert len(packet) <= sftp.MAX_PACKET_BYTES
    body = fields(packet)
    assert (body.get_byte(), body.get_uint32(), body.get_uint32()) == (104, 7, len(entries))
    for name, about in entries:
        found = SFTPName.decode(body, 3)
        assert (found.filename, found.attrs.size, found.attrs.uid) == (name, about.size, about.uid)
        assert (found.attrs.permissions, found.attrs.gid, found.attrs.mtime) == (about.mode, about.gid, about.mtime_s)
        assert found.longname.endswith(b" " + name)
    body.check_end()


def test_the_longest_page_fits_into_a_packet() -> None:
    """With the longest names and the largest numbers."""
    about = Attributes(0o177777, 2**63, 2**32 - 1, 2**32 - 1, 2**62)
    packet = sftp.names(7, [(b"x" * 255, about)] * sftp.PAGE_NAMES)
    assert len(packet) - 4 <= sftp.MAX_PACKET_BYTES


def test_times_that_the_protocol_cannot_tell_are_its_ends() -> None:
    """Before 1970 and behind 2106 nothing wraps around."""
    assert Attributes(0, mtime_ns=-(10**18)).mtime_s == 0
    assert Attributes(0, mtime_ns=2**62).mtime_s == 2**32 - 1


def test_answers_are_those_of_the_protocol() -> None:
    """Each kind of answer has its type, the number of its request, and its fields."""
    body = fields(sftp.attributes(9, Attributes(stat.S_IFREG | 0o640, 5, 1, 2, 3_000_000_000)))
    assert (body.get_byte(), body.get_uint32()) == (105, 9)
    assert SFTPAttrs.decode(body, 3).permissions == stat.S_IFREG | 0o640
    body = fields(sftp.status(9, sftp.Code.FAILURE, "x" * 10_000))
    assert (body.get_byte(), body.get_uint32(), body.get_uint32()) == (101, 9, 4)
    assert len(body.get_string()) == sftp.MAX_TEXT_CHARACTERS and body.get_string() == b"en"
    body = fields(sftp.limits(9, 17))
    assert (body.get_byte(), body.get_uint32()) == (201, 9)
    sizes = [body.get_uint64() for _ in range(4)]
    assert sizes == [sftp.MAX_PACKET_BYTES, sftp.MAX_READ_BYTES, sftp.MAX_READ_BYTES, 17]
    assert len(sftp.data(9, bytes(sftp.MAX_READ_BYTES))) <= sftp.MAX_PACKET_BYTES
