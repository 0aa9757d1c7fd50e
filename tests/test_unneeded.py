"""Damaged blocks that no snapshot names are no loss; what a client was told of, or has named, is never let go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from kit_scrub import Rig, filled_rig
from kit_store import Primary, directory_put, file_put
from replicad.db.catalog import Catalog
from replicad.model.block import block_id
from replicad.model.divergence import Divergence, State
from replicad.model.errors import DiskFullError
from replicad.work import mend_store
from replicad.work.expire import drop, purge_step

ORPHAN = b"brought by a pass that was cut short " * 40


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with filled_rig(tmp_path) as made:
        yield made


def _orphan(rig: Rig) -> bytes:
    """A block that a pass has brought and named nowhere."""
    (name,) = Primary(rig.archive).send(ORPHAN)
    rig.archive.abort()
    rig.put(5, {b"later": b"something else " * 50})
    return name


def _lose(rig: Rig, name: bytes) -> Divergence:
    """Its frame rots and the primary has it no more; what was found then, which is lost. The daemon is started anew:
    nothing of this is remembered but what stands in the books."""
    rig.scrub()
    rig.flip(name)
    rig.has.pop(name, None)
    rig.scrub()
    (found,) = rig.settle()
    assert found.is_lost and found.state is State.OPEN and found.blocks == (name,)
    rig.reopen()
    return found


def _now(rig: Rig, found: Divergence) -> Divergence:
    now = rig.findings.get_exactly(found.id)
    assert now
    return now


def test_a_damaged_block_that_no_snapshot_names_is_no_loss(rig: Rig, tmp_path: Path) -> None:
    """The finding is gone, its place needs no word any more, and a primary that has the block again is asked for it."""
    found = _lose(rig, name := _orphan(rig))
    assert [one.id for one in rig.look_again()] == [] and _now(rig, found).state is State.GONE
    assert "nothing is lost" in _now(rig, found).events[-1].what
    assert rig.archive.inventory.places([name]) == {}
    rig.assert_clean(tmp_path)
    rig.put(6, {b"back": ORPHAN})
    rig.assert_clean(tmp_path)


def test_a_loss_that_any_snapshot_shows_stays_one(rig: Rig) -> None:
    """Also where history alone does."""
    found = _lose(rig, block_id(rig.expected[1][b"changes"]))
    for _ in range(3):
        rig.look_again()
        rig.clock.slept.append(3600.0)
    assert _now(rig, found).state is State.OPEN and _now(rig, found).is_lost


def test_a_loss_ends_with_the_last_snapshot_that_shows_it(rig: Rig) -> None:
    """When retention has let go of it, and what named it was taken out of the catalog."""
    found = _lose(rig, block_id(rig.expected[1][b"changes"]))
    drop(rig.archive, [1])
    while purge_step(rig.archive):
        pass
    rig.look_again()
    assert _now(rig, found).state is State.GONE


def test_a_client_that_was_told_of_the_block_may_name_it(rig: Rig) -> None:
    """After a restart nobody doubts it: told that it is here, the client does not send it, so it is not let go, and is
    lost with the snapshot that names it. So long as that is not sealed nothing is done."""
    found = _lose(rig, name := _orphan(rig))
    primary = Primary(rig.archive)
    assert rig.archive.needed(name) == b"\0"
    rig.look_again()
    assert _now(rig, found).state is State.OPEN
    primary.record(directory_put(b""), file_put(b"again", 9999, {0: name}))
    rig.look_again()
    assert _now(rig, found).state is State.OPEN
    primary.seal(6)
    rig.archive.do_at_seal()
    for _ in range(3):
        rig.look_again()
        rig.clock.slept.append(3600.0)
    assert _now(rig, found).state is State.OPEN and rig.archive.inventory.places([name])


def test_what_a_client_is_told_of_amid_the_proof_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first settled moment and the second."""
    found = _lose(rig, name := _orphan(rig))
    real, primary = mend_store.Unneeded.look, Primary(rig.archive)

    def look(self: mend_store.Unneeded, ids: frozenset[bytes]) -> None:
        real(self, ids)
        assert rig.archive.needed(name) == b"\0"

    monkeypatch.setattr(mend_store.Unneeded, "look", look)
    rig.look_again()
    assert _now(rig, found).state is State.OPEN
    primary.record(directory_put(b""), file_put(b"again", 9999, {0: name}))
    primary.seal(6)
    monkeypatch.setattr(mend_store.Unneeded, "look", real)
    rig.clock.slept.append(3600.0)
    rig.look_again()
    assert _now(rig, found).state is State.OPEN


def test_where_one_pass_follows_the_other_the_proof_is_given_behind_a_seal(rig: Rig) -> None:
    """It begins behind one and ends behind another; no settled moment is looked for."""
    found = _lose(rig, _orphan(rig))
    primary = Primary(rig.archive)
    for number in range(6, 9):
        primary.record(directory_put(b""), file_put(b"f", number, {}))
        rig.look_again()
        primary.seal(number)
        rig.archive.do_at_seal()
    assert _now(rig, found).state is State.GONE


def test_nothing_is_let_go_while_records_are_missing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog does not know then what snapshots show."""
    found = _lose(rig, _orphan(rig))
    monkeypatch.setattr("replicad.db.inventory.Inventory.lost", True)
    rig.look_again()
    assert _now(rig, found).state is State.OPEN


def test_what_a_pass_has_brought_it_may_name_behind_a_seal(rig: Rig) -> None:
    """A pass is sealed in the middle of a large file: what it has brought of that is not let go although nothing names
    it yet, be it that it came before the proof began or amid it."""
    primary = Primary(rig.archive)
    (name,) = primary.send(ORPHAN)
    primary.record(directory_put(b""))
    primary.seal(5, complete=False)
    rig.scrub()
    rig.flip(name)
    rig.scrub()
    (found,) = rig.settle()
    assert found.is_lost
    rig.look_again()
    rig.archive.do_at_seal()
    assert _now(rig, found).state is State.OPEN and rig.archive.inventory.places([name])
    primary.record(directory_put(b""), file_put(b"large", 9999, {0: name}))
    primary.seal(6)
    rig.archive.do_at_seal()
    rig.look_again()
    assert _now(rig, found).state is State.OPEN
    marks = rig.archive.begin_marking(10, 0)
    assert marks is not None
    (other,) = primary.send(b"another")
    assert other in marks


def test_a_disk_that_fails_then_changes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding stays, whoever has sealed goes on, and the next look does it."""
    found = _lose(rig, name := _orphan(rig))

    def fail(*_: object) -> NoReturn:
        raise DiskFullError("no space left", where="catalog.db")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "add_mended", fail)
        rig.look_again()
    assert _now(rig, found).state is State.OPEN and rig.archive.inventory.places([name])
    rig.put(6, {b"more": b"of it " * 100})
    rig.clock.slept.append(3600.0)
    rig.look_again()
    rig.look_again()
    assert _now(rig, found).state is State.GONE
