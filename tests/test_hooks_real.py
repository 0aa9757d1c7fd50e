"""The hooks of docs/HOOKS.md as they stand there, with real databases under load: what comes back is started, and holds
what was committed. A disk image that is written between passes, and the system's own tree where it lies."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_drill import drill, scratch_of
from kit_pair import Pair, make_pair, running, wait_until

HOOKS = dict(
    re.findall(
        r"<!-- hook: ([a-z-]+) -->\n```sh\n(.*?)^```$",
        (Path(__file__).parents[1] / "docs" / "HOOKS.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)
PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
TREE_BYTES = 60 * 1024**2
"""What is taken of /usr at most: some thousand files, a quarter of a minute on two idle cores."""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT TESTED: a server has a user of its own, whom root becomes"
)
pytestmark = pytest.mark.timeout(600)  # servers start slowly on a disk that others keep busy


def run(*words: object, **more: object) -> str:
    """A program's output; its failure fails the test."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload] # whatever run takes
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def hook(directory: Path, name: str) -> Path:
    """The hook, where a configuration can name it."""
    path = directory / name
    path.write_text(HOOKS[name])
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def hooked(directory: Path, name: str, options: str, **environment: object) -> Iterator[Pair]:
    """A pair that runs with this hook, and can drill."""
    root = directory / "www"
    root.mkdir()
    scratch_of(directory).mkdir()
    directory.chmod(0o711)  # a validator without root's rights has to get there
    lines = f'drill_every = 0\ndrill_scratch = "{scratch_of(directory)}"\n{options}'
    if name:
        lines += f'\nhook_pre = ["{hook(directory, name)}"]\nmax_change = 1.0'
    pair = make_pair(directory, root, dataset_options=lines)
    pair.primary.environment = {key: str(value) for key, value in environment.items()}
    with running(pair):
        yield pair


# PostgreSQL


def as_postgres(*words: object) -> str:
    """One of PostgreSQL's programs, as its user."""
    return run(
        PROGRAMS / str(words[0]), *words[1:], user="postgres", group="postgres", extra_groups=[], cwd="/",
        stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


@contextlib.contextmanager
def serving(data: Path, socket: Path) -> Iterator[None]:
    """A server on this data directory, reached by a socket alone."""
    postgres = pwd.getpwnam("postgres")
    socket.mkdir(exist_ok=True)
    os.chown(socket, postgres.pw_uid, postgres.pw_gid)
    options = f"-c listen_addresses='' -c unix_socket_directories='{socket}' -c wal_level=replica"
    as_postgres("pg_ctl", "-D", data, "-w", "-l", socket / "log", "-o", options, "start")
    try:
        yield
    finally:
        as_postgres("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


@contextlib.contextmanager
def cluster_under_load(directory: Path) -> Iterator[Path]:
    """A server to whose database "postgres" pgbench writes without a pause, and that the role replicad may copy; its
    socket's directory."""
    place, socket = directory / "cluster", directory / "socket"
    directory.chmod(0o711)
    place.mkdir()
    shutil.chown(place, "postgres", "postgres")
    as_postgres("initdb", "-D", place / "data", "--data-checksums", "--auth=trust", "-N")
    with serving(place / "data", socket):
        ask(socket, "CREATE ROLE replicad LOGIN REPLICATION; GRANT pg_read_all_data TO replicad")
        as_postgres("pgbench", "-h", socket, "-i", "-s", 1, "-q", "postgres")
        load = subprocess.Popen(
            [PROGRAMS / "pgbench", "-h", socket, "-n", "-c", "2", "-T", "500", "postgres"],
            user="postgres", group="postgres", extra_groups=[], cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: history_of(socket) > 50, "pgbench writes")
            yield socket
            assert load.poll() is None, "pgbench has ended by itself"
        finally:
            load.kill()
            load.wait()


def ask(socket: Path, question: str, database: str = "postgres") -> str:
    """What the server answers."""
    return as_postgres("psql", "-h", socket, "-v", "ON_ERROR_STOP=1", "-Atqc", question, database).strip()


def history_of(socket: Path) -> int:
    """Transactions that pgbench has committed."""
    return int(ask(socket, "SELECT count(*) FROM pgbench_history"))


def check_books(socket: Path, committed: int, database: str = "postgres") -> None:
    """Whatever pgbench did, its four sums agree, and nothing that was committed is missing."""
    sums = ask(
        socket,
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
        " (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history),"
        " (SELECT count(*) FROM pgbench_history), (SELECT count(*) FROM pgbench_accounts)",
        database,
    ).split("|")
    assert len(set(sums[:4])) == 1, f"accounts, branches, tellers and history do not agree: {sums}"
    assert int(sums[4]) >= committed > 0 and int(sums[5]) == 100_000


@needs_root
def test_a_cluster_under_load_starts_from_what_was_restored(tmp_path: Path) -> None:
    """The base backup of the hook is drilled; restored it starts, and has everything that was committed before the hook
    began, with all sums of pgbench in agreement; so has the snapshot before it, with less in it."""
    options = 'exclude = ["/.new/"]\nvalidators = [{kind = "postgresql", pattern = "pg"}]'
    with cluster_under_load(tmp_path) as live:
        with hooked(tmp_path, "pg-base", options, PGHOST=live) as pair:
            counts = []
            for _ in range(2):
                counts.append(history_of(live))
                pair.sync()
            last = pair.line.last_snapshot
            record = drill(pair, "--full")
            assert record["outcome"] == "proven" and record["validations"] == {"proven": 1}, record
            for number in (last, last - 1):
                target = tmp_path / f"restored-{number}"
                pair.restore(target, "--path", "pg", "--at", number)
                run("chown", "-R", "postgres:postgres", target)
        for number, committed in ((last, counts[1]), (last - 1, counts[0])):
            with serving(tmp_path / f"restored-{number}" / "pg", tmp_path / f"socket-{number}"):
                check_books(tmp_path / f"socket-{number}", committed)
        assert history_of(live) > counts[1], "the live cluster lives"


@needs_root
def test_a_dump_under_load_is_restored_into_another_database(tmp_path: Path) -> None:
    """One moment of all tables, though they are dumped one after the other; a table that did not change is not sent
    again."""
    options = 'exclude = ["/.new/"]'
    with cluster_under_load(tmp_path) as live:
        ask(live, "CREATE TABLE quiet AS SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 30000) n")
        with hooked(tmp_path, "pg-dump", options, PGHOST=live, PGDATABASE="postgres") as pair:
            pair.sync()
            first = pair.line.sent_bytes
            committed = history_of(live)
            pair.sync()
            assert pair.line.sent_bytes - first < first, "the quiet table stands on the replica"
            pair.restore(tmp_path / "restored")
        run("chown", "-R", "postgres:postgres", tmp_path / "restored")
        as_postgres("createdb", "-h", live, "copy")
        as_postgres("pg_restore", "-h", live, "--exit-on-error", "-d", "copy", tmp_path / "restored" / "dump")
        check_books(live, committed, "copy")
        assert ask(live, "SELECT count(*) FROM quiet", "copy") == "30000"


# SQLite

WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE account(number INTEGER PRIMARY KEY, balance INTEGER)")
db.execute("CREATE TABLE moved(number INTEGER PRIMARY KEY, amount INTEGER, text TEXT)")
db.executemany("INSERT INTO account VALUES(?, 0)", [(n,) for n in range(100)])
db.commit()
print("ready", flush=True)
n = 0
while True:
    with db:
        n += 1
        db.execute("UPDATE account SET balance = balance - ? WHERE number = ?", (n, n % 100))
        db.execute("UPDATE account SET balance = balance + ? WHERE number = ?", (n, n * 7 % 100))
        db.execute("INSERT INTO moved(amount, text) VALUES(?, ?)", (n, "x" * 200))
"""


def moved(database: Path) -> int:
    """Transfers in a database in which no money was made or lost."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as db, db:
        db.execute("BEGIN")
        assert db.execute("SELECT sum(balance), count(*) FROM account").fetchone() == (0, 100)
        count, last = db.execute("SELECT count(*), coalesce(max(amount), 0) FROM moved").fetchone()
    assert count == last, "transfers are missing in between"
    return int(count)


def test_a_sqlite_database_under_writes_comes_back_with_all_that_was_committed(tmp_path: Path) -> None:
    """The copy of the hook is drilled; restored it opens, its books balance, and no transfer that was there before the
    hook is missing. Each snapshot is a moment of its own."""
    live = tmp_path / "live.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, live], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            options = 'exclude = ["/.new.db*"]\nvalidators = [{kind = "sqlite", pattern = "*.db"}]'
            with hooked(tmp_path, "sqlite-copy", options, LIVE=live) as pair:
                found = []
                for _ in range(3):
                    before = moved(live)
                    pair.sync()
                    found.append((pair.line.last_snapshot, before))
                    wait_until(lambda before=before: moved(live) > before + 20, "the writer writes")
                record = drill(pair, "--full")
                assert record["outcome"] == "proven" and record["validations"] == {"proven": 1}, record
                counts = []
                for number, before in found:
                    target = tmp_path / f"restored-{number}"
                    pair.restore(target, "--at", number)
                    assert [path.name for path in target.iterdir()] == ["app.db"]
                    counts.append(moved(target / "app.db"))
                    assert counts[-1] >= before > 0
                assert counts == sorted(set(counts))
        finally:
            writer.kill()


# a disk image


def qemu_io(image: Path, *commands: str) -> str:
    """Read or write in an image, through its own format."""
    return run("qemu-io", *(word for command in commands for word in ("-c", command)), "-f", "qcow2", image)


def test_an_image_that_is_written_between_passes_sends_little_and_holds_together(tmp_path: Path) -> None:
    """A guest's disk, of which each pass sends what was written; each snapshot is the image of that moment to
    `qemu-img compare`, sound to `qemu-img check`, and has the guest's own bytes."""
    options = 'watch = false\nvalidators = [{kind = "qcow2", pattern = "*.qcow2"}]'
    with hooked(tmp_path, "", options) as pair:
        image = pair.root / "disk.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", image, "4G")
        for at in range(0, 96, 8):  # what does not compress
            noise = tmp_path / "noise"
            noise.write_bytes(os.urandom(4 * 1024**2))
            qemu_io(image, f"write -s {noise} {at}M 4M")
        pair.sync()
        kept: dict[int, Path] = {}
        for number in range(3):
            before = pair.line.sent_bytes
            qemu_io(
                image,
                f"write -P {number + 1} {number * 16 + 1}M 512k",  # over what was there
                f"write -P {number + 1} {number + 1}G 1M",  # where nothing was
                f"discard {number * 8}M 64k",
            )
            pair.sync()
            assert pair.line.sent_bytes - before < 8 * 1024**2, "48 MiB of noise stand on the replica"
            kept[pair.line.last_snapshot] = tmp_path / f"kept-{number}.qcow2"
            shutil.copyfile(image, kept[pair.line.last_snapshot])
        record = drill(pair, "--full")
        assert record["outcome"] == "proven" and record["validations"] == {"proven": 1}, record
        for number, (snapshot, copy) in enumerate(kept.items()):
            target = tmp_path / f"restored-{snapshot}"
            pair.restore(target, "--at", snapshot)
            restored = target / "disk.qcow2"
            run("qemu-img", "check", "-q", restored)
            run("qemu-img", "compare", "-q", restored, copy)
            for done in range(number + 1):
                said = qemu_io(
                    restored, f"read -P {done + 1} {done * 16 + 1}M 512k", f"read -P {done + 1} {done + 1}G 1M"
                )
                assert "verification failed" not in said


# the system's own tree


def left_out(top: Path) -> list[str]:
    """The largest directories of two levels, without which a tree is within TREE_BYTES."""
    sizes: dict[Path, int] = {}
    for line in run("du", "--max-depth=2", "--block-size=1", "--one-file-system", top).splitlines():
        size, _, path = line.partition("\t")
        if len(Path(path).relative_to(top).parts) == 2:
            sizes[Path(path)] = int(size)
    total, gone = sum(sizes.values()), []
    for path in sorted(sizes, key=lambda path: -sizes[path]):
        if total <= TREE_BYTES:
            break
        total -= sizes[path]
        gone.append(f"/{path.relative_to(top)}/")
    return gone


@needs_root
def test_the_system_s_own_tree_comes_back_from_where_it_lies(tmp_path: Path) -> None:
    """Not a copy: /usr itself, as far as a minute goes, and /etc, each a dataset of its own; drilled, restored, and the
    same to rsync in content, owners, modes, times, links, ACLs and attributes."""
    for top in (Path("/etc"), Path("/usr")):
        here = tmp_path / top.name
        here.mkdir()
        excluded = ["/bin/[!s]*", *left_out(top)] if top == Path("/usr") else []  # su and sudo are setuid
        scratch_of(here).mkdir()
        patterns = ", ".join(f'"{pattern}"' for pattern in excluded)
        options = f'exclude = [{patterns}]\ndrill_every = 0\nwatch = false\ndrill_scratch = "{scratch_of(here)}"'
        with running(make_pair(here, top, dataset_options=options)) as pair:
            pair.sync()
            assert not pair.line.unread and pair.line.entries > 300
            record = drill(pair, "--full")
            assert record["outcome"] == "proven" and not record["metadata_not_set"], record
            pair.restore(here / "restored")
        wanted = [f"--exclude={pattern}" for pattern in excluded]
        said = run(
            "rsync",
            "-aHAXn",
            "--delete",
            "--checksum",
            "--itemize-changes",
            *wanted,
            f"{top}/",
            f"{here / 'restored'}/",
        )
        assert said == "", said[:2000]
        shutil.rmtree(here)
