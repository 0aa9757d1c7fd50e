"""The verbs ls, cat, history and diff, typed as a person types them, against real daemons and bare stores."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_pair import COMMAND, Pair, free_port, make_pair, replicad, running
from kit_restore import Writer, damage_block
from kit_tree import build_tree, describe_tree
from replicad.model.block import block_id
from replicad.model.entry import FUZZY, Drop, Kind, show_path
from replicad.model.travel import EVENTS
from replicad.store.format import FrameType, split_frames
from replicad.work.rebuild import rebuild_catalog

HOUR_NS = 3600 * 1_000_000_000
MANY = 10_000
CONTENT = b"".join(n.to_bytes(4, "big") for n in range(1, 64_001))
"""Four blocks of 64 KiB, the last one short."""


def typed(*words: object, code: int | None = 0) -> str:
    """What a verb prints."""
    return replicad(*words, code=code).stdout


def refused(*words: object, code: int = 2) -> str:
    """The one line that a verb says when it cannot; nothing goes to stdout."""
    done = replicad(*words, code=code)
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def printed(*words: object, code: int = 0) -> tuple[bytes, str]:
    """The bytes and the remarks of `cat`."""
    command = [*COMMAND, "cat", *(word if isinstance(word, bytes) else str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr.decode()


# two daemons


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A tree of all kinds of entries and a directory of 10,000, in two snapshots between which things changed."""
    base = tmp_path_factory.mktemp("pair")
    root = base / "live" / "tree"
    build_tree(root, deep=False)
    (root / "many").mkdir()
    for number in range(MANY):
        (root / "many" / f"{number:05d}").write_bytes(b"")
    with running(make_pair(base, root, dataset_options="watch = false\nmax_change = 1.0")) as made:
        made.sync(code=None)
        (root / "docs").rename(root / "papers")
        (root / "papers" / "short.txt").write_bytes(b"two lines\nindeed\n")
        (root / "odd" / "tab\there").unlink()
        made.sync(code=None)
        yield made


def ways(pair: Pair, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Every way to read the same dataset."""
    text = pair.primary.config.read_text()
    host_key = next(
        line.split('"')[1] for line in text.splitlines() if line.startswith("key") and "ssh-ed25519" in line
    )
    key = tmp_path / "key"
    shutil.copy(pair.primary.state / "key", key)
    key.chmod(0o600)
    line = f"replicad-replica fra1 127.0.0.1:{pair.port} {host_key}"
    return {
        "primary": ("--config", pair.primary.config),
        "replica by name": ("--config", pair.primary.config, "--from", "fra1"),
        "fresh host": ("--replica", line, "--key", key, "--config", tmp_path / "none.toml"),
        "replica's own": ("--config", pair.replica.config),
        "store": ("--store", pair.store),
    }


def last_two(pair: Pair) -> list[int]:
    """The numbers of the first and the last snapshot."""
    lines = json.loads(typed("snapshots", "www", "--store", pair.store, "--json"))
    return [lines[0]["number"], lines[-1]["number"]]


def test_every_way_to_read_tells_the_same(pair: Pair, tmp_path: Path) -> None:
    """From a node, from a named replica, from a fresh host, on the replica, and from the bare store."""
    first, last = last_two(pair)
    answers = set()
    for words in ways(pair, tmp_path).values():
        listed = typed("ls", "www", "papers", *words)
        history = typed("history", "www", "papers/short.txt", *words)
        content, _ = printed("www@latest", "papers/short.txt", *words)
        answers.add((listed, history, content, typed("diff", "www", first, last, *words, code=1)))
    [(listed, history, content, diff)] = answers
    assert content == b"two lines\nindeed\n"
    assert re.search(r"^-rwsr-xr-x 0:0 +6 \S+Z setuid$", listed, re.MULTILINE)
    assert "renamed from docs/short.txt" in history and "created: file, 9 B" in history
    assert re.search(r"^created  papers  \(directory\)$", diff, re.MULTILINE)
    assert re.search(r"^deleted  docs/short.txt  \(file, 9 B\)$", diff, re.MULTILINE)


def test_a_listing_says_what_the_tree_has(pair: Pair) -> None:
    """Kind, mode, owner, size, time and target of every entry, names of any bytes included."""
    document = json.loads(typed("ls", "www", "--recursive", "--json", "--store", pair.store))
    entries = {entry["path"]: entry for entry in document["entries"]}
    live = describe_tree(pair.root, content=False)
    live.pop(b"")
    assert entries.keys() == {show_path(path) for path in live} and document["snapshot"]["lost_records"] == 0
    for path, described in live.items():
        entry = entries[show_path(path)]
        assert (int(entry["mode"], 8), (entry["uid"], entry["gid"])) == (described["mode"], described["owner"])
        assert entry["mtime_ns"] == described["mtime_ns"]
        assert entry["size"] == described.get("size", 0)
        if "target" in described:
            assert entry["target"] == show_path(described["target"])  # type: ignore[arg-type]
    assert entries["odd/latin-\\xe9\\xff"]["kind"] == "file"


def test_names_of_any_bytes_can_be_asked_for_and_are_shown_safely(pair: Pair) -> None:
    """A name that is no UTF-8 is typed as its bytes; no control character reaches the terminal."""
    shown = typed("ls", "www", "odd", "--store", pair.store)
    assert "latin-\\xe9\\xff" in shown and "new\\nline" in shown and "\xff" not in shown
    assert printed("www", b"odd/latin-\xe9\xff", "--store", pair.store)[0] == b"latin-\xe9\xff"
    assert typed("ls", "www", os.fsdecode(b"odd/dir-\xfe\n"), "--store", pair.store).endswith(" inside\n")


def test_links_holes_and_large_files_come_as_they_were(pair: Pair) -> None:
    """A hard link under each name, holes as zeros, every byte of a file of many blocks."""
    for name in ("links/hard-1", "sparse/islands", "sparse/all hole", "papers/large.bin", "papers/empty"):
        content, remarks = printed("www", name, "--config", pair.primary.config)
        assert content == (pair.root / name).read_bytes() and remarks == "", name
    shown = typed("ls", "www", "links", "--config", pair.primary.config)
    assert re.search(r"^lrwxrwxrwx .* to-directory -> \.\./docs$", shown, re.MULTILINE)


def test_a_directory_of_10000_entries_is_listed_whole(pair: Pair) -> None:
    """In order, from the daemon, and by the snapshot's time."""
    number = last_two(pair)[0]
    created = json.loads(typed("snapshots", "www", "--store", pair.store, "--json"))[0]["created"]
    for when in (str(number), created):
        lines = typed("ls", f"www@{when}", "many", "--config", pair.primary.config).splitlines()
        assert [line.rsplit(" ", 1)[1] for line in lines] == [f"{n:05d}" for n in range(MANY)]


def test_history_follows_a_renamed_directory(pair: Pair) -> None:
    """The directory and its files, each to its old name; what is gone under the old name is told as deleted."""
    number = last_two(pair)[1]
    for path, was in (("papers", "docs"), ("papers/setuid", "docs/setuid")):
        newest, oldest = json.loads(typed("history", "www", path, "--store", pair.store, "--json"))
        assert (newest["event"], newest["renamed_from"], newest["snapshot"]["number"]) == ("renamed", was, number)
        assert (oldest["event"], oldest["path"]) == ("created", was)
    newest, *_ = json.loads(typed("history", "www", "docs/setuid", "--store", pair.store, "--json"))
    assert newest["event"] == "deleted" and newest["snapshot"]["number"] == number


def test_a_file_that_is_gone_is_said_to_be_where_it_was(pair: Pair) -> None:
    """With the snapshots that have it, and the verb that tells more."""
    first, last = last_two(pair)
    said = refused("ls", "www", "odd/tab\there", "--config", pair.primary.config)
    assert f"snapshot {last} of " in said and r"has no odd/tab\there" in said and "replicad history www" in said
    assert str(first) in said
    assert r"no snapshot of www has etc/x (replicad ls www etc lists" in refused(
        "cat", "www", "etc/x", "--config", pair.primary.config
    )


def test_a_replica_out_of_reach_exits_3(pair: Pair, tmp_path: Path) -> None:
    """Each verb says so."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + os.urandom(32)
    line = f"replicad-replica dead 127.0.0.1:{free_port()} ssh-ed25519 {b64encode(blob).decode()}"
    where = ("--replica", line, "--key", pair.primary.state / "key")
    for words in (("ls", "www"), ("cat", "www", "x"), ("history", "www", "x"), ("diff", "www", 1, 2)):
        assert "dead" in refused(*words, *where, code=3)


def test_an_unknown_dataset_is_refused(pair: Pair) -> None:
    """By the replica as one that this client has no right to; a store of this host lists what it has."""
    for words in (("ls", "mail"), ("cat", "mail@3", "x"), ("history", "mail", "x"), ("diff", "mail", 1, 2)):
        assert "no right to dataset 'mail'" in refused(*words, "--config", pair.primary.config, code=3)
        assert "there is ams1/www" in refused(*words, "--store", pair.store)


# a bare store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three snapshots, an hour apart, the last one partial."""
    store = tmp_path_factory.mktemp("store")
    with Writer(store / "ams1" / "www") as writer:
        writer.put(b"")
        writer.put(b"etc")
        writer.put(b"etc/conf", CONTENT)
        writer.put(b"etc/old", b"old")
        writer.put(b"etc/link", kind=Kind.SYMLINK, target=b"../etc/conf")
        writer.put(b"etc/out", kind=Kind.SYMLINK, target=b"/etc/passwd")
        writer.put(b"current", kind=Kind.SYMLINK, target=b"..data/x")
        writer.put(b"above", kind=Kind.SYMLINK, target=b"etc/../../x")
        writer.put(b"pipe", kind=Kind.FIFO)
        writer.put(b"db", b"pages", flags=FUZZY)
        writer.seal(1, HOUR_NS)
        writer.put(b"etc/conf", b"X" + CONTENT[1:])
        writer.put(b"etc/new", b"new")
        writer.add(Drop(b"etc/old"))
        writer.seal(2, 2 * HOUR_NS)
        writer.put(b"etc/old", b"old")
        writer.seal(5, 3 * HOUR_NS, complete=False)
    return store


def test_a_moment_is_a_number_a_time_or_latest(store: Path) -> None:
    """As everywhere: the newest complete snapshot at or before a time; a partial one by its number, with a notice."""
    for when, expected in (("", 2), ("@latest", 2), ("@1", 1), ("@5", 5), ("@1970-01-01T01:59:00Z", 1)):
        done = replicad("ls", f"www{when}", "etc", "--store", store, "--json")
        assert json.loads(done.stdout)["snapshot"]["number"] == expected
        assert ("partial" in done.stderr) is (when in ("", "@latest", "@5"))


def test_what_is_fuzzy_is_marked(store: Path) -> None:
    """In a listing and beside the bytes."""
    assert typed("ls", "www@1", "db", "--store", store).endswith(" db  (fuzzy)\n")
    assert [e["fuzzy"] for e in json.loads(typed("ls", "www@1", "db", "--store", store, "--json"))["entries"]] == [True]
    content, remarks = printed("www@1", "db", "--store", store)
    assert content == b"pages" and "db is fuzzy" in remarks


def test_history_tells_what_happened(store: Path) -> None:
    """Newest first: it came, went, and came back; sizes and blocks where they changed."""
    events = json.loads(typed("history", "www", "etc/old", "--store", store, "--json"))
    assert [(event["event"], event["snapshot"]["number"]) for event in events] == [
        ("returned", 5), ("deleted", 2), ("created", 1),
    ]  # fmt: skip
    changed, created = json.loads(typed("history", "www", "/etc//conf/", "--store", store, "--json"))
    assert (changed["changed_blocks"], changed["changed_bytes"], changed["size_before"]) == (1, 65536, len(CONTENT))
    assert created["ended"]["number"] == 2 and {changed["event"], created["event"]} < EVENTS.keys()
    table = typed("history", "www", "etc/conf", "--store", store)
    assert re.search(r"^2 to 5 +\S+ +now +changed: content: 256,000 bytes, 1 block differs \(64\.0 KiB\)$", table, re.M)


def test_diff_exits_0_when_equal_and_1_when_not(store: Path) -> None:
    """In both directions, restricted by patterns, and as JSON."""
    assert "nothing differs" in typed("diff", "www", 2, 2, "--store", store)
    assert "nothing differs" in typed("diff", "www", 1, 2, "--path", "db", "--store", store)
    lines = typed("diff", "www", 1, "latest", "--store", store, code=1).splitlines()
    assert [line.split("  ")[:2] for line in lines[:-1]] == [
        ["changed", "etc/conf"], ["created", "etc/new"], ["deleted", "etc/old"],
    ]  # fmt: skip
    assert "1 created, 1 changed, 1 deleted; 1 block of changed files, 64.0 KiB" in lines[-1]
    found = json.loads(typed("diff", "www", 2, 1, "--path", "etc/[no]*", "--store", store, "--json", code=1))
    assert [(one["path"], one["difference"]) for one in found["differences"]] == [
        ("etc/new", "deleted"), ("etc/old", "created"),
    ]  # fmt: skip
    assert found["equal"] is False and found["summary"]["created"] == 1 and found["before"]["number"] == 2
    assert json.loads(typed("diff", "www", 1, 1, "--store", store, "--json"))["differences"] == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("ls", "www@9"), "there are: 1 ("),
        (("ls", "www@yesterday"), "2026-01-31T18:00:00Z"),
        (("cat", "www@1960-01-01T00:00:00Z", "db"), "no snapshot is as old as"),
        (("diff", "www", "1", "9"), "there are: 1 ("),
        (("diff", "www", "1960-01-01T00:00:00Z", "2"), "no snapshot is as old as"),
        (("ls", "www@"), "names no snapshot"),
        (("ls", "@3"), "names no dataset"),
        (("diff", "www@1", "1", "2"), "write DATASET alone"),
        (("history", "www@1", "db"), "write DATASET alone"),
        (("ls", "www@2", "etc/old"), "it was in snapshots 1, 5: replicad history www etc/old"),
        (("ls", "www@1", "nothing"), "no snapshot of www has nothing"),
        (("history", "www", "nothing"), "no snapshot of www has nothing"),
        (("ls", "www", "etc/../db"), "paths begin at the dataset's root"),
        (("cat", "www@1", "etc"), "etc is a directory (replicad ls www@1 etc)"),
        (("cat", "www@1", "pipe"), "pipe is a fifo"),
        (("cat", "www@1", "etc/link"), "symlink to ../etc/conf (it is not followed: replicad cat www@1 etc/conf)"),
        (("cat", "www@1", "etc/out"), "leads out of the dataset"),
        (("cat", "www@1", "above"), "leads out of the dataset"),
        (("cat", "www@1", "current"), "it is not followed: replicad cat www@1 ..data/x)"),
        (("diff", "www", "1", "2", "--path", "*.nothing"), "matches *.nothing"),
        (("diff", "www", "1", "2", "--path", "../x"), "'..'"),
        (("ls", "www", "--from", "fra1"), "exclude one another"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(store: Path, words: tuple[str, ...], reason: str) -> None:
    """Exit code 2, with what exists or what to type."""
    done = replicad(*words, "--store", store, code=2)
    assert done.stdout == "" and reason in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_nothing_is_printed_from_a_damaged_block_on(tmp_path: Path) -> None:
    """Everything before it, and not a byte of it; path and range on stderr, exit code 1."""
    with Writer(tmp_path / "ams1" / "www") as writer:
        writer.put(b"")
        writer.put(b"f", CONTENT)
        writer.seal()
    damage_block(tmp_path / "ams1" / "www", block_id(CONTENT[65536:131072]))
    content, remarks = printed("www", "f", "--store", tmp_path, code=1)
    assert content == CONTENT[:65536]
    assert "f: stopped at damage: bytes 65536 to 131071: segment 1 at byte" in remarks


def test_a_reader_that_has_seen_enough_ends_it_quietly(store: Path) -> None:
    """A closed pipe is no error to speak of; the exit code is that of SIGPIPE."""
    for words in (["cat", "www@1", "etc/conf"], ["ls", "-R", "www@1"]):
        done = subprocess.Popen(
            [*COMMAND, *words, "--store", str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert done.stdout and done.stderr
        done.stdout.close()
        said = done.stderr.read()
        done.stderr.close()
        assert (done.wait(60), said) == (141, b"")


def test_an_unbuffered_stdout_that_takes_parts_gets_every_byte(store: Path) -> None:
    """As where PYTHONUNBUFFERED is set and a slow program reads from the pipe."""
    command = " ".join([*COMMAND, "cat", "www@1", "etc/conf", "--store", str(store)])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | (sleep 0.5; cat)"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == CONTENT


def test_a_record_that_lost_a_piece_is_never_listed_as_whole(tmp_path: Path) -> None:
    """Each verb says what may be missing, and exits with 1."""
    archive = tmp_path / "ams1" / "www"
    with Writer(archive) as writer:
        for number in (1, 2):
            writer.put(b"")
            writer.put(b"f%d" % number, b"x")
            writer.seal(number)
    segment = archive / "segments" / "00000001.seg"
    record = next(frame for frame in split_frames(segment.read_bytes()) if frame.type == FrameType.RECORD)
    with open(segment, "r+b") as file:
        file.seek(record.offset + 100)
        file.write(b"!!!!")
    rebuild_catalog(archive)
    for words in (("ls", "www"), ("cat", "www", "f2"), ("history", "www", "f2"), ("diff", "www", 2, 2)):
        done = replicad(*words, "--store", tmp_path, code=1)
        assert "lost 1 piece of the record" in done.stderr and done.stdout


def test_the_operators_guide_names_every_option_and_event() -> None:
    """What is API is written down."""
    guide = (Path(__file__).parent.parent / "docs" / "TIME-TRAVEL.md").read_text()
    options = {
        option for verb in ("ls", "cat", "history", "diff") for option in re.findall("--[a-z-]+", typed(verb, "--help"))
    }
    assert {option for option in options if f"`{option}" not in guide} <= {"--config", "--help"}
    assert [event for event in EVENTS if f"`{event}`" not in guide] == []
