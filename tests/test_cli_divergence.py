"""The verbs divergence, suspects and repair, typed at nodes with real findings books, and at a daemon for repairs."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kit_daemon import FakeDaemon, Served, a_node
from kit_findings import a_divergence, primary_rot, replica_rot, write_book
from kit_pair import replicad
from kit_store import flip
from kit_tree import NOBODY, is_root
from replicad.db.findings import Findings
from replicad.http.contract import RepairResult
from replicad.model.divergence import Affected, Divergence, State, Suspect
from replicad.model.errors import HeldError
from replicad.model.verdict import Evidence, Sight, Verdict, Witness

Typed = Callable[..., tuple[int, str, str]]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEwhm0DsGGzBhk1eu0HYYDUgqH0/WZ3Ygw5Lt65Nq2gL"
NODE = '[node]\nname = "{name}"\nstate = "{root}/state"\nhttp = ""\n'
PRIMARY = """
[[replica]]
name = "fra1"
address = "fra1:7022"
key = "{key}"
[[dataset]]
name = "www"
path = "{root}/www"
[[dataset]]
name = "db"
path = "{root}/db"
"""


@pytest.fixture
def primary(tmp_path: Path) -> Path:
    """The configuration of a primary with the datasets www and db, whose books are empty."""
    config = tmp_path / "config.toml"
    config.write_text(NODE.format(name="ams1", root=tmp_path) + PRIMARY.format(root=tmp_path, key=KEY))
    for name in ("www", "db"):
        write_book(book_of(config, name))
    return config


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    """The configuration of a replica with the stores ams1/www and ams1/db, whose books are empty."""
    config = tmp_path / "config.toml"
    config.write_text(NODE.format(name="fra1", root=tmp_path) + f'[listen]\nstore = "{tmp_path}/store"\n')
    for name in ("www", "db"):
        (tmp_path / "store/ams1" / name / "segments").mkdir(parents=True)
        write_book(store_book(config, name))
    return config


def book_of(config: Path, dataset: str) -> Path:
    """A primary's findings book."""
    return config.parent / "state/findings" / f"{dataset}.db"


def store_book(config: Path, dataset: str) -> Path:
    """A replica's findings book."""
    return config.parent / "store/ams1" / dataset / "findings.db"


def known(path: Path, name: str) -> Divergence:
    """A divergence as it stands in a book."""
    book = Findings(path, readonly=True)
    found = book.get_exactly(name)
    book.close()
    assert found
    return found


# ----------------------------------------------------------------------------------------------------------- list


def test_nothing_open_is_said_and_exits_0(primary: Path, typed: Typed) -> None:
    """Books without open findings: one line, exit code 0; JSON has an empty list."""
    settled = primary_rot(state=State.REPAIRED)
    write_book(book_of(primary, "www"), settled)
    assert typed("divergence", "list", "--config", primary) == (0, "no open divergence\n", "")
    code, out, _ = typed("divergence", "list", "--json", "--config", primary)
    assert (code, json.loads(out)) == (0, {"divergences": [], "unread": []})


def test_open_ones_are_listed_oldest_first_and_exit_1(primary: Path, typed: Typed) -> None:
    """Each open finding of every dataset has a line with its id, verdict and place; what to type next goes to stderr.
    A replica's finding that is mirrored here says whose it is."""
    [newer] = write_book(book_of(primary, "www"), primary_rot())
    [older] = write_book(book_of(primary, "db"), replica_rot(dataset="db", peer="fra1", found_ns=5))
    code, out, err = typed("divergence", "list", "--config", primary)
    lines = out.splitlines()
    assert code == 1 and len(lines) == 3
    assert re.split(r" {2,}", lines[0]) == ["ID", "DATASET", "FOUND", "VERDICT", "WHAT"]
    assert re.match(rf"{older.id}  db  .* replica_rot  on fra1: img/logo.png \(and 1 more\)$", lines[1])
    assert re.match(rf"{newer.id}  www  .* primary_rot  img/logo.png$", lines[2])
    assert err == f"-> replicad divergence show {older.id} --config {primary}\n"


def test_the_list_can_be_narrowed_and_widened(primary: Path, typed: Typed) -> None:
    """By dataset, by side, and to those that are settled as well."""
    www = write_book(book_of(primary, "www"), primary_rot(), replica_rot(peer="fra1"))
    gone = write_book(book_of(primary, "db"), a_divergence(dataset="db", state=State.GONE))

    def ids(*words: str) -> list[str]:
        document = json.loads(typed("divergence", "list", *words, "--json", "--config", primary)[1])
        return sorted(one["id"] for one in document["divergences"])

    assert ids() == ids("www") == sorted(one.id for one in www)
    assert ids("db") == [] and ids("db", "--all") == [gone[0].id]
    assert ids("--side", "replica") == [www[1].id]
    assert typed("divergence", "list", "db", "--config", primary)[0] == 0
    code, out, _ = typed("divergence", "list", "--all", "db", "--config", primary)
    assert code == 0 and re.search(r" gone +inconclusive, img/logo.png$", out.strip())


def test_a_replica_lists_its_stores(replica: Path, typed: Typed) -> None:
    """On a replica a dataset is called CLIENT/DATASET; its name alone will do. A loss is marked as one."""
    lost = Evidence(Sight.ABSENT, Sight.DIFFERS, witness=Witness.CONFIRMS)
    [found] = write_book(store_book(replica, "www"), replica_rot(evidence=lost))
    for words in ((), ("www",), ("ams1/www",)):
        code, out, _ = typed("divergence", "list", *words, "--config", replica)
        assert code == 1 and found.id in out and "ams1/www" in out and "replica_rot (lost)" in out
    assert typed("divergence", "list", "ams1/db", "--config", replica)[0] == 0


@pytest.mark.parametrize("name", ["nope", "ww", "/www", "ams1/", "*"])
def test_an_unknown_dataset_names_those_there_are(primary: Path, typed: Typed, name: str) -> None:
    """A name that is none of this node's exits 2 with the names."""
    code, out, err = typed("divergence", "list", name, "--config", primary)
    assert (code, out) == (2, "") and "this node has: www, db" in err


def test_a_book_that_is_not_there_is_not_taken_for_an_empty_one(primary: Path, typed: Typed) -> None:
    """As long as no daemon has begun to look, the list does not say that nothing is wrong: exit code 3. What other
    books say is shown all the same, and counts more."""
    for file in book_of(primary, "db").parent.glob("db.db*"):
        file.unlink()
    code, _, err = typed("divergence", "list", "--config", primary)
    assert code == 3 and "db: nothing has been looked at yet" in err and "replicad status" in err
    assert not book_of(primary, "db").exists()
    write_book(book_of(primary, "www"), primary_rot())
    code, out, err = typed("divergence", "list", "--config", primary)
    assert code == 1 and "primary_rot" in out and "db: nothing has been looked at yet" in err


def test_a_damaged_book_hides_no_other(primary: Path, typed: Typed) -> None:
    """A book that fails its checksums is named, with exit code 1, and the others are read."""
    write_book(book_of(primary, "www"), primary_rot())
    flip(book_of(primary, "db"), 20)
    code, out, err = typed("divergence", "list", "--config", primary)
    assert code == 1 and "primary_rot" in out and str(book_of(primary, "db")) in err
    code, out, err = typed("divergence", "list", "db", "--config", primary)
    assert code == 1 and "damaged" in err and "found again by the next scrub" in err
    code, out, _ = typed("divergence", "list", "--json", "--config", primary)
    assert code == 1 and str(book_of(primary, "db")) in json.loads(out)["unread"][0]


def test_the_books_are_read_beside_a_writer(primary: Path, typed: Typed) -> None:
    """A daemon that has the book open, and has just written, is no hindrance, and sees what a command writes."""
    writer = Findings(book_of(primary, "www"))
    found = writer.report(primary_rot())
    assert found.id in typed("divergence", "list", "--config", primary)[1]
    assert typed("divergence", "ack", found.id, "--note", "seen", "--config", primary)[0] == 0
    settled = writer.get_exactly(found.id)
    assert settled and settled.state is State.ACKNOWLEDGED
    writer.close()


@pytest.mark.skipif(not is_root(), reason="only root can give files away")
def test_what_root_reads_still_belongs_to_the_daemon_s_user(primary: Path) -> None:
    """A book read or written by root can be written by the daemon's user afterwards."""
    [found] = write_book(book_of(primary, "www"), primary_rot())
    for path in (book_of(primary, "www").parent, *book_of(primary, "www").parent.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    writer = Findings(book_of(primary, "www"))
    replicad("divergence", "list", "--config", primary, code=1)
    replicad("divergence", "ack", found.id, "--note", "x", "--config", primary)
    writer.close()
    replicad("divergence", "list", "--config", primary)
    assert [path.name for path in book_of(primary, "www").parent.iterdir() if path.stat().st_uid != NOBODY] == []


# ----------------------------------------------------------------------------------------------------------- show


def test_show_explains_and_exits_1_while_open(primary: Path, typed: Typed) -> None:
    """The first line says what is broken, the last commands what to type; a settled one exits 0."""
    [found] = write_book(book_of(primary, "www"), primary_rot())
    code, out, err = typed("divergence", "show", found.id[:4], "--config", primary)
    assert (code, err) == (1, "")
    assert out.startswith("www: 1 bit of img/logo.png changed on this host's disk")
    assert f"replicad repair {found.id} --dry-run --config {primary}\n" in out
    book = Findings(book_of(primary, "www"))
    book.update(found.with_event(9, "repaired", state=State.REPAIRED))
    book.close()
    code, out, _ = typed("divergence", "show", found.id, "--config", primary)
    assert code == 0 and out.startswith("www: repaired: ")


def test_show_as_json_has_everything(primary: Path, typed: Typed) -> None:
    """The document has every field, the words, the commands and the receipts."""
    [found] = write_book(book_of(primary, "www"), primary_rot())
    code, out, _ = typed("divergence", "show", found.id, "--json", "--config", primary)
    document = json.loads(out)
    assert code == 1
    assert set(document) == {*Divergence.__struct_fields__, "lost", "name", "explanation", "receipts"}
    said = document["explanation"]
    assert set(said) == {"headline", "means", "safe", "affected", "why", "history", "next"}
    assert set(said["next"][0]) == {"command", "why", "on"}
    assert document["receipts"] == [] and document["verdict"] == "primary_rot" and document["name"] == "www"


def test_show_knows_the_replica_s_side(replica: Path, typed: Typed) -> None:
    """On the replica its own finding is about this host, and commands name the store."""
    lost = Evidence(Sight.ABSENT, Sight.DIFFERS, witness=Witness.CONFIRMS)
    affected = (Affected(b"old", 0, 65536, 3, 9),)
    [found] = write_book(store_book(replica, "www"), replica_rot(evidence=lost, affected=affected, affected_count=1))
    out = typed("divergence", "show", found.id, "--config", replica)[1]
    assert "ams1/www: a stored block of old changed on this host's disk" in out
    assert f"replicad restore ams1/www /var/tmp/www-{found.id} --path old --at 2 --config {replica}" in out


def test_a_finding_and_its_mirror_on_one_node_are_one(primary: Path, typed: Typed) -> None:
    """A node that keeps a store for itself has a finding of it in two books: it is shown and noted where it belongs."""
    primary.write_text(primary.read_text() + f'[listen]\nstore = "{primary.parent}/store"\n')
    (primary.parent / "store/ams1/www/segments").mkdir(parents=True)
    [found] = write_book(store_book(primary, "www"), replica_rot(id="7c1e90ab"))
    write_book(book_of(primary, "www"), msgspec.structs.replace(found, peer="fra1"))
    out = typed("divergence", "show", "7c1e", "--config", primary)[1]
    assert "ams1/www: " in out and "changed on this host's" in out
    assert typed("divergence", "ack", "7c1e", "--note", "x", "--config", primary)[0] == 0
    assert known(store_book(primary, "www"), found.id).state is State.ACKNOWLEDGED
    write_book(store_book(primary, "www"), replica_rot(id="7c1effff", key="frame:1:2"))
    assert "more than one" in typed("divergence", "show", "7c1e", "--config", primary)[2]


def test_ids_that_name_none_or_many_are_usage_errors(primary: Path, typed: Typed) -> None:
    """Across all books of the node: exit code 2, with what to do."""
    write_book(book_of(primary, "www"), a_divergence(id="7c1e90ab"))
    write_book(book_of(primary, "db"), a_divergence(id="7c1effff", dataset="db"))
    for words in (("show", "7c1e"), ("ack", "7c1e", "--note", "x"), ("show", "")):
        code, out, err = typed("divergence", *words, "--config", primary)
        assert (code, out) == (2, "") and "more than one divergence begins with" in err
    for name in ("dead", "7c1e90abc", "%", "\udcff", "x" * 5000):
        code, out, err = typed("divergence", "show", name, "--config", primary)
        assert (code, out) == (2, "") and "there is no divergence" in err
    assert typed("divergence", "show", "7c1e9", "--config", primary)[0] == 1


def test_an_id_that_is_not_found_while_a_book_is_unread_is_no_usage_error(primary: Path, typed: Typed) -> None:
    """It may stand in the book that cannot be read: the error is that book's."""
    flip(book_of(primary, "db"), 20)
    code, _, err = typed("divergence", "show", "7c1e", "--config", primary)
    assert code == 1 and str(book_of(primary, "db")) in err


HOSTILE = [b"\xff\xfe", b"a\nb\rc", b"\x1b[2J\x1b]0;x\x07", b"\xe2\x80\xae.txt", b"'; reboot #", b"--help"]


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_hostile_names_reach_no_terminal(primary: Path, typed: Typed, path: bytes) -> None:
    """A name with control characters, broken UTF-8 or a shell's characters is shown harmlessly, and JSON stays JSON."""
    affected = (Affected(path, 0, 9),)
    what, event = "said \x1b[2J", primary_rot().with_event(5, "\x1b[31mred").events
    [found] = write_book(
        book_of(primary, "www"), primary_rot(path=path, affected=affected, what=what, events=event, peer="\x07")
    )
    for words in (("list",), ("show", found.id)):
        code, out, err = typed("divergence", *words, "--config", primary)
        assert code == 1
        assert all(line.isprintable() for line in (out + err).splitlines()), out
        json.loads(typed("divergence", *words, "--json", "--config", primary)[1])


# ------------------------------------------------------------------------------------------------------------ ack


def test_an_acknowledgement_has_note_name_and_time(
    primary: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding is open no more, and its history says who took note of it, when and why; sudo names the person."""
    found = write_book(book_of(primary, "www"), primary_rot(), primary_rot(key="block:1:1"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    code, out, err = typed(
        "divergence", "ack", found[0].id, "--note", "from tape, see\nticket \x1b7", "--config", primary
    )
    me = pwd.getpwuid(os.getuid()).pw_name
    assert code == 0 and f"acknowledged by {me}: from tape, see?ticket ?7" in " ".join(out.split())
    assert "nothing was repaired" in err
    event = known(book_of(primary, "www"), found[0].id).events[-1]
    assert event.what == f"acknowledged by {me}: from tape, see?ticket ?7" and event.at_ns > 10**18
    monkeypatch.setenv("SUDO_USER", "kim")
    code, out, _ = typed("divergence", "ack", found[1].id, "--note", "x", "--json", "--config", primary)
    assert code == 0 and json.loads(out)["events"][-1]["what"] == "acknowledged by kim: x"
    assert typed("divergence", "list", "--config", primary)[0] == 0


def test_what_an_acknowledgement_means_is_said(replica: Path, typed: Typed) -> None:
    """Of a loss, of doubt and of what could be repaired, another thing: an acknowledgement repairs nothing."""
    nowhere = Evidence(Sight.ABSENT, Sight.DIFFERS, witness=Witness.CONFIRMS)
    cases = {
        "it stays on record": replica_rot(evidence=nowhere),
        "nobody knows whether these bytes are good": replica_rot(key="frame:1:1", verdict=Verdict.INCONCLUSIVE),
        "could have mended it": replica_rot(key="frame:1:2"),
    }
    for words, found in cases.items():
        [found] = write_book(store_book(replica, "www"), found)
        code, _, err = typed("divergence", "ack", found.id, "--note", "x", "--config", replica)
        assert code == 0 and words in " ".join(err.split())


def test_a_mirrored_finding_is_acknowledged_on_the_replica(primary: Path, typed: Typed) -> None:
    """The book that counts is the replica's: the error says where and what to type, and nothing is changed."""
    [found] = write_book(book_of(primary, "www"), replica_rot(peer="fra1"))
    code, _, err = typed("divergence", "ack", found.id, "--note", "x", "--config", primary)
    assert code == 2 and f"on fra1: replicad divergence ack {found.id}" in err
    assert known(book_of(primary, "www"), found.id) == found


@pytest.mark.parametrize("state", [state for state in State if state is not State.OPEN])
def test_what_is_settled_is_not_acknowledged(primary: Path, typed: Typed, state: State) -> None:
    """A finding that is open no more is left as it is."""
    [found] = write_book(book_of(primary, "www"), primary_rot(state=state))
    code, _, err = typed("divergence", "ack", found.id, "--note", "x", "--config", primary)
    assert code == 2 and f"is {state} already" in err
    assert known(book_of(primary, "www"), found.id) == found


@pytest.mark.parametrize("note", ["", "  ", "x" * 1001])
def test_a_note_says_something(primary: Path, typed: Typed, note: str) -> None:
    """Without a note, or with a novel, nothing is acknowledged."""
    [found] = write_book(book_of(primary, "www"), primary_rot())
    code, _, err = typed("divergence", "ack", found.id, "--note", note, "--config", primary)
    assert code == 2 and "--note" in err
    assert typed("divergence", "ack", found.id, "--config", primary)[0] == 2
    assert known(book_of(primary, "www"), found.id).state is State.OPEN


# ------------------------------------------------------------------------------------------------------- suspects


def suspect(path: bytes = b"db.img", snapshot: int = 7, kind: str = "zeroed") -> Suspect:
    """A change that looks like damage."""
    return Suspect(path=path, kind=kind, snapshot=snapshot, before=snapshot - 1, found_ns=5, blocks=2)


def add_suspects(path: Path, *found: Suspect) -> None:
    """Note them in a book."""
    book = Findings(path)
    book.add_suspects(found)
    book.close()


def pinned(path: Path) -> set[int]:
    """What a book pins."""
    book = Findings(path, readonly=True)
    pins = book.pinned()
    book.close()
    return pins


def test_suspects_are_listed_and_released(replica: Path, typed: Typed) -> None:
    """Those that wait are listed with what is kept because of them; released ones are gone, and so is their pin."""
    assert typed("suspects", "list", "--config", replica) == (0, "no suspect change waits\n", "")
    add_suspects(store_book(replica, "www"), suspect(), suspect(b"\x1b[2J\xff", 9, "emptied"))
    code, out, err = typed("suspects", "list", "--config", replica)
    lines = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert code == 1
    assert lines[1] == ["1", "ams1/www", "zeroed", "7", "6", "db.img"]
    assert lines[2] == ["2", "ams1/www", "emptied", "9", "8", r"\x1b[2J\xff"]
    assert "zeroed: blocks that held data are all-zero now" in err
    assert f"replicad restore ams1/www DIRECTORY --at 6 --path PATH --config {replica}" in err
    assert f"replicad suspects release ams1/www 1 --config {replica}" in err
    assert typed("suspects", "release", "ams1/www", "1", "--config", replica)[:2] == (0, "ams1/www: 1 released\n")
    assert pinned(store_book(replica, "www")) == {8}
    assert typed("suspects", "release", "2", "--config", replica)[0] == 0
    assert pinned(store_book(replica, "www")) == set()
    assert typed("suspects", "list", "--config", replica)[0] == 0


def test_suspects_as_json(replica: Path, typed: Typed) -> None:
    """Every field is a key, paths are text, and numbers of released ones are counted by dataset."""
    add_suspects(store_book(replica, "www"), suspect(b"\xff"))
    code, out, _ = typed("suspects", "list", "www", "--json", "--config", replica)
    document = json.loads(out)
    assert code == 1 and document["unread"] == []
    assert set(document["suspects"][0]) == {*Suspect.__struct_fields__, "name", "what"}
    assert (document["suspects"][0]["path"], document["suspects"][0]["name"]) == (r"\xff", "ams1/www")
    code, out, _ = typed("suspects", "release", "--all", "--json", "--config", replica)
    assert (code, json.loads(out)) == (0, {"released": {"ams1/db": 0, "ams1/www": 1}})


def test_numbers_of_two_datasets_are_not_mixed_up(replica: Path, typed: Typed) -> None:
    """Each store counts its own: a number that waits in two is released in none until the dataset is named."""
    for name in ("www", "db"):
        add_suspects(store_book(replica, name), suspect())
    add_suspects(store_book(replica, "www"), suspect(b"other"))
    code, _, err = typed("suspects", "release", "1", "--config", replica)
    assert code == 2 and "these numbers wait in ams1/db, ams1/www" in err
    for words in (("3",), ("1", "2", "3"), ("db", "2")):
        code, _, err = typed("suspects", "release", *words, "--config", replica)
        assert code == 2 and "do not all wait in one dataset" in err
    assert pinned(store_book(replica, "db")) == pinned(store_book(replica, "www")) == {6}
    assert typed("suspects", "release", "2", "--config", replica)[1] == "ams1/www: 1 released\n"
    assert typed("suspects", "release", "db", "1", "--config", replica)[1] == "ams1/db: 1 released\n"
    assert typed("suspects", "release", "www", "--all", "--config", replica)[1] == "ams1/www: 1 released\n"
    assert typed("suspects", "release", "--all", "--config", replica)[1].count("none was waiting") == 2


@pytest.mark.parametrize(
    "words", [(), ("www",), ("1", "--all"), ("www", "db", "1"), ("nope", "1"), ("-1",), ("9" * 30, "www")], ids=repr
)
def test_an_unclear_release_releases_nothing(replica: Path, typed: Typed, words: tuple[str, ...]) -> None:
    """What does not say clearly which changes are meant exits 2."""
    add_suspects(store_book(replica, "www"), suspect())
    code, _, err = typed("suspects", "release", *words, "--config", replica)
    assert code == 2 and err
    assert pinned(store_book(replica, "www")) == {6}


def test_suspects_are_the_replica_s(primary: Path, typed: Typed) -> None:
    """Typed at a primary, both say where to type them."""
    for words in (("list",), ("release", "1"), ("release", "--all")):
        code, _, err = typed("suspects", *words, "--config", primary)
        assert code == 2 and "on fra1: replicad suspects list" in err


# --------------------------------------------------------------------------------------------------------- repair


def results(*kinds: str) -> dict[str, list[RepairResult]]:
    """By the ids 00000000, 11111111…: what becomes of each."""
    names = [str(number) * 8 for number in range(len(kinds))]
    return {n: [RepairResult(n, "mend_primary", kind, f"told of {n}")] for n, kind in zip(names, kinds, strict=True)}


@pytest.mark.parametrize(
    ("kind", "code", "hint"),
    [
        ("planned", 0, "do it: replicad repair 00000000"),
        ("repaired", 0, "replicad repair undo 00000000"),
        ("undone", 0, ""),
        ("nothing", 0, ""),
        ("failed", 1, "replicad divergence show 00000000"),
        ("refused", 1, "replicad divergence show 00000000"),
        ("waiting", 1, "replicad status"),
    ],
)
def test_each_result_has_its_exit_code_and_next_step(
    tmp_path: Path, typed: Typed, kind: str, code: int, hint: str
) -> None:
    """One line for each, exit code 0 when nothing is left to do, and what to type next on stderr."""
    daemon = FakeDaemon(a_node())
    daemon.results = results(kind)
    with Served(daemon, tmp_path) as served:
        shown = typed("repair", "00000000", "--config", served.config())
        as_json = typed("repair", "00000000", "--json", "--config", served.config())
    assert shown[:2] == (code, f"00000000: {kind}: told of 00000000\n")
    assert hint in shown[2] if hint else shown[2] == ""
    assert as_json[0] == code
    assert json.loads(as_json[1]) == {
        "results": [{"id": "00000000", "remedy": "mend_primary", "result": kind, "text": "told of 00000000"}],
        "problems": [],
    }


def test_what_is_lost_is_no_success(tmp_path: Path, typed: Typed) -> None:
    """Nothing is left to do and nothing is well: exit code 1, and where to read on, as it has to be typed there."""
    daemon = FakeDaemon(a_node())
    daemon.results = {"00000000": [RepairResult("00000000", "none_left", "nothing", "no side has the bytes")]}
    with Served(daemon, tmp_path) as served:
        code, _, err = typed("repair", "00000000", "--config", served.config())
    assert code == 1
    assert f"replicad divergence show 00000000 --config {served.config()}" in err


def test_repairs_of_one_many_and_all(tmp_path: Path, typed: Typed) -> None:
    """What is named is asked for, in that order, as a dry run when that is said; the worst result counts."""
    daemon = FakeDaemon(a_node())
    daemon.results = results("repaired", "failed", "waiting")
    with Served(daemon, tmp_path) as served:
        config = served.config()
        assert typed("repair", "00000000", "11111111", "--config", config)[0] == 1
        assert typed("repair", "--all", "--dry-run", "--config", config)[0] == 1
        daemon.results = {}
        assert typed("repair", "--all", "--config", config)[:2] == (0, "nothing to repair\n")
    asked = [words for words in daemon.asked if words != "repaired"]
    assert asked == ["repair 00000000", "repair 11111111", "repair None dry run", "repair None"]


def test_an_unknown_id_among_others_keeps_none_from_repair(tmp_path: Path, typed: Typed) -> None:
    """The others are repaired and told, the unknown one is named, and the exit code is that of a usage error."""
    daemon = FakeDaemon(a_node())
    daemon.results = results("repaired")
    with Served(daemon, tmp_path) as served:
        code, out, err = typed("repair", "dead", "00000000", "--config", served.config())
        assert code == 2 and "00000000: repaired" in out and "no divergence 'dead'" in err
        code, out, err = typed("repair", "dead", "00000000", "--json", "--config", served.config())
        document = json.loads(out)
        assert code == 2 and len(document["results"]) == len(document["problems"]) == 1
        code, out, err = typed("repair", "dead", "--config", served.config())
        assert (code, out) == (2, "") and "no divergence 'dead'" in err


def test_a_repair_is_taken_back(tmp_path: Path, typed: Typed) -> None:
    """`repair undo ID` asks for just that."""
    daemon = FakeDaemon(a_node())
    daemon.results = results("undone")
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("repair", "undo", "00000000", "--config", served.config())
    assert (code, out, daemon.asked) == (0, "00000000: undone: told of 00000000\n", ["undo 00000000"])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--dry-run",),
        ("7c1e", "--all"),
        ("undo",),
        ("undo", "a", "b"),
        ("undo", "a", "--dry-run"),
        ("undo", "--all"),
    ],
    ids=repr,
)
def test_an_unclear_repair_repairs_nothing(tmp_path: Path, typed: Typed, words: tuple[str, ...]) -> None:
    """What does not say clearly what is to be repaired exits 2, and the daemon is not asked."""
    daemon = FakeDaemon(a_node())
    with Served(daemon, tmp_path) as served:
        code, _, err = typed("repair", *words, "--config", served.config())
    assert code == 2 and "replicad " in err and daemon.asked == []


def test_a_repair_needs_its_daemon(tmp_path: Path, typed: Typed) -> None:
    """Without a daemon it exits 3; what the daemon refuses comes with its words."""
    config = tmp_path / "config.toml"
    config.write_text(NODE.format(name="ams1", root=tmp_path))
    assert typed("repair", "--all", "--config", config)[0] == 3
    daemon = FakeDaemon(a_node())
    daemon.refusal = HeldError("the breaker is open", hint="look at the disk first")
    with Served(daemon, tmp_path) as served:
        code, _, err = typed("repair", "--all", "--config", served.config())
    assert code == 2 and "the breaker is open (look at the disk first)" in err


def test_a_result_with_control_characters_is_harmless(tmp_path: Path, typed: Typed) -> None:
    """What a daemon tells may hold a file's name: no control character gets to the terminal."""
    daemon = FakeDaemon(a_node())
    daemon.results = {"0": [RepairResult("0", "mend_primary", "failed", "a\x1b[2Jb\nc")]}
    with Served(daemon, tmp_path) as served:
        out = typed("repair", "0", "--config", served.config())[1]
    assert out == "0: failed: a?[2Jb?c\n"


# ----------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", ["divergence", "divergence list", "divergence ack", "suspects release", "repair"])
def test_help_shows_examples(words: str) -> None:
    """The help is plain text, with an example where arguments are to be given."""
    text = replicad(*words.split(), "--help").stdout
    assert "Usage: replicad " + words in text and "│" not in text
    if words in ("divergence ack", "suspects release", "repair"):
        assert re.search(
            r"replicad (divergence ack|suspects release|repair) \w+", text.partition("Usage")[2].partition("\n")[2]
        )
