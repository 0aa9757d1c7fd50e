"""What is said about a divergence, and what to type next: every part, verdict and state there can be has its words."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_daemon import NOW_NS
from kit_findings import a_divergence, primary_rot, replica_rot
from kit_messages import any_of
from replicad.cli.advice import Step, advise, shell_glob, shell_word
from replicad.cli.app import VERBS
from replicad.cli.divergence import render
from replicad.cli.explain import SHOWN_EVENTS, SHOWN_FILES, Seat, explain
from replicad.cli.output import COLUMNS
from replicad.model.divergence import Affected, Divergence, Event, Look, Part, Receipt, Side, State
from replicad.model.glob import compile_globs
from replicad.model.verdict import Books, Evidence, Sight, Verdict, Witness, Writing, judge

AT_PRIMARY = Seat(Side.PRIMARY, "www", "/srv/www", "/var/lib/replicad", ("fra1",))
AT_REPLICA = Seat(Side.REPLICA, "ams1/www", "/srv/replicad/ams1/www", "/srv/replicad/ams1/www")
ID = "7c1e90ab"
RUNBOOK = (Path(__file__).parents[1] / "docs/RUNBOOK.md").read_text()
NOWHERE = Evidence(Sight.ABSENT, Sight.DIFFERS, witness=Witness.CONFIRMS)

EVIDENCE = {
    Verdict.OK: Evidence(Sight.MATCHES, Sight.MATCHES),
    Verdict.CHANGED: Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.WRITTEN),
    Verdict.REPLICA_ROT: Evidence(Sight.MATCHES, Sight.DIFFERS, witness=Witness.CONFIRMS),
    Verdict.PRIMARY_ROT: Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.UNWRITTEN, Witness.CONFIRMS),
    Verdict.BOTH_ROT: Evidence(Sight.UNREADABLE, Sight.ABSENT, Writing.UNWRITTEN),
    Verdict.RECORD_ROT: Evidence(Sight.DIFFERS, Sight.DIFFERS, Writing.UNWRITTEN, Witness.CONFIRMS, same_bytes=True),
    Verdict.PRIMARY_UNREADABLE: Evidence(Sight.UNREADABLE, Sight.MATCHES, Writing.UNWRITTEN),
    Verdict.REPLICA_UNREADABLE: Evidence(Sight.MATCHES, Sight.UNREADABLE),
    Verdict.MISSING_ON_REPLICA: Evidence(Sight.MATCHES, Sight.ABSENT),
    Verdict.METADATA_DRIFT: Evidence(Sight.MATCHES, Sight.MATCHES, Writing.UNWRITTEN, metadata_differs=True),
    Verdict.RECORD_DIVERGENCE: Evidence(books=Books.DIFFER),
    Verdict.INCONCLUSIVE: Evidence(Sight.DIFFERS, writing=Writing.UNWRITTEN),
}
"""Of each verdict, evidence that gives it."""
KEYS = {Part.BOOK: ("book:ledger", "book:catalog", "book:findings")}


def finding(part: Part, verdict: Verdict, state: State, side: Side, key: str = "", **changes: object) -> Divergence:
    """A finding of that kind, with all that is usually known."""
    make = primary_rot if side is Side.PRIMARY else replica_rot
    fields: dict[str, object] = {
        "id": ID,
        "part": part,
        "verdict": verdict,
        "state": state,
        "evidence": EVIDENCE[verdict],
    }
    if key:
        fields["key"] = key
    return make(**{**fields, **changes})


def text_of(found: Divergence, seat: Seat) -> str:
    """All that `divergence show` prints, on one line."""
    return " ".join(" ".join(render(found, explain(found, seat), advise(found, seat))).split())


def commands(steps: list[Step]) -> list[str]:
    """What is to be typed, with the node in front where it is another one."""
    return [f"{step.on}: {step.command}" if step.on else step.command for step in steps]


def test_the_examples_are_what_the_table_says() -> None:
    """Each verdict's example of evidence does give it."""
    assert {verdict: judge(evidence) for verdict, evidence in EVIDENCE.items()} == {v: v for v in Verdict}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("part", Part)
def test_everything_there_can_be_is_explained(part: Part, verdict: Verdict, state: State) -> None:
    """Each combination, on either side, read from either book, lost or not: a headline that names the dataset, at least
    one sentence about what is safe, and a command to type next, first of all one that writes nothing."""
    for side, seat, evidence in itertools.product(Side, (AT_PRIMARY, AT_REPLICA), (EVIDENCE[verdict], NOWHERE)):
        for key in KEYS.get(part, ("",)):
            found = finding(part, verdict, state, side, key, evidence=evidence)
            said, steps = explain(found, seat), advise(found, seat)
            assert said.headline.startswith(f"{seat.dataset}: ") and len(said.headline) > 25
            assert said.safe and all(len(sentence) > 20 and sentence[0].isupper() for sentence in said.safe)
            assert said.why and said.history
            assert steps and all(step.command and step.why for step in steps)
            assert "{" not in said.headline + said.means + "".join(said.safe)
            if state is not State.OPEN:
                assert said.headline.startswith(f"{seat.dataset}: {state.value}: ")
            writing = [n for n, step in enumerate(steps) if step.command.startswith(f"replicad repair {ID}")]
            if writing:
                assert "--dry-run" in steps[writing[0]].command and "--dry-run" not in steps[writing[1]].command


def test_every_command_is_one_that_replicad_has() -> None:
    """No step tells to type a verb that does not exist; what is typed here carries the options that this node needs."""
    verbs = {verb.name for verb in VERBS} | {"scrub"}  # its command line has tests of its own
    seat = Seat(Side.PRIMARY, "www", "/srv/www", "/var/lib/replicad", ("fra1",), " --config /tmp/c.toml")
    for part, verdict, state, side in itertools.product(Part, Verdict, State, Side):
        for step in advise(finding(part, verdict, state, side), seat):
            words = shlex.split(step.command)
            if words[0] == "replicad":
                assert words[1] in verbs, step
                assert step.command.endswith(" --config /tmp/c.toml") == (not step.on), step


# Of each kind (part, verdict, side and seat: P or R) the first line of `show`, and what it tells to type first.
CASES = """
block primary_rot P P
    www: 1 bit of img/logo.png changed on this host's disk though nobody wrote the file
    > replicad repair 7c1e90ab --dry-run

block replica_rot R R
    ams1/www: a stored block of img/logo.png (and 1 more) changed on this host's disk since it was stored
    > replicad repair 7c1e90ab --dry-run

block replica_rot R P
    www: a stored block of img/logo.png (and 1 more) changed on the disk of replica ams1 since it was stored
    > replica ams1: replicad repair 7c1e90ab --dry-run

block missing_on_replica R R
    ams1/www: a stored block of img/logo.png (and 1 more) is missing on this host: its record names it, no
    segment has it
    > replicad repair 7c1e90ab --dry-run

block both_rot P P
    www: a block of img/logo.png (64.0 KiB at 196608) is lost: neither side can give the recorded bytes
    > replicad restore www /var/tmp/www-7c1e90ab --path img/logo.png --at 11

block primary_unreadable P P
    www: a block of img/logo.png (64.0 KiB at 196608) cannot be read from this host's disk
    > replicad repair 7c1e90ab --dry-run

block record_rot P P
    www: a block of img/logo.png (64.0 KiB at 196608) is recorded wrongly: both copies agree, the ledger alone
    says otherwise
    > systemctl stop replicad

block inconclusive P P
    www: a block of img/logo.png (64.0 KiB at 196608) is in doubt on this host's disk: not settled yet
    > replicad status

metadata metadata_drift P P
    www: mode, owner or attributes of img/logo.png changed on this host's disk though nobody changed the entry
    > replicad repair 7c1e90ab --dry-run

entry record_divergence P P
    www: the entry img/logo.png is recorded differently by ledger and catalog
    > replicad repair 7c1e90ab --dry-run

record replica_rot R R
    ams1/www: a record of names in segment 7 is damaged on this host's disk
    > replicad repair 7c1e90ab --dry-run

commit replica_unreadable R R
    ams1/www: the record of a snapshot in segment 7 cannot be read from this host's disk
    > replicad repair 7c1e90ab --dry-run

structure replica_rot R P
    www: the frame of segment 7 (no user data) is damaged on the disk of replica ams1
    > replica ams1: replicad repair 7c1e90ab --dry-run

segment missing_on_replica R R
    ams1/www: segment 7 is missing on this host
    > replicad repair 7c1e90ab --dry-run
"""


@pytest.mark.parametrize("case", CASES.strip().split("\n\n"), ids=lambda case: case.partition("\n")[0])
def test_the_first_line_and_the_first_command(case: str) -> None:
    """Read aloud, each first line says what is broken and where, and the first command is the one to type."""
    kind, _, told = case.partition("\n")
    headline, _, command = " ".join(told.split()).partition(" > ")
    part, verdict, side, seat = kind.split()
    found = finding(Part(part), Verdict(verdict), State.OPEN, Side.PRIMARY if side == "P" else Side.REPLICA)
    where = AT_PRIMARY if seat == "P" else AT_REPLICA
    assert explain(found, where).headline == headline
    assert commands(advise(found, where))[0] == command


def test_a_copy_is_called_good_only_when_it_was_seen_to_be() -> None:
    """Over all evidence: who is named as having good bytes was looked at, and matched."""
    for primary, replica, writing, witness in itertools.product(Sight, Sight, Writing, Witness):
        evidence = Evidence(primary, replica, writing, witness)
        found = primary_rot(id=ID, verdict=judge(evidence), evidence=evidence)
        safe = " ".join(explain(found, AT_PRIMARY).safe)
        if "on replica fra1: it has these bytes" in safe or "copy on replica fra1" in safe:
            assert replica is Sight.MATCHES, evidence
        if "data on this host: " in safe:
            assert primary is Sight.MATCHES, evidence
        assert ("Everything but the ranges" in safe) == found.is_lost


def test_what_is_lost_is_named_exactly() -> None:
    """A block that only history had: the snapshots, path and range, that the present state does not need it, and
    which state to restore instead."""
    lost = replica_rot(
        id=ID, evidence=NOWHERE, affected=(Affected(b"old/logo.png", 131072, 65536, 3, 9),), affected_count=1
    )
    text = text_of(lost, AT_REPLICA)
    assert "and no side has the bytes" in text
    assert "old/logo.png: bytes 131072 to 196607 (64.0 KiB), in snapshots 3 to 9 only" in text
    assert "The dataset as it is now: it does not use these bytes" in text
    assert "replicad restore ams1/www /var/tmp/www-7c1e90ab --path old/logo.png --at 2" in text
    assert f"replicad divergence ack {ID} --note" in text
    live = text_of(primary_rot(id=ID, verdict=Verdict.BOTH_ROT, evidence=EVIDENCE[Verdict.BOTH_ROT]), AT_PRIMARY)
    assert "as it is now: it does not use" not in live and "gets an error there" in live


def test_what_only_old_snapshots_have_is_restored_from_one_of_them() -> None:
    """A file that was lost from the first snapshot on and is gone from the newest: that one has nothing of it."""
    lost = replica_rot(id=ID, evidence=NOWHERE, affected=(Affected(b"old/logo.png", 0, 65536, 1, 2),), affected_count=1)
    first = commands(advise(lost, AT_REPLICA))[0]
    assert first == "replicad restore ams1/www /var/tmp/www-7c1e90ab --path old/logo.png --at 2"
    live = replica_rot(id=ID, evidence=NOWHERE, affected=(Affected(b"logo.png", 0, 65536, 1, 0),), affected_count=1)
    assert "--at" not in commands(advise(live, AT_REPLICA))[0]


def test_a_loss_is_acknowledged_where_its_book_is() -> None:
    """A mirrored loss of a replica is to be acknowledged on the replica."""
    lost = replica_rot(id=ID, evidence=NOWHERE, peer="fra1")
    assert commands(advise(lost, AT_PRIMARY))[-1].startswith(f"replica fra1: replicad divergence ack {ID}")
    assert commands(advise(lost, AT_REPLICA))[-1].startswith(f"replicad divergence ack {ID}")
    assert not any("ack" in step.command for step in advise(primary_rot(id=ID), AT_PRIMARY))


def test_the_evidence_is_told() -> None:
    """Checksums, bits with their bytes, who looked when at what and how, the witness, the identity, the bytes kept."""
    text = text_of(primary_rot(id=ID), AT_PRIMARY)
    for words in (
        "expected checksum " + "31" * 16,
        "seen checksum " + "30" * 16,
        "1 bit differs, in byte 206848",
        "2027-01-15T06:00:00Z copy of this host, from the medium: differs from the record, 2 times",
        "2027-01-15T07:00:00Z copy of replica fra1, from the medium: as recorded",
        "the other side's processor computes the same",
        "nobody wrote it",
        "kept on this host: quarantine/www/7c1e90ab",
        "2027-01-15T06:00:00Z found by the scrub",
    ):
        assert words in text, words


def test_what_is_not_known_is_not_called_none() -> None:
    """A frame that fails its own checksum does not say which bytes were to be there."""
    why = explain(replica_rot(id=ID, expected=b""), AT_REPLICA).why
    assert "expected checksum not known" in why


def test_a_cache_is_not_called_a_medium() -> None:
    """A look through a cache says so; a reason that the system gave stands with its look."""
    looks = (
        Look(NOW_NS, Side.PRIMARY, Sight.DIFFERS, "cache"),
        Look(NOW_NS, Side.PRIMARY, Sight.UNREADABLE, "media", reason="Input/output error"),
    )
    why = " ".join(explain(a_divergence(id=ID, looks=looks), AT_PRIMARY).why)
    assert "through a cache, not proven to be the medium: differs" in why
    assert "from the medium: cannot be read (Input/output error)" in why
    assert "the other side has not been asked about these bytes yet" in why


def test_contradicting_processors_point_at_memory() -> None:
    """When the other side computes something else from the same bytes, no disk is blamed; memory is looked at first."""
    odd = a_divergence(id=ID, evidence=Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.UNWRITTEN, Witness.CONTRADICTS))
    assert "rather than a disk" in text_of(odd, AT_PRIMARY)
    assert commands(advise(odd, AT_PRIMARY))[0].startswith("edac-util")


def test_what_read_well_again_points_at_memory_and_cable() -> None:
    """A place that read badly once and well afterwards is no finding any more, and still a reason to look around."""
    looks = (
        Look(NOW_NS, Side.REPLICA, Sight.DIFFERS, "media"),
        Look(NOW_NS, Side.REPLICA, Sight.MATCHES, "media", reason="read again"),
    )
    gone = replica_rot(id=ID, verdict=Verdict.INCONCLUSIVE, state=State.GONE, looks=looks)
    assert "gone: a stored block of img/logo.png (and 1 more) was in doubt" in text_of(gone, AT_REPLICA)
    assert commands(advise(gone, AT_REPLICA))[0] == "edac-util -v; dmesg"
    written = primary_rot(id=ID, state=State.GONE)
    assert commands(advise(written, AT_PRIMARY)) == ["replicad divergence list"]


def test_a_broken_frame_that_nobody_confirmed_yet_is_no_reason_to_fear_for_data() -> None:
    """Records, seals and segments hold no data of files, or none that is not elsewhere: settled or not."""
    for part, words in ((Part.RECORD, "none stands there"), (Part.STRUCTURE, "All data"), (Part.SEGMENT, "All other")):
        doubt = replica_rot(id=ID, part=part, verdict=Verdict.INCONCLUSIVE, evidence=Evidence(replica=Sight.DIFFERS))
        assert words in text_of(doubt, AT_REPLICA)


def test_a_repair_is_part_of_the_history_and_can_be_undone() -> None:
    """Receipts stand in the history in the order of time; a repair of the primary can be taken back."""
    found = primary_rot(id=ID, state=State.REPAIRED)
    receipt = Receipt(
        number=4, divergence=ID, at_ns=NOW_NS, remedy="mend_primary", path=b"img/logo.png", offset=0, length=65536,
        before=b"", after=b"", source="fra1", result="repaired", detail="read again and right",
    )  # fmt: skip
    said = explain(found, AT_PRIMARY, [receipt])
    assert said.history[-1] == "2027-01-15T08:00:00Z repair 4 from fra1: repaired: read again and right"
    assert f"replicad repair undo {ID}" in commands(advise(found, AT_PRIMARY))
    assert not any("undo" in step.command for step in advise(replica_rot(id=ID, state=State.REPAIRED), AT_REPLICA))


def test_long_lists_are_cut_and_say_so() -> None:
    """Hundreds of files and of events do not push what matters off the screen; what is left out is counted."""
    found = replica_rot(
        id=ID,
        affected=tuple(Affected(b"f%d" % number, 0, 10, 1, 0) for number in range(100)),
        affected_count=250,
        events=tuple(Event(number, f"event {number}") for number in range(100)),
    )
    said = explain(found, AT_REPLICA)
    assert len(said.affected) == SHOWN_FILES + 1 and said.affected[-1] == "and 230 more"
    assert len(said.history) == SHOWN_EVENTS and "event 0" in said.history[0] and "event 99" in said.history[-1]


HOSTILE = [
    b"\xff\xfe/x",
    b"a\nb",
    b"\x1b[2J",
    b"it's",
    b"-rf",
    b"[a]*?",
    b"a\\b",
    b"a b",
    "größe".encode(),
    b"$(reboot)",
]


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_a_hostile_path_does_nothing_to_terminal_or_shell(path: bytes) -> None:
    """Nothing printed holds a control character; the path in a command is one word of a shell that means this path."""
    found = primary_rot(id=ID, path=path, affected=(Affected(path, 0, 10),), what="seen \x1b[2J in it")
    lines = render(found, explain(found, AT_PRIMARY), advise(found, AT_PRIMARY))
    assert all(line.isprintable() for line in lines)
    word = shell_glob(path)
    assert f"--path {word}" in "\n".join(lines)
    pattern = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert compile_globs([pattern])(path) and not compile_globs([pattern])(path + b"x")


@given(st.binary(min_size=1).filter(lambda data: b"\0" not in data))
def test_any_bytes_are_one_word(data: bytes) -> None:
    """Whatever stands in a name, it is printable in a command, and no line is broken by it."""
    assert shell_word(data).isprintable() and shell_word(data)


@given(any_of(Divergence), st.sampled_from([AT_PRIMARY, AT_REPLICA]))
def test_any_finding_can_be_shown(found: Divergence, seat: Seat) -> None:
    """A finding with anything in its fields (a peer sends what it likes) is shown, in printable lines."""
    lines = render(found, explain(found, seat), advise(found, seat))
    assert all(line.isprintable() for line in lines) and lines[0]


def test_the_runbook_explains_every_verdict() -> None:
    """Its table has a row for each verdict, in which all four questions are answered, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", RUNBOOK.partition("## Divergences")[2], re.MULTILINE)
    assert sorted(row[0] for row in rows) == sorted(Verdict)
    assert all(len(answer) > 2 for row in rows for answer in row[1:])


def test_the_runbook_s_example_is_what_is_printed() -> None:
    """The worked example is the text of a real rendering."""
    found = primary_rot(id=ID)
    example = RUNBOOK.partition("<!-- divergence show -->\n```\n")[2].partition("\n```\n")[0]
    printed = "\n".join(render(found, explain(found, AT_PRIMARY), advise(found, AT_PRIMARY)))
    assert example == printed, printed


def test_it_fits_a_terminal() -> None:
    """But for commands and paths, which are never broken, no line is wider than 80 columns."""
    for part, verdict, side, seat in itertools.product(Part, Verdict, Side, (AT_PRIMARY, AT_REPLICA)):
        found = finding(part, verdict, State.OPEN, side)
        steps = advise(found, seat)
        for line in render(found, explain(found, seat), steps):
            assert len(line) <= COLUMNS or any(step.command in line for step in steps), line
