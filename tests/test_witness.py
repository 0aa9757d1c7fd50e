"""What a replica attests of its copy, what it remembers of drills, and how far its client's pins go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kit_rig import Replica, Rig, replica, rig
from kit_tend import Menders, Scrub, tending
from replicad.db.findings import Findings
from replicad.link.messages import Want
from replicad.model.attestation import MAX_ASKED_PINS, Attestation, DrillNote
from replicad.model.drill import Outcome
from replicad.model.errors import UsageError
from replicad.model.retention import Pin
from replicad.model.snapshot import Head
from replicad.source import read as source_read
from replicad.work.conversation import Conversation

S = 1_000_000_000


class Site:
    """A primary and a replica with one snapshot of it."""

    def __init__(self, here: Rig, fra1: Replica, menders: Menders, scrub: Scrub) -> None:
        self.here, self.fra1, self.menders, self.scrub = here, fra1, menders, scrub

    @asynccontextmanager
    async def talk(self) -> AsyncIterator[Conversation]:
        """A tending session."""
        talk = await Conversation.open(await self.fra1.dial(), "www")
        try:
            yield talk
        finally:
            await talk.close()

    @property
    def book(self) -> Path:
        """Findings of the store."""
        return self.fra1.archive / "findings.db"


@asynccontextmanager
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Both sides."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(b"content" * 1000)
    menders, scrub = Menders(), Scrub()
    store = tmp_path / "store"
    async with rig(tmp_path, root) as here, replica(store, make_mender=menders, scrub_of=lambda *_: scrub) as fra1:
        await here.sync(fra1)
        yield Site(here, fra1, menders, scrub)


def note(said: Attestation, number: int = 5, outcome: Outcome = Outcome.PROVEN, **changes: object) -> DrillNote:
    """A drill of the replica's newest snapshot, which ended just now."""
    made = DrillNote(number, said.head.number, said.head.digest.hex(), "sampled", outcome, said.now_ns)
    return msgspec.structs.replace(made, **changes)


async def test_a_replica_says_what_it_holds_by_its_own_books(tmp_path: Path) -> None:
    """Head, newest complete snapshot, how much there is to verify now, its rules; nothing is open."""
    async with site(tmp_path) as s, s.talk() as talk:
        said = await talk.attest()
        standing = await s.here.dataset.in_ledger(s.here.dataset.ledger.standing, "fra1")
        assert said.head == said.complete == standing.head
        assert said.created_ns <= said.received_ns <= said.now_ns
        assert said.total_bytes == said.never_bytes > 0, "the scrub that says 0 looked before the data came"
        assert (said.scrub_state, said.open, said.lost_records, said.pins_asked) == ("idle", {}, 0, 0)
        assert said.keeps_all and said.drills.last.ended_ns == 0


async def test_open_findings_are_told_at_once(tmp_path: Path) -> None:
    """They are counted in the book when the question comes, whatever the scrub's status says."""
    async with site(tmp_path) as s, s.talk() as talk:
        s.menders.only.add(1, b"bad", [Want(bytes(32), 0, 0)])
        said = await talk.attest()
        assert sum(said.open.values()) == 1 and s.scrub.status.divergent == {}


async def test_a_partial_snapshot_is_not_the_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head moves on with a pass that could not read everything; the newest complete snapshot stays."""
    async with site(tmp_path) as s:
        (s.here.root / "file").write_bytes(b"cannot be read")
        (s.here.root / "other").write_bytes(b"can")

        def refusing(trail: object, path: bytes) -> int:
            if path == b"file":
                raise PermissionError(13, "Permission denied")
            return original(trail, path)  # type: ignore[arg-type]

        original = source_read.open_file
        monkeypatch.setattr(source_read, "open_file", refusing)
        assert (await s.here.sync(s.fra1)).unread == 1
        async with s.talk() as talk:
            said = await talk.attest()
        assert (said.complete.number, said.head.number) == (1, 2)


async def test_drills_are_remembered_across_sessions_and_restarts(tmp_path: Path) -> None:
    """What the client told once is told to whoever asks, from the replica's book."""
    async with site(tmp_path) as s:
        async with s.talk() as talk:
            said = await talk.attest()
            told = note(said)
            assert (await talk.attest([told])).drills.proven == told
        async with s.talk() as talk:
            assert (await talk.attest()).drills.last == told
            failed = note(said, 6, Outcome.FAILED, ended_ns=said.now_ns + 1, reason="a\x1bb differs")
            drills = (await talk.attest([failed])).drills
            assert (drills.proven, drills.last.outcome, drills.last.reason) == (told, Outcome.FAILED, "a?b differs")


@pytest.mark.parametrize(
    "changes", [{"digest": "00" * 32}, {"digest": ""}, {"snapshot": 99}, {"snapshot": 0, "digest": ""}]
)
async def test_a_drill_of_another_store_proves_nothing(changes: dict[str, object], tmp_path: Path) -> None:
    """A store that was replaced does not take over what was proven of the one before: number and digest have to be of a
    snapshot that is, or was, here."""
    async with site(tmp_path) as s, s.talk() as talk:
        said = await talk.attest()
        assert (await talk.attest([note(said, **changes)])).drills.last.ended_ns == 0


async def test_a_drill_that_came_to_no_snapshot_is_a_doubt(tmp_path: Path) -> None:
    """It could not find out, which is remembered, and proves nothing."""
    async with site(tmp_path) as s, s.talk() as talk:
        said = await talk.attest()
        doubt = note(said, outcome=Outcome.INCONCLUSIVE, snapshot=0, digest="")
        drills = (await talk.attest([doubt])).drills
        assert drills.last == doubt and drills.proven.ended_ns == 0


async def test_a_pin_is_of_the_snapshot_that_was_meant(tmp_path: Path) -> None:
    """By number and digest; it is durable, and says who asked for it and why."""
    async with site(tmp_path) as s, s.talk() as talk:
        head = (await talk.attest()).complete
        assert "no snapshot" in await talk.keep("before", Head(head.number, bytes(32)), "")
        assert "no snapshot" in await talk.keep("before", Head(head.number + 1, head.digest), "")
        assert "is no name" in await talk.keep("../x", head, "")
        assert await talk.keep("before", head, "ticket\n4711") == ""
        assert await talk.keep("before", head, "again") == "", "the same again is fine"
        book = Findings(s.book, readonly=True)
        (pin,) = book.pins()
        book.close()
        assert (pin.name, pin.snapshot, pin.reason, pin.asked_by) == ("before", head.number, "ticket?4711", "ams1")


async def test_a_name_is_not_given_to_another_snapshot(tmp_path: Path) -> None:
    """Else whoever pinned the first one would lose it."""
    async with site(tmp_path) as s:
        async with s.talk() as talk:
            first = (await talk.attest()).complete
            assert await talk.keep("before", first, "") == ""
        (s.here.root / "file").write_bytes(b"other")
        await s.here.sync(s.fra1)
        async with s.talk() as talk:
            assert f"pins snapshot {first.number} already" in await talk.keep(
                "before", (await talk.attest()).complete, ""
            )


async def test_a_client_cannot_fill_the_store_with_pins(tmp_path: Path) -> None:
    """It may ask for a number of them; a person on the replica may set more, and makes room by removing some."""
    async with site(tmp_path) as s, s.talk() as talk:
        head = (await talk.attest()).complete
        for number in range(MAX_ASKED_PINS):
            assert await talk.keep(f"pin{number}", head, "") == ""
        assert f"{MAX_ASKED_PINS} pins were asked for" in await talk.keep("one-more", head, "")
        assert (await talk.attest()).pins_asked == MAX_ASKED_PINS
        book = Findings(s.book)
        book.add_pin(Pin("by-hand", head.number, 1))
        assert book.remove_pin("pin0")
        book.close()
        assert await talk.keep("one-more", head, "") == ""


def test_what_a_person_pinned_stays_theirs(tmp_path: Path) -> None:
    """A client that asks for the same name and snapshot changes nothing about the pin; a person who takes one over
    frees the client's place."""
    book = Findings(tmp_path / "findings.db")
    book.add_pin(Pin("before", 7, 5, "ticket 12"))
    book.add_pin(Pin("before", 7, 6, "gate", asked_by="ams1"))
    assert book.pins() == [Pin("before", 7, 5, "ticket 12")] and book.asked_pins() == 0
    book.add_pin(Pin("other", 8, 6, "gate", asked_by="ams1"))
    assert book.asked_pins() == 1
    book.add_pin(Pin("other", 8, 9, "ours now"))
    assert book.asked_pins() == 0
    with pytest.raises(UsageError, match="pins snapshot 8 already"):
        book.add_pin(Pin("other", 9, 9, asked_by="ams1"))
    book.close()


async def test_the_primary_keeps_what_was_said_and_when(tmp_path: Path) -> None:
    """A round asks; a replica that does not answer leaves the last word with its time, and why there is no new one."""
    async with site(tmp_path) as s:
        job = tending(s.here, s.fra1)
        await job.step()
        copy = job._copy
        assert copy.heard_ns and copy.said.complete.number == 1 and not copy.unheard
        assert (await job.attest()).complete == copy.said.complete
        heard_ns = copy.heard_ns
        await job.close()
        job._dial = _nowhere  # type: ignore[assignment]
        with pytest.raises(UsageError):
            await job.attest()
        assert copy.heard_ns == heard_ns and copy.said.complete.number == 1


async def _nowhere() -> None:
    raise UsageError("there is no way")
