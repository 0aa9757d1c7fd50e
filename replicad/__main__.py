"""The program: `replicad`, or `python -m replicad`."""

from __future__ import annotations

import os
import sys

from replicad.cli.app import main as _main


def main() -> None:
    """Run the command line and leave with its exit code.

    At once: every verb has closed what it opened, and taking an interpreter apart takes longer than the daemon takes to
    answer a short verb."""
    code = _main()
    for stream in (sys.stdout, sys.stderr):
        if stream:  # none when it was closed before the start
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
