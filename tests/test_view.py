"""The SFTP view: what a viewer sees of history, that nothing can be changed or escaped, and that nobody is held up."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio
from asyncssh import FX_FAILURE, FX_NO_SUCH_FILE, FX_PERMISSION_DENIED, SFTPAttrs

from kit_link import wait_for
from kit_restore import Writer, damage_block, meta
from kit_view import HANDLES, VIEWS, OnShow, Raw, on_show, reading, refusal, text
from replicad.config import ViewerConfig
from replicad.db.catalog import MIGRATIONS
from replicad.db.database import Database
from replicad.db.expiry import drop_snapshots, purge
from replicad.db.findings import Findings
from replicad.db.listing import Listing
from replicad.link import sftp, viewing
from replicad.link.sftp import Code, Verb
from replicad.model.block import block_id
from replicad.model.entry import SPARSE, Drop, Kind, Put
from replicad.model.errors import PeerError, ReplicadError
from replicad.model.retention import Pin
from replicad.model.when import show_time
from replicad.store.format import FrameType, split_frames
from replicad.work import gallery, lease, view_content
from replicad.work.archive import catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.book_damage import findings_of
from replicad.work.rebuild import rebuild_catalog

S = 1_000_000_000
HOUR_NS = 3600 * S
FIRST_NS = 1_700_000_000 * S
BLOCK = 65536
CONTENT = random.Random(1).randbytes(5 * BLOCK + 1234)
ODD = b"caf\xe9 \x01 \xff"


@pytest_asyncio.fixture
async def show(tmp_path: Path) -> AsyncIterator[OnShow]:
    """Three snapshots of a small tree, an hour apart."""
    async with on_show(tmp_path) as made:
        with made.writer() as writer:
            first(writer)
            writer.seal(1, FIRST_NS)
            writer.put(b"docs/a.txt", b"second\n", meta=meta(0o600, 5 * S + 1))
            writer.seal(2, FIRST_NS + HOUR_NS)
            writer.add(Drop(b"docs/gone"))
            writer.seal(3, FIRST_NS + 2 * HOUR_NS)
        yield made


def first(writer: Writer) -> None:
    """A tree with an entry of each kind."""
    writer.put(b"")
    writer.put(b"docs", meta=meta(0o750, 99 * S))
    writer.put(b"docs/a.txt", b"first\n", meta=meta(0o640, 77 * S))
    writer.put(b"docs/gone", b"was here")
    writer.put(b"docs/" + ODD, b"odd")
    big = writer.put(b"big", CONTENT, meta=meta(0o400))
    writer.put(b"twin", CONTENT, file=big.file, meta=meta(0o400))
    writer.put(b"holes", bytes(3 * BLOCK) + b"end", flags=SPARSE)
    writer.put(b"empty", b"")
    for name, target in LINKS.items():
        writer.put(name, kind=Kind.SYMLINK, target=target, meta=meta(0o777))
    writer.put(b"fifo", kind=Kind.FIFO, meta=meta(0o600))
    writer.put(b"disk", kind=Kind.BLOCK_DEVICE, device=os.makedev(8, 1), meta=meta(0o660))


LINKS = {
    b"to-file": b"docs/a.txt",
    b"to-dir": b"docs",
    b"docs/up": b"../big",
    b"chain": b"./to-dir/../to-dir//a.txt",
    b"passwd": b"/etc/passwd",
    b"climb": b"../../../../../../etc/passwd",
    b"out": b"../x",
    b"absolute": b"/docs/a.txt",
    b"round": b"../../docs/a.txt",
    b"loop": b"loop",
    b"dangling": b"nowhere",
}
LEADING = (b"to-file", b"to-dir", b"docs/up", b"chain")
"""Those that lead somewhere."""


async def read(client: asyncssh.SFTPClient, path: bytes) -> bytes:
    """A whole file."""
    async with client.open(path, "rb") as file:
        found = await file.read()
        assert isinstance(found, bytes)
        return found


async def names(client: asyncssh.SFTPClient, path: bytes) -> set[bytes]:
    """What a directory lists."""
    found = await client.listdir(path)
    assert len(found) == len(set(found))
    return {name if isinstance(name, bytes) else name.encode() for name in found}


# what is seen


async def test_the_root_shows_datasets_and_a_dataset_its_snapshots(show: OnShow) -> None:
    """Snapshots by number, as old as they are, and `latest` as a link to the newest."""
    client = await show.view()
    assert await names(client, b"/") == {b"www"}
    assert await names(client, b"/www") == {b"latest", b"1", b"2", b"3"}
    assert await client.readlink(b"/www/latest") == b"3"
    about = await client.lstat(b"/www/2")
    assert about.mtime == (FIRST_NS + HOUR_NS) // S and stat.S_ISDIR(about.permissions or 0)
    assert await client.realpath(b"/www/latest/docs/../to-dir/./a.txt") == b"/www/3/docs/a.txt"


async def test_entries_have_the_attributes_that_were_recorded(show: OnShow) -> None:
    """Kind, mode, owner, size, time; also of files that only their owner could read."""
    client = await show.view()
    shown = {name.filename: name.attrs for name in await client.readdir(b"/www/1")}
    kinds = {b"docs": stat.S_IFDIR, b"fifo": stat.S_IFIFO, b"disk": stat.S_IFBLK, b"to-file": stat.S_IFLNK}
    for name, about in shown.items():
        assert stat.S_IFMT(about.permissions or 0) == kinds.get(bytes(name), stat.S_IFMT(about.permissions or 0))
        assert (about.uid, about.gid) == (os.geteuid(), os.getegid())
        again = await client.lstat(b"/www/1/" + bytes(name))
        assert (again.permissions, again.size, again.mtime) == (about.permissions, about.size, about.mtime)
    assert stat.S_IMODE(shown[b"big"].permissions or 0) == 0o400 and shown[b"big"].size == len(CONTENT)
    assert shown[b"twin"].size == len(CONTENT) and shown[b"docs"].mtime == 99
    assert await names(client, b"/www/1/docs") == {b"a.txt", b"gone", b"up", ODD}
    assert await names(client, b"/www/3/docs") == {b"a.txt", b"up", ODD}


async def test_files_are_read_as_they_were(show: OnShow) -> None:
    """In each snapshot its own content, whole, with holes, empty, under names of any bytes, through links."""
    client = await show.view()
    assert [await read(client, b"/www/%d/docs/a.txt" % n) for n in (1, 2, 3)] == [b"first\n", b"second\n", b"second\n"]
    for name in (b"big", b"twin", b"docs/up", b"to-dir/up"):
        assert await read(client, b"/www/1/" + name) == CONTENT, name
    assert await read(client, b"/www/1/holes") == bytes(3 * BLOCK) + b"end"
    assert await read(client, b"/www/latest/empty") == b""
    assert await read(client, b"/www/1/docs/" + ODD) == b"odd"
    assert await read(client, b"/www/1/chain") == b"first\n"


async def test_any_piece_of_a_file_can_be_read(show: OnShow, monkeypatch: pytest.MonkeyPatch) -> None:
    """From anywhere, of any length, in any order, also when next to nothing is kept."""
    monkeypatch.setattr(view_content, "KEPT_BYTES", 2 * BLOCK)
    monkeypatch.setattr(view_content, "KEPT_SPANS", 1)
    client, chance = await show.view(), random.Random(2)
    async with client.open(b"/www/1/big", "rb") as big, client.open(b"/www/1/holes", "rb") as holes:
        for _ in range(100):
            offset, size = chance.randrange(len(CONTENT) + 10), chance.choice([1, 100, BLOCK, 3 * BLOCK])
            assert await big.read(size, offset) == CONTENT[offset : offset + size]
            assert await holes.read(size, offset) == (bytes(3 * BLOCK) + b"end")[offset : offset + size]


async def test_a_huge_read_is_answered_with_less(show: OnShow) -> None:
    """Whatever size is asked for, an answer fits into a packet; behind the end there is nothing."""
    raw = await show.raw()
    handle = await raw.handle(Verb.OPEN, b"/www/1/big")
    kind, body = await raw.ask(Verb.READ, reading(handle, 0, 2**32 - 1))
    assert kind == 103 and len(body) - 4 == sftp.MAX_READ_BYTES and body[4:] == CONTENT[: sftp.MAX_READ_BYTES]
    assert await raw.code(Verb.READ, reading(handle, 2**64 - 1, 2**32 - 1)) is Code.END


async def test_snapshots_have_names(show: OnShow) -> None:
    """A time means the newest snapshot at or before it, a pin the one it keeps; both lead to the number."""
    with closing(Findings(findings_of(show.path()))) as book:
        book.add_pin(Pin("before-upgrade", 2, 0))
        book.add_pin(Pin("1", 3, 0))
        book.add_pin(Pin("latest", 1, 0))
    client = await show.view()
    assert await names(client, b"/www") == {b"latest", b"before-upgrade", b"1", b"2", b"3"}
    assert await client.readlink(b"/www/before-upgrade") == b"2"
    assert stat.S_ISLNK((await client.lstat(b"/www/latest")).permissions or 0)
    assert stat.S_ISDIR((await client.lstat(b"/www/latest/")).permissions or 0)
    assert await client.readlink(b"/www/latest") == b"3" and stat.S_ISDIR(
        (await client.lstat(b"/www/1")).permissions or 0
    )
    moment = show_time(FIRST_NS + HOUR_NS + 60 * S).encode()
    assert await client.realpath(b"/www/%s/docs" % moment) == b"/www/2/docs"
    assert await read(client, b"/www/before-upgrade/docs/a.txt") == b"second\n"
    for name in (b"99", b"2001-01-01T00:00:00Z", b"nonsense", b"\xff", b"LATEST", b"-1", b"\xb2"):
        error = await refusal(lambda name=name: client.stat(b"/www/" + name))
        assert error.code == FX_NO_SUCH_FILE and error.reason


async def test_latest_stays_while_it_is_used_and_moves_on(show: OnShow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a tree does not begin in one snapshot and end in the next; whoever comes later sees the new one."""
    client = await show.view()
    assert await client.readlink(b"/www/latest") == b"3"
    with show.writer() as writer:
        writer.put(b"docs/new", b"new")
        writer.seal(4, FIRST_NS + 3 * HOUR_NS)
    now = show.clock.monotonic_s()
    monkeypatch.setattr(show.clock, "monotonic_s", lambda: now + gallery.HOLD_S - 1)
    assert b"4" in await names(client, b"/www") and await client.readlink(b"/www/latest") == b"3"
    assert await client.readlink(b"/www/latest") == b"3"
    monkeypatch.setattr(show.clock, "monotonic_s", lambda: now + 3 * gallery.HOLD_S)
    assert await client.readlink(b"/www/latest") == b"4" and await read(client, b"/www/latest/docs/new") == b"new"


async def test_two_clients_with_the_same_dataset(show: OnShow) -> None:
    """Where a name means two datasets, each stands below its client's; by its client's each is found in any case."""
    for client, dataset in (("ams2", "www"), ("ams2", "mail"), ("ams3", "ams1"), ("ams4", "secret")):
        with show.writer(dataset, client) as writer:
            writer.put(b"whose", client.encode())
            writer.seal(1)
    show.viewers[0] = replace(show.viewers[0], datasets=("ams1/www", "ams2/*", "ams3/ams1", "ams4/other"))
    client = await show.view()
    assert await names(client, b"/") == {b"mail", b"ams1", b"ams2", b"ams3"}
    assert await names(client, b"/ams2") == {b"www", b"mail"} and await names(client, b"/ams3") == {b"ams1"}
    assert await read(client, b"/ams2/www/latest/whose") == await read(client, b"/mail/1/whose") == b"ams2"
    assert await read(client, b"/ams1/www/1/docs/a.txt") == b"first\n"
    for path in (b"/www", b"/ams4", b"/ams4/secret", b"/secret", b"/ams2/secret/1"):
        assert (await refusal(lambda path=path: client.stat(path))).code == FX_NO_SUCH_FILE, path


async def test_a_directory_of_very_many_is_listed_page_by_page(show: OnShow) -> None:
    """All of them, once each, with what a page holds at a time, also of snapshots."""
    with show.writer("many") as writer:
        expected = {b"%05d" % number for number in range(1000)}
        for name in expected:
            writer.put(name, b"")
        for number in range(1, 700):
            writer.put(b"00000", b"%d" % number)
            writer.seal(number, FIRST_NS + number * S)
    show.viewers[0] = replace(show.viewers[0], datasets=("ams1/*",))
    client = await show.view()
    assert await names(client, b"/many/latest/") == expected
    assert await names(client, b"/many") == {b"latest", *(b"%d" % number for number in range(1, 700))}


# links


@pytest.mark.parametrize("name", [*(name for name in LINKS if name not in LEADING), b"passwd/x", b"climb/..", b"big/x"])
async def test_links_lead_nowhere_but_into_their_snapshot(show: OnShow, name: bytes) -> None:
    """Neither to this host's files nor to those of another snapshot; they can still be read as links."""
    client = await show.view()
    for ask in (client.stat, client.listdir, client.open):
        error = await refusal(lambda ask=ask: _opened(ask, b"/www/1/" + name))
        assert error.code in (FX_NO_SUCH_FILE, FX_FAILURE)
    if name in LINKS:
        assert await client.readlink(b"/www/1/" + name) == LINKS[name]


async def _opened(ask: object, path: bytes) -> None:
    assert callable(ask)
    found = ask(path)
    if hasattr(found, "__aenter__"):
        async with found:
            pass
    else:
        await found


@pytest.mark.parametrize(
    "path",
    [
        b"/etc/passwd",
        b"/../etc/passwd",
        b"../../etc/passwd",
        b"/www/../../etc/passwd",
        b"/www/1/../../../etc/passwd",
        b"/www/1/docs/../../../../etc/passwd",
        b"/www/latest/to-dir/../../etc/passwd",
        b"/www/1/\0/x",
        b"/www/\0",
        b"/" * 9000,
        b"/www/1/" + b"a/" * 4000,
        b"/www/1/" + b"x" * 300,
        b"/ams1/../ams2",
        b"/ams1/www/../../..//etc",
    ],
)
async def test_no_path_leads_out(show: OnShow, path: bytes) -> None:
    """Dots, slashes, zeros and very long names end at the view's own root, or at an error that says so."""
    client = await show.view()
    shown = await names(client, b"/")
    for ask in (client.stat, client.lstat, client.listdir, client.readlink):
        try:
            found = await ask(path)
            assert set(found) == shown if isinstance(found, list) else stat.S_ISDIR(found.permissions or 0)  # type: ignore[union-attr]
            assert await client.realpath(path) == b"/"
        except asyncssh.SFTPError as error:
            assert error.code in (FX_NO_SUCH_FILE, FX_FAILURE)
    assert (await client.realpath(b"/x/../../y/./z"), await client.realpath(b".")) == (b"/y/z", b"/")


# nothing can be changed


def everything(directory: Path) -> dict[str, str]:
    """Every file below, and what is in it, but for what a reader needs: SQLite's log, an (empty) file of leases."""
    paths = [path for path in sorted(directory.rglob("*")) if path.suffix not in (".db-wal", ".db-shm")]
    paths = [path for path in paths if path.name != lease.FILE or path.read_bytes()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


async def test_whatever_would_change_something_is_refused(show: OnShow) -> None:
    """Permission denied for every verb that writes, and nothing is written, not even beside the store."""
    before = everything(show.directory)
    client, mode = await show.view(), SFTPAttrs(permissions=0o777)
    path = b"/www/latest/docs/a.txt"
    asked = [
        lambda: client.remove(path),
        lambda: client.rename(path, b"/www/latest/b"),
        lambda: client.posix_rename(path, b"/www/1/x"),
        lambda: client.mkdir(b"/new"),
        lambda: client.rmdir(b"/www/latest/docs"),
        lambda: client.symlink(b"/etc", b"/www/l"),
        lambda: client.link(path, b"/www/hard"),
        lambda: client.setstat(path, mode),
        lambda: client.truncate(path, 0),
        lambda: client.chmod(b"/www/1", 0),
        lambda: client.open(path, "wb").__aenter__(),
        lambda: client.open(path, "ab").__aenter__(),
        lambda: client.open(path, "r+b").__aenter__(),
        lambda: client.open(b"/new", "xb").__aenter__(),
    ]
    for number, ask in enumerate(asked):
        error = await refusal(ask)
        assert error.code in (FX_PERMISSION_DENIED, sftp.Code.UNSUPPORTED), number
    async with client.open(path, "rb") as file:
        assert (await refusal(lambda: file.write(b"x", 0))).code == FX_PERMISSION_DENIED
        assert (await refusal(lambda: file.setstat(mode))).code == FX_PERMISSION_DENIED
    raw = await show.raw()
    for verb in sftp.WRITING:
        assert await raw.code(verb, os.urandom(100)) is Code.PERMISSION_DENIED
    for name in sftp.WRITING_EXTENSIONS:
        assert await raw.code(Verb.EXTENDED, text(name) + text(path)) is Code.PERMISSION_DENIED
    for flags in (2, 4, 8, 16, 32, 0xFFFFFFFF):
        assert await raw.code(Verb.OPEN, text(path) + flags.to_bytes(4, "big")) is Code.PERMISSION_DENIED
    for verb in (0, 2, 21, 101, 199, 255):
        assert await raw.code(verb) is Code.UNSUPPORTED
    assert await raw.code(Verb.EXTENDED, text(b"unknown@example.org")) is Code.UNSUPPORTED
    assert everything(show.directory) == before and not show.reports


# keys


async def test_a_viewers_key_opens_nothing_but_the_view(show: OnShow) -> None:
    """No replication, no shell, no command, no forwarding."""
    connection = await show.connect()
    for wanted in ({"subsystem": "replicad"}, {"command": "scp -f /etc/passwd"}, {"command": None}, {"subsystem": "x"}):
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.create_process(encoding=None, **wanted)  # type: ignore[call-overload]
    with pytest.raises(asyncssh.ChannelOpenError):
        await connection.open_connection("127.0.0.1", show.listener.port)
    with pytest.raises(asyncssh.ChannelListenError):
        await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", show.listener.port)
    assert await names(await connection.start_sftp_client(path_encoding=None), b"/") == {b"www"}


async def test_a_replication_key_views_nothing_unless_it_may(show: OnShow) -> None:
    """A client's key gets no SFTP; once it is a viewer's too, it does."""
    connection = await show.connect("client")
    with pytest.raises(asyncssh.ChannelOpenError):
        await connection.start_sftp_client()
    show.viewers.append(ViewerConfig("backup", show.clients[0].key, ("ams1/www",)))
    assert await names(await connection.start_sftp_client(path_encoding=None), b"/") == {b"www"}


async def test_a_key_that_nobody_knows_is_turned_away(show: OnShow) -> None:
    """And so is one whose viewer was removed."""
    show.viewers.clear()
    with pytest.raises(asyncssh.PermissionDenied):
        await show.connect()


async def test_a_right_that_is_withdrawn_ends_at_once(show: OnShow) -> None:
    """Nothing more is told about a dataset that was taken away, not even of a file that is open; a viewer that was
    removed is told so, and its connection is cut when the configuration is read again."""
    with show.writer("mail") as writer:
        writer.put(b"a", b"b")
        writer.seal(1)
    show.viewers[0] = replace(show.viewers[0], datasets=("ams1/*",))
    client = await show.view()
    async with client.open(b"/mail/1/a", "rb") as file:
        assert await file.read(1, 0) == b"b"
        show.viewers[0] = replace(show.viewers[0], datasets=("ams1/www",))
        assert (await refusal(lambda: file.read(1, 0))).code == FX_PERMISSION_DENIED
        assert (await refusal(lambda: client.stat(b"/mail"))).code == FX_NO_SUCH_FILE
        show.viewers.clear()
        assert (await refusal(lambda: client.stat(b"/"))).code == FX_PERMISSION_DENIED
    await show.listener.recheck()
    await wait_for(lambda: not show.listener.doors and not len(show.reception.views))


# limits


async def test_handles_are_bounded(show: OnShow) -> None:
    """A client that opens ten thousand is told how many it may have, and can go on with those."""
    raw = await show.raw()
    handles = [await raw.handle(Verb.OPEN, b"/www/1/big") for _ in range(HANDLES // 2)]
    handles += [await raw.handle(Verb.OPENDIR, b"/www/1") for _ in range(HANDLES // 2)]
    raw.flood(Verb.OPEN, text(b"/www/1/big") + bytes([0, 0, 0, 1]) + bytes(4), 10_000)
    for _ in range(10_000):
        kind, body = await raw.answer()
        assert kind == 101 and body[3] == Code.FAILURE and b"16 files and directories are open" in body
    assert (await raw.ask(Verb.READ, reading(handles[0], 0, 5)))[1][4:] == CONTENT[:5]
    assert await raw.code(Verb.CLOSE, text(handles[0])) is Code.OK
    assert await raw.code(Verb.CLOSE, text(handles[0])) is Code.FAILURE
    assert await raw.code(Verb.READ, reading(handles[0], 0, 5)) is Code.FAILURE
    assert await raw.code(Verb.READ, reading(handles[-1], 0, 5)) is Code.FAILURE
    assert await raw.handle(Verb.OPEN, b"/www/1/big")
    limits = await raw.ask(Verb.EXTENDED, text(sftp.LIMITS))
    assert int.from_bytes(limits[1][-8:], "big") == HANDLES


async def test_views_are_bounded(show: OnShow) -> None:
    """One too many is refused; when another one ends, there is room again."""
    connection = await show.connect()
    clients = [await connection.start_sftp_client() for _ in range(VIEWS)]
    with pytest.raises(asyncssh.ChannelOpenError):
        await connection.start_sftp_client()
    assert f"all {VIEWS} views are taken" in str(show.reports[-1])
    clients[0].exit()
    await wait_for(lambda: len(show.reception.views) < VIEWS)
    await connection.start_sftp_client()


async def test_connections_of_viewers_are_bounded(show: OnShow) -> None:
    """Viewers cannot take the places of those who replicate."""
    for _ in range(VIEWS):
        await show.connect()
    with pytest.raises((asyncssh.Error, OSError)):
        connection = await show.connect()
        await connection.start_sftp_client()
    await show.connect("client")


async def test_who_asks_and_does_not_read_is_not_remembered(show: OnShow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client that takes no answers little is read, nothing more is answered, and all files are let go."""
    monkeypatch.setattr(viewing, "REST_S", 0.05)
    raw = await show.raw()
    handle = await raw.handle(Verb.OPEN, b"/www/1/big")
    answered: list[int] = []
    answer = viewing.Viewing._answer

    async def counted(self: viewing.Viewing, request: sftp.Request) -> bytes:
        answered.append(request.id)
        return await answer(self, request)

    monkeypatch.setattr(viewing.Viewing, "_answer", counted)
    raw.reader.channel.pause_reading()
    raw.flood(Verb.READ, reading(handle, 0, sftp.MAX_READ_BYTES), 20_000)
    [session] = show.reception.views._under_way.values()
    view = session._view
    await wait_for(lambda: answered and not view._readers and not view._content._plain, seconds=30)  # type: ignore[attr-defined]
    held = len(session._taken)
    assert held <= 2 * sftp.MAX_PACKET_BYTES and len(answered) < 40
    [door] = show.listener.doors
    assert all(len(carrier._intake._waiting) <= 256 * 1024 for carrier in door.line.carriers)
    await read(await show.view(), b"/www/1/big")  # others are served meanwhile


@pytest.mark.parametrize(
    "said", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x05\x05\0\0\0\1", random.Random(3).randbytes(64)]
)
async def test_what_is_no_sftp_ends_the_session(show: OnShow, said: bytes) -> None:
    """Only that one, with a line in the log."""
    raw = await show.raw()
    raw.writer.write(said)
    raw.writer.write_eof()
    async with asyncio.timeout(10):
        await raw.reader.read()
    await wait_for(lambda: not len(show.reception.views))
    assert [type(report) for report in show.reports] == [PeerError]
    assert await names(await show.view(), b"/") == {b"www"}


async def test_answers_that_are_owed_come_before_the_end(show: OnShow) -> None:
    """A client that asks, ends its side, and reads later gets all of it, and a status that says it went well."""
    raw = await show.raw()
    handle = await raw.handle(Verb.OPEN, b"/www/1/big")
    for at in range(0, len(CONTENT), 1000):
        raw.say(Verb.READ, reading(handle, at, 1000))
    raw.writer.write_eof()
    pieces = [(await raw.answer())[1][4:] for _ in range(0, len(CONTENT), 1000)]
    assert b"".join(pieces) == CONTENT
    assert await raw.reader.read() == b"" and raw.reader.channel.get_exit_status() == 0


# damage


async def test_a_damaged_block_is_an_error_and_the_rest_is_readable(show: OnShow) -> None:
    """Every byte before and behind it is right, none of it is given, and it is said which bytes are lost."""
    damage_block(show.path(), block_id(CONTENT[2 * BLOCK : 3 * BLOCK]))
    client = await show.view()
    async with client.open(b"/www/1/big", "rb") as file:
        for start, end in ((0, 2 * BLOCK), (3 * BLOCK, len(CONTENT))):
            assert await file.read(end - start, start) == CONTENT[start:end]
        error = await refusal(lambda: file.read(10, 2 * BLOCK + 5))
        assert error.code == FX_FAILURE and f"damage in bytes {2 * BLOCK} to {3 * BLOCK - 1} of big" in error.reason
        assert await file.read(5, 0) == CONTENT[:5]
    raw = await show.raw()
    handle = await raw.handle(Verb.OPEN, b"/www/1/big")
    kind, body = await raw.ask(Verb.READ, reading(handle, 2 * BLOCK - 100, 1000))
    assert kind == 103 and body[4:] == CONTENT[2 * BLOCK - 100 : 2 * BLOCK]
    assert (await refusal(lambda: read(client, b"/www/1/twin"))).code == FX_FAILURE
    assert await read(client, b"/www/1/docs/a.txt") == b"first\n"


async def test_a_block_that_is_not_what_the_record_names_is_an_error(
    show: OnShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another block, whose frame is well in itself, is found out by its id."""
    client = await show.view()
    [other] = await asyncio.to_thread(_frame_of, show.path(), CONTENT[:BLOCK])
    monkeypatch.setattr(ArchiveReader, "fetch", lambda self, ids: iter([other] * (len(ids) // 32)))
    error = await refusal(lambda: _piece(client, b"/www/1/big", BLOCK))
    assert error.code == FX_FAILURE and "another block" in error.reason


async def test_a_file_that_does_not_fit_its_blocks_is_an_error(show: OnShow) -> None:
    """A record that gives a block another size than it has is not believed, also of a block that was read before."""
    with show.writer() as writer:
        ids = block_id(CONTENT[:BLOCK])
        writer.add(Put(b"lie", Kind.FILE, meta(), 100, 77, BLOCK, blocks=(0,), ids=ids))
        writer.seal(4, FIRST_NS + 3 * HOUR_NS)
    raw = await show.raw()
    big, lie = await raw.handle(Verb.OPEN, b"/www/4/big"), await raw.handle(Verb.OPEN, b"/www/4/lie")
    for _ in range(3):
        assert (await raw.ask(Verb.READ, reading(big, 0, 100)))[1][4:] == CONTENT[:100]
        assert await raw.code(Verb.READ, reading(lie, 0, 100)) is Code.FAILURE
    assert (await raw.ask(Verb.READ, reading(big, 0, 100)))[1][4:] == CONTENT[:100]


def _frame_of(directory: Path, content: bytes) -> list[object]:
    with closing(ArchiveReader(directory)) as reader:
        return list(reader.fetch(block_id(content)))


async def _piece(client: asyncssh.SFTPClient, path: bytes, offset: int) -> bytes:
    async with client.open(path, "rb") as file:
        return bytes(await file.read(10, offset))


async def test_a_damaged_catalog_is_an_error_and_a_finding(show: OnShow) -> None:
    """The dataset fails, whoever is to know of it is told, and the others go on."""
    with show.writer("mail") as writer:
        for number in range(2000):
            writer.put(b"%d" % number, b"")
        writer.seal(1)
    show.viewers[0] = replace(show.viewers[0], datasets=("ams1/*",))
    with catalog_path(show.path("mail")).open("r+b") as file:
        for at in range(8192 + 100, catalog_path(show.path("mail")).stat().st_size, 8192):
            file.seek(at)
            file.write(b"rot")
    client = await show.view()
    error = await refusal(lambda: client.listdir(b"/mail/1"))
    assert error.code == FX_FAILURE and str(show.directory) not in error.reason
    assert show.damaged and show.damaged[0] == ("ams1", "mail")
    assert await read(client, b"/www/1/docs/a.txt") == b"first\n"


async def test_a_snapshot_whose_record_lost_a_piece_shows_nothing(show: OnShow) -> None:
    """A file might have zeros in place of what is not known any more: an error, and never that."""
    _lose_a_record(show.path(), 2)
    client = await show.view()
    assert await client.readlink(b"/www/latest") == b"1" and await read(client, b"/www/1/docs/a.txt") == b"first\n"
    assert await names(client, b"/www") == {b"latest", b"1", b"2", b"3"}
    for path in (b"/www/2/docs/a.txt", b"/www/3", b"/www/3/docs"):
        error = await refusal(lambda path=path: client.stat(path))
        assert error.code == FX_FAILURE and "damage took pieces of the record" in error.reason


def _lose_a_record(directory: Path, number: int) -> None:
    """Damage the last record of a snapshot, and have the catalog learn of it."""
    segment = directory / "segments" / "00000001.seg"
    records = [frame for frame in split_frames(segment.read_bytes()) if frame.type == FrameType.RECORD]
    with segment.open("r+b") as file:
        file.seek(records[number - 1].offset + 100)
        file.write(b"!!!!")
    rebuild_catalog(directory)


# beside the others


async def test_a_snapshot_that_is_dropped_while_it_is_viewed(show: OnShow) -> None:
    """What is open fails from then on instead of giving zeros; other snapshots are there, and the list says so."""
    client = await show.view()
    async with client.open(b"/www/1/big", "rb") as file:
        assert await file.read(5, 0) == CONTENT[:5]
        raw = await show.raw()
        listing = await raw.handle(Verb.OPENDIR, b"/www/1/docs")
        _drop(show.path(), 1)
        client2 = await show.view()
        async with client2.open(b"/www/2/big", "rb") as kept:
            assert await kept.read(5, 0) == CONTENT[:5]
        assert await raw.code(Verb.READDIR, text(listing)) in (Code.NO_SUCH_FILE, Code.FAILURE)
        handle = [await refusal(lambda: _piece(client, b"/www/1/holes", 0))]
        assert handle[0].code in (FX_NO_SUCH_FILE, FX_FAILURE)
    show.on_view._parts[2]._known.clear()
    assert await names(client, b"/www") == {b"latest", b"2", b"3"}
    assert (await refusal(lambda: client.stat(b"/www/1"))).code == FX_NO_SUCH_FILE


def _drop(directory: Path, number: int) -> None:
    """As retention does, with what it takes away."""
    database = Database(catalog_path(directory), MIGRATIONS)
    with database.transaction(durable=True):
        assert drop_snapshots(database, [number], 1) == 1
        while purge(database, 1000):
            pass
    database.close()


async def test_a_file_that_is_open_does_not_turn_into_zeros(show: OnShow) -> None:
    """The rows of a dropped snapshot's blocks are gone, and what is not listed would be zero: the read fails."""
    raw = await show.raw()
    with show.writer("short") as writer:
        writer.put(b"file", CONTENT)
        writer.seal(1)
        writer.add(Drop(b"file"))
        writer.seal(2)
        writer.seal(3)
    show.viewers[0] = replace(show.viewers[0], datasets=("ams1/*",))
    handle = await raw.handle(Verb.OPEN, b"/short/1/file")
    _drop(show.path("short"), 1)
    kind, body = await raw.ask(Verb.READ, reading(handle, 0, 1000))
    assert kind == 101 and body[3] == Code.FAILURE


async def test_what_was_read_of_a_snapshot_was_read_while_it_was_kept(show: OnShow) -> None:
    """Also when it is dropped between the look at it and the answer: each question is an error then."""
    with closing(Listing(catalog_path(show.path()))) as listing:
        browse, found = listing.browse(), listing.find(1)
        assert found and browse.entry(found.ordinal, b"big")
        _drop(show.path(), 1)
        for ask in (
            lambda: browse.entry(found.ordinal, b"big"),
            lambda: browse.page(found.ordinal, b"docs", b"", 10),
            lambda: browse.blocks(found.ordinal, 1_000_003, 0, 10),
        ):
            with pytest.raises(ReplicadError, match="was dropped by the replica's retention"):
                ask()


async def test_a_view_holds_no_lock_and_no_transaction(show: OnShow) -> None:
    """While files and listings of it are open, snapshots are written and the catalog's log is emptied."""
    raw = await show.raw()
    await raw.handle(Verb.OPEN, b"/www/1/big")
    listing = await raw.handle(Verb.OPENDIR, b"/www/1")
    await raw.ask(Verb.READDIR, text(listing))
    with show.writer() as writer:
        writer.put(b"more", b"more")
        writer.seal(4, FIRST_NS + 5 * HOUR_NS)
    database = Database(catalog_path(show.path()), MIGRATIONS)
    assert database.one("PRAGMA wal_checkpoint(TRUNCATE)") == (0, 0, 0)
    database.close()


async def test_the_event_loop_never_reads(show: OnShow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a view asks of a store is asked in a thread of its own, and that thread ends with the view."""
    loop_thread, seen = threading.get_ident(), set()
    for name in ("entry", "page", "blocks", "fetch", "snapshots", "__init__"):
        real = getattr(ArchiveReader, name)

        def noted(*words: object, real: object = real, **named: object) -> object:
            seen.add(threading.get_ident())
            assert callable(real)
            return real(*words, **named)

        monkeypatch.setattr(ArchiveReader, name, noted)
    client = await show.view()
    await read(client, b"/www/latest/big")
    await names(client, b"/www/1")
    assert seen and loop_thread not in seen
    client.exit()
    await wait_for(lambda: not len(show.reception.views))
    await wait_for(lambda: not any(thread.name.startswith("view") for thread in threading.enumerate()))


async def test_a_view_that_is_not_asked_rests(show: OnShow, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes its files, also those of segments that compaction has replaced, and goes on when it is asked."""
    monkeypatch.setattr(viewing, "REST_S", 0.02)
    client = await show.view()
    async with client.open(b"/www/1/big", "rb") as file:
        assert await file.read(5, 0) == CONTENT[:5]
        await wait_for(lambda: not _open_below(show.store))
        assert await file.read(5, 5) == CONTENT[5:10]


def _open_below(directory: Path) -> list[str]:
    """Files below a directory that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # it was the listing's own
            continue
    return [path for path in found if path.startswith(str(directory))]


async def test_the_listener_ends_views_when_it_closes(show: OnShow) -> None:
    """Also one that is in the middle of a read."""
    raw = await show.raw()
    handle = await raw.handle(Verb.OPEN, b"/www/1/big")
    for _ in range(50):
        raw.say(Verb.READ, reading(handle, 0, 200_000))
    async with asyncio.timeout(10):
        await show.listener.close()
    assert not len(show.reception.views)


async def test_attributes_of_what_is_open(show: OnShow) -> None:
    """A handle tells what its path told."""
    client = await show.view()
    async with client.open(b"/www/1/big", "rb") as file:
        about = await file.stat()
        assert about.size == len(CONTENT) and stat.S_IMODE(about.permissions or 0) == 0o400
    raw: Raw = await show.raw()
    listing = await raw.handle(Verb.OPENDIR, b"/")
    assert await raw.code(Verb.FSTAT, text(listing)) is Code.FAILURE
