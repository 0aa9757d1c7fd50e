"""Repair, as a person orders it: two real daemons, rot in the primary's file, and the verbs of the command line."""

from __future__ import annotations

import json
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from kit_pair import Pair, make_pair, replicad, running, wait_until
from kit_tend import BLOCK, stamp_now
from replicad.db.findings import Findings
from replicad.db.ledger import Ledger, stamp_of
from replicad.db.touched import restamp
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.verdict import Evidence, Sight, Verdict, Writing
from replicad.work.breaker import is_open, open_breaker
from replicad.work.dataset import findings_path

DATA = random.Random(11).randbytes(3 * BLOCK)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two daemons, not running, that have replicated a file whose second block then rotted; a scrub has reported it."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    made = make_pair(tmp_path / "nodes", root)
    with running(made):
        made.sync()
        made.primary.stop()
        made.replica.stop()
    rot_and_report(made)
    return made


def rot_and_report(pair: Pair) -> None:
    """What rot and a scrub leave behind."""
    file = pair.root / "file"
    before = file.stat()
    with file.open("r+b") as opened:
        os.pwrite(opened.fileno(), bytes([DATA[BLOCK] ^ 4]), BLOCK)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    ledger = Ledger(pair.primary.state / "ledger" / "www.db")
    known = ledger.known(b"file")
    assert known is not None
    row = ledger.blocks(known.file, 1, 2)[1]
    ledger.begin()
    restamp(ledger, b"file", stamp_of(known), stamp_now(pair.root, b"file"))
    ledger.commit()
    ledger.close()
    path = findings_path(pair.primary.state, "www")
    path.parent.mkdir(exist_ok=True)
    book = Findings(path)
    book.report(
        Divergence(
            key=f"block:{known.file}:1", dataset="www", side=Side.PRIMARY, peer="", part=Part.BLOCK, found_ns=1,
            changed_ns=1, what="a block differs", path=b"file", offset=BLOCK, length=BLOCK, file=known.file, number=1,
            blocks=(row.id,), expected=row.checksum,
            evidence=Evidence(primary=Sight.DIFFERS, writing=Writing.UNWRITTEN),
        )
    )  # fmt: skip
    book.close()


def finding(pair: Pair) -> Divergence:
    """The one finding."""
    book = Findings(findings_path(pair.primary.state, "www"), readonly=True)
    (found,) = book.listed(state=None)
    book.close()
    return found


def repair(pair: Pair, *words: str, code: int = 0) -> list[dict[str, str]]:
    """What `replicad repair` says."""
    done = replicad("repair", *words, "--json", "--config", pair.primary.config, code=code)
    results: list[dict[str, str]] = json.loads(done.stdout)["results"]
    return results


def test_rot_is_judged_repaired_on_command_and_undone(pair: Pair) -> None:
    """The daemons judge it by themselves; nothing is written before a person says so, and it can be taken back."""
    file = pair.root / "file"
    bad = file.read_bytes()
    with running(pair):
        wait_until(lambda: finding(pair).verdict is Verdict.PRIMARY_ROT, "it is judged")
        name = finding(pair).id
        assert file.read_bytes() == bad
        (planned,) = repair(pair, "--all", "--dry-run")
        assert (planned["id"], planned["result"], planned["remedy"]) == (name, "planned", "mend_primary")
        assert file.read_bytes() == bad
        (done,) = repair(pair, name[:6])
        assert (done["result"], file.read_bytes()) == ("repaired", DATA)
        with closing(Findings(findings_path(pair.primary.state, "www"))) as book:
            open_breaker(book, 1)
            assert repair(pair, "--all", "--dry-run") == [] and is_open(book)
            assert repair(pair, "--all") == [] and not is_open(book), "also when nothing is left to be repaired"
        pair.sync()
        assert pair.line.last_error == "" and finding(pair).state is State.REPAIRED
        (undone,) = repair(pair, "undo", name)
        assert (undone["result"], file.read_bytes()) == ("undone", bad)
        replicad("repair", "ffffffff", "--config", pair.primary.config, code=2)


def test_a_repair_without_its_replica_waits_and_says_so(pair: Pair) -> None:
    """Nothing is written; the exit code is that of a finding."""
    pair.primary.start()
    try:
        (waiting,) = repair(pair, finding(pair).id, code=1)
        assert waiting["result"] == "waiting" and "out of reach" in waiting["text"]
    finally:
        pair.stop()


def test_what_the_configuration_leaves_to_itself_is_repaired(pair: Pair) -> None:
    """With repair = "auto" no command is needed; the status says how the replica's scrub stands."""
    text = pair.primary.config.read_text()
    pair.primary.config.write_text(text.replace("[[dataset]]\n", '[[dataset]]\nrepair = "auto"\n'))
    with running(pair):
        wait_until(lambda: finding(pair).state is State.REPAIRED, "it is repaired")
        assert (pair.root / "file").read_bytes() == DATA
        status = pair.primary.status()
        assert [(line.side, line.peer) for line in status.scrubs if line.side == "replica"] == [("replica", "fra1")]
        assert any(job.name == "tend www with fra1" for job in status.jobs)
