"""The verb `demo`: a whole pair on this machine, from pairing to a proven restore.

Everything is real and is done with the commands that a person would type, which are shown: two daemons as processes
of their own, SSH between them, generated keys, a real tree. Only a copy of the given directory is ever written to.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from replicad.cli import demo_rot, output
from replicad.cli.stage import Stage, run, this_program, title
from replicad.http.api import Client
from replicad.model.entry import show_path
from replicad.model.errors import LinkError, ReplicadError, UsageError
from replicad.status import NodeStatus

START_S = 60.0
"""How long a daemon may take to answer after its start, on a machine that is busy."""
STOP_S = 30.0
CACHES = frozenset({"__pycache__"})
"""Never copied: the demo itself would change them."""
INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Not copied of this Python's own library: there may be gigabytes of them."""


def demo(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Tree to protect; this Python's standard library by default.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave both daemons running and say how to use them.")] = False,
) -> None:
    """Show on this machine alone what replicad does, with real parts, in about a minute.

    Two daemons on loopback with real SSH and generated keys: replicate a copy of DIR, change some files, replicate
    again, restore, compare everything; then let both copies rot, find it, judge it, repair it. DIR itself is only read.
    """
    source = (directory or Path(os.__file__).parent).resolve()
    skipped = CACHES if directory else CACHES | INSTALLED
    if not source.is_dir():
        raise UsageError("is no directory", where=str(source), hint="name a directory to protect")
    scene = Path(tempfile.mkdtemp(prefix="replicad-demo-"))
    memory = demo_rot.place_in_memory(_measure(source, skipped)[1])
    done = False
    try:
        with _stage(scene, memory, keep) as stage:
            _play(stage, source, skipped)
            done = True
    finally:
        if not (keep and done):
            shutil.rmtree(scene, ignore_errors=True)
            if memory:
                shutil.rmtree(memory, ignore_errors=True)


@contextlib.contextmanager
def _stage(scene: Path, memory: Path | None, keep: bool) -> Iterator[Stage]:
    stage = Stage(scene, (memory or scene) / "www", [], keep)
    finished = False
    try:
        yield stage
        finished = True
    finally:
        if not (keep and finished):
            for daemon in reversed(stage.daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in reversed(stage.daemons):
                daemon.wait(STOP_S)


def _play(stage: Stage, source: Path, skipped: Collection[str]) -> None:
    title(1, f"A real tree: a copy of {source}")
    ignore = partial(_not_copied, skipped)
    shutil.copytree(source, stage.tree, symlinks=True, ignore_dangling_symlinks=True, ignore=ignore)
    files, size = _measure(stage.tree)
    output.line(f"   {files} files, {output.show_bytes(size)}")
    title(2, "Pair two nodes: ams1 has the data, fra1 keeps the copy")
    _pair(stage)
    title(3, "First copy: every block checksummed, over SSH, durable on fra1 before it counts")
    run("sync", "www", "--wait", "--config", stage.primary)
    before = _line_sent(stage)
    output.line(f"   sent {output.show_bytes(before)} for {output.show_bytes(size)} of files")
    title(4, "Change some files, copy again: only what changed travels")
    for what in _change(stage.tree):
        output.line(f"   {what}")
    run("sync", "www", "--wait", "--config", stage.primary)
    output.line(f"   sent {output.show_bytes(_line_sent(stage) - before)} this time")
    title(5, "Restore from fra1 and compare every file, byte for byte, and its metadata")
    target = stage.scene / "restored"
    run("restore", "www", target, "--config", stage.primary)
    _prove(stage.tree, target)
    demo_rot.play(stage, first=6)
    title(10, "What the daemons say of themselves")
    run("status", "--config", stage.primary)
    _tell_where(stage)


def _pair(stage: Stage) -> None:
    line = run(
        "init", "replica", "--config", stage.replica, "--name", "fra1", "--listen", f"127.0.0.1:{_free_port()}",
        "--store", stage.store, "--state", stage.state("fra1"), "--http", "127.0.0.1:0", quiet=True,
    )  # fmt: skip
    answer = run(
        "init", "primary", "--config", stage.primary, "--name", "ams1", "--dataset", f"www={stage.tree}",
        "--replica", line, "--state", stage.state("ams1"), "--http", "127.0.0.1:0", quiet=True,
    )  # fmt: skip
    run("authorize", "--config", stage.replica, answer, quiet=True)
    for name, config in (("fra1", stage.replica), ("ams1", stage.primary)):
        _start(stage, name, config)


def _start(stage: Stage, name: str, config: Path) -> None:
    command = ["replicad", "run", "--config", str(config)]
    output.line(f"   $ {' '.join(command)} &")
    with (stage.scene / f"{name}.log").open("wb") as log:
        daemon = subprocess.Popen([*this_program(), *command[1:]], stdout=log, stderr=log, start_new_session=True)
    stage.daemons.append(daemon)
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(LinkError):
            Client(stage.state(name)).status()
            return
        if daemon.poll() is not None or time.monotonic() > end:
            raise ReplicadError(f"{name} did not start:\n{(stage.scene / f'{name}.log').read_text()}")
        time.sleep(0.02)


def _change(tree: Path) -> Iterator[str]:
    """Change the tree in four ways; what was done, in words."""
    files = sorted((p for p in tree.rglob("*") if p.is_file() and not p.is_symlink()), key=lambda p: p.stat().st_size)
    if not files:
        return
    biggest = files[-1]
    with biggest.open("r+b") as file:
        file.seek(biggest.stat().st_size // 2)
        file.write(b"a change of a few bytes")
    yield f"wrote 23 bytes into the middle of {biggest.relative_to(tree)} ({output.show_bytes(biggest.stat().st_size)})"
    (tree / "a new file").write_bytes(os.urandom(100_000))
    yield "made a new file of 97.7 KiB"
    if len(files) > 1:
        files[0].unlink()
        yield f"deleted {show_path(os.fsencode(files[0].relative_to(tree)))}"
    directories = [p for p in tree.iterdir() if p.is_dir() and not p.is_symlink() and p not in biggest.parents]
    if directories:
        moved = max(directories, key=lambda p: _measure(p)[1])
        size = _measure(moved)[1]
        moved.rename(tree / f"{moved.name}-renamed")
        yield f"renamed the directory {moved.name} ({output.show_bytes(size)})"


def _prove(left: Path, right: Path) -> None:
    """Compare both trees; raises ReplicadError naming the first differences."""
    differences: list[str] = []
    count = 0
    names = {p.relative_to(left) for p in left.rglob("*")} | {p.relative_to(right) for p in right.rglob("*")}
    for name in sorted(names):
        count += 1
        difference = _difference(left / name, right / name)
        if difference:
            differences.append(f"{name}: {difference}")
    if differences:
        raise ReplicadError("the restored tree differs: " + "; ".join(differences[:5]))
    output.line(f"   compared {count} entries: {output.mark('all equal', 'ok')}")


def _difference(left: Path, right: Path) -> str:
    if not os.path.lexists(left) or not os.path.lexists(right):
        return "exists on one side only"
    a, b = left.lstat(), right.lstat()
    for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        if getattr(a, field) != getattr(b, field):
            return f"{field} is {getattr(a, field)} and {getattr(b, field)}"
    if stat.S_ISLNK(a.st_mode):
        return "" if left.readlink() == right.readlink() else "link targets differ"
    if stat.S_ISREG(a.st_mode) and (a.st_size != b.st_size or left.read_bytes() != right.read_bytes()):
        return "contents differ"
    return ""


def _tell_where(stage: Stage) -> None:
    for name in ("ams1", "fra1"):
        output.line(f"   metrics of {name}: http://{_status(stage, name).http}/metrics")
    output.line()
    if not stage.keep:
        output.line("The daemons stop now and everything is removed; replicad demo --keep leaves them running.")
    else:
        output.line(f"Both daemons go on running. Everything is in {stage.scene}. Try:")
        output.line(f"   replicad status --config {stage.primary}")
        output.line(f"   replicad snapshots www --config {stage.primary}")
        pids = " ".join(str(daemon.pid) for daemon in stage.daemons)
        places = [str(stage.scene), *([str(stage.tree.parent)] if stage.tree.parent != stage.scene else [])]
        output.line(f"Stop and clean up: kill {pids} && rm -r {' '.join(places)}")


def _status(stage: Stage, name: str) -> NodeStatus:
    return Client(stage.state(name)).status()


def _line_sent(stage: Stage) -> int:
    return _status(stage, "ams1").datasets[0].sent_bytes


def _measure(tree: Path, skipped: Collection[str] = ()) -> tuple[int, int]:
    """Files below `tree` and their bytes, without those below directories of these names."""
    count = size = 0
    for directory, below, names in os.walk(tree):
        below[:] = [name for name in below if name not in skipped]
        found = [status for name in names if stat.S_ISREG((status := os.lstat(os.path.join(directory, name))).st_mode)]
        count, size = count + len(found), size + sum(status.st_size for status in found)
    return count, size


def _not_copied(skipped: Collection[str], directory: str, names: list[str]) -> set[str]:
    """Names in a directory that are skipped, and those that copytree cannot copy: pipes, sockets, devices."""
    found = set()
    for name in names:
        mode = os.lstat(os.path.join(directory, name)).st_mode
        if name in skipped or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            found.add(name)
    return found


def _free_port() -> int:
    """Any free port, but none that the kernel may give to an outgoing connection before the daemon listens at it."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(min(20_000, first - 1_000), first), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise UsageError("no free port of 127.0.0.1 was found for the demonstration")
