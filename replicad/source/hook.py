"""Hook: run a program before or after a pass, such as a database dump or a file system snapshot.

**Owns** its process group and the end of its output. **Never** uses a shell, and leaves no process of a hook that
failed behind: on timeout or cancellation the whole group gets SIGTERM, and SIGKILL when it does not heed that.

When root runs it for a daemon with a user of its own, it runs as that user, with nothing left of root's rights.
A hook that succeeds may leave processes running in the background; its output ends when its first process does.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from replicad.model.errors import SourceError

OUTPUT_TAIL_BYTES = 4096
"""How much of the end of the output is kept for the error's text."""
GRACE_S = 5.0
"""Time between SIGTERM and SIGKILL: enough to let go of a database, short beside any pass."""
_READ_BYTES = 64 * 1024


async def run_hook(
    argv: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str],
    grace_s: float = GRACE_S,
    owner_of: Path | None = None,
) -> None:
    """Run `argv` in directory / with `environment` added to this process's own, and wait for it to end. Root runs it
    as the user that the directory `owner_of` belongs to.

    Raises SourceError when it cannot be started, fails, or takes longer than `timeout_s`.
    """
    tail = _Tail()
    try:
        process = await _start(argv, environment, owner_of, tail)
        try:
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
        except TimeoutError:
            await _end(process, grace_s)
            raise _failed(argv, f"took longer than {timeout_s:g} s and was ended", tail) from None
        except asyncio.CancelledError:
            await _end(process, grace_s)
            raise
        if code:
            raise _failed(argv, f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}", tail)
    finally:
        tail.close()


@dataclass(frozen=True, slots=True)
class _User:
    """Whom a hook runs as; by default whoever this process is."""

    uid: int | None = None
    gid: int | None = None
    groups: Sequence[int] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def _user(owner_of: Path | None) -> _User:
    if owner_of is None or os.geteuid() != 0:
        return _User()
    status = owner_of.stat()
    if status.st_uid == 0:
        return _User()
    try:
        entry = pwd.getpwuid(status.st_uid)
        name, gid, home = entry.pw_name, entry.pw_gid, entry.pw_dir
    except KeyError:  # a number without a name, as containers have them
        name, gid, home = str(status.st_uid), status.st_gid, "/"
    login = {"HOME": home, "USER": name, "LOGNAME": name}
    return _User(status.st_uid, gid, os.getgrouplist(name, gid), login)


async def _start(
    argv: Sequence[str], environment: Mapping[str, str], owner_of: Path | None, tail: _Tail
) -> asyncio.subprocess.Process:
    try:
        user = _user(owner_of)
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=tail.write_end,
            stderr=tail.write_end,
            env={**os.environ, **user.environment, **environment},
            cwd="/",
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(f"hook cannot be started: {reason}", where=argv[0]) from error
    finally:
        tail.close_write_end()


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """End the whole process group, politely first."""
    _signal_group(process.pid, signal.SIGTERM)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await process.wait()
    finally:
        _signal_group(process.pid, signal.SIGKILL)  # whoever of the group is left
    await process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _failed(argv: Sequence[str], what: str, tail: _Tail) -> SourceError:
    output = tail.text()
    said = f"; its last words: {output}" if output else "; it printed nothing"
    return SourceError(f"hook {what}{said}", where=argv[0], hint="the hook decides whether a pass may run")


class _Tail:
    """A pipe that keeps the last OUTPUT_TAIL_BYTES of what is written into it."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_end, self._take)

    def _take(self) -> bool:
        """Take what has been written; whether there was something."""
        try:
            data = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._read_end)
        self._kept = (self._kept + data)[-OUTPUT_TAIL_BYTES:]
        return bool(data)

    def text(self) -> str:
        """The last bytes as text, after whatever still stands in the pipe."""
        # A pipe holds 64 KiB; more than a few reads means that a left-over process goes on writing.
        for _ in range(4):
            if not self._take():
                break
        return self._kept.decode("utf-8", "replace").strip()

    def close_write_end(self) -> None:
        """To be called once the process has it."""
        os.close(self.write_end)

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
