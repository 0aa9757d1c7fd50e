"""Media reads: what they read, where it came from, and that the page cache stays as it was."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from kit_source import BadDisk, Meddler, await_tick
from kit_tree import is_root
from replicad.model.block import block_count, block_id, checksum, is_zero
from replicad.model.verdict import Sight
from replicad.source.read import REAL, Access
from replicad.source.reread import Moved
from replicad.source.root import Root, Trouble
from replicad.source.verify import Examined, Name, Outcome, Stretch, examine
from replicad.system import direct
from replicad.system.direct import resident_pages, settle_content, storage_read_bytes

BLOCK = 65536
MIB = 1024 * 1024


class Row(NamedTuple):
    """One block as recorded."""

    id: bytes
    checksum: bytes


def record(root: Root, *paths: str, block_bytes: int = BLOCK) -> Stretch:
    """The whole file as it is now, as recorded; it has these names."""
    data = Path(os.fsdecode(root.path), paths[0]).read_bytes()
    rows: dict[int, Row] = {}
    for number in range(block_count(len(data), block_bytes)):
        piece = data[number * block_bytes : (number + 1) * block_bytes]
        if not is_zero(piece):
            rows[number] = Row(block_id(piece), checksum(piece))
    names = [named(root, path) for path in paths]
    return Stretch(names, block_bytes, range(block_count(len(data), block_bytes)), rows)


def named(root: Root, path: str) -> Name:
    stamp = root.look(path.encode())
    assert stamp is not None
    return Name(path.encode(), stamp)


def look(root: Root, stretch: Stretch, access: Access = REAL) -> Outcome:
    (outcome,) = examine(root, [stretch], access=access)
    return outcome


def fill(path: Path, size: int, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    subprocess.run(["sync", str(path)], check=True)
    return data


def cached(path: Path) -> int:
    """Pages of the file that are in the page cache."""
    with open(path, "rb", buffering=0) as file:
        return sum(page & 1 for page in resident_pages(file.fileno(), 0, path.stat().st_size))


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(path) == 0


def read_bytes() -> int:
    """What the kernel says that storage delivered to this process."""
    text = Path("/proc/self/io").read_text()
    found = re.search(r"^read_bytes: (\d+)$", text, re.M)
    assert found
    return int(found[1])


def undisturbed(tmp_path: Path, experiment: Callable[[], None]) -> None:
    """Run an experiment about cached pages; again, if somebody dropped the whole host's cache meanwhile."""
    control = tmp_path / "control"
    for _ in range(10):
        fill(control, 1)
        try:
            experiment()
            return
        except AssertionError:
            if cached(control):
                raise
    pytest.fail("the page cache is dropped all the time")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    with Root(os.fsencode(tmp_path)) as opened:
        yield opened


SIZES = [1, 511, 4095, 4096, 4097, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 5 * MIB, 9 * MIB + 12_345]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_in_the_cache_is_read_from_the_device_and_stays_in_the_cache(
    tmp_path: Path, root: Root, size: int
) -> None:
    """The kernel's account proves it: each byte, tails included, was delivered by storage although it was cached."""

    def experiment() -> None:
        fill(tmp_path / "warm", size)
        stretch = record(root, "warm")
        pages = cached(tmp_path / "warm")
        assert pages == -(-size // mmap.PAGESIZE)
        before = read_bytes()
        found = look(root, stretch)
        assert read_bytes() - before >= size
        assert found == Examined(b"warm", size, True)
        assert cached(tmp_path / "warm") == pages

    undisturbed(tmp_path, experiment)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_that_is_not_cached_is_not_cached_afterwards(tmp_path: Path, root: Root, size: int) -> None:
    """Direct reads put nothing into the page cache."""
    fill(tmp_path / "cold", size)
    stretch = record(root, "cold")
    forget(tmp_path / "cold")
    assert look(root, stretch) == Examined(b"cold", size, True)
    assert cached(tmp_path / "cold") == 0


class NoDirect(Access):
    """A file system that refuses direct reads at the transfer."""

    def read_into(self, fd: int, direct: direct.DirectReader | None, buffer: memoryview, offset: int) -> int:
        if direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().read_into(fd, direct, buffer, offset)


def test_where_direct_reads_are_refused_only_what_was_not_cached_is_dropped(tmp_path: Path, root: Root) -> None:
    """The look counts as cache; pages that were cached before stay, the others leave again."""
    size = 48 * MIB

    def experiment() -> None:
        for name in ("cold", "warm", "half"):
            fill(tmp_path / name, size)
        stretches = [record(root, name, block_bytes=MIB) for name in ("cold", "warm", "half")]
        forget(tmp_path / "cold")
        forget(tmp_path / "half")
        with open(tmp_path / "half", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
            os.pread(file.fileno(), 16 * MIB, 0)
        half = cached(tmp_path / "half")
        assert 0 < half < size // mmap.PAGESIZE
        found = examine(root, stretches, access=NoDirect())
        assert [(one.read_bytes, one.is_media) for one in found if isinstance(one, Examined)] == [(size, False)] * 3
        assert cached(tmp_path / "cold") == 0
        assert cached(tmp_path / "warm") == size // mmap.PAGESIZE
        assert abs(cached(tmp_path / "half") - half) <= 64, "what straddles the border may stay"

    undisturbed(tmp_path, experiment)


def test_memory_file_systems_give_cache(root: Root) -> None:
    """tmpfs takes the flag for direct reads and answers from memory: the account shows that no device was asked."""
    shm = Path("/dev/shm", f"replicad-test-{os.getpid()}")
    shm.mkdir()
    try:
        fill(shm / "a", 3 * BLOCK + 5)
        with Root(os.fsencode(shm)) as top:
            assert look(top, record(top, "a")) == Examined(b"a", 3 * BLOCK + 5, False)
        assert cached(shm / "a") > 0
    finally:
        for path in shm.iterdir():
            path.unlink()
        shm.rmdir()


def test_mapped_pages_are_written_before_they_are_read(tmp_path: Path, root: Root) -> None:
    """A direct read sees what was stored into mapped memory a moment ago."""
    fill(tmp_path / "a", 2 * BLOCK)
    with open(tmp_path / "a", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[70_000:70_004] = b"late"
        stretch = record(root, "a")
        assert look(root, stretch) == Examined(b"a", 2 * BLOCK, True)


def test_stores_into_mapped_memory_show_once_the_content_was_settled(tmp_path: Path) -> None:
    """A store into a page that is dirty already moves no time; after `settle_content` the next one does. That is why
    what a pass records is settled first: else a later store would look like rot."""
    fill(tmp_path / "a", BLOCK)

    def moved() -> int:
        return (tmp_path / "a").stat().st_ctime_ns

    def store(memory: mmap.mmap) -> int:
        await_tick()
        memory[0] ^= 1
        return moved()

    with open(tmp_path / "a", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for _ in range(10):
            settle_content(file.fileno())
            before = moved()
            first = store(memory)
            assert first > before
            if store(memory) == first:
                break  # else the kernel wrote the page meanwhile, of its own accord
        else:
            pytest.fail("every store shows, also into a page that is dirty")
        settle_content(file.fileno())
        assert store(memory) > first


def test_a_long_write_is_waited_for(tmp_path: Path) -> None:
    """One write(2) moves the times when it begins and may last: content counts as settled once it is over."""
    size = 192 * MIB
    fill(tmp_path / "a", size)
    data, started = b"x" * size, threading.Event()

    def write() -> None:
        with open(tmp_path / "a", "r+b", buffering=0) as file:
            started.set()
            file.write(data)

    with open(tmp_path / "a", "rb", buffering=0) as file:
        before = os.fstat(file.fileno()).st_ctime_ns
        await_tick()
        writer = threading.Thread(target=write)
        writer.start()
        started.wait()
        while os.fstat(file.fileno()).st_ctime_ns == before:
            time.sleep(0.0001)
        settle_content(file.fileno())
        assert os.pread(file.fileno(), 1, size - 1) == b"x"
        writer.join()


@pytest.mark.parametrize("offset", [0, 65_535, 65_536, 4 * MIB, 9 * MIB + 12_344])
@pytest.mark.parametrize("is_direct", [True, False])
def test_a_changed_byte_is_seen_twice_wherever_it_is(tmp_path: Path, root: Root, offset: int, is_direct: bool) -> None:
    """First block, last byte of the tail, on every side of every border; also through the cache."""
    size = 9 * MIB + 12_345
    data = bytearray(fill(tmp_path / "a", size))
    stretch = record(root, "a")
    data[offset] ^= 0x80
    (tmp_path / "a").write_bytes(data)
    stretch = Stretch([named(root, "a")], BLOCK, stretch.blocks, stretch.expected)  # as if it had changed by itself
    found = look(root, stretch, REAL if is_direct else NoDirect())
    assert isinstance(found, Examined)
    (odd,) = found.odd
    assert (odd.number, odd.sight, odd.is_passing) == (offset // BLOCK, Sight.DIFFERS, False)
    assert odd.first.data == data[odd.offset : odd.offset + odd.length]
    assert odd.first.checksum == odd.second.checksum == checksum(odd.first.data)


def test_bad_bytes_of_a_file_that_is_rotten_throughout_are_not_all_kept(tmp_path: Path, root: Root) -> None:
    """Each block is told; only the first few MiB of bad bytes are held."""
    fill(tmp_path / "a", 12 * MIB)
    stretch = record(root, "a")
    fill(tmp_path / "a", 12 * MIB, seed=2)
    found = look(root, Stretch([named(root, "a")], BLOCK, stretch.blocks, stretch.expected))
    assert isinstance(found, Examined)
    assert len(found.odd) == 12 * MIB // BLOCK
    assert all(one.sight is Sight.DIFFERS for one in found.odd)
    assert 0 < sum(len(one.first.data) + len(one.second.data) for one in found.odd) <= 4 * MIB


def test_one_bad_sector_costs_one_block(tmp_path: Path, root: Root) -> None:
    """The rest of the slab is read around it."""
    fill(tmp_path / "a", 5 * MIB)
    found = look(root, record(root, "a"), BadDisk(3 * MIB + 9))
    assert isinstance(found, Examined)
    assert [(one.number, one.sight) for one in found.odd] == [(3 * MIB // BLOCK, Sight.UNREADABLE)]


def test_holes_are_not_read_and_must_be_zero(tmp_path: Path, root: Root) -> None:
    """Of a file with an island in a sea of nothing only the island is read."""
    with open(tmp_path / "a", "wb") as file:
        file.truncate(600 * MIB)
        file.seek(300 * MIB + 77)
        file.write(b"island")
        os.fsync(file.fileno())
    piece = bytes(77) + b"island" + bytes(BLOCK - 83)
    rows = {300 * MIB // BLOCK: Row(block_id(piece), checksum(piece))}
    found = look(root, Stretch([named(root, "a")], BLOCK, range(600 * MIB // BLOCK), rows))
    assert isinstance(found, Examined)
    assert found.odd == ()
    assert 0 < found.read_bytes <= 2 * BLOCK


def test_allocated_space_that_was_never_written_counts_as_read_from_the_medium(tmp_path: Path, root: Root) -> None:
    """It reads as zeros without the device; that does not make the rest of the file a cached one."""
    with open(tmp_path / "a", "wb") as file:
        file.write(random.Random(1).randbytes(BLOCK))
        os.posix_fallocate(file.fileno(), 0, 20 * BLOCK)
        os.fsync(file.fileno())
    assert look(root, record(root, "a")) == Examined(b"a", 20 * BLOCK, True)


def test_an_unknown_checksum_is_told_when_the_id_is_right(tmp_path: Path, root: Root) -> None:
    """Of two blocks without a checksum the right one brings it, the wrong one is odd."""
    data = fill(tmp_path / "a", 2 * BLOCK)
    rows = {0: Row(block_id(data[:BLOCK]), b""), 1: Row(b"i" * 32, b"")}
    found = look(root, Stretch([named(root, "a")], BLOCK, range(2), rows))
    assert isinstance(found, Examined)
    assert found.learned == {0: checksum(data[:BLOCK])}
    assert [one.number for one in found.odd] == [1]


def test_another_name_serves_when_the_first_leads_elsewhere(tmp_path: Path, root: Root) -> None:
    """Hard links are one file: a name that is gone, or is another file by now, does not keep it from being verified."""
    fill(tmp_path / "b", BLOCK)
    os.link(tmp_path / "b", tmp_path / "c")
    os.link(tmp_path / "b", tmp_path / "d")
    await_tick()
    (tmp_path / "c").unlink()
    stretch = record(root, "b", "d")
    other = Name(b"c", stretch.names[0].stamp)
    fill(tmp_path / "e", BLOCK)
    elsewhere = Name(b"e", stretch.names[0].stamp)
    names = [other, elsewhere, *stretch.names]
    found = look(root, Stretch(names, BLOCK, stretch.blocks, stretch.expected))
    assert isinstance(found, Examined)
    assert found.path == b"b"


def test_a_file_that_moves_is_moved(tmp_path: Path, root: Root) -> None:
    """Written, cut, replaced or removed: before the look or during it, it is not judged."""
    fill(tmp_path / "a", 3 * BLOCK)
    stretch = record(root, "a")
    await_tick()
    deeds = [
        lambda: os.truncate(tmp_path / "a", BLOCK),
        lambda: os.truncate(tmp_path / "a", 0),
        lambda: fill(tmp_path / "a", 3 * BLOCK, seed=2),
        lambda: (tmp_path / "a").chmod(0o600),
    ]
    for deed in deeds:
        stretch = Stretch([named(root, "a")], BLOCK, stretch.blocks, stretch.expected)
        await_tick()
        assert isinstance(look(root, stretch, Meddler(deed)), Moved)
        assert isinstance(look(root, stretch), Moved)
    (tmp_path / "a").unlink()
    gone = look(root, stretch)
    assert isinstance(gone, Trouble)
    assert gone.vanished
    (tmp_path / "a").symlink_to("/etc/passwd")
    assert isinstance(look(root, stretch), Trouble)


def test_another_error_than_the_mediums_is_a_trouble(tmp_path: Path, root: Root) -> None:
    """Out of memory or out of rights says nothing about the bytes."""
    fill(tmp_path / "a", BLOCK)
    found = look(root, record(root, "a"), BadDisk(direct_errno=errno.ENOMEM))
    assert isinstance(found, Trouble)
    assert not found.vanished


@pytest.mark.skipif(not is_root(), reason="sets trusted attributes")
def test_attributes_that_depend_on_rights_are_drift_only_when_both_are_seen(tmp_path: Path, root: Root) -> None:
    """What this process could not see when it recorded is no change; another value of what it did see is."""
    fill(tmp_path / "a", BLOCK)
    os.setxattr(tmp_path / "a", "trusted.t", b"1")
    os.setxattr(tmp_path / "a", "user.u", b"1")
    stretch = record(root, "a")
    (name,) = stretch.names

    def drift(*xattrs: tuple[bytes, bytes]) -> str:
        recorded = Name(name.path, name.stamp, xattrs)
        found = look(root, Stretch([recorded], BLOCK, stretch.blocks, stretch.expected))
        assert isinstance(found, Examined)
        return "; ".join(found.drift)

    assert drift((b"trusted.t", b"1"), (b"user.u", b"1")) == ""
    assert drift((b"user.u", b"1")) == ""
    assert "trusted.t" in drift((b"trusted.t", b"2"), (b"user.u", b"1"))
    assert "user.u" in drift((b"trusted.t", b"1"))
    assert "user.v" in drift((b"user.u", b"1"), (b"user.v", b"1"))


def test_a_kernel_that_does_not_count_or_does_not_know_is_no_obstacle(
    tmp_path: Path, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without cachestat the mapped pages are asked; the result is the same."""

    def experiment() -> None:
        fill(tmp_path / "a", 5 * BLOCK)
        fill(tmp_path / "b", 100)
        stretches = [record(root, "a"), record(root, "b")]
        monkeypatch.setattr(direct, "_CACHESTAT", 9999)
        monkeypatch.setattr(direct, "_has_cachestat", True)
        forget(tmp_path / "a")
        assert all(isinstance(one, Examined) and one.is_media for one in examine(root, stretches))
        assert not direct._has_cachestat
        assert (cached(tmp_path / "a"), cached(tmp_path / "b")) == (0, 1)

    undisturbed(tmp_path, experiment)


def test_each_thread_has_an_account_of_its_own(tmp_path: Path, root: Root) -> None:
    """What another thread reads does not make a cached look one from the medium."""
    fill(tmp_path / "a", 5 * MIB)
    with ThreadPoolExecutor(1) as other:
        before, elsewhere = storage_read_bytes(), other.submit(storage_read_bytes).result()
        look(root, record(root, "a"))
        assert before is not None
        assert (storage_read_bytes() or 0) - before >= 5 * MIB
        assert other.submit(storage_read_bytes).result() == elsewhere


def test_the_cache_is_asked_through_sound_structures() -> None:
    """The kernel writes five numbers: the gauge has room for them."""
    assert ctypes.sizeof(direct.CacheGauge()._told) == 40
