"""A child process that tests ask: it doubles numbers, gives many bytes, fails in every way, and prints."""

from __future__ import annotations

import time

from replicad.model.block import Buffer
from replicad.model.errors import SourceError
from replicad.system.tasks import Bulky, Task, serve

MODULE = "kit_child"
DOUBLE = Task("double", int, int)
BYTES = Task("bytes", int, int)
FAIL = Task("fail", str, int)
SLEEP = Task("sleep", float, int)
SUM = Task("sum", int, int)


def double(number: int) -> int:
    """Twice the number, and a word where answers must not go."""
    print("a word that is no answer")
    return 2 * number


def many_bytes(size: int) -> Bulky:
    """So many bytes, in two pieces, each telling how many there are."""
    data = str(size).encode().ljust(size, b".")[:size]
    return Bulky(size, [data[: size // 3], data[size // 3 :]])


def sum_of(start: int, bulk: Buffer = b"") -> int:
    """The sum of a bulk's bytes."""
    return start + sum(bulk)


def fail(how: str) -> int:
    """An error of the world, or one of ours."""
    if how == "world":
        raise SourceError("is not there", where="/srv", hint="mount it")
    raise ZeroDivisionError(how)


def sleep(seconds: float) -> int:
    """Busy for a while."""
    time.sleep(seconds)
    return 0


if __name__ == "__main__":
    serve({DOUBLE: double, BYTES: many_bytes, FAIL: fail, SLEEP: sleep, SUM: sum_of})
