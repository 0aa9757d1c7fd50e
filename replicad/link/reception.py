"""Reception: what happens to a channel that a client has opened, whichever door it came through.

**Owns** the list of sessions under way and its limit. Greets, hands the channel to the room that serves it, and
closes it afterwards; a session's end never touches another one. The doors (embedded SSH listener, unix socket for
an OpenSSH server) only know who the client is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from replicad.config import ClientConfig, ViewerConfig
from replicad.link.channel import KEEPALIVE_S, Channel, admit, refuse
from replicad.link.messages import Refuse
from replicad.link.viewing import View, Viewings
from replicad.model.errors import RefusedError, ReplicadError

SHARE = 3 / 4
"""What one client may have of all sessions while others are configured, who need the rest."""
MAX_TURNED_AWAY = 16
"""Sessions beyond the limit that are told so at the same time; further ones are cut without a word."""


class OnView(Protocol):
    """What the doors need to know of the SFTP view."""

    max_views: int
    max_handles: int

    def viewers(self) -> Sequence[ViewerConfig]:
        """Asked at each authentication, like `House.clients`."""

    def view(self, viewer: str) -> View:
        """What the viewer named sees, over one session."""


@dataclass(frozen=True, slots=True)
class House:
    """What the doors need of the node behind them."""

    node: str
    software: str
    clients: Callable[[], Sequence[ClientConfig]]
    """Asked at each authentication, so that a new authorisation needs no restart."""
    serve: Callable[[Channel, str], Awaitable[None]]
    """Serves one greeted channel of the client named; the channel is closed when it returns or raises."""
    report: Callable[[ReplicadError], None]
    """Told of every session and connection that ended in an error, for the log."""
    on_view: OnView | None = None
    """None: nothing is."""
    keepalive_s: float = KEEPALIVE_S
    max_sessions: int = 64
    window_bytes: int = 32 * 1024**2


class Reception:
    """The sessions of one node. Use it for all of its doors."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.views = Viewings(house.on_view.max_views if house.on_view else 0, house.report)
        self._sessions: dict[asyncio.Task[None], Channel] = {}
        self._turned_away: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def sessions(self) -> int:
        """Sessions under way, greeted or not."""
        return len(self._sessions)

    def client_named(self, name: str) -> ClientConfig | None:
        """The configured client of that name."""
        return next((client for client in self.house.clients() if client.name == name), None)

    def viewers(self) -> Sequence[ViewerConfig]:
        """Who may view."""
        return self.house.on_view.viewers() if self.house.on_view else ()

    def start(self, channel: Channel) -> None:
        """Take over a new channel; `channel.peer` is the authenticated client. Never raises."""
        if self._stopping:
            self.turn_away(channel, Refuse("stopping", "the daemon is shutting down"))
        elif crowded := self._crowded(channel.peer):
            self.turn_away(channel, Refuse("busy", crowded))
        else:
            task = asyncio.get_running_loop().create_task(self._host(channel), name=f"session of {channel.peer}")
            self._sessions[task] = channel
            task.add_done_callback(self._ended)

    def turn_away(self, channel: Channel, refusal: Refuse) -> None:
        """Tell a client no. Never raises."""
        if len(self._turned_away) >= MAX_TURNED_AWAY:
            channel.abort()
            return
        self.house.report(RefusedError(refusal.text, where=channel.peer))
        task = asyncio.get_running_loop().create_task(refuse(channel, refusal))
        self._turned_away.add(task)
        task.add_done_callback(self._turned_away.discard)

    async def recheck(self) -> None:
        """End the sessions of clients that are no longer configured, and those on datasets that their client may not
        have any more; for a changed configuration."""
        channels = tuple(self._sessions.values())
        await asyncio.gather(*(refuse(one, Refuse("right", why)) for one in channels if (why := self._withdrawn(one))))
        self.views.recheck({viewer.name for viewer in self.viewers()})

    async def close(self) -> None:
        """Take no more sessions and end those under way: each client is told that the daemon stops."""
        self._stopping = True
        await self.views.close()
        channels = list(self._sessions.values())
        for task in self._sessions:
            task.cancel()
        farewell = Refuse("stopping", "the daemon is shutting down")
        await asyncio.gather(*(refuse(channel, farewell) for channel in channels))
        await asyncio.gather(*self._sessions, *self._turned_away, return_exceptions=True)

    def _crowded(self, client: str) -> str:
        """Why one more session of this client is too many, or ""."""
        limit = self.house.max_sessions
        if self.sessions >= limit:
            return f"all {limit} sessions are taken"
        own = sum(channel.peer == client for channel in self._sessions.values())
        if len(self.house.clients()) > 1 and own >= max(1, int(limit * SHARE)):
            return f"client {client} has {own} of {limit} sessions; the rest is for others"
        return ""

    def _withdrawn(self, channel: Channel) -> str:
        """Why this session may not go on, or ""."""
        client = self.client_named(channel.peer)
        if client is None:
            return "this client is no longer authorised"
        if channel.dataset and not client.may_have(channel.dataset):
            return f"client {client.name} has no right to dataset {channel.dataset!r} any more"
        return ""

    async def _host(self, channel: Channel) -> None:
        try:
            await admit(channel, self.house.software, self.house.node)
            await self.house.serve(channel, channel.peer)
        except ReplicadError as error:
            self.house.report(error)
        finally:
            if not self._stopping:
                await channel.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        channel = self._sessions.pop(task)
        _tell_defect(task, channel.peer)


def _tell_defect(task: asyncio.Task[None], client: str) -> None:
    """A session that ended in anything but a ReplicadError is a defect of ours; the event loop's handler logs it."""
    if not task.cancelled() and (error := task.exception()):
        context = {"message": f"defect in a session of {client}", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
