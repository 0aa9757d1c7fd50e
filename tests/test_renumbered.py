"""What was found of a file goes on when the file slips past a walk and has a new number in the next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kit_findings import primary_rot
from kit_rig import Replica, Rig, replica, rig
from kit_scrub_primary import Scrubbed, scrubbed
from kit_tend import BLOCK, known_of, report, rot, standing, tending
from replicad.db.findings import Findings
from replicad.db.ledger import Ledger
from replicad.db.unnamed import is_unnamed, renumbered
from replicad.model.divergence import Divergence, Part, Side, State, block_key, metadata_key
from replicad.model.errors import DiskFullError
from replicad.work.primary_findings import PrimaryFindings

DATA = bytes(range(256)) * (3 * BLOCK // 256)


@asynccontextmanager
async def world(tmp_path: Path, **options: object) -> AsyncIterator[tuple[Rig, Replica]]:
    """A primary with one file in a directory, and its replica after a pass."""
    make_tree(tmp_path)
    async with rig(tmp_path, tmp_path / "www", **options) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        yield primary, fra1


def make_tree(tmp_path: Path) -> Path:
    """The root with that file."""
    (tmp_path / "www" / "d").mkdir(parents=True)
    (tmp_path / "www" / "d" / "f").write_bytes(DATA)
    return tmp_path / "www"


async def slip(primary: Rig, fra1: Replica) -> None:
    """Let the directory be elsewhere for one walk, and where it was in the next."""
    before = (await known_of(primary, b"d/f")).file
    away = primary.root.parent / "away"
    (primary.root / "d").rename(away)
    await primary.sync(fra1)
    away.rename(primary.root / "d")
    assert (await primary.sync(fra1)).pass_ok
    assert (await known_of(primary, b"d/f")).file != before, "it was renumbered"


async def acknowledge(primary: Rig, found: Divergence) -> None:
    """A person has seen it."""
    findings = primary.dataset.findings
    await primary.dataset.in_findings(findings.update, msgspec.structs.replace(found, state=State.ACKNOWLEDGED))


@pytest.mark.parametrize("state", [State.OPEN, State.ACKNOWLEDGED])
async def test_what_is_found_of_a_file_outlives_that_it_slips_past_a_walk(tmp_path: Path, state: State) -> None:
    """It is the same finding about the same path, under the number that the file has now, and found again as that."""
    root = make_tree(tmp_path)
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "d" / "f", BLOCK + 7)
        await made.scrub()
        (found,) = await made.found()
        if state is State.ACKNOWLEDGED:
            await acknowledge(made.primary, found)
        await slip(made.primary, made.fra1)
        for _ in range(2):
            await outdated_and_scrubbed(made)
            (now,) = await made.found(None)
            known = await known_of(made.primary, b"d/f")
            assert (now.id, now.state, now.path) == (found.id, state, b"d/f")
            assert (now.file, now.key) == (known.file, block_key(known.file, 1))
        made.disk.heal()
        await outdated_and_scrubbed(made)
        (now,) = await made.found(None)
        assert now.state is (State.GONE if state is State.OPEN else state)


async def outdated_and_scrubbed(made: Scrubbed) -> None:
    """A scrub late enough to look for what is outdated."""
    made.clock.advance(3600)
    await made.scrub()


async def test_a_drift_outlives_that_its_file_slips_past_a_walk(tmp_path: Path) -> None:
    """What differs in the metadata of a file is said of the number that the file has now."""
    async with world(tmp_path) as (primary, fra1):
        dataset, known = primary.dataset, await known_of(primary, b"d/f")
        await dataset.open_findings()
        drift = primary_rot(key=metadata_key(b"d/f"), path=b"d/f", part=Part.METADATA, file=known.file, expected=b"")
        found = await dataset.in_findings(dataset.findings.report, drift)
        await slip(primary, fra1)
        now = await standing(primary, found)
        assert (now.state, now.key, now.file) == (State.OPEN, found.key, (await known_of(primary, b"d/f")).file)
        outdated = PrimaryFindings(dataset, dataset.quarantine).outdated
        assert await dataset.in_ledger(outdated, now) == ""


async def test_a_finding_that_is_told_of_a_new_number_while_it_is_judged_is_not_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was outdated is what it said before."""
    async with scrubbed(tmp_path, make_tree(tmp_path)) as made:
        dataset, known = made.primary.dataset, await known_of(made.primary, b"d/f")
        await dataset.open_findings()
        drift = primary_rot(key=metadata_key(b"d/f"), path=b"d/f", part=Part.METADATA, file=known.file + 1)
        found = await dataset.in_findings(dataset.findings.report, drift)

        def renumber_meanwhile(*_: object) -> str:
            dataset.findings.renumber({known.file + 1: known.file})
            return "it exists no more"

        monkeypatch.setattr(PrimaryFindings, "outdated", renumber_meanwhile)
        await made.surface.verify(1, 0)
        assert await standing(made.primary, found) == msgspec.structs.replace(found, file=known.file)


async def test_a_repair_can_be_undone_and_stays_undone_though_the_file_slips_past_a_walk(tmp_path: Path) -> None:
    """As if it had kept its number: the bytes from before come back, and no repair by itself takes them away."""
    async with world(tmp_path, repair="auto") as (primary, fra1):
        file = primary.root / "d" / "f"
        await rot(primary, b"d/f", BLOCK)
        bad, found = file.read_bytes(), await report(primary, b"d/f", 1)
        job = tending(primary, fra1)
        await job.step()
        assert file.read_bytes() == DATA and (await standing(primary, found)).state is State.REPAIRED
        await slip(primary, fra1)
        assert (await job.mender.undo(await standing(primary, found))).result == "undone"
        assert file.read_bytes() == bad
        await slip(primary, fra1)
        await job.step()
        assert file.read_bytes() == bad, "what a person has undone stays"
        assert (await job.mender.undo(await standing(primary, found))).result == "nothing"
        assert (await job.repair(await standing(primary, found), dry_run=False)).result == "repaired"
        await job.close()


async def test_what_cannot_be_told_of_a_new_number_is_told_by_a_later_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Till then the finding is as it was, and nothing takes it for outdated; the pass itself goes well."""
    async with world(tmp_path) as (primary, fra1):
        dataset, found = primary.dataset, await report(primary, b"d/f", 1)

        def full(*_: object) -> None:
            raise DiskFullError("no room left for the book", where="findings")

        monkeypatch.setattr(Findings, "renumber", full)
        for _ in range(2):
            await slip(primary, fra1)
            assert await standing(primary, found) == found
            assert await dataset.in_ledger(is_unnamed, dataset.ledger, found.file)
            assert await dataset.in_ledger(PrimaryFindings(dataset, dataset.quarantine).outdated, found) == ""
        monkeypatch.undo()
        await primary.sync(fra1)
        assert (await standing(primary, found)).key == block_key((await known_of(primary, b"d/f")).file, 1)
        assert await dataset.in_ledger(renumbered, dataset.ledger) == {}


async def test_no_finding_speaks_of_a_number_that_a_power_cut_could_take_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ledger has given away is on its disk before the findings book is told of it."""
    steps: list[str] = []
    begin, renumber = Ledger.begin, Findings.renumber

    def noted_begin(self: Ledger, *, durable: bool = False) -> None:
        steps.append("durable" if durable else "not durable")
        begin(self, durable=durable)

    def noted_renumber(self: Findings, files: Mapping[int, int]) -> None:
        steps.append("told")
        renumber(self, files)

    async with world(tmp_path) as (primary, fra1):
        await report(primary, b"d/f", 1)
        monkeypatch.setattr(Ledger, "begin", noted_begin)
        monkeypatch.setattr(Findings, "renumber", noted_renumber)
        await slip(primary, fra1)
        assert steps.count("told") == 1
        assert steps[steps.index("told") - 1] == "durable"


def test_what_was_found_anew_under_the_new_number_stands_alone(tmp_path: Path) -> None:
    """One place has one open finding: the one of the old number is left where it was, for it is outdated."""
    book = Findings(tmp_path / "findings.db")
    old, anew = book.report(primary_rot(key="block:7:1", file=7, number=1)), primary_rot(key="block:9:1", file=9)
    anew = book.report(msgspec.structs.replace(anew, number=1))
    book.renumber({7: 9})
    assert book.get_exactly(old.id) == old
    assert book.open_at(Side.PRIMARY, "", "block:9:1") == anew
    book.close()
