"""Quotas: what the stores of one client take together is counted and bounded, and nobody else notices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from kit_link import open_writing
from kit_rig import Replica, describe_snapshot, replica, rig, snapshots
from kit_store import directory_put, record_frame
from replicad.config import ClientConfig
from replicad.link.channel import Channel
from replicad.link.messages import Acked, Credit, Record, Refuse, Seal
from replicad.model.entry import Kind, Meta, Op, Put
from replicad.model.errors import DiskFullError
from replicad.model.snapshot import NO_PARENT, Commit, encode_commit, records_digest
from replicad.status import DatasetStatus
from replicad.store.format import FrameType, encode_plain, split_frames
from replicad.store.segments import segment_path
from replicad.work.archive import catalog_path
from replicad.work.quota import Allowance, Quotas

MIB = 1024 * 1024


def store(directory: Path, *sizes: int) -> Path:
    """A directory with segment files of these sizes."""
    (directory / "segments").mkdir(parents=True)
    for number, size in enumerate(sizes, 1):
        segment_path(directory, number).write_bytes(bytes(size))
    return directory


def test_all_stores_of_a_client_share_its_quota(tmp_path: Path) -> None:
    """To the byte; another client's stores do not count, and one without a quota takes what it likes."""
    clients = [ClientConfig("ams1", "key", quota_bytes=1000), ClientConfig("ams2", "key", quota_bytes=100)]
    quotas = Quotas(lambda: clients)
    one = Allowance(quotas, "ams1", store(tmp_path / "one", 300, 50))
    two = Allowance(quotas, "ams1", store(tmp_path / "two", 150))
    assert (one.measure(), two.measure()) == (350, 150)
    one.take(400)
    two.take(100)
    for each in (one, two):
        with pytest.raises(DiskFullError, match=r"client ams1 takes 1,000 bytes here and may take 1KB"):
            each.take(1)
        each.take(0)
    Allowance(quotas, "ams2", tmp_path / "three").take(100)
    Allowance(quotas, "ams3", tmp_path / "four").take(1 << 60)


def test_what_was_given_back_or_never_kept_may_be_taken_again(tmp_path: Path) -> None:
    """A store is measured as it stands, and a new quota counts at once."""
    clients = [ClientConfig("ams1", "key", quota_bytes=1000)]
    quotas = Quotas(lambda: clients)
    directory = store(tmp_path / "one", 600, 300)
    allowance = Allowance(quotas, "ams1", directory)
    allowance.measure()
    allowance.take(100)
    with pytest.raises(DiskFullError):
        allowance.take(1)
    clients[0] = ClientConfig("ams1", "key", quota_bytes=1100)
    allowance.take(100)
    segment_path(directory, 1).unlink()
    assert allowance.measure() == 300
    allowance.take(800)
    with pytest.raises(DiskFullError):
        allowance.take(1)


def test_books_count_as_what_is_expected_of_them_and_as_what_they_are(tmp_path: Path) -> None:
    """What a record will take in the catalog is taken with it; a catalog that has grown beyond that counts as it is,
    measured or not."""
    quotas = Quotas(lambda: [ClientConfig("ams1", "key", quota_bytes=1000)])
    directory = store(tmp_path / "one", 100)
    allowance = Allowance(quotas, "ams1", directory)
    catalog_path(directory).write_bytes(bytes(200))
    assert allowance.measure() == 300
    allowance.take(50, books=250)
    catalog_path(directory).write_bytes(bytes(400))
    allowance.take(50, books=150)  # within what was expected
    assert quotas.taken("ams1") == {directory: 200 + 600}
    catalog_path(directory).with_name("catalog.db-wal").write_bytes(bytes(350))
    allowance.take(50)
    with pytest.raises(DiskFullError, match="takes 1,000 bytes"):
        allowance.take(1)
    assert allowance.measure() == 100 + 750


# a client that tries


class Greedy:
    """A client that says what it likes in a writing session, until it is refused."""

    def __init__(self, channel: Channel, replica: Replica) -> None:
        self._channel, self._replica = channel, replica
        self._records: list[bytes] = []
        self.head = (0, NO_PARENT)

    async def record(self, ops: Sequence[Op]) -> bool:
        """Send a record; whether it was taken."""
        frame = record_frame(ops, level=3)
        self._records.append(split_frames(frame)[0].id)
        return await self._told(Record(frame), Credit)

    async def seal(self) -> bool:
        """Send the commit of what was recorded; whether it was taken."""
        number, parent = self.head[0] + 1, self.head[1]
        plain = encode_commit(Commit(number, 1, True, parent, len(self._records), records_digest(self._records), 0, 0))
        frame = encode_plain(FrameType.COMMIT, plain)
        self.head, self._records = (number, split_frames(frame)[0].id), []
        return await self._told(Seal(frame), Acked)

    async def _told(self, message: Record | Seal, good: type[Credit] | type[Acked]) -> bool:
        await self._channel.send(message)
        answer = await self._channel.receive()
        assert isinstance(answer, good) or (isinstance(answer, Refuse) and answer.code == "full"), answer
        return isinstance(answer, good)


def on_disk(replica: Replica) -> int:
    """Bytes of all files of the store."""
    return sum(path.stat().st_size for path in replica.archive.rglob("*") if path.is_file())


async def test_records_that_expand_take_what_they_expand_to(tmp_path: Path) -> None:
    """Entries of a MiB that is all zeros, a few hundred bytes on the wire, end at the quota, sealed or not."""
    fat = Meta(0, 0, 0, 0, tuple((b"user.%02d" % n, bytes(60_000)) for n in range(17)))
    async with replica(tmp_path / "store", quota_bytes=24 * MIB) as fra1:
        for seals in (False, True):
            greedy = Greedy(await open_writing(await fra1.dial()), fra1)
            taken = 0
            while await greedy.record([Put(b"%d-%d" % (taken, n), Kind.FIFO, fat) for n in range(3)]):
                taken += 1
                assert not seals or await greedy.seal()
                assert taken < 100
            assert taken > 1 and fra1.status.state == "full"
            assert on_disk(fra1) < 26 * MIB


async def test_snapshots_of_nothing_new_end_at_the_quota(tmp_path: Path) -> None:
    """A client that seals for ever is refused at its quota as the one that sends; what it has stays what it is."""
    async with replica(tmp_path / "store", quota_bytes=4 * MIB) as fra1:
        greedy = Greedy(await open_writing(await fra1.dial()), fra1)
        await greedy.record([directory_put(b"")])
        sealed = 0
        while await greedy.seal():
            sealed += 1
            assert sealed < 2000
        assert sealed > 1 and fra1.status.state == "full" and on_disk(fra1) < 5 * MIB
        assert len(snapshots(fra1.archive)) == sealed


async def test_a_pass_without_changes_is_refused_and_goes_on_like_any_other(tmp_path: Path) -> None:
    """At its quota a primary cannot seal what did not change; both sides say that the replica is full, and once there
    is room the next pass is complete."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(random.Random(1).randbytes(2 * MIB))
    async with rig(tmp_path, tmp_path / "www", rpo_s=600.0) as primary, replica(tmp_path / "store") as fra1:

        async def sync_when_due() -> DatasetStatus:
            ledger = primary.dataset.ledger
            await primary.dataset.in_ledger(ledger.put, "sealed_ns:fra1", primary.clock.now_ns() - 600 * 10**9)
            return await primary.sync(fra1)

        assert (await primary.sync(fra1)).pass_ok
        assert (await sync_when_due()).last_snapshot == 2
        fra1.allow(MIB)
        for _ in range(2):
            with pytest.raises(DiskFullError, match="the replica is full: client ams1 takes"):
                await sync_when_due()
            assert fra1.status.state == "full" and "may take 1MiB" in fra1.status.reason
        assert len(snapshots(fra1.archive)) == 2
        fra1.allow(0)
        line = await sync_when_due()
        assert line.pass_ok and line.last_snapshot == 3 and fra1.status.state == "connected"
        assert describe_snapshot(fra1.archive, 3) == describe_snapshot(fra1.archive, 1)
