"""The campaign in short: real damage on both sides under a workload and kills; and its own books, which do not lie."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import blake3
import pytest

from campaign import BEGIN, END, Campaign, CommandLine, Plan, campaign, write_page
from kit_campaign import Account, Case, Document, as_markdown, as_text, primary_fault
from kit_damage import Expected, Fault, Harm, blocks_of, paths_with
from kit_faults import assert_quiet
from kit_rig import replica, rig
from kit_rot import needs_disks
from kit_workload import PIECE_BYTES, Guard, Known, Tree, differing, tree_of
from replicad.model.divergence import Part, Side
from replicad.model.verdict import Verdict

SHORT = Plan(
    seed=3, faults=40, files=800, big=9, batch=20, minutes=4, kill_every_s=4, kills_a_round=12, book_rounds=0,
    segment_rounds=0, patience_s=150, edit_pause_s=0.03,
)  # fmt: skip


class Oracle:
    """Plays the program's part: knows every fault, undoes it and tells of it; `lie` changes what it tells."""

    def __init__(self, lie: Callable[[list[Document]], list[Document]] = lambda documents: documents) -> None:
        self.campaign: Campaign | None = None
        self._told: list[Document] = []
        self._done: set[int] = set()
        self._lie = lie

    def scrub(self) -> None:
        assert self.campaign
        with self.campaign.tree.paused():
            for case in self.campaign.account.cases:
                if id(case) not in self._done:
                    self._done.add(id(case))
                    self._undo(case)
                    self._told.append(told(case, number=len(self._told)))

    def _undo(self, case: Case) -> None:
        if not case.is_both and not (case.guard and case.guard.hit):
            case.fault.undo()

    def documents(self) -> list[Document]:
        return self._lie([dict(document) for document in self._told])

    def acknowledge(self, document: Document) -> None:
        (mine,) = [one for one in self._told if one["id"] == document["id"]]
        mine["state"] = "acknowledged"

    def read_bytes(self) -> int:
        return 2**40


def told(case: Case, number: int = 0, **changes: object) -> Document:
    """A divergence that gets a case right, apart from `changes`."""
    expected = case.fault.expected
    lost = case.is_both
    return {
        "id": f"{number:08x}",
        "key": f"key:{number}",
        "side": expected.side.value,
        "part": min(expected.parts).value,
        "verdict": min(expected.verdicts).value,
        "state": "open" if lost else "repaired",
        "lost": lost,
        "path": expected.path,
        "number": expected.number,
        "offset": expected.offset,
        "length": expected.length,
        "blocks": [name.hex() for name in expected.blocks],
        "mended": [],
        "affected": [
            {"path": case.guard.file.path if case.guard else "some", "offset": 0, "length": 65536, "first": 1}
        ],
        "affected_count": 1,
        "evidence": {"replica": "differs"},
        "events": [{"at_ns": case.injected_ns + 3_000_000_000, "what": "found: it is broken"}],
        "found_ns": case.injected_ns + 3_000_000_000,
    } | changes


# the books


def a_case(**changes: object) -> Case:
    """A damaged block of a file."""
    file = Known("d/f", 100_000, [1, 2])
    fault = primary_fault(file, "single bit", 70_000, 1, b"i" * 32)
    return replace(Case(fault, time.time_ns(), Guard(file)), **changes)  # type: ignore[arg-type]


def a_stored_case() -> Case:
    """A damaged frame of a block."""
    rot = frozenset({Verdict.REPLICA_ROT})
    expected = Expected(
        Side.REPLICA, frozenset({Part.BLOCK}), rot, "segments/00000002.seg", 2, 4096, 700, frozenset({b"i" * 32})
    )
    return Case(Fault(Harm.BIT, expected, "some frame"), time.time_ns())


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "repaired"),
        ({"path": "other", "affected": []}, "missed"),
        ({"side": "replica"}, "missed"),
        ({"found_ns": 1}, "missed"),
        ({"verdict": "inconclusive", "state": "open"}, "wrong"),
        ({"verdict": "replica_rot"}, "wrong"),
        ({"part": "metadata"}, "wrong"),
        ({"blocks": []}, "wrong"),
        ({"state": "open"}, "wrong"),
        ({"state": "open", "lost": True}, "wrong"),
    ],
)
def test_every_way_to_be_wrong_shows(changes: Document, outcome: str) -> None:
    """Missed, on the other side, by another name, not repaired, or called lost although it is not: none passes."""
    case = a_case()
    settled = case.judge([told(case) | changes], live={b"i" * 32})
    assert (case.outcome, settled) == (outcome, outcome == "repaired"), case.problems


def test_a_block_that_only_history_has_may_be_lost() -> None:
    """It counts as lost when path, range and snapshot are named and the dataset does not show it any more."""
    case, lost = a_stored_case(), {"state": "open", "lost": True}
    assert case.judge([told(case, **lost)], live=set()) and case.outcome == "lost"
    assert not case.judge([told(case, **lost)], live={b"i" * 32}) and case.outcome == "wrong"
    assert not case.judge([told(case, **lost, affected=[])], live=set()) and case.outcome == "wrong"
    assert case.judge([told(case)], live=set()) and case.outcome == "repaired"


def test_what_both_sides_lost_must_be_called_lost() -> None:
    """A repair of bytes that nobody has would be an invention."""
    case = replace(a_case(), is_both=True)
    assert case.judge([told(case)], live={b"i" * 32}) and case.outcome == "lost"
    assert not case.judge([told(case, state="repaired", lost=False)], live=set()) and case.outcome == "wrong"


def test_what_the_workload_wrote_over_counts_apart() -> None:
    """It is neither detected nor missed, and what was said of it is no false alarm."""
    case = a_case()
    case.guard.hit = True  # type: ignore[union-attr]
    assert case.judge([], live=set()) and case.outcome == "overwritten"
    account = Account(1, 0, 60.0, cases=[case])
    account.find_false_alarms([told(case, verdict="changed", state="gone")])
    assert account.false_alarms == [] and account.rows()[-1].injected == account.rows()[-1].overwritten == 1


def test_a_file_that_moved_with_its_directory_is_the_same_file() -> None:
    """A divergence may name the file by its path then or now."""
    case = a_case()
    case.guard.file.path = "e/f"  # type: ignore[union-attr]
    assert case.judge([told(case, path="e/f")], live=set())
    assert case.judge([told(case, path="d/f")], live=set())
    assert not case.judge([told(case, path="g/f", affected=[])], live=set())


def test_an_alarm_without_a_fault_is_counted() -> None:
    """Also beside a fault that is found; alarms from before the campaign are not its business."""
    case = a_case()
    account = Account(1, time.time_ns() - 10**9, 60.0, cases=[case], read_bytes=2**39)
    stray = told(case, 7, path="elsewhere", affected=[])
    account.judge([case], [told(case), stray], set())
    account.find_false_alarms([told(case), stray, stray | {"found_ns": 5}])
    assert [one["id"] for one in account.false_alarms] == ["00000007"] and not account.is_perfect
    assert account.document()["false_alarms_per_tib"] == 2.0
    assert "false alarm: 00000007" in as_text(account)


async def test_a_loss_explains_every_file_that_shows_the_block(tmp_path: Path) -> None:
    """In the snapshot meant, however deep it lies and however many blocks it has, and no other file."""
    root = tmp_path / "www"
    (root / "a" / "b").mkdir(parents=True)
    data = random.Random(1).randbytes(100 * PIECE_BYTES)
    (root / "a" / "b" / "long").write_bytes(data)
    (root / "short").write_bytes(data[-PIECE_BYTES:])
    (root / "other").write_bytes(b"other")
    lost = {blake3.blake3(data[-PIECE_BYTES:]).digest()}
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).last_snapshot
        (root / "short").write_bytes(b"written since")
        now = (await primary.sync(fra1)).last_snapshot
        assert paths_with(fra1.archive, before, lost) == {"a/b/long", "short"}
        assert paths_with(fra1.archive, now, lost) == {"a/b/long"}
        assert lost <= blocks_of(fra1.archive, now, "a/b/long")
        assert lost.isdisjoint(blocks_of(fra1.archive, now, "short"))


def test_the_account_adds_up(tmp_path: Path) -> None:
    """Rows, JSON, text and page tell the same numbers, and the page keeps what stands around its table."""
    cases = [a_case(), a_case(), replace(a_case(), is_both=True), a_stored_case()]
    account = Account(1, 0, 60.0, cases=cases, read_bytes=2**40)
    account.judge(cases, [told(cases[0]), told(cases[2], 1)], set())
    cases[1].judge([], set())
    whole = account.rows()[-1]
    assert (whole.injected, whole.detected, whole.repaired, whole.lost, whole.missed) == (4, 3, 1, 1, 2) or (
        whole.injected == sum((whole.overwritten, whole.repaired, whole.lost, whole.wrong, whole.missed))
    )
    assert json.loads(json.dumps(account.document()))["rows"][-1]["injected"] == 4
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(as_markdown(account, "make campaign"), page)
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    assert "old" not in page.read_text() and "| both | all | 4 |" in page.read_text()


def test_what_is_wrong_tells_its_history() -> None:
    """Evidence and events, counted from the damage, so that a run that cannot be repeated can be understood."""
    case = a_case()
    case.judge([told(case) | {"verdict": "inconclusive", "state": "open"}], set())
    text = as_text(Account(1, 0, 60.0, cases=[case]))
    assert "00000000 open inconclusive: replica differs" in text and "3.0 s found: it is broken" in text


# the workload


def test_the_workload_knows_what_it_wrote(tmp_path: Path) -> None:
    """After thousands of edits the tree is what memory says, and a guarded file is untouched or wholly new."""
    tree = Tree(tmp_path, seed=5, count=150, big=1, pause_s=0)
    tree.build()
    guard = tree.guard(tree.files[3])
    before = (tmp_path / guard.file.path).stat()
    for _ in range(3000):
        tree.edit()
    assert differing(tree.truth(), tree_of(tmp_path)) == {}
    if not guard.hit:
        after = (tmp_path / guard.file.path).stat()
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    victim = tree.files[0]
    path = tmp_path / victim.path
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert differing(tree.truth(), tree_of(tmp_path)) == {victim.path: "has other content"}


def test_the_workload_works_in_the_background(tmp_path: Path) -> None:
    """Edits go on in a thread, stand still while paused, and an error of the thread is not lost."""
    tree = Tree(tmp_path, seed=6, count=50, big=0, pause_s=0)
    tree.build()
    with tree.working():
        with tree.paused():
            first = tree.edits
            assert differing(tree.truth(), tree_of(tmp_path)) == {}
        while tree.edits < first + 50:
            time.sleep(0.01)
    (tmp_path / tree.files[0].path).unlink()
    for file in tree.files[1:]:
        (tmp_path / file.path).unlink()
    with pytest.raises(OSError), tree.working():
        time.sleep(0.5)


# campaigns


def played(tmp_path: Path, plan: Plan, oracle: Oracle) -> Account:
    """A campaign in which everything but the detection is real."""
    with campaign(tmp_path, plan, lambda pair: oracle) as made:
        oracle.campaign = made
        account = made.run()
        assert_quiet(made.pair.primary, made.pair.replica)
    return account


@needs_disks
def test_a_campaign_with_a_detector_that_is_always_right_is_perfect(tmp_path: Path) -> None:
    """Injection, workload, kills, restores and the truth kept in memory fit together: nothing is counted wrongly."""
    plan = replace(SHORT, faults=20)
    account = played(tmp_path, plan, Oracle())
    assert account.is_perfect, as_text(account)
    assert len(account.cases) == plan.faults and account.kills > 0 and account.checks.files > 1000
    assert {case.fault.expected.side for case in account.cases} == set(Side)


@needs_disks
def test_a_campaign_with_a_detector_that_lies_is_not(tmp_path: Path) -> None:
    """A fault that is never told of, one told of wrongly, and an alarm about nothing each spoil it."""

    def lie(documents: list[Document]) -> list[Document]:
        if len(documents) < 3:
            return documents
        documents[1]["verdict"] = "inconclusive"
        return [
            *documents[1:],
            documents[2] | {"id": "f" * 8, "path": "nowhere", "number": 0, "blocks": [], "affected": []},
        ]

    plan = replace(SHORT, faults=8, batch=8, kill_every_s=0, patience_s=2, is_store_mounted=False)
    account = played(tmp_path, plan, Oracle(lie))
    outcomes = [case.outcome for case in account.cases]
    assert (outcomes.count("missed"), outcomes.count("wrong"), len(account.false_alarms)) == (1, 1, 1), as_text(account)


@needs_disks
@pytest.mark.timeout(600)
def test_a_short_campaign_is_perfect(tmp_path: Path) -> None:
    """Every fault is found, called by its name and repaired or reported as lost; no false alarm, no rotten byte."""
    with campaign(tmp_path, replace(SHORT, book_rounds=2), CommandLine) as made:
        account = made.run()
        assert_quiet(made.pair.primary, made.pair.replica)
    assert account.is_perfect, as_text(account)
    assert account.read_bytes > 0
