"""Parcel: blocks that a restore fetches together, and the files that they go to.

**Owns** the last step: a block is proven, has the length that a file's record asks for, and is written. Made by the
planner; written here, or by the hand (work/hand.py), with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from replicad.link.messages import Lost
from replicad.model.block import Buffer
from replicad.model.entry import Put
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


Proven = dict[bytes, Buffer | Lost]
"""Blocks by their ids: their bytes, or why they cannot be had."""


def write_parts(parts: Sequence[Part], lengths: dict[bytes, int], answers: Sequence[Answer], tally: Tally) -> None:
    """Prove the blocks of these parts and write them to their files. `answers` in the order of `lengths`, which may
    name more than that. Raises DiskFullError."""
    proven = prove({wanted.id for part in parts for wanted in part.blocks}, lengths, answers)
    for part in parts:
        part.filling.write(fitting(part.filling.put, part.blocks, proven), tally)


def prove(needed: set[bytes], lengths: dict[bytes, int], answers: Sequence[Answer]) -> Proven:
    """Those blocks that are needed, of all that `lengths` names and `answers` brings."""
    return {
        name: open_block(answer, name, length)
        for (name, length), answer in zip(lengths.items(), answers, strict=True)
        if name in needed
    }


def fitting(put: Put, blocks: Sequence[Wanted], proven: Proven) -> list[tuple[int, Buffer | Lost]]:
    """Proven blocks by their indexes, those of the length that this file's record asks for."""
    return [(wanted.block, _fitting(wanted, block_length(put, wanted.block), proven)) for wanted in blocks]


def _fitting(wanted: Wanted, length: int, proven: Proven) -> Buffer | Lost:
    data = proven[wanted.id]
    if isinstance(data, Lost) or len(data) == length:
        return data
    return Lost(wanted.id, f"the block has {len(data)} bytes where the record needs {length}")
