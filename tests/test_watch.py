"""Watching: hints when the kernel gives them, a plain word and whole walks when it does not."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from watchfiles import Change

from kit_source import KnownTree, changed_paths, survey
from kit_tree import as_nobody, is_root
from replicad.source import watch as watching
from replicad.source.exclude import NOTHING, Excluded
from replicad.source.watch import MAX_HINTS, MAX_TOLD, Changes, Watch
from replicad.work.dataset import Hints

LONG_S = 10.0
"""Longer than anything here takes on a busy machine."""


@asynccontextmanager
async def running(watch: Watch) -> AsyncIterator[Watch]:
    """The watch while it runs, cancelled at the end."""
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def next_hints(watch: Watch) -> frozenset[bytes] | None:
    async with asyncio.timeout(LONG_S):
        return await watch.wait()


async def hints_until(watch: Watch, *wanted: bytes) -> set[bytes]:
    """All hints until `wanted` are among them."""
    found: set[bytes] = set()
    while not found >= set(wanted):
        hints = await next_hints(watch)
        assert hints is not None, watch.state
        found |= hints
    return found


def watch_of(root: Path, excluded: Excluded = NOTHING, **options: Any) -> Watch:
    return Watch(os.fsencode(root), excluded, 0.05, check_s=0.05, **options)


async def test_changes_are_hints_to_their_directories(tmp_path: Path) -> None:
    """After one whole walk, each kind of change names the directory whose walk shows it."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    async with running(watch_of(tmp_path)) as watch:
        assert await next_hints(watch) is None
        assert watch.state == "on"
        (tmp_path / "a" / "b" / "file").write_text("y")
        assert await hints_until(watch, b"a/b") == {b"a/b"}
        (tmp_path / "top").write_text("y")
        assert await hints_until(watch, b"") == {b""}
        (tmp_path / "a" / "b").chmod(0o700)
        await hints_until(watch, b"a")
        os.setxattr(tmp_path / "a" / "b" / "file", "user.x", b"1")
        await hints_until(watch, b"a/b")
        (tmp_path / "a" / "b" / "file").rename(tmp_path / "a" / "moved")
        await hints_until(watch, b"a/b", b"a")
        (tmp_path / "a" / "moved").unlink()
        await hints_until(watch, b"a")
    assert watch.state == "off"


async def test_a_walk_of_the_hints_finds_what_a_whole_walk_would(tmp_path: Path) -> None:
    """Files made deep in directories that are new themselves reach the ledger by hints alone."""
    root = tmp_path / "tree"
    (root / "old").mkdir(parents=True)
    known = KnownTree()
    survey(os.fsencode(root), known)
    async with running(watch_of(root)) as watch:
        assert await next_hints(watch) is None
        (root / "new" / "x" / "y").mkdir(parents=True)
        (root / "new" / "x" / "y" / "file").write_text("z")
        (root / "old").rename(root / "new" / "older")
        while b"new/x/y/file" not in known.stamps or b"new/older" not in known.stamps or b"old" in known.stamps:
            survey(os.fsencode(root), known, only=await next_hints(watch))
    assert not changed_paths(survey(os.fsencode(root), known)) - {b"", b"new", b"new/x", b"new/x/y", b"new/older"}


async def test_excluded_changes_are_no_hints(tmp_path: Path) -> None:
    """What happens to excluded files and below excluded directories wakes nobody."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "seen").mkdir()
    async with running(watch_of(tmp_path, Excluded(["*.tmp", "/cache/"]))) as watch:
        assert await next_hints(watch) is None
        (tmp_path / "seen" / "x.tmp").touch()
        (tmp_path / "cache" / "y").touch()
        (tmp_path / "z").touch()
        assert await hints_until(watch, b"") == {b""}


async def test_a_name_that_is_no_utf8_ends_in_a_whole_walk_and_a_new_start(tmp_path: Path) -> None:
    """watchfiles stumbles over such a name: nothing is lost, the state says why, and watching resumes."""
    async with running(watch_of(tmp_path, retry_s=0.05)) as watch:
        assert await next_hints(watch) is None
        (tmp_path / os.fsdecode(b"odd-\xff")).touch()
        assert await next_hints(watch) is None
        states = {watch.state}
        while await next_hints(watch) is not None or watch.state != "on":
            states.add(watch.state)
        assert states <= {"on", "degraded: a name that is no UTF-8 cannot be watched; next try within 60 s"}
        (tmp_path / "plain").touch()
        assert b"" in await hints_until(watch, b"")


async def test_a_root_that_is_replaced_is_watched_anew(tmp_path: Path) -> None:
    """A root that goes away degrades the watch, with a whole walk; the one that comes in its place is watched."""
    root = tmp_path / "root"
    root.mkdir()
    async with running(watch_of(root, retry_s=0.05)) as watch:
        assert await next_hints(watch) is None
        root.rename(tmp_path / "old")
        while await next_hints(watch) is not None:
            pass  # the rename itself is a hint
        while watch.state != "degraded: the directory is missing":
            await asyncio.sleep(0.01)
        root.mkdir()
        while watch.state != "on":
            await asyncio.sleep(0.01)
        while await next_hints(watch) is not None:
            (root / "new").touch()


async def test_a_missing_root_or_one_that_is_no_utf8_degrades(tmp_path: Path) -> None:
    """Neither is an exception: the state tells."""
    for name, word in ((b"missing", "missing"), (b"odd-\xff", "UTF-8")):
        root = os.fsencode(tmp_path) + b"/" + name
        if b"\xff" in name:
            os.mkdir(root)
        async with running(Watch(root, NOTHING, 0.05)) as watch:
            assert await next_hints(watch) is None
            assert watch.state.startswith("degraded: ") and word in watch.state


async def test_an_unreadable_directory_does_not_end_the_watch_of_the_others(tmp_path: Path) -> None:
    """The rest is watched when one directory may not be."""
    if not is_root():
        pytest.skip("needs root, to have a directory of somebody else")
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "open").mkdir(mode=0o755)
    with as_nobody():
        async with running(watch_of(tmp_path)) as watch:
            assert await next_hints(watch) is None
            assert watch.state == "on"
            with as_root():
                (tmp_path / "open" / "file").touch()
            assert await hints_until(watch, b"open") == {b"open"}


class as_root:
    """Root again, within `as_nobody`."""

    def __enter__(self) -> None:
        os.seteuid(0)

    def __exit__(self, *of: object) -> None:
        os.seteuid(65534)


IN_A_NAMESPACE = """
import asyncio, os, sys
from pathlib import Path
from replicad.source.exclude import NOTHING
from replicad.source.watch import Watch

async def main():
    root = Path(sys.argv[1])
    Path("/proc/sys/user/max_inotify_watches").write_text(sys.argv[2])
    Path("/proc/sys/user/max_inotify_instances").write_text(sys.argv[3])
    watch = Watch(os.fsencode(root), NOTHING, 0.05, check_s=0.02, retry_s=60)
    task = asyncio.create_task(watch.run())
    assert await watch.wait() is None
    print(watch.state, flush=True)
    if watch.state == "on":
        for number in range(int(sys.argv[2])):
            (root / f"more{number}").mkdir()
        while watch.state == "on":
            await watch.wait()
        print(watch.state)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

asyncio.run(main())
"""


def _in_namespace(root: Path, watches: int, instances: int) -> list[str]:
    """The states of a watch in a user namespace with such limits; skips where the kernel lets nobody make one."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-U", "-r", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    program = [unshare, "-U", "-r", sys.executable, "-c", IN_A_NAMESPACE, str(root), str(watches), str(instances)]
    source = str(Path(watching.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    result = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


LIMIT = "degraded: the kernel's limit of watched directories is reached; raise fs.inotify.max_user_watches"


def test_a_tree_beyond_the_kernels_watch_limit_degrades(tmp_path: Path) -> None:
    """With fewer watches allowed than there are directories, for real: the state says what to raise."""
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    assert _in_namespace(tmp_path, 10, 100) == [LIMIT]


def test_a_tree_that_grows_beyond_the_watch_limit_degrades(tmp_path: Path) -> None:
    """The limit reached later, by new directories, is found out by the probe; watchfiles itself says nothing."""
    assert _in_namespace(tmp_path, 10, 100) == ["on", LIMIT]


def test_too_many_watchers_degrade(tmp_path: Path) -> None:
    """No inotify instance to be had: the state says what to raise."""
    assert _in_namespace(tmp_path, 100, 0) == [
        "degraded: the kernel's limit of watchers is reached; raise fs.inotify.max_user_instances"
    ]


def scripted(*batches: Changes | Exception) -> Callable[..., AsyncGenerator[Changes, None]]:
    """A kernel that says this and then nothing more."""
    said = asyncio.Event()

    async def kernel(path: str, **options: object) -> AsyncGenerator[Changes, None]:
        yield set()
        for batch in batches:
            if isinstance(batch, Exception):
                said.set()
                raise batch
            yield {(change, f"{path}/{name}") for change, name in batch}
        said.set()
        await asyncio.Event().wait()

    kernel.said = said  # type: ignore[attr-defined]  # for `settled`
    return kernel


async def settled(watch: Watch) -> None:
    """Let a scripted kernel say everything."""
    async with asyncio.timeout(LONG_S):
        await watch._kernel.said.wait()  # type: ignore[attr-defined]
    for _ in range(10):
        await asyncio.sleep(0)


async def test_too_many_hints_become_a_whole_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set is bounded: beyond it, everything is to be walked, and later hints do not matter until then."""
    monkeypatch.setattr(watching, "MAX_TOLD", 2 * MAX_HINTS)
    many: Changes = {(Change.modified, f"{number}/x") for number in range(MAX_HINTS + 1)}
    async with running(watch_of(tmp_path, kernel=scripted(many, {(Change.added, "y")}))) as watch:
        await settled(watch)
        assert await next_hints(watch) is None
        assert not watch._news.is_set()


@pytest.mark.parametrize("calm", [{(Change.added, "y")}, set()])
async def test_more_changes_than_the_kernel_may_have_told_of_end_in_new_watches_and_a_whole_walk(
    tmp_path: Path, calm: Changes
) -> None:
    """What its queue had no room for is told by nobody: a change, or a new directory that is not watched since. Once it
    is calm watches are set up anew, at once, and everything is walked; a batch that the queue has held is as it was."""
    begun, taken = list[int](), asyncio.Event()

    async def kernel(path: str, **_: object) -> AsyncGenerator[Changes, None]:
        begun.append(len(begun))
        yield set()
        await taken.wait()
        if len(begun) == 1:
            for count in (MAX_TOLD - 1, MAX_TOLD, 2 * MAX_TOLD):
                yield {(Change.added, f"{path}/a/{number}") for number in range(count)}
            yield calm
        await asyncio.Event().wait()

    async with running(watch_of(tmp_path, kernel=kernel, retry_s=LONG_S)) as watch:
        assert await next_hints(watch) is None
        taken.set()
        assert await next_hints(watch) == {b"a"}
        async with asyncio.timeout(LONG_S / 2):
            while len(begun) < 2 or watch.state != "on":
                await asyncio.sleep(0.01)
        assert await next_hints(watch) is None


async def test_a_burst_without_end_is_no_reason_to_go_on_with_watches_that_may_lack_something(tmp_path: Path) -> None:
    """They are set up anew after a bounded number of batches, however many changes there are."""
    begun = list[int]()

    async def kernel(path: str, **_: object) -> AsyncGenerator[Changes, None]:
        begun.append(0)
        while True:
            begun[-1] += 1
            yield {(Change.added, f"{path}/a/{number}") for number in range(MAX_TOLD)}

    async with running(watch_of(tmp_path, kernel=kernel, retry_s=LONG_S)), asyncio.timeout(LONG_S):
        while len(begun) < 3:
            await asyncio.sleep(0.01)
    assert begun[:2] == [watching.PROBE_TURNS + 1] * 2


def test_too_many_hints_that_no_pass_takes_become_a_whole_walk() -> None:
    """While a replica is away or a dataset is held they wait in bounded memory; what comes after a pass counts anew."""
    hints = Hints()
    assert hints.take() == frozenset()
    for number in range(MAX_HINTS):
        hints.add(frozenset({b"%d" % number, b"again"}))
        if number == MAX_HINTS // 2:
            taken = hints.take()
            assert taken is not None and len(taken) == number + 2
    for number in range(MAX_HINTS):
        hints.add(frozenset({b"more %d" % number}))
    assert hints.changed.is_set() and hints.take() is None
    hints.add(frozenset({b"after"}))
    assert hints.take() == {b"after"}


@pytest.mark.parametrize(("name", "hints"), [("ok/file\ufffd", {b"ok"}), ("odd\ufffd/file", None)])
async def test_a_directory_whose_name_could_not_be_told_is_a_whole_walk(
    tmp_path: Path, name: str, hints: set[bytes] | None
) -> None:
    """The replacement character in a directory's name may stand for any bytes; in a file's name it does not matter."""
    watch = watch_of(tmp_path, kernel=scripted({(Change.added, name)}))
    watch.state = "on"  # as if the first whole walk were over
    async with running(watch):
        assert await next_hints(watch) == hints


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (OSError('OS file watch limit reached. about ["/x"]'), "max_user_watches"),
        (RuntimeError("Error creating recommended watcher: Too many open files (os error 24)"), "max_user_instances"),
        (RuntimeError("something new"), "something new"),
        (TypeError("another kind"), "another kind"),
    ],
)
async def test_any_failure_of_the_watcher_degrades(tmp_path: Path, error: Exception, word: str) -> None:
    """What watchfiles raises, now or in another version, ends in the state and in a whole walk."""
    async with running(watch_of(tmp_path, kernel=scripted(error), retry_s=LONG_S)) as watch:
        await settled(watch)
        assert await next_hints(watch) is None
        assert watch.state.startswith("degraded: ") and word in watch.state


async def test_the_watch_stops_at_once_when_cancelled(tmp_path: Path) -> None:
    """A quiet watch does not delay the end of the daemon, and leaves no watcher behind."""
    before = len(os.listdir("/proc/self/fd"))
    watch = Watch(os.fsencode(tmp_path), NOTHING, 1.0, check_s=0.05)
    task = asyncio.create_task(watch.run())
    assert await next_hints(watch) is None
    task.cancel()
    async with asyncio.timeout(LONG_S):
        with suppress(asyncio.CancelledError):
            await task
    assert task.cancelled() and watch.state == "off"
    while len(os.listdir("/proc/self/fd")) > before:
        await asyncio.sleep(0.01)


async def test_what_changed_while_a_watch_was_set_up_anew_is_walked(tmp_path: Path) -> None:
    """A watch that met a directory which may not be read begins again without it; of the time between nothing is
    known."""
    begun, taken = list[bool](), asyncio.Event()

    async def kernel(*_: object, ignore_permission_denied: bool, **__: object) -> AsyncGenerator[Changes, None]:
        begun.append(ignore_permission_denied)
        yield set()
        yield {(Change.modified, str(tmp_path / "a"))}
        if not ignore_permission_denied:
            await taken.wait()
            raise PermissionError(13, "Permission denied")
        await asyncio.Event().wait()

    async with running(watch_of(tmp_path, kernel=kernel)) as watch:
        assert await next_hints(watch) is None
        taken.set()
        async with asyncio.timeout(LONG_S):
            while len(begun) < 2 or watch.state != "on":
                await asyncio.sleep(0.01)
        assert await next_hints(watch) is None


async def test_the_event_loop_waits_for_no_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches of a large tree are set up for a minute, and a dead mount answers never: in threads of the watch."""
    seen: dict[str, set[int]] = {}

    def noted(what: str) -> None:
        seen.setdefault(what, set()).add(threading.get_ident())

    class Setup:
        """What sets up the watches."""

        def __init__(self, *_: object) -> None:
            noted("set up")
            raise RuntimeError("enough")

    identity = watching._identity
    monkeypatch.setattr(watching, "_identity", lambda root: (noted("look"), identity(root))[1])
    with monkeypatch.context() as patch:
        patch.setattr("watchfiles.main.RustNotify", Setup)
        async with running(watch_of(tmp_path, retry_s=LONG_S)) as watch:
            assert await next_hints(watch) is None and "enough" in watch.state
    monkeypatch.setattr(watching, "PROBE_TURNS", 1)
    monkeypatch.setattr(Excluded, "covers", lambda self, path: (noted("match"), False)[1])
    quiet = scripted({(Change.added, "a/x")}, set(), set())
    told = watch_of(tmp_path, kernel=quiet, probe=lambda path: noted("probe"))
    told.state = "on"  # as if the first whole walk were over
    async with running(told) as watch:
        await settled(watch)
        assert await next_hints(watch) == {b"a"}
    assert seen.keys() == {"set up", "look", "probe", "match"}
    assert all(threading.get_ident() not in threads for threads in seen.values())


def test_a_burst_of_changes_in_one_directory_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is told of already needs no further pattern; names that are left out tell of none."""
    matched, real = list[bytes](), Excluded.__call__
    monkeypatch.setattr(Excluded, "__call__", lambda self, path, is_: (matched.append(path), real(self, path, is_))[1])
    watch = Watch(b"/srv", Excluded(["*.tmp"]), 0.05)
    burst: Changes = {(Change.added, f"/srv/a/b/{number}") for number in range(20_000)}
    assert watch._directories("/srv", burst) == {b"a/b"} and len(matched) < 10
    assert watch._directories("/srv", {(Change.added, "/srv/a/x.tmp"), (Change.added, "/srv")}) == {b""}
    assert watch._directories("/srv", {(Change.added, f"/srv/{n}/x") for n in range(MAX_HINTS + 1)}) is None
