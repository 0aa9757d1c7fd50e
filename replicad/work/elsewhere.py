"""Elsewhere: blocks that a replica lost and the primary cannot give, from the dataset's other replicas.

The primary is where all replicas meet: none of them knows of another. **Never** passes on what it has not proven, and a
replica that cannot be asked, for whatever reason, costs nothing but its blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor

from replicad.link.channel import ANSWER_S, Channel
from replicad.link.messages import MAX_TESTIMONY_BYTES, Lost, Want
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.verdict import Sight
from replicad.store.format import Frame, FrameError, FrameType, encode_frame, plain_payload
from replicad.work.holdings import Held
from replicad.work.read_remote import RemoteReader

AT_ONCE = 16
"""Blocks asked for at once: 16 MiB of the largest."""

LEFT_ALONE_S = 60.0
"""A replica that was out of reach is not dialled again for each of a thousand findings."""

Dial = Callable[[], Awaitable[Channel]]


class Elsewhere:
    """The other replicas of one dataset, as the job of one of them sees them."""

    def __init__(self, dataset: str, dials: Mapping[str, Dial], pool: Executor) -> None:
        self._dataset, self._dials, self._pool = dataset, dials, pool
        self._failed_s: dict[str, float] = {}

    async def fill(self, replica: str, wants: Sequence[Want], held: Sequence[Held]) -> list[Held]:
        """`held`, and what replicas other than this one have of the rest; MAX_TESTIMONY_BYTES of frames in all."""
        found = list(held)
        for name, dial in self._dials.items():
            left = _left(found)
            if not left or name == replica:
                continue
            if not _room(found):
                _not_asked(found, left)
                break
            if not await self._is_asked(name, dial, wants, found):
                _not_asked(found, _left(found))
        return found

    async def _is_asked(self, name: str, dial: Dial, wants: Sequence[Want], found: list[Held]) -> bool:
        """Ask one of them; False where it could not say what it has."""
        failed_s = self._failed_s.get(name)
        if failed_s is not None and asyncio.get_running_loop().time() - failed_s < LEFT_ALONE_S:
            return False
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._fill_from(dial, wants, found)
        except UsageError:  # it has no copy of the dataset
            return True
        except (ReplicadError, TimeoutError):  # out of reach, hung, damaged, or a peer that its own job tells of
            self._failed_s[name] = asyncio.get_running_loop().time()  # asked again when the finding is due again
            return False
        return True

    async def _fill_from(self, dial: Dial, wants: Sequence[Want], found: list[Held]) -> None:
        left = _left(found)
        reader = await RemoteReader.open(await dial(), self._dataset)
        try:
            for at in range(0, len(left), AT_ONCE):
                if not (room := _room(found)):
                    _not_asked(found, left[at:])
                    break
                group = left[at : at + AT_ONCE]
                for i, frame in zip(group, await self._frames(reader, [wants[i].id for i in group]), strict=True):
                    if frame:
                        fits = len(frame) <= room
                        found[i] = Held(Sight.MATCHES, frame if fits else b"")
                        room = room - len(frame) if fits else 0
        finally:
            await reader.close()

    async def _frames(self, reader: RemoteReader, names: Sequence[bytes]) -> list[bytes]:
        """The blocks' proven frames, b"" where there is none."""
        frames: list[bytes] = []
        async for answers in reader.fetch(b"".join(names)):
            for answer in answers:
                frames.append(b"" if isinstance(answer, Lost) else await self._proven(answer))
        return frames

    async def _proven(self, frame: Frame) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, _proven, frame)


def _left(found: Sequence[Held]) -> list[int]:
    """Which nobody is known to have."""
    return [i for i, one in enumerate(found) if one.sight is not Sight.MATCHES]


def _room(found: Sequence[Held]) -> int:
    """Bytes of frames that one testimony may bring beside these; none where one is left to the next testimony."""
    if any(one.sight is Sight.MATCHES and not one.frame for one in found):
        return 0
    return max(0, MAX_TESTIMONY_BYTES - sum(len(one.frame) for one in found))


def _not_asked(found: list[Held], left: Sequence[int]) -> None:
    """Somebody may have these: nothing says that they are lost."""
    for i in left:
        found[i] = Held(Sight.UNKNOWN)


def _proven(frame: Frame) -> bytes:
    try:
        plain = plain_payload(frame)
    except FrameError:
        return b""
    return encode_frame(FrameType.BLOCK, plain, frame.id, frame.payload, frame.codec)
