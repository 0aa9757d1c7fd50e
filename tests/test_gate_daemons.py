"""Gate and policy with two real daemons: what a person types before a maintenance, and what the other side knows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit_drill import drill, scratch_of
from kit_pair import Node, Pair, free_port, make_pair, replicad, running, wait_until
from replicad.model.attestation import MAX_ASKED_PINS
from replicad.model.pairing import parse_replica_line

OPTIONS = 'tend_every = "1s"\ndrill_every = "7d"\nscrub_duty = 1.0'


@contextmanager
def guarded(tmp_path: Path, options: str = OPTIONS, there: str = 'repair = "ask"') -> Iterator[Pair]:
    """A pair that runs, with a dataset of a few files; `there` are lines of the replica's [listen] table."""
    root = tmp_path / "www"
    root.mkdir()
    for number in range(8):
        (root / f"file{number}").write_text(f"content {number}\n" * 1000)
    scratch_of(tmp_path).mkdir()
    tmp_path.chmod(0o711)
    lines = f'drill_scratch = "{scratch_of(tmp_path)}"\n{options}'
    pair = make_pair(tmp_path, root, dataset_options=lines)
    _add(pair.replica.config, "[listen]", there)
    with running(pair):
        pair.sync()
        yield pair


def _add(config: Path, head: str, lines: str) -> None:
    before, _, after = config.read_text().partition(f"{head}\n")
    config.write_text(f"{before}{head}\n{lines}\n{after}")


def gate(pair: Pair, *words: object, code: int = 0) -> dict[str, Any]:
    """Type a gate; its document."""
    said = replicad("gate", "www", "--json", "--config", pair.primary.config, *words, code=code)
    document = json.loads(said.stdout)
    assert isinstance(document, dict) and document["open"] is (code == 0)
    return document


def shut(document: dict[str, Any]) -> set[str]:
    """The names of the checks that do not hold, of all copies."""
    return {check["name"] for copy in document["copies"] for check in copy["checks"] if not check["holds"]}


def opened(pair: Pair, *words: object) -> dict[str, Any]:
    """A gate that was waited for until it opened."""
    return gate(pair, "--wait", "3m", *words)


def policy(pair: Pair) -> dict[str, tuple[str, str]]:
    """Grade and evidence of each objective."""
    said = replicad("policy", "www", "--json", "--config", pair.primary.config, code=None)
    (one,) = json.loads(said.stdout)["datasets"]
    return {result["objective"]: (result["grade"], result["evidence"]) for result in one["results"]}


def pins(pair: Pair) -> list[dict[str, Any]]:
    """The pins, as typed on the replica."""
    said = replicad("pin", "list", "--json", "--config", pair.replica.config)
    found = json.loads(said.stdout)["pins"]
    assert isinstance(found, list)
    return found


def test_the_gate_opens_when_everything_is_on_the_replica_s_record(tmp_path: Path) -> None:
    """--wait brings what was just written, has it verified and drilled, and pins the very snapshot that was judged; it
    restores what stood on the disk when the gate was asked."""
    with guarded(tmp_path) as pair:
        (pair.root / "late").write_text("written just before\n")
        document = opened(pair, "--pin", "before-san", "--max-scrub-age", "1m")
        (copy,) = document["copies"]
        assert copy["pinned"] == "before-san" and not shut(document)
        (pin,) = pins(pair)
        assert (pin["name"], pin["snapshot"], pin["asked_by"]) == ("before-san", copy["snapshot"], "ams1")
        (pair.root / "late").write_text("the maintenance went wrong\n")
        (pair.root / "file0").unlink()
        pair.sync()
        target = tmp_path / "back"
        pair.restore(target, "--at", copy["snapshot"])
        assert (target / "late").read_text() == "written just before\n" and (target / "file0").exists()


def test_what_is_on_the_disk_now_has_to_be_there(tmp_path: Path) -> None:
    """A pass that began before the gate was asked is not enough when no lag is allowed; a pass that cannot read
    everything opens nothing; what was allowed is told."""
    with guarded(tmp_path) as pair:
        opened(pair)
        assert shut(gate(pair, "--max-lag", "0", code=1)) == {"fresh"}
        (pair.root / "seen").write_text("by the watch\n")
        wait_until(lambda: pair.line.last_complete_ns > pair.line.last_walked_ns > 0, "a pass that walks only a part")
        assert not shut(gate(pair))
        said = replicad("gate", "--config", pair.primary.config).stdout
        assert re.search(r"fresh +ok .*snapshot \d+ holds everything as of .* ago; up to 5m are\s+allowed", said), said


def test_an_open_divergence_shuts_it_whoever_has_found_it(tmp_path: Path) -> None:
    """Rot on the replica, found by its scrub and not repaired: exit code 1 with the reason; the policy says so too."""
    with guarded(tmp_path) as pair:
        opened(pair)
        (segment,) = (pair.store / "ams1/www/segments").glob("*.seg")
        data = bytearray(segment.read_bytes())
        data[len(data) // 4] ^= 1
        segment.write_bytes(data)
        replicad("scrub", "start", "www", "--wait", "--config", pair.replica.config, code=1)
        document = gate(pair, code=1)
        assert "undisputed" in shut(document)
        said = replicad("gate", "--wait", "2s", "--max-lag", "1h", "--config", pair.primary.config, code=1).stdout
        assert "on the replica (" in said and "replicad divergence list" in said
        wait_until(lambda: policy(pair)["copies"][0] == "fail", "the policy knows of it")
        assert "fra1 has 1 open divergence" in policy(pair)["copies"][1]


def test_a_replica_out_of_reach_shuts_it(tmp_path: Path) -> None:
    """Exit code 3, however well everything was a second ago; the policy cannot say for ever either."""
    with guarded(tmp_path) as pair:
        opened(pair)
        pair.replica.stop()
        document = gate(pair, code=3)
        assert document["copies"][0]["checks"] == [] and document["copies"][0]["unknown"]
        said = replicad("gate", "--wait", "2s", "--config", pair.primary.config, code=3)
        assert "on fra1: systemctl status replicad" in said.stdout and "an answer (" in said.stderr
        replicad("gate", "nope", "--config", pair.primary.config, code=2)
        replicad("policy", "nope", "--config", pair.primary.config, code=2)


def test_the_primary_s_memory_of_a_replica_counts_for_nothing(tmp_path: Path) -> None:
    """A store that was lost and is copied anew knows of no drill and no verification of the old one; and before it is
    copied anew it holds nothing, though this ledger says otherwise."""
    with guarded(tmp_path) as pair:
        opened(pair)
        pair.replica.stop()
        shutil.move(pair.store / "ams1", tmp_path / "lost")
        pair.replica.start()
        assert {"fresh", "verified", "drilled"} <= shut(gate(pair, code=1))
        wait_until(lambda: pair.line.held, "the lost history holds the dataset")
        replicad("release", "www", "--config", pair.primary.config)
        pair.sync()
        assert "drilled" in shut(gate(pair, "--max-scrub-age", "365d", code=1)), "no drill of the new store was told"
        assert "drilled" not in shut(opened(pair)), "until there is one"


def test_every_replica_is_judged(tmp_path: Path) -> None:
    """One of two that is not well keeps the gate shut, and each has its own reasons, its own pin."""
    with guarded(tmp_path) as pair:
        second = _second_replica(tmp_path, pair)
        try:
            second.start()
            pair.primary.hang_up()
            wait_until(lambda: len(pair.primary.status().datasets) == 2, "the second replica is configured")
            document = opened(pair, "--pin", "both")
            assert [copy["replica"] for copy in document["copies"]] == ["fra1", "osl1"]
            assert all(copy["pinned"] == "both" for copy in document["copies"])
            second.stop()
            one, other = gate(pair, code=3)["copies"]
            assert one["open"] and not other["open"] and other["unknown"]
        finally:
            second.kill()


def _second_replica(tmp_path: Path, pair: Pair) -> Node:
    place, port = tmp_path / "second", free_port()
    place.mkdir()
    line = replicad(
        "init", "replica", "--config", place / "R.toml", "--name", "osl1", "--listen", f"127.0.0.1:{port}",
        "--store", place / "store", "--state", place / "state", "--http", "127.0.0.1:0",
    ).stdout.strip()  # fmt: skip
    client = re.search(r'\[\[client\]\].*?key = "(.*?)"', pair.replica.config.read_text(), re.DOTALL)
    assert client is not None
    with (place / "R.toml").open("a") as file:
        file.write(f'\n[[client]]\nname = "ams1"\nkey = "{client[1]}"\n')
    there = parse_replica_line(line)
    table = f'[[replica]]\nname = "osl1"\naddress = "{there.address}"\nkey = "{there.key}"\n\n'
    text = pair.primary.config.read_text()
    pair.primary.config.write_text(text.replace("[[dataset]]\n", f"{table}[[dataset]]\n"))
    return Node(place / "R.toml", place / "state", place / "log")


def test_pins_from_a_primary_are_few_and_are_not_taken_back(tmp_path: Path) -> None:
    """The ninth is refused and keeps the gate shut; the replica's people see who asked, and make room."""
    with guarded(tmp_path) as pair:
        opened(pair)
        for number in range(MAX_ASKED_PINS):
            gate(pair, "--pin", f"pin{number}")
        document = gate(pair, "--pin", "one-more", code=1)
        assert not shut(document) and f"{MAX_ASKED_PINS} pins" in document["copies"][0]["pin_problem"]
        assert "asked for by ams1: gate at" in replicad("pin", "list", "--config", pair.replica.config).stdout
        replicad("pin", "remove", "pin3", "www", "--config", pair.replica.config)
        gate(pair, "--pin", "one-more")
        (pair.root / "file1").write_text("another state\n")
        pair.sync()
        assert "pins snapshot" in gate(pair, "--pin", "pin0", code=1)["copies"][0]["pin_problem"]


def test_the_policy_learns_the_replica_s_retention_over_the_link(tmp_path: Path) -> None:
    """What the replica keeps is its own configuration; once that changes there, the verdict here changes with it."""
    options = f'{OPTIONS}\nkeep_younger_than = "30d"\nkeep_at_least = 14\nsites = 2'
    with guarded(tmp_path, options) as pair:
        opened(pair)
        wait_until(lambda: policy(pair)["keep_younger_than"][0] == "pass", "it keeps everything")
        floor = '\n[[retention]]\nkeep_daily = 7\nkeep_younger_than = "{}"\nkeep_at_least = {}\n'
        before = pair.replica.config.read_text()
        pair.replica.config.write_text(before + floor.format("7d", 7))
        pair.replica.hang_up()
        wait_until(lambda: policy(pair)["keep_younger_than"][0] == "fail", "it keeps less than is demanded")
        found = policy(pair)
        assert found["keep_younger_than"] == ("fail", "fra1: keeps everything younger than 7d")
        assert found["keep_at_least"] == ("fail", "fra1: keeps snapshots of 7 days")
        assert found["sites"][0] == "fail"
        pair.replica.config.write_text(before + floor.format("30d", 14))
        pair.replica.hang_up()
        wait_until(lambda: policy(pair)["keep_younger_than"][0] == "pass", "it keeps enough")
        _add(pair.primary.config, "[node]", 'site = "ams"')
        _add(pair.primary.config, "[[replica]]", 'site = "fra"')
        pair.primary.hang_up()
        wait_until(lambda: policy(pair)["sites"] == ("pass", "ams, fra"), "places are taken at a reload")


def test_a_drill_is_on_the_replica_s_record_when_it_has_ended(tmp_path: Path) -> None:
    """The replica remembers it over a restart of either side, and a failed one shuts the gate."""
    with guarded(tmp_path) as pair:
        opened(pair)
        record = drill(pair, "--full")
        for node in (pair.primary, pair.replica):
            node.stop()
            node.start()
        pair.sync()
        (copy,) = opened(pair)["copies"]
        (drilled,) = (check for check in copy["checks"] if check["name"] == "drilled")
        assert f"drill {record['number']} proved" in drilled["reason"]
