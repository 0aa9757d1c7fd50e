"""The verdict: every combination of evidence is judged, and nothing that is not known is taken for well or for rot."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from replicad.model.verdict import TABLE, Books, Evidence, Sight, Verdict, Witness, Writing, is_lost, judge, speaking

EVERYTHING = [
    Evidence(primary, replica, writing, witness, books, same_bytes, metadata_differs)
    for primary, replica, writing, witness, books, same_bytes, metadata_differs in itertools.product(
        Sight, Sight, Writing, Witness, Books, (False, True), (False, True)
    )
]

# One line a case. The looks: = matches, # differs, ! unreadable, - absent, ? unknown; then what else is known: whether
# the file was written or not, whether the other side's processor confirms or contradicts that bytes differ, whether
# both copies hold the same bytes, whether metadata differ, whether the books differ. What is not said is not known.
CASES = """
primary replica  else                            verdict
   =       =     unwritten                       ok
   -       =                                     ok
   =       =     unwritten metadata              metadata_drift
   =       =     metadata                        inconclusive
   =       =     written metadata                changed

   #       =     unwritten confirms              primary_rot
   #       =     unwritten                       inconclusive
   #       =     unwritten contradicts           inconclusive
   #       =     confirms                        inconclusive
   #       =     written confirms                changed
   #       ?     written                         changed
   #       ?     unwritten confirms              inconclusive
   !       =     unwritten                       primary_unreadable
   !       =                                     inconclusive
   !       ?     unwritten                       inconclusive

   =       #     unwritten confirms              replica_rot
   =       #     written confirms                replica_rot
   =       #     unwritten                       inconclusive
   =       #     contradicts                     inconclusive
   -       #     confirms                        replica_rot
   ?       #     confirms                        inconclusive
   =       !                                     replica_unreadable
   -       !                                     replica_unreadable
   ?       !                                     inconclusive
   =       -                                     missing_on_replica
   -       -                                     missing_on_replica
   ?       -                                     inconclusive
   =       ?     unwritten                       inconclusive
   ?       =     unwritten                       inconclusive
   ?       ?                                     inconclusive

   #       #     unwritten confirms              both_rot
   #       !     unwritten confirms              both_rot
   #       -     unwritten confirms              both_rot
   !       #     unwritten confirms              both_rot
   !       !     unwritten                       both_rot
   !       -     unwritten                       both_rot
   #       #     unwritten                       inconclusive
   #       #     unwritten confirms same         record_rot
   #       #     unwritten confirms same books   record_rot
   #       #     unwritten same                  inconclusive

   =       =     unwritten books                 record_divergence
   #       =     unwritten confirms books        record_divergence
   ?       ?     books                           record_divergence
"""
SIGHTS = {
    "=": Sight.MATCHES,
    "#": Sight.DIFFERS,
    "!": Sight.UNREADABLE,
    "-": Sight.ABSENT,
    "?": Sight.UNKNOWN,
}
ELSE: dict[str, dict[str, object]] = {
    "written": {"writing": Writing.WRITTEN},
    "unwritten": {"writing": Writing.UNWRITTEN},
    "confirms": {"witness": Witness.CONFIRMS},
    "contradicts": {"witness": Witness.CONTRADICTS},
    "same": {"same_bytes": True},
    "metadata": {"metadata_differs": True},
    "books": {"books": Books.DIFFER},
}
LINES = [line for line in CASES.splitlines()[2:] if line]


def evidence_of(line: str) -> tuple[Evidence, Verdict]:
    """A line of CASES as evidence and verdict."""
    primary, replica, *rest, verdict = line.split()
    evidence = Evidence(SIGHTS[primary], SIGHTS[replica])
    for word in rest:
        evidence = msgspec.structs.replace(evidence, **ELSE[word])
    return evidence, Verdict(verdict)


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.split()))
def test_typical_evidence(line: str) -> None:
    """Each line of the table above is judged as it says."""
    evidence, verdict = evidence_of(line)
    assert judge(evidence) is verdict


def test_every_verdict_has_typical_evidence() -> None:
    """No verdict is without a line, and none is out of reach."""
    assert {evidence_of(line)[1] for line in LINES} == set(Verdict) == {judge(evidence) for evidence in EVERYTHING}


def test_the_table_is_total() -> None:
    """Every pair of looks has its place, and all evidence there can be has a verdict."""
    assert set(TABLE) == set(itertools.product(Sight, Sight))
    assert all(judge(evidence) in Verdict for evidence in EVERYTHING)
    assert len(EVERYTHING) == 5 * 5 * 3 * 3 * 3 * 2 * 2


def test_nothing_is_well_unless_something_matched() -> None:
    """OK and metadata drift say that content is well: then the replica's bytes are the recorded ones, and so are the
    primary's, if it has any."""
    for evidence in EVERYTHING:
        if judge(evidence) in (Verdict.OK, Verdict.METADATA_DRIFT):
            assert evidence.replica is Sight.MATCHES, evidence
            assert evidence.primary in (Sight.MATCHES, Sight.ABSENT), evidence


def test_what_differs_is_never_well() -> None:
    """Bytes, metadata or books that differ without a write never end as OK."""
    for evidence in EVERYTHING:
        differs = Sight.DIFFERS in (evidence.primary, evidence.replica) or evidence.metadata_differs
        if evidence.books is Books.DIFFER or (differs and evidence.writing is not Writing.WRITTEN):
            assert judge(evidence) is not Verdict.OK, evidence


ROT = {Verdict.PRIMARY_ROT: "primary", Verdict.REPLICA_ROT: "replica", Verdict.RECORD_ROT: "primary"}


def test_rot_is_never_declared_without_a_witness() -> None:
    """Rot on one side, or in the record, needs a look that differs and another processor that says so too."""
    for evidence in EVERYTHING:
        verdict = judge(evidence)
        looks = (speaking(evidence), evidence.replica)
        if verdict in ROT or (verdict is Verdict.BOTH_ROT and Sight.DIFFERS in looks):
            assert evidence.witness is Witness.CONFIRMS, evidence
        if verdict in ROT:
            assert getattr(evidence, ROT[verdict]) is Sight.DIFFERS, evidence


def test_a_written_file_is_never_called_rotten() -> None:
    """What the primary's own disk gives counts against it only when it is certain that nobody wrote the file."""
    blames = {Verdict.PRIMARY_ROT, Verdict.PRIMARY_UNREADABLE, Verdict.BOTH_ROT, Verdict.RECORD_ROT}
    for evidence in EVERYTHING:
        if evidence.writing is not Writing.UNWRITTEN:
            assert judge(evidence) not in blames | {Verdict.METADATA_DRIFT}, evidence
        if evidence.writing is Writing.UNWRITTEN:
            assert judge(evidence) is not Verdict.CHANGED, evidence


def test_only_what_is_looked_at_is_blamed() -> None:
    """A side that gave an error, or nothing, is named for just that."""
    blamed = {
        Verdict.PRIMARY_UNREADABLE: ("primary", Sight.UNREADABLE),
        Verdict.REPLICA_UNREADABLE: ("replica", Sight.UNREADABLE),
        Verdict.MISSING_ON_REPLICA: ("replica", Sight.ABSENT),
    }
    for evidence in EVERYTHING:
        if found := blamed.get(judge(evidence)):
            assert getattr(evidence, found[0]) is found[1], evidence


def test_what_is_unknown_and_matters_is_inconclusive() -> None:
    """A side that was not seen leaves the verdict open, unless the file was written and only its own disk was in
    question, or the books differ and no block can be judged at all. So does a difference that nobody confirms."""
    settled = {Verdict.RECORD_DIVERGENCE, Verdict.INCONCLUSIVE}
    for evidence in EVERYTHING:
        unseen = evidence.replica is Sight.UNKNOWN or speaking(evidence) is Sight.UNKNOWN
        written = evidence.writing is Writing.WRITTEN
        unconfirmed = evidence.witness is not Witness.CONFIRMS
        differs = Sight.DIFFERS in (speaking(evidence), evidence.replica)
        if unseen:
            assert judge(evidence) in settled | ({Verdict.CHANGED} if written else set()), evidence
        if differs and unconfirmed:
            assert judge(evidence) in settled, evidence


def test_a_verdict_stands_when_more_becomes_known() -> None:
    """What was unknown about a side cannot have mattered, whatever it turns out to be. Two verdicts claim nothing about
    the replica's copy: that the file was written, and that the books differ; looking closer may find more."""
    for evidence in EVERYTHING:
        verdict = judge(evidence)
        if verdict in (Verdict.INCONCLUSIVE, Verdict.CHANGED, Verdict.RECORD_DIVERGENCE):
            continue
        for known in _known(evidence):
            assert judge(known) is verdict or (verdict, judge(known)) == (Verdict.OK, Verdict.CHANGED), known


def _known(evidence: Evidence) -> list[Evidence]:
    """The evidence with one unknown thing known, in all ways in which it could be."""
    unknown: dict[str, tuple[object, type[Sight] | type[Writing] | type[Witness]]] = {
        "primary": (Sight.UNKNOWN, Sight),
        "replica": (Sight.UNKNOWN, Sight),
        "writing": (Writing.UNKNOWN, Writing),
        "witness": (Witness.SILENT, Witness),
    }
    return [
        msgspec.structs.replace(evidence, **{field: value})
        for field, (nothing, kind) in unknown.items()
        if getattr(evidence, field) is nothing
        for value in kind
        if not (field == "writing" and evidence.metadata_differs)  # of metadata nothing is known then
    ]


LOST = {Verdict.BOTH_ROT, Verdict.REPLICA_ROT, Verdict.REPLICA_UNREADABLE, Verdict.MISSING_ON_REPLICA}
"""Verdicts with which bytes can be lost; with the first they always are, with the others when only history had them."""


def test_lost_is_said_exactly_when_it_is_certain() -> None:
    """Bytes are lost when both sides were looked at, neither has them, and the verdict says that both looks are right.
    A copy that matches, a file that was touched and still matches included, is never lost."""
    for evidence in EVERYTHING:
        lost, verdict = is_lost(evidence), judge(evidence)
        looks = (evidence.primary, evidence.replica)
        assert lost == (verdict in LOST and Sight.MATCHES not in looks and Sight.UNKNOWN not in looks), evidence
        assert not lost or verdict in LOST, evidence
        if verdict is Verdict.BOTH_ROT:
            assert lost, evidence
        if lost and verdict is not Verdict.BOTH_ROT:
            assert evidence.primary is Sight.ABSENT or evidence.writing is Writing.WRITTEN, evidence


def test_the_default_is_that_nothing_is_known() -> None:
    """Evidence that nobody filled in is inconclusive and nothing is lost by it."""
    assert judge(Evidence()) is Verdict.INCONCLUSIVE
    assert not is_lost(Evidence())


def test_each_verdict_says_when_it_holds() -> None:
    """The members are explained where they are defined: the source has a docstring under each."""
    import ast
    import inspect

    from replicad.model import verdict

    tree = ast.parse(inspect.getsource(verdict))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Verdict").body
    for member, following in itertools.pairwise([*body, None]):
        if isinstance(member, ast.Assign):
            assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), ast.unparse(member)
