"""What the tests of drills share: a running pair with scratch space, and drills in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from kit_pair import Pair, make_pair, replicad, running


@contextlib.contextmanager
def drilled_pair(directory: Path, root: Path, options: str = "drill_every = 0") -> Iterator[Pair]:
    """A pair that runs, with a first snapshot; drills come when they are asked for."""
    scratch_of(directory).mkdir()
    directory.chmod(0o711)  # a validator without root's rights has to get there
    lines = f'drill_scratch = "{scratch_of(directory)}"\n{options}'
    with running(make_pair(directory, root, dataset_options=lines)) as pair:
        pair.sync()
        yield pair


def scratch_of(directory: Path) -> Path:
    """Where the pair in `directory` drills."""
    return directory / "scratch"


def drill(pair: Pair, *words: object, code: int = 0) -> dict[str, object]:
    """Type a drill; its record."""
    said = replicad("drill", "run", "www", "--json", "--config", pair.primary.config, *words, code=code)
    (record,) = json.loads(said.stdout)["drills"]
    assert isinstance(record, dict)
    return record
