"""Show: names, counts, sizes and durations as text. Pure, and imported fast: every verb may have to print one."""

from __future__ import annotations


def show_path(path: bytes) -> str:
    """`path` for people and JSON: UTF-8 where possible, other bytes and control characters as \\xNN."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) or "."


def counted(count: int, one: str, many: str = "") -> str:
    """So many of a thing: "1 file", "1,024 files"; `many` where that is not `one` and an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def show_bytes(size: float) -> str:
    """A size in bytes for people: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def short_duration(seconds: float) -> str:
    """A duration within a sentence, in its two largest units: "3m 20s"; a part that is zero is left out ("1h")."""
    if 0 < seconds < 10 and seconds != round(seconds):
        return f"{seconds:.1f}s"
    whole, parts = round(seconds), list[tuple[int, str]]()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count}{unit}" for count, unit in parts[:2] if count) or "0s"
