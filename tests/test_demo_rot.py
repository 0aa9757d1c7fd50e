"""The demo's acts about rot, with a program that plays along: damage is real, and each act must end as it should."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicad.cli import demo_rot
from replicad.cli.stage import Stage
from replicad.model.errors import ReplicadError


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A tree in memory and a store."""
    memory = demo_rot.place_in_memory(100_000)
    assert memory, "this machine has no /dev/shm with room"
    (memory / "www").mkdir()
    (memory / "www" / "big").write_bytes(os.urandom(90_000))
    (memory / "www" / "small").write_bytes(b"small")
    segments = tmp_path / "fra1-store" / "ams1" / "www" / "segments"
    segments.mkdir(parents=True)
    (segments / "00000001.seg").write_bytes(os.urandom(50_000))
    yield Stage(tmp_path, memory / "www", [], keep=False)
    shutil.rmtree(memory)


class Program:
    """Plays replicad: judges at the second look, repairs when told (the primary) or by itself (the replica)."""

    def __init__(self, stage: Stage, *, repairs: bool = True) -> None:
        self.stage, self.repairs = stage, repairs
        self.good = {path: path.read_bytes() for path in stage.tree.iterdir()}
        self.typed: list[str] = []
        self.looks = 0
        self.is_repaired = False

    def run(self, *words: str | Path, quiet: bool = False, allowed: tuple[int, ...] = (0,)) -> str:
        self.typed.append(" ".join(map(str, words[:3])))
        if words[0] == "repair" and self.repairs:
            for path, data in self.good.items():
                with path.open("r+b") as file:
                    file.write(data)
        self.is_repaired |= words[0] == "repair"
        return ""

    def ask(self, *words: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
        self.looks += 1
        side = "primary" if words[-1] == self.stage.primary else "replica"
        verdict = "inconclusive" if self.looks < 3 else f"{side}_rot"
        state = "repaired" if self.is_repaired or (side == "replica" and self.looks > 2) else "open"
        return json.dumps(
            {"divergences": [{"id": f"{side}-id", "side": side, "verdict": verdict, "state": state}], "unread": []}
        )


def play(stage: Stage, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The acts, with this program."""
    monkeypatch.setattr(demo_rot, "run", program.run)
    monkeypatch.setattr(demo_rot, "ask", program.ask)
    monkeypatch.setattr(demo_rot, "LOOK_EVERY_S", 0.0)
    demo_rot.play(stage, first=6)


def test_both_copies_rot_for_real(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit differs in the largest file and in the segment, no stamp of the file has moved, and all four acts end."""
    program = Program(stage)
    big, segment = stage.tree / "big", stage.store / "ams1" / "www" / "segments" / "00000001.seg"
    before = (big.stat().st_mtime_ns, big.stat().st_ctime_ns, big.read_bytes(), segment.read_bytes())
    seen: list[bytes] = []
    run = program.run

    def scrubbing(*words: str | Path, quiet: bool = False, allowed: tuple[int, ...] = (0,)) -> str:
        if not seen:
            seen.append(big.read_bytes())
            assert (big.stat().st_mtime_ns, big.stat().st_ctime_ns) == before[:2]
        return run(*words, quiet=quiet, allowed=allowed)

    monkeypatch.setattr(program, "run", scrubbing)
    play(stage, program, monkeypatch)
    for good, bad in ((before[2], seen[0]), (before[3], segment.read_bytes())):
        assert (int.from_bytes(good, "big") ^ int.from_bytes(bad, "big")).bit_count() == 1
    assert program.typed[:4] == ["scrub start www", "scrub start www", "divergence show primary-id",
                                 "divergence show replica-id"]  # fmt: skip
    assert "repair primary-id --config" in program.typed
    assert "byte for byte: repaired" in capsys.readouterr().out


def test_a_repair_that_does_not_repair_is_no_success(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo compares the file itself and believes nobody."""
    with pytest.raises(ReplicadError, match="is not what it was"):
        play(stage, Program(stage, repairs=False), monkeypatch)


def test_what_is_never_found_ends_the_demo_with_an_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which side never got how far."""
    program = Program(stage)
    monkeypatch.setattr(program, "ask", lambda *words, allowed=(0,): '{"divergences": []}')
    monkeypatch.setattr(demo_rot, "PATIENCE_S", 0.1)
    with pytest.raises(ReplicadError, match=r"primary never has judged .* nothing was found"):
        play(stage, program, monkeypatch)


def test_where_rot_cannot_be_shown_the_demo_says_so(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tree outside memory is left alone: a written byte would be a change. The replica's side is shown anyway."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(b"content")
    elsewhere = Stage(stage.scene, tmp_path / "www", [], keep=False)
    monkeypatch.setattr(demo_rot, "_is_tmpfs", lambda path: False)
    play(elsewhere, Program(elsewhere), monkeypatch)
    assert (tmp_path / "www" / "file").read_bytes() == b"content"
    said = capsys.readouterr().out
    assert "ams1: not shown" in said and "fra1: one bit" in said


def test_memory_without_room_is_not_used() -> None:
    """A tree that does not fit lies where everything else does."""
    assert demo_rot.place_in_memory(2**60) is None
