"""Advice: what to type next about a divergence, command by command. Pure.

A step is a command that can be pasted into a shell as it stands, where to type it, and what it is for. The first step
is the next thing to do. **Never** advises to write into anything before the advice that shows what would be written.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from replicad.cli.explain import Seat, holder
from replicad.model.divergence import Affected, Divergence, Part, Side, State
from replicad.model.remedy import Remedy, remedy_of
from replicad.model.verdict import Sight, Verdict, Witness

_SPECIAL = re.compile(rb"[*?\[\]\\]")
"""What a pattern of `restore --path` would take for more than itself."""
_DISK = frozenset(Verdict) - {Verdict.OK, Verdict.CHANGED, Verdict.RECORD_DIVERGENCE, Verdict.RECORD_ROT}
"""Verdicts after which somebody should look at the disk."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command."""

    command: str
    why: str
    on: str = ""
    """The other node, where it is to be typed; "" = here."""


def advise(found: Divergence, seat: Seat) -> list[Step]:
    """What to type, in this order; at least one step."""
    return _Advice(found, seat).steps()


class _Advice:
    def __init__(self, found: Divergence, seat: Seat) -> None:
        self._found, self._seat = found, seat
        self._id = shlex.quote(found.id)

    def steps(self) -> list[Step]:
        if self._found.state is State.OPEN:
            disk = [self._disk()] if self._found.verdict in _DISK or self._found.part is Part.BOOK else []
            return [*self._open(), *disk, *self._acknowledge()]
        if self._found.state is State.REPAIRED and remedy_of(self._found) is Remedy.MEND_PRIMARY:
            undo = self._typed(f"repair undo {self._id}", "should the bytes before be wanted back", Side.PRIMARY)
            return [self._disk(), undo]
        listing = self._typed("divergence list", "what is still open")
        memory = self._plain("edac-util -v; dmesg", "is memory, a cable or a controller failing?", self._found.side)
        return [memory, self._disk(), listing] if self._reads_differ() else [listing]

    def _reads_differ(self) -> bool:
        """Whether the same place read badly once and well at another time."""
        sights = {look.sight for look in self._found.looks if look.side is self._found.side and look.source != "peer"}
        return self._found.state is State.GONE and Sight.MATCHES in sights and len(sights) > 1

    def _open(self) -> list[Step]:
        match remedy_of(self._found):
            case Remedy.MEND_PRIMARY | Remedy.MEND_METADATA | Remedy.SEND_RECORD:
                return [*self._repair(Side.PRIMARY), *self._compare()]
            case Remedy.MEND_REPLICA | Remedy.LAY_SEGMENT:
                return self._repair(Side.REPLICA)
            case Remedy.NONE_LEFT:
                return self._rescue()
            case Remedy.ADOPT_RECORD:
                return self._adopt()
            case Remedy.REBUILD_BOOK:
                return self._rebuild()
            case Remedy.LOOK_AGAIN:
                return self._look_again()
        return [self._typed("status", "there is nothing to do: it is closed by itself when it is looked at again")]

    def _repair(self, side: Side) -> list[Step]:
        name = self._id
        by_itself = "; a replica does that by itself unless listen.repair is ask" * (side is Side.REPLICA)
        return [
            self._typed(f"repair {name} --dry-run", "what would be written, and from where it would come", side),
            self._typed(f"repair {name}", f"do it, and read it again from the medium{by_itself}", side),
        ]

    def _compare(self) -> list[Step]:
        """A good copy beside the bad one, for whoever wants to see it first."""
        if self._found.part is not Part.BLOCK or self._seat.side is not Side.PRIMARY:
            return []
        return [self._restore(self._found.path, "", "the file as the replica has it, to compare or to use meanwhile")]

    def _rescue(self) -> list[Step]:
        """Bytes that nobody has: other states of the file, and copies that replicad does not know of."""
        one = self._found.affected[0] if self._found.affected else Affected(self._found.path, 0, 0)
        listing = self._typed(f"snapshots {self._seat.dataset}", "which other states of it there are")
        if self._found.side is Side.REPLICA and not self._found.affected:
            return [listing]
        at, why = f" --at {one.first - 1}", "the state before the lost bytes, if there is that snapshot"
        if one.first <= 1:
            at = "" if one.is_live else f" --at {one.last}"
            why = "everything of the file but the lost ranges; from a copy elsewhere, put the file back"
        return [self._restore(one.path, at, why), listing]

    def _adopt(self) -> list[Step]:
        replica = self._found.peer or (self._seat.replicas[0] if self._seat.replicas else "REPLICA")
        dataset = self._seat.dataset.rpartition("/")[2]
        return [
            self._plain("systemctl stop replicad", "the ledger must be at rest", Side.PRIMARY),
            self._typed(
                f"rebuild {dataset} --ledger --from {shlex.quote(replica)}",
                "the ledger anew from the replica's record; no file is written",
                Side.PRIMARY,
            ),
            self._plain("systemctl start replicad", "the scrub then tells which blocks differ from it", Side.PRIMARY),
        ]

    def _rebuild(self) -> list[Step]:
        if self._found.key == "book:ledger":
            return self._adopt()
        side = self._found.side
        stop = self._plain("systemctl stop replicad", "the book must be at rest", side)
        start = self._plain("systemctl start replicad", "go on", side)
        if self._found.key == "book:catalog":
            dataset = self._seat.dataset if self._seat.side is Side.REPLICA else self._found.dataset
            why = "the catalog anew from the segments; the old one is kept beside it"
            return [stop, self._typed(f"rebuild {dataset}", why, side), start]
        path = shell_word(self._found.path)
        why = "set the damaged book aside, in the directory where it is; what is still wrong is found again"
        return [stop, self._plain(f"mv -- {path} {path}.damaged", why, side), start]

    def _look_again(self) -> list[Step]:
        found, side = self._found, self._found.side.value
        dataset = self._seat.dataset.rpartition("/")[2]
        steps = [
            self._typed("status", "is there a link? without the other side nothing can be settled"),
            self._typed(f"scrub start {dataset} --side {side} --wait", "look at everything again now"),
            self._typed(f"divergence show {self._id}", "what is known then"),
        ]
        if found.evidence.witness is Witness.CONTRADICTS:
            why = "is memory failing? look at the other side's too"
            steps.insert(0, self._plain("edac-util -v; dmesg", why, self._seat.side))
        return steps

    def _restore(self, path: bytes, at: str, why: str) -> Step:
        target = f"/var/tmp/{self._seat.dataset.rpartition('/')[2]}-{self._id}"
        return self._typed(f"restore {self._seat.dataset} {target} --path {shell_glob(path)}{at}", why)

    def _disk(self) -> Step:
        why = "look at that disk: rot comes in clusters"
        if self._found.side is self._seat.side:
            directory = self._seat.books if self._found.part is Part.BOOK else self._seat.directory
            return Step(f'smartctl -a "$(findmnt -no SOURCE -T {shlex.quote(directory)})"; dmesg', why)
        return Step("smartctl --scan; dmesg", why, holder(self._found.side, self._found, self._seat))

    def _acknowledge(self) -> list[Step]:
        if not self._found.is_lost:
            return []
        why = "when all that can be saved is saved: take note of the loss"
        return [self._typed(f"divergence ack {self._id} --note 'WHY'", why, self._found.side)]

    def _typed(self, words: str, why: str, side: Side | None = None) -> Step:
        """A verb of replicad, typed at the node that has that side's copy."""
        here = side in (None, self._seat.side)
        return Step(f"replicad {words}{self._seat.options * here}", why, "" if here else self._name(side))

    def _plain(self, command: str, why: str, side: Side) -> Step:
        return Step(command, why, "" if side is self._seat.side else self._name(side))

    def _name(self, side: Side | None) -> str:
        assert side is not None, "here has no name"
        return holder(side, self._found, self._seat)


def shell_glob(path: bytes) -> str:
    """A path as a pattern that matches it alone, quoted for a shell."""
    return shell_word(_SPECIAL.sub(rb"\\\g<0>", path))


def shell_word(data: bytes) -> str:
    """Bytes as one word of a shell: as they are where they are text, else as bash, zsh and ksh read $'…'."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and text:
        return shlex.quote(text)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in data)
    return "$'" + "".join(plain) + "'"
