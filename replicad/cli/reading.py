"""Reading: where the verbs that read snapshots read them from, and how a person says so.

Owns the argument DATASET, the options `--from`, `--replica`, `--key` and `--store`, their meaning together with the
configuration, and the notation DATASET@WHEN.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replicad.cli import offered, output
from replicad.model.errors import ConfigError, ReplicadError, UsageError
from replicad.model.when import LATEST

if TYPE_CHECKING:  # slow to import, and needed when a verb runs only
    from replicad.config import Config
    from replicad.work.reader import HistoryReader

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="The dataset, or CLIENT/DATASET in a store.", autocompletion=offered.on_either_side
    ),
]
FromOption = Annotated[str, typer.Option("--from", metavar="REPLICA", help="The configured replica to read from.")]
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Read a store directory of this host; needs no daemon and no config."),
]
ReplicaOption = Annotated[
    str, typer.Option("--replica", metavar="LINE", help="The replica's line, as `init replica` printed it; with --key.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Private key for --replica.")]


@dataclass(frozen=True, slots=True)
class Where:
    """What the command line says about where to read from."""

    dataset: str
    config: Path
    replica: str = ""
    line: str = ""
    key: Path | None = None
    store: Path | None = None


def split_when(text: str) -> tuple[str, str]:
    """DATASET[@WHEN] as dataset and moment; names of datasets hold no @. Raises UsageError."""
    dataset, at, when = text.rpartition("@")
    if not at:
        return text, LATEST
    if not dataset or not when:
        hint = "write DATASET@WHEN, WHEN being latest, a snapshot number or an RFC 3339 time"
        raise UsageError(f"{text!r} names no {'snapshot' if dataset else 'dataset'}", hint=hint)
    return dataset, when


def configuration(where: Where) -> Config | None:
    """The configuration, when the command line leaves something to it. Raises ConfigError, UsageError."""
    from replicad.config import load

    if sum(map(bool, (where.store, where.line, where.replica))) > 1:
        raise UsageError("--store, --replica and --from exclude one another")
    if bool(where.line) != bool(where.key):
        raise UsageError("--replica and --key belong together")
    if not (where.store or where.line):
        return load(where.config, check_files=False)
    if not where.config.exists():
        return None
    try:  # not needed to read, but what is live on this host counts when the target is judged
        return load(where.config, check_files=False)
    except ConfigError as error:
        output.note(f"{where.config} is not considered, it is invalid: {error.problems[0]}")
        return None


def reading(where: Where, config: Config | None) -> AbstractAsyncContextManager[HistoryReader]:
    """The reader that the command line and the configuration mean."""
    from replicad.model.pairing import parse_replica_line
    from replicad.work import origin

    if where.store:
        return origin.reading_store(where.store, where.dataset)
    if where.line:
        assert where.key
        replica = origin.replica_of(parse_replica_line(where.line))
        return origin.reading_replica([replica], where.key, where.dataset, _passed_over)
    assert config
    if config.listen and not where.replica and ("/" in where.dataset or not config.replicas):
        return origin.reading_store(config.listen.store, where.dataset)
    replicas = origin.replicas_for(config, where.dataset, where.replica)
    return origin.reading_replica(replicas, config.node.key, where.dataset, _passed_over)


def _passed_over(error: ReplicadError) -> None:
    output.note(f"trying the next replica: {error}")
