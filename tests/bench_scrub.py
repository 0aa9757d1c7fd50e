"""Benchmarks of scrubs: replicad against dd, xxhsum, restic and borg on the same bytes, and beside a foreground job.

    python tests/bench_scrub.py [CASE]... [--rounds N] [--scale F] [--json FILE]      (make bench ARGS="scrub replica")

Each case lets all programs read the same data N times in turn with cold caches. replicad does it as a person would ask
for it, `replicad scrub start --side S --wait` against a running pair, with a duty of 1; its CPU is what the daemon
used. The ratio says how many times as fast replicad is. `beside_…` run a fio random-read job alternately with a scrub
held to 5 % of the time and with that scrub paused, and say what the job loses.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from bench import GIB, MIB, Timed, big_file, drop_caches, small_files
from kit_faults import configure
from kit_pair import Node, Pair, make_pair, replicad, running

DUTY = 0.05
"""Share of the time that a polite scrub may read."""
FIO_S = 15
"""Length of one run of the foreground job."""
FIO_MIB = 1024
DATASET = 'watch = false\nrpo = "7d"\nwalk_every = "7d"\nmax_change = 1.0'


@dataclass
class Outcome:
    """What one case gave: seconds and CPU seconds of each program, round by round."""

    case: str
    bytes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Operations a second of the foreground job, without and with a scrub."""
    notes: dict[str, float] = field(default_factory=dict)

    def add(self, program: str, seconds: float, cpu_s: float) -> None:
        """One run."""
        self.seconds.setdefault(program, []).append(seconds)
        self.cpu_s.setdefault(program, []).append(cpu_s)

    def ratio(self, rival: str) -> float:
        """How many times as fast replicad was: median over the pairs."""
        pairs = zip(self.seconds["replicad"], self.seconds[rival], strict=True)
        return statistics.median(theirs / mine for mine, theirs in pairs)

    @property
    def kept(self) -> float:
        """Share of the foreground job's operations that is left beside a scrub: median over the pairs."""
        pairs = zip(self.rates["alone"], self.rates["beside a scrub"], strict=True)
        return statistics.median(beside / alone for alone, beside in pairs)

    def __str__(self) -> str:
        lines = [f"{self.case} ({self.bytes / GIB:.2f} GiB)"]
        for program, seconds in self.seconds.items():
            rate = self.bytes / MIB / statistics.median(seconds)
            cpu = statistics.median(self.cpu_s[program]) / max(self.bytes, 1) * GIB
            ratio = "" if program == "replicad" else f"; replicad is {self.ratio(program):.2f} x as fast"
            spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
            lines.append(f"    {program}: {spread}, {rate:.0f} MiB/s, {cpu:.2f} CPU s per GiB{ratio}")
        for name, rates in self.rates.items():
            lines.append(f"    fio {name}: {statistics.median(rates):.0f} reads/s ({min(rates):.0f}-{max(rates):.0f})")
        if self.rates:
            lines.append(f"    loss of the foreground job: {100 * (1 - self.kept):.1f} %")
        lines += [f"    {name}: {value:.1f}" for name, value in self.notes.items()]
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ rivals


class Spent:
    """Seconds and CPU seconds of a child process and its children."""

    def __init__(self, *words: object, stdin: bytes | None = None, env: dict[str, str] | None = None) -> None:
        before = os.times()
        timed = Timed(lambda: _run(*words, stdin=stdin, env=env))
        after = os.times()
        self.seconds, self.output = timed.seconds, str(timed.value)
        self.cpu_s = after.children_user + after.children_system - before.children_user - before.children_system


def dd(files: list[Path]) -> tuple[float, float]:
    """Read files past the page cache, one after the other."""
    runs = [Spent("dd", f"if={path}", "of=/dev/null", "bs=1M", "iflag=direct") for path in files]
    return sum(run.seconds for run in runs), sum(run.cpu_s for run in runs)


def xxhsum(root: Path) -> tuple[float, float]:
    """Checksum every file of a tree, in the order of the directories."""
    run = Spent("find", root, "-type", "f", "-exec", "xxhsum", "-H2", "{}", "+")
    assert run.output.count("\n") == sum(len(files) for _, _, files in os.walk(root))
    return run.seconds, run.cpu_s


class Restic:
    """A restic repository of a tree."""

    def __init__(self, directory: Path, tree: Path) -> None:
        self._env = os.environ | {
            "RESTIC_REPOSITORY": str(directory / "restic"),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
        }
        Spent("restic", "init", "--quiet", env=self._env)
        Spent("restic", "backup", "--quiet", tree, env=self._env)

    def check(self) -> tuple[float, float]:
        """Read and verify every byte of it."""
        run = Spent("restic", "check", "--read-data", env=self._env)
        assert "no errors were found" in run.output, run.output
        return run.seconds, run.cpu_s


class Borg:
    """A borg repository of a tree."""

    def __init__(self, directory: Path, tree: Path) -> None:
        self._env = os.environ | {"BORG_REPO": str(directory / "borg"), "BORG_BASE_DIR": str(directory / "borg-home")}
        Spent("borg", "init", "--encryption=none", env=self._env)
        Spent("borg", "create", "::tree", tree, env=self._env)

    def check(self) -> tuple[float, float]:
        """Read and verify every byte of it."""
        run = Spent("borg", "check", "--verify-data", env=self._env)
        return run.seconds, run.cpu_s


def fio(file: Path, size_mib: int = FIO_MIB, seconds: float = FIO_S) -> float:
    """Random reads of 4 KiB past the page cache; operations a second."""
    words = ["--name=foreground", f"--filename={file}", f"--size={size_mib}M", "--rw=randread", "--bs=4k", "--direct=1"]
    more = ["--ioengine=psync", f"--runtime={seconds}", "--time_based", "--output-format=json"]
    output = _run("fio", *words, *more)
    (job,) = json.loads(output[output.index("{") :])["jobs"]
    return float(job["read"]["iops"])


# ------------------------------------------------------------------------------------------------------- replicad


def daemon_cpu_s(node: Node) -> float:
    """CPU seconds that a daemon and its child processes, those that ended too, have used since its start."""
    assert node.process is not None
    daemon = psutil.Process(node.process.pid)
    own = daemon.cpu_times()
    children = [child.cpu_times() for child in daemon.children()]
    return sum(own[:4]) + sum(sum(times[:2]) for times in children)


def scrub(node: Node, side: str) -> tuple[float, float]:
    """A scrub of everything, waited for: seconds and the daemon's CPU seconds."""
    before = daemon_cpu_s(node)
    words = ("scrub", "start", "www", "--side", side, "--wait", "--config", node.config)
    timed = Timed(lambda: replicad(*words, timeout=3600))
    return timed.seconds, daemon_cpu_s(node) - before


@contextmanager
def a_pair(directory: Path, make: Callable[[Path], None], duty: float = 1.0) -> Iterator[Pair]:
    """A running pair with a replicated tree in it."""
    root = directory / "www"
    root.mkdir(parents=True)
    make(root)
    pair = make_pair(directory / "pair", root, dataset_options=DATASET)
    configure(pair.primary, "dataset", scrub_duty=duty)
    configure(pair.replica, "listen", scrub_duty=duty)
    with running(pair):
        pair.sync()
        yield pair


def segments(pair: Pair) -> list[Path]:
    """The files of the dataset's store."""
    return sorted((pair.store / "ams1" / "www" / "segments").iterdir())


class Scrubs:
    """All cases; the docstring's first line is what the table says."""

    def __init__(self, directory: Path, rounds: int, scale: float) -> None:
        self.directory, self.rounds, self.scale = directory, rounds, scale

    def replica(self) -> Outcome:
        """replica, segments of 2 GiB that do not compress: scrub, dd, restic and borg"""
        outcome = self._outcome("replica")
        with a_pair(self.directory, self._big) as pair:
            files = segments(pair)
            outcome.bytes = sum(path.stat().st_size for path in files)
            programs = self._repositories(pair.root) | {"dd iflag=direct bs=1M": lambda: dd(files)}
            self._in_turn(outcome, {"replicad": lambda: scrub(pair.replica, "replica"), **programs})
        return outcome

    def replica_small(self) -> Outcome:
        """replica, store of 100,000 small files: scrub, dd, restic and borg"""
        outcome = self._outcome("replica_small")
        with a_pair(self.directory, self._small) as pair:
            files = segments(pair)
            outcome.bytes = sum(path.stat().st_size for path in files)
            programs = self._repositories(pair.root) | {"dd iflag=direct bs=1M": lambda: dd(files)}
            self._in_turn(outcome, {"replicad": lambda: scrub(pair.replica, "replica"), **programs})
        return outcome

    def primary_big(self) -> Outcome:
        """primary, one file of 2 GiB: scrub and dd"""
        outcome = self._outcome("primary_big")
        with a_pair(self.directory, self._big) as pair:
            outcome.bytes = (pair.root / "big").stat().st_size
            rival = {"dd iflag=direct bs=1M": lambda: dd([pair.root / "big"])}
            self._in_turn(outcome, {"replicad": lambda: scrub(pair.primary, "primary"), **rival})
        return outcome

    def primary_small(self) -> Outcome:
        """primary, 100,000 cold files of 1-16 KiB: scrub and xxhsum -H2"""
        outcome = self._outcome("primary_small")
        with a_pair(self.directory, self._small) as pair:
            outcome.bytes = sum(path.stat().st_size for path in pair.root.rglob("*") if path.is_file())
            rival = {"xxhsum -H2": lambda: xxhsum(pair.root)}
            self._in_turn(outcome, {"replicad": lambda: scrub(pair.primary, "primary"), **rival})
        return outcome

    def beside_primary(self) -> Outcome:
        """fio random reads on the primary's disk beside a scrub held to 5 % of the time"""
        return self._beside("beside_primary", "primary")

    def beside_replica(self) -> Outcome:
        """fio random reads on the replica's disk beside a scrub held to 5 % of the time"""
        return self._beside("beside_replica", "replica")

    def _beside(self, name: str, side: str) -> Outcome:
        outcome = self._outcome(name)
        with a_pair(self.directory, self._big, DUTY) as pair:
            outcome.bytes = (pair.root / "big").stat().st_size
            node = pair.primary if side == "primary" else pair.replica
            job = self.directory / "fio"
            fio(job, int(FIO_MIB * self.scale) or 1, 0.1)  # lays the file out
            size = job.stat().st_size // MIB
            for _ in range(self.rounds):
                for what, verb in (("alone", "pause"), ("beside a scrub", "resume")):
                    self._direct(node, side, verb)
                    if verb == "resume":
                        self._direct(node, side, "start")
                    before = daemon_cpu_s(node)
                    outcome.rates.setdefault(what, []).append(fio(job, size))
                    outcome.notes[f"CPU seconds of the daemon, {what}"] = daemon_cpu_s(node) - before
            read = [line.media_bytes for line in node.status().scrubs if line.side == side]
            assert any(read), "the scrub has read nothing: the measurement would say nothing"
            outcome.notes["MiB read by the scrub"] = max(read) / MIB
        return outcome

    def _direct(self, node: Node, side: str, verb: str) -> None:
        replicad("scrub", verb, "www", "--side", side, "--config", node.config)

    def _outcome(self, name: str) -> Outcome:
        return Outcome((getattr(Scrubs, name).__doc__ or "").strip())

    def _in_turn(self, outcome: Outcome, programs: dict[str, Callable[[], tuple[float, float]]]) -> None:
        """Each in turn, so many times. The last one, which reads and nothing else, runs once before that and is not
        counted: what the set-up wrote has come to rest then, and the first program pays no more than the others."""
        drop_caches()
        list(programs.values())[-1]()
        for _ in range(self.rounds):
            for name, run in programs.items():
                drop_caches()
                outcome.add(name, *run())

    def _repositories(self, tree: Path) -> dict[str, Callable[[], tuple[float, float]]]:
        restic, borg = Restic(self.directory, tree), Borg(self.directory, tree)
        return {"restic check --read-data": restic.check, "borg check --verify-data": borg.check}

    def _big(self, root: Path) -> None:
        big_file(root, int(2 * GIB * self.scale))

    def _small(self, root: Path) -> None:
        small_files(root, int(100_000 * self.scale))


def missing() -> list[str]:
    """Rivals that are not installed."""
    return [name for name in ("dd", "xxhsum", "restic", "borg", "fio") if not shutil.which(name)]


def _run(*words: object, stdin: bytes | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in words], input=stdin, capture_output=True, env=env, check=False)
    said = re.sub(r"\s+", " ", done.stderr.decode(errors="replace"))[:2000]
    assert done.returncode == 0, f"{words[0]} exited with {done.returncode}: {said}"
    return done.stdout.decode(errors="replace")


def main(arguments: list[str] | None = None) -> None:
    """Run the cases named, all by default."""
    names = [name for name in vars(Scrubs) if not name.startswith("_")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where the trees go (needs about 12 GiB)")
    words = parser.parse_args(arguments)
    if unknown := set(words.cases) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if gone := missing():
        parser.error(f"missing programs: {', '.join(gone)} (tests/install-packages installs them)")
    outcomes = []
    for name in words.cases or names:
        with tempfile.TemporaryDirectory(dir=words.directory, ignore_cleanup_errors=True) as directory:
            outcomes.append(getattr(Scrubs(Path(directory), words.rounds, words.scale), name)())
            print(outcomes[-1], flush=True)
    if words.json:
        words.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))


if __name__ == "__main__":
    main()
