"""What hurts two real daemons: edits without end, small disks, a line that can be cut, flipped bits; and what must hold
afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import pytest
import tomlkit

from kit_link import Relay
from kit_pair import Node, Pair, wait_until
from kit_rig import copied, describe_snapshot
from kit_tree import Described, is_root
from replicad.http.api import Client
from replicad.http.contract import SyncRequest
from replicad.status import DatasetStatus

MIB = 1024 * 1024

needs_root = pytest.mark.skipif(not is_root(), reason="needs root to mount, or to become somebody else")


def configure(node: Node, table: str, **values: object) -> None:
    """Set keys of one table (the first of that name) in a node's configuration file."""
    document = tomlkit.parse(node.config.read_text())
    found = document[table]
    chosen = found[0] if isinstance(found, list) else found
    for key, value in values.items():
        chosen[key] = value
    node.config.write_text(tomlkit.dumps(document))


def assert_quiet(*nodes: Node) -> None:
    """No daemon's log tells of a defect."""
    for node in nodes:
        text = node.log.read_text(errors="replace") if node.log.exists() else ""
        for word in ("Traceback", "defect", "AssertionError", "never retrieved", "unexpected "):
            assert word not in text, f"{node.config}:\n{text[-6000:]}"


def ask(pair: Pair) -> SyncRequest:
    """Ask for a pass and do not wait."""
    return Client(pair.primary.state).sync("www")[0]


def served(pair: Pair, request: SyncRequest | None = None) -> DatasetStatus:
    """Ask for a pass (unless that was done) and wait for its end, with no process started for it."""
    asked = request or ask(pair)
    client = Client(pair.primary.state)
    lines: list[DatasetStatus] = []

    def has_ended() -> bool:
        lines[:] = client.status([asked], 1.0).datasets[:1]
        return lines[0].pass_served >= asked.number

    wait_until(has_ended, "the pass ends")
    return lines[0]


def synced(pair: Pair) -> DatasetStatus:
    """A pass that brought everything."""
    line = served(pair)
    assert line.pass_ok, line
    return line


# trees


def digested(tree: dict[bytes, Described]) -> dict[bytes, Described]:
    """The same description with the contents' hashes in place of the contents."""
    for described in tree.values():
        content = described.get("content")
        if isinstance(content, bytes):
            described["content"] = blake3.blake3(content).digest()
    return tree


def tree_now(root: Path) -> dict[bytes, Described]:
    """The tree as a replica can hold it, small enough to be kept."""
    return digested(copied(root))


def tree_at(archive: Path, number: int = 0) -> dict[bytes, Described]:
    """The same of a snapshot, every block proven."""
    return digested(describe_snapshot(archive, number))


def archive_of(pair: Pair) -> Path:
    """The dataset's directory in the replica's store."""
    return pair.store / "ams1" / "www"


class Workload:
    """Random edits of a tree of small files with one big file in it."""

    def __init__(self, root: Path, seed: int, files: int = 300) -> None:
        self.root, self.random = root, random.Random(seed)
        for number in range(12):
            (root / f"d{number % 4}" / f"e{number}").mkdir(parents=True)
        directories = self._directories()
        for number in range(files):
            path = self.random.choice(directories) / f"f{number}"
            path.write_bytes(self.random.randbytes(self.random.choice([0, 100, 3000, 9000])))
        self.big = root / "big"
        self.big.write_bytes(self.random.randbytes(5 * MIB))

    def edit(self, count: int) -> None:
        """So many random changes."""
        for _ in range(count):
            with contextlib.suppress(FileNotFoundError):
                self._edit()

    def _directories(self) -> list[Path]:
        return [self.root, *sorted(p for p in self.root.rglob("*") if p.is_dir() and not p.is_symlink())]

    def _edit(self) -> None:
        choose = self.random
        everything = sorted(self.root.rglob("*"))
        files = [p for p in everything if p.is_file() and not p.is_symlink()]
        fresh = choose.choice(self._directories()) / f"n{choose.randrange(10**9)}"
        path = choose.choice(everything) if everything else fresh
        file = choose.choice(files) if files else fresh
        match choose.randrange(16):
            case 0 | 1 | 2:
                fresh.write_bytes(choose.randbytes(choose.choice([0, 10, 70_000, 1_500_000])))
            case 3:
                fresh.mkdir()
            case 4 | 5 if files:
                _write_at(file, choose.randrange(file.stat().st_size + 100_000), choose.randbytes(100))
            case 6 if files:
                os.truncate(file, choose.randrange(300_000))
            case 7 if files:
                os.link(file, fresh)
            case 8 if path != self.big and path not in fresh.parents:
                path.rename(fresh)
            case 9 if path != self.big:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            case 10 if files:
                file.chmod(choose.choice([0o600, 0o755, 0o444]))
            case 11:
                fresh.symlink_to("somewhere")
            case 12 if files and file != self.big:
                fresh.write_bytes(choose.randbytes(5000))
                fresh.rename(file)
            case 13 if files:
                os.setxattr(file, "user.n", choose.randbytes(8))
            case 14:
                _write_at(self.big, choose.randrange(5 * MIB), choose.randbytes(choose.choice([10, 800_000])))
            case _:
                punch(self.big, choose.randrange(5 * MIB), choose.choice([4096, 500_000]))


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def punch(path: Path, offset: int, length: int) -> None:
    """Make a hole."""
    words = ["fallocate", "-p", "-o", str(offset), "-l", str(length), str(path)]
    subprocess.run(words, check=True, capture_output=True)


# moments


def pause(seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
    """Let a random moment come, in small steps; earlier when `unless` holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not unless():
        time.sleep(0.002)


def during(pair: Pair, reached: Callable[[DatasetStatus], bool], what: str) -> DatasetStatus:
    """Wait until the primary's line says something; that line."""
    found: list[DatasetStatus] = []

    def look() -> bool:
        line = pair.line
        if reached(line):
            found.append(line)
        return bool(found)

    wait_until(look, what)
    return found[0]


# lines


class Line:
    """A relay in a thread of its own: what lies between two daemons."""

    def __init__(self, port: int, **options: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._thread.start()
        self.relay = self._do(self._started, ("127.0.0.1", port), options)

    @property
    def address(self) -> str:
        """What to dial."""
        return f"127.0.0.1:{self.relay.port}"

    def black_hole(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._loop.call_soon_threadsafe(self.relay.black_hole)

    def restore(self) -> None:
        """What was on its way arrives late."""
        self._loop.call_soon_threadsafe(self.relay.restore)

    def cut(self) -> None:
        """Reset all connections."""
        self._loop.call_soon_threadsafe(self.relay.cut)

    def close(self) -> None:
        """End the relay."""
        asyncio.run_coroutine_threadsafe(self.relay.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @staticmethod
    async def _started(target: tuple[str, int], options: dict[str, float]) -> Relay:
        relay = Relay(target, **options)  # type: ignore[arg-type]
        await relay.start()
        return relay

    def _do(self, work: Callable[..., object], *args: object) -> Relay:
        return asyncio.run_coroutine_threadsafe(work(*args), self._loop).result(10)  # type: ignore[arg-type, return-value]


# disks


@contextlib.contextmanager
def small_disk(path: Path, mib: int, kind: str = "tmpfs", *options: str) -> Iterator[Path]:
    """A file system of its own at `path`; `options` are those of mkfs.ext4."""
    path.mkdir(parents=True, exist_ok=True)
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "replicad-test", str(path))
    else:
        image = path.with_name(f"{path.name}.image")
        with image.open("wb") as file:
            file.truncate(mib * MIB)
        _run("mkfs.ext4", "-q", "-m", "0", *options, str(image))
        _run("mount", "-o", "loop", str(image), str(path))
    try:
        yield path
    finally:
        _run("umount", "-l", str(path))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def fill(directory: Path, leave: int = 0) -> Path:
    """Take all room of a file system but `leave` bytes, once more if some came back; remove the file that is returned
    to give all of it back."""
    path = directory / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            while free(directory) > leave:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    return path


def free(directory: Path) -> int:
    """Free bytes."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def flip(path: Path, offset: int, bit: int = 1) -> None:
    """Flip one bit of a file, with its times as before."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bit]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
