"""Scrub: the loop that reads one side of one dataset again and again, in time and without disturbing anybody.

**Owns** the pace (model/pace.py decides, this measures and waits), requests, pauses, and the side's `ScrubStatus`. What
to read, in which order and how to judge it, is its `Surface`'s; so there is no place to lose at a restart.

**Never** takes "could not be read" for "is well": a surface that fails leaves every moment of verification where it
was, and the status says why. One turn of reading is one `step`, the rest after it is in `wait`; the check of the
structure is a task beside these, so neither waits for the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from replicad.config import DatasetConfig, ListenConfig
from replicad.config.units import parse_hours
from replicad.db.due import most_ahead_ns
from replicad.model import pace
from replicad.model.divergence import Side
from replicad.model.errors import ReplicadError
from replicad.model.pace import Interruption, Pace, Policy, Situation, Speed
from replicad.status import MOST, ScrubStatus
from replicad.system.clock import Clock, format_ns
from replicad.system.load import io_strain
from replicad.system.logs import logger
from replicad.work.coverage_notes import NOTE_EVERY_S, look_of
from replicad.work.job import words_of
from replicad.work.scrub_book import InBook, Memory, Tally, packed, recall, remember, tally
from replicad.work.scrub_demands import Outstanding
from replicad.work.surface import Surface, Verified
from replicad.work.together import first_of

log = logger("work.scrub")

LONGEST_PAUSE_S = 86400.0
"""A pause ends by itself: a scrub that somebody forgot to resume is how rot goes unnoticed."""
LOOK_EVERY_S = 5.0
"""How often books and load are looked at while it reads; CALM_LOOK_S while it rests for long."""
CALM_LOOK_S = 30.0
ASKED_LOOK_S = 1.0
"""While somebody waits for the end of a request."""
NOTHING_AGAIN_S = 60.0
"""When there was nothing that could be verified although something is due, it is tried again after this."""
STRUCTURE_AGAIN_S = 600.0
"""A check of the structure that failed is tried again after this; blocks are read meanwhile."""
ALIVE_EVERY_S = 600.0
"""How often it is written down that the scrub is alive."""
STOOD_SHARE = 0.02
"""An interruption shorter than this share of `scrub_every` is not worth a word."""
NOT_SINCE_START = "what could not be looked at before the daemon was started is tried again"
MEMORY_S, LASTING_S = 1.0, 300.0
"""Seconds of reading after which a measured speed counts half: for the length of turns, and for forecasts."""

OpenSurface = Callable[[], Awaitable[Surface]]
"""Gives the surface, opened; called again after each failure, once a check of the structure under way has ended. Raises
ReplicadError, as the surface's methods do."""


def policy_of(config: DatasetConfig | ListenConfig) -> Policy:
    """What the configuration says about the pace."""
    quiet = parse_hours(config.quiet_hours) if config.quiet_hours else None
    return Policy(config.scrub_every_s, config.scrub_duty, quiet)


class Turns:
    """Whoever shares these reads one after the other, and checks one structure after the other."""

    def __init__(self) -> None:
        self.reading, self.checking = asyncio.Lock(), asyncio.Lock()


class Scrubbing:
    """The job of one side of one dataset."""

    def __init__(
        self,
        open_surface: OpenSurface,
        in_book: InBook,
        status: ScrubStatus,
        policy: Callable[[], Policy],
        clock: Clock,
        *,
        turns: Turns | None = None,
        strain: Callable[[], float] = io_strain,
    ) -> None:
        """`policy` is asked again and again, so that a changed configuration is in force at once."""
        self._open_surface, self._in_book, self.status, self._policy_now = open_surface, in_book, status, policy
        self._clock, self._turns, self._strain_now = clock, turns or Turns(), strain
        self._memory: Memory | None = None
        self._tally: Tally | None = None
        self._surface: Surface | None = None
        self._outstanding = Outstanding(0)
        self._requested_bytes = 0
        self._reading, self._speed, self._lasting = Speed(MEMORY_S), Speed(MEMORY_S), Speed(LASTING_S)
        self._strain = self._busy_s = self._rate_bytes_s = 0.0
        self._read_bytes = 0
        self._looked_s = self._recounted_s = self._structure_again_s = self._noted_s = float("-inf")
        self._turn_s, self._turn_bytes, self._turn_ended_s = 0.0, 0, float("-inf")
        self._nothing_until_s = self._wake_s = float("-inf")
        self._doubts: tuple[str, ...] = ()
        """What could not be looked at, until it could: no request ends before."""
        self._more_doubts = self._doubted_ns = 0
        self._structure_error = ""
        self._checking: asyncio.Task[None] | None = None
        """The check of the structure that is under way."""
        self._poked = asyncio.Event()

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        status = self.status
        whose = f"{status.peer}/" if status.peer and status.side == Side.REPLICA else ""
        return f"scrub {status.side} {whose}{status.dataset}"

    # what a person, or a peer, asks for

    async def request(self, *, from_peer: bool = False) -> int:
        """Verify everything once from now on, at the full duty; the number that `served` reaches then.

        A person's request ends a pause and breaks quiet hours. A peer's does neither, and joins a request under way.
        Raises ReplicadError when it cannot be remembered."""
        memory = await self._remembered()
        if not (from_peer and memory.requested_ns):
            memory.requested += 1
            memory.requested_ns, memory.from_peer = self._clock.now_ns(), from_peer
            if not from_peer:
                self._end_pause(memory, "ended by a request")
            await self._remember()
            self._requested_bytes = max(1, self._outstanding.extent.total_bytes)
            log.info("scrub requested", scrub=self.name, by="peer" if from_peer else "command")
        self._poke()
        return memory.requested

    async def pause(self, until_ns: int) -> int:
        """Read nothing until then, for LONGEST_PAUSE_S at most; when it will really end. Raises as `request`."""
        memory, now_ns = await self._remembered(), self._clock.now_ns()
        memory.paused_from_ns = memory.paused_from_ns or now_ns
        memory.paused_until_ns = min(until_ns, now_ns + int(LONGEST_PAUSE_S * 1e9))
        await self._remember()
        log.info("scrub paused", scrub=self.name, until=format_ns(memory.paused_until_ns))
        self._poke()
        return memory.paused_until_ns

    async def resume(self) -> bool:
        """End a pause; whether there was one. Raises as `request`."""
        memory = await self._remembered()
        was_paused = self._end_pause(memory, "ended by command")
        if was_paused:
            await self._remember()
            self._poke()
        return was_paused

    def take_over(self, before: Scrubbing) -> None:
        """Go on in place of a scrub that was configured otherwise: what was counted stays counted."""
        self.status.media_bytes, self.status.cache_bytes = before.status.media_bytes, before.status.cache_bytes

    # the job

    async def wait(self) -> None:
        """Until the rest is over, it is time to look again, or somebody asked for something."""
        delay_s = self._wake_s - self._clock.monotonic_s()
        if delay_s <= 0:
            await self._clock.sleep(0)
            return
        await first_of(self._poked.wait(), self._clock.sleep(delay_s))

    async def step(self) -> None:
        """Look how it stands, then one turn of reading or a rest. Raises ReplicadError when it could not be read."""
        self._poked.clear()
        self._end_check()
        try:
            await self._step()
        except Exception as error:  # a defect of ours too: the runner counts it, and nothing is on track meanwhile
            if self._checking is None:  # a check under way goes on with this one
                self._surface = None
            self._looked_s = float("-inf")
            self._show("failed", f"nothing could be read: {words_of(error)}", on_track=False)
            raise

    async def close(self) -> None:
        """End what goes on beside the steps."""
        if self._checking:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)

    async def _step(self) -> None:
        policy, memory = self._policy_now(), await self._remembered()
        if self._is_time_to(self._recounted_s):
            await self._recount(memory)
        surface = await self._opened()
        if self._is_time_to(self._looked_s):
            await self._look(surface, policy, memory)
        if not self._outstanding.extent.total_bytes:
            await self._serve(memory, "there is nothing to verify")
            self._rest("waiting", "nothing is recorded yet", CALM_LOOK_S)
            return
        if not (self._requested_bytes or self._doubts):
            await self._serve(memory, "everything has been verified since")
        situation = self._situation(policy, memory)
        now = pace.decide(policy, situation)
        if self._is_paused(memory):
            reason = f"paused until {format_ns(memory.paused_until_ns)}, when it goes on by itself"
            self._rest("paused", _joined(reason, now.reason), CALM_LOOK_S, on_track=now.on_track)
        elif now.is_quiet:
            until_s = pace.until_active_s(policy.quiet, situation.second_of_day)
            self._rest("quiet", now.reason, until_s, on_track=now.on_track)
        else:
            self._begin_check(surface, memory)
            await self._read(surface, memory, now)
        self._show_outlook(policy, memory, situation, now)

    # reading

    async def _read(self, surface: Surface, memory: Memory, now: Pace) -> None:
        """One turn, or the rest that the last one has earned."""
        at_s = self._clock.monotonic_s()
        rest_s = self._turn_ended_s + now.rest_s(self._turn_s, self._turn_bytes) - at_s if self._turn_s else 0.0
        is_asked_in_vain = bool(memory.requested_ns) and not (self._requested_bytes or now.share)
        if self._doubts and (self._nothing_until_s > at_s or is_asked_in_vain):
            again_s = self._nothing_until_s - at_s
            self._rest("waiting", self._remark(now), again_s if again_s > 0 else CALM_LOOK_S, on_track=now.on_track)
        elif not (now.share or self._is_to_be_tried_again(now)) or self._nothing_until_s > at_s:
            state = "waiting" if is_asked_in_vain and self._structure_error else "idle"
            self._rest(state, self._remark(now), CALM_LOOK_S, on_track=now.on_track)
        elif rest_s > 0:
            self._rest("idle" if rest_s > CALM_LOOK_S else "running", self._remark(now), rest_s, on_track=now.on_track)
        else:
            self._show("running", self._remark(now), on_track=now.on_track)
            async with self._turns.reading:
                await self._take_turn(surface, memory, now)
            if self._is_to_be_tried_again(now):
                self._looked_s = float("-inf")
            after_s = now.rest_s(self._turn_s, self._turn_bytes)
            self._wake_s = min(self._turn_ended_s + after_s, self._looked_s + self._look_every_s())

    def _is_to_be_tried_again(self, now: Pace) -> bool:
        """Whether nothing asks for any pace, and something that could not be judged has waited for long enough."""
        return not now.share and self._outstanding.extent.since_bytes > 0

    async def _take_turn(self, surface: Surface, memory: Memory, now: Pace) -> None:
        began_s = self._clock.monotonic_s()
        try:
            verified = await surface.verify(now.turn_bytes, self._since_ns(memory))
        except ReplicadError as error:
            self._doubt((str(error),))
            await self._remember_doubt(memory)
            raise
        self._turn_ended_s = self._clock.monotonic_s()
        self._turn_s = max(1e-6, self._turn_ended_s - began_s)
        self._note(verified, memory)
        await self._remember_doubt(memory)

    def _note(self, verified: Verified, memory: Memory) -> None:
        read_bytes = verified.media_bytes + verified.cache_bytes
        size = self._turn_bytes = read_bytes + verified.nominal_bytes
        self.status.media_bytes += verified.media_bytes
        self.status.cache_bytes += verified.cache_bytes
        self._busy_s += self._turn_s
        self._read_bytes += read_bytes
        if size:
            self._reading.add(size, verified.reading_s or self._turn_s)
            self._speed.add(size, self._turn_s)
            self._lasting.add(size, self._turn_s)
        self._outstanding.verified(size)
        if memory.requested_ns:
            self._requested_bytes = max(1, self._requested_bytes - size)
            if self._requested_bytes == 1:  # it may be done, but only a look says so
                self._looked_s = float("-inf")
        if verified.doubts:
            self._doubt(verified.doubts, verified.more_doubts)
        if not verified.units:
            self._nothing_until_s = self._turn_ended_s + NOTHING_AGAIN_S
            if not self._doubts:
                self._requested_bytes = 0
        if verified.found:
            self._recounted_s = float("-inf")

    def _doubt(self, doubts: tuple[str, ...], more: int = 0) -> None:
        self._doubts, self._more_doubts, self._doubted_ns = doubts, more, self._clock.now_ns()

    def _begin_check(self, surface: Surface, memory: Memory) -> None:
        if self._checking is None and self._structure_is_due(memory):
            self._checking = asyncio.create_task(self._check_structure(surface, memory))

    def _end_check(self) -> None:
        """Raises what a check that has ended came to, if that was a defect, or the book could not take the result."""
        if self._checking and self._checking.done():
            ended, self._checking = self._checking, None
            ended.result()

    async def _check_structure(self, surface: Surface, memory: Memory) -> None:
        """What hashing cannot see. That it could not be checked is shown and tried again; reading goes on."""
        async with self._turns.checking:
            began_ns = self._clock.now_ns()
            try:
                await surface.structure()
            except Exception as error:
                self._structure_error = f"the structure could not be checked: {words_of(error)}"
                self._structure_again_s = self._clock.monotonic_s() + STRUCTURE_AGAIN_S
                log.warning("structure not checked", scrub=self.name, reason=words_of(error))
                if not isinstance(error, ReplicadError):
                    raise
            else:
                self._structure_error = ""
                memory.structure_ns = self.status.structure_ns = began_ns
                self._recounted_s = self._looked_s = float("-inf")
                await self._remember()
        self._poked.set()

    def _structure_is_due(self, memory: Memory) -> bool:
        return memory.structure_ns < self._since_ns(memory) and self._clock.monotonic_s() >= self._structure_again_s

    def _since_ns(self, memory: Memory) -> int:
        """Everything is to be verified once since then."""
        return max(self._outstanding.cycle_begin_ns, memory.requested_ns)

    async def _serve(self, memory: Memory, what: str) -> None:
        """End the request under way, if there is one, and if the structure was checked since as well."""
        is_checked = memory.structure_ns >= memory.requested_ns or not self._outstanding.extent.total_bytes
        if memory.requested_ns and is_checked:
            memory.served, memory.requested_ns = memory.requested, 0
            memory.from_peer = memory.is_in_doubt = False
            await self._remember()
            log.info("scrub request served", scrub=self.name, what=what)

    # looking

    async def _opened(self) -> Surface:
        if self._surface is None:
            self._surface = await self._open_surface()
            self._looked_s = float("-inf")
        return self._surface

    async def _look(self, surface: Surface, policy: Policy, memory: Memory) -> None:
        """Ask how much there is to do; measure what was done and how busy the host is."""
        now_ns, at_s = self._clock.now_ns(), self._clock.monotonic_s()
        await self._outstanding.look(surface, policy, now_ns)
        since = self._outstanding.extent
        if memory.requested_ns:
            since = await surface.extent(memory.requested_ns)
            is_over = not since.since_bytes or (self._nothing_until_s > at_s and not self._doubts)
            self._requested_bytes = 0 if is_over else since.since_bytes
        self.status.held_up = bool(memory.requested_ns and self._doubts) and not since.untried_bytes
        is_tried_again = now_ns - self._doubted_ns > surface.retry_s * 1e9
        if not since.since_bytes and (not since.waiting_bytes or is_tried_again):
            self._doubts = ()  # all that waits was tried again since and was not in doubt: it is being written
        await self._remember_doubt(memory)
        elapsed_s = at_s - self._looked_s
        if 0 < elapsed_s < float("inf"):
            fade = 0.5 ** (elapsed_s / CALM_LOOK_S)
            self._rate_bytes_s = fade * self._rate_bytes_s + (1 - fade) * self._read_bytes / elapsed_s
            self._strain = max(0.0, self._strain_now() - self._busy_s / elapsed_s)  # its own reading strains nobody
        self._looked_s, self._busy_s, self._read_bytes = at_s, 0.0, 0
        extent = self._outstanding.extent
        has_new = memory.new_by_ns != self._outstanding.new_by_ns
        if not memory.once_ns and extent.total_bytes and (self._outstanding.batches or not extent.never_bytes):
            memory.once_ns, has_new = now_ns, True
        memory.new_by_ns = self._outstanding.new_by_ns
        if extent.total_bytes and at_s - self._noted_s >= NOTE_EVERY_S:
            await self._note_coverage(surface, policy, now_ns)
        if has_new or now_ns - memory.alive_ns > ALIVE_EVERY_S * 1e9:
            await self._remember()
        self._wake_s = at_s + self._look_every_s()

    async def _note_coverage(self, surface: Surface, policy: Policy, now_ns: int) -> None:
        """How much is verified within the deadline, into the status and the history."""
        extent, status = await surface.extent(now_ns - int(policy.every_s * 1e9)), self.status
        status.total_bytes, status.never_bytes, status.overdue_bytes = (
            extent.total_bytes,
            extent.never_bytes,
            extent.old_bytes,
        )
        look = look_of(status, now_ns)
        await self._in_book(lambda findings: findings.coverage.note(Side(status.side), "", look))
        self._noted_s = self._clock.monotonic_s()

    def _situation(self, policy: Policy, memory: Memory) -> Situation:
        return Situation(
            now_ns=self._clock.now_ns(),
            second_of_day=self._clock.second_of_day(),
            demands=self._outstanding.demands,
            requested_bytes=self._requested_bytes if memory.requested_ns else 0,
            breaks_quiet=bool(memory.requested_ns and self._requested_bytes) and not memory.from_peer,
            paused_until_ns=memory.paused_until_ns,
            reading_bytes_s=self._reading.bytes_s,
            speed_bytes_s=self._speed.bytes_s,
            lasting_bytes_s=self._lasting.bytes_s,
            strain=self._strain,
            interruption=Interruption(memory.stood, memory.stood_s, memory.stood_until_ns),
        )

    def _look_every_s(self) -> float:
        if self._memory and self._memory.requested_ns and (self._requested_bytes or not self._doubts):
            return ASKED_LOOK_S
        if not self._outstanding.extent.total_bytes:
            return LOOK_EVERY_S  # it costs nothing, and the first blocks may come at any moment
        return CALM_LOOK_S if self.status.state in ("idle", "waiting", "paused", "quiet") else LOOK_EVERY_S

    def _is_time_to(self, last_s: float) -> bool:
        return self._clock.monotonic_s() - last_s >= self._look_every_s()

    # remembering

    async def _remembered(self) -> Memory:
        """What is remembered; at first from the book, with what the time since it was written means."""
        if self._memory is None:
            memory = await self._in_book(recall)
            if self._memory is None:  # nobody else asked meanwhile
                self._memory = memory
                self._outstanding = Outstanding(memory.new_by_ns)
                self._requested_bytes = 1 if memory.requested_ns else 0
                if memory.is_in_doubt:
                    self._doubt((NOT_SINCE_START,))
                if memory.alive_ns:
                    self._stood(memory, "the daemon did not run", memory.alive_ns)
        _back_from_the_future(self._memory, self._clock.now_ns(), self._policy_now().every_s)
        self._show_memory(self._memory)
        return self._memory

    async def _remember(self) -> None:
        memory = self._memory
        assert memory is not None
        memory.alive_ns = self._clock.now_ns()
        self._show_memory(memory)
        await self._in_book(partial(remember, memory=packed(memory)))

    async def _remember_doubt(self, memory: Memory) -> None:
        """While a request is under way: a restart must not end it as if all were well."""
        is_in_doubt = bool(self._doubts) and memory.requested_ns > 0
        if memory.is_in_doubt != is_in_doubt:
            memory.is_in_doubt = is_in_doubt
            await self._remember()

    async def _recount(self, memory: Memory) -> None:
        """How the findings stand, into the status; and whether a pause is over."""
        side, known = Side(self.status.side), self._tally
        self._tally = counted = await self._in_book(lambda findings: tally(findings, side, known))
        self._recounted_s = self._clock.monotonic_s()
        status = self.status
        status.divergent, status.divergences = counted.divergent, counted.divergences
        status.oldest_open_ns, status.oldest_inconclusive_ns = counted.oldest_open_ns, counted.oldest_inconclusive_ns
        status.lost, status.suspects, status.repairs = counted.lost, counted.suspects, counted.repairs
        status.breaker_open = counted.breaker_open
        if memory.paused_until_ns and not self._is_paused(memory) and self._end_pause(memory, "ended by itself"):
            await self._remember()

    def _is_paused(self, memory: Memory) -> bool:
        left_s = (memory.paused_until_ns - self._clock.now_ns()) / 1e9
        return 0 < left_s <= LONGEST_PAUSE_S  # a clock that was set back must not make it longer

    def _end_pause(self, memory: Memory, how: str) -> bool:
        if not memory.paused_until_ns:
            return False
        self._stood(memory, "it was paused", memory.paused_from_ns)
        memory.paused_from_ns = memory.paused_until_ns = 0
        log.info(f"pause of the scrub {how}", scrub=self.name)
        return True

    def _stood(self, memory: Memory, what: str, since_ns: int) -> None:
        """An interruption has ended; a long one is remembered, because it may be why a deadline is missed."""
        now_ns = self._clock.now_ns()
        length_s = (now_ns - since_ns) / 1e9
        if length_s > self._policy_now().every_s * STOOD_SHARE:
            memory.stood, memory.stood_s, memory.stood_until_ns = what, length_s, now_ns

    # showing

    def _rest(self, state: str, reason: str, rest_s: float, *, on_track: bool = True) -> None:
        self._show(state, reason, on_track=on_track)
        self._wake_s = self._clock.monotonic_s() + min(rest_s, self._look_every_s())

    def _show(self, state: str, reason: str, *, on_track: bool = True) -> None:
        is_kept_from_it = self._doubts and self.status.overdue_bytes
        on_track = on_track and not (self._structure_error or is_kept_from_it)
        checking = "the structure is checked" if self._checking else ""
        self.status.state = "running" if checking and state == "idle" else state
        self.status.reason = _joined(self._structure_error or checking, reason)
        self.status.on_track = on_track

    def _show_memory(self, memory: Memory) -> None:
        status = self.status
        status.scrub_every_s = self._policy_now().every_s
        status.requested, status.served = memory.requested, memory.served
        status.paused_until_ns = memory.paused_until_ns if self._is_paused(memory) else 0
        status.structure_ns = memory.structure_ns

    def _show_outlook(self, policy: Policy, memory: Memory, situation: Situation, now: Pace) -> None:
        status, extent = self.status, self._outstanding.extent
        status.total_bytes, status.never_bytes = extent.total_bytes, extent.never_bytes
        status.oldest_verified_ns = self._outstanding.oldest_ns(policy) if memory.once_ns else 0
        status.rate_bytes_s = self._rate_bytes_s
        is_asked = bool(memory.requested_ns)
        status.left_bytes = self._requested_bytes if is_asked else self._outstanding.left_bytes
        rate = now.rate_bytes_s or min(1.0, policy.duty) * situation.lasting_bytes_s
        ends_ns = pace.finish_ns(policy, situation, status.left_bytes or extent.total_bytes, rate)
        status.forecast_ns = min(ends_ns, MOST)

    def _remark(self, now: Pace) -> str:
        if self._doubts:
            count, first = len(self._doubts) + self._more_doubts, self._doubts[0]
            text = f"{count} parts could not be looked at and stay due, the first: {first}"
            if count == 1:
                text = f"1 part could not be looked at and stays due: {first}"
            return _joined(now.reason, first if first == NOT_SINCE_START else text)
        if now.reason or self._memory is None:
            return now.reason
        if tried := self._outstanding.extent.tried_bytes:
            return f"{pace.show_size(tried)} are being written or were moved: they are looked at again"
        ended_ns = self._memory.stood_until_ns
        if self._memory.stood_s and self._clock.now_ns() - ended_ns < LONGEST_PAUSE_S * 1e9:
            return f"{self._memory.stood} until {format_ns(ended_ns)}, and is making up for it"
        return ""

    def _poke(self) -> None:
        """Look again now."""
        self._looked_s = self._recounted_s = self._nothing_until_s = float("-inf")
        self._poked.set()


def _back_from_the_future(memory: Memory, now_ns: int, every_s: float) -> None:
    """What was written down by a clock that was ahead must not keep anything waiting until that moment comes."""
    memory.requested_ns = min(memory.requested_ns, now_ns)
    memory.alive_ns, memory.stood_until_ns = min(memory.alive_ns, now_ns), min(memory.stood_until_ns, now_ns)
    if memory.structure_ns > now_ns + most_ahead_ns(every_s):
        memory.structure_ns = 0


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)
