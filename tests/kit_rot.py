"""Rot for real: damages a file's bytes below a mounted file system, so that size, mtime and ctime know nothing of it.

    with real_disk(tmp_path, "ext4") as disk:
        rotten = disk.rot(disk.top / "file", offset=70_000, kind=Kind.BIT, seed=1)

The file's place on the disk is asked of the kernel (FIEMAP; on btrfs the chunk tree as well, because its FIEMAP gives
logical addresses), the damage is done in the backing image, and the caches above forget what they held, which is
verified by reading. What has no place of its own (data inside an inode, compressed, encrypted, not yet written) is
refused with a reason: `CannotRot`. Nothing is skipped silently: `needs_disks` says loudly what is missing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

MIB = 1024 * 1024
SECTOR_BYTES = 512
FS_BLOCK_BYTES = 4096
"""Block size of all file systems that are made here: what one misdirected or lost write hits."""
MAX_BURST_BYTES = 48
SMALLEST_MIB = {"ext4": 64, "xfs": 320, "btrfs": 256}
"""Images are sparse; xfs refuses less than 300 MB, and btrfs needs room for its first chunks."""
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-I", "256", "-E", "lazy_itable_init=1,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K", "-m", "single", "-d", "single"),
}
OPTIONS = {"ext4": "noatime", "xfs": "noatime", "btrfs": "noatime,max_inline=0"}
"""btrfs would keep files of up to 2 KiB inside its metadata."""
PATIENCE_S = 20.0


class CannotRot(Exception):
    """These bytes cannot be damaged below the file system, and why."""


class Kind(StrEnum):
    """What a disk does to data."""

    BIT = "single bit"
    BURST = "burst"
    ZERO = "zeroed sector"
    MISDIRECTED = "misdirected block"
    STALE = "stale block"


def decay(before: bytes, at: int, kind: Kind, seed: int, other: bytes = b"") -> bytes:
    """`before` (one block of a file system, or what of it a file shows) after such an accident at byte `at`.

    `other` is what stands there instead after a misdirected or lost write. Raises CannotRot when nothing would change.
    """
    choose, after = random.Random(seed), bytearray(before)
    if kind is Kind.BIT:
        after[at] ^= 1 << choose.randrange(8)
    elif kind is Kind.BURST:
        for position in range(at, min(len(after), at + choose.randrange(2, MAX_BURST_BYTES))):
            after[position] ^= choose.randrange(1, 256)
    elif kind is Kind.ZERO:
        start = at - at % SECTOR_BYTES
        end = min(len(after), start + SECTOR_BYTES)
        after[start:end] = bytes(end - start)
    else:
        after[:] = other[: len(after)].ljust(len(after), b"\0")
    if bytes(after) == before:
        raise CannotRot(f"{kind}: the bytes would stay what they are")
    return bytes(after)


@dataclass(frozen=True, slots=True)
class Rotten:
    """What was done to a file."""

    path: Path
    kind: Kind
    offset: int
    """First byte of the file that differs."""
    before: bytes
    """From there to the last byte that differs."""
    after: bytes
    place: int
    """Where that is in the backing image."""
    is_readable: bool
    """Whether reading gives the wrong bytes; False: reading gives an error (EIO)."""

    @property
    def length(self) -> int:
        """From the first to the last byte that differs."""
        return len(self.before)


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted file system in an image."""

    kind: str
    image: Path
    device: str
    top: Path
    """Where it is mounted."""

    def rot(
        self, path: Path, offset: int, kind: Kind = Kind.BIT, seed: int = 0, *, other: bytes | None = None
    ) -> Rotten:
        """Damage the file at its byte `offset` below the file system.

        `other`: what a misdirected or stale block gives; by default some other block of this file. Raises CannotRot.
        """
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            start = offset - offset % FS_BLOCK_BYTES
            before = os.pread(file.fileno(), FS_BLOCK_BYTES, start)
            if not start <= offset < start + len(before):
                raise CannotRot(f"{path} has no byte {offset}")
            if kind in (Kind.MISDIRECTED, Kind.STALE) and other is None:
                other = _other_block(file.fileno(), start, before)
            after = decay(before, offset - start, kind, seed, other or b"")
            place = self._place(file.fileno(), start, path)
            self._write(place, before, after, path)
            self._forget(file.fileno())
            readable = self._is_seen(file.fileno(), start, after, path)
        first, last = _differing(before, after)
        return Rotten(path, kind, start + first, before[first:last], after[first:last], place + first, readable)

    def block(self, path: Path, offset: int) -> bytes:
        """The file system's block at a byte of a file: what a later `rot(…, Kind.STALE, other=…)` brings back."""
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), FS_BLOCK_BYTES, offset - offset % FS_BLOCK_BYTES)

    def heal(self, rotten: Rotten, path: Path | None = None) -> None:
        """Undo the damage below the file system, as it was done; `path` when the file has moved since."""
        with open(path or rotten.path, "rb", buffering=0) as file:
            self._write(rotten.place, rotten.after, rotten.before, rotten.path)
            self._forget(file.fileno())

    def _place(self, fd: int, offset: int, path: Path) -> int:
        """Where the byte is in the image."""
        physical = _physical(fd, offset, path)
        return _device_offset(fd, physical) if self.kind == "btrfs" else physical

    def _write(self, place: int, before: bytes, after: bytes, path: Path) -> None:
        with open(self.image, "r+b", buffering=0) as image:
            found = os.pread(image.fileno(), len(before), place)
            if found != before:
                raise CannotRot(f"{path}: the image does not hold the file's bytes at {place}")
            os.pwrite(image.fileno(), after, place)
            os.fsync(image.fileno())

    def _forget(self, fd: int) -> None:
        """Have the caches above the image forget the file and the device."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        device = os.open(self.device, os.O_RDONLY)
        try:
            fcntl.ioctl(device, _BLKFLSBUF, 0)
        finally:
            os.close(device)

    def _is_seen(self, fd: int, start: int, after: bytes, path: Path) -> bool:
        """Whether a reader gets the damaged bytes (an error: False). Fails when it still gets the good ones."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                if os.pread(fd, len(after), start) == after:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # our own look leaves no trace
                    return True
            except OSError as error:
                if error.errno == errno.EIO:
                    return False
                raise
            assert time.monotonic() < end, f"{path}: the page cache still has the bytes from before the damage"
            drop_caches()


@contextmanager
def real_disk(directory: Path, kind: str = "ext4", mib: int = 0, *, options: str = "") -> Iterator[Disk]:
    """A file system of that kind in an image in `directory`, mounted there for as long as the context lasts."""
    image, top = directory / f"{kind}.image", directory / kind
    top.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(max(mib, SMALLEST_MIB[kind]) * MIB)
    _run(*MAKE[kind], image)
    device = _run("losetup", "--find", "--show", image).strip()
    try:
        _run("mount", "-o", options or OPTIONS[kind], device, top)
        try:
            yield Disk(kind, image, device, top)
        finally:
            _unmount(top)
    finally:
        _run("losetup", "--detach", device)
        image.unlink()


def why_no_disks() -> str:
    """Why no file systems can be mounted here; "" when they can."""
    if os.geteuid():
        return "mounting needs root"
    if not os.path.exists("/dev/loop-control"):
        return "this kernel or container gives no loop devices (/dev/loop-control is not there)"
    wanted = [words[0] for words in MAKE.values()] + ["losetup", "mount"]
    gone = [name for name in wanted if not shutil.which(name, path=_PATH)]
    if gone:
        return f"missing programs: {', '.join(gone)} (tests/install-packages installs them)"
    known = Path("/proc/filesystems").read_text().split()
    unknown = [kind for kind in MAKE if kind not in known and not _can_load(kind)]
    return f"this kernel has no {', '.join(unknown)}" if unknown else ""


def drop_caches() -> None:
    """The whole machine's page cache forgets what is on the disks anyway."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


# ------------------------------------------------------------------------------------------------- where bytes are

_FIEMAP = 0xC020660B
_BLKFLSBUF = 0x1261
_TREE_SEARCH = 0xD0009411
_fiemap = struct.Struct("<QQIIII")
_extent = struct.Struct("<QQQQQIIII")
_FIEMAP_SYNC = 1
_REFUSED = {
    0x0002: "its place is not known",
    0x0004: "it is not allocated yet",
    0x0008: "it is compressed",
    0x0080: "it is encrypted",
    0x0200: "it stands inside the inode or the metadata (inline)",
    0x0400: "it shares a block with other tails",
    0x0800: "it is allocated and not written (reads as zeros)",
}


def _physical(fd: int, offset: int, path: Path) -> int:
    """Physical address of a byte by FIEMAP. Raises CannotRot."""
    request = _fiemap.pack(offset, 1, _FIEMAP_SYNC, 0, 1, 0) + bytes(_extent.size)
    answer = fcntl.ioctl(fd, _FIEMAP, request)
    if not _fiemap.unpack_from(answer)[3]:
        raise CannotRot(f"{path}: byte {offset} lies in a hole")
    logical, physical, length, _, _, flags, *_ = _extent.unpack_from(answer, _fiemap.size)
    for flag, reason in _REFUSED.items():
        if flags & flag:
            raise CannotRot(f"{path}: byte {offset} has no place of its own: {reason}")
    if not logical <= offset < logical + length:
        raise CannotRot(f"{path}: byte {offset} lies in a hole")
    return int(physical + offset - logical)


_search_key = struct.Struct("<7Q4I4Q")
_search_header = struct.Struct("<QQQII")
_CHUNK_TREE, _CHUNK_OBJECT, _CHUNK_ITEM = 3, 256, 228
_SEARCH_BYTES = 4096
_FIRST_STRIPE_OFFSET = 48 + 8
"""In a chunk item: 48 bytes of its own, then of each stripe the device id and the offset on that device."""


def _device_offset(fd: int, address: int) -> int:
    """Where a logical address of btrfs is on its only device, by its chunk tree."""
    most = 2**64 - 1
    key = _search_key.pack(
        _CHUNK_TREE, _CHUNK_OBJECT, _CHUNK_OBJECT, 0, most, 0, most, _CHUNK_ITEM, _CHUNK_ITEM, 4096, 0, 0, 0, 0, 0
    )
    buffer = bytearray(key.ljust(_SEARCH_BYTES, b"\0"))
    fcntl.ioctl(fd, _TREE_SEARCH, buffer)
    at = _search_key.size
    for _ in range(_search_key.unpack_from(buffer)[9]):
        _, _, start, _, size = _search_header.unpack_from(buffer, at)
        at += _search_header.size
        (length,) = struct.unpack_from("<Q", buffer, at)
        (stripe,) = struct.unpack_from("<Q", buffer, at + _FIRST_STRIPE_OFFSET)
        if start <= address < start + length:
            return int(stripe + address - start)
        at += size
    raise CannotRot(f"no chunk of this btrfs holds the address {address}")


def _other_block(fd: int, start: int, before: bytes) -> bytes:
    """Another block of the file that differs from this one."""
    size = os.fstat(fd).st_size
    for at in range(size - size % FS_BLOCK_BYTES, -1, -FS_BLOCK_BYTES):
        found = os.pread(fd, FS_BLOCK_BYTES, at)
        if at != start and found[: len(before)] != before and any(found):
            return found
    raise CannotRot("the file has no other block that differs; name another block's bytes")


def _differing(before: bytes, after: bytes) -> tuple[int, int]:
    places = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return places[0], places[-1] + 1


# ------------------------------------------------------------------------------------------------------------ mounts

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*words: object) -> str:
    command = [shutil.which(str(words[0]), path=_PATH) or str(words[0]), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _unmount(top: Path) -> None:
    """Unmount; whoever still has a file open there is given a moment."""
    end = time.monotonic() + PATIENCE_S
    while subprocess.run(["umount", str(top)], capture_output=True, check=False).returncode:
        if time.monotonic() > end:
            _run("umount", "--lazy", top)
            return
        time.sleep(0.05)


def _can_load(kind: str) -> bool:
    return subprocess.run(["modprobe", kind], capture_output=True, check=False).returncode == 0


needs_disks = pytest.mark.skipif(
    bool(why_no_disks()), reason=f"REAL ROT IS NOT TESTED, no file system can be mounted here: {why_no_disks()}"
)
