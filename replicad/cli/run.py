"""The verb `run`: the daemon, in the foreground."""

from __future__ import annotations

from replicad.cli.options import DEFAULT_CONFIG, ConfigOption


def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT; SIGHUP reloads the configuration.

    systemd starts it with Type=notify. Logs go to standard error. Exit code 2 when the configuration is invalid or
    another daemon works on the same state or store.
    """
    from replicad.daemon import run as run_daemon

    run_daemon(config)
