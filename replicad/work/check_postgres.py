"""PostgreSQL: start a restored cluster for itself, have it look at itself, stop it, check its pages.

**Never** lets the copy touch anything but itself: it is started with a configuration made here (no TCP, no archiving,
no preloaded library, no connection to a primary), never with its own; what would lead out of it (a tablespace, a log
on another disk) stops the check before anything is started, since there the *live* cluster has its files.

Runs as the cluster's owner in a bounded process (work/judge.py), because PostgreSQL does not run as root.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from replicad.work.checks import CannotTell, run, say
from replicad.work.pg_pages import look_at_pages

PLACES = "/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin"
"""Where Debian and Red Hat put the programs of each version."""
POLL_S = 0.1
OWN_CONFIGURATION = """\
listen_addresses = ''
unix_socket_directories = '..'
unix_socket_permissions = 0700
hba_file = '{hba}'
ident_file = '{ident}'
archive_mode = off
restore_command = ''
primary_conninfo = ''
shared_preload_libraries = ''
session_preload_libraries = ''
local_preload_libraries = ''
dynamic_shared_memory_type = mmap
max_prepared_transactions = 64
autovacuum = off
logging_collector = off
log_destination = stderr
fsync = off
jit = off
ssl = off
"""
"""Nothing here reaches outside, and nothing waits for a disk: the copy is thrown away. The socket stands beside the
data directory, in which the server works: a longer name would not fit into a socket's address."""
SOCKET_OF_CLIENTS = "/proc/self/cwd"
"""The same place for a client that works beside the data directory; it has to begin with a slash."""
_CONTROL_LINE = re.compile(r"^Data page checksum version:\s*(\d+)", re.MULTILINE)
_AMCHECK_DAMAGED = 2


def check_postgresql(cluster: Path) -> str | None:
    """What is wrong with the cluster in this directory, None when it is well. Raises CannotTell."""
    version = _version(cluster)
    _refuse_ways_out(cluster)
    programs = _programs(version)
    if programs is None:
        return _check_pages(cluster, version)
    problem = _start_and_look(cluster, programs)
    return problem or _check_checksums(cluster, programs)


def _version(cluster: Path) -> str:
    try:
        text = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise CannotTell("holds no PG_VERSION: the pattern has to mean the data directory itself") from None
    if not re.fullmatch(r"\d{2}", text):
        raise CannotTell(f"has version {text[:20]!r}, of which nothing is known here")
    return text


def _refuse_ways_out(cluster: Path) -> None:
    """Raises CannotTell when a link leads out of the copy."""
    inside = cluster.resolve()
    for directory, directories, files in os.walk(cluster):
        for name in (*directories, *files):
            path = Path(directory, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                where = f"{path.relative_to(cluster)} leads to {os.readlink(path)}"
                raise CannotTell(f"{where}, outside of the copy; it is not started, for that may be the live cluster's")


def _programs(version: str) -> Path | None:
    """The directory of this version's programs, None when it is not installed."""
    for place in (Path(place.format(version)) for place in PLACES):
        if (place / "postgres").exists():
            return place
    found = shutil.which("postgres")
    if found and f" {version}." in subprocess.run([found, "--version"], capture_output=True, text=True).stdout:
        return Path(found).parent
    return None


def _check_pages(cluster: Path, version: str) -> str | None:
    """Without the server: its pages, one by one."""
    pages = look_at_pages(cluster)
    if pages.bad:
        return f"{pages.bad} of {pages.checked} pages fail their checksum, the first: {pages.first_bad}"
    if not pages.checked:
        raise CannotTell(f"PostgreSQL {version} is not installed here, and the cluster has no page checksums")
    say(f"{pages.checked} page checksums are right; not started: PostgreSQL {version} is not installed here")
    return None


def _start_and_look(cluster: Path, programs: Path) -> str | None:
    """Start it, let pg_amcheck look, stop it in order."""
    bench = cluster.parent
    _make_harmless(cluster)
    configuration = _write_configuration(bench)
    server = subprocess.Popen(
        [str(programs / "postgres"), "-D", str(cluster), "-c", f"config_file={configuration}"],
        stdin=subprocess.DEVNULL,
    )
    try:
        if problem := _wait_until_ready(server, cluster):
            return problem
        problem = _amcheck(programs)
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)  # a fast shutdown, in order
            server.wait()
    if server.returncode:
        return problem or f"did not stop in order: exit code {server.returncode}"
    return problem


def _make_harmless(cluster: Path) -> None:
    """Take away what belongs to the life of the original."""
    # recovery.conf: up to version 11 it names a primary and programs for its archive; with it newer ones do not start
    for name in ("postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "recovery.conf"):
        (cluster / name).unlink(missing_ok=True)
    (cluster / "postgresql.auto.conf").write_text("")


def _write_configuration(bench: Path) -> Path:
    hba, ident, file = bench / "hba.conf", bench / "ident.conf", bench / "own.conf"
    hba.write_text("local all all trust\n")  # the socket stands in a directory that nobody else may enter
    ident.write_text("")
    file.write_text(OWN_CONFIGURATION.format(hba=hba, ident=ident))
    return file


def _wait_until_ready(server: subprocess.Popen[bytes], cluster: Path) -> str | None:
    """Recovery takes as long as it takes; whoever runs this has a limit."""
    while server.poll() is None:
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            lines = []
        if len(lines) >= 8 and lines[7].strip() == "ready":
            return None
        time.sleep(POLL_S)
    if server.returncode < 0:
        raise CannotTell(f"the server was killed by signal {-server.returncode}")
    return "does not start"


def _amcheck(programs: Path) -> str | None:
    """What pg_amcheck finds, where it is installed. This process works in the directory that the cluster stands in."""
    program = programs / "pg_amcheck"
    if not program.exists():
        say("it starts; pg_amcheck is not installed")
        return None
    code = run([str(program), "--all", "--install-missing", "-h", SOCKET_OF_CLIENTS, "-U", "postgres"])
    if code == _AMCHECK_DAMAGED:
        return "pg_amcheck found damage"
    if code:
        raise CannotTell(f"it starts; pg_amcheck ended with exit code {code}")
    return None


def _check_checksums(cluster: Path, programs: Path) -> str | None:
    """Every page against its checksum, now that recovery has put torn pages right and the server is down."""
    control = subprocess.run(
        [str(programs / "pg_controldata"), str(cluster)], capture_output=True, text=True, check=False
    )
    enabled = _CONTROL_LINE.search(control.stdout)
    if enabled is None:
        raise CannotTell(
            f"it starts; whether it has page checksums pg_controldata does not say: {control.stderr.strip()}"
        )
    if enabled[1] == "0":
        say("the cluster has no page checksums")
        return None
    if not (programs / "pg_checksums").exists():
        return _check_pages(cluster, "")
    code = run([str(programs / "pg_checksums"), "--check", "-D", str(cluster)])
    return "pg_checksums found damage" if code else None
