"""Whereabouts: a recorded entry is found again when directories above it were renamed where they stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicad.source import whereabouts as source_whereabouts
from replicad.source.root import Root, signed
from replicad.source.whereabouts import whereabouts


def inodes_above(root: Path, path: bytes) -> list[int]:
    """What a ledger would have of them."""
    parents = list(Path(os.fsdecode(path)).parents)[:-1][::-1]
    return [signed((root / parent).stat().st_ino) for parent in parents]


def test_an_entry_is_where_its_directories_are_by_now(tmp_path: Path) -> None:
    """One level or many of them, with a name that is no UTF-8, and though others have the old names."""
    path = b"a/b/c/file"
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/file").write_bytes(b"data")
    above = inodes_above(tmp_path, path)
    with Root(os.fsencode(tmp_path)) as root:
        assert whereabouts(root, path, above) == path
        os.rename(tmp_path / "a/b", os.fsencode(tmp_path) + b"/a/\xff")
        assert whereabouts(root, path, above) == b"a/\xff/c/file"
        (tmp_path / "a").rename(tmp_path / "z")
        (tmp_path / "a/b/c").mkdir(parents=True)
        (tmp_path / "a/b/c/file").write_bytes(b"another")
        assert whereabouts(root, path, above) == b"z/\xff/c/file"
        (tmp_path / "z").rename(tmp_path / "a/b/z")
        assert whereabouts(root, path, above) == path, "it went elsewhere: a walk finds that"
        assert whereabouts(root, b"a/b/c/file", [1, 0, 2]) == path, "not recorded above"
        assert (whereabouts(root, b"", []), whereabouts(root, b"top", [])) == (b"", b"top")


def test_no_link_is_followed_and_the_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symlink in the place of a directory is none, whatever its inode; a directory of very many names is given up."""
    path, outside = b"d/file", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    base = tmp_path / "www"
    base.mkdir()
    (base / "d").symlink_to(outside)
    (base / "f").write_bytes(b"data")
    with Root(os.fsencode(base)) as root:
        link = signed((base / "d").lstat().st_ino)
        assert whereabouts(root, b"d/e/file", [link, 5]) == b"d/e/file"
        assert whereabouts(root, path, [signed(outside.stat().st_ino)]) == path
        assert whereabouts(root, path, [signed((base / "f").stat().st_ino)]) == path, "no directory"
        (base / "new").mkdir()
        above = [signed((base / "new").stat().st_ino)]
        assert whereabouts(root, path, above) == b"new/file"
        monkeypatch.setattr(source_whereabouts, "MAX_LISTED", 0)
        assert whereabouts(root, path, above) == path
