"""Attributes: what the system takes away without a word is told all the same."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SET = """
import os, sys
from replicad.model.entry import Kind, Meta, Put
from replicad.work.attributes import set_attributes
put = Put(b"x", Kind.FILE, Meta(int(sys.argv[2], 8), 65534, 12345, 1), 0, 1, 65536, 0, b"", 0, (), b"")
print(set_attributes(put, os.open(sys.argv[1], os.O_RDONLY), atime_ns=1))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize(
    ("mode", "groups", "is_kept"), [("2755", "12345", True), ("2755", "1", False), ("755", "1", True)]
)
def test_a_setgid_bit_that_the_kernel_drops_is_named(tmp_path: Path, mode: str, groups: str, is_kept: bool) -> None:
    """Whoever restores without root, and is in no such group, has a chmod that succeeds and leaves the bit off."""
    file = tmp_path / "x"
    file.write_bytes(b"")
    os.chown(file, 65534, 12345)
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o11)
    become = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={groups}"]
    said = subprocess.run([*become, sys.executable, "-c", SET, file, mode], capture_output=True, text=True, check=True)
    assert stat.S_IMODE(file.stat().st_mode) == int(mode, 8) - (0 if is_kept else 0o2000)
    assert said.stdout.strip() == (
        "[]" if is_kept else "['setgid bit: only a member of group 12345, or root, may set it']"
    )
