"""Canary text: what stands in a canary file. Pure.

A canary is a few lines of text of a fixed length that say of themselves who wrote them and when. Its check sum tells a
canary from any file of a person's, so that nothing else is ever written over; its length is one sector's, so that it is
rewritten in place without a moment in which it is neither the old one nor the new one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from replicad.model.block import block_id, checksum
from replicad.model.canary import Through

CANARY_BYTES = 512
"""One sector of any disk: written in place, it is the old one or the new one, whenever the power fails."""
REMEMBERED = 256
"""Canaries whose bytes are remembered: at one every 15 minutes, a replica may be two days behind and be timed."""
_TITLE = "replicad canary: this file is rewritten to time a copy from end to end (docs/CANARY.md)"
_FORM = re.compile(
    rf"{re.escape(_TITLE)}\ndataset (\S{{1,64}})\nnumber (\d{{1,18}})\nwritten (\d{{1,19}})\nnonce ([0-9a-f]{{32}})\n"
)


class Canary(msgspec.Struct, frozen=True):
    """One canary."""

    dataset: str
    number: int
    written_ns: int
    nonce: str
    """32 hex digits, so that no two canaries are alike, and none looks like another with a few bits flipped."""

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        text = (
            f"{_TITLE}\ndataset {self.dataset}\nnumber {self.number}\nwritten {self.written_ns}\nnonce {self.nonce}\n"
        )
        body = text.encode().ljust(CANARY_BYTES - len(_check(b"")), b"\n")
        return body + _check(body)

    @property
    def id(self) -> bytes:
        """The id of the one block that it is."""
        return block_id(self.content)


def parse(content: bytes) -> Canary | None:
    """The canary that these bytes are; None for anything else."""
    body, check = content[: -len(_check(b""))], content[-len(_check(b"")) :]
    found = _FORM.match(body.decode("ascii", "replace"))
    if len(content) != CANARY_BYTES or check != _check(body) or found is None:
        return None
    dataset, number, written, nonce = found.groups()
    canary = Canary(dataset, int(number), int(written), nonce)
    return canary if canary.content == content else None


def awaited(written: Sequence[Canary], through: Through) -> list[Canary]:
    """Those that have not come through, oldest first: one that did speaks for all that it overwrote."""
    return [canary for canary in written if canary.number > through.number]


def _check(body: bytes) -> bytes:
    return f"check {checksum(body).hex()}\n".encode()
