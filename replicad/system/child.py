"""Child: a process of our own that runs named tasks for this one, one after the other, on one thread.

**Owns** its start, its end and the two pipes between: length-prefixed msgpack, answers in the order of the questions.
**Never** knows what the tasks do: the module that is started serves them (`serve`), the caller declares them (`Task`).

Why a process: many short system calls from several threads of one interpreter mostly hand its lock to and fro. Why not
multiprocessing: when the daemon is killed nothing must be left behind, neither a process nor a word on the terminal.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from replicad.model import errors
from replicad.model.errors import ReplicadError
from replicad.system.heap import calm_collector, keep_freed_memory

PIPE_BYTES = 1024 * 1024
"""What an unprivileged process may ask for: an answer of a megabyte is written and read in a few calls."""
END_S = 2.0
"""How long a child that was told to end may finish its task before it is killed; a task takes milliseconds."""
REAP_S = 0.2
"""A process that closed its pipes is gone at once; how long its exit status is waited for."""
_LENGTH_BYTES = 8
_ANSWER, _ERROR, _DEFECT = 0, 1, 2
"""First byte of an answer: a result, an error of ours, a defect."""
_PR_SET_PDEATHSIG = 1

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

_encoder = msgspec.msgpack.Encoder()


class Task(Generic[Asked, Answered]):
    """A question that a child can be asked: its name, the type of what it is given and the type of what it answers."""

    def __init__(self, name: str, asked: type[Asked], answered: type[Answered] | None) -> None:
        self.name = name
        self.asked: msgspec.msgpack.Decoder[Asked] = msgspec.msgpack.Decoder(asked)
        self.answered: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(answered)


Tasks = Mapping[Task[Any, Any], Callable[[Any], object]]
"""What a child can do."""


class Doer(Protocol):
    """Something that can be asked to do tasks: a child process, or whatever a test puts in its place."""

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""

    async def call(self, task: Task[Asked, Answered], asked: Asked) -> Answered:
        """Have it do a task."""

    def post(self, task: Task[Asked, Any], asked: Asked) -> None:
        """Have it do a task, if it runs, without waiting."""

    async def close(self) -> None:
        """End it."""


class Child:
    """One child process; it is started when it is first asked, and again when it is asked after it died."""

    def __init__(self, module: str) -> None:
        """`module` is run with `python -m`; it calls `serve`."""
        self._module = module
        self._line: _Line | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._line.process.pid if self._line and not self._line.lost else None

    async def call(self, task: Task[Asked, Answered], asked: Asked) -> Answered:
        """Have the child do it. Raises what the task raised if that is a ReplicadError, RuntimeError for a defect, and
        ReplicadError when the child died; it must be asked from the event loop's own thread."""
        answer = await (await self._connected()).ask(task.name, asked)
        result: Answered = task.answered.decode(answer)
        return result

    def post(self, task: Task[Asked, Any], asked: Asked) -> None:
        """Have the child do it if it runs, without waiting; whatever comes of it is nobody's business."""
        if self._line and not self._line.lost:
            self._line.ask(task.name, asked).add_done_callback(_heard)

    async def close(self) -> None:
        """End it: orderly when it is idle, by a signal when it does not come to its end."""
        line, self._line = self._line, None
        if line:
            await line.close()

    async def _connected(self) -> _Line:
        async with self._starting:
            if self._line and self._line.lost:
                await self.close()
            if self._line is None:
                line = _Line(_start(self._module))
                await line.connect()
                self._line = line
            return self._line


def _heard(answer: asyncio.Future[memoryview]) -> None:
    if not answer.cancelled():
        answer.exception()


def _start(module: str) -> subprocess.Popen[bytes]:
    """A session of its own keeps the terminal's signals away; the path is this process's, however that was set."""
    try:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
    except OSError as error:
        raise ReplicadError(f"the process for {module} cannot be started: {error.strerror}", where=module) from error


class _Line(asyncio.Protocol):
    """The pipes to one running child. Runs on the event loop and never waits for the child."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lost: ReplicadError | None = None
        self._waiting: deque[asyncio.Future[memoryview]] = deque()
        self._chunks: list[bytes] = []
        self._size, self._wanted = 0, _LENGTH_BYTES
        self._gone = asyncio.Event()

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        assert self.process.stdin and self.process.stdout
        for pipe in (self.process.stdin, self.process.stdout):
            _widen(pipe.fileno())
        self._reading, _ = await loop.connect_read_pipe(lambda: self, self.process.stdout)
        self._writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self.process.stdin)

    def ask(self, name: str, asked: object) -> asyncio.Future[memoryview]:
        """Send a question; its answer."""
        answer: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        if self.lost:
            answer.set_exception(self.lost)
            return answer
        self._waiting.append(answer)
        message = bytearray(_LENGTH_BYTES)
        _encoder.encode_into((name, asked), message, _LENGTH_BYTES)
        message[:_LENGTH_BYTES] = (len(message) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
        self._writing.write(message)
        return answer

    async def close(self) -> None:
        self._writing.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._gone.wait()
        if not self._gone.is_set():
            self.process.kill()
            self._reading.close()
        self._fail(ReplicadError("the process was ended", where=f"pid {self.process.pid}"))
        self._reap()

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        while self._size >= self._wanted:
            whole = b"".join(self._chunks)
            size = _LENGTH_BYTES + int.from_bytes(whole[:_LENGTH_BYTES], "big")
            if len(whole) < size:
                self._chunks, self._wanted = [whole], size
                return
            rest = whole[size:]
            self._chunks, self._size, self._wanted = [rest], len(rest), _LENGTH_BYTES
            self._answer(memoryview(whole)[_LENGTH_BYTES:size])

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()
        how = self._reap()
        pid = self.process.pid
        self._fail(
            ReplicadError(f"the process {pid} that reads for the daemon {how}", hint="it is started again when needed")
        )
        if not self._writing.is_closing():
            self._writing.abort()

    def _answer(self, message: memoryview) -> None:
        answer, kind = self._waiting.popleft(), message[0]
        if answer.done():
            return  # nobody waits for it any more
        if kind == _ANSWER:
            answer.set_result(message[1:])
        elif kind == _ERROR:
            answer.set_exception(_error_of(*msgspec.msgpack.decode(message[1:], type=tuple[str, str, str, str])))
        else:
            answer.set_exception(RuntimeError(str(message[1:], "utf-8")))

    def _fail(self, error: ReplicadError) -> None:
        self.lost = self.lost or error
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(self.lost)

    def _reap(self) -> str:
        """How it ended; what stands still in the kernel is left to whoever starts the next process."""
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(REAP_S)
            return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return "fell silent"


def _error_of(name: str, what: str, where: str, hint: str) -> ReplicadError:
    kind: type[ReplicadError] = getattr(errors, name)
    return kind(what, where=where, hint=hint)


def _widen(fd: int) -> None:
    with suppress(OSError):  # a process that has many pipes gets small ones; they do as well
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


# in the child


def serve(tasks: Tasks) -> None:
    """Do what is asked until the other side is gone, and leave without a word. Does not return."""
    _live_no_longer_than(os.getppid())
    keep_freed_memory()
    calm_collector()
    asks, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what is printed must not get among the answers
    named = {task.name: (task.asked, run) for task, run in tasks.items()}
    names: msgspec.msgpack.Decoder[tuple[str, msgspec.Raw]] = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
    with suppress(EOFError, BrokenPipeError):
        while True:
            name, asked = names.decode(_read(asks, int.from_bytes(_read(asks, _LENGTH_BYTES), "big")))
            decoder, run = named[name]
            _write(answers, _answer_of(decoder, run, asked))
    os._exit(0)


def _live_no_longer_than(parent: int) -> None:
    """A parent that is killed takes this process along, even out of a read that hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _answer_of(decoder: msgspec.msgpack.Decoder[Any], run: Callable[[Any], object], asked: msgspec.Raw) -> bytearray:
    message = bytearray(_LENGTH_BYTES + 1)
    kind, result = _ANSWER, None
    try:
        result = run(decoder.decode(asked))
    except ReplicadError as error:
        kind, result = _ERROR, (type(error).__name__, error.what, error.where, error.hint)
    except Exception:  # a defect of ours: the daemon is told all of it
        message += traceback.format_exc().encode("utf-8", "backslashreplace")
        kind = _DEFECT
    if kind != _DEFECT:
        _encoder.encode_into(result, message, len(message))
    message[:_LENGTH_BYTES] = (len(message) - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "big")
    message[_LENGTH_BYTES] = kind
    return message


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _write(fd: int, message: bytearray) -> None:
    with memoryview(message) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])
