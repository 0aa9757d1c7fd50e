"""Intake: a paused channel holds one window at most, whatever the packets, and nothing is lost or granted twice."""

from __future__ import annotations

import inspect
import sys
from random import Random

from asyncssh import channel
from hypothesis import given
from hypothesis import strategies as st

from replicad.link.intake import WINDOW_ADJUST, Intake
from replicad.link.pieces import JOINED_BYTES, SMALL_BYTES

WINDOW_BYTES = 64 * 1024


class Ssh:
    """What an intake needs of asyncssh's channel."""

    def __init__(self, window: int = WINDOW_BYTES) -> None:
        self._recv_window = self.window = window
        self.granted = 0

    def get_recv_window(self) -> int:
        return self.window

    def send_packet(self, kind: int, size: bytes) -> None:
        assert kind == WINDOW_ADJUST
        self.granted += int.from_bytes(size, "big")


def test_the_fake_is_like_the_real_one() -> None:
    """asyncssh's channel still has what an intake stands in for, under these names and numbers."""
    assert channel.MSG_CHANNEL_WINDOW_ADJUST == WINDOW_ADJUST
    source = inspect.getsource(channel.SSHChannel)
    assert "self._accept_data(data)" in source
    assert "self._accept_data(data, datatype)" in source
    assert "if datalen > self._recv_window" in source


@given(st.integers(0, 2**32), st.lists(st.integers(0, 3), max_size=200))
def test_what_waits_and_what_may_come_are_one_window(seed: int, steps: list[int]) -> None:
    """Whatever arrives and is taken in whatever order: the bytes come out as they came in, what waits and what the peer
    may still send are never more than one window, and never so little that both sides wait for each other."""
    source, ssh = Random(seed), Ssh()
    intake = Intake(ssh)
    came, taken = b"", b""
    for step in steps:
        if step and ssh._recv_window:
            data = source.randbytes(min(ssh._recv_window, source.choice((1, 7, SMALL_BYTES, 20_000))))
            intake.arrived(len(data))
            intake.keep(data)
            came += data
        elif intake:
            taken += intake.take()
        intake.grant()
        waiting = len(came) - len(taken)
        assert waiting + ssh._recv_window <= WINDOW_BYTES
        assert waiting or ssh._recv_window >= WINDOW_BYTES // 2
        assert len(came) + ssh._recv_window == WINDOW_BYTES + ssh.granted
    while intake:
        taken += intake.take()
    assert taken == came


def test_tiny_packets_are_joined() -> None:
    """A window of single bytes takes hardly more memory than a window."""
    intake = Intake(Ssh())
    for _ in range(WINDOW_BYTES):
        intake.arrived(1)
        intake.keep(b"x")
    pieces = []
    while intake:
        pieces.append(intake.take())
    assert len(pieces) <= WINDOW_BYTES // JOINED_BYTES + 1
    assert sum(map(sys.getsizeof, pieces)) < 2 * WINDOW_BYTES
