"""The daemon as a whole: what it says of itself, and how it ends and changes, in states that are rare."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import tomlkit

from kit_faults import configure
from kit_pair import Node, Pair, make_pair
from kit_rig import rig
from kit_store import open_archive
from replicad.config import Config, load
from replicad.daemon import Daemon
from replicad.link.channel import Channel
from replicad.link.ssh import generate_key
from replicad.model.divergence import Divergence, Part, Side
from replicad.model.errors import LinkError, ReplicadError
from replicad.model.place import Place
from replicad.protected import Protected
from replicad.status import JobStatus, findings
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.notify import Notifier
from replicad.work.clients import Clients
from replicad.work.dataset import Dataset
from replicad.work.job import Runner, log_failure
from replicad.work.mended import Mended
from replicad.work.tendings import Tendings


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Set up, not started."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_text("file")
    return make_pair(tmp_path / "pair", root, dataset_options="watch = false")


@asynccontextmanager
async def living(node: Node, disk: Disk | None = None) -> AsyncIterator[Daemon]:
    """The node's daemon in this process; it ends without an error."""
    daemon = Daemon(load(node.config), disk=disk)
    running = asyncio.create_task(daemon.run(Notifier()))
    try:
        await until(lambda: running.done() or bool(daemon.status().jobs and daemon.status().http))
        yield daemon
    finally:
        daemon.stop()
        await running


async def until(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    """Wait for a state."""
    async with asyncio.timeout(patience_s):
        while not holds():
            await asyncio.sleep(0.01)


class Mute(Disk):
    """A disk whose file system stops answering."""

    fails = False

    def __init__(self) -> None:
        self.hangs, self.asked_by = threading.Event(), set[int]()
        self.hangs.set()

    def free_bytes(self, path: Path) -> int:
        self.asked_by.add(threading.get_ident())
        self.hangs.wait(60)
        if self.fails:
            raise ReplicadError("error while asking for free space: Input/output error", where=str(path))
        return super().free_bytes(path)


async def test_a_store_whose_disk_is_gone_is_told_by_a_daemon_that_lives_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that does not say how much is free is a finding, not the daemon's end; what is free is not given
    then, and when it answers again the finding is gone."""
    monkeypatch.setattr("replicad.work.free_space.LOOK_S", 0.01)
    disk = Mute()
    async with living(pair.replica, disk) as daemon:
        assert daemon.status().store_free_bytes > 0
        disk.fails = True
        await until(lambda: bool(daemon.status().store_problem))
        now = daemon.status()
        assert now.store_free_bytes == -1 and now.store_reserve_bytes > 0
        assert [(found.kind, "Input/output error" in found.what) for found in findings(now)] == [("silent", True)]
        disk.fails = False
        await until(lambda: not findings(daemon.status()))
    pair.store.rename(pair.store.with_name("away"))
    async with living(pair.primary) as daemon:
        assert not daemon.status().store_problem, "a node without a store has none that could be silent"


async def test_a_store_whose_file_system_hangs_stops_nothing_else(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a question for free space does not return, that is told, by an event loop that has not asked itself; when
    it returns all is well again."""
    monkeypatch.setattr("replicad.work.free_space.LOOK_S", 0.01)
    monkeypatch.setattr("replicad.work.free_space.SILENT_S", 0.1)
    disk = Mute()
    async with living(pair.replica, disk) as daemon:
        assert daemon.status().store_free_bytes > 0 and threading.get_ident() not in disk.asked_by
        disk.hangs.clear()
        await until(lambda: "has not answered" in daemon.status().store_problem)
        assert daemon.status().store_free_bytes == -1 and findings(daemon.status())[0].kind == "silent"
        disk.hangs.set()
        await until(lambda: daemon.status().store_free_bytes > 0 and not daemon.status().store_problem)


class Stuck(Disk):
    """A disk that stands still while it renames a file into its place."""

    def __init__(self) -> None:
        self.is_stuck, self.goes_on = threading.Event(), threading.Event()

    def rename_durable(self, source: Path, target: Path) -> None:
        self.is_stuck.set()
        self.goes_on.wait(60)
        super().rename_durable(source, target)


class Watched(Notifier):
    """A service manager that wants a sign of life every few milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.watchdog_s, self.signs = 0.005, 0

    def watchdog(self) -> None:
        self.signs += 1


async def test_a_disk_that_stands_still_does_not_look_like_a_daemon_that_does(pair: Pair) -> None:
    """The watchdog is fed by the event loop alone: while the status cannot be written down, the service manager has no
    reason to kill what goes on working."""
    disk, manager = Stuck(), Watched()
    daemon = Daemon(load(pair.primary.config), disk=disk)
    running = asyncio.create_task(daemon.run(manager))
    try:
        await until(disk.is_stuck.is_set)
        before = manager.signs
        await until(lambda: manager.signs > before + 3, 10)
    finally:
        disk.goes_on.set()
        daemon.stop()
        await running
    assert (pair.primary.state / "last-status.json").exists()


async def test_nothing_is_told_of_a_store_that_was_taken_out(pair: Pair) -> None:
    """After a reload without [listen] no store, no room and no session is in the status any more."""
    open_archive(pair.store / "ams1" / "www").close()
    async with living(pair.replica) as daemon:
        await until(lambda: len(daemon.status().stores) == 1)
        assert daemon.status().retentions
        document = tomlkit.parse(pair.replica.config.read_text())
        del document["listen"], document["client"]
        pair.replica.config.write_text(tomlkit.dumps(document))
        assert await daemon.reload() == []
        now = daemon.status()
        assert (now.stores, now.retentions, now.listen, now.sessions) == ([], [], "", 0)
        assert (now.store_free_bytes, now.store_reserve_bytes) == (-1, -1)


async def test_a_reload_that_is_refused_shuts_out_nobody_who_was_let_in(pair: Pair) -> None:
    """A client that was authorised while the daemon ran may still connect after a reload that could not be done."""
    async with living(pair.replica) as daemon:
        text = pair.replica.config.read_text()
        key = generate_key(pair.directory / "lon1", "lon1")
        pair.replica.config.write_text(f'{text}\n[[client]]\nname = "lon1"\nkey = "{key}"\n')
        assert [client.name for client in daemon.clients()] == ["ams1", "lon1"]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            configure(pair.replica, "listen", address=f"127.0.0.1:{taken.getsockname()[1]}")
            assert await daemon.reload()
        assert [client.name for client in daemon.clients()] == ["ams1", "lon1"]


async def test_a_reload_that_leaves_a_part_dead_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """When neither the new configuration nor the old one can be had, nobody reads that the old one is in force and no
    more; the next reload brings all back."""
    async with living(pair.replica) as daemon:
        configure(pair.replica, "listen", max_sessions=63)
        monkeypatch.setattr("replicad.daemon.ReplicaSide.start", _fails)
        (problem,) = await daemon.reload()
        assert "of the old one not all could be put in force" in problem
        assert "not all could be put in force" in findings(daemon.status())[0].what
        monkeypatch.undo()
        assert await daemon.reload() == [] and daemon.status().listen


async def test_a_new_key_is_used_from_the_reload_on(pair: Pair) -> None:
    """Datasets and replicas that are configured as before are dialled with the key that the file names now."""
    async with living(pair.primary) as daemon:
        before = dict(daemon._diallers)
        assert await daemon.reload() == [] and dict(daemon._diallers) == before
        fresh = pair.primary.state / "fresh"
        generate_key(fresh, "fresh")
        configure(pair.primary, "node", key=str(fresh))
        assert await daemon.reload() == []
        assert [dialler._key_path for dialler in daemon._diallers.values()] == [fresh]
        assert [line.dataset for line in daemon.status().datasets] == ["www"]


async def test_a_configuration_that_cannot_be_read_for_a_dead_mount_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload that waits for a file system which does not answer ends with that word, is shown as refused, and leaves
    the way free for the next one and for a stop."""
    monkeypatch.setattr("replicad.daemon.LOAD_S", 0.2)
    answers = threading.Event()

    def hang(file: Path) -> Config:
        answers.wait(60)
        return load(file)

    async with living(pair.primary) as daemon:
        monkeypatch.setattr("replicad.daemon.load", hang)
        try:
            (problem,) = await asyncio.wait_for(daemon.reload(), 30)
            assert "does not answer" in problem and daemon.status().config_error == problem
        finally:
            answers.set()
        assert await daemon.reload() == [] and not daemon.status().config_error


async def test_a_stop_amid_a_reload_waits_for_its_end(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reload is closing is closed once and what it opens is closed as well: the daemon ends without an error,
    and leaves no socket and no loop behind."""
    closing, go_on = asyncio.Event(), asyncio.Event()
    close = Protected.close

    async def slowly(part: Protected) -> None:
        closing.set()
        await go_on.wait()
        await close(part)

    monkeypatch.setattr(Protected, "close", slowly)
    async with living(pair.primary) as daemon:
        configure(pair.primary, "dataset", rpo="77s")
        reload = asyncio.create_task(daemon.reload())
        await closing.wait()
        daemon.stop()
        await asyncio.sleep(0.05)
        go_on.set()
        await reload
    assert not any(job.running for part in daemon._datasets.values() for job in part.job_lines())
    assert not (pair.primary.state / "control.sock").exists()
    assert await daemon.reload() == ["the daemon stops"]


async def test_what_fails_to_end_keeps_nothing_else_from_ending(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that cannot be closed is an error of the daemon's end; its sockets are closed all the same."""

    async def failing(part: Protected) -> None:
        for task in part._tasks:
            task.cancel()
        raise RuntimeError("no part raises this")

    monkeypatch.setattr(Protected, "close", failing)
    with pytest.raises(RuntimeError, match="no part raises this"):
        async with living(pair.primary):
            pass
    assert not (pair.primary.state / "control.sock").exists()


def test_a_hangup_before_it_is_ready_does_not_end_it(pair: Pair) -> None:
    """SIGHUP is answered with a reload also while stores are still being opened."""
    script = (
        "import asyncio, os, signal, sys\n"
        "from replicad.config import load\n"
        "from replicad.daemon import Daemon\n"
        "from replicad.system.notify import Notifier\n"
        "class Early(Daemon):\n"
        "    async def _apply(self, *given):\n"
        "        if not self._datasets:\n"
        "            os.kill(os.getpid(), signal.SIGHUP)\n"
        "            asyncio.get_running_loop().call_later(1, self.stop)\n"
        "        await super()._apply(*given)\n"
        "    async def reload(self):\n"
        "        print('reloaded', await super().reload())\n"
        "asyncio.run(Early(load(__import__('pathlib').Path(sys.argv[1]))).run(Notifier()))\n"
    )
    words = [sys.executable, "-c", script, str(pair.primary.config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "reloaded []\n"), (signal.Signals, done)


async def test_a_release_that_cannot_be_written_down_is_no_release(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever releases a dataset hears that it failed, and one that succeeds is durable when it is told."""
    async with living(pair.primary) as daemon:
        (line,) = daemon.status().datasets
        line.held = True
        durable: list[object] = []
        durably = Dataset.durably

        async def spied(dataset: Dataset, work: Callable[[], object]) -> object:
            durable.append(work)
            return await durably(dataset, work)

        monkeypatch.setattr(Dataset, "durably", spied)
        await daemon.release("www")
        assert durable
        line.held = True
        monkeypatch.setattr(Dataset, "open", _fails)
        with pytest.raises(ReplicadError, match="no ledger says this"):
            await daemon.release("www")


def _fails(*_: object) -> Awaitable[None]:
    raise ReplicadError("no ledger says this")


class Stumbling:
    """A job whose steps go well and whose wait fails once."""

    name = "stumbling"

    def __init__(self) -> None:
        self.steps = 0

    async def step(self) -> None:
        self.steps += 1

    async def wait(self) -> None:
        if self.steps == 1:
            raise OSError("no wait raises this")
        await asyncio.Event().wait()


class Hasty(Clock):
    """Waits for nothing."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def test_a_wait_that_fails_does_not_end_a_loop() -> None:
    """It counts as a failure, is told as what it is, and the loop goes on."""
    job, line, told = Stumbling(), JobStatus("stumbling"), list[str]()
    running = asyncio.create_task(Runner(job, line, Hasty(), lambda _job, text, *_: told.append(text)).run())
    await until(lambda: job.steps == 2 or running.done())
    assert line.running and (line.failures, line.last_error) == (1, "")
    assert told == ["defect: OSError: no wait raises this"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_cancelled_inside_a_step_does_not_end_a_loop() -> None:
    """Only whoever ends the loop ends it: a step that waits for something which another task gives up has failed."""

    class Forsaken(Stumbling):
        async def step(self) -> None:
            await super().step()
            if self.steps == 1:
                forsaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(forsaken.cancel)
                await forsaken

        async def wait(self) -> None:
            await asyncio.Event().wait()

    job, line = Forsaken(), JobStatus("forsaken")
    running = asyncio.create_task(Runner(job, line, Hasty(), log_failure).run())
    await until(lambda: job.steps == 2 or running.done())
    assert line.running and line.failures == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled() and not line.running


def test_a_change_that_keeps_time_and_length_is_seen(pair: Pair) -> None:
    """A client whose name in the file gives way to another's of that length may not connect any more, also where the
    file was put in place with an older one's time, as rsync and cp -p do."""
    file = pair.replica.config
    clients = Clients(load(file))
    assert [client.name for client in clients.current()] == ["ams1"]
    before = file.stat()
    text = file.read_text().replace('"ams1"', '"lon1"')
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert [client.name for client in clients.current()] == ["lon1"]


@pytest.mark.parametrize("words", [("check-config",), ("check-config", "--json")])
def test_a_configuration_whose_name_is_no_text_is_shown(pair: Pair, words: tuple[str, ...]) -> None:
    """A file name that is no UTF-8 is printed with its odd bytes escaped, as text and as JSON."""
    odd = os.fsencode(pair.primary.config.with_name("caf")) + b"\xe9.toml"
    os.rename(pair.primary.config, odd)
    command = [sys.executable, "-m", "replicad", *words, "--config", odd]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # as in a locale such as en_US.UTF-8
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=strict)
    assert done.returncode == 0, done
    assert rb"caf\xe9.toml" in done.stdout.replace(b"\\\\", b"\\")


async def test_a_daemon_whose_configuration_has_such_a_name_lives(pair: Pair) -> None:
    """Its status is written down and given out."""
    odd = Path(os.fsdecode(os.fsencode(pair.primary.config.with_name("caf")) + b"\xe9.toml"))
    pair.primary.config.rename(odd)
    pair.primary.config = odd
    async with living(pair.primary):
        await until((pair.primary.state / "last-status.json").exists)
        told = await asyncio.to_thread(pair.primary.status)
    assert told.config_file.endswith(r"caf\xe9.toml")


async def test_an_order_ends_before_its_dataset_is_closed(tmp_path: Path) -> None:
    """A reload, or a stop, ends a repair that somebody has ordered and waits until it has ended: a dataset that is
    configured anew must not look at a file that the old one still writes to. Who ordered it hears that."""
    root = tmp_path / "www"
    root.mkdir()
    async with rig(tmp_path, root) as primary:
        tendings = Tendings(primary.dataset, primary.pool, primary.clock, Disk(), log_failure, lambda replica: ())
        tendings.add("fra1", Place(), _nobody, lambda: None)
        began, ended = asyncio.Event(), asyncio.Event()

        async def slowly(*_: object, **__: object) -> Mended:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                ended.set()
            raise AssertionError

        tendings.of("fra1").repair = slowly  # type: ignore[method-assign]
        found = Divergence(
            key="block:1:1", dataset="www", side=Side.PRIMARY, peer="", part=Part.BLOCK, found_ns=1, changed_ns=1,
            what="a block differs",
        )  # fmt: skip
        order = asyncio.create_task(tendings.repair(found, dry_run=False))
        await began.wait()
        await tendings.close()
        assert ended.is_set()
        with pytest.raises(ReplicadError, match="the repair was ended"):
            await order
        with pytest.raises(ReplicadError, match="the repair was ended"):
            await tendings.repair(found, dry_run=False)


async def _nobody() -> Channel:
    raise LinkError("nobody is there")
