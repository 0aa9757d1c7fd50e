"""Detection by the program, with the commands that a person types: what campaign and tests see of scrub and judgement.

This is the only place that knows how those verbs are spelled and where their books are.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from kit_campaign import Document
from kit_pair import Node, Pair, replicad, wait_until
from replicad.db.findings import Findings
from replicad.model.divergence import Receipt, Side, State
from replicad.model.errors import LinkError
from replicad.status import ScrubStatus
from replicad.work.dataset import findings_path

TRIES = 30
"""A daemon that was killed is back within a second or two; each try waits one."""
SCRUB_PATIENCE_S = 1800.0
"""One scrub of everything, beside a workload and through any number of restarts."""


class CommandLine:
    """Detection by the program, with the commands that a person would type. A daemon may be killed at any moment: what
    found nobody at the other end is typed again."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._read: dict[str, tuple[int, int]] = {}
        """By side: bytes read before the last restart, and since."""

    def scrub(self, *sides: Side) -> None:
        """Have these sides (default: both, at once) read everything; returns when that is done."""
        with ThreadPoolExecutor() as pool:
            wanted = [pair for pair in self._sides() if pair[1] in (sides or Side)]
            running = [pool.submit(self._scrub, node, side) for node, side in wanted]
            while wait(running, 0.5).not_done:
                self.read_bytes()
        for one in running:
            one.result()

    def documents(self, *sides: Side) -> list[Document]:
        """All divergences ever found, each side's own."""
        return [one for node, side in self._sides() if side in (sides or Side) for one in self._listed(node, side)]

    def acknowledge(self, document: Document) -> None:
        """As a person does who has read it. It may be settled since: by whoever wrote the file, or as an older file of
        its segment, which was laid anew for another reason, had what was lost."""
        for node, side in self._sides():
            if document["side"] == side.value:
                words = ("divergence", "ack", document["id"], "--note", "restored from elsewhere")
                settled = [f"{document['id']} is {state.value} already" for state in (State.GONE, State.REPAIRED)]
                self._typed(node, *words, unless=settled)

    def repair(self, document: Document) -> None:
        """As a person does who has read `divergence show`."""
        self._typed(self._pair.primary, "repair", document["id"])

    def receipts(self, document: Document) -> list[Receipt]:
        """What was written down about repairs of it, in the book of its side."""
        book = findings_path(self._pair.primary.state, "www")
        if document["side"] == Side.REPLICA.value:
            book = self._pair.store / "ams1" / "www" / "findings.db"
        with contextlib.closing(Findings(book, readonly=True)) as findings:
            return findings.receipts(document["id"])

    def settled(self, is_settled: Callable[[list[Document]], bool], what: str) -> list[Document]:
        """Wait until the divergences are as they should be; they, then."""
        found: list[Document] = []

        def look() -> bool:
            found[:] = self.documents()
            return is_settled(found)

        try:
            wait_until(look, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is {json.dumps(found, indent=1)[:4000]}") from None
        return found

    def read_bytes(self) -> int:
        """Sum over all lives of both daemons, as their status tells."""
        for node, side in self._sides():
            with contextlib.suppress(LinkError):
                now = sum(line.media_bytes + line.cache_bytes for line in _own_scrubs(node, side))
                before, last = self._read.get(side.value, (0, 0))
                self._read[side.value] = (before + last, now) if now < last else (before, now)
        return sum(map(sum, self._read.values()))

    def _sides(self) -> list[tuple[Node, Side]]:
        return [(self._pair.primary, Side.PRIMARY), (self._pair.replica, Side.REPLICA)]

    def _scrub(self, node: Node, side: Side) -> None:
        """Ask once; a daemon that is killed meanwhile goes on with the request when it is back, and is asked again."""
        self._typed(node, "scrub", "start", "www", "--side", side.value)

        def is_served() -> bool:
            try:
                (line,) = _own_scrubs(node, side)
            except (LinkError, ValueError):  # it is dead at the moment, or has only just begun
                return False
            return line.requested > 0 and (line.served >= line.requested or _is_hopeless(line))

        wait_until(is_served, f"{side} is scrubbed", SCRUB_PATIENCE_S)

    def _listed(self, node: Node, side: Side) -> list[Document]:
        """One side's book. A book that could not be read is no empty book: it is asked again, until patience ends."""
        words = ("divergence", "list", "--all", "--json", "--side", side.value, "--config", node.config)
        for _ in range(TRIES):
            said = json.loads(replicad(*words, code=None).stdout)
            if not said["unread"]:
                listed: list[Document] = said["divergences"]
                return listed
            time.sleep(1)
        raise AssertionError(f"{node.config}: {said['unread']}")

    def _typed(self, node: Node, *words: str, unless: Sequence[str] = ()) -> str:
        """Standard output of a command; exit code 1 says that there are findings, 3 that nobody answered. `unless`:
        errors that are as good."""
        for _ in range(TRIES):
            done = replicad(*words, "--config", node.config, code=None, timeout=1800)
            if done.returncode in (0, 1):
                return done.stdout
            if any(error in done.stderr for error in unless):
                return ""
            assert done.returncode == 3, f"{words} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
            time.sleep(1)
        raise AssertionError(f"{words}: {node.config} does not answer:\n{done.stderr}")


def _own_scrubs(node: Node, side: Side) -> list[ScrubStatus]:
    return [
        line for line in node.status().scrubs if line.side == side.value and (side is Side.REPLICA or not line.peer)
    ]


def _is_hopeless(line: ScrubStatus) -> bool:
    """Whether it waits for a person: its book has to be made anew."""
    return (line.held_up or line.state == "failed") and "replicad rebuild" in line.reason
