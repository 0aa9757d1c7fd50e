"""A ledger that was lost begins anew with the replica's record: the record is trusted, not the disk."""

from __future__ import annotations

import json
import os
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kit_faults import flip
from kit_pair import make_pair, replicad, running
from kit_rig import Replica, Rig, copied, describe_snapshot, differences, replica, rig, snapshots
from kit_tree import NOBODY, build_tree, is_root
from replicad.config import DatasetConfig
from replicad.db.claims import Claims
from replicad.db.findings import Findings
from replicad.db.ledger import UNKNOWN_CHECKSUM, Ledger
from replicad.model.block import Checksum, block_id, checksum
from replicad.model.divergence import Part, State
from replicad.model.entry import Identity
from replicad.model.errors import LinkError, LockedError, SourceError, UsageError
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight, Verdict, Writing
from replicad.source.reread import Ask, Judgement, Reread, judge_reread, reread
from replicad.source.root import Root
from replicad.work import adopt as work_adopt
from replicad.work.read_remote import RemoteReader
from replicad.work.rebuild_ledger import LedgerRebuilt, rebuild_ledger, stopped_daemon

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


def rot(path: Path, offset: int = 100) -> None:
    """Flip a bit and put the time back: what a record that knows no ctime cannot tell from damage below the files."""
    status = path.stat()
    flip(path, offset)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def fill(root: Path, count: int = 20, size: int = 70_000) -> None:
    for number in range(count):
        (root / f"{number}").write_bytes(random.Random(number).randbytes(size))


async def rebuilt(
    primary: Rig, fra1: Replica, root: Path, others: tuple[str, ...] = (), config: DatasetConfig | None = None
) -> LedgerRebuilt:
    """The rig's ledger made anew from a replica, as the verb does it, with the daemon stopped."""
    await primary.reopen()
    reader = await RemoteReader.open(await fra1.dial(), "www")
    try:
        config = config or DatasetConfig("www", root)
        return await rebuild_ledger(config, primary.directory / "state", "fra1", others, reader)
    finally:
        await reader.close()


def findings(primary: Rig, state: State | None = State.OPEN) -> list[object]:
    with closing(Findings(primary.directory / "state" / "findings" / "www.db")) as book:
        return list(book.listed(state=state))


async def test_after_a_release_rot_below_a_lost_ledger_never_travels(tmp_path: Path, root: Path) -> None:
    """What rotted while there was no ledger is expected to be what the record says: it is not sent; what was written,
    removed and made meanwhile is replicated all the same."""
    fill(root)
    (root / "big").write_bytes(random.Random(99).randbytes(8 * MIB))
    good = {name: (root / name).read_bytes() for name in ("5", "big")}
    async with replica(tmp_path / "store") as fra1:
        async with rig(tmp_path / "first", root) as primary:
            await primary.sync(fra1)
        rot(root / "5")
        rot(root / "big", 5 * MIB)
        (root / "3").unlink()
        (root / "4").write_bytes(b"written meanwhile")
        (root / "new").write_bytes(b"made meanwhile")
        async with rig(tmp_path / "second", root) as primary:
            assert (await primary.sync(fra1)).held
            await primary.dataset.in_ledger(primary.dataset.release)
            status = await primary.sync(fra1)
            assert (status.pass_ok, status.rotten) == (True, 0)
            assert status.sent_bytes < 10_000
            there = describe_snapshot(fra1.archive)
            for name, content in good.items():
                assert there[name.encode()]["content"] == content
            assert b"3" not in there
            assert there[b"4"]["content"] == b"written meanwhile"
            assert there[b"new"]["content"] == b"made meanwhile"


async def test_rot_below_a_lost_ledger_is_found_by_a_catch_up(tmp_path: Path, root: Path) -> None:
    """A second replica is not sent the rotten block; it is judged by its id, since no checksum of it is known, and is a
    finding with both looks."""
    fill(root, 5)
    async with replica(tmp_path / "store") as fra1, replica(tmp_path / "store2") as par1:
        async with rig(tmp_path / "first", root) as primary:
            await primary.sync(fra1)
        bad = checksum((root / "3").read_bytes()[65536:])
        rot(root / "3", 66_000)
        seen = checksum((root / "3").read_bytes()[65536:])
        async with rig(tmp_path / "second", root, ("fra1", "par1")) as primary:
            await primary.sync(fra1)
            await primary.dataset.in_ledger(primary.dataset.release)
            await primary.sync(fra1)
            status = await primary.sync(par1, "par1")
            assert (status.rotten, status.unread, status.pass_ok) == (1, 1, False)
            assert b"3" not in describe_snapshot(par1.archive)
            assert describe_snapshot(par1.archive)[b"4"] == copied(root)[b"4"]
            (found,) = findings(primary)
            assert (found.part, found.path, found.offset, found.length) == (Part.BLOCK, b"3", 65536, 70_000 - 65536)
            assert (found.expected, found.seen, found.verdict) == (b"", seen, Verdict.INCONCLUSIVE)
            assert (found.evidence.primary, found.evidence.writing) == (Sight.DIFFERS, Writing.UNWRITTEN)
            assert [look.sight for look in found.looks] == [Sight.DIFFERS, Sight.DIFFERS]
            await primary.sync(par1, "par1")
            assert findings(primary) == [found], "the same sight of things is not reported anew"
    assert bad != seen


async def test_an_equal_tree_sends_nothing_and_is_not_held(tmp_path: Path, root: Path) -> None:
    """After the verb a pass over an unchanged tree of all kinds of entries finds nothing, sends nothing and makes no
    snapshot; every adopted block has an id and no checksum."""
    build_tree(root)
    (root / "big").write_bytes(random.Random(1).randbytes(9 * MIB))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        done = await rebuilt(primary, fra1, root)
        assert (done.adopted.changed, done.adopted.missing, done.adopted.unseen) == (0, 0, 0)
        assert done.adopted.entries == len(copied(root))
        status = await primary.sync(fra1)
        assert (status.held, status.pass_ok, status.sent_bytes - before) == (False, True, 0)
        assert status.last_snapshot == 1
        ledger = primary.dataset.ledger
        known = await primary.dataset.in_ledger(ledger.known, b"big")
        assert known
        rows = await primary.dataset.in_ledger(ledger.blocks, known.file, 0, 1000)
        assert {row.checksum for row in rows.values()} == {UNKNOWN_CHECKSUM}
        content = (root / "big").read_bytes()
        assert [rows[n].id for n in sorted(rows)] == [
            block_id(content[at : at + 65536]) for at in range(0, len(content), 65536)
        ]


async def test_what_changed_meanwhile_is_replicated_block_by_block(tmp_path: Path, root: Path) -> None:
    """A big file of which one block was written costs that block; a changed mode or owner costs no data; the account
    names what is not as recorded."""
    fill(root, 10)
    (root / "d").mkdir()
    (root / "link").symlink_to("1")
    (root / "big").write_bytes(random.Random(1).randbytes(8 * MIB))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        with (root / "big").open("r+b") as file:
            file.seek(4 * MIB)
            file.write(b"!")
        (root / "7").chmod(0o600)
        (root / "link").unlink()
        (root / "link").symlink_to("2")
        (root / "2").unlink()
        (root / "d").rmdir()
        (root / "d").write_text("a file now")
        done = await rebuilt(primary, fra1, root)
        reasons = {one.path: one.reason for one in done.adopted.named}
        assert reasons["big"] == "was written"
        assert reasons["7"] == "has other metadata"
        assert reasons["2"] == "is not on the disk"
        assert reasons["d"] == "is something else on the disk"
        assert done.adopted.missing == 1
        assert (await primary.sync(fra1)).pass_ok
        assert primary.status["fra1"].sent_bytes - before < 70_000
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_hard_links_made_and_broken_meanwhile_come_out_right(tmp_path: Path, root: Path) -> None:
    """A file number never comes to stand for two inodes, nor an inode for two numbers."""
    fill(root, 6)
    os.link(root / "0", root / "0-too")
    os.link(root / "1", root / "1-too")
    for name in ("2", "3"):
        os.utime(root / name, ns=(0, 1_700_000_000_000_000_000))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        status = (root / "0").stat()
        data = (root / "0").read_bytes()
        (root / "0-too").unlink()
        (root / "0-too").write_bytes(data)
        os.utime(root / "0-too", ns=(status.st_atime_ns, status.st_mtime_ns))
        (root / "3").unlink()
        os.link(root / "2", root / "3")
        await rebuilt(primary, fra1, root)
        assert (await primary.sync(fra1)).pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        with (root / "0").open("r+b") as file:
            file.write(b"written through one name")
        with (root / "1-too").open("r+b") as file:
            file.write(b"written through the other")
        assert (await primary.sync(fra1)).pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_root_with_nothing_of_the_record_is_no_empty_dataset(tmp_path: Path, root: Path) -> None:
    """An unmounted root leaves the old ledger where it is."""
    fill(root, 3)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        root.rename(tmp_path / "elsewhere")
        root.mkdir()
        with pytest.raises(SourceError, match="holds nothing of what the replica has"):
            await rebuilt(primary, fra1, root)
        root.rmdir()
        (tmp_path / "elsewhere").rename(root)
        before = primary.status["fra1"].sent_bytes
        status = await primary.sync(fra1)
        assert not status.held
        assert status.sent_bytes - before < 1000, "the root was renamed, nothing else"
        assert not (tmp_path / "state" / "ledger.new").exists()


async def test_a_replica_without_a_snapshot_has_nothing_to_adopt(tmp_path: Path, root: Path) -> None:
    """A store that was opened and never got a commit is a usage error, and nothing is exchanged."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1, replica(tmp_path / "other") as par1:
        await primary.sync(fra1)
        (par1.store / "ams1" / "www" / "segments").mkdir(parents=True)
        with pytest.raises(UsageError, match="has no snapshot of www"):
            await rebuilt(primary, par1, root)
        assert not (tmp_path / "state" / "ledger" / "www.db.old").exists()


async def test_the_old_ledger_is_kept_and_its_finding_settled(tmp_path: Path, root: Path) -> None:
    """A damaged page is an open finding once it was met; the verb keeps the damaged book and settles the finding."""
    fill(root, 60, 3000)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await primary.reopen()
        book = tmp_path / "state" / "ledger" / "www.db"
        data = bytearray(book.read_bytes())
        for at in range(5000, len(data), 8192):
            data[at] ^= 1
        book.write_bytes(data)
        for _ in range(2):
            with pytest.raises(Exception, match="replicad rebuild --ledger www"):
                await primary.sync(fra1)
        (found,) = findings(primary)
        assert (found.key, found.part, found.path) == ("book:ledger", Part.BOOK, b"www.db")
        assert found.verdict is Verdict.PRIMARY_ROT
        done = await rebuilt(primary, fra1, root)
        assert done.kept
        assert done.kept.read_bytes()[:5000] == bytes(data)[:5000]
        assert findings(primary) == []
        (settled,) = findings(primary, None)
        assert settled.state is State.REPAIRED
        assert "made anew from snapshot 1 of fra1" in settled.events[-1].what
        assert (await primary.sync(fra1)).pass_ok


async def test_the_other_replicas_go_on_without_a_hold(tmp_path: Path, root: Path) -> None:
    """A person has decided once: the replica that was not adopted from is told the record anew, and sent no block that
    it has; nothing that it alone still shows survives its next snapshot."""
    fill(root, 10)
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        await primary.sync(par1, "par1")
        (root / "3").unlink()
        await primary.sync(fra1)
        before = primary.status["par1"].sent_bytes
        await rebuilt(primary, fra1, root, ("par1",))
        assert not (await primary.sync(fra1)).held
        status = await primary.sync(par1, "par1")
        assert (status.held, status.pass_ok) == (False, True)
        assert status.sent_bytes - before < 10_000
        assert differences(describe_snapshot(par1.archive), copied(root)) == []


async def test_an_adoption_that_was_cut_begins_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a record in the ledger is not taken for a record of its own: the next try adopts it whole."""
    fill(root, 30, 1000)
    async with replica(tmp_path / "store") as fra1:
        async with rig(tmp_path / "first", root) as primary:
            await primary.sync(fra1)
        rot(root / "20")
        monkeypatch.setattr("replicad.db.entries.BATCH_OPS", 7)
        async with rig(tmp_path / "second", root) as primary:
            await primary.sync(fra1)
            await primary.dataset.in_ledger(primary.dataset.release)
            original, taken = work_adopt.Adoption.take, 0

            def cutting(self: work_adopt.Adoption, ops: object) -> None:
                nonlocal taken
                taken += 1
                if taken == 3:
                    raise LinkError("cut")
                original(self, ops)  # type: ignore[arg-type]

            monkeypatch.setattr(work_adopt.Adoption, "take", cutting)
            with pytest.raises(LinkError):
                await primary.sync(fra1)
            assert await primary.dataset.in_ledger(primary.dataset.ledger.has_entries)
            status = await primary.sync(fra1)
            assert (status.held, status.pass_ok, status.sent_bytes) == (False, True, 0)
            assert len(snapshots(fra1.archive)) == 1


async def test_a_release_after_a_lost_ledger_lets_no_mass_deletion_through(tmp_path: Path, root: Path) -> None:
    """What the survey finds behind an adoption is judged by the other guards: a person released something else."""
    fill(root, 60, 100)
    async with replica(tmp_path / "store") as fra1:
        async with rig(tmp_path / "first", root) as primary:
            await primary.sync(fra1)
        old = copied(root)
        for number in range(50):
            (root / f"{number}").unlink()
        async with rig(tmp_path / "second", root) as primary:
            await primary.sync(fra1)
            await primary.dataset.in_ledger(primary.dataset.release)
            status = await primary.sync(fra1)
            assert status.held
            assert "50 entries would be dropped" in status.reason
            assert differences(describe_snapshot(fra1.archive), old) == []


async def test_a_release_waits_for_a_root_that_is_not_mounted(tmp_path: Path, root: Path) -> None:
    """An empty directory in the root's place is not adopted from, and what the record says is not forgotten for that:
    once the root is back, rot below the lost ledger still does not travel."""
    fill(root, 5)
    good = copied(root)
    async with replica(tmp_path / "store") as fra1:
        async with rig(tmp_path / "first", root) as primary:
            await primary.sync(fra1)
        rot(root / "3")
        root.rename(tmp_path / "elsewhere")
        root.mkdir()
        async with rig(tmp_path / "second", root) as primary:
            await primary.sync(fra1)
            await primary.dataset.in_ledger(primary.dataset.release)
            for _ in range(2):
                with pytest.raises(SourceError, match="is the file system mounted"):
                    await primary.sync(fra1)
            root.rmdir()
            (tmp_path / "elsewhere").rename(root)
            assert (await primary.sync(fra1)).pass_ok
            assert differences(describe_snapshot(fra1.archive), good) == []


async def test_a_record_is_adopted_between_the_hooks(tmp_path: Path, root: Path) -> None:
    """Where the root is there only between them, by the verb as well as after a release."""
    fill(root, 5)
    away = tmp_path / "away"
    hooks: dict[str, object] = {
        "hook_pre": ("mv", str(away), str(root)),
        "hook_post": ("mv", str(root), str(away)),
    }
    root.rename(away)
    async with replica(tmp_path / "store") as fra1:
        async with rig(tmp_path / "first", root, **hooks) as primary:
            await primary.sync(fra1)
            before = primary.status["fra1"].sent_bytes
            done = await rebuilt(primary, fra1, root, config=replace(DatasetConfig("www", root), **hooks))  # type: ignore[arg-type]
            assert done.adopted.files == 5
            assert (await primary.sync(fra1)).pass_ok
            assert primary.status["fra1"].sent_bytes - before < 1000
        good = describe_snapshot(fra1.archive)
        rot(away / "3")
        async with rig(tmp_path / "second", root, **hooks) as primary:
            await primary.sync(fra1)
            await primary.dataset.in_ledger(primary.dataset.release)
            assert (await primary.sync(fra1)).pass_ok
            assert differences(describe_snapshot(fra1.archive), good) == []
            assert away.exists()


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
@pytest.mark.parametrize("which", ["hook_pre", "hook_post"])
async def test_the_daemon_s_user_runs_the_hooks_of_a_rebuild_typed_by_root(
    tmp_path: Path, root: Path, which: str
) -> None:
    """The owner of the state directory is that user; the new ledger is not taken when its hook fails."""
    fill(root, 2)
    async with replica(tmp_path / "store") as fra1, rig(tmp_path / "first", root) as primary:
        await primary.sync(fra1)
        os.chown(primary.directory / "state", NOBODY, NOBODY)
        config = replace(DatasetConfig("www", root), **{which: ("sh", "-c", "echo I am $(id -u); exit 1")})  # type: ignore[arg-type]
        with pytest.raises(SourceError, match=f"I am {NOBODY}"):
            await rebuilt(primary, fra1, root, config=config)


def test_file_numbers_of_a_new_ledger_keep_clear_of_the_record(tmp_path: Path) -> None:
    """A file made after an adoption gets a number far from those that the replica knows."""
    ledger = Ledger(tmp_path / "www.db")
    ledger.put("next_file", 5)
    ledger.take_over("fra1", Head(3, b"h" * 32), 7)
    assert ledger.next_file() > 1000
    standing = ledger.standing("fra1")
    assert (standing.covered, standing.head.number, standing.sent.number) == (7, 3, 3)


def test_a_file_number_stands_for_the_first_inode_that_claims_it(tmp_path: Path) -> None:
    """Later inodes are told no, the first one yes again."""
    database = Ledger(tmp_path / "www.db").database
    claims = Claims(database)
    assert claims.claim(1, 0, 10)
    assert not claims.claim(1, 0, 11)
    assert not claims.claim(1, 9, 10)
    assert claims.claim(1, 0, 10)
    assert Claims(database).claim(1, 0, 11)


def test_an_unknown_checksum_accuses_nobody() -> None:
    """Without a recorded checksum the id decides; another identity is a write in any case."""
    one, other = Identity(0, 1, 2, 3, 4), Identity(0, 1, 2, 3, 5)
    unknown = Checksum(UNKNOWN_CHECKSUM)
    assert judge_reread(unknown, one, checksum(b"x"), one) is Judgement.SAME
    assert judge_reread(unknown, one, checksum(b"x"), other) is Judgement.WRITTEN
    assert judge_reread(checksum(b"y"), one, checksum(b"x"), one) is Judgement.ROT


async def test_reading_an_adopted_file_anew_learns_its_checksums(tmp_path: Path, root: Path) -> None:
    """Bytes with the recorded id, read for whatever reason, give the block its checksum and cost nothing."""
    fill(root, 2)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        await rebuilt(primary, fra1, root)
        (root / "1").chmod(0o600)
        assert (await primary.sync(fra1)).pass_ok
        assert primary.status["fra1"].sent_bytes - before < 2000
        ledger = primary.dataset.ledger
        known = await primary.dataset.in_ledger(ledger.known, b"1")
        assert known
        rows = await primary.dataset.in_ledger(ledger.blocks, known.file, 0, 9)
        content = (root / "1").read_bytes()
        assert [rows[n].checksum for n in sorted(rows)] == [checksum(content[:65536]), checksum(content[65536:])]


def test_the_adopted_expectation_judges_rot(root: Path) -> None:
    """`reread` gives the bytes of a rotten file under its own identity; their id is not the recorded one."""
    (root / "a").write_bytes(b"a" * 1000)
    name = block_id(b"a" * 1000)
    rot(root / "a")
    with Root(os.fsencode(root)) as opened:
        stamp = opened.look(b"a")
        assert stamp
        (answer,) = reread(opened, [Ask(b"a", (0,), 65536, stamp.identity)])
    assert isinstance(answer, Reread)
    assert block_id(answer.blocks[0]) != name


def test_a_running_daemon_keeps_the_verb_away(tmp_path: Path) -> None:
    """The state's lock is taken, and the error says what to do."""
    state = tmp_path / "state"
    with stopped_daemon(state), pytest.raises(LockedError, match="stop the daemon first"), stopped_daemon(state):
        raise AssertionError("not reached")
    with stopped_daemon(state):
        pass  # the lock is not left behind


def test_the_verb_over_a_real_link(tmp_path: Path, root: Path) -> None:
    """Typed as an operator would: refused while the daemon runs, then a new ledger with which nothing is sent twice."""
    fill(root)
    pair = make_pair(tmp_path / "pair", root, dataset_options="watch = false")
    with running(pair):
        pair.sync()
        refused = replicad("rebuild", "--ledger", "www", "--config", pair.primary.config, code=2)
        assert "stop the daemon first" in refused.stderr
        pair.primary.stop()
        (pair.primary.state / "ledger" / "www.db").unlink()
        rot(root / "7")
        (root / "8").write_text("new")
        done = replicad("rebuild", "--ledger", "www", "--from", "fra1", "--config", pair.primary.config, "--json")
        document = json.loads(done.stdout)
        assert (document["dataset"], document["replica"], document["adopted"]["changed"]) == ("www", "fra1", 1)
        done = replicad("rebuild", "--ledger", "www", "--config", pair.primary.config)
        assert "ledger rebuilt from snapshot 1 of fra1; the old one is kept as www.db.old" in done.stdout
        assert "8: was written" in done.stdout
        pair.primary.start()
        pair.sync()
        assert pair.line.sent_bytes < 10_000
        assert not pair.line.held
        there = describe_snapshot(pair.store / "ams1" / "www")
        assert there[b"7"]["content"] == random.Random(7).randbytes(70_000)
        assert there[b"8"]["content"] == b"new"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--ledger",), "needs a DATASET"),
        (("--ledger", "nope"), "there is no dataset 'nope'"),
        (("--ledger", "www", "--from", "nope"), "--from one of: fra1"),
        (("www", "--from", "fra1"), "--from belongs to --ledger"),
    ],
)
def test_bad_words_are_usage_errors(tmp_path: Path, root: Path, words: tuple[str, ...], text: str) -> None:
    """Each says what is missing, and changes nothing."""
    pair = make_pair(tmp_path / "pair", root)
    done = replicad("rebuild", *words, "--config", pair.primary.config, code=2)
    assert text in " ".join(done.stderr.split())
