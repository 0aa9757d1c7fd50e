"""Judge: a process of its own in which one validator looks at one subject.

Started for each by work/validators.py with one `Task` as JSON in its only argument; prints one `Judgement` as JSON. It
stays what it is (root, where the daemon is) and attends to what it forks, which gives up all rights before it touches
restored bytes: a parser that is taken over by what it parses gets an hour in an empty directory, as nobody.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import msgspec

from replicad.model.drill import Outcome
from replicad.system.bounded import NOT_BEGUN, Ended, User, attend, run_bounded
from replicad.work.check_postgres import check_postgresql
from replicad.work.checks import CHECKS, CannotTell

INCONCLUSIVE_CODE = 75
"""A command that ends so could not find out (EX_TEMPFAIL)."""
_CHECKS = CHECKS | {"postgresql": check_postgresql}
_LONGEST_TEXT = 600
_LONGEST_PROBLEM = 4000
"""Characters of a check's own words: all of it has to come through two pipes, or a known damage becomes a doubt."""


class Task(msgspec.Struct):
    """What to look at, and how."""

    parent: int
    """The process whose end ends everything."""
    kind: str
    bench: str
    """The directory in which the subject stands, alone but for what belongs to it."""
    name: str
    timeout_s: float
    command: list[str] = []
    uid: int = -1
    """Whose rights the check gets; -1: those of this process's own user."""
    gid: int = -1


class Judgement(msgspec.Struct):
    """What came of it."""

    outcome: Outcome
    text: str = ""


def main() -> None:
    """Judge, and print it."""
    task = msgspec.json.decode(sys.argv[1], type=Task)
    attend(task.parent)
    work = partial(_command if task.kind == "command" else _check, task)
    user = User(task.uid, task.gid) if task.uid >= 0 else None
    ended = run_bounded(work, directory=Path(task.bench), user=user, timeout_s=task.timeout_s)
    judgement = _of_command(ended) if task.kind == "command" else _of_check(ended)
    sys.stdout.buffer.write(msgspec.json.encode(judgement))
    sys.stdout.flush()


def _check(task: Task) -> bytes:
    """In the process without rights."""
    try:
        problem = _CHECKS[task.kind](Path(task.bench, task.name))
    except CannotTell as error:
        judgement = Judgement(Outcome.INCONCLUSIVE, str(error)[:_LONGEST_PROBLEM])
    else:
        judgement = Judgement(Outcome.FAILED if problem else Outcome.PROVEN, (problem or "")[:_LONGEST_PROBLEM])
    return msgspec.json.encode(judgement)


def _command(task: Task) -> bytes:
    """In the process without rights: becomes the command."""
    argv = [*task.command, str(Path(task.bench, task.name))]
    try:
        os.execvpe(argv[0], argv, dict(os.environ))
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(NOT_BEGUN)


def _of_check(ended: Ended) -> Judgement:
    if ended.cut or not ended.result:
        return Judgement(Outcome.INCONCLUSIVE, _said(ended.cut or _death(ended.code), ended.output))
    judgement = msgspec.json.decode(ended.result, type=Judgement)
    return Judgement(judgement.outcome, _said(judgement.text, ended.output))


def _of_command(ended: Ended) -> Judgement:
    if ended.cut or ended.code < 0 or ended.code in (INCONCLUSIVE_CODE, NOT_BEGUN):
        return Judgement(Outcome.INCONCLUSIVE, _said(ended.cut or _death(ended.code), ended.output))
    if ended.code:
        return Judgement(Outcome.FAILED, _said(f"ended with exit code {ended.code}", ended.output))
    return Judgement(Outcome.PROVEN, _said("", ended.output))


def _death(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}, which says nothing"


def _said(text: str, output: str) -> str:
    """With the last words of whatever was run."""
    last = " ".join(output.split())[-_LONGEST_TEXT:]
    return f"{text}; its last words: {last}" if text and last else text or last


if __name__ == "__main__":
    main()
