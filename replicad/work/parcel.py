"""Parcel: blocks that a restore fetches together, and the files that they go to.

**Owns** the last step: a block is proven, has the length that a file's record asks for, and is written. Made by the
planner; written here, or by the hand (work/hand.py), with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from replicad.link.messages import Lost
from replicad.model.block import Buffer
from replicad.work.account import Tally
from replicad.work.comparing import Wanted, block_length
from replicad.work.filling import Filling
from replicad.work.reader import Answer, open_block


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks of one file in a parcel, ascending."""

    filling: Filling
    blocks: list[Wanted]


@dataclass(slots=True)
class Parcel:
    """Blocks that are fetched together."""

    parts: list[Part] = field(default_factory=list)
    lengths: dict[bytes, int] = field(default_factory=dict)
    """Plain size of each block by id; a block that several files need is fetched once."""
    size: int = 0
    """Plain bytes of these blocks."""
    blocks: int = 0
    """Places that these blocks go to."""

    def add(self, filling: Filling, wanted: Wanted) -> None:
        """One more block."""
        if not self.parts or self.parts[-1].filling is not filling:
            filling.expect()
            self.parts.append(Part(filling, []))
        self.parts[-1].blocks.append(wanted)
        self.blocks += 1
        if wanted.id not in self.lengths:
            self.lengths[wanted.id] = block_length(filling.put, wanted.block)
            self.size += self.lengths[wanted.id]


def write_parts(parts: Sequence[Part], lengths: dict[bytes, int], answers: Sequence[Answer], tally: Tally) -> None:
    """Prove the blocks of these parts and write them to their files. `answers` in the order of `lengths`, which may
    name more than that. Raises DiskFullError."""
    needed = {wanted.id for part in parts for wanted in part.blocks}
    proven: dict[bytes, Buffer | Lost] = {}
    for (name, length), answer in zip(lengths.items(), answers, strict=True):
        if name in needed:
            proven[name] = open_block(answer, name, length)
    for part in parts:
        part.filling.write([(wanted.block, _fitting(part.filling, wanted, proven)) for wanted in part.blocks], tally)


def _fitting(filling: Filling, wanted: Wanted, proven: dict[bytes, Buffer | Lost]) -> Buffer | Lost:
    """A proven block, when it has the length that this file's record asks for."""
    data, length = proven[wanted.id], block_length(filling.put, wanted.block)
    if isinstance(data, Lost) or len(data) == length:
        return data
    return Lost(wanted.id, f"the block has {len(data)} bytes where the record needs {length}")
