"""Path globs: what matches, what can be pruned, and that hostile patterns cost little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.glob import MAX_COMPONENTS, MAX_GLOBS, compile_globs

CASES = """
etc                 + etc
etc                 + etc/hosts
etc                 + etc/a/b
etc/                + etc/hosts
/etc                + etc/hosts
./etc//hosts        + etc/hosts
etc                 - etcx
etc                 - var/etc
etc/hosts           - etc
*.conf              + a.conf
*.conf              - etc/a.conf
*.conf              + d.conf/anything/below
**/*.conf           + a.conf
**/*.conf           + etc/x/a.conf
**/*.conf           - etc/x/a.confx
etc/**              - etc
etc/**              + etc/a
etc/**              + etc/a/b
**                  + a
a/**/z              + a/z
a/**/z              + a/b/c/z
a/**/z              - b/z
a/**/b/c/**/d       + a/b/b/c/x/d
a/**/**/d           + a/d
a/**/b/c/**/d       - a/b/x/c/d
a?c                 + abc
a?c                 - ac
a?c                 - abbc
a?c                 + aéc
a[b-d]e             + ace
a[b-d]e             - aee
a[!b-d]e            + aee
a[!b]e              + aée
a[^b-d]e            - abe
a[]]e               + a]e
a[-]e               + a-e
a[!]]e              - a]e
a[b                 + a[b
a\\*b               + a*b
a\\*b               - axb
a\\                 + a\\
*a*b*               + xxaxxbxx
*a*b*               - xxbxxaxx
*ab*ab              + abab
*ab*ab              - ab
a**b                + axxb
.*                  + .hidden
*                   + .hidden
""".replace("\\\\", "\\")


@pytest.mark.parametrize("line", [line for line in CASES.splitlines() if line])
def test_a_pattern_matches_from_the_root_and_everything_below_what_it_names(line: str) -> None:
    """Each line: pattern, + or -, path."""
    pattern, sign, path = line.split()
    assert compile_globs([pattern.encode()])(path.encode()) is (sign == "+")


def test_no_pattern_matches_everything_and_several_are_alternatives() -> None:
    """An empty list restricts nothing; a path needs to match only one of several patterns."""
    assert compile_globs([])(b"any/thing") and compile_globs([]).below(b"any")
    both = compile_globs([b"a", b"b"])
    assert both(b"a/x") and both(b"b/x") and not both(b"c")


def test_names_that_are_no_utf8_match_byte_by_byte() -> None:
    """A question mark takes one byte where the name is no UTF-8."""
    assert compile_globs([b"a?b"])(b"a\xffb")
    assert compile_globs([b"\xff*"])(b"\xff\xfe")


@pytest.mark.parametrize(
    ("pattern", "directory", "answer"),
    [
        (b"a/b/c", b"", True),
        (b"a/b/c", b"a", True),
        (b"a/b/c", b"a/b", True),
        (b"a/b/c", b"a/x", False),
        (b"a/b/c", b"b", False),
        (b"a/b/c", b"a/b/c/d", True),
        (b"**/c", b"x/y", True),
        (b"a/**/c", b"x", False),
        (b"a/*/c", b"a/q", True),
        (b"a/*/c", b"a/q/r", False),
        (b"a/**", b"a", True),
    ],
)
def test_a_directory_is_pruned_only_when_nothing_below_it_can_match(
    pattern: bytes, directory: bytes, answer: bool
) -> None:
    """`below` follows the pattern as far as the directory leads."""
    assert compile_globs([pattern]).below(directory) is answer


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (b"", "empty"),
        (b"/", "empty"),
        (b"../etc", "'..'"),
        (b"a\0b", "NUL"),
        (b"a/" * (MAX_COMPONENTS + 1), "longer"),
        (b"a" * 5000, "longer"),
        (b"[z-a]", "backwards"),
        ("[é]".encode(), "ASCII"),
    ],
)
def test_a_senseless_pattern_is_refused_with_the_reason(pattern: bytes, reason: str) -> None:
    """Every pattern that cannot mean anything is a ValueError."""
    with pytest.raises(ValueError, match=reason):
        compile_globs([pattern])


def test_too_many_patterns_are_refused() -> None:
    """The number of patterns is limited."""
    with pytest.raises(ValueError, match="more than"):
        compile_globs([b"a"] * (MAX_GLOBS + 1))


@pytest.mark.timeout(60)
def test_a_hostile_pattern_costs_no_more_than_its_length() -> None:
    """Patterns that would keep a backtracking matcher busy for ages end well before the test's time limit."""
    assert not compile_globs([b"*a" * 100 + b"b"])(b"a" * 255)
    assert not compile_globs([b"**/a/" * 40 + b"b"])(b"/".join([b"a"] * 2000))


NAMES = st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"aab"]), min_size=1, max_size=5)
PARTS = st.lists(st.sampled_from([b"a", b"*", b"**", b"?", b"a*", b"*b", b"[ab]", b"*a*"]), min_size=1, max_size=5)


def _slow_name(pattern: bytes, name: bytes) -> bool:
    """The obvious recursive matcher of one component over the letters that the strategy uses."""
    if not pattern:
        return not name
    if pattern[:1] == b"*":
        return any(_slow_name(pattern[1:], name[i:]) for i in range(len(name) + 1))
    if pattern.startswith(b"[ab]"):
        return name[:1] in (b"a", b"b") and _slow_name(pattern[4:], name[1:])
    return bool(name) and pattern[:1] in (b"?", name[:1]) and _slow_name(pattern[1:], name[1:])


def _slow(parts: list[bytes], names: list[bytes]) -> bool:
    """The obvious recursive matcher of a path or a directory above it."""
    if not parts:
        return True
    if parts == [b"**"]:
        return bool(names)
    if parts[0] == b"**":
        return _slow(parts[1:], names) or (bool(names) and _slow(parts, names[1:]))
    return bool(names) and _slow_name(parts[0], names[0]) and _slow(parts[1:], names[1:])


@given(PARTS, NAMES)
def test_matching_agrees_with_the_obvious_recursive_definition(parts: list[bytes], names: list[bytes]) -> None:
    """The linear matcher gives the same answers as plain backtracking."""
    assert compile_globs([b"/".join(parts)])(b"/".join(names)) is _slow(parts, names)


@given(PARTS, NAMES)
def test_a_match_below_a_directory_is_never_pruned(parts: list[bytes], names: list[bytes]) -> None:
    """Whenever a path matches, `below` is True for each directory above it."""
    globs = compile_globs([b"/".join(parts)])
    if globs(b"/".join(names)):
        assert all(globs.below(b"/".join(names[:depth])) for depth in range(len(names)))
