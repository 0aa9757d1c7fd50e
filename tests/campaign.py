"""The campaign: two real daemons, a workload that never stops, kills, and damage of every kind, judged case by case.

    python tests/campaign.py [--seed N] [--faults N] [--files N] [--minutes M] [--json FILE] [--markdown]

The dataset lies on a loop-mounted ext4 that is damaged below the file system, the store on another one. In rounds: the
workload is held for a moment, a snapshot is taken whose truth is known by hash from memory, damage is done; then
everything goes on, both sides scrub, and each fault has to be found, called by its name, and repaired or reported as
lost. After each round the newest snapshot is restored from the store and compared with the truth, and so is one older
one. Needs root. Exit code 1 when any target is missed. `--markdown` writes the table into docs/RELIABILITY.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import blake3

from kit_campaign import Account, Case, Detector, as_lost, as_markdown, as_text, primary_fault
from kit_damage import (
    OF_BLOCKS,
    OF_SEGMENTS,
    OF_STRUCTURE,
    Fault,
    Harm,
    Shelf,
    blocks_of,
    harm_book,
    live_blocks,
    paths_with,
    write_back,
)
from kit_detect import CommandLine
from kit_faults import configure
from kit_pair import Pair, make_pair, replicad, running, wait_until
from kit_rot import MIB, CannotRot, Disk, Kind, Rotten, real_disk, why_no_disks
from kit_workload import BIG_BYTES, PIECE_BYTES, Known, Tree, Truth, differing, piece, tree_of
from replicad.model.divergence import Side

PAGE = Path(__file__).parent.parent / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- campaign: begin -->", "<!-- campaign: end -->"
BATCH = 100
LAST_WORDS = 30
"""Lines of a log that are shown when a round came to no good end."""
SCRUB_EVERY_S = 120
PATIENCE_S = 600.0
"""How long a round waits for its last repair at most, also on a busy machine: what is not settled then is wrong."""
LONGEST_BETWEEN_KILLS_S = 20.0
KILLS_A_ROUND = 40
"""Daemons that take longer to start than they are let live settle nothing: a round's end is left in peace."""
OLDER_KEPT = 12
"""Truths of older snapshots that are kept, to restore one of them in each round."""

NAMED = re.compile(r"^(\S+): (?:bytes \d+ to \d+ are not restored|incomplete|not restored): ", re.MULTILINE)
"""What a restore says of a path on its standard error."""


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    seed: int = 1
    faults: int = 2000
    files: int = 20_000
    big: int = 4
    batch: int = BATCH
    minutes: float = 180.0
    kill_every_s: float = LONGEST_BETWEEN_KILLS_S
    kills_a_round: int = KILLS_A_ROUND
    book_rounds: int = 3
    """In every such round a page of a book is damaged too, of either side in turn; 0 = never."""
    segment_rounds: int = 1
    """In every such round a whole segment is damaged before anything else is, in each way in turn; 0 = by chance alone,
    which is next to never: one damaged frame keeps all others from damaging its segment."""
    patience_s: float = PATIENCE_S
    edit_pause_s: float = 0.004
    """Between two edits of the workload: some 200 a second, so that a file of 20,000 stays as it is for 100 s."""
    is_store_mounted: bool = True


# ---------------------------------------------------------------------------------------------------- the program


class Reaper:
    """Kills either daemon without warning at random moments, as often as it is told, and starts it again."""

    def __init__(self, pair: Pair, seed: int, longest_s: float) -> None:
        self._nodes, self._choose, self._longest_s = (pair.primary, pair.replica), random.Random(seed), longest_s
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.kills = self._left = 0
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Kills go on; never, when the longest wait is 0."""
        thread = threading.Thread(target=self._work, name="reaper")
        if self._longest_s:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if self._longest_s:
                thread.join()
        if self._error:
            raise self._error

    def allow(self, kills: int) -> None:
        """So many from now on."""
        with self._lock:
            self._left = kills

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Both daemons are there and stay there."""
        with self._lock:
            yield

    def _work(self) -> None:
        try:
            while not self._stop.wait(self._choose.random() * self._longest_s):
                with self._lock:
                    if not self._left:
                        continue
                    node = self._choose.choice(self._nodes)
                    node.kill()
                    node.start()
                    self.kills, self._left = self.kills + 1, self._left - 1
        except BaseException as error:  # handed to whoever waits for the thread
            self._error = error


# ------------------------------------------------------------------------------------------------------------ damage


class Injector:
    """Does damage on both sides; only while the workload is paused and everything is replicated."""

    def __init__(self, pair: Pair, tree: Tree, disk: Disk, shelf: Path, seed: int) -> None:
        self._pair, self._tree, self._disk, self._directory = pair, tree, disk, shelf
        self._choose = random.Random(seed)
        self._of_segments = deque((Harm.SWAPPED, Harm.LOST, Harm.TRUNCATED))  # two whole ones are there at first only

    def inject(self, count: int, *, segment: bool = False) -> list[Case]:
        """So many faults, half of them on each side; with `segment` the first is of a whole segment."""
        self._shelf = Shelf(self._directory)
        self._live = live_blocks(self._directory)
        self._spared: set[bytes] = set()
        """Live blocks of files that the primary's damage hits: their stored copies stay well."""
        self._lost: set[bytes] = set()
        """Blocks whose stored copies are damaged: the primary's copies stay well."""
        cases: list[Case] = []
        if segment:
            cases += self._segment()
        while len(cases) < count:
            cases += self._once()
        return cases

    def _segment(self) -> list[Case]:
        """Of the ways to damage a whole segment the one that was not done for longest, if any can be done now."""
        for kind in list(self._of_segments):
            with contextlib.suppress(CannotRot):
                case = self._replica(kind, None)
                self._of_segments.remove(kind)
                self._of_segments.append(kind)
                return [case]
        return []

    def _once(self) -> list[Case]:
        """One draw; nothing when that damage cannot be done now."""
        draw = self._choose.random()
        try:
            if draw < 0.48:
                return [self._primary(self._choose.choice(list(Kind)))]
            if draw < 0.52:
                return self._both()
            if draw < 0.82:
                return [self._replica(self._choose.choice(OF_BLOCKS), self._live.keys() - self._spared)]
            if draw < 0.88:
                history = self._shelf.current.keys() - self._live.keys()
                return [self._replica(self._choose.choice(OF_BLOCKS), history)]
            if draw < 0.98:
                return [self._replica(self._choose.choice(OF_STRUCTURE), None)]
            return [self._replica(self._choose.choice(OF_SEGMENTS), None)]
        except CannotRot:
            return []

    def _primary(self, kind: Kind) -> Case:
        file, rotten = self._rot(kind)
        fault = self._fault_of(file, rotten)
        if fault.expected.blocks & self._lost:
            self._disk.heal(rotten)
            raise CannotRot("the replica's copy is damaged already")
        self._spared |= fault.expected.blocks
        return Case(fault, time.time_ns(), self._tree.guard(file))

    def _replica(self, kind: Harm, among: set[bytes] | None) -> Case:
        with self._pair.replica.frozen():  # which would see what is undone
            fault = self._shelf.harm(kind, self._choose.randrange(2**32), among=among)
            if fault.expected.blocks & self._spared:  # of a whole segment
                fault.undo()
                raise CannotRot("the primary's copy is damaged already")
        self._lost |= fault.expected.blocks
        return Case(fault, time.time_ns())

    def _both(self) -> list[Case]:
        """The same block on both sides, at once: either side would have mended the first copy out of the second."""
        with self._pair.primary.frozen(), self._pair.replica.frozen():
            return self._harm_both()

    def _harm_both(self) -> list[Case]:
        file, rotten = self._rot(Kind.BIT)
        here = self._fault_of(file, rotten)
        try:
            self._check_no_third_copy(here)
            there = self._shelf.harm(Harm.BIT, self._choose.randrange(2**32), among=here.expected.blocks)
        except CannotRot:
            self._disk.heal(rotten)
            raise
        self._spared |= here.expected.blocks
        guard, now = self._tree.guard(file), time.time_ns()
        return [Case(as_lost(here), now, guard, is_both=True), Case(as_lost(there), now, is_both=True, beside=guard)]

    def _check_no_third_copy(self, fault: Fault) -> None:
        """A segment that was laid anew is kept aside as it was, and may hold a good frame of the block."""
        for path in (self._directory / "quarantine").glob("*.seg"):
            with contextlib.suppress(FileNotFoundError):  # it made room for newer ones
                if any(name in path.read_bytes() for name in fault.expected.blocks):
                    raise CannotRot("the store has kept another copy of the block")

    def _rot(self, kind: Kind) -> tuple[Known, Rotten]:
        """Damage below some file that nothing else hits."""
        taken = [guard.file for guard in self._tree.guards]
        stale = [one for one in self._tree.stale if one[0] in self._tree.files and one[0] not in taken]
        other: bytes | None = None
        if kind is Kind.STALE and stale:
            file, number, seed = self._choose.choice(stale)
            offset = number * PIECE_BYTES + self._choose.randrange(PIECE_BYTES)
            old = piece(seed, PIECE_BYTES)
            start = offset % PIECE_BYTES // 4096 * 4096
            other = old[start : start + 4096]
        else:
            free = [one for one in self._choose.sample(self._tree.files, 50) if one not in taken]
            file = self._choose.choice(free)
            offset = self._choose.randrange(file.size)
            if kind in (Kind.MISDIRECTED, Kind.STALE):
                other = self._choose.choice(free).data(0, 4096).ljust(4096, b"\0")
        if offset >= file.size:
            raise CannotRot("the file has become shorter")
        path = self._tree.root / file.path
        return file, self._disk.rot(path, offset, kind, self._choose.randrange(2**32), other=other)

    def _fault_of(self, file: Known, rotten: Rotten) -> Fault:
        start = rotten.offset - rotten.offset % PIECE_BYTES
        block = blake3.blake3(file.data(start, PIECE_BYTES)).digest()

        def undo() -> None:
            self._disk.heal(rotten, self._tree.root / file.path)

        return primary_fault(
            file, rotten.kind.value, rotten.offset, rotten.length, block, is_readable=rotten.is_readable, undo=undo
        )


# ---------------------------------------------------------------------------------------------------------- campaign


@dataclass
class Campaign:
    """A running pair, its tree and its disk, and the rounds."""

    plan: Plan
    pair: Pair
    tree: Tree
    disk: Disk
    detector: Detector
    reaper: Reaper
    account: Account
    say: Callable[[str], object] = print
    truths: dict[int, Truth] = field(default_factory=dict)

    def run(self) -> Account:
        """All rounds, as many as there is time for."""
        begun = time.monotonic()
        injector = Injector(self.pair, self.tree, self.disk, self.shelf, self.plan.seed)
        choose = random.Random(self.plan.seed)
        with self.tree.working(), self.reaper.at_work():
            while len(self.account.cases) < self.plan.faults:
                if time.monotonic() - begun > self.plan.minutes * 60:
                    self.say(f"out of time after {len(self.account.cases)} faults")
                    break
                try:
                    self._round(injector, choose)
                except BaseException:
                    self._tell_what_they_said()
                    raise
                self.account.seconds = time.monotonic() - begun
        self.account.edits, self.account.kills = self.tree.edits, self.reaper.kills
        self.account.read_bytes = self.detector.read_bytes()
        return self.account

    @property
    def shelf(self) -> Path:
        """The dataset's store."""
        return self.pair.store / "ams1" / "www"

    def _round(self, injector: Injector, choose: random.Random) -> None:
        self.account.rounds += 1
        cases: list[Case] = []
        self.reaper.allow(self.plan.kills_a_round)
        if self._is_turn_of(self.plan.book_rounds):
            cases += self._books(list(Side)[self.account.rounds // self.plan.book_rounds % 2], choose)
        with self.tree.paused(), self.reaper.held():
            self._take_snapshot()
            count = min(self.plan.batch, self.plan.faults - len(self.account.cases))
            cases += injector.inject(count, segment=self._is_turn_of(self.plan.segment_rounds))
        self.account.cases += cases
        self.detector.scrub()
        self._settle(cases)
        self._take_losses(cases)
        with self.tree.paused(), self.reaper.held():
            newest = self._take_snapshot()
        self._compare(newest)
        self._compare(choose.choice(list(self.truths)))
        done = [case.outcome for case in cases]
        self.say(f"round {self.account.rounds}: " + ", ".join(f"{done.count(o)} {o}" for o in sorted(set(done))))

    def _is_turn_of(self, every: int) -> bool:
        """Whether this round is one of those."""
        return every > 0 and self.account.rounds % every == 0

    def _take_snapshot(self) -> int:
        """Everything is replicated now; the snapshot's number, its truth remembered."""
        self.pair.sync()
        number = self.pair.line.last_snapshot
        self.truths[number] = self.tree.truth()
        if len(self.truths) > OLDER_KEPT:
            del self.truths[random.Random(number).choice(list(self.truths)[:-2])]
        return number

    def _settle(self, cases: list[Case]) -> None:
        """Wait until each case is found and dealt with, or patience ends; what it waits for is said before that."""
        began = time.monotonic()
        is_said = False
        while True:
            looked = time.monotonic()
            documents = self.detector.documents()
            is_over = self.account.judge(cases, documents, live_blocks(self.shelf).keys())
            waited = time.monotonic() - began
            if is_over or waited > self.plan.patience_s:
                if not is_over:
                    self._tell_what_they_said()
                self.account.find_false_alarms(documents)
                return
            if not is_said and waited > self.plan.patience_s / 4:
                is_said = True
                for case in cases:
                    if case.problems:
                        told = [one["events"][-1]["what"] for one in case.documents if one["events"]]
                        self.say(f"waits for {case.fault.kind}, {case.fault.what}: {'; '.join(case.problems + told)}")
            time.sleep(max(1.0, time.monotonic() - looked))  # the longer the list, the less often: others need the CPU

    def _tell_what_they_said(self) -> None:
        """What the daemons complained of last: with the campaign their logs go."""
        for node in (self.pair.primary, self.pair.replica):
            lines = [line for line in node.log.read_text().splitlines() if " info " not in line]
            self.say("\n".join([f"last words of {node.log.parent.name}:", *lines[-LAST_WORDS:]]))

    def _take_losses(self, cases: list[Case]) -> None:
        """A person takes note of what is lost and brings files back from elsewhere; nothing is guarded any more."""
        with self.tree.paused():
            for case in cases:
                for document in case.documents if case.outcome == "lost" else ():
                    if document["state"] == "open":
                        self.detector.acknowledge(document)
                if case.guard:
                    if case.outcome != "repaired" and not case.guard.hit:
                        self.tree.rewrite(case.guard.file)
                    if case.guard in self.tree.guards:
                        self.tree.release(case.guard)

    def _compare(self, snapshot: int) -> None:
        """Restore a snapshot from the store and compare it with its truth."""
        target = self.pair.directory / "restored"
        done = self.pair.restore_from_store(target, "--at", snapshot, "--json", code=None)
        assert done.returncode in (0, 1), done.stderr
        said = json.loads(done.stdout)
        named = {finding["path"] for finding in said["findings"] if finding["sort"] in ("damaged", "failed")}
        named |= set(NAMED.findall(done.stderr))  # the document names the first thousand
        truth, checks = self.truths[snapshot], self.account.checks
        wrong = differing(truth, tree_of(target))
        checks.rotten += [f"snapshot {snapshot}: {path} {how}" for path, how in wrong.items() if path not in named]
        for path in self._unexplained(named, snapshot):
            said = next((line for line in done.stderr.splitlines() if line.startswith(f"{path}: ")), path)
            checks.unexplained.append(f"snapshot {snapshot}: {said}; its blocks: {self._told_of(path, snapshot)}")
        checks.snapshots += 1
        checks.files += len(truth)
        shutil.rmtree(target)

    def _unexplained(self, named: set[str], snapshot: int) -> set[str]:
        """Which of these no loss explains, told by now or by one more scrub: a finding about a whole segment names the
        first of its blocks, and those of the others that stay missing become findings with the next look."""
        left = named - self.account.lost_paths()
        if left:  # a finding names no more than a hundred paths
            left -= paths_with(self.shelf, snapshot, self._lost_blocks())
        if left:
            self.detector.scrub()
            until = time.monotonic() + self.plan.patience_s / 4
            while (left := left - paths_with(self.shelf, snapshot, self._lost_blocks())) and time.monotonic() < until:
                time.sleep(2)
            self.say(f"snapshot {snapshot}: one more scrub was needed to explain what is damaged, {len(left)} left")
        return left

    def _told_of(self, path: str, snapshot: int) -> str:
        """What there is of findings about a path's blocks."""
        its = {name.hex() for name in blocks_of(self.shelf, snapshot, path)}
        told = [
            f"{document['id']} {document['state']} {document['verdict']} lost {document['lost']}"
            for document in self.detector.documents()
            if not its.isdisjoint(document["blocks"])
        ]
        return ", ".join(told) or "no finding names any"

    def _lost_blocks(self) -> set[bytes]:
        """All blocks that a loss was reported of."""
        lost = (document["blocks"] for document in self.detector.documents() if document["lost"])
        return {bytes.fromhex(name) for names in lost for name in names}

    def _books(self, side: Side, choose: random.Random) -> list[Case]:
        """Damage a page of ledger or catalog, see that it is found, and make the book anew as the runbook says."""
        node = self.pair.primary if side is Side.PRIMARY else self.pair.replica
        book = self.shelf / "catalog.db" if side is Side.REPLICA else node.state / "ledger" / "www.db"
        with self.tree.paused(), self.reaper.held():
            self.pair.sync()
            node.stop()
            write_back(book)
            case = Case(harm_book(book, side, choose.randrange(2**32)), time.time_ns())
            node.start()
            self.detector.scrub()
            self._settle_book(case)
            node.stop()
            words = ("--ledger", "--from", "fra1") if side is Side.PRIMARY else ()
            done = replicad("rebuild", "www", *words, "--config", node.config, code=None)
            assert done.returncode in (0, 1), done.stderr  # 1: what history has lost is found damaged once more
            node.start()
            self.pair.sync(code=None)
            self.detector.scrub()
            self._settle([case])
        return [case]

    def _settle_book(self, case: Case) -> None:
        def is_found() -> bool:
            return any(map(case.fits, self.detector.documents()))

        with contextlib.suppress(AssertionError):  # a book that is not found damaged is judged as missed, later
            wait_until(is_found, "the damaged book is found", self.plan.patience_s)


@contextlib.contextmanager
def campaign(
    directory: Path, plan: Plan, make_detector: Callable[[Pair], Detector] = CommandLine
) -> Iterator[Campaign]:
    """Everything set up and running."""
    with contextlib.ExitStack() as stack:
        room = max(256, (plan.files * 12 * 1024 + plan.big * BIG_BYTES) // MIB * 3)
        disk = stack.enter_context(real_disk(directory, "ext4", room))
        root = disk.top / "www"
        root.mkdir()
        place = directory
        if plan.is_store_mounted:
            (directory / "there").mkdir()
            place = stack.enter_context(real_disk(directory / "there", "ext4", room * 6)).top
        options = 'max_change = 1.0\ndebounce = "200ms"\nrpo = "10s"'
        pair = make_pair(place / "pair", root, dataset_options=options)
        values = {"scrub_every": f"{SCRUB_EVERY_S}s", "scrub_duty": 1.0, "repair": "auto", "repair_limit": 1_000_000}
        configure(pair.primary, "dataset", **values, tend_every="1s")
        configure(pair.replica, "listen", **values, reserve="16MiB")
        tree = Tree(root, plan.seed, plan.files, plan.big, plan.edit_pause_s)
        tree.build()
        stack.enter_context(running(pair))
        pair.sync()
        account = Account(plan.seed, time.time_ns(), SCRUB_EVERY_S, len(tree.files))
        reaper = Reaper(pair, plan.seed, plan.kill_every_s)
        yield Campaign(plan, pair, tree, disk, make_detector(pair), reaper, account)


def write_page(text: str, page: Path = PAGE) -> None:
    """Put the table where the page has a place for it."""
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin and end, f"{page} has no place for the table"
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--faults", type=int, default=Plan.faults)
    parser.add_argument("--files", type=int, default=Plan.files)
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="begin no round after this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true", help="write the table into docs/RELIABILITY.md")
    parser.add_argument("--directory", type=Path, help="where the images go (needs about 4 GiB)")
    words = parser.parse_args()
    if why := why_no_disks():
        parser.error(f"cannot do real damage here: {why}")
    plan = Plan(words.seed, words.faults, words.files, minutes=words.minutes)
    with (
        tempfile.TemporaryDirectory(dir=words.directory, prefix="replicad-campaign-") as directory,
        campaign(Path(directory), plan) as made,
    ):
        account = made.run()
    print(as_text(account))
    if words.json:
        words.json.write_text(json.dumps(account.document(), indent=2))
    if words.markdown:
        write_page(as_markdown(account, f'make campaign ARGS="--seed {words.seed} --faults {words.faults}"'))
    sys.exit(not account.is_perfect)


if __name__ == "__main__":
    main()
