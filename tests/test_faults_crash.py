"""Two real daemons that are killed without warning: what was acknowledged stays, what was not goes on."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from kit_faults import Workload, archive_of, ask, assert_quiet, pause, synced, tree_at, tree_now
from kit_pair import Node, Pair, assert_same_tree, make_pair, running
from kit_rig import differences, snapshots
from kit_tree import Described

ROUNDS = 54
"""Of both seeds together."""
CHECK_EVERY = 10
LONGEST_S = 0.35
"""A round's pass is over by then, on an idle machine."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


@pytest.mark.parametrize("seed", [1, 2])
def test_every_acknowledged_snapshot_survives_kills_of_either_side(tmp_path: Path, root: Path, seed: int) -> None:
    """Either daemon dies without warning at random moments while the tree is edited and copied; every snapshot that
    was ever acknowledged shows exactly the tree it was made of."""
    choose = random.Random(seed)
    work = Workload(root, seed)
    pair = make_pair(tmp_path / "pair", root, dataset_options='max_change = 1.0\ndebounce = "50ms"')
    acknowledged: dict[int, dict[bytes, Described]] = {}
    with running(pair):
        for number in range(ROUNDS // 2):
            _one_round(pair, work, choose)
            line = synced(pair)
            assert line.last_snapshot, line
            acknowledged[line.last_snapshot] = tree_now(root)
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                _assert_all_there(pair, acknowledged)
    assert len(acknowledged) > ROUNDS // 4
    _assert_all_there(pair, acknowledged)
    for number in sorted(acknowledged)[:: len(acknowledged) // 3]:
        pair.restore_from_store(tmp_path / f"restored-{number}", "--at", number, "--quiet")
        assert differences(tree_now(tmp_path / f"restored-{number}"), acknowledged[number]) == []
    pair.restore_from_store(tmp_path / "last")
    assert_same_tree(root, tmp_path / "last")
    numbers = [line.number for line in snapshots(archive_of(pair))]
    assert numbers == sorted(set(numbers))
    assert_quiet(pair.primary, pair.replica)


def _one_round(pair: Pair, work: Workload, choose: random.Random) -> None:
    """Edit, ask for a pass, kill one side at a random moment (sometimes amid edits), start it again."""
    victim: Node = choose.choice([pair.primary, pair.replica])
    editing = threading.Thread(target=work.edit, args=(choose.randrange(1, 25),))
    editing.start()
    if choose.random() < 0.7:
        editing.join()
    ask(pair)
    pause(choose.random() * LONGEST_S)
    victim.kill()
    if choose.random() < 0.3:
        work_after = choose.randrange(1, 8)
        editing.join()
        work.edit(work_after)
    victim.start()
    editing.join()


def _assert_all_there(pair: Pair, acknowledged: dict[int, dict[bytes, Described]]) -> None:
    for number, tree in acknowledged.items():
        assert differences(tree_at(archive_of(pair), number), tree) == [], f"snapshot {number}"
