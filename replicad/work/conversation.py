"""Conversation: the primary's side of a tending session, one question after the other.

**Never** trusts the answer: a message that answers another question, findings that come in no order, or one about
something else are a PeerError. Damage is a value here as everywhere; an exception means that nothing was learnt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from replicad.link.channel import ANSWER_S, Channel, unanswered
from replicad.link.messages import (
    MAX_KNOWN,
    Account,
    Accounted,
    Attest,
    Attested,
    Blocks,
    Bye,
    Case,
    Cases,
    Direct,
    Directed,
    Examine,
    Examined,
    Inquire,
    Keep,
    Kept,
    Message,
    Opened,
    OpenTend,
    Refuse,
    Settled,
    Testify,
)
from replicad.link.session import refused, show_text
from replicad.model.attestation import Attestation, DrillNote
from replicad.model.coverage import AgeMap
from replicad.model.divergence import Divergence
from replicad.model.errors import BookDamagedError, LinkError, PeerError, ReplicadError, UsageError
from replicad.model.packed import unpacked
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight
from replicad.status import ScrubStatus

Kind = TypeVar("Kind", Opened, Examined, Cases, Settled, Accounted, Directed, Attested, Kept)
Description = TypeVar("Description", ScrubStatus, AgeMap)


class Conversation:
    """A tending session of one dataset. Several tasks may use it; their questions are asked one after the other."""

    def __init__(self, channel: Channel) -> None:
        """Use `open`."""
        self._channel = channel
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, channel: Channel, dataset: str) -> Conversation:
        """Begin on a greeted channel, which is then the conversation's.

        Raises UsageError (the replica does not have this dataset yet), RefusedError, LinkError, PeerError; the channel
        is then closed."""
        talk = cls(channel)
        try:
            await talk._ask([OpenTend(dataset)], Opened)
        except BaseException:
            await talk.close()
            raise
        return talk

    @property
    def is_over(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._channel.over.is_set()

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer, behind whom all others would wait."""
        return self._turn.locked()

    async def close(self) -> None:
        """End it."""
        await self._channel.close()

    async def examine(self, name: bytes, data: bytes) -> Examined:
        """What the other side makes of these bytes, and what it holds of the block."""
        return await self._ask([Examine(name, data)], Examined)

    async def inquire(self, after: str, known: Mapping[str, int]) -> Cases:
        """Its next open findings; the ids alone of those that are `known` as they were changed last, by id."""
        asked = {name: known[name] for name in sorted(name for name in known if name > after)[:MAX_KNOWN]}
        answer = await self._ask([Inquire(after, asked)], Cases)
        for names in ([case.found.id for case in answer.cases], answer.same):
            if any(one >= other for one, other in itertools.pairwise([after, *names])):
                raise self._broke("named its findings in no order")
        if not asked.keys() >= set(answer.same) or (answer.more and not (answer.cases or answer.same)):
            raise self._broke("named findings that it was not asked for, or none")
        return answer

    async def testify(
        self, case: Case, checksum: bytes, sights: Sequence[Sight], pieces: Sequence[bytes], frames: int
    ) -> Divergence:
        """Say what we hold, and send `frames` proven blocks in these pieces; what became of the finding."""
        said: list[Message] = [Testify(case.found.id, checksum, list(sights), frames)]
        said += [Blocks(piece) for piece in pieces]
        found = (await self._ask(said, Settled)).found
        if found.id != case.found.id:
            raise self._broke("settled another finding")
        return found

    async def account(self) -> Accounted:
        """Its record as a whole."""
        return await self._ask([Account()], Accounted)

    async def direct(self, action: str) -> ScrubStatus | None:
        """How its scrub of this dataset stands, after telling it to start one or just "status"; None without one."""
        return await self._described(action, ScrubStatus)

    async def age_map(self) -> AgeMap | None:
        """When each part of its side was verified last; None when it runs no scrub of this dataset."""
        return await self._described("map", AgeMap)

    async def _described(self, action: str, kind: type[Description]) -> Description | None:
        answer = await self._ask([Direct(action)], Directed)
        if not answer.status:
            return None
        try:
            return unpacked(msgspec.json.Decoder(kind).decode, answer.status)
        except ValueError as error:
            raise self._broke(f"sent an invalid {kind.__name__}: {error}") from None

    async def attest(self, notes: Sequence[DrillNote] = ()) -> Attestation:
        """What its copy amounts to by its own books, after telling it of these drills."""
        return (await self._ask([Attest(list(notes))], Attested)).said

    async def keep(self, name: str, snapshot: Head, reason: str) -> str:
        """Have it keep a snapshot under a name; why it does not, or ""."""
        return show_text((await self._ask([Keep(name, snapshot, reason)], Kept)).problem)

    async def _ask(self, said: Sequence[Message], kind: type[Kind]) -> Kind:
        async with self._turn:
            try:
                return await self._answered(said, kind)
            except BaseException as error:  # an answer still to come would be taken for that of the next question
                self._channel.hang_up("an answer was not waited for")
                if isinstance(error, TimeoutError):
                    raise unanswered(self._channel) from None
                raise

    async def _answered(self, said: Sequence[Message], kind: type[Kind]) -> Kind:
        try:
            for message in said:  # blocks, perhaps, over a slow line
                async with asyncio.timeout(ANSWER_S):
                    await self._channel.send(message)
            async with asyncio.timeout(ANSWER_S):
                answer = await self._channel.receive()
        except LinkError as error:
            raise await self._reason(error) from None
        if isinstance(answer, kind):
            return answer
        raise self._no(answer)

    async def _reason(self, error: LinkError) -> ReplicadError:
        """Why the session ended, if its last message says so."""
        try:
            while True:
                message = await self._channel.receive()
                if isinstance(message, Refuse | Bye):
                    return self._no(message)
        except ReplicadError:
            return error

    def _no(self, message: Message) -> ReplicadError:
        peer = self._channel.peer
        match message:
            case Refuse("unknown", text):
                return UsageError(show_text(text), where=peer)
            case Refuse("busy", text):
                return LinkError(show_text(text), where=peer)
            case Refuse("damaged", text):
                hint = "on the replica: replicad status"
                return BookDamagedError(show_text(text), where=peer, hint=hint)
            case Refuse():
                return refused(message, peer)
            case Bye(reason):
                return LinkError(f"ended the session: {show_text(reason)}", where=peer)
        return self._broke(f"answered with {type(message).__name__}")

    def _broke(self, text: str) -> PeerError:
        return PeerError(text, where=self._channel.peer)
