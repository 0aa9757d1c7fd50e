"""A damaged ledger or catalog becomes a finding where it is met, and whoever makes the book anew settles it."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing
from pathlib import Path

import pytest

from kit_rig import Replica, Rig, replica, rig
from kit_store import Primary, open_archive, put_files
from kit_tend import tending
from replicad.config import DatasetConfig
from replicad.db.findings import Findings
from replicad.db.ledger import Ledger
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.errors import BookDamagedError, RefusedError, ReplicadError
from replicad.model.remedy import Remedy, remedy_for
from replicad.model.verdict import Verdict
from replicad.work.book_damage import CATALOG, LEDGER, damaged, findings_of, mended, note_at
from replicad.work.dataset import Dataset
from replicad.work.read_remote import RemoteReader
from replicad.work.rebuild import rebuild_catalog

ERROR = BookDamagedError("a page fails its checksum", where="/var/lib/replicad/ledger/www.db", hint="type this")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    source = random.Random(1)
    for number in range(200):
        (path / f"a-rather-long-name-{number}").write_bytes(source.randbytes(300))
    return path


def damage(book: Path) -> None:
    """Flip a bit in every page but the first, which would keep the book from being opened at all."""
    data = bytearray(book.read_bytes())
    for at in range(8192 + 3000, len(data), 8192):
        data[at] ^= 4
    book.write_bytes(data)


def listed(book: Path, state: State | None = None) -> list[Divergence]:
    with closing(Findings(book)) as findings:
        return findings.listed(state=state)


@pytest.mark.parametrize(
    ("side", "key", "verdict"),
    [(Side.PRIMARY, LEDGER, Verdict.PRIMARY_ROT), (Side.REPLICA, CATALOG, Verdict.REPLICA_ROT)],
)
def test_the_finding_says_which_book_and_how_it_is_mended(side: Side, key: str, verdict: Verdict) -> None:
    """A definite verdict, since a page carries its own witness, and a remedy that makes the book anew."""
    found = damaged(side, "www", "ams1", ERROR, 5)
    assert (found.key, found.verdict, found.part, found.path) == (key, verdict, Part.BOOK, b"www.db")
    assert remedy_for(found.part, found.verdict) is Remedy.REBUILD_BOOK
    assert found.what == "a page fails its checksum"
    assert not found.is_lost


def test_a_damage_that_is_met_again_is_one_finding(tmp_path: Path) -> None:
    """Each try of a daemon meets it; the book has one line with one event, until it is mended and breaks again."""
    book = tmp_path / "findings.db"
    for at_ns in (5, 6, 7):
        note_at(book, damaged(Side.REPLICA, "www", "ams1", ERROR, at_ns))
    (found,) = listed(book)
    assert (found.found_ns, len(found.events)) == (5, 1)
    mended(book, LEDGER, 8, "another book")
    assert listed(book, State.OPEN) == [found]
    mended(book, CATALOG, 9, "made anew")
    (found,) = listed(book)
    assert (found.state, found.events[-1].what) == (State.REPAIRED, "made anew")
    note_at(book, damaged(Side.REPLICA, "www", "ams1", ERROR, 10))
    assert len(listed(book)) == 2


def test_a_damage_that_a_person_has_noted_is_settled_as_well(tmp_path: Path) -> None:
    """The book that is damaged after it was made anew is told again."""
    book = tmp_path / "findings.db"
    note_at(book, damaged(Side.PRIMARY, "www", "", ERROR, 5))
    with closing(Findings(book)) as findings:
        (found,) = findings.listed()
        findings.update(found.with_event(6, "acknowledged", state=State.ACKNOWLEDGED))
    note_at(book, damaged(Side.PRIMARY, "www", "", ERROR, 7))
    assert [one.state for one in listed(book)] == [State.ACKNOWLEDGED]
    mended(book, LEDGER, 8, "made anew")
    note_at(book, damaged(Side.PRIMARY, "www", "", ERROR, 9))
    assert [one.state for one in listed(book)] == [State.REPAIRED, State.OPEN]


def test_findings_that_cannot_be_written_hide_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The log says that the damage is in no book, and the error of whoever met it goes on its way."""
    book = tmp_path / "findings.db"
    book.write_bytes(random.Random(1).randbytes(50_000))
    note_at(book, damaged(Side.REPLICA, "www", "ams1", ERROR, 5))
    mended(book, CATALOG, 9, "made anew")
    assert capfd.readouterr().err.count("key=book:catalog") == 2


def test_nothing_is_settled_where_nothing_was_found(tmp_path: Path) -> None:
    """No findings book is made for the sake of it."""
    mended(tmp_path / "findings.db", CATALOG, 9, "made anew")
    assert not (tmp_path / "findings.db").exists()


async def test_a_ledger_that_is_no_database_is_found_when_it_is_opened(tmp_path: Path, root: Path) -> None:
    """The dataset cannot be opened, its findings can."""
    (tmp_path / "state" / "ledger").mkdir(parents=True)
    (tmp_path / "state" / "ledger" / "www.db").write_bytes(b"no database at all" * 1000)
    dataset = Dataset(DatasetConfig("www", root, watch=False), ("fra1",), tmp_path / "state")
    try:
        with pytest.raises(BookDamagedError, match="rebuild --ledger www"):
            await dataset.open()
        await dataset.open_findings()
        with pytest.raises(BookDamagedError):
            await dataset.open()
        (found,) = await dataset.in_findings(dataset.findings.listed)
        assert (found.key, found.side, found.state) == (LEDGER, Side.PRIMARY, State.OPEN)
    finally:
        await dataset.close()


async def test_a_ledger_that_was_moved_away_while_open_is_not_the_ledger_any_more(tmp_path: Path, root: Path) -> None:
    """Whichever job had it open, and although nobody met its damage since: the next pass has the one at its place."""
    ledger = tmp_path / "state" / "ledger" / "www.db"
    dataset = Dataset(DatasetConfig("www", root, watch=False), ("fra1",), tmp_path / "state")
    try:
        await dataset.open()
        await dataset.in_ledger(dataset.ledger.put, "held", "the old one")
        await dataset.open()
        assert await dataset.in_ledger(dataset.held) == "the old one"
        ledger.rename(ledger.with_name("moved-away"))
        await dataset.open()
        assert await dataset.in_ledger(dataset.held) == ""
        await dataset.in_ledger(dataset.ledger.put, "held", "the new one")
        await dataset.open()
        assert await dataset.in_ledger(dataset.held) == "the new one"
    finally:
        await dataset.close()
    with closing(Ledger(ledger)) as book:
        assert book.get("held") == "the new one"


async def _meet_at_open(primary: Rig, fra1: Replica) -> None:
    with pytest.raises(RefusedError, match="cannot be opened"):
        await primary.sync(fra1)


async def _meet_while_reading(primary: Rig, fra1: Replica) -> None:
    with pytest.raises(ReplicadError):
        reader = await RemoteReader.open(await fra1.dial(), "www")
        try:
            async for _ in reader.record(1):
                pass
        finally:
            await reader.close()


async def _meet_while_writing(primary: Rig, fra1: Replica) -> None:
    for path in primary.root.iterdir():
        path.chmod(0o600)
    with pytest.raises(ReplicadError):
        await primary.sync(fra1)


async def _meet_while_tending(primary: Rig, fra1: Replica) -> None:
    job = tending(primary, fra1)
    with pytest.raises(ReplicadError):
        await job.step()
    await job.close()


async def _session_ended(fra1: Replica) -> None:
    """The primary is told first; then the session ends with its error."""
    async with asyncio.timeout(30):
        while not fra1.errors:
            await asyncio.sleep(0.01)


MEETINGS = [_meet_at_open, _meet_while_reading, _meet_while_writing, _meet_while_tending]


@pytest.mark.parametrize("meet", MEETINGS)
async def test_a_damaged_catalog_is_found_and_a_rebuild_settles_it(tmp_path: Path, root: Path, meet: object) -> None:
    """Whether a session opens, reads, writes or tends the store: an open finding names the catalog; after
    `replicad rebuild` it is repaired, with the moment and how."""
    async with rig(tmp_path, root) as primary:
        async with replica(tmp_path / "store") as fra1:
            await primary.sync(fra1)
            await primary.close_jobs()
        async with replica(tmp_path / "store") as fra1:
            catalog = fra1.archive / "catalog.db"
            if meet is _meet_at_open:
                catalog.write_bytes(b"no database" * 5000)
            else:
                reader = await RemoteReader.open(await fra1.dial(), "www")  # so that the store is open
                await reader.close()
                damage(catalog)
            await meet(primary, fra1)  # type: ignore[operator]
            await _session_ended(fra1)
        await primary.close_jobs()
        directory = tmp_path / "store" / "ams1" / "www"
        (found,) = listed(findings_of(directory))
        assert (found.key, found.side, found.peer, found.path) == (CATALOG, Side.REPLICA, "ams1", b"catalog.db")
        rebuild_catalog(directory)
        (found,) = listed(findings_of(directory))
        assert (found.state, found.events[-1].what) == (State.REPAIRED, "made anew from the segments")
        async with replica(tmp_path / "store") as fra1:
            assert (await primary.sync(fra1)).pass_ok


def test_a_lost_catalog_is_a_finding_too(tmp_path: Path) -> None:
    """Segments without a catalog are refused and written down; an archive that is well leaves no finding behind."""
    directory = tmp_path / "ams1" / "www"
    directory.mkdir(parents=True)
    archive = open_archive(directory)
    put_files(Primary(archive), 1, {b"a": b"one"})
    archive.close()
    assert not findings_of(directory).exists()
    rebuild_catalog(directory)
    assert not findings_of(directory).exists()
