"""The program: `replicad`, or `python -m replicad`."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    gc.disable()  # what is loaded stays: looking for garbage in it would be a tenth of a short verb
    from replicad.cli.app import end_on_sigterm
    from replicad.cli.app import main as run

    gc.enable()
    end_on_sigterm()
    sys.exit(run())


if __name__ == "__main__":
    main()
