"""`replicad demo`: it plays to its end on real parts and leaves nothing behind, or a running pair when asked to."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kit_pair import COMMAND, replicad, wait_until
from replicad.cli import demo, demo_rot


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree to show."""
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "big").write_bytes(os.urandom(3_000_000))
    for number in range(50):
        (root / "sub" / f"{number}").write_text(f"file {number}" * 100)
    (root / "link").symlink_to("sub")
    return root


@pytest.fixture(autouse=True)
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo puts its things."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


def test_the_demo_proves_a_restore_and_cleans_up(tree: Path, scene: Path) -> None:
    """All ten acts are played, everything restored is equal, rot is found and repaired, and nothing is left."""
    before = _in_memory()
    said = replicad("demo", tree).stdout
    assert "all equal" in said
    assert len(re.findall(r"^\d+\. ", said, re.MULTILINE)) == 10
    assert "byte for byte: repaired" in said and said.count("replicad divergence show") == 2
    assert re.search(r"metrics of ams1: http://127\.0\.0\.1:\d+/metrics", said)
    assert list(scene.iterdir()) == [] and _in_memory() == before
    assert (tree / "sub").is_dir(), "the tree itself is only read"


def test_a_demo_that_is_ended_leaves_nothing(tree: Path, scene: Path) -> None:
    """After SIGTERM, as `timeout` sends it, both daemons end and all that was made is removed."""
    before = _in_memory()
    running = subprocess.Popen([*COMMAND, "demo", str(tree)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    said = ""
    while "3. First copy" not in said:
        line = running.stdout.readline()
        assert line, said
        said += line
    assert len(_daemons(scene)) == 2
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 143
    assert _daemons(scene) == [] and list(scene.iterdir()) == [] and _in_memory() == before


def test_the_demo_keeps_the_pair_running_when_asked(tree: Path, scene: Path) -> None:
    """--keep leaves both daemons, and says how to use and how to end them."""
    said = replicad("demo", tree, "--keep").stdout
    pids = [int(word) for word in re.findall(r"kill ([\d ]+) &&", said)[0].split()]
    try:
        (scene_directory,) = scene.iterdir()
        status = replicad("status", "--config", scene_directory / "ams1.toml")
        assert "www -> fra1: idle" in status.stdout
        assert "snapshot" in replicad("snapshots", "www", "--config", scene_directory / "ams1.toml").stdout.lower()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not any(_alive(pid) for pid in pids), "both daemons end")
    for place in re.findall(r"rm -r (.*)", said)[0].split():
        shutil.rmtree(place)


def test_the_demo_wants_a_directory(tmp_path: Path) -> None:
    """Anything else is one clear error and exit code 2."""
    done = replicad("demo", tmp_path / "nothing", code=2)
    assert "is no directory" in done.stderr
    assert "Traceback" not in done.stderr


def _in_memory() -> set[Path]:
    """What demos have put into memory."""
    return set(demo_rot.MEMORY.glob("replicad-demo-*"))


def _daemons(scene: Path) -> list[str]:
    """Command lines of the processes of demos there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [words for words in found if f" run --config {scene}" in words]


def _alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_library_is_shown_without_what_is_installed_into_it(tree: Path) -> None:
    """There may be gigabytes of that; they count neither for the room that is needed nor as files."""
    (tree / "site-packages").mkdir()
    (tree / "site-packages" / "huge").write_bytes(bytes(1_000_000))
    files, size = demo._measure(tree)
    assert demo._measure(tree, demo.INSTALLED) == (files - 1, size - 1_000_000) and files == 52
    assert demo._not_copied(demo.INSTALLED, str(tree), os.listdir(tree)) == {"site-packages"}
