"""Watch: hints from the kernel about which directories changed. Sole owner of watchfiles.

**Owns** the set of changed directories that nobody has asked for yet, bounded: too many become "walk everything".
**Never** the truth: a hint makes the next pass fast, and the full walk at its interval finds what no hint told. So
nothing that goes wrong here stops replication; it shows in `state` and ends in a full walk.

What watchfiles is known for: it follows symlinks when it sets up its watches (such hints lead the walk to the
symlink's own directory, no further), which takes seconds for each 100,000 directories, so it has a thread; a changed
name that is no UTF-8 ends it; told to pass over unreadable directories, it passes over the kernel's watch limit in
silence too, hence the probe. It says nothing when the kernel's queue of events runs over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import watchfiles

from replicad.source.exclude import Excluded

MAX_HINTS = 10_000
"""Directories remembered; beyond, a full walk costs less than many single ones, and memory stays bounded."""
MAX_TOLD = 4096
"""Changes in one batch, a quarter of the events that the kernel keeps by default (fs.inotify.max_queued_events): where
there were more it may have dropped some, also of a directory that is new and so is not watched."""
OUTRUN = "more changed at once than the kernel may have told of; watches are set up anew"
RETRY_S = 60.0
"""Pause before a watch that failed is set up again."""
CHECK_S = 1.0
"""A quiet watch looks this often whether it still watches the right directory."""
PROBE_TURNS = 60
"""After so many batches and checks it also tries, once it is quiet, whether new directories can still be watched."""
PROBE_TURNS_BUSY = 10 * PROBE_TURNS
"""After so many without a quiet moment it tries all the same, though the probe takes a watch that may be the last."""
MAX_STEP_S = 0.1
"""Changes are handed over after this long without another one; also how fast the watch stops."""

Changes = set[tuple[watchfiles.Change, str]]
Result = TypeVar("Result")

logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it would log every batch of changes


async def kernel_changes(path: str, **options: Any) -> AsyncGenerator[Changes, None]:
    """What `watchfiles.watch` gives, all of it from a thread of its own: on the event loop, where `awatch` sets up its
    watches, a large tree would hold up everything that the daemon does."""
    stop = threading.Event()
    batches = watchfiles.watch(path, stop_event=stop, raise_interrupt=False, **options)
    thread = ThreadPoolExecutor(1, "kernel")
    try:
        while (changes := await asyncio.get_running_loop().run_in_executor(thread, next, batches, None)) is not None:
            yield changes
    finally:
        stop.set()
        thread.submit(batches.close)  # once the thread has come back from where it is
        thread.shutdown(wait=False)


class Watch:
    """Watches one tree while `run` runs."""

    def __init__(
        self,
        root: bytes,
        excluded: Excluded,
        debounce_s: float,
        *,
        kernel: Callable[..., AsyncGenerator[Changes, None]] = kernel_changes,
        probe: Callable[[str], None] | None = None,
        retry_s: float = RETRY_S,
        check_s: float = CHECK_S,
    ) -> None:
        """`debounce_s`: changes are collected for at most this long. The rest is for tests."""
        self.state = "off"
        """"off", "on", or "degraded: " and why: then hints are missing and only walks tell what changed."""
        self._root, self._excluded, self._debounce_s = root, excluded, debounce_s
        self._kernel, self._probe = kernel, probe or _probe
        self._retry_s, self._check_s = retry_s, check_s
        self._thread = ThreadPoolExecutor(1, "watch")
        self._hints: set[bytes] | None = set()
        self._news = asyncio.Event()

    async def wait(self) -> frozenset[bytes] | None:
        """Wait for changes: the directories (relative to the root) in which something changed since the last call,
        or None when the whole tree has to be walked. The first answer is None, as it is after each interruption."""
        await self._news.wait()
        self._news.clear()
        hints, self._hints = self._hints, set()
        return None if hints is None else frozenset(hints)

    async def run(self) -> None:
        """Watch until cancelled. Obstacles end in `state`, not in an exception, and are tried again."""
        try:
            while True:
                reason = await self._until_broken()
                self.state = f"degraded: {reason}"
                self._hint_everything()
                await asyncio.sleep(0 if reason is OUTRUN else self._retry_s)
        finally:
            self.state = "off"
            self._thread.shutdown(wait=False)

    async def _until_broken(self) -> str:
        """Watch until that fails; the reason in words."""
        try:
            return await self._listen(ignore_unreadable=False)
        except PermissionError:
            # Some directory below may not be read, as the walk will report. The others can be watched.
            self.state = "degraded: a directory may not be read"  # until it is: nobody hears of changes meanwhile
            try:
                return await self._listen(ignore_unreadable=True)
            except Exception as error:
                return _explain(error)
        except Exception as error:  # whatever another version raises: a watch that has ended unseen is worse
            return _explain(error)

    async def _listen(self, *, ignore_unreadable: bool) -> str:
        """Collect hints until the root is another directory, or more changed than the kernel may have told of; which in
        words. Raises what watchfiles raises."""
        path = os.fsdecode(self._root)
        path.encode()  # watchfiles takes text alone
        step_s = min(MAX_STEP_S, self._debounce_s / 2)
        watched, turns, outrun = await self._in_thread(lambda: _identity(self._root)), 0, 0
        batches = self._kernel(
            path,
            watch_filter=None,
            debounce=_milliseconds(self._debounce_s),
            step=_milliseconds(step_s),
            rust_timeout=_milliseconds(self._check_s),
            yield_on_timeout=True,
            force_polling=False,
            recursive=True,
            ignore_permission_denied=ignore_unreadable,
        )
        async with aclosing(batches):
            async for changes in batches:
                turns += 1
                unproven = ignore_unreadable and self.state != "on"  # else setting up has met the limit by itself
                if unproven or turns >= (PROBE_TURNS_BUSY if changes else PROBE_TURNS):
                    await self._in_thread(lambda: self._probe(path))
                    turns = 0
                if self.state != "on":  # whatever happened before the watch was complete is unknown
                    self.state = "on"
                    self._hint_everything()
                if changes and self._hints is not None:
                    self._add(await self._in_thread(partial(self._directories, path, changes)))
                if not changes and await self._in_thread(lambda: _identity(self._root)) != watched:
                    return "the watched directory was replaced or unmounted"
                if outrun and (len(changes) < MAX_TOLD or outrun >= PROBE_TURNS):  # calm again, or not for long
                    return OUTRUN
                outrun += len(changes) >= MAX_TOLD
        raise RuntimeError("the watch has ended")

    async def _in_thread(self, look: Callable[[], Result]) -> Result:
        """The file system may be a dead mount: whoever looks at it waits in a thread of this watch alone."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, look)

    def _directories(self, root: str, changes: Changes) -> set[bytes] | None:
        """The directories whose walk shows these changes; None when that are all. In a thread: there may be a hundred
        thousand changes, and patterns are slow."""
        prefix, found = root.rstrip("/") + "/", set[str]()
        for _, path in changes:
            inner = path.removeprefix(prefix) if path != root else ""
            directory = os.path.dirname(inner)
            if directory in found or self._is_excluded(inner, directory):
                continue
            if "\ufffd" in directory:  # a name that could not be told: it may stand for another one
                return None
            found.add(directory)
            if len(found) > MAX_HINTS:
                return None
        return set(map(os.fsencode, found))

    def _is_excluded(self, path: str, directory: str) -> bool:
        if self._excluded and path:
            name = os.fsencode(path)
            # Nobody says whether it is, or was, a directory.
            if self._excluded(name, False) and self._excluded(name, True):
                return True
        return self._excluded.covers(os.fsencode(directory))

    def _add(self, directories: set[bytes] | None) -> None:
        if directories is None:
            self._hint_everything()
        elif directories and self._hints is not None:
            self._hints |= directories
            self._news.set()
            if len(self._hints) > MAX_HINTS:
                self._hint_everything()

    def _hint_everything(self) -> None:
        self._hints = None
        self._news.set()


def _explain(error: Exception) -> str:
    text = str(error)
    if "MaxFilesWatch" in text or "watch limit" in text:
        return "the kernel's limit of watched directories is reached; raise fs.inotify.max_user_watches"
    if "os error 24" in text:
        return "the kernel's limit of watchers is reached; raise fs.inotify.max_user_instances"
    if "decode path" in text or isinstance(error, UnicodeError):
        return f"a name that is no UTF-8 cannot be watched; next try within {RETRY_S:.0f} s"
    if isinstance(error, FileNotFoundError):
        return "the directory is missing"
    return f"directories cannot be watched: {text}"


def _probe(path: str) -> None:
    """Raise OSError when one more directory cannot be watched."""
    watcher = watchfiles.watch(
        path, recursive=False, debounce=1, step=1, rust_timeout=1, yield_on_timeout=True, force_polling=False
    )
    next(watcher)
    watcher.close()


def _identity(root: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
