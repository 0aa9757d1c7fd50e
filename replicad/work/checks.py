"""Checks: the validators that are built in, but for PostgreSQL (work/check_postgres.py).

Each reads one restored file as whoever it runs as, streaming, and says what it found: None when all is well, or what is
wrong in words. **Never** says that something is wrong when it could not find out: that is a CannotTell.

The files are anybody's: these run in a bounded process without rights (work/judge.py).
"""

from __future__ import annotations

import codecs
import errno
import gzip
import lzma
import os
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from replicad.db.database import foreign_problems
from replicad.model.errors import ReplicadError
from replicad.system.compress import zstd_problem

READ_BYTES = 1024 * 1024
QCOW2_MAGIC = b"QFI\xfb"
TAR_BLOCK_BYTES = 512
codecs.lookup("cp437")
"""Names in zip archives are in it. Loaded before rights are given up: the interpreter's own files may be out of reach
for whoever owns what is looked at, and every archive would be a doubt."""
_BROKEN_STREAM = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, tarfile.ReadError)
_QEMU_DAMAGED, _QEMU_LEAKS = 2, 3


class CannotTell(Exception):
    """It could not be found out, and why."""


def check_sqlite(path: Path) -> str | None:
    """`PRAGMA integrity_check`; a hot journal or a write-ahead log beside the file is taken into account."""
    try:
        problems = foreign_problems(path)
    except ReplicadError as error:
        raise CannotTell(error.what) from error
    return "; ".join(problems) or None


def check_gzip(path: Path) -> str | None:
    """Decompress everything; sizes and checksums are in the file."""
    if not path.stat().st_size:
        return "is empty"
    try:
        with gzip.open(path) as stream:
            while stream.read(READ_BYTES):
                pass
    except _BROKEN_STREAM as error:
        return str(error) or type(error).__name__
    except OSError as error:
        return _broken(error)
    return None


def check_zip(path: Path) -> str | None:
    """Read every member against its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except zipfile.BadZipFile as error:
        return str(error)
    except _BROKEN_STREAM as error:
        return str(error) or type(error).__name__
    except OSError as error:
        return _broken(error)
    except (RuntimeError, NotImplementedError) as error:
        raise CannotTell(f"cannot be read: {error}") from error  # encrypted, or compressed in an unknown way
    return None if bad is None else f"member {bad!r} is damaged"


def check_tar(path: Path) -> str | None:
    """Read every member, up to the end mark; compressed archives too."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # not in the stubs; else it keeps them all
                if member.isreg() and (content := archive.extractfile(member)):
                    while content.read(READ_BYTES):
                        pass
            assert archive.fileobj is not None
            # A header that is garbage ends the walk like the end mark does, so that mark is looked at.
            archive.fileobj.seek(archive.offset)
            mark = archive.fileobj.read(TAR_BLOCK_BYTES)
            while archive.fileobj.read(READ_BYTES):
                pass
    except _BROKEN_STREAM as error:
        return str(error) or type(error).__name__
    except OSError as error:
        return _broken(error)
    return None if mark == bytes(TAR_BLOCK_BYTES) else f"is cut off or damaged at byte {archive.offset}"


def _broken(error: OSError) -> str:
    """What is wrong with an archive: bzip2 says so with an OSError without a number, and a place that a damaged
    directory names cannot be sought (EINVAL). What the system itself refuses is raised again."""
    if error.errno not in (None, errno.EINVAL):
        raise error
    return str(error) or type(error).__name__


def check_zstd(path: Path) -> str | None:
    """Decompress everything; checksums are verified where the file has them."""
    with path.open("rb") as file:
        return zstd_problem(file)


def check_qcow2(path: Path) -> str | None:
    """`qemu-img check`; leaked clusters waste room and are no damage."""
    with path.open("rb") as file:
        if file.read(len(QCOW2_MAGIC)) != QCOW2_MAGIC:
            return "is no qcow2 image"
    code = run(["qemu-img", "check", "-f", "qcow2", str(path)])
    if code == _QEMU_DAMAGED:
        return "qemu-img check found damage"
    if code not in (0, _QEMU_LEAKS):
        raise CannotTell(f"qemu-img check ended with exit code {code}")
    return None


CHECKS: dict[str, Callable[[Path], str | None]] = {
    "sqlite": check_sqlite,
    "gzip": check_gzip,
    "zip": check_zip,
    "tar": check_tar,
    "zstd": check_zstd,
    "qcow2": check_qcow2,
}
"""By kind, as `validators` names them."""


def say(text: str) -> None:
    """A remark for whoever reads the judgement."""
    os.write(2, f"{text}\n".encode())


def run(argv: list[str]) -> int:
    """Run a program; its output goes where this process's goes. Raises CannotTell when there is no such program."""
    if shutil.which(argv[0]) is None:
        raise CannotTell(f"there is no program {argv[0]} here")
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode
    if code < 0:
        raise CannotTell(f"{os.path.basename(argv[0])} was killed by signal {-code}")
    return code
