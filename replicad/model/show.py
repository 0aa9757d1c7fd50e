"""Show: names of files as text. Pure, and imported fast: every verb may have to print one."""

from __future__ import annotations


def show_path(path: bytes) -> str:
    """`path` for people and JSON: UTF-8 where possible, other bytes and control characters as \\xNN."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) or "."
