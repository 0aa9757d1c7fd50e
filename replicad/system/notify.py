"""Notify: what the service tells systemd, and how often systemd wants to hear from it. Sole owner of sdnotify.

Without a notification socket (in a terminal, in a container, in tests) every method does nothing.
"""

from __future__ import annotations

import os
import time

from sdnotify import SystemdNotifier

_PINGS_PER_TIMEOUT = 2
"""sd_watchdog_enabled(3) recommends a sign of life at half the time after which the service counts as hung."""


class Notifier:
    """The channel to the service manager. Build one, in the process that systemd started."""

    def __init__(self) -> None:
        self._managed = bool(os.environ.get("NOTIFY_SOCKET"))
        self.watchdog_s = _watchdog_s()
        """Seconds between two calls of `watchdog` that systemd wants; 0.0 when it wants none."""

    def ready(self, text: str) -> None:
        """Started, or reloaded: `text` says what the daemon does now."""
        self._send("READY=1", f"STATUS={_one_line(text)}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """What `systemctl status` shows."""
        self._send(f"STATUS={_one_line(text)}")

    def stopping(self) -> None:
        """The daemon shuts down."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """A sign of life. To be sent by the loop whose standstill must end the process."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._managed:
            return
        systemd = SystemdNotifier()  # a socket for each of these rare messages: there is none to leak
        # sdnotify encodes as Latin-1; this way the bytes on the socket are UTF-8, as systemd wants them.
        systemd.notify("\n".join(assignments).encode().decode("latin-1"))
        if systemd.socket:
            systemd.socket.close()


def _watchdog_s() -> float:
    """From the environment that systemd sets; a process that only inherited it is not meant."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = os.environ.get("WATCHDOG_USEC", "0")
    return int(microseconds) / 1e6 / _PINGS_PER_TIMEOUT if microseconds.isdigit() else 0.0


def _one_line(text: str) -> str:
    """Text that cannot smuggle in another assignment."""
    return " ".join(text.split())
