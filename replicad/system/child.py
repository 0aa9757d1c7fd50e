"""Child: a process of our own that does named tasks for this one, one after the other, on one thread.

**Owns** its start, its end and what lies between: two pipes, on which answers come in the order of the questions, and
shared memory for the bulk of an answer, which a pipe would have to copy twice. **Never** knows what the tasks do: the
module that is started serves them (system/tasks.py).

Why a process: many short system calls from several threads of one interpreter mostly hand its lock to and fro. Why not
multiprocessing: when the daemon is killed nothing must be left behind, neither a process nor a word on the terminal.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from replicad.model import errors
from replicad.model.block import Buffer
from replicad.model.errors import ReplicadError
from replicad.system.tasks import (
    ERROR,
    HEAD,
    LENGTH_BYTES,
    NO_PART,
    PART_BYTES,
    PARTS,
    RESULT,
    SHARED,
    Answered,
    Asked,
    Task,
    encoder,
)

PIPE_BYTES = 1024 * 1024
"""What an unprivileged process may ask for: what is known of a batch of files is written and read at once."""
INTERPRETER = "/proc/self/exe"
"""The one that runs now, also where this user may not go down its path, or where an update has put another in place."""
END_S = 2.0
"""How long a child that was told to end may finish its task before it is killed; a task takes milliseconds."""
REAP_S = 0.2
"""A process that closed its pipes is gone at once; how long its exit status is waited for."""


class Doer(Protocol):
    """Something that can be asked to do tasks: a child process, or whatever a test puts in its place."""

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""

    async def call(self, task: Task[Asked, Answered], asked: Asked) -> Answered:
        """Have it do a task."""

    async def call_for_bulk(self, task: Task[Asked, Answered], asked: Asked) -> tuple[Answered, bytes]:
        """Have it do a task that answers with a `Bulky`: its result and its bulk."""

    async def call_with_bulk(self, task: Task[Asked, Answered], asked: Asked, bulk: Sequence[Buffer]) -> Answered:
        """Have it do a task that is asked with a bulk, in pieces, of PART_BYTES together at most."""

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
        ReplicadError when the child died or cannot be started. For the event loop's own thread."""
        answer = await (await self._connected()).ask(NO_PART, task.name, asked)
        result: Answered = task.answered.decode(answer.result)
        return result

    async def call_for_bulk(self, task: Task[Asked, Answered], asked: Asked) -> tuple[Answered, bytes]:
        """The same for a task that answers with a `Bulky`. A few are under way at once, more wait for their turn."""
        line = await self._connected()
        answer = await line.ask(await line.parts.get(), task.name, asked)
        return task.answered.decode(answer.result), answer.bulk

    async def call_with_bulk(self, task: Task[Asked, Answered], asked: Asked, bulk: Sequence[Buffer]) -> Answered:
        """The same for a task that is asked with a bulk: pieces of PART_BYTES together at most."""
        line = await self._connected()
        answer = await line.ask(await line.parts.get(), task.name, asked, bulk)
        result: Answered = task.answered.decode(answer.result)
        return result

    @property
    def has_room(self) -> bool:
        """Whether a question with a bulk need not wait for others to be answered first."""
        return self._line is not None and not self._line.parts.empty()

    def post(self, task: Task[Asked, Any], asked: Asked) -> None:
        """Have the child do it if it runs, without waiting; whatever comes of it is nobody's business."""
        if self._line and not self._line.lost:
            self._line.ask(NO_PART, task.name, asked).add_done_callback(_heard)

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
                line = _Line(self._module)
                await line.connect()
                self._line = line
            return self._line


class _Answer(NamedTuple):
    result: memoryview
    bulk: bytes


class _Question(NamedTuple):
    part: int
    answer: asyncio.Future[_Answer]


def _heard(answer: asyncio.Future[_Answer]) -> None:
    if not answer.cancelled():
        answer.exception()


class _Line(asyncio.Protocol):
    """One running child and what lies between. Runs on the event loop and never waits for the child."""

    def __init__(self, module: str) -> None:
        memory = os.memfd_create("replicad")
        try:
            os.truncate(memory, PARTS * PART_BYTES)
            self._shared = memoryview(mmap.mmap(memory, PARTS * PART_BYTES))
            self.process = _start(module, memory)
        finally:
            os.close(memory)
        self.lost: ReplicadError | None = None
        self.parts: asyncio.Queue[int] = asyncio.Queue()
        """Parts of the shared memory that no question has; a cancelled one keeps its part until it is answered."""
        for part in range(PARTS):
            self._free(part)
        self._waiting: deque[_Question] = deque()
        self._chunks: list[bytes] = []
        self._size, self._wanted = 0, LENGTH_BYTES
        self._gone = asyncio.Event()

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        assert self.process.stdin and self.process.stdout
        for pipe in (self.process.stdin, self.process.stdout):
            _widen(pipe.fileno())
        self._reading, _ = await loop.connect_read_pipe(lambda: self, self.process.stdout)
        self._writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self.process.stdin)

    def ask(self, part: int, name: str, asked: object, bulk: Sequence[Buffer] = ()) -> asyncio.Future[_Answer]:
        """Send a question; its answer."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        if self.lost:
            self._free(part)
            answer.set_exception(self.lost)
            return answer
        size = self._share(part, bulk) if bulk else 0
        self._waiting.append(_Question(part, answer))
        message = bytearray(LENGTH_BYTES)
        encoder.encode_into((part, name, asked, size), message, LENGTH_BYTES)
        message[:LENGTH_BYTES] = (len(message) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "big")
        self._writing.write(message)
        return answer

    def _share(self, part: int, bulk: Sequence[Buffer]) -> int:
        """Put a question's bulk into its part of the shared memory; its length."""
        view, first = self._shared, part * PART_BYTES
        at = first
        for piece in bulk:
            end = at + len(piece)
            view[at:end] = piece
            at = end
        assert at - first <= PART_BYTES, "a bulk that is too large was asked with"
        return at - first

    async def close(self) -> None:
        self._writing.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._gone.wait()
        if not self._gone.is_set():
            self.process.kill()
            self._reading.close()
        self._fail(ReplicadError("the process that reads for the daemon was ended"))
        self._reap()

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        while self._size >= self._wanted:
            whole = b"".join(self._chunks)
            size = LENGTH_BYTES + int.from_bytes(whole[:LENGTH_BYTES], "big")
            if len(whole) < size:
                self._chunks, self._wanted = [whole], size
                return
            rest = whole[size:]
            self._chunks, self._size, self._wanted = [rest], len(rest), LENGTH_BYTES
            self._hear(memoryview(whole)[:size])

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()
        text = f"the process {self.process.pid} that reads for the daemon {self._reap()}"
        self._fail(ReplicadError(text, hint="it is started again for the next pass"))
        if not self._writing.is_closing():
            self._writing.abort()

    def _hear(self, message: memoryview) -> None:
        part, answer = self._waiting.popleft()
        _, kind, bulk = HEAD.unpack_from(message)
        if not answer.done():  # else nobody waits for it any more
            self._answer(answer, part, kind, bulk, message[HEAD.size :])
        self._free(part)

    def _answer(self, answer: asyncio.Future[_Answer], part: int, kind: int, bulk: int, rest: memoryview) -> None:
        if kind == SHARED:
            at = part * PART_BYTES
            answer.set_result(_Answer(rest, bytes(self._shared[at : at + bulk])))
        elif kind == RESULT:
            end = len(rest) - bulk
            answer.set_result(_Answer(rest[:end], bytes(rest[end:])))
        elif kind == ERROR:
            answer.set_exception(_error_of(*msgspec.msgpack.decode(rest, type=tuple[str, str, str, str])))
        else:
            answer.set_exception(RuntimeError(msgspec.msgpack.decode(rest, type=str)))

    def _fail(self, error: ReplicadError) -> None:
        self.lost = self.lost or error
        while self._waiting:
            part, answer = self._waiting.popleft()
            self._free(part)
            if not answer.done():
                answer.set_exception(self.lost)

    def _free(self, part: int) -> None:
        if part != NO_PART:
            self.parts.put_nowait(part)

    def _reap(self) -> str:
        """How it ended; what stands still in the kernel is left to whoever starts the next process."""
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(REAP_S)
            return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return "fell silent"


def _start(module: str, memory: int) -> subprocess.Popen[bytes]:
    """A session of its own keeps the terminal's signals away; the modules come from where this process has its own."""
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(memory)],
            executable=INTERPRETER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=(memory,),
            start_new_session=True,
        )
    except OSError as error:
        raise ReplicadError(f"the process for {module} cannot be started: {error.strerror}") from error


def _error_of(name: str, what: str, where: str, hint: str) -> ReplicadError:
    kind: type[ReplicadError] = getattr(errors, name)
    return kind(what, where=where, hint=hint)


def _widen(fd: int) -> None:
    with suppress(OSError):  # a user who has many pipes gets small ones; they do as well
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
