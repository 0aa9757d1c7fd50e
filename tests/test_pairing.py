"""Pairing lines: read as they are printed, and refused in words when they are not."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.errors import UsageError
from replicad.model.pairing import (
    PrimaryLine,
    ReplicaLine,
    fingerprint,
    parse_key,
    parse_primary_line,
    parse_replica_line,
    split_address,
)

BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(range(32))
KEY = f"ssh-ed25519 {b64encode(BLOB).decode()}"
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@given(NAMES, st.sampled_from(["127.0.0.1:7022", "[::1]:22", "backup.example.org:65535"]))
def test_a_replica_line_is_read_as_it_was_printed(name: str, address: str) -> None:
    """Formatting and parsing are inverse."""
    line = ReplicaLine(name, address, KEY)
    assert parse_replica_line(str(line)) == line
    assert str(line) == f"replicad-replica {name} {address} {KEY}"


@given(NAMES, st.lists(NAMES, min_size=1, max_size=5, unique=True))
def test_a_primary_line_is_read_as_it_was_printed(name: str, datasets: list[str]) -> None:
    """Formatting and parsing are inverse."""
    line = PrimaryLine(name, KEY, tuple(datasets))
    assert parse_primary_line(str(line)) == line
    assert str(line) == f"replicad-primary {name} {KEY} {','.join(datasets)}"


def test_white_space_around_and_between_does_not_matter() -> None:
    """A line that was wrapped or pasted with a newline still pairs."""
    assert parse_replica_line(f"  replicad-replica fra1\n 10.0.0.1:7022   {KEY}\n").name == "fra1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "begins with"),
        ("hello", "begins with"),
        (f"replicad-primary ams1 {KEY} www", "belongs to the other side"),
        (f"replicad-replica fra1 {KEY}", "4 words instead of 5"),
        (f"replicad-replica fra1 10.0.0.1:7022 {KEY} extra", "6 words"),
        (f"replicad-replica -x 10.0.0.1:7022 {KEY}", "no name"),
        (f"replicad-replica ../x 10.0.0.1:7022 {KEY}", "no name"),
        (f"replicad-replica fra1 10.0.0.1 {KEY}", "HOST:PORT"),
        (f"replicad-replica fra1 10.0.0.1:0 {KEY}", "HOST:PORT"),
        (f"replicad-replica fra1 10.0.0.1:70000 {KEY}", "HOST:PORT"),
        (f"replicad-replica fra1 ::1:7022 {KEY}", "brackets"),
        (f"replicad-replica fra1 [::g]:7022 {KEY}", "::g"),
        (f"replicad-replica fra1 :7022 {KEY}", "HOST:PORT"),
        ("replicad-replica fra1 10.0.0.1:7022 ssh-rsa AAAA", "no public key"),
        ("replicad-replica fra1 10.0.0.1:7022 ssh-ed25519 AAAA", "no Ed25519 key"),
        ("replicad-replica fra1 10.0.0.1:7022 ssh-ed25519 %%%%", "no base64"),
        (f"replicad-replica fra1 10.0.0.1:7022 {KEY[:-4]}", "damaged"),
    ],
)
def test_what_is_wrong_with_a_replica_line_is_said(line: str, said: str) -> None:
    """Each mistake has its own words and the form of a right line."""
    with pytest.raises(UsageError) as caught:
        parse_replica_line(line)
    assert said in str(caught.value) and "replicad-replica NAME HOST:PORT" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"replicad-replica fra1 10.0.0.1:7022 {KEY}", "belongs to the other side"),
        (f"replicad-primary ams1 {KEY}", "4 words instead of 5"),
        (f"replicad-primary ams1 {KEY} www,", "no name"),
        (f"replicad-primary ams1 {KEY} www,www", "twice"),
        (f"replicad-primary ams1 {KEY} a/b", "no name"),
    ],
)
def test_what_is_wrong_with_a_primary_line_is_said(line: str, said: str) -> None:
    """Each mistake has its own words and the form of a right line."""
    with pytest.raises(UsageError) as caught:
        parse_primary_line(line)
    assert said in str(caught.value) and "replicad-primary NAME" in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_line_or_a_usage_error(text: str) -> None:
    """Nothing else comes out, and control characters of the text are not printed."""
    for parse in (parse_replica_line, parse_primary_line):
        for candidate in (text, f"replicad-replica {text}", f"replicad-primary {text}"):
            try:
                parse(candidate)
            except UsageError as error:
                assert str(error).isprintable()


def test_a_key_loses_its_comment_and_keeps_its_blob() -> None:
    """The same key is the same text everywhere."""
    assert parse_key(f"{KEY} root@ams1 of the office") == KEY


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    """What replicad shows can be compared with what OpenSSH shows."""
    path = tmp_path / "key.pub"
    path.write_text(f"{KEY} comment\n")
    shown = subprocess.run(["ssh-keygen", "-l", "-f", path], capture_output=True, text=True, check=True).stdout
    assert fingerprint(KEY) == shown.split()[1]


def test_addresses() -> None:
    """Hosts lose their brackets."""
    assert split_address("[2001:db8::1]:7022") == ("2001:db8::1", 7022)
    assert split_address("fra1.example.org:1") == ("fra1.example.org", 1)
