"""Validators: what each check says of sound and damaged files, and the bounds that each runs in."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from replicad.config.values import ValidatorConfig
from replicad.db.drills import Subject
from replicad.model.drill import Outcome, Validated
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work import check_postgres, checks
from replicad.work.checks import CHECKS, CannotTell
from replicad.work.validators import Bench, Validators

MARK_S = 200_000 + os.getpid()
"""Tells the sleepers of this process from others."""


def archives(directory: Path) -> dict[str, Path]:
    """A sound file of each kind."""
    content = directory / "content"
    content.write_bytes(os.urandom(300_000) + bytes(100_000))
    found = {kind: directory / f"good.{kind}" for kind in ("gzip", "zip", "tar", "zstd", "sqlite")}
    found["gzip"].write_bytes(gzip.compress(content.read_bytes()))
    with zipfile.ZipFile(found["zip"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(content, "content")
    with tarfile.open(found["tar"], "w:gz") as tar:
        for name in ("a", "b", "c"):
            tar.add(content, name)
    subprocess.run(["zstd", "-q", content, "-o", found["zstd"]], check=True)
    script = "CREATE TABLE t(a); WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x < 5000) INSERT INTO t SELECT x FROM n; CREATE INDEX i ON t(a);"  # noqa: E501
    subprocess.run(["sqlite3", found["sqlite"], script], check=True)
    return found


@pytest.mark.parametrize("kind", ["gzip", "zip", "tar", "zstd", "sqlite"])
def test_each_check_passes_what_is_sound_and_fails_what_is_not(kind: str, tmp_path: Path) -> None:
    """A cut at any place and flipped bytes are found; an empty file and noise are no such archive."""
    good = archives(tmp_path)[kind]
    assert CHECKS[kind](good) is None
    data, bad = good.read_bytes(), tmp_path / "bad"
    for end in (len(data) // 3, len(data) - 700, len(data) - 5):
        bad.write_bytes(data[:end])
        assert CHECKS[kind](bad), f"cut at {end} of {len(data)}"
    spoilt = bytearray(data)
    spoilt[len(data) // 2 : len(data) // 2 + 3000] = os.urandom(3000)
    bad.write_bytes(spoilt)
    assert CHECKS[kind](bad)
    bad.write_bytes(os.urandom(5000))
    assert CHECKS[kind](bad)
    if kind != "sqlite":  # to SQLite, nothing is an empty database
        bad.write_bytes(b"")
        assert CHECKS[kind](bad)


def test_a_tar_archive_that_turns_into_garbage_fails(tmp_path: Path) -> None:
    """tarfile takes a broken header for the end; the check does not."""
    path = tmp_path / "a.tar"
    (tmp_path / "f").write_bytes(bytes(1024))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "f", "one")
        tar.add(tmp_path / "f", "two")
    data = bytearray(path.read_bytes())
    data[1536:1600] = b"\xff" * 64
    path.write_bytes(data)
    problem = CHECKS["tar"](path)
    assert problem and "byte 1536" in problem


def test_a_program_that_is_missing_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without qemu-img nothing is known of an image."""
    image = tmp_path / "a.qcow2"
    image.write_bytes(checks.QCOW2_MAGIC + bytes(1000))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotTell, match="no program qemu-img"):
        CHECKS["qcow2"](image)
    image.write_bytes(b"QFI?")
    assert CHECKS["qcow2"](image) == "is no qcow2 image"


async def look(directory: Path, *command: str, timeout_s: float = 30.0, name: str = "subject.txt") -> Validated:
    """Have a command look at a small file, as a drill has it done."""
    directory.chmod(0o711)
    bench = Bench(directory / "tree", directory / "bench")
    bench.tree.mkdir(exist_ok=True)
    bench.directory.mkdir(exist_ok=True)
    (bench.tree / name).write_text("content")
    validators = Validators([ValidatorConfig("command", "*", command, timeout_s)], Clock(), Disk())
    said = await validators.validate(Subject(os.fsencode(name), 0, False), bench)
    assert (bench.tree / name).exists(), "it is put back"
    return said


def sleepers() -> list[str]:
    """Processes of this test that sleep."""
    return subprocess.run(["pgrep", "-fx", f"sleep {MARK_S}"], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    ("script", "outcome", "text"),
    [
        ('test "$(cat "$1")" = content', Outcome.PROVEN, ""),
        ("echo looks bad; exit 3", Outcome.FAILED, "ended with exit code 3; its last words: looks bad"),
        ("exit 75", Outcome.INCONCLUSIVE, "exit code 75"),
        ("kill -9 $$", Outcome.INCONCLUSIVE, "was killed by signal 9"),
        ("exec /nowhere/program", Outcome.INCONCLUSIVE, "not found"),
    ],
)
async def test_a_command_speaks_by_its_exit_code(script: str, outcome: Outcome, text: str, tmp_path: Path) -> None:
    """0 passes, 75 and a death of its own are no answer, everything else is damage."""
    said = await look(tmp_path, "/bin/sh", "-c", script, "look")
    assert said.outcome is outcome and text in said.text, said


async def test_a_command_that_is_not_there_is_inconclusive(tmp_path: Path) -> None:
    """That a program is missing says nothing of the data."""
    said = await look(tmp_path, "/nowhere/look")
    assert said.outcome is Outcome.INCONCLUSIVE and "No such file" in said.text


async def test_a_validator_that_hangs_and_forks_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Also what it detached into sessions of its own."""
    script = f"for n in 1 2 3; do setsid -f sleep {MARK_S}; done; sleep {MARK_S}"
    began_s = time.monotonic()
    said = await look(tmp_path, "/bin/sh", "-c", script, "look", timeout_s=2.0)
    assert said.outcome is Outcome.INCONCLUSIVE and "took longer than 2 s" in said.text
    assert sleepers() == [] and time.monotonic() - began_s < 25


async def test_what_a_validator_leaves_running_is_ended_too(tmp_path: Path) -> None:
    """It passed, and its background process does not stay."""
    said = await look(tmp_path, "/bin/sh", "-c", f"setsid -f sleep {MARK_S}; exit 0", "look")
    assert said.outcome is Outcome.PROVEN and sleepers() == []


async def test_a_validator_that_floods_its_output_is_ended(tmp_path: Path) -> None:
    """No more of it is kept than its last words."""
    said = await look(tmp_path, "/bin/sh", "-c", "yes flood", "look")
    assert said.outcome is Outcome.INCONCLUSIVE and "printed more than 64 MiB" in said.text and len(said.text) < 1000


async def test_a_validator_runs_without_rights(tmp_path: Path) -> None:
    """As nobody where root owns the file, with no capability and no group, alone in a directory with its subject."""
    if os.geteuid():
        pytest.skip("only root has rights to give up")
    script = 'id -u; id -G; grep -E "CapEff|CapPrm|NoNewPrivs" /proc/self/status; ls -A; echo "$HOME"'
    said = await look(tmp_path, "/bin/sh", "-c", script, "look")
    words = said.text.split()
    assert words[:2] == ["65534", "65534"]
    assert words[2:8] == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
    assert words[8:] == ["subject.txt", str(tmp_path / "bench" / "1")]
    assert said.outcome is Outcome.PROVEN


async def test_a_directory_that_nobody_may_enter_is_said(tmp_path: Path) -> None:
    """The operator is told what to change; the drill is not failed."""
    if os.geteuid():
        pytest.skip("only root becomes somebody else")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "deep").mkdir()
    tmp_path.chmod(0o700)
    said = await look(inner / "deep", "/bin/true")
    assert said.outcome is Outcome.INCONCLUSIVE and "chmod o+x" in said.text


async def test_a_subject_that_did_not_come_back_fails(tmp_path: Path) -> None:
    """There is nothing to look at."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "bench").mkdir()
    validators = Validators([ValidatorConfig("gzip", "*")], Clock(), Disk())
    said = await validators.validate(Subject(b"a/b.gz", 0, False), Bench(tmp_path / "tree", tmp_path / "bench"))
    assert said.outcome is Outcome.FAILED and said.path == "a/b.gz"


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff\xfe.gz"), "-rf", "a b\nc"])
async def test_names_of_any_bytes_are_looked_at(name: str, tmp_path: Path) -> None:
    """A name that is no UTF-8, or looks like an option, hinders nobody."""
    said = await look(tmp_path, "/bin/sh", "-c", 'test "$(cat "$1")" = content', "look", name=name)
    assert said.outcome is Outcome.PROVEN, said


def test_a_restored_standby_is_given_no_way_to_its_primary(tmp_path: Path) -> None:
    """Up to version 11 recovery.conf names it, and programs that tidy the archive; with it newer ones do not start."""
    for name in ("recovery.conf", "standby.signal", "recovery.signal", "postmaster.pid", "PG_VERSION"):
        (tmp_path / name).write_text("archive_cleanup_command = 'rm /archive/%r'")
    check_postgres._make_harmless(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["PG_VERSION", "postgresql.auto.conf"]


@pytest.mark.parametrize(("said", "code"), [("", 1), ("Data page checksum version:           0", 0)])
def test_page_checksums_that_nobody_can_tell_of_are_no_proof(said: str, code: int, tmp_path: Path) -> None:
    """A pg_controldata that fails says nothing of a cluster; one that says that there are none is believed."""
    program = tmp_path / "pg_controldata"
    program.write_text(f"#!/bin/sh\necho '{said}'\nexit {code}\n")
    program.chmod(0o755)
    if code:
        with pytest.raises(CannotTell, match="pg_controldata"):
            check_postgres._check_checksums(tmp_path, tmp_path)
    else:
        assert check_postgres._check_checksums(tmp_path, tmp_path) is None


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damage_that_bzip2_finds_is_a_failure(kind: str, tmp_path: Path) -> None:
    """Wherever it lies: that an archive is damaged is known, and is no doubt."""
    content, path = tmp_path / "content", tmp_path / "archive"
    content.write_bytes(os.urandom(200_000))
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
            archive.write(content, "content")
    else:
        with tarfile.open(path, "w:bz2") as tar:
            tar.add(content, "content")
    assert CHECKS[kind](path) is None
    good = path.read_bytes()
    for at in range(5000, len(good) - 5000, 20_000):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert CHECKS[kind](path), at


def test_what_the_system_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be read says nothing of what was restored to it."""

    def refused(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = archives(tmp_path)["zip"]
    monkeypatch.setattr(zipfile.ZipFile, "testzip", refused)
    with pytest.raises(OSError, match="Input/output"):
        CHECKS["zip"](path)


async def test_damage_that_takes_many_words_is_a_failure(tmp_path: Path) -> None:
    """A member with the longest name that an archive can have is damaged: that is no doubt, however long it takes."""
    path = tmp_path / "tree" / "a.zip"
    path.parent.mkdir(mode=0o755)
    (tmp_path / "bench").mkdir()
    tmp_path.chmod(0o711)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr('"' * 60_000, b"content" * 100)
    data = bytearray(path.read_bytes())
    data[data.index(b"contentcontent")] ^= 1
    path.write_bytes(data)
    validators = Validators([ValidatorConfig("zip", "*.zip")], Clock(), Disk())
    said = await validators.validate(Subject(b"a.zip", 0, False), Bench(path.parent, tmp_path / "bench"))
    assert said.outcome is Outcome.FAILED and len(said.text) < 5000, said


def test_a_damaged_member_without_a_name_is_damage(tmp_path: Path) -> None:
    """An archive may have one, and it is named all the same."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"content" * 100)
    assert CHECKS["zip"](path) is None
    data = bytearray(path.read_bytes())
    data[data.index(b"contentcontent")] ^= 1
    path.write_bytes(data)
    assert CHECKS["zip"](path) == "member '' is damaged"


@pytest.mark.parametrize("kind", ["gzip", "zip", "tar", "tar bz2", "tar xz", "zstd", "sqlite"])
async def test_each_check_does_its_work_without_rights(kind: str, tmp_path: Path) -> None:
    """In the process that judges, as another user, who may have no way to the interpreter's own files: what is sound
    passes, what is cut fails."""
    name, bench = kind.split()[0], Bench(tmp_path / "tree", tmp_path / "bench")
    tmp_path.chmod(0o711)
    for directory in (bench.tree, bench.directory):
        directory.mkdir(mode=0o755)
    path = bench.tree / "subject"
    if " " in kind:
        (tmp_path / "content").write_bytes(os.urandom(100_000))
        with tarfile.open(path, f"w:{kind.split()[1]}") as tar:
            tar.add(tmp_path / "content", "content")
    else:
        path.write_bytes(archives(tmp_path)[name].read_bytes())
    validators, subject = Validators([ValidatorConfig(name, "*")], Clock(), Disk()), Subject(b"subject", 0, False)
    said = await validators.validate(subject, bench)
    assert (said.outcome, said.text) == (Outcome.PROVEN, "")
    path.write_bytes(path.read_bytes()[:-700])
    said = await validators.validate(subject, bench)
    assert said.outcome is Outcome.FAILED, said
