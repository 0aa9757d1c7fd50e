"""Real databases and images: replicated while they are written, through hooks, then drilled and started."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit_drill import drill, drilled_pair, scratch_of
from replicad.work import check_postgres
from replicad.work.pg_pages import look_at_pages

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="a database server needs a user of its own, whom root becomes"
)


def as_postgres(*words: object, check: bool = True, cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs as its user."""
    argv = [str(PROGRAMS / str(words[0])), *map(str, words[1:])]
    done = subprocess.run(
        argv, capture_output=True, text=True, user="postgres", group="postgres", extra_groups=[], cwd=cwd,
        stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done


class Cluster:
    """A cluster of its own, with page checksums, that pgbench writes to."""

    def __init__(self, directory: Path) -> None:
        postgres = pwd.getpwnam("postgres")
        directory.mkdir(mode=0o700)
        os.chown(directory, postgres.pw_uid, postgres.pw_gid)
        self.data, self.socket, self.directory = directory / "data", directory, directory
        as_postgres("initdb", "-D", self.data, "--data-checksums", "--auth=trust", "-N")

    @contextmanager
    def running(self) -> Iterator[None]:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.socket}' -c fsync=off -c wal_level=replica"
        log = self.directory / "log"
        as_postgres("pg_ctl", "-D", self.data, "-w", "-l", log, "-o", options, "start")
        try:
            yield
        finally:
            as_postgres("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """pgbench writes without a pause."""
        as_postgres("pgbench", "-h", self.socket, "-i", "-s", 1, "-q", "postgres")
        load = subprocess.Popen(
            [str(PROGRAMS / "pgbench"), "-h", str(self.socket), "-c", "2", "-T", "120", "postgres"],
            user="postgres", group="postgres", extra_groups=[], cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
        finally:
            load.kill()
            load.wait()


def a_hook(directory: Path, text: str) -> str:
    """A line of configuration with a hook that runs this shell script."""
    script = directory / "hook.sh"
    script.write_text(f"#!/bin/sh\nset -eu\n{text}\n")
    script.chmod(0o755)
    return f'hook_pre = ["{script}"]'


def test_a_postgresql_cluster_under_load_starts_from_the_restored_copy(tmp_path: Path) -> None:
    """pg_basebackup is the hook; the drill restores what it took, starts it, lets pg_amcheck and pg_checksums look, and
    touches nothing of the live cluster."""
    tmp_path.chmod(0o711)
    cluster, root = Cluster(tmp_path / "cluster"), tmp_path / "www"
    root.mkdir()
    hook = a_hook(
        tmp_path,
        f"rm -rf {root}/new\n"
        f"setpriv --reuid postgres --regid postgres --clear-groups"
        f" {PROGRAMS}/pg_basebackup -h {cluster.socket} -D {cluster.directory}/new -X stream -c fast\n"
        f"rm -rf {root}/pg\nmv {cluster.directory}/new {root}/pg",
    )
    options = f'drill_every = 0\n{hook}\nmax_change = 1.0\nvalidators = [{{kind = "postgresql", pattern = "pg"}}]'
    with cluster.running(), cluster.under_load(), drilled_pair(tmp_path, root, options) as pair:
        record = drill(pair, "--full")
        assert record["outcome"] == "proven" and record["validations"] == {"proven": 1}, record
        assert "Bad checksums: 0" in str(record["validated"]), "pg_checksums has looked"
        assert list(scratch_of(tmp_path).iterdir()) == []
        said = as_postgres("psql", "-h", cluster.socket, "-Atc", "select count(*) > 0 from pgbench_history", "postgres")
        assert said.stdout.strip() == "t", "the live cluster lives"


def test_a_damaged_cluster_fails_its_drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was damaged before it was replicated comes back as it was, and the validator says what is wrong with it;
    without the server's programs, our own look at the pages says the same."""
    tmp_path.chmod(0o711)
    cluster, root = Cluster(tmp_path / "cluster"), tmp_path / "www"
    root.mkdir()
    with cluster.running():
        as_postgres("pgbench", "-h", cluster.socket, "-i", "-s", 1, "-q", "postgres")
        find = "select pg_relation_filepath('pgbench_accounts')"
        relation = as_postgres("psql", "-h", cluster.socket, "-Atc", find, "postgres").stdout.strip()
        as_postgres(
            "pg_basebackup", "-h", cluster.socket, "-D", cluster.directory / "copy", "-X", "stream", "-c", "fast"
        )
    copy = cluster.directory / "copy"
    pages = look_at_pages(copy)
    assert pages.checked > 1000 and not pages.bad and not pages.without
    with monkeypatch.context() as host:
        host.setattr(check_postgres, "PLACES", ())
        host.setenv("PATH", "")
        assert check_postgres.check_postgresql(copy) is None
    with (copy / relation).open("r+b") as file:
        file.seek(8192 * 7 + 4000)
        file.write(b"rot")
    pages = look_at_pages(copy)
    assert pages.bad == 1 and pages.first_bad == f"{relation} page 7"
    with monkeypatch.context() as host:
        host.setattr(check_postgres, "PLACES", ())
        host.setenv("PATH", "")
        assert "fail their checksum" in str(check_postgres.check_postgresql(copy))
    shutil.move(copy, root / "pg")
    options = 'drill_every = 0\nvalidators = [{kind = "postgresql", pattern = "pg"}]'
    with drilled_pair(tmp_path, root, options) as pair:
        record = drill(pair, "--full", code=1)
        assert record["outcome"] == "failed" and record["compared_files"] == record["files"], record
        assert "pg: postgresql: pg_" in str(record["reasons"])


def test_a_cluster_with_a_tablespace_elsewhere_is_never_started(tmp_path: Path) -> None:
    """A link out of the copy leads to the live cluster's files, so nothing is started: inconclusive, and why."""
    tmp_path.chmod(0o711)
    cluster, root = Cluster(tmp_path / "cluster"), tmp_path / "www"
    root.mkdir()
    (cluster.data / "pg_tblspc" / "16500").symlink_to(cluster.directory)
    shutil.move(cluster.data, root / "pg")
    before = sorted(path.name for path in cluster.directory.iterdir())
    options = 'drill_every = 0\nvalidators = [{kind = "postgresql", pattern = "pg"}]'
    with drilled_pair(tmp_path, root, options) as pair:
        record = drill(pair, "--full", code=1)
        assert record["outcome"] == "inconclusive" and "outside of the copy" in str(record["reasons"]), record
    assert sorted(path.name for path in cluster.directory.iterdir()) == before


WRITER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30)
db.execute("PRAGMA journal_mode = wal")
db.execute("CREATE TABLE IF NOT EXISTS t(a, b)")
print("ready", flush=True)
while True:
    with db:
        db.executemany("INSERT INTO t VALUES(?, ?)", [(n, "x" * 100) for n in range(50)])
    time.sleep(0.01)
"""


def test_a_sqlite_database_under_writes_is_sound_when_it_comes_back(tmp_path: Path) -> None:
    """The hook takes a backup of a database that is being written; the drill checks it. A damaged one fails."""
    root, live = tmp_path / "www", tmp_path / "live.db"
    root.mkdir()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, live], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    hook = a_hook(tmp_path, f'sqlite3 -cmd ".timeout 30000" {live} ".backup {root}/app.db"')
    options = f'drill_every = 0\n{hook}\nvalidators = [{{kind = "sqlite", pattern = "*.db"}}]'
    try:
        with drilled_pair(tmp_path, root, options) as pair:
            record = drill(pair, "--full")
            assert record["outcome"] == "proven" and record["validations"] == {"proven": 1}, record
            assert sqlite3.connect(root / "app.db").execute("select count(*) from t").fetchone()[0] > 0
            (root / "bad.db").write_bytes(_damaged(root / "app.db"))
            pair.sync()
            record = drill(pair, "--path", "bad.db", code=1)
            assert record["outcome"] == "failed" and record["compared_files"] == 1, record
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def _damaged(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[4096 + 8 : 4096 + 200] = bytes(192)
    return bytes(data)


def test_a_qcow2_image_is_checked(tmp_path: Path) -> None:
    """A sound image passes, one whose tables are damaged fails, and what is no image at all fails too."""
    root = tmp_path / "www"
    root.mkdir()
    for name in ("good.qcow2", "bad.qcow2"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", root / name, "64M"], check=True)
        subprocess.run(["qemu-io", "-c", "write -P 7 0 8M", root / name], check=True, stdout=subprocess.DEVNULL)
    with (root / "bad.qcow2").open("r+b") as file:
        file.seek(3 * 65536)  # the table that says where everything is
        file.write(b"\x80" + bytes(5) + b"\x77\x00")
    (root / "none.qcow2").write_bytes(b"not an image")
    options = 'drill_every = 0\nvalidators = [{kind = "qcow2", pattern = "*.qcow2"}]'
    with drilled_pair(tmp_path, root, options) as pair:
        record = drill(pair, "--full", code=1)
        said = {line["path"]: line["outcome"] for line in record["validated"]}  # type: ignore[attr-defined]
        assert said == {"good.qcow2": "proven", "bad.qcow2": "failed", "none.qcow2": "failed"}, json.dumps(record)
