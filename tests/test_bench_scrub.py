"""The rivals of the scrub benchmarks do what the table says they do: they read everything, and notice damage."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from bench_scrub import Borg, Outcome, Restic, Spent, dd, fio, missing, xxhsum
from kit_rot import MIB


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four files that do not compress."""
    root, source = tmp_path / "tree", random.Random(1)
    (root / "sub").mkdir(parents=True)
    for number in range(4):
        (root / "sub" / f"{number}").write_bytes(source.randbytes(MIB))
    return root


def test_all_rivals_are_there() -> None:
    """tests/install-packages brings them."""
    assert missing() == []


def test_dd_and_xxhsum_read_everything(tree: Path) -> None:
    """Both take time and CPU, and xxhsum gives a line for each file."""
    for seconds, cpu_s in (dd(sorted((tree / "sub").iterdir())), xxhsum(tree)):
        assert seconds > 0 and round(cpu_s, 3) >= 0


def damage(repository: Path) -> None:
    """Flip a bit in the middle of a repository's largest file."""
    victim = max((path for path in repository.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.chmod(0o600)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


@pytest.mark.parametrize(("rival", "place"), [(Restic, "restic/data"), (Borg, "borg/data")])
def test_restic_and_borg_verify_the_data(tree: Path, tmp_path: Path, rival: type[Restic | Borg], place: str) -> None:
    """A sound repository passes, one with a flipped bit does not: the command measured is the one that verifies."""
    made = rival(tmp_path, tree)
    assert made.check()[0] > 0
    damage(tmp_path / place)
    with pytest.raises(AssertionError):
        made.check()


def test_fio_gives_a_rate(tmp_path: Path) -> None:
    """Random reads a second of a file that it lays out itself."""
    assert fio(tmp_path / "job", 16, 0.5) > 10
    assert (tmp_path / "job").stat().st_size == 16 * MIB


def test_a_child_s_cpu_is_counted() -> None:
    """CPU of the program that was run, not of the test."""
    assert Spent(sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass").cpu_s > 0.4


def test_an_outcome_adds_up() -> None:
    """Ratios above 1 mean that replicad is faster; the loss of the foreground job is what is missing of its rate."""
    outcome = Outcome("some case", 2 * 1024 * MIB)
    for mine, theirs in ((1.0, 2.0), (1.0, 3.0), (2.0, 2.0)):
        outcome.add("replicad", mine, 0.5)
        outcome.add("dd", theirs, 0.1)
    outcome.rates = {"alone": [100.0, 100.0], "beside a scrub": [95.0, 97.0]}
    assert outcome.ratio("dd") == 2.0 and outcome.kept == pytest.approx(0.96)
    assert "0.25 CPU s per GiB" in str(outcome) and "loss of the foreground job: 4.0 %" in str(outcome)
