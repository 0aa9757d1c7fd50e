"""The program: `replicad`, or `python -m replicad`."""

from __future__ import annotations

import sys

from replicad.cli.app import main as _main


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(_main())


if __name__ == "__main__":
    main()
