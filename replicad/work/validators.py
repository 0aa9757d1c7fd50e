"""Validators: have each subject of a drill looked at by its validator, and say what came of it.

A subject is taken out of the restored tree onto the bench, into a directory of its own that its validator's user alone
may enter, and put back afterwards, for it may lie in another subject. The validator runs as whoever owns the restored
file (nobody, where that is root); an unprivileged daemon has no other user to give than itself.

**Owns** the bench and the process that judges. **Never** runs a validator in this process, and never takes a missing
word for a good one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from replicad.config.values import ValidatorConfig
from replicad.db.drills import Subject
from replicad.model.drill import Outcome, Validated
from replicad.model.entry import show_path
from replicad.model.errors import ReplicadError
from replicad.system.child import INTERPRETER
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.drill_choice import SQLITE_BESIDE
from replicad.work.judge import Judgement, Task
from replicad.work.target import Target, split

NOBODY = 65534
GRACE_S = 30.0
"""What the judging process gets beyond its validator's limit, to end all that was started."""
END_S = 10.0
MAX_SAID_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Bench:
    """Where subjects are looked at: beside the restored tree, on one file system with it."""

    tree: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class _Place:
    """One subject's place on the bench, and the names of what belongs to it: in the tree, and here."""

    directory: Path
    names: list[tuple[bytes, bytes]]


class Validators:
    """The validators of one dataset."""

    def __init__(self, configured: Sequence[ValidatorConfig], clock: Clock, disk: Disk) -> None:
        self._configured, self._clock, self._disk = configured, clock, disk
        self._number = 0

    async def validate(self, subject: Subject, bench: Bench) -> Validated:
        """Have one subject looked at. Raises ReplicadError when the scratch space cannot be used for it."""
        validator, began_s = self._configured[subject.validator], self._clock.monotonic_s()
        judgement = await self._judge(subject, validator, bench)
        seconds = round(self._clock.monotonic_s() - began_s, 3)
        return Validated(validator.kind, show_path(subject.path), judgement.outcome, judgement.text, seconds)

    async def _judge(self, subject: Subject, validator: ValidatorConfig, bench: Bench) -> Judgement:
        self._number += 1
        place = _Place(bench.directory / str(self._number), _names(subject, validator))
        target = Target(bench.tree, self._disk)
        try:
            try:
                user = await asyncio.to_thread(self._lay_out, target, subject, place)
            except FileNotFoundError:
                return Judgement(Outcome.FAILED, "is not in the restored tree")
            try:
                return await self._run(_task(validator, place, user), validator.timeout_s)
            finally:
                await asyncio.to_thread(self._move, target, subject, place, out=False)
        except OSError as error:
            raise ReplicadError(f"the bench cannot be used: {error.strerror}", where=str(bench.directory)) from error
        finally:
            target.close()

    def _lay_out(self, target: Target, subject: Subject, place: _Place) -> tuple[int, int] | None:
        """Take the subject onto the bench; the user who is to look at it, None where there is no choice."""
        with target.directory(split(subject.path)[0]) as parent:
            status = os.stat(place.names[0][0], dir_fd=parent, follow_symlinks=False)
        place.directory.mkdir(mode=0o700)
        self._move(target, subject, place, out=True)
        if os.geteuid():
            return None
        user = (status.st_uid, status.st_gid) if status.st_uid else (NOBODY, NOBODY)
        os.chown(place.directory, *user)
        if not status.st_uid:
            for _old, name in place.names:
                _give(place.directory / os.fsdecode(name), user)
        return user

    def _move(self, target: Target, subject: Subject, place: _Place, *, out: bool) -> None:
        """Onto the bench, or back; what else stands on the bench stays until the scratch directory goes."""
        there = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with target.directory(split(subject.path)[0]) as parent:
                for number, (old, new) in enumerate(place.names):
                    try:
                        self._disk.move_at(*((old, parent, new, there) if out else (new, there, old, parent)))
                    except FileNotFoundError:
                        if out and not number:
                            raise  # what stands beside it need not be there; what was there may have been removed
        finally:
            os.close(there)

    async def _run(self, task: Task, timeout_s: float) -> Judgement:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "replicad.work.judge", msgspec.json.encode(task).decode()),
            executable=INTERPRETER,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                said = await process.stdout.read(MAX_SAID_BYTES)
                await process.wait()
        except TimeoutError:
            return Judgement(Outcome.INCONCLUSIVE, "the process that judges did not end")
        finally:
            await _end(process)
        try:
            return msgspec.json.decode(said, type=Judgement)
        except ValueError:
            last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return Judgement(Outcome.INCONCLUSIVE, f"the process that judges failed: {last[:600]}")


def _task(validator: ValidatorConfig, place: _Place, user: tuple[int, int] | None) -> Task:
    uid, gid = user or (-1, -1)
    return Task(
        parent=os.getpid(),
        kind=validator.kind,
        bench=str(place.directory),
        name=os.fsdecode(place.names[0][1]),
        timeout_s=validator.timeout_s,
        command=list(validator.command),
        uid=uid,
        gid=gid,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """It ends all it has started when it is told to."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _give(path: Path, user: tuple[int, int]) -> None:
    """Make `path` and everything below it this user's; links themselves, never what they lead to."""
    for one in (path, *_below(path)):
        try:
            os.chown(one, *user, follow_symlinks=False)
        except FileNotFoundError:
            continue  # what stands beside a subject need not be there


def _below(path: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(path):
        yield from (Path(directory, name) for name in (*directories, *files))


def _names(subject: Subject, validator: ValidatorConfig) -> list[tuple[bytes, bytes]]:
    """Names of the subject and of what belongs to it, in the tree and on the bench."""
    name = split(subject.path)[1]
    shown = name if name.isascii() and name.decode("ascii").isprintable() else b"subject"
    ends = (b"", *SQLITE_BESIDE) if validator.kind == "sqlite" else (b"",)
    return [(name + end, shown + end) for end in ends]
