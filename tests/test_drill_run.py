"""One drill at a time, with the world changing around it: what the ledger says counts, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from kit_rig import Replica, Rig, replica, rig
from replicad.config.values import DatasetConfig, ValidatorConfig
from replicad.db.drills import Chosen, Drills, Subject
from replicad.db.ledger import BlockRow, EntryRow, Ledger, put_of, stamp_of
from replicad.link.channel import Channel
from replicad.model.attestation import Attestation, DrillMemory
from replicad.model.drill import DrillRecord, Outcome
from replicad.model.entry import Kind, Meta, Op, Put
from replicad.model.errors import DiskFullError, LinkError, ReplicadError
from replicad.model.gate import Demands, Seen
from replicad.model.gate import judge as judge_gate
from replicad.model.policy import Grade, Objectives
from replicad.model.retention import Rules
from replicad.status import DatasetStatus, NodeStatus, PolicyStatus, findings
from replicad.store import store
from replicad.work import drill, drilling, scratch
from replicad.work.drill_book import DrillBook, drills_path
from replicad.work.drill_choice import Subjects
from replicad.work.drill_reader import ChosenReader
from replicad.work.drilling import Drilling
from replicad.work.policy_facts import judgements
from replicad.work.read_remote import RemoteReader
from replicad.work.reader import Answer
from replicad.work.retain import Retained
from replicad.work.scratch import PREFIX
from replicad.work.validators import Bench, Validators

Dial = Callable[[], Awaitable[Channel]]


class Site:
    """A primary, a replica, and a drilling loop between them."""

    def __init__(self, here: Rig, there: Replica, base: Path) -> None:
        self.here, self.there, self.base = here, there, base
        self.dial: Dial = there.dial
        self.book = DrillBook(drills_path(here.directory / "state", "www"))
        self.job = self.drilling("fra1")

    def drilling(self, name: str) -> Drilling:
        """The loop for a replica."""

        async def dial() -> Channel:
            return await self.dial()

        live = [("dataset www", self.here.root), ("the state directory", self.here.directory / "state")]
        return Drilling(self.here.dataset, name, dial, self.book, lambda: live, self.here.clock, asyncio.Lock())

    async def drill(self, kind: str = "full", globs: tuple[bytes, ...] = ()) -> DrillRecord:
        """Ask for a drill and take the step that does it; its record."""
        number = self.job.request(kind, globs)
        await self.job.step()
        assert self.job.status.served == number and self.job.status.last is not None
        assert [p for p in self.base.iterdir() if p.name.startswith(PREFIX)] == [], "nothing is left behind"
        return self.job.status.last

    def stands(self, *memories: DrillMemory) -> set[bool]:
        """Whether all is well with drills, as the policy says, a person sees, and a gate that goes by what the replica
        remembers."""
        now_ns, drills = self.here.clock.now_ns(), [self.job.status]
        policy = PolicyStatus("www", Objectives(drill_every_s=3600.0))
        node = NodeStatus(
            "ams1", "1", now_ns=now_ns, datasets=[DatasetStatus("www", "fra1")], drills=drills, policies=[policy]
        )
        (judged,) = judgements(node)
        (objective,) = (result for result in judged.results if result.objective == "drill_every")
        saids = [Attestation(now_ns=now_ns, drills=memory) for memory in memories]
        checks = [check for said in saids for check in judge_gate(Demands(60.0, 60.0, 3600.0), Seen(now_ns, said=said))]
        return {
            objective.grade is Grade.PASS,
            not [finding for finding in findings(node) if finding.kind == "drill"],
            *(check.holds for check in checks if check.name == "drilled"),
        }

    async def in_ledger(self, change: Callable[[Ledger], None]) -> None:
        """Change the ledger behind everybody's back."""
        await self.here.dataset.in_ledger(lambda: change(self.here.dataset.ledger))


@asynccontextmanager
async def site(directory: Path, **options: object) -> AsyncIterator[Site]:
    """A site with two files, and a first snapshot of them."""
    root, base = directory / "www", directory / "scratch"
    (root / "d").mkdir(parents=True)
    base.mkdir()
    (root / "d" / "a").write_bytes(b"a" * 200_000)
    (root / "b").write_bytes(os.urandom(100_000))
    options = {"drill_every_s": 0.0, "drill_scratch": base} | options
    async with replica(directory / "store") as there, rig(directory, root, ("fra1", "fra2"), **options) as here:
        made = Site(here, there, base)
        await here.sync(there)
        try:
            yield made
        finally:
            await made.book.close()


async def test_what_the_ledger_says_counts_and_not_what_the_replica_says(tmp_path: Path) -> None:
    """A replica whose blocks are sound but are not those that the ledger knows has failed the drill, by name."""
    async with site(tmp_path) as made:
        assert (await made.drill()).outcome is Outcome.PROVEN

        def other_id(ledger: Ledger) -> None:
            known = ledger.known(b"d/a")
            assert known is not None
            row = ledger.blocks(known.file, 0, 1)[0]
            ledger.record_blocks([BlockRow(row.file, 0, b"\1" * 32, row.checksum, row.seq)])

        await made.in_ledger(other_id)
        record = await made.drill()
        assert record.outcome is Outcome.FAILED and record.compared_files == 1
        assert record.reasons == ["d/a: came back with other bytes than the ledger says"]
        assert made.job.status.last_success_ns and made.job.status.last_success_ns < record.ended_ns


async def test_a_failed_drill_stands_until_another_one_of_the_dataset_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither paths that a person chose nor a drill that found nothing out makes up for it, in whatever number, and
    whether the replica heard of each drill or of the last ones only."""
    monkeypatch.setattr(drilling, "RECENT", 1)
    async with site(tmp_path) as made:
        heard, rows = DrillMemory(), list[BlockRow]()

        def told(memory: DrillMemory) -> DrillMemory:
            for note in made.job.notes:
                memory = memory.heard(note, made.here.clock.now_ns())
            return memory

        async def out_of_reach() -> Channel:
            raise LinkError("out of reach")

        def other_id(ledger: Ledger) -> None:
            known = ledger.known(b"d/a")
            assert known is not None
            rows.append(ledger.blocks(known.file, 0, 1)[0])
            ledger.record_blocks([rows[0]._replace(id=b"\1" * 32)])

        assert (await made.drill()).outcome is Outcome.PROVEN
        before = heard = told(heard)
        assert made.stands(heard) == {True} and made.job.status.failure is None
        await made.in_ledger(other_id)
        failed = await made.drill()
        for kind, globs, outcome in (
            ("full", (), Outcome.FAILED),
            ("paths", (b"b",), Outcome.PROVEN),
            ("sampled", (), Outcome.INCONCLUSIVE),
            ("sampled", (), Outcome.INCONCLUSIVE),
            ("paths", (b"b",), Outcome.PROVEN),
        ):
            made.dial = out_of_reach if outcome is Outcome.INCONCLUSIVE else made.there.dial
            record = await made.drill(kind, globs)
            failed = record if outcome is Outcome.FAILED else failed
            heard = told(heard)
            assert record.outcome is outcome and made.job.status.failure == failed
            assert made.stands(heard, told(before), told(DrillMemory())) == {False}
        await made.in_ledger(lambda ledger: ledger.record_blocks(rows))
        assert (await made.drill()).outcome is Outcome.PROVEN
        assert made.stands(told(heard), told(before), told(DrillMemory())) == {True}


async def test_a_file_that_the_replica_lost_without_a_word_is_missed(tmp_path: Path) -> None:
    """The choice is made from the ledger: what the replica's record does not have is named."""
    async with site(tmp_path) as made:

        def one_more(ledger: Ledger) -> None:
            known = ledger.known(b"b")
            assert known is not None
            ledger.record_entries([EntryRow(put_of(b"lost", known), stamp_of(known), known.seq)])

        await made.in_ledger(one_more)
        for kind in ("full", "sampled"):
            record = await made.drill(kind)
            assert record.outcome is Outcome.FAILED
            assert record.reasons == ["lost: is in the ledger and did not come back"]


async def test_passes_during_a_drill_change_nothing_about_it(tmp_path: Path) -> None:
    """What was chosen is compared with what the ledger said then, though files changed and went since."""
    async with site(tmp_path) as made:

        async def busy() -> Channel:
            (made.here.root / "b").write_bytes(b"new")
            (made.here.root / "d" / "a").unlink()
            await made.here.sync(made.there)
            return await made.there.dial()

        made.dial = busy
        record = await made.drill()
        assert record.outcome is Outcome.PROVEN and record.snapshot == 1 and record.compared_files == 2


async def test_retention_and_compaction_during_a_drill_take_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot that it restores stays until it has, though newer ones came and the rules keep none like it; then it
    goes, with the room that only it needed."""
    monkeypatch.setattr(store, "SEGMENT_BYTES", 256 * 1024)
    rules = Rules(hourly=1, at_least=1, younger_than_s=0.0)
    async with site(tmp_path) as made:

        async def snapshot() -> int:
            for name in ("b", "d/a"):
                (made.here.root / name).write_bytes(os.urandom(300_000))
            return (await made.here.sync(made.there)).last_snapshot

        await snapshot()
        drilled = await snapshot()
        real, runs = RemoteReader.fetch, list[Retained]()

        async def slow(reader: RemoteReader, ids: bytes) -> AsyncIterator[list[Answer]]:
            if not runs:
                runs.append(Retained("", ""))
                await snapshot()
                await snapshot()
                runs[0] = await made.there.retain(rules)
            async for answers in real(reader, ids):
                yield answers

        monkeypatch.setattr(RemoteReader, "fetch", slow)
        record = await made.drill()
        assert record.outcome is Outcome.PROVEN and record.snapshot == drilled and record.compared_files == 2
        assert runs[0].dropped and drilled not in runs[0].dropped and runs[0].compacted
        after = await made.there.retain(rules)
        assert after.dropped == [drilled] and after.compacted


async def test_what_is_younger_than_the_snapshot_is_not_compared(tmp_path: Path) -> None:
    """A replica that lags is drilled for what it has; of the rest nothing is known, so the drill is inconclusive."""
    async with site(tmp_path) as made, replica(tmp_path / "store2") as second:
        await made.here.sync(second, "fra2")
        (made.here.root / "b").write_bytes(b"newer")
        await made.here.sync(made.there)
        made.dial, made.job = second.dial, made.drilling("fra2")
        record = await made.drill()
        assert record.outcome is Outcome.INCONCLUSIVE
        assert (record.uncompared_files, record.compared_files, record.files) == (1, 1, 1)


async def test_an_acknowledged_snapshot_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    """A store that was put back to an older state, or emptied, does not have what it acknowledged."""
    async with site(tmp_path) as made:
        await made.here.close_jobs()
        await made.there.close()
        shutil.copytree(tmp_path / "store", tmp_path / "old")
        (made.here.root / "b").write_bytes(b"more")
        async with replica(tmp_path / "store") as there:
            await made.here.sync(there)
            await made.here.close_jobs()
        async with replica(tmp_path / "old") as there:
            made.dial = there.dial
            record = await made.drill()
            assert record.outcome is Outcome.FAILED and "does not have it any more" in record.reasons[0]
        async with replica(tmp_path / "empty") as there:
            made.dial = there.dial
            record = await made.drill()
            assert record.outcome is Outcome.FAILED and "acknowledged snapshot 2" in record.reasons[0]


async def test_a_link_that_is_cut_is_inconclusive(tmp_path: Path) -> None:
    """In the middle of the restore, or before its first word."""
    async with site(tmp_path) as made:

        async def cut() -> Channel:
            channel = await made.there.dial()
            made.there.cut()
            return channel

        made.dial = cut
        record = await made.drill()
        assert record.outcome is Outcome.INCONCLUSIVE and not record.compared_files
        assert made.job.status.last_success_ns == 0 and made.job.status.never_files == 2


async def test_a_drill_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """A daemon that stops in the middle of a drill removes its scratch directory and records nothing."""
    async with site(tmp_path) as made:
        waiting = asyncio.Event()

        async def hang() -> Channel:
            waiting.set()
            await asyncio.Event().wait()
            raise AssertionError

        made.dial = hang
        made.job.request("full", ())
        task = asyncio.create_task(made.job.step())
        await waiting.wait()
        assert len(list(made.base.iterdir())) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert list(made.base.iterdir()) == []
        assert (await made.book.opened()).history() == []


async def test_a_scratch_directory_in_live_data_is_refused(tmp_path: Path) -> None:
    """Also one that came to lie there through a link since the configuration was read: nothing is written."""
    async with site(tmp_path) as made:
        made.base.rmdir()
        made.base.symlink_to(made.here.root / "d")
        record = await made.drill()
        assert record.outcome is Outcome.INCONCLUSIVE and "overlaps dataset www" in record.reasons[0]
        assert sorted(os.listdir(made.here.root / "d")) == ["a"]


async def test_a_drill_that_never_began_moves_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the drill before it had proven is not proven again by one that did not come so far as to choose, nor while
    the book has no room to say what is chosen."""

    def full(book: Drills) -> None:
        raise DiskFullError("no room", where=str(book.path))

    async with site(tmp_path) as made:
        assert (await made.drill()).outcome is Outcome.PROVEN
        book = await made.book.opened()
        before = await made.book(lambda: sorted(book.by_age("fra1", made.here.clock.now_ns())))
        assert all(drilled_ns for _file, _size, drilled_ns in before)
        made.base.rmdir()
        made.base.symlink_to(made.here.root / "d")
        assert (await made.drill()).outcome is Outcome.INCONCLUSIVE
        monkeypatch.setattr(Drills, "begin_choice", full)
        number = made.job.request("full", ())
        with pytest.raises(DiskFullError):
            await made.job.step()
        assert made.job.status.served == number
        assert await made.book(lambda: sorted(book.by_age("fra1", made.here.clock.now_ns()))) == before


@pytest.mark.parametrize(("link", "said"), [("", "make it"), ("scratch", "levels of symbolic links")])
async def test_a_scratch_directory_that_is_gone_is_inconclusive(link: str, said: str, tmp_path: Path) -> None:
    """Also where a link that leads nowhere is in its place: whoever asked hears so, with what to do, and the next drill
    is made when it is there again."""
    async with site(tmp_path) as made:
        made.base.rmdir()
        if link:
            made.base.symlink_to(link)
        number = made.job.request("full", ())
        await made.job.step()
        status = made.job.status
        assert status.served == number and status.last is not None
        assert status.last.outcome is Outcome.INCONCLUSIVE and said in status.last.reasons[0]
        made.base.unlink(missing_ok=True)
        made.base.mkdir()
        assert (await made.drill()).outcome is Outcome.PROVEN


async def test_a_scratch_space_that_fills_up_is_inconclusive(tmp_path: Path) -> None:
    """Somebody else takes the room while the drill restores."""
    if os.geteuid():
        pytest.skip("only root mounts")
    async with site(tmp_path) as made:
        (made.here.root / "large").write_bytes(os.urandom(6_000_000))
        await made.here.sync(made.there)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10M", "tmpfs", made.base]).returncode:
            pytest.skip("nothing can be mounted here")
        try:

            async def fill() -> Channel:
                (made.base / "filler").write_bytes(bytes(6_000_000))
                return await made.there.dial()

            made.dial = fill
            record = await made.drill()
            assert record.outcome is Outcome.INCONCLUSIVE and "room" in str(record.reasons), record.reasons
            (made.base / "filler").unlink()
            made.dial = made.there.dial
            assert (await made.drill()).outcome is Outcome.PROVEN
        finally:
            subprocess.run(["umount", made.base], check=True)


async def test_a_drill_is_due_once(tmp_path: Path) -> None:
    """The first step drills by itself, the next one does not; without scratch space or a snapshot none does."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=7200.0) as made:
        await made.job.step()
        await made.job.step()
        status = made.job.status
        assert status.drills == {"proven": 1} and status.last is not None and status.last.compared_files
        assert status.state == "idle" and status.next_ns == status.last.ended_ns + 3600 * 10**9
        other = made.drilling("fra2")
        await other.step()
        assert other.status.state == "waiting" and other.status.last is None
    async with site(tmp_path / "off", drill_scratch=None, drill_every_s=3600.0) as made:
        await made.job.step()
        assert made.job.status.state == "off" and "drill_scratch" in made.job.status.reason


async def test_a_file_larger_than_the_limit_is_never_passed_over_in_silence(tmp_path: Path) -> None:
    """The rest is drilled, and the drill is inconclusive for as long as it cannot reach that file."""
    options = {"drill_every_s": 3600.0, "drill_within_s": 3600.0, "drill_limit_bytes": 150_000}
    async with site(tmp_path, **options) as made:
        record = await made.drill("sampled")
        assert record.outcome is Outcome.INCONCLUSIVE and record.compared_files == 1
        assert record.reasons == ["1 file is larger than drill_limit and cannot be drilled"]
        assert made.job.status.never_files == 1


def test_a_validator_takes_the_first_name_on_the_way_down() -> None:
    """A pattern that means a directory makes that the subject of everything below it."""
    validators = (
        ValidatorConfig("postgresql", "pg/*"),
        ValidatorConfig("sqlite", "**/*.db*"),
        ValidatorConfig("command", "**/site", ("look",)),
    )
    subjects = Subjects(DatasetConfig("www", Path("/www"), validators=validators))
    assert list(subjects.of(b"pg/15/base/1/2")) == [Subject(b"pg/15", 0, True)]
    assert list(subjects.of(b"x/app.db")) == [Subject(b"x/app.db", 1, False)]
    assert list(subjects.of(b"x/app.db-wal")) == []
    assert list(subjects.of(b"a/site/b/site/c.db")) == [
        Subject(b"a/site/b/site/c.db", 1, False),
        Subject(b"a/site", 2, True),
    ]
    assert list(subjects.of(b"pg")) == []


class Listed:
    """A reader that gives these operations."""

    name = "listed"

    def __init__(self, ops: list[list[Op]]) -> None:
        self._ops = ops

    async def record(self, snapshot: int, globs: object = ()) -> AsyncIterator[list[Op]]:
        for ops in self._ops:
            yield ops


@pytest.mark.parametrize("page", [1, 2, 100])
async def test_a_chosen_file_comes_with_what_is_above_it_and_a_subject_with_all_in_it(
    page: int, tmp_path: Path
) -> None:
    """However the record is cut into pages: parents once and first, nothing else."""
    meta, book, in_book = Meta(0o755, 0, 0, 0), Drills(tmp_path / "book.db"), DrillBook(tmp_path / "other.db")
    names = [
        "",
        "a",
        "a/b",
        "a/b/file",
        "a/other",
        "c",
        "c/file",
        "pg",
        "pg/empty",
        "pg/link",
        "pg/x",
        "pgx",
        "pgx/f",
        "z",
    ]
    kinds = {"a/b/file": Kind.FILE, "a/other": Kind.FILE, "c/file": Kind.FILE, "pg/link": Kind.SYMLINK}
    kinds |= {"pg/x": Kind.FILE, "pgx/f": Kind.FILE, "z": Kind.FILE}
    ops: list[Op] = [Put(name.encode(), kinds.get(name, Kind.DIRECTORY), meta) for name in names]
    book.choose([Chosen(path, 1, 0, 4096, b"") for path in (b"a/b/file", b"z")])
    book.add_subject(Subject(b"pg", 0, True))
    pages = [ops[at : at + page] for at in range(0, len(ops), page)]
    reader = ChosenReader(Listed(pages), book, in_book)  # type: ignore[arg-type]
    shown = [op.path.decode() async for some in reader.record(1) for op in some if isinstance(op, Put)]
    assert shown == ["", "a", "a/b", "a/b/file", "pg", "pg/empty", "pg/link", "pg/x", "z"]
    await in_book.close()
    book.close()


async def test_a_rename_that_the_replica_has_not_heard_of_is_not_its_loss(tmp_path: Path) -> None:
    """The content is old and the name is new: the snapshot has no such name, so nothing can be said of it."""
    async with site(tmp_path) as made, replica(tmp_path / "store2") as second:
        await made.here.sync(second, "fra2")
        (made.here.root / "b").rename(made.here.root / "new")
        await made.here.sync(made.there)
        made.dial, made.job = second.dial, made.drilling("fra2")
        record = await made.drill()
        assert record.outcome is Outcome.INCONCLUSIVE, record.reasons
        assert (record.uncompared_files, record.compared_files) == (1, 1)


async def test_a_drill_asked_for_during_another_one_is_a_drill_of_its_own(tmp_path: Path) -> None:
    """The one under way, which was due by itself, does not answer for it."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=7200.0) as made:

        async def ask() -> Channel:
            made.dial = made.there.dial
            made.job.request("full", ())
            return await made.there.dial()

        made.dial = ask
        await made.job.step()
        status = made.job.status
        assert (status.requested, status.served) == (1, 0) and status.last is not None and status.last.request == 0
        await made.job.step()
        assert status.served == 1 and status.last.request == 1 and status.last.kind == "full"


async def test_a_sample_takes_first_what_was_found_wrong(tmp_path: Path) -> None:
    """However lately that was drilled: a sample without it would be proven, and make up for a failure that it has not
    looked at."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=7200.0) as made:

        def other_id(ledger: Ledger) -> None:
            known = ledger.known(b"b")
            assert known is not None
            row = ledger.blocks(known.file, 0, 1)[0]
            ledger.record_blocks([row._replace(id=b"\1" * 32)])

        assert (await made.drill()).outcome is Outcome.PROVEN
        assert (await made.drill("paths", (b"b",))).outcome is Outcome.PROVEN
        await made.in_ledger(other_id)
        failed = await made.drill("paths", (b"b",))
        assert failed.outcome is Outcome.FAILED
        record = await made.drill("sampled")
        assert made.job.status.failure is not None and made.job.status.never_files == 1
        assert record.outcome is Outcome.FAILED and "b: came back with other bytes" in record.reasons[0]


async def test_a_failure_that_has_no_room_in_a_sample_is_not_made_up_for(tmp_path: Path) -> None:
    """The rest is drilled and proven; the drill is inconclusive, and says that the file was not looked at."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=7200.0) as made:
        (made.here.root / "c").write_bytes(b"c")
        await made.here.sync(made.there)
        assert (await made.drill()).outcome is Outcome.PROVEN
        book = await made.book.opened()

        def condemn() -> None:
            book.mark_wrong([b"d/a"])
            book.settle("fra1", 1)

        await made.book(condemn)
        object.__setattr__(made.here.dataset.config, "drill_limit_bytes", 150_000)
        record = await made.drill("sampled")
        assert record.outcome is Outcome.INCONCLUSIVE and record.compared_files
        assert "left out 1 file that an earlier drill found wrong" in record.reasons


async def test_samples_go_through_everything_though_a_validator_needs_much_beside(tmp_path: Path) -> None:
    """A limit that the files alone would fill leaves room for what comes with them; what has none now comes later, and
    every drill is proven."""
    tmp_path.chmod(0o711)
    validators = (ValidatorConfig("command", "site", ("/bin/true",)),)
    options = {"drill_every_s": 3600.0, "drill_within_s": 3600.0, "drill_limit_bytes": 420_000}
    async with site(tmp_path, **options, validators=validators) as made:
        made.base.chmod(0o711)
        (made.here.root / "site").mkdir()
        for number in range(8):
            (made.here.root / "site" / str(number)).write_bytes(os.urandom(40_000))
            (made.here.root / f"plain-{number}").write_bytes(os.urandom(30_000 + number))
        await made.here.sync(made.there)
        seen = set[int]()
        for _ in range(4):
            record = await made.drill("sampled")
            assert record.outcome is Outcome.PROVEN, record.reasons
            assert record.bytes <= 420_000
            seen.add(made.job.status.never_files)
        assert made.job.status.never_files == 0 and record.total_files == 18


async def test_what_belongs_to_a_database_and_has_no_room_is_said_and_the_rest_is_drilled(tmp_path: Path) -> None:
    """A log beside a database that is larger than the limit: the database is restored and not validated."""
    options = {"drill_every_s": 3600.0, "drill_within_s": 3600.0, "drill_limit_bytes": 250_000}
    async with site(tmp_path, **options, validators=(ValidatorConfig("sqlite", "*.db"),)) as made:
        (made.here.root / "x.db").write_bytes(b"")
        (made.here.root / "x.db-wal").write_bytes(os.urandom(300_000))
        await made.here.sync(made.there)
        record = await made.drill("sampled")
        assert record.outcome is Outcome.INCONCLUSIVE and record.compared_files, record.reasons
        assert any("x.db has 293.0 KiB, more than drill_limit" in reason for reason in record.reasons), record.reasons


async def test_whoever_waits_for_a_drill_hears_that_there_is_none_any_more(tmp_path: Path) -> None:
    """The configuration that is loaded while it is asked for has no scratch space: nobody waits for ever."""
    async with site(tmp_path) as made:
        number = made.job.request("full", ())
        before, made.job = made.job, made.drilling("fra1")
        object.__setattr__(made.here.dataset.config, "drill_scratch", None)
        made.job.take_over(before)
        await made.job.step()
        assert made.job.status.served == number and made.job.status.reason == drilling.NO_SCRATCH


async def test_a_drill_of_an_earlier_daemon_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are counted anew from each start: whoever asks then, for a drill that cannot even begin, does not hear
    of the proven one that had the same number."""

    def refused(base: Path) -> list[str]:
        raise ReplicadError("something is mounted there", where=str(base))

    async with site(tmp_path) as made:
        first = await made.drill()
        assert (first.outcome, first.request) == (Outcome.PROVEN, 1)
        made.job = made.drilling("fra1")
        monkeypatch.setattr(drilling, "sweep", refused)
        assert made.job.request("full", ()) == first.request
        with pytest.raises(ReplicadError, match="mounted there"):
            await made.job.step()
        status = made.job.status
        assert status.served == 1 and status.last is not None
        assert (status.last.number, status.last.outcome, status.last.request) == (first.number, Outcome.PROVEN, 0)


async def test_what_no_validator_came_to_look_at_is_not_drilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drill that ends while it validates: files behind that point are as old as they were, so the next sample has
    them."""

    async def full(validators: Validators, subject: Subject, bench: Bench) -> NoReturn:
        raise DiskFullError("no room", where=str(bench.tree))

    async with site(tmp_path, validators=(ValidatorConfig("sqlite", "b"),)) as made:
        monkeypatch.setattr(Validators, "validate", full)
        record = await made.drill()
        assert record.outcome is Outcome.INCONCLUSIVE and "no room" in record.reasons[-1]
        book = await made.book.opened()
        ages = await made.book(lambda: list(book.by_age("fra1", made.here.clock.now_ns())))
        assert sorted((size, at > 0) for _file, size, at in ages) == [(100_000, False), (200_000, True)]


async def test_a_sample_has_what_becomes_overdue_however_much_is_new(tmp_path: Path) -> None:
    """Where more comes in than a sample takes, files that were drilled before have their turn all the same."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=360_000.0) as made:
        assert (await made.drill()).outcome is Outcome.PROVEN
        book = await made.book.opened()
        await made.book(lambda: book.settle("fra1", made.here.clock.now_ns() - 360_000 * 10**9))
        for number in range(20):
            (made.here.root / f"new{number}").write_bytes(b"n" * 5000)
        await made.here.sync(made.there)
        record = await made.drill("sampled")
        chosen = await made.book(lambda: {one.path for one in book.chosen(None)})
        assert record.outcome is Outcome.PROVEN and {b"b", b"d/a"} < chosen and len(chosen) < 22


async def test_drills_go_on_though_the_clock_was_ahead(tmp_path: Path) -> None:
    """A drill that ended in a year to come is followed by one at once; the book is dated anew with it."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=7200.0) as made:
        assert (await made.drill()).outcome is Outcome.PROVEN
        book, ahead_ns = await made.book.opened(), made.here.clock.now_ns() + 10**18
        record = DrillRecord("www", "fra1", ended_ns=ahead_ns, outcome=Outcome.PROVEN)
        await made.book(lambda: (book.settle("fra1", ahead_ns), book.add(record)))
        await made.job.step()
        status = made.job.status
        assert status.last is not None and status.last.ended_ns < ahead_ns and status.last.compared_files
        assert status.last_success_ns == status.last.ended_ns < status.next_ns < ahead_ns


async def test_a_dead_mount_holds_up_a_drill_and_not_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every live place is looked at before a drill, and how much room there is: in threads, for each look may hang."""
    threads = set[int]()

    def looked(real: Callable[..., object]) -> Callable[..., object]:
        return lambda *words: (threads.add(threading.get_ident()), real(*words))[1]

    for module, name in ((scratch, "check_apart"), (drill, "room_bytes")):
        monkeypatch.setattr(module, name, looked(getattr(module, name)))
    async with site(tmp_path) as made:
        assert (await made.drill()).outcome is Outcome.PROVEN
    assert threads and threading.get_ident() not in threads


@pytest.mark.parametrize("kind", ["full", "sampled"])
async def test_what_a_restore_leaves_out_is_not_missed(kind: str, tmp_path: Path) -> None:
    """A file that a restore over the dataset left unfinished when it was killed, and that a pass has copied since."""
    async with site(tmp_path, drill_every_s=3600.0, drill_within_s=3600.0) as made:
        (made.here.root / "d" / ".replicad-restore-0123456789abcdef").write_bytes(b"half of it")
        await made.here.sync(made.there)
        record = await made.drill(kind)
        assert record.outcome is Outcome.PROVEN, record.reasons
        assert record.files == record.total_files == 2 and made.job.status.never_files == 0
