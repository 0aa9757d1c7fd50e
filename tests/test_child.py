"""A child process: what is asked is answered in order, and whoever dies, nobody waits and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kit_child import BYTES, DOUBLE, FAIL, MODULE, SLEEP, SUM
from kit_pair import wait_until
from replicad.model.errors import ReplicadError, SourceError
from replicad.system import child as child_module
from replicad.system.child import Child
from replicad.system.tasks import PART_BYTES, PARTS

PARENT = """
import asyncio, sys
from kit_child import DOUBLE, MODULE, SLEEP
from replicad.system.child import Child

async def main():
    child = Child(MODULE)
    await child.call(DOUBLE, 1)
    print(child.pid, flush=True)
    await child.call(SLEEP, float(sys.argv[1]))

asyncio.run(main())
"""


@pytest_asyncio.fixture
async def child() -> AsyncIterator[Child]:
    """A child that is ended afterwards."""
    made = Child(MODULE)
    yield made
    await made.close()


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_answers_belong_to_their_questions(child: Child) -> None:
    """Many questions at once, with and without a bulk, each get their own answer, whatever the child prints."""
    doubles = [child.call(DOUBLE, number) for number in range(50)]
    bulks = [child.call_for_bulk(BYTES, 1000 + number) for number in range(50)]
    assert await asyncio.gather(*doubles) == [2 * number for number in range(50)]
    for number, (size, bulk) in enumerate(await asyncio.gather(*bulks)):
        assert size == len(bulk) == 1000 + number
        assert bulk.startswith(str(size).encode())


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
async def test_a_bulk_of_any_length_arrives_whole(child: Child, size: int) -> None:
    """It takes the shared memory where it fits and the pipe where it does not; one cannot tell from the bytes."""
    answered, bulk = await child.call_for_bulk(BYTES, size)
    assert (answered, bulk) == (size, str(size).encode().ljust(size, b".")[:size])


async def test_a_question_takes_a_bulk_along(child: Child) -> None:
    """More of them at once than there is memory for: each arrives whole, with its own question, up to a whole part."""
    bulks = [os.urandom(size) for size in (1, 5000, PART_BYTES, 77, PART_BYTES - 1, 0, 4096)] * 2
    asked = [child.call_with_bulk(SUM, number, [bulk[:7], bulk[7:]]) for number, bulk in enumerate(bulks)]
    assert await asyncio.gather(*asked) == [number + sum(bulk) for number, bulk in enumerate(bulks)]
    assert child.has_room
    with pytest.raises(AssertionError, match="too large"):
        await child.call_with_bulk(SUM, 0, [bytes(PART_BYTES + 1)])


async def test_errors_come_across(child: Child) -> None:
    """An error of ours keeps its kind, place and hint; a defect comes with its traceback; the child lives on."""
    with pytest.raises(SourceError) as seen:
        await child.call(FAIL, "world")
    assert str(seen.value) == "/srv: is not there (mount it)"
    with pytest.raises(RuntimeError, match="ZeroDivisionError: ours"):
        await child.call(FAIL, "ours")
    assert await child.call(DOUBLE, 4) == 8


async def test_a_killed_child_is_told_to_all_who_wait_and_replaced(child: Child) -> None:
    """Whoever waits, for an answer or for a turn, gets one clear error; the next question starts another process."""
    await child.call(DOUBLE, 1)
    first = child.pid
    assert first
    asked = [asyncio.ensure_future(child.call(SLEEP, 60.0))]
    asked += [asyncio.ensure_future(child.call_for_bulk(BYTES, 10)) for _ in range(2 * PARTS)]
    await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, ReplicadError) and "was killed by signal 9" in str(answer)
    assert child.pid is None
    assert await child.call(DOUBLE, 21) == 42
    assert child.pid not in (None, first)


async def test_questions_that_nobody_waits_for_any_more_do_no_harm(child: Child) -> None:
    """Cancelled questions give their part of the shared memory back once they are answered, and not before."""
    await child.call(DOUBLE, 1)
    for _ in range(3):
        asked = [asyncio.ensure_future(child.call_for_bulk(BYTES, 5)) for _ in range(PARTS + 2)]
        await asyncio.sleep(0)
        for question in asked:
            question.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert await child.call_for_bulk(BYTES, 12345) == (12345, b"12345".ljust(12345, b"."))


async def test_the_terminal_does_not_reach_it(child: Child) -> None:
    """A Ctrl-C for the daemon is not one for the child: it has a session of its own and does not heed the signal."""
    await child.call(DOUBLE, 1)
    assert child.pid
    assert os.getsid(child.pid) != os.getsid(0)
    os.kill(child.pid, signal.SIGINT)
    assert await child.call(DOUBLE, 3) == 6


async def test_a_child_that_does_not_come_to_its_end_is_killed(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for the task of the moment, but not for ever."""
    monkeypatch.setattr(child_module, "END_S", 0.05)
    await child.call(DOUBLE, 1)
    pid = child.pid
    assert pid
    hanging = asyncio.ensure_future(child.call(SLEEP, 600.0))
    await asyncio.sleep(0)
    await child.close()
    with pytest.raises(ReplicadError):
        await hanging
    wait_until(lambda: is_gone(pid), "the child is gone")


@pytest.mark.parametrize("busy_s", ["0", "600"])
def test_a_daemon_that_is_killed_takes_its_child_along(busy_s: str) -> None:
    """Neither a process nor a word stays behind, whether the child is idle or in the middle of something."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, busy_s], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout and parent.stderr
        pid = int(parent.stdout.readline())
        parent.kill()
        wait_until(lambda: is_gone(pid), "the child is gone")
        said = parent.stderr.read().replace(b"a word that is no answer\n", b"")
    assert said == b""


async def test_a_module_that_is_none_is_an_error() -> None:
    """A child that cannot even start its work is told like one that died."""
    broken = Child("replicad.no_such_module")
    with pytest.raises(ReplicadError, match="ended with exit code 1"):
        await broken.call(DOUBLE, 1)
    await broken.close()
