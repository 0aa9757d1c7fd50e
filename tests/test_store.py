"""Segments and the store: everything that was written is found again, and everything that was not is named."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kit_store import CLIENT, DATASET, PAGE, Clock, FaultyDisk, block, block_frame, flip, verify_segment
from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, PeerError, ReplicadError
from replicad.model.position import Position
from replicad.store import segments as module
from replicad.store import store as store_module
from replicad.store.format import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    Frame,
    FrameType,
    SegmentHeader,
    encode_pad,
    encode_plain,
    encode_segment_header,
    parse_frame,
    split_frames,
)
from replicad.store.segments import Damage, Found, SegmentFiles, Torn, segment_numbers, segment_path
from replicad.store.store import Owner, Store, book_bytes, store_path, stored_bytes
from replicad.system.disk import Disk

UUID = bytes(range(16))
OWNER = Owner(UUID, CLIENT, DATASET)


def make(directory: Path, disk: Disk | None = None, *, reserve_bytes: int = 0) -> Store:
    """A store in an existing directory, to be appended to from the start."""
    (directory / "segments").mkdir(parents=True, exist_ok=True)
    return Store(directory, OWNER, disk=disk or Disk(), reserve_bytes=reserve_bytes, clock_ns=Clock())


def add(store: Store, *frames: bytes) -> tuple[int, int]:
    """Append frames."""
    data = b"".join(frames)
    store.check_room(len(data))
    return store.append(data, [frame.checksum for frame in split_frames(data)])


def scan(store: Store, number: int = 1, *, last: bool = True) -> list[Found]:
    """Everything found in a segment; payloads are dropped, because they are valid only while scanning."""
    found = store.scan(Position(number), last=last)
    try:
        return [_without_payload(item) for item in found]
    finally:
        found.close()


def _without_payload(item: Found) -> Found:
    if not isinstance(item, Frame):
        return item
    return Frame(item.type, item.codec, item.stored, item.plain, item.id, item.checksum, None, item.offset)


def frames_in(found: list[Found]) -> list[Frame]:
    """The valid frames."""
    return [item for item in found if isinstance(item, Frame)]


def troubles_in(found: list[Found]) -> list[Damage | Torn]:
    """The rest."""
    return [item for item in found if not isinstance(item, Frame)]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Segments that are full after 20 000 bytes."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 20_000)
    return 20_000


def filled(directory: Path) -> tuple[Store, bytes]:
    """A store with one synced segment of blocks and a record; the file's bytes."""
    store = make(directory)
    for number in range(6):
        add(store, block_frame(block(f"block {number} ", 300 + 400 * number)))
        if number == 3:
            store.sync()
    add(store, encode_plain(FrameType.RECORD, b"record"), encode_plain(FrameType.COMMIT, b"commit"))
    store.sync()
    return store, segment_path(directory, 1).read_bytes()


def test_what_is_appended_is_found(tmp_path: Path) -> None:
    """Frames come back in order with the header first, a pad at each sync, and running digest and count as written."""
    store, data = filled(tmp_path)
    frames = frames_in(scan(store))
    assert [frame.type for frame in frames] == [1, 2, 2, 2, 2, 6, 2, 2, 3, 4, 6]
    assert troubles_in(scan(store)) == [] and len(data) % PAGE == 0
    again = store.scan(Position(1), last=True)
    assert len(list(again)) == len(frames)
    assert again.header and (again.header.store, again.header.number, again.header.client) == (UUID, 1, CLIENT)
    assert again.position == store.position
    again.close()
    files = SegmentFiles(tmp_path, Disk())
    for frame in frames:
        assert split_frames(files.read(1, frame.offset, frame.end - frame.offset))[0].id == frame.id
    files.close()


def test_large_frames_cross_windows(tmp_path: Path) -> None:
    """A segment far larger than a read window is scanned without a gap, wherever frames cross the windows."""
    store = make(tmp_path)
    choose = random.Random(1)
    sizes = [choose.choice((10, 70_000, 900_000, 1_048_576)) for _ in range(60)]
    for i, size in enumerate(sizes):
        add(store, block_frame(i.to_bytes(4, "big") + os.urandom(size - 4)))
    store.sync()
    found = scan(store)
    assert [frame.plain for frame in frames_in(found) if frame.type == FrameType.BLOCK] == sizes
    assert troubles_in(found) == []


def test_full_segments_are_sealed_and_chained(tmp_path: Path, small_segments: int) -> None:
    """A full segment ends with a seal, and the next one's header continues its digest; the whole verifies."""
    store = make(tmp_path)
    for number in range(30):
        add(store, block_frame(block(f"{number} ", 3000)))
    store.sync()
    numbers = segment_numbers(tmp_path)
    assert len(numbers) >= 3 and numbers == list(range(1, len(numbers) + 1))
    digest = bytes(16)
    for number in numbers:
        found = store.scan(Position(number), last=number == numbers[-1])
        assert troubles_in(list(found)) == [] and found.header and found.header.previous == digest
        assert bool(found.sealed) == (number != numbers[-1])
        digest = found.sealed.digest if found.sealed else b""
        found.close()
    assert [verify_segment(tmp_path, number, Disk()) for number in numbers[:-1]] == [[]] * (len(numbers) - 1)


def test_the_real_limit_is_64_mib() -> None:
    """The documented segment size is the one in force."""
    assert SEGMENT_BYTES == 64 * 1024**2


def test_resuming_goes_on_where_it_ended(tmp_path: Path, small_segments: int) -> None:
    """A store resumed at a position writes the very bytes that an uninterrupted one would have written."""
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    for number in range(12):
        frame = block_frame(block(f"{number} ", 3000))
        add(first, frame)
        first.sync()
        add(second, frame)
        second.sync()
        position = second.position
        second.drop_writer()
        second = make(tmp_path / "b")
        second._clock_ns = first._clock_ns
        second.resume(position)
    for number in segment_numbers(tmp_path / "a"):
        one, other = scan(first, number), scan(second, number)
        assert [(f.type, f.offset) for f in frames_in(one)] == [(f.type, f.offset) for f in frames_in(other)]
        assert troubles_in(one)[1:] == troubles_in(other)[1:] == []


def test_every_cut_leaves_the_frames_before_it(tmp_path: Path) -> None:
    """Wherever the last segment is cut, the frames before the cut are found and the rest is torn, never damage."""
    store, data = filled(tmp_path)
    path = segment_path(tmp_path, 1)
    frames = frames_in(scan(store))
    for size in range(len(data) - 1, -1, -7):
        os.truncate(path, size)
        found = scan(store)
        whole = [frame for frame in frames if frame.end <= size]
        assert frames_in(found) == whole, size
        end = whole[-1].end if whole else 0
        assert troubles_in(found) == ([Torn(1, end, size - end)] if size > end else []), size


def test_a_cut_in_a_segment_that_is_not_the_last_is_damage(tmp_path: Path) -> None:
    """The same cut anywhere but in the last segment is damage, also when it falls between two frames."""
    store, data = filled(tmp_path)
    path = segment_path(tmp_path, 1)
    ends = [frame.end for frame in frames_in(scan(store, last=True))]
    for size in (len(data) - 1, ends[3], ends[3] + 10, ends[1] + 70):
        os.truncate(path, size)
        troubles = troubles_in(scan(store, last=False))
        assert troubles and all(isinstance(trouble, Damage) for trouble in troubles), size


def test_every_flipped_bit_is_named(tmp_path: Path) -> None:
    """Whichever byte is hit, exactly the frame it is in is lost, and the range named holds that byte.

    Only in the pad at the very end, which holds nothing, may a flip look like a write that did not complete.
    """
    store, data = filled(tmp_path)
    path = segment_path(tmp_path, 1)
    frames = frames_in(scan(store))
    for position in range(0, len(data), 3):
        hit = next(frame for frame in frames if frame.offset <= position < frame.end)
        if hit.type == FrameType.PAD and position - hit.offset > HEADER_BYTES and position % 64:
            continue  # the thousands of zeros in a pad are all alike
        flip(path, position, position % 8)
        found = scan(store)
        flip(path, position, position % 8)
        trouble = troubles_in(found)[0]
        assert trouble.offset <= position < trouble.offset + trouble.length
        assert isinstance(trouble, Damage) or (hit is frames[-1] and trouble.offset == hit.offset)
        assert [f for f in frames if f not in frames_in(found)] == [hit], (position, hit)


def test_a_lost_page_costs_the_frames_in_it(tmp_path: Path) -> None:
    """A page of zeros, a page of noise or an unreadable page costs the frames that touch it and no other."""
    disk = FaultyDisk()
    store = make(tmp_path, disk)
    for number in range(40):
        add(store, block_frame(block(f"block {number} ", 1500)))
    store.sync()
    path = segment_path(tmp_path, 1)
    data, frames = path.read_bytes(), frames_in(scan(store))
    for page in range(1, len(data) // PAGE - 1):
        touched = [f for f in frames if f.offset < (page + 1) * PAGE and f.end > page * PAGE]
        for spoil in (_zeros, _noise, disk.unreadable.add):
            _spoil(path, disk, page, spoil)
            found = scan(store)
            assert [f for f in frames if f not in frames_in(found)] == touched, (page, spoil)
            assert all(isinstance(trouble, Damage) for trouble in troubles_in(found))
            disk.unreadable.clear()
            path.write_bytes(data)


def _zeros(place: tuple[str, int]) -> None:
    _write_page(place, bytes(PAGE))


def _noise(place: tuple[str, int]) -> None:
    _write_page(place, random.Random(place[1]).randbytes(PAGE))


def _write_page(place: tuple[str, int], data: bytes) -> None:
    with open(place[0], "r+b") as file:
        os.pwrite(file.fileno(), data, place[1] * PAGE)


def _spoil(path: Path, disk: FaultyDisk, page: int, spoil: Callable[[tuple[str, int]], None]) -> None:
    spoil((path.name if spoil == disk.unreadable.add else str(path), page))


def test_unreadable_is_said(tmp_path: Path) -> None:
    """Damage that comes from a read error says that the medium could not be read."""
    disk = FaultyDisk()
    store = make(tmp_path, disk)
    add(store, block_frame(os.urandom(20_000)))
    store.sync()
    disk.unreadable.add((segment_path(tmp_path, 1).name, 2))
    (trouble,) = troubles_in(scan(store))
    assert isinstance(trouble, Damage) and "could not be read" in trouble.reason


@pytest.mark.parametrize("cut", [0, 64])
def test_a_store_inside_a_block_is_not_taken_for_ours(tmp_path: Path, cut: int) -> None:
    """Frames found in the payload of a damaged frame are uncertain, whether they go up to its end or break off before;
    those behind it are certain again."""
    filled(tmp_path / "other")
    inner = segment_path(tmp_path / "other", 1).read_bytes()
    store = make(tmp_path / "ours")
    add(store, block_frame(inner[: len(inner) - cut]), encode_plain(FrameType.RECORD, b"ours"))
    store.sync()
    (outer,) = [frame for frame in frames_in(scan(store)) if frame.type == FrameType.BLOCK]
    with open(segment_path(tmp_path / "ours", 1), "r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * HEADER_BYTES, outer.offset)
    found = store.scan(Position(1), last=True)
    seen = [(item.type, found.certain) for item in found if isinstance(item, Frame)]
    found.close()
    assert (FrameType.COMMIT, False) in seen and (FrameType.COMMIT, True) not in seen
    assert [certain for kind, certain in seen if kind == FrameType.RECORD] == [False, True]


def test_payloads_made_to_look_like_frames_do_not_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a damaged header a payload full of plausible headers is given up after a bounded amount of hashing."""
    store = make(tmp_path)
    fake = bytearray(encode_plain(FrameType.BLOCK, bytes(60_000))[:HEADER_BYTES])
    fake[4] ^= 1
    _, offset = add(store, block_frame(bytes(fake) * 10_000))
    store.sync()
    add(store, block_frame(b"behind it"))
    store.sync()
    with open(segment_path(tmp_path, 1), "r+b") as file:
        os.pwrite(file.fileno(), bytes(HEADER_BYTES), offset)
    monkeypatch.setattr(module, "SEARCH_BUDGET_BYTES", 2_000_000)
    hashed: list[int] = []

    def counted(buffer: Buffer, offset: int, base: int = 0) -> Frame:
        hashed.append(offset)
        return parse_frame(buffer, offset, base)

    monkeypatch.setattr(module, "parse_frame", counted)
    found = scan(store)
    assert [frame.plain for frame in frames_in(found)][-2] == len(b"behind it")
    assert len(hashed) < 100


def test_segments_out_of_place_are_named(tmp_path: Path, small_segments: int) -> None:
    """A segment of another store, under another number, without a header, or behind a gap is damage as a whole."""
    store = make(tmp_path)
    for number in range(30):
        add(store, block_frame(block(f"{number} ", 3000)))
    store.sync()
    one, two, three = (segment_path(tmp_path, number) for number in (1, 2, 3))
    size = two.stat().st_size
    kept = two.read_bytes()

    shutil.copy(one, two)
    assert [t.reason for t in troubles_in(scan(store, 2, last=False)) if isinstance(t, Damage)] == [
        "file of segment 2 holds segment 1"
    ]
    foreign = SegmentHeader(1, bytes(16), 2, "bob", "mail", 0, bytes(16))
    two.write_bytes(encode_segment_header(foreign) + encode_pad(200))
    (trouble,) = troubles_in(scan(store, 2))
    assert isinstance(trouble, Damage) and "another store, of bob/mail" in trouble.reason
    two.write_bytes(block_frame(b"x") + kept)
    (trouble,) = troubles_in(scan(store, 2))
    assert isinstance(trouble, Damage) and trouble.length > size and "expected a header frame" in trouble.reason
    two.write_bytes(kept)
    scanned = store.scan(Position(3, digest=b"x" * 16), last=False)
    assert "does not follow" in next(t.reason for t in scanned if isinstance(t, Damage))
    scanned.close()
    assert three.exists()


def test_a_removed_frame_is_noticed_by_the_seal(tmp_path: Path, small_segments: int) -> None:
    """A segment from which whole frames were cut out has only valid frames, and its seal says that some are missing."""
    store = make(tmp_path)
    for number in range(10):
        add(store, block_frame(block(f"{number} ", 3000)))
    frames, path = frames_in(scan(store, 1, last=False)), segment_path(tmp_path, 1)
    data = path.read_bytes()
    path.write_bytes(data[: frames[2].offset] + data[frames[2].end :])
    (trouble,) = verify_segment(tmp_path, 1, Disk())
    assert isinstance(trouble, Damage) and trouble.reason == "frames before the seal are missing"


def test_the_reserve_is_kept(tmp_path: Path) -> None:
    """Frames that would touch the reserve are refused before a byte is written; a commit may use it."""
    disk = FaultyDisk()
    store = make(tmp_path, disk, reserve_bytes=1_000_000)
    frame = block_frame(bytes(5000))
    disk.free = 1_000_000 + len(frame) - 1
    with pytest.raises(DiskFullError, match=r"976\.6 KiB are the reserve"):
        add(store, frame)
    assert segment_numbers(tmp_path) == [] and store.free_bytes() == len(frame) - 1
    disk.free += 1
    add(store, frame)
    disk.free = 100
    commit = encode_plain(FrameType.COMMIT, b"commit")
    store.append(commit, [split_frames(commit)[0].checksum])
    store.sync()
    assert troubles_in(scan(store)) == []
    assert stored_bytes(tmp_path) == segment_path(tmp_path, 1).stat().st_size


def test_a_store_takes_what_its_books_take_too(tmp_path: Path) -> None:
    """Catalog, findings and their logs count beside the segments; what else lies there, and what is gone, does not."""
    assert (stored_bytes(tmp_path), book_bytes(tmp_path)) == (0, 0)
    store = make(tmp_path, FaultyDisk())
    add(store, block_frame(b"block"))
    store.sync()
    segment = segment_path(tmp_path, 1).stat().st_size
    for size, name in enumerate(("catalog.db", "catalog.db-wal", "findings.db", "findings.db-wal", "README"), 1):
        (tmp_path / name).write_bytes(bytes(10**size))
    assert stored_bytes(tmp_path) == segment + 11_110 and book_bytes(tmp_path) == 11_110


def test_no_room_in_the_middle_leaves_a_torn_end(tmp_path: Path) -> None:
    """When the disk fills up in the middle of a write, the end is torn, is cut, and appending goes on behind it."""
    disk = FaultyDisk()
    store = make(tmp_path, disk)
    add(store, block_frame(b"first"))
    store.sync()
    before = store.position
    disk.room = 3 * PAGE
    with pytest.raises(DiskFullError):
        add(store, block_frame(os.urandom(300_000)), block_frame(os.urandom(900_000)))
        store.sync()
    disk.room = None
    store.drop_writer()
    (trouble,) = troubles_in(scan(store))
    assert isinstance(trouble, Torn) and trouble.offset == before.offset
    store.cut(trouble)
    store.resume(before)
    add(store, block_frame(b"second"))
    store.sync()
    assert [f.plain for f in frames_in(scan(store)) if f.type == FrameType.BLOCK] == [5, 6]
    assert troubles_in(scan(store)) == []


def test_a_failed_sync_is_an_error(tmp_path: Path) -> None:
    """A sync that fails raises; the store does not claim that anything is durable."""
    disk = FaultyDisk()
    store = make(tmp_path, disk)
    add(store, block_frame(b"first"))
    disk.fail_sync = True
    with pytest.raises(ReplicadError, match="syncing"):
        store.sync()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", ".hidden", "a" * 65, "ä", "a b", "a\n", "-x", "a\0"])
def test_names_that_are_no_directory_names(tmp_path: Path, name: str) -> None:
    """A name that could lead anywhere else than to its own directory never becomes a path."""
    for names in ((name, "www"), ("ams1", name)):
        with pytest.raises(PeerError, match="is not allowed"):
            store_path(tmp_path, *names)
    assert store_path(tmp_path, "a" * 64, "0.A_-z") == tmp_path / ("a" * 64) / "0.A_-z"


def test_other_files_are_not_segments(tmp_path: Path) -> None:
    """Only names of eight digits count as segments; a directory without any has none."""
    assert segment_numbers(tmp_path) == []
    (tmp_path / "segments").mkdir()
    for name in ("00000002.seg", "00000001.seg", "1.seg", "00000003.seg.bak", "lost+found", "0000000a.seg"):
        (tmp_path / "segments" / name).touch()
    assert segment_numbers(tmp_path) == [1, 2]
