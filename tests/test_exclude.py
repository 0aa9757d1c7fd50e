"""Exclude patterns mean what they mean to git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_source import KnownTree, survey
from replicad.source.exclude import MAX_PATTERNS, NOTHING, Excluded

CASES = [
    # patterns, path, is a directory, excluded
    (["*.tmp"], b"a.tmp", False, True),
    (["*.tmp"], b"a/b/c.tmp", False, True),
    (["*.tmp"], b"a.tmp.txt", False, False),
    (["/build"], b"build", True, True),
    (["/build"], b"a/build", True, False),
    (["build/"], b"a/build", True, True),
    (["build/"], b"a/build", False, False),
    (["a/**/z"], b"a/b/c/z", False, True),
    (["*.log", "!keep.log"], b"keep.log", False, False),
    (["*.log", "!keep.log"], b"other.log", False, True),
    (["# a comment", ""], b"# a comment", False, False),
    (["caf\u00e9"], "caf\u00e9".encode(), False, True),
    (["odd-*"], b"odd-\xff\xfe", False, True),
    (["*.tmp"], b"with\nnewline.tmp", False, True),
]


@pytest.mark.parametrize(("patterns", "path", "is_directory", "excluded"), CASES)
def test_patterns_mean_what_they_mean_to_git(
    patterns: list[str], path: bytes, is_directory: bool, excluded: bool
) -> None:
    """One line a case: gitignore's rules hold, names that are no UTF-8 included."""
    assert Excluded(patterns)(path, is_directory) is excluded


def test_no_patterns_leave_nothing_out() -> None:
    """An empty list, or one of comments alone, is false, so that a walk need not ask."""
    assert not NOTHING and not Excluded(["# only a comment", ""])
    assert Excluded(["x"])
    assert not NOTHING(b"anything", True) and not NOTHING.covers(b"any/thing")


def test_a_directory_covers_what_is_below_it() -> None:
    """A path is covered when one of its parents is excluded, also where a later pattern would take it back."""
    excluded = Excluded(["/a/b/", "!/a/b/c"])
    assert excluded.covers(b"a/b/c/d") and excluded.covers(b"a/b")
    assert not excluded.covers(b"a") and not excluded.covers(b"") and not excluded.covers(b"x/a/b")


@pytest.mark.parametrize("pattern", ["!", "a\0b", "a\nb", "[z-a]", r"[a-\d]"])
def test_an_invalid_pattern_is_named(pattern: str) -> None:
    """A pattern that means nothing ends in one error that shows it."""
    with pytest.raises(ValueError, match="pattern") as raised:
        Excluded(["fine", pattern])
    assert repr(pattern) in str(raised.value)


def test_too_many_patterns_are_refused() -> None:
    """The number of patterns is limited."""
    with pytest.raises(ValueError, match=str(MAX_PATTERNS)):
        Excluded(["x"] * (MAX_PATTERNS + 1))


@given(st.lists(st.text(max_size=8), max_size=4), st.binary(min_size=1, max_size=20))
def test_any_pattern_is_accepted_or_named_and_any_name_can_be_matched(patterns: list[str], name: bytes) -> None:
    """No text and no bytes make it raise anything but the one ValueError."""
    try:
        excluded = Excluded(patterns)
    except ValueError as error:
        assert "pattern" in str(error)
        return
    assert excluded(name, True) in (True, False)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge here")
def test_git_leaves_out_the_same_paths_of_a_real_tree(tmp_path: Path) -> None:
    """A walk with patterns finds exactly the files that git would add with the same patterns."""
    patterns = ["*.o", "/build/", "docs/**/draft*", "!docs/final/draft-kept", "tmp", "[ab]?.c", "!tmp/x", "*~"]
    for path in ("x.o", "build/x.c", "src/build/x.c", "src/ab.c", "src/a1.c", "docs/1/draft", "docs/final/draft-kept",
                 "docs/draft", "tmp/x", "src/tmp", "src/tmpx", "src/file~", "caf\u00e9.o", "plain"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / ".gitignore").write_text("\n".join(patterns))
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}

    def git(*arguments: str) -> bytes:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True).stdout

    git("init", "-q")
    listed = git("ls-files", "-z", "--others", "--exclude-standard")
    known = KnownTree()
    survey(os.fsencode(tmp_path), known, excluded=Excluded([*patterns, "/.git/"]))
    assert {path for path, stamp in known.stamps.items() if stamp.kind == 1} == set(listed.split(b"\0")) - {b""}
