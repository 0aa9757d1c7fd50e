"""What a configuration may say about objectives, levels and places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.config import DatasetConfig, units
from replicad.config.load import examine_text
from replicad.model.place import Place
from replicad.model.policy import LEVELS, Objectives

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEoYQAyCpBrAzUElMQ7i1Xdzj5VgBN0BT0YzfQOOt7IH"
HEAD = f"""[node]
name = "ams1"
state = "/var/lib/replicad"
[[replica]]
name = "fra1"
address = "h:1"
key = "{KEY}"
"""
DATASET = """[[dataset]]
name = "www"
path = "/srv/www"
"""
DRILLS = 'drill_scratch = "/var/tmp/d"\n'
LEVEL = '[[level]]\nname = "x"\n'


def dataset(lines: str, head: str = "") -> DatasetConfig:
    """The dataset with these lines."""
    report = examine_text(HEAD + head + DATASET + lines, Path("c.toml"), check_files=False)
    assert report.config is not None, report.problems
    return report.config.datasets[0]


def problems(lines: str, head: str = "") -> list[str]:
    """What is wrong, with file, line and key."""
    report = examine_text(HEAD + head + DATASET + lines, Path("c.toml"), check_files=False)
    return [str(problem) for problem in report.problems]


def test_without_a_level_everything_is_as_it_was() -> None:
    """A dataset that names no level has the plain objectives."""
    assert dataset("").objectives == Objectives()


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_sets_all_objectives_together(level: str) -> None:
    """A shipped level needs no table; scrubs and drills of the dataset go by it as well."""
    found = dataset(f'level = "{level}"\n{DRILLS}')
    assert found.objectives == LEVELS[level]
    assert (found.scrub_every_s, found.drill_every_s) == (LEVELS[level].scrub_every_s, LEVELS[level].drill_every_s)


def test_a_dataset_s_own_keys_override_its_level() -> None:
    """Wherever they stand in the table, and whether they ask for more or for less."""
    found = dataset(f'rpo = "2m"\nlevel = "silver"\n{DRILLS}sites = 3\nrto = 0\n').objectives
    assert found == Objectives(**{**_fields(LEVELS["silver"]), "rpo_s": 120.0, "sites": 3, "rto_s": 0.0})


def test_levels_can_be_defined_and_redefined() -> None:
    """What a `[[level]]` does not say is plain, and not taken from a shipped one of that name."""
    own = '[[level]]\nname = "lab"\nmin_distance = "1.5km"\nkeep_younger_than = "2w"\n'
    own += '[[level]]\nname = "gold"\nrpo = "1m"\n'
    assert dataset(f'level = "lab"\n{DRILLS}', own).objectives == Objectives(
        "lab", min_distance_m=1500.0, keep_younger_than_s=14 * 86400.0
    )
    assert dataset(f'level = "gold"\n{DRILLS}', own).objectives == Objectives("gold", rpo_s=60.0)


@pytest.mark.parametrize(
    ("lines", "head", "problem"),
    [
        ("copies = 1\n", "", "c.toml:11: dataset.copies: nothing can switch off the second copy: 2 at least"),
        ("scrub_every = 0\n", "", 'c.toml:11: dataset.scrub_every: must lie between "1s"'),
        ("", LEVEL + 'copies = 1\n', "c.toml:10: level.copies: nothing can switch off the second copy"),
        ("", LEVEL + 'copies = 0\n', "c.toml:10: level.copies: nothing can switch off the second copy"),
        ("", LEVEL + 'scrub_every = 0\n', "c.toml:10: level.scrub_every: no level can switch off the v"),
        ("", LEVEL + 'scrub_every = "0s"\n', "c.toml:10: level.scrub_every: must lie between"),
        ("", LEVEL + 'drill_every = 0\n', "c.toml:10: level.drill_every: no level can switch off the dr"),
        ("", LEVEL + 'repair = "ask"\n', "c.toml:10: level.repair: unknown key"),
        ("", LEVEL + LEVEL, 'level.name: has the name of level "x" above'),
        (f'level = "gold"\n{DRILLS}drill_every = 0\n', "", 'c.toml:13: dataset.drill_every: no dataset of level'),
        ('level = "gold"\n', "", 'c.toml:11: dataset.level: level "gold" has drills: set drill_scratch'),
        ('level = "gold"\ndrill_scratch = ""\n', "", 'c.toml:11: dataset.level: level "gold" has drills'),
        (f'level = "golden"\n{DRILLS}', "", 'no level "golden"; there are bronze, silver, gold'),
        ('min_distance = "100"\n', "", '"100" is not a number and a unit; write it like "100km"'),
        ('min_distance = "20001km"\n', "", 'must lie between 0 and "20000km"'),
        ("sites = 6\n", "", "must lie between 1 and 5"),
    ],
)  # fmt: skip
def test_what_no_level_can_switch_off(lines: str, head: str, problem: str) -> None:
    """The second copy, its verification and its drills stay, and each attempt is named with file, line and key."""
    found = problems(lines, head)
    assert len(found) == 1 and problem in found[0], found


def test_places_are_declared_for_this_node_and_for_replicas() -> None:
    """A site, coordinates, both or neither."""
    text = HEAD.replace('name = "ams1"', 'name = "ams1"\nsite = "ams"\ncoordinates = "52.37, 4.90"')
    config = examine_text(text + 'coordinates = "-33.9,-151.2"\n' + DATASET, Path("c.toml"), check_files=False).config
    assert config is not None
    assert config.node.place == Place("ams", 52.37, 4.9) and config.replicas[0].place == Place("", -33.9, -151.2)
    assert replace(config.node, site="", coordinates=(None, None)).place == Place()


@pytest.mark.parametrize("text", ["52.37", "91, 0", "0, 180.1", "52,37, 4,90", "52.37N, 4.90E", "1 , 2, 3", "nan, nan"])
def test_what_is_no_place(text: str) -> None:
    """Coordinates that are none are told so, with how to write them."""
    with pytest.raises(ValueError, match="no degrees north and east; write them like"):
        units.parse_coordinates(text)


@given(st.integers(-9000, 9000), st.integers(-18000, 18000))
def test_coordinates_survive_their_notation(north: int, east: int) -> None:
    """Hundredths of a degree are read as they stand."""
    assert units.parse_coordinates(f"{north / 100}, {east / 100}") == (north / 100, east / 100)


def _fields(one: Objectives) -> dict[str, object]:
    return {name: getattr(one, name) for name in Objectives.__struct_fields__}
