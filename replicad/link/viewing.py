"""Viewing: a session of the SFTP view, and the list of those under way.

**Owns** the handles of a session and their limit. Requests are answered one after the other, short answers to what has
arrived already go together, and none is looked at before what was answered has gone: so a client that asks and does
not read makes this side hold next to nothing. **Never** does anything that changes something: whatever would write is
refused by its verb alone. What a path means and what a file holds is the `View`'s to say.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol, TypeVar

from replicad.link import sftp
from replicad.link.channel import Stream
from replicad.link.sftp import Attributes, Code, Request, Verb
from replicad.model.block import Buffer
from replicad.model.errors import PeerError, RefusedError, ReplicadError, UsageError
from replicad.model.show import show_path

REST_S = 30.0
"""A view that is asked nothing for this long, or whose client takes nothing, lets go of all files."""
MAX_PER_VIEWER = 16
"""Views of one viewer: rclone opens about a dozen. The rest is for the others."""
TOGETHER_BYTES = 128 * 1024
"""Answers are sent together up to here: packets of SSH that are not full cost as much as full ones."""
READ_ONLY = "this is a view of history: it is read-only"
_LENGTH_BYTES = 4
Held = TypeVar("Held")


class OpenFile(Protocol):
    """A file that is being read."""

    @property
    def attributes(self) -> Attributes: ...


class OpenDirectory(Protocol):
    """A directory that is being listed."""


class View(Protocol):
    """What a viewer sees. Paths are absolute, and links are followed unless it says otherwise.

    Raises UsageError for what is not there, RefusedError for what this viewer may not see, another ReplicadError for
    what cannot be read or proven."""

    async def canonical(self, path: bytes) -> bytes:
        """The path without links and dots; as far as it exists."""

    async def look(self, path: bytes, *, follow: bool) -> Attributes: ...

    async def target(self, path: bytes) -> bytes:
        """Where a link leads."""

    async def open_file(self, path: bytes) -> OpenFile: ...

    async def open_directory(self, path: bytes) -> OpenDirectory: ...

    async def read(self, file: OpenFile, offset: int, size: int) -> bytes:
        """Up to `size` proven bytes; none at the end, and only there."""

    async def page(self, directory: OpenDirectory) -> list[tuple[bytes, Attributes]]:
        """The next names, PAGE_NAMES at most; none at the end."""

    def rest(self) -> None:
        """Hold nothing open until something is asked again."""

    async def close(self) -> None: ...


class Viewing:
    """One session, from INIT to the end of its stream, which calls back as it does a `Channel`."""

    def __init__(self, stream: Stream, viewer: str, view: View, max_handles: int) -> None:
        self.viewer = viewer
        self._stream, self._view, self._max_handles = stream, view, max_handles
        self._taken = bytearray()
        self._arrived, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._reading, self._ended = True, False
        self._files: dict[bytes, OpenFile] = {}
        self._directories: dict[bytes, OpenDirectory] = {}
        self._numbers = itertools.count(1)

    # What the stream calls.

    def data_received(self, data: Buffer) -> None:
        """Bytes of the client."""
        self._taken += data
        if self._reading and len(self._taken) > _LENGTH_BYTES + sftp.MAX_PACKET_BYTES:
            self._reading = False
            self._stream.pause_reading()
        self._arrived.set()

    def eof_received(self) -> None:
        """The client has asked for all it wants."""
        self._ended = True
        self._arrived.set()

    def connection_lost(self, reason: str) -> None:
        """It is gone."""
        self._ended = True
        self._taken.clear()
        self._arrived.set()
        self._writable.set()

    def heard(self, size: int) -> None:
        """Nothing hangs on signs of life here: SSH's own keep-alive judges the connection."""

    def pause_writing(self) -> None:
        """The client does not take what it asked for."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does."""
        self._writable.set()

    # The session.

    async def run(self) -> None:
        """Answer until the client ends it. Raises PeerError when it breaks the protocol."""
        loop = asyncio.get_running_loop()
        try:
            if (await self._next()).verb != Verb.INIT:
                raise PeerError("began an SFTP session without a greeting", where=self.viewer)
            self._stream.write(sftp.version())
            while True:
                resting = loop.call_later(REST_S, self._view.rest)
                try:
                    await self._writable.wait()
                    request = await self._next()
                finally:
                    resting.cancel()
                await self._answer_with_others(request)
        except _Ended:
            pass
        finally:
            self._stream.close()
            await self._view.close()

    def cut(self) -> None:
        """End it now."""
        self._ended = True
        self._taken.clear()
        self._arrived.set()
        self._writable.set()
        self._stream.close()

    async def _next(self) -> Request:
        size = int.from_bytes(await self._take(_LENGTH_BYTES), "big")
        if not 5 <= size <= sftp.MAX_PACKET_BYTES:
            raise PeerError(f"sent an SFTP packet of {size} bytes", where=self.viewer)
        return sftp.parse(await self._take(size))

    async def _take(self, size: int) -> bytes:
        while len(self._taken) < size:
            if self._ended:
                raise _Ended
            self._arrived.clear()
            await self._arrived.wait()
        taken = bytes(self._taken[:size])
        del self._taken[:size]
        if not self._reading and len(self._taken) <= sftp.MAX_PACKET_BYTES:
            self._reading = True
            self._stream.resume_reading()
        return taken

    async def _answer_with_others(self, request: Request) -> None:
        answers = [await self._answer(request)]
        size = len(answers[0])
        while size < TOGETHER_BYTES and self._has_whole_packet():
            answers.append(await self._answer(await self._next()))
            size += len(answers[-1])
        self._stream.write(b"".join(answers))

    def _has_whole_packet(self) -> bool:
        size = int.from_bytes(self._taken[:_LENGTH_BYTES], "big")
        return len(self._taken) >= _LENGTH_BYTES + size

    async def _answer(self, request: Request) -> bytes:
        if _writes(request):
            return sftp.status(request.id, Code.PERMISSION_DENIED, READ_ONLY)
        answer = _ANSWERS.get(request.verb)
        try:
            if answer is None:
                return sftp.status(request.id, Code.UNSUPPORTED, "this view cannot do that")
            return await answer(self, request)
        except ReplicadError as error:
            return sftp.status(request.id, _code_of(error, request), _words(error))

    async def _open(self, request: Request) -> bytes:
        self._check_handles()
        return self._hold(request, self._files, await self._view.open_file(request.text))

    async def _open_directory(self, request: Request) -> bytes:
        self._check_handles()
        return self._hold(request, self._directories, await self._view.open_directory(request.text))

    async def _close(self, request: Request) -> bytes:
        if request.text not in self._files:
            _held(self._directories, request)
        self._files.pop(request.text, None)
        self._directories.pop(request.text, None)
        return sftp.status(request.id, Code.OK)

    async def _read(self, request: Request) -> bytes:
        file = _held(self._files, request)
        found = await self._view.read(file, request.offset, min(request.size, sftp.MAX_READ_BYTES))
        return sftp.data(request.id, found) if found else sftp.status(request.id, Code.END)

    async def _read_directory(self, request: Request) -> bytes:
        entries = await self._view.page(_held(self._directories, request))
        return sftp.names(request.id, entries) if entries else sftp.status(request.id, Code.END)

    async def _look(self, request: Request) -> bytes:
        follow = request.verb == Verb.STAT
        return sftp.attributes(request.id, await self._view.look(request.text, follow=follow))

    async def _look_at_open(self, request: Request) -> bytes:
        return sftp.attributes(request.id, _held(self._files, request).attributes)

    async def _canonical(self, request: Request) -> bytes:
        return sftp.path(request.id, await self._view.canonical(request.text))

    async def _target(self, request: Request) -> bytes:
        return sftp.path(request.id, await self._view.target(request.text))

    async def _extended(self, request: Request) -> bytes:
        if request.text == sftp.LIMITS:
            return sftp.limits(request.id, self._max_handles)
        return sftp.status(request.id, Code.UNSUPPORTED, f"this view does not know {show_path(request.text[:80])}")

    def _check_handles(self) -> None:
        if len(self._files) + len(self._directories) >= self._max_handles:
            raise ReplicadError(f"{self._max_handles} files and directories are open in this view: close some first")

    def _hold(self, request: Request, held: dict[bytes, Held], opened: Held) -> bytes:
        name = b"%d" % next(self._numbers)
        held[name] = opened
        return sftp.handle(request.id, name)


_ANSWERS: dict[int, Callable[[Viewing, Request], Awaitable[bytes]]] = {
    Verb.OPEN: Viewing._open,
    Verb.CLOSE: Viewing._close,
    Verb.READ: Viewing._read,
    Verb.LSTAT: Viewing._look,
    Verb.FSTAT: Viewing._look_at_open,
    Verb.OPENDIR: Viewing._open_directory,
    Verb.READDIR: Viewing._read_directory,
    Verb.REALPATH: Viewing._canonical,
    Verb.STAT: Viewing._look,
    Verb.READLINK: Viewing._target,
    Verb.EXTENDED: Viewing._extended,
}


class Viewings:
    """The sessions under way on one node."""

    def __init__(self, limit: int, report: Callable[[ReplicadError], None]) -> None:
        self.limit, self._report = limit, report
        self._under_way: dict[asyncio.Task[None], Viewing] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def refusal(self, viewer: str) -> str:
        """Why one more of this viewer is too many, or ""."""
        if len(self) >= self.limit:
            return f"all {self.limit} views are taken"
        if sum(viewing.viewer == viewer for viewing in self._under_way.values()) >= MAX_PER_VIEWER:
            return f"viewer {viewer} has {MAX_PER_VIEWER} views already"
        return ""

    def start(self, viewing: Viewing) -> None:
        """Take over a new session."""
        task = asyncio.get_running_loop().create_task(self._host(viewing), name=f"view of {viewing.viewer}")
        self._under_way[task] = viewing
        task.add_done_callback(self._over)

    def recheck(self, viewers: Collection[str]) -> None:
        """End the sessions of all but these viewers."""
        for viewing in tuple(self._under_way.values()):
            if viewing.viewer not in viewers:
                viewing.cut()

    async def close(self) -> None:
        """End all."""
        for viewing in tuple(self._under_way.values()):
            viewing.cut()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _host(self, viewing: Viewing) -> None:
        try:
            await viewing.run()
        except ReplicadError as error:
            self._report(error)

    def _over(self, task: asyncio.Task[None]) -> None:
        viewing = self._under_way.pop(task)
        if not task.cancelled() and (error := task.exception()):
            context = {"message": f"defect in a view of {viewing.viewer}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


class _Ended(Exception):
    """The client has gone, or has asked for all it wants."""


def _writes(request: Request) -> bool:
    if request.verb == Verb.OPEN:
        return bool(request.flags & ~sftp.OPEN_READ)
    return request.verb in sftp.WRITING or (request.verb == Verb.EXTENDED and request.text in sftp.WRITING_EXTENSIONS)


def _held(held: dict[bytes, Held], request: Request) -> Held:
    if request.text not in held:
        raise ReplicadError("that handle is not open")
    return held[request.text]


def _words(error: ReplicadError) -> str:
    """What to tell: not where on this host it happened."""
    return f"{error.what} ({error.hint})" if error.hint else error.what


def _code_of(error: ReplicadError, request: Request) -> Code:
    """What is wrong with a file that was opened is a failure, also when nothing is left of its snapshot."""
    if isinstance(error, RefusedError):
        return Code.PERMISSION_DENIED
    return Code.NO_SUCH_FILE if isinstance(error, UsageError) and request.verb != Verb.READ else Code.FAILURE
