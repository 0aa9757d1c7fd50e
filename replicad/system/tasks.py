"""Tasks: what a child process can be asked to do, and the loop in it that does it. The other side is system/child.py.

    question   8 bytes length, msgpack [part of the shared memory or -1, name, what is asked, length of the bulk in the
               shared memory that belongs to it]
    answer     8 bytes length, kind, 8 bytes length of the bulk behind it or in the shared memory, msgpack result

One after the other, on one thread. **Never** outlives the process that asks, and says nothing when that is gone.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from replicad.model.block import Buffer
from replicad.model.errors import ReplicadError
from replicad.system.heap import calm_collector, keep_freed_memory

PARTS = 4
"""Parts of the shared memory: so many questions with a bulk are under way, and a child need not wait for the next."""
PART_BYTES = 2560 * 1024
"""A batch of files fits even where nothing of it can be compressed. A longer bulk goes through the pipe."""
NO_PART = -1
LENGTH_BYTES = 8
HEAD = struct.Struct(">QBQ")
"""Of an answer: length of what follows these first eight bytes, kind, length of the bulk."""
RESULT, SHARED, ERROR, DEFECT = 0, 1, 2, 3
"""A result with its bulk behind it; one with its bulk in the shared memory; an error of ours; a traceback."""
_PR_SET_PDEATHSIG = 1

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

encoder = msgspec.msgpack.Encoder()


class Task(Generic[Asked, Answered]):
    """Its name, the type of what is asked and the type of what is answered; both go through msgpack."""

    def __init__(self, name: str, asked: type[Asked], answered: type[Answered] | None) -> None:
        self.name = name
        self.asked: msgspec.msgpack.Decoder[Asked] = msgspec.msgpack.Decoder(asked)
        self.answered: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(answered)


@dataclass(frozen=True, slots=True)
class Bulky:
    """A result with bytes that are too many to be encoded and decoded."""

    result: object
    bulk: Sequence[Buffer]
    """In pieces, to be joined."""


Tasks = Mapping[Task[Any, Any], Callable[..., object]]
"""What a child can do. A function gives its task's answer, or a `Bulky` with it; one that is asked with a bulk takes
that as well, and may look at it until it has answered."""


def serve(tasks: Tasks) -> None:
    """Do what is asked until the other side is gone, and leave without a word. Does not return."""
    _live_no_longer_than(os.getppid())
    keep_freed_memory()
    calm_collector()
    served = _Served(tasks, int(sys.argv[1]))
    asks, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what is printed must not get among the answers
    with suppress(EOFError, BrokenPipeError):
        while True:
            _write(answers, served.answer(_read(asks, int.from_bytes(_read(asks, LENGTH_BYTES), "big"))))
    os._exit(0)


def _live_no_longer_than(parent: int) -> None:
    """A parent that is killed takes this process along, even out of a read that hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class _Served:
    def __init__(self, tasks: Tasks, shared: int) -> None:
        self._tasks = {task.name: (task.asked, run) for task, run in tasks.items()}
        self._questions = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw, int])
        self._shared = memoryview(mmap.mmap(shared, PARTS * PART_BYTES))

    def answer(self, question: bytes) -> list[Buffer]:
        """The message that answers, in pieces."""
        part, name, asked, bulk_bytes = self._questions.decode(question)
        decoder, run = self._tasks[name]
        at = part * PART_BYTES
        bulk = (self._shared[at : at + bulk_bytes],) if bulk_bytes else ()
        try:
            answer = run(decoder.decode(asked), *bulk)
        except ReplicadError as error:
            return _message(ERROR, (type(error).__name__, error.what, error.where, error.hint))
        except Exception:  # a defect of ours: the daemon is told all of it
            return _message(DEFECT, traceback.format_exc().encode("utf-8", "backslashreplace").decode())
        if not isinstance(answer, Bulky):
            return _message(RESULT, answer)
        size = sum(map(len, answer.bulk))
        if part == NO_PART or size > PART_BYTES:
            return [*_message(RESULT, answer.result, size, behind=size), *answer.bulk]
        self._share(part, answer.bulk)
        return _message(SHARED, answer.result, size)

    def _share(self, part: int, bulk: Sequence[Buffer]) -> None:
        view, at = self._shared, part * PART_BYTES
        for piece in bulk:
            end = at + len(piece)
            view[at:end] = piece
            at = end


def _message(kind: int, result: object, bulk_bytes: int = 0, *, behind: int = 0) -> list[Buffer]:
    encoded = encoder.encode(result)
    return [HEAD.pack(HEAD.size - LENGTH_BYTES + len(encoded) + behind, kind, bulk_bytes), encoded]


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _write(fd: int, message: Sequence[Buffer]) -> None:
    for piece in message:
        with memoryview(piece) as view:
            done = 0
            while done < len(view):
                done += os.write(fd, view[done:])
