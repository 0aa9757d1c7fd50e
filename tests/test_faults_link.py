"""Two real daemons on a bad line, with wrong keys, and beside a hostile peer that holds a valid key."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kit_faults import (
    MIB,
    Line,
    archive_of,
    ask,
    assert_quiet,
    configure,
    during,
    served,
    synced,
    tree_at,
    tree_now,
)
from kit_pair import Pair, free_port, make_pair, replicad, running, wait_until
from kit_rig import differences, snapshots
from kit_store import META, block_frame, directory_put, file_put, record_frame
from replicad.config import load
from replicad.link.channel import Channel
from replicad.link.messages import (
    MAX_OFFER,
    Acked,
    Blocks,
    Bye,
    Credit,
    Message,
    Need,
    Offer,
    Opened,
    OpenRead,
    OpenWrite,
    Record,
    Refuse,
    Seal,
)
from replicad.link.ssh import Dialler, generate_key, public_key
from replicad.model.block import block_id
from replicad.model.entry import Drop, Kind, Map, Meta, Op, Put, encode_ops
from replicad.model.errors import LinkError, ReplicadError
from replicad.model.snapshot import Commit, Head, encode_commit, records_digest
from replicad.status import findings
from replicad.store.format import FrameType, encode_frame, encode_plain
from replicad.work.shelves import MAX_UNNAMED

OPTIONS = "watch = false\nmax_change = 1.0"
NOTICED_S = 10.0
"""A peer that is silent is given up on within this, with a keep-alive of a second."""
SESSION_MEMORY = 96 * MIB
"""What one hostile session may make a replica's memory grow by, all told."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


@pytest.fixture
def pair(tmp_path: Path, root: Path) -> Iterator[Pair]:
    """A pair that is not started yet."""
    made = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    try:
        yield made
    finally:
        made.stop()


def fill_tree(root: Path, seed: int, mib: int) -> None:
    """Files that do not compress."""
    source = random.Random(seed)
    for number in range(mib):
        (root / f"{number:03d}").write_bytes(source.randbytes(MIB))


# the line


@pytest.mark.parametrize("how", ["cut", "black hole"])
def test_a_line_that_fails_amid_a_pass_is_noticed_and_nothing_acknowledged_travels_again(
    tmp_path: Path, root: Path, how: str
) -> None:
    """Cut or half-open: both sides notice in bounded time, the next session begins at once when the line is back, and
    what the replica had stored is not sent again."""
    fill_tree(root, 1, 24)
    port = free_port()
    line = Line(port, bandwidth_bytes=12 * MIB)
    pair = make_pair(tmp_path / "pair", root, replica_port=port, replica_address=line.address, dataset_options=OPTIONS)
    configure(pair.primary, "replica", keepalive="1s")
    configure(pair.replica, "listen", window="1MiB")
    try:
        with running(pair):
            request = ask(pair)
            during(pair, lambda now: now.sent_bytes > 8 * MIB, "half of it is sent")
            stored = pair.replica.status().stores[0].received_bytes
            if how == "cut":
                line.cut()
            else:
                line.black_hole()
            noticed = during(pair, lambda now: not now.link_up, "the failed line is noticed")
            assert noticed.state == "waiting"
            assert noticed.reason
            before = noticed.sent_bytes
            line.restore()
            done = served(pair, request)
            assert done.pass_ok
            assert done.sent_bytes - before < 24 * MIB - stored + 3 * MIB
            assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
            assert sum(p.stat().st_size for p in (archive_of(pair) / "segments").iterdir()) < 25 * MIB
        assert_quiet(pair.primary, pair.replica)
    finally:
        line.close()


def test_a_half_open_line_is_given_up_by_the_primary_and_dialled_anew(tmp_path: Path, root: Path) -> None:
    """While the line stays dead the primary says so within a few keep-alives; a primary that comes again over another
    way is let in at once, though the replica still believes in the old session."""
    fill_tree(root, 2, 6)
    port = free_port()
    line = Line(port, bandwidth_bytes=8 * MIB)
    pair = make_pair(tmp_path / "pair", root, replica_port=port, replica_address=line.address, dataset_options=OPTIONS)
    configure(pair.primary, "replica", keepalive="1s")
    try:
        with running(pair):
            during(pair, lambda now: now.sent_bytes > 2 * MIB, "some is sent")
            line.black_hole()
            wait_until(lambda: not pair.line.link_up, "the silence is noticed", NOTICED_S)
            (finding,) = findings(pair.primary.status())
            assert finding.kind == "link"
            assert pair.replica.status().sessions == 1, "the replica has not noticed yet"
            configure(pair.primary, "replica", address=f"127.0.0.1:{port}")
            pair.primary.hang_up()
            wait_until(lambda: pair.line.pass_ok, "the new way works while the old session stands", NOTICED_S)
            assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
            wait_until(lambda: pair.replica.status().sessions == 1, "the old session is gone")
        assert_quiet(pair.primary, pair.replica)
    finally:
        line.close()


# keys and rights


def _key_anew(state: Path) -> str:
    (state / "key").unlink()
    return generate_key(state / "key", "other")


def _assert_refused(pair: Pair, *words: str) -> None:
    """A refusal is shown as what it is, with what to do; it ends a waiting sync with exit code 1."""
    done = pair.sync(code=1)
    shown = replicad("status", "--config", pair.primary.config, code=1).stdout
    for word in words:
        assert word in " ".join(done.stdout.split()), done.stdout
        assert word in " ".join(shown.split()), shown
    assert "systemctl status replicad" not in shown, "nothing is wrong with the line"
    assert not archive_of(pair).exists()


def test_a_wrong_client_key_is_refused_and_sends_nothing(pair: Pair, root: Path) -> None:
    """A primary whose key is not authorised is told so, and says on which side to do what; an authorisation is picked
    up by the running replica and the next pass goes through."""
    fill_tree(root, 3, 1)
    public = _key_anew(pair.primary.state)
    pair.start()
    _assert_refused(pair, "is not authorised there", "replicad authorize")
    wait_until(lambda: "is not authorised" in pair.replica.log.read_text(), "the replica tells of it")
    line = f"replicad-primary ams1 {public} www"
    assert "--replace" in replicad("authorize", "--config", pair.replica.config, line, code=2).stderr
    replicad("authorize", "--config", pair.replica.config, line, "--replace")
    assert synced(pair).last_snapshot == 1
    assert_quiet(pair.primary, pair.replica)


def test_a_wrong_host_key_is_refused_and_sends_nothing(pair: Pair, root: Path) -> None:
    """Whoever answers with another host key than the pinned one gets nothing; the status names both fingerprints."""
    fill_tree(root, 4, 1)
    _key_anew(pair.replica.state)
    pair.start()
    _assert_refused(pair, "the host key is SHA256:", "expected is SHA256:", "pair again")
    assert_quiet(pair.primary, pair.replica)


def test_a_dataset_without_a_right_is_refused_until_it_is_authorised(pair: Pair, root: Path) -> None:
    """A right to another dataset is none to this one; the authorisation needs no restart."""
    fill_tree(root, 5, 1)
    configure(pair.replica, "client", datasets=["other"])
    pair.start()
    _assert_refused(pair, "has no right to dataset", "replicad authorize")
    line = f"replicad-primary ams1 {public_key(pair.primary.state / 'key')} other,www"
    replicad("authorize", "--config", pair.replica.config, line)
    assert synced(pair).last_snapshot == 1
    assert_quiet(pair.primary, pair.replica)


def test_an_authorisation_that_was_taken_back_ends_the_session(pair: Pair, tmp_path: Path, root: Path) -> None:
    """After a reload with another key in the client's place its session is over, and the primary says why."""
    fill_tree(root, 6, 1)
    pair.start()
    assert synced(pair).last_snapshot == 1
    configure(pair.replica, "client", key=generate_key(tmp_path / "other", "other"))
    pair.replica.hang_up()
    during(pair, lambda line: "not authorised" in line.last_error, "the refusal is shown")
    assert pair.replica.status().sessions == 0
    (root / "new").write_text("new")
    assert not served(pair).pass_ok
    assert len(snapshots(archive_of(pair))) == 1
    assert_quiet(pair.primary, pair.replica)


def test_one_connection_carries_many_datasets(tmp_path: Path, root: Path) -> None:
    """Thirty datasets of one primary go to one replica, and reloads leave no connection behind."""
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    configure(pair.replica, "client", datasets=[])
    text = ""
    for number in range(30):
        (tmp_path / f"set{number}").mkdir()
        (tmp_path / f"set{number}" / "file").write_text(str(number))
        text += f'[[dataset]]\nname = "set{number}"\npath = "{tmp_path}/set{number}"\nwatch = false\n'
    pair.primary.config.write_text(pair.primary.config.read_text() + text)
    with running(pair):
        wait_until(lambda: all(s.pass_ok for s in pair.primary.status().datasets), "all are copied")
        for number in range(100, 120):
            configure(pair.primary, "dataset", rpo=f"{number}s")
            pair.primary.hang_up()
            wait_until(
                lambda now=number: pair.line.rpo_s == now and pair.line.pass_ok, "the reloaded dataset is copied"
            )
        process = psutil.Process(pair.primary.process.pid)  # type: ignore[union-attr]
        connections = [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == pair.port]
        assert len(connections) == 1
    assert_quiet(pair.primary, pair.replica)


# a hostile peer


class Hostile:
    """A client with the primary's key that says what it likes."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.records: list[bytes] = []
        self.head = Head()

    async def open(self) -> Hostile:
        """A writing session, opened as it should be."""
        await self.channel.send(OpenWrite("www"))
        answer = await self.channel.receive()
        assert isinstance(answer, Opened), answer
        self.head = answer.head
        return self

    def raw(self, data: bytes) -> None:
        """Bytes past all rules."""
        self.channel._stream.write(data)

    async def say(self, *messages: Message) -> None:
        """Messages that our own session would not let out."""
        from replicad.link.frames import pack

        for message in messages:
            self.raw(pack(message))
            await asyncio.sleep(0)

    async def record(self, *ops: Op) -> None:
        """A record of these operations."""
        await self.say(Record(record_frame(ops)))

    async def block(self, data: bytes) -> bytes:
        """Bring a block in as it should be; its id."""
        await self.say(Offer(block_id(data)))
        while not isinstance(await self.channel.receive(), Need):
            pass
        await self.say(Blocks(block_frame(data)))
        return block_id(data)

    def commit(self, **changes: object) -> bytes:
        """A commit frame over nothing, with some fields changed."""
        fields = {"number": self.head.number + 1, "created_ns": 1, "complete": True, "parent": self.head.digest}
        fields |= {"records": 0, "records_digest": records_digest([]), "entries": 0, "size": 0, "unread": 0}
        commit = Commit(**(fields | changes))  # type: ignore[arg-type]
        return encode_plain(FrameType.COMMIT, encode_commit(commit))


def bad_put(path: bytes, **fields: object) -> Put:
    """A file without blocks at a path that may be none."""
    return Put(path, Kind.FILE, META, **({"size": 8, "file": 5, "block_bytes": 65536} | fields))  # type: ignore[arg-type]


BAD_PATHS = [
    b"..", b"../etc/passwd", b"a/../../b", b"a/..", b".", b"./a", b"a/./b", b"/etc/passwd", b"/", b"a//b", b"a/",
    b"nul\0byte", b"n" * 256, b"/".join([b"d" * 200] * 21), b"x/" * 2048 + b"y",
]  # fmt: skip
DATA = b"some block of the hostile peer" * 100


async def _garbage(peer: Hostile) -> None:
    peer.raw(random.Random(1).randbytes(100_000))


async def _garbage_in_session(peer: Hostile) -> None:
    await peer.open()
    peer.raw(random.Random(2).randbytes(1_000_000))


async def _truncated(peer: Hostile) -> None:
    await peer.open()
    peer.raw((1000).to_bytes(4, "big") + b"\x92\x09" + b"x" * 100)
    peer.channel._stream.close()


async def _oversize(peer: Hostile) -> None:
    await peer.open()
    peer.raw(b"\xff\xff\xff\xff\x92\x09" + bytes(1000))


async def _oversize_offer(peer: Hostile) -> None:
    await peer.open()
    peer.raw((8 * MIB).to_bytes(4, "big") + b"\x92\x07" + bytes(10 * MIB))


async def _deep_nesting(peer: Hostile) -> None:
    await peer.open()
    body = b"\x92\x07" + b"\x91" * 200_000
    peer.raw(len(body).to_bytes(4, "big") + body)


async def _no_open(peer: Hostile) -> None:
    await peer.say(Offer(bytes(32)))


async def _servers_words(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Acked(Head(7, bytes(32))))


async def _ragged_offer(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Offer(bytes(33)))


async def _huge_offer(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Offer(bytes(32 * (MAX_OFFER + 1))))


async def _offers_without_end(peer: Hostile) -> None:
    await peer.open()
    source = random.Random(3)
    for _ in range(70):
        await peer.say(Offer(source.randbytes(32 * MAX_OFFER)))


async def _block_that_lies(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Offer(block_id(DATA)))
    await peer.say(Blocks(encode_frame(FrameType.BLOCK, b"x" * len(DATA), block_id(DATA), b"x" * len(DATA), 0)))


async def _block_with_a_bomb(peer: Hostile) -> None:
    import zstandard

    await peer.open()
    stored = zstandard.ZstdCompressor().compress(bytes(1024 * MIB))
    await peer.say(Blocks(encode_frame(FrameType.BLOCK, bytes(1000), block_id(bytes(1000)), stored, 1)))


async def _flipped_frame(peer: Hostile) -> None:
    await peer.open()
    frame = bytearray(block_frame(DATA))
    frame[100] ^= 1
    await peer.say(Blocks(bytes(frame)))


async def _record_as_block(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Blocks(record_frame([directory_put(b"")])))


async def _commit_as_record(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Record(peer.commit()))


async def _record_of_garbage(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Record(encode_plain(FrameType.RECORD, random.Random(4).randbytes(5000))))


async def _unknown_block(peer: Hostile) -> None:
    await peer.open()
    await peer.record(directory_put(b""), file_put(b"f", 5, {0: block_id(b"nobody sent this")}))


async def _index_out_of_range(peer: Hostile) -> None:
    await peer.open()
    name = await peer.block(DATA)
    await peer.record(bad_put(b"f", blocks=(2**50,), ids=name))


async def _negative_index(peer: Hostile) -> None:
    await peer.open()
    name = await peer.block(DATA)
    await peer.record(bad_put(b"f", blocks=(-1,), ids=name))


async def _zeros_out_of_range(peer: Hostile) -> None:
    await peer.open()
    await peer.record(bad_put(b"f", zeros=((0, 2**60),)))


async def _huge_numbers(peer: Hostile) -> None:
    await peer.open()
    await peer.record(bad_put(b"f", size=2**64 - 1, file=2**64 - 1))


async def _stray_map(peer: Hostile) -> None:
    await peer.open()
    name = await peer.block(DATA)
    await peer.record(Map(77, (0,), name))


async def _drop_of_the_root(peer: Hostile) -> None:
    await peer.open()
    await peer.record(Drop(b""))


async def _huge_xattr(peer: Hostile) -> None:
    await peer.open()
    meta = Meta(0o644, 0, 0, 0, ((b"user.x", bytes(3 * MIB)),))
    await peer.say(Record(record_frame([Put(b"d", Kind.DIRECTORY, meta)] * 1)))
    await peer.say(Seal(peer.commit()))


async def _wrong_parent(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Seal(peer.commit(parent=bytes(32))))


async def _old_number(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Seal(peer.commit(number=peer.head.number)))


async def _huge_number(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Seal(peer.commit(number=2**64 - 1)))


async def _wrong_digest(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Seal(peer.commit(records=1, records_digest=bytes(32))))


async def _commit_of_other_records(peer: Hostile) -> None:
    await peer.open()
    await peer.record(directory_put(b""), directory_put(b"evil"))
    await peer.say(Seal(peer.commit()))


async def _no_such_dataset_name(peer: Hostile) -> None:
    await peer.say(OpenWrite("../../escape"))


async def _reading_a_bad_name(peer: Hostile) -> None:
    await peer.say(OpenRead(".."))


async def _bad_credit(peer: Hostile) -> None:
    await peer.open()
    await peer.say(Credit(1))


HOSTILITIES: list[Callable[[Hostile], Awaitable[None]]] = [
    _garbage, _garbage_in_session, _truncated, _oversize, _oversize_offer, _deep_nesting, _no_open, _servers_words,
    _ragged_offer, _huge_offer, _offers_without_end, _block_that_lies, _block_with_a_bomb, _flipped_frame,
    _record_as_block, _commit_as_record, _record_of_garbage, _unknown_block, _index_out_of_range, _negative_index,
    _zeros_out_of_range, _huge_numbers, _stray_map, _drop_of_the_root, _huge_xattr, _wrong_parent, _old_number,
    _huge_number, _wrong_digest, _commit_of_other_records, _no_such_dataset_name, _reading_a_bad_name, _bad_credit,
]  # fmt: skip


async def _until_it_is_over(channel: Channel) -> Message | None:
    """Hear the replica out; its last word, if it said one."""
    last: Message | None = None
    async with asyncio.timeout(15):
        while True:
            try:
                message = await channel.receive()
            except ReplicadError:
                return last
            if isinstance(message, Refuse | Bye):
                last = message


async def test_a_hostile_peer_changes_nothing(pair: Pair, root: Path) -> None:
    """Whatever a client with a valid key says against the rules ends its session, and only that: no snapshot, no path
    outside the store, no memory, no defect comes of it, and the next honest session works."""
    fill_tree(root, 7, 2)
    pair.start()
    assert synced(pair).last_snapshot == 1
    pair.primary.stop()
    tree = tree_at(archive_of(pair))
    configure(pair.replica, "client", datasets=[])
    process = psutil.Process(pair.replica.process.pid)  # type: ignore[union-attr]
    resident = process.memory_info().rss
    threads = process.num_threads()
    config = load(pair.primary.config)
    dialler = Dialler(config.replicas[0], config.node.key, "hostile")
    try:
        for hostility in HOSTILITIES:
            peer = Hostile(await dialler.dial())
            await hostility(peer)
            word = await _until_it_is_over(peer.channel)
            assert not isinstance(word, Refuse) or word.text, hostility.__name__
            assert len(snapshots(archive_of(pair))) == 1, hostility.__name__
            status = await asyncio.to_thread(pair.replica.status)
            assert [store.dataset for store in status.stores] == ["www"], hostility.__name__
        for number in range(40):
            peer = Hostile(await dialler.dial())
            await peer.say((OpenWrite if number % 2 else OpenRead)(f"{'../' * number}.x"))
            word = await _until_it_is_over(peer.channel)
            assert isinstance(word, Refuse) and "not allowed" in word.text, word
        for path in BAD_PATHS:
            for op in (
                bad_put(path),
                Put(path, Kind.DIRECTORY, META),
                Put(path, Kind.SYMLINK, META, target=b"t"),
                Drop(path),
            ):
                peer = await Hostile(await dialler.dial()).open()
                await peer.record(op)
                await peer.say(Seal(peer.commit(records=1, records_digest=records_digest([_record_id(op)]))))
                word = await _until_it_is_over(peer.channel)
                assert isinstance(word, Refuse), (path, word)
    finally:
        await dialler.close()
    assert process.memory_info().rss - resident < SESSION_MEMORY
    assert process.num_threads() <= threads + 4
    assert {p.name for p in pair.store.iterdir()} == {"ams1"}
    assert {p.name for p in (pair.store / "ams1").iterdir()} == {"www"}
    assert not (pair.store.parent / "escape").exists()
    assert tree_at(archive_of(pair), 1) == tree
    pair.primary.start()
    (root / "honest").write_text("honest")
    assert synced(pair).last_snapshot == 2
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    pair.stop()
    shutil.copytree(archive_of(pair), archive_of(pair).with_name("again"))
    assert_quiet(pair.primary, pair.replica)


def _record_id(op: Op) -> bytes:
    return block_id(encode_ops([op]))


async def test_a_client_makes_no_stores_without_end(pair: Pair) -> None:
    """A client whose datasets are not named in the configuration may have a hundred; the next one is refused."""
    configure(pair.replica, "client", datasets=[])
    pair.replica.start()
    config = load(pair.primary.config)
    dialler = Dialler(config.replicas[0], config.node.key, "hostile")
    try:
        for number in range(MAX_UNNAMED + 1):
            peer = Hostile(await dialler.dial())
            await peer.channel.send(OpenWrite(f"n{number}"))
            assert isinstance(await peer.channel.receive(), Refuse if number == MAX_UNNAMED else Opened)
            await peer.channel.close()
    finally:
        await dialler.close()
    assert len(pair.replica.status().stores) == MAX_UNNAMED
    pair.stop()
    assert_quiet(pair.replica)


async def test_a_flood_of_blocks_beyond_all_credit_stays_bounded(pair: Pair, root: Path) -> None:
    """A client that ignores its credit and takes no answers is held up by the line, not by the replica's memory."""
    pair.start()
    synced(pair)
    pair.primary.stop()
    process = psutil.Process(pair.replica.process.pid)  # type: ignore[union-attr]
    resident = process.memory_info().rss
    config = load(pair.primary.config)
    dialler = Dialler(config.replicas[0], config.node.key, "hostile")
    source = random.Random(8)
    try:
        peer = await Hostile(await dialler.dial()).open()
        for _ in range(200):
            data = source.randbytes(65536)
            await peer.channel.send(Blocks(block_frame(data) * 12))
        await asyncio.to_thread(pair.replica.status)
        assert process.memory_info().rss - resident < SESSION_MEMORY
        peer.channel.abort()
    finally:
        await dialler.close()
    assert len(snapshots(archive_of(pair))) == 1
    pair.primary.start()
    (root / "honest").write_text("honest")
    assert synced(pair).last_snapshot == 2
    pair.stop()
    assert_quiet(pair.primary, pair.replica)


async def test_a_hostile_session_does_not_disturb_another_one(pair: Pair, root: Path) -> None:
    """While one session of a client talks garbage, its other session replicates."""
    fill_tree(root, 9, 4)
    configure(pair.replica, "client", datasets=[])
    pair.start()
    config = load(pair.primary.config)
    dialler = Dialler(config.replicas[0], config.node.key, "hostile")
    try:
        for round_number in range(5):
            (root / "new").write_text(str(round_number))
            request = await asyncio.to_thread(ask, pair)
            peer = Hostile(await dialler.dial())
            peer.raw(os.urandom(50_000))
            line = await asyncio.to_thread(served, pair, request)
            assert line.pass_ok
            await _until_it_is_over(peer.channel)
    except LinkError as error:
        raise AssertionError("the dialler was shut out") from error
    finally:
        await dialler.close()
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    pair.stop()
    assert_quiet(pair.primary, pair.replica)
