"""Pieces and what stands on them: bytes come out as they came in, and waiting costs what the bytes are."""

from __future__ import annotations

import inspect
import sys
from random import Random

from asyncssh import connection
from hypothesis import given
from hypothesis import strategies as st

from replicad.link.inbox import Inbox
from replicad.link.pieces import JOINED_BYTES, SMALL_BYTES, Pieces

SIZES = (0, 1, 7, SMALL_BYTES - 1, SMALL_BYTES, 3 * SMALL_BYTES)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 5), max_size=120))
def test_a_queue_of_pieces_is_like_one_run_of_bytes(seed: int, steps: list[int]) -> None:
    """Whatever is kept, looked at, taken and skipped in whatever order, it is what one bytes object would give."""
    source, pieces, model = Random(seed), Pieces(), b""
    for step in steps:
        size = source.choice(SIZES)
        if step < 2:
            data = source.randbytes(size)
            pieces.keep(data)
            model += data
        elif step == 2:
            start = source.randrange(len(model) + 2)
            assert pieces.look(start, start + size) == model[start : start + size]
        elif step == 3:
            pieces.skip(size)
            model = model[size:]
        elif step == 4 and pieces:
            taken = pieces.take()
            assert taken
            assert model.startswith(taken)
            model = model[len(taken) :]
        elif step == 5 and source.random() < 0.2:
            assert pieces.take_all() == model
            model = b""
        assert len(pieces) == len(model)
    assert pieces.take_all() == model
    assert not pieces


def test_single_bytes_are_joined() -> None:
    """A flood of single bytes is held in few pieces, and takes hardly more memory than its bytes."""
    pieces = Pieces()
    for _ in range(3 * JOINED_BYTES):
        pieces.keep(b"x")
    taken = []
    while pieces:
        taken.append(pieces.take())
    assert len(taken) <= 4
    assert sum(map(sys.getsizeof, taken)) < 4 * JOINED_BYTES


def test_what_was_dropped_is_gone() -> None:
    """Nothing of it comes after that, and the queue goes on as a new one."""
    pieces = Pieces()
    pieces.keep(bytes(2 * SMALL_BYTES))
    pieces.skip(5)
    pieces.drop()
    assert len(pieces) == 0
    pieces.keep(b"new")
    assert pieces.take() == b"new"


@given(st.integers(0, 2**32), st.lists(st.integers(0, 3), max_size=80))
def test_an_inbox_is_cut_like_bytes(seed: int, steps: list[int]) -> None:
    """What asyncssh does to the bytes it has received gives the same with an inbox in their place."""
    source = Random(seed)
    model: bytes = source.randbytes(10)
    inbox: Inbox | bytes = Inbox(model)
    for step in steps:
        size = source.choice(SIZES)
        if step == 0:
            data = source.randbytes(size)
            model += data
            inbox += data
        elif step == 1:
            assert inbox[:size] == model[:size]
        elif step == 2:
            assert inbox[size : size + 16] == model[size : size + 16]
        else:
            model, inbox = model[size:], inbox[size:]
        assert len(inbox) == len(model)
        assert bool(inbox) == bool(model)


def test_asyncssh_uses_an_inbox_as_it_can_be_used() -> None:
    """Its packet code does to what it has received nothing but what an inbox can do."""
    code = inspect.getsource(connection.SSHConnection)
    uses = {line.strip() for line in code.splitlines() if "_inpbuf" in line}
    assert uses == {
        "self._inpbuf = b''",
        "self._inpbuf += data",
        "while self._inpbuf and self._recv_handler():",
        "idx = self._inpbuf.find(b'\\n', 0, _MAX_BANNER_LINE_LEN)",  # before there is an inbox, as the next three
        "if len(self._inpbuf) >= _MAX_BANNER_LINE_LEN:",
        "version = self._inpbuf[:idx]",
        "self._inpbuf = self._inpbuf[idx+1:]",
        "if len(self._inpbuf) < self._recv_blocksize:",
        "self._packet = self._inpbuf[:self._recv_blocksize]",
        "self._inpbuf = self._inpbuf[self._recv_blocksize:]",
        "if len(self._inpbuf) < rem:",
        "rest = self._inpbuf[:rem-self._recv_macsize]",
        "mac = self._inpbuf[rem-self._recv_macsize:rem]",
        "self._inpbuf = self._inpbuf[rem:]",
        "if is_async and self._inpbuf:",
    }
