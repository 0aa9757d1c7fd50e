"""The program: `replicad`, or `python -m replicad`."""

from __future__ import annotations

import os
import sys

from replicad.cli.app import main as _main


def main() -> None:
    """Run the command line and leave with its exit code.

    At once: every verb has closed what it opened, and taking an interpreter apart takes longer than a short verb
    waits for the daemon."""
    code = _main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
