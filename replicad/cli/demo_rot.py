"""The demo's acts about rot: damage both copies, find it, judge it, repair it, and prove that it is repaired.

Damage to the store is a flipped bit in a segment. The primary's is harder to show honestly: whoever writes a file
moves its ctime, and then it is a change, not rot; only damage from below the file system leaves size, mtime and ctime
alone. In a file system in memory (tmpfs) a store through a mapping does exactly that, without any rights, so the demo
keeps its tree there when it fits; memory is then the medium that rots. Where it does not fit, only the replica's rot is
shown, and the demo says so.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replicad.cli import output
from replicad.cli.stage import Stage, ask, run, title
from replicad.model.errors import ReplicadError

MEMORY = Path("/dev/shm")
ROOM_FACTOR = 2
"""The tree, and changes to it, take at most this many times its size of the file system in memory."""
PATIENCE_S = 120.0
"""How long a verdict or a repair is waited for, on a machine that is busy; it takes seconds."""
LOOK_EVERY_S = 0.3
SETTLED = ("repaired", "gone", "acknowledged")

Divergence = dict[str, Any]


def place_in_memory(size: int) -> Path | None:
    """A new directory in a file system in memory with room for a tree of this size; None when there is none."""
    try:
        room = os.statvfs(MEMORY)
        if not _is_tmpfs(MEMORY) or room.f_bavail * room.f_frsize < ROOM_FACTOR * size:
            return None
        return Path(tempfile.mkdtemp(prefix="replicad-demo-", dir=MEMORY))
    except OSError:
        return None  # then the tree lies beside everything else, and the demo says what it cannot show


def play(stage: Stage, first: int) -> None:
    """The four acts; raises ReplicadError when one does not end as it should."""
    title(first, "Rot: a bit flips in each copy, and no time stamp moves")
    victim = _rot_primary(stage)
    _rot_replica(stage)
    title(first + 1, "Find: both sides read every byte again, from the medium")
    for side, config in _sides(stage, victim):
        run("scrub", "start", "www", "--side", side, "--wait", "--config", config, allowed=(0, 1))
    title(first + 2, "Judge: which side is wrong, and why that is believed")
    for side, config in _sides(stage, victim):
        found = _until(side, config, _is_judged, "has judged what it found")
        for one in found:
            run("divergence", "show", str(one["id"]), "--config", config, allowed=(0, 1))
    title(first + 3, "Repair: the store by itself, the data on command; then everything is read once more")
    if victim:
        for one in _listed("primary", stage.primary):
            run("repair", str(one["id"]), "--config", stage.primary)
    for side, config in _sides(stage, victim):
        _until(side, config, _is_settled, "is repaired")
        run("scrub", "start", "www", "--side", side, "--wait", "--config", config)
    _prove(victim)
    run("divergence", "list", "--all", "--config", stage.primary)


class _Victim:
    """A file of the primary that has rotted, and what it was before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.good = path.read_bytes()
        self.stamp = _stamp(path)


def _rot_primary(stage: Stage) -> _Victim | None:
    """Flip a bit of the largest file below its time stamps; None when this cannot be done honestly here."""
    files = [path for path in stage.tree.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.stat().st_size]
    if not files or not _is_tmpfs(stage.tree):
        output.line(f"   ams1: not shown. {stage.tree} is on no file system in memory with room for it, and elsewhere")
        output.line("   only damage from below the file system, as root, would be rot rather than a change.")
        return None
    victim = _Victim(max(files, key=lambda path: path.stat().st_size))
    at = len(victim.good) // 3
    with victim.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[at] ^= 1
    if _stamp(victim.path) != victim.stamp:
        raise ReplicadError("the file's stamps moved: this file system cannot show rot", where=str(victim.path))
    output.line(
        f"   ams1: one bit of byte {at} of {victim.path.relative_to(stage.tree)}; size, mtime and ctime as before"
    )
    return victim


def _rot_replica(stage: Stage) -> None:
    """Flip a bit in the store's first segment, not where the demo has changed a file: history alone would have that."""
    path = min((stage.store / "ams1" / "www" / "segments").iterdir())
    status = path.stat()
    at = status.st_size // 5
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    output.line(f"   fra1: one bit of byte {at} of {path.relative_to(stage.scene)}")


def _sides(stage: Stage, victim: _Victim | None) -> list[tuple[str, Path]]:
    """The sides whose rot is shown, each with the configuration to ask."""
    primary = [("primary", stage.primary)] if victim else []
    return [*primary, ("replica", stage.replica)]


def _listed(side: str, config: Path) -> list[Divergence]:
    words = ("divergence", "list", "--all", "--json", "--side", side, "--config", config)
    found: list[Divergence] = json.loads(ask(*words, allowed=(0, 1, 3)))["divergences"]
    return found


def _until(side: str, config: Path, reached: Callable[[Divergence], bool], what: str) -> list[Divergence]:
    """Wait for a state of all divergences of a side, of which there must be one."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = _listed(side, config)
        if found and all(map(reached, found)):
            return found
        if time.monotonic() > end:
            states = ", ".join(f"{one['verdict']} {one['state']}" for one in found) or "nothing was found"
            raise ReplicadError(f"the {side} never {what}: {states}")
        time.sleep(LOOK_EVERY_S)


def _is_judged(one: Divergence) -> bool:
    return bool(one["verdict"] != "inconclusive")


def _is_settled(one: Divergence) -> bool:
    return one["state"] in SETTLED


def _prove(victim: _Victim | None) -> None:
    """Compare the file with what it was, independently of replicad."""
    if victim is None:
        return
    if victim.path.read_bytes() != victim.good:
        raise ReplicadError("the repaired file is not what it was", where=str(victim.path))
    output.line(f"   {victim.path.name} is what it was before, byte for byte: {output.mark('repaired', 'ok')}")


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _is_tmpfs(path: Path) -> bool:
    """Whether the file system that holds `path` is one in memory, by the longest mount point above it."""
    real, kind, longest = path.resolve(), "", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, found, *_ = line.split(" ")
        if real.is_relative_to(place) and len(place) >= longest:
            kind, longest = found, len(place)
    return kind == "tmpfs"
