"""The verb `run`: the daemon, in the foreground."""

from __future__ import annotations

import asyncio

from replicad.cli.options import DEFAULT_CONFIG, ConfigOption


def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT; SIGHUP reloads the configuration.

    systemd starts it with Type=notify. Logs go to standard error. Exit code 2 when the configuration is invalid or
    another daemon works on the same state or store.
    """
    from replicad.config import load
    from replicad.daemon import Daemon
    from replicad.system.heap import suit_bulk
    from replicad.system.logs import configure
    from replicad.system.notify import Notifier

    found = load(config)
    configure(found.node.log_level, found.node.log_format)
    suit_bulk()
    asyncio.run(Daemon(found).run(Notifier()))
