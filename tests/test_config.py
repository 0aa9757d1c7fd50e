"""Configuration: what a file means, and every problem in it with its line."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replicad.config import Config, RetentionConfig, examine, examine_text, load, units
from replicad.config.lines import Place, find_lines
from replicad.config.schema import TABLES, Key, Table
from replicad.config.values import MAX_WINDOW_BYTES
from replicad.link.messages import MAX_CREDIT_BYTES
from replicad.model.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
KEY_A = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEwhm0DsGGzBhk1eu0HYYDUgqH0/WZ3Ygw5Lt65Nq2gL"
KEY_B = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEoYQAyCpBrAzUElMQ7i1Xdzj5VgBN0BT0YzfQOOt7IH"

NODE = """
[node]
name = "n"
state = "/var/lib/replicad"
"""
REPLICA = f"""
[[replica]]
name = "r"
address = "r:7022"
key = "{KEY_A}"
"""


def judged(text: str) -> list[tuple[int, str, str]]:
    """Line, key and text of every problem in a configuration, files left alone."""
    report = examine_text(text, Path("c.toml"), check_files=False)
    return [(problem.line, problem.key, problem.text) for problem in report.problems]


def understood(text: str) -> Config:
    """The configuration that `text` is."""
    report = examine_text(text, Path("c.toml"), check_files=False)
    assert report.config, report.problems
    return report.config


# Each wrong line says behind "#!" which key and which words its problem has; every other line is right.
WRONG = {
    "unknown keys and tables, with what was meant": """
        colour = "blue"                     #! colour: unknown table
        [node]
        name = "n"
        state = "/s"
        log_levl = "info"                   #! node.log_levl: did you mean "log_level"?
        [nodes]                             #! nodes: did you mean "node"?
        [listen]
        store = "/r"
        reserve_bytes = 7                   #! listen.reserve_bytes: did you mean "reserve"?
        """,
    "missing keys, at the table that misses them": """
        [node]                              #! node.name: is missing #! node.state: is missing
        [listen]                            #! listen.store: is missing
        [[client]]                          #! client.name: is missing #! client.key: is missing
        """,
    "values of the wrong type": """
        [node]
        name = 7                            #! node.name: must be a text in quotes, not a number
        state = ["/s"]                      #! node.state: not an array
        threads = "2"                       #! node.threads: must be a whole number, not a text
        http = false                        #! node.http: not true or false
        key = 1979-05-27                    #! node.key: not a date or time
        [[dataset]]                         #! dataset: is not protected
        name = "d"
        path = "/d"
        watch = 1                           #! dataset.watch: must be true or false, not a number
        exclude = "*.tmp"                   #! dataset.exclude: must be an array
        max_change = "half"                 #! dataset.max_change: must be a number
        compression = true                  #! dataset.compression: must be a whole number, not true or false
        scrub_every = 7                     #! dataset.scrub_every: must be a text with a unit, like "5m"
        scrub_duty = "1/4"                  #! dataset.scrub_duty: must be a number
        quiet_hours = 8                     #! dataset.quiet_hours: must be a text in quotes, not a number
        repair = true                       #! dataset.repair: must be "auto" or "ask"
        repair_limit = 1.5                  #! dataset.repair_limit: must be a whole number
        hook_pre = [
            "dump",
            7,                              #! dataset.hook_pre: must be a text in quotes
        ]
        """,
    "units": """
        [node]
        name = "n"
        state = "/s"
        [listen]
        store = "/r"
        reserve = 1073741824                #! listen.reserve: must be a text with a unit, like "64KiB", not a number
        window = "32"                       #! listen.window: "32" is not a number and a unit
        [[replica]]
        name = "r"
        address = "r:1"
        key = "KEY_A"
        bandwidth = "20Mbit"                #! replica.bandwidth: unknown unit; known are B, KiB, MiB
        keepalive = 15                      #! replica.keepalive: must be a text with a unit, like "5m"
        [[dataset]]
        name = "d"
        path = "/d"
        rpo = "5 minutes"                   #! dataset.rpo: unknown unit; known are ms, s, m, h, d, w
        debounce = "-1s"                    #! dataset.debounce: is not a number and a unit
        block_size = "0.3B"                 #! dataset.block_size: is no whole number of bytes
        """,
    "retention that means nobody": """
        [node]
        name = "n"
        state = "/s"
        [listen]
        store = "/r"
        [[client]]
        name = "a"
        key = "KEY_A"
        [[retention]]
        client = "a"
        [[retention]]
        client = "a"                        #! retention.client: there is a [[retention]] for client "a" above
        [[retention]]
        client = "b"                        #! retention.client: there is no [[client]] named "b"
        """,
    "retention without a store": """
        [node]
        name = "n"
        state = "/s"
        [[retention]]                       #! retention: retention is the replica's
        keep_daily = 7
        """,
    "values out of range": """
        [node]
        name = "n"
        state = "/s"
        threads = 0                         #! node.threads: must lie between 1 and 64
        log_level = "loud"                  #! node.log_level: must be "debug" or "info" or "warning" or "error"
        log_format = "xml"                  #! node.log_format: must be "text" or "json"
        [listen]
        store = "/r"
        max_sessions = 0                    #! listen.max_sessions: must lie between 1 and 4096
        scrub_every = "366d"                #! listen.scrub_every: must lie between "1s" and "365d"
        scrub_duty = 1.01                   #! listen.scrub_duty: must lie above 0
        quiet_hours = "8:00-18:00"          #! listen.quiet_hours: are no hours of a day; write them like "08:00-18:30"
        repair = "never"                    #! listen.repair: must be "auto" or "ask"
        repair_limit = -1                   #! listen.repair_limit: must lie between 0 and 1000000
        window = "1GiB"                     #! listen.window: must lie between "64KiB" and "256MiB"
        [[retention]]
        keep_within = "101000d"             #! retention.keep_within: must lie between
        keep_hourly = -1                    #! retention.keep_hourly: must lie between 0 and 100000
        keep_monthly = 100001               #! retention.keep_monthly: must lie between 0 and 100000
        keep_at_least = 0                   #! retention.keep_at_least: must lie between 1 and 100000
        keep_younger_than = "1h"            #! retention.keep_younger_than: must lie between "1d" and
        [[replica]]
        name = "r"
        address = "r:1"
        key = "KEY_A"
        via = "telnet"                      #! replica.via: must be "replicad" or "openssh"
        bandwidth = "10B"                   #! replica.bandwidth: must lie between "1KiB"
        bandwidth_hours = [
            "08:00-18:00",                  #! replica.bandwidth_hours: are no hours with a limit; write them like
            "8-18 2MiB",                    #! replica.bandwidth_hours: "8-18" are no hours of a day
            "22:00-06:00 1B",               #! replica.bandwidth_hours: must lie between "1KiB"
        ]
        keepalive = "100ms"                 #! replica.keepalive: must lie between "1s" and "1h"
        [[dataset]]
        name = "d"
        path = "/d"
        rpo = 0                             #! dataset.rpo: must lie between "1s" and "30d"
        block_size = "48KiB"                #! dataset.block_size: no power of two
        max_change = 0                      #! dataset.max_change: must lie above 0
        compression = 20                    #! dataset.compression: must lie between 0 and 19
        on_change = "panic"                 #! dataset.on_change: must be "fuzzy" or "skip"
        scrub_every = 0                     #! dataset.scrub_every: must lie between "1s" and "365d"
        scrub_duty = 0                      #! dataset.scrub_duty: must lie above 0
        quiet_hours = "24:00-06:00"         #! dataset.quiet_hours: "24:00-06:00" are no hours of a day
        repair = ""                         #! dataset.repair: must be "auto" or "ask"
        repair_limit = 1000001              #! dataset.repair_limit: must lie between 0 and 1000000
        exclude = ["ok", "!"]               #! dataset.exclude: no pattern in gitignore syntax
        """,
    "what a library of ours takes for no pattern, and no number": """
        [node]
        name = "n"
        state = "/s"
        threads = 1LONG                     #! node.threads: must lie between 1 and 64
        http = LONG_TEXT                    #! node.http: is longer than 4096 characters
        [listen]
        store = "/r"
        repair_limit = -1_LONG              #! listen.repair_limit: must lie between 0 and 1000000
        scrub_duty = 1LONG.5                #! listen.scrub_duty: must lie above 0
        reserve = 0xLONG                    #! listen.reserve: must be a text with a unit
        max_views = 0bLONG                  #! listen.max_views: must lie between
        [[dataset]]                         #! dataset: is not protected
        name = "d"
        path = "/d"
        exclude = [
            "[z-a]",                        #! dataset.exclude: "[z-a]" is no pattern in gitignore syntax
            "[a-\\\\d]",                    #! dataset.exclude: is no pattern in gitignore syntax
            1LONG,                          #! dataset.exclude: must be a text in quotes
        ]
        """.replace("LONG_TEXT", f'"{"1" * 5000}"').replace("LONG", "1" * 5000),
    "names, addresses, paths and keys": """
        [node]
        name = "../n"                       #! node.name: is no name
        state = "var/lib"                   #! node.state: is not an absolute path
        http = "localhost"                  #! node.http: is no HOST:PORT
        [listen]
        store = "/r\\u0000"                 #! listen.store: holds a control character
        address = "::1:22"                  #! listen.address: stands in brackets
        [[client]]
        name = ""                           #! client.name: is no name
        key = "ssh-rsa AAAA"                #! client.key: is no public key like "ssh-ed25519
        datasets = ["a", "b/c"]             #! client.datasets: "b/c" is no name
        [[replica]]
        name = "r"
        address = "r:70000"                 #! replica.address: is no HOST:PORT
        key = "ssh-ed25519 AAAAC3Nza"       #! replica.key: is damaged
        [[replica]]
        name = "q"
        address = ":22"                     #! replica.address: is no HOST:PORT
        key = "KEY_A"
        """,
    "what must hold between tables": """
        [node]
        name = "n"
        state = "/s"
        [[client]]                          #! client: needs a [listen] table
        name = "c"
        key = "KEY_A"
        [[client]]
        name = "c"                          #! client.name: has the name of client "c" above
        key = "KEY_A"                       #! client.key: has the key of client "c" above
        [[replica]]
        name = "r"
        address = "r:1"
        key = "KEY_A"
        [[replica]]
        name = "r2"
        address = "r2:1"
        key = "KEY_A"                       #! replica.key: has the host key of replica "r" above
        [[dataset]]
        name = "d"
        path = "/d"
        replicas = [
            "r",
            "r3",                           #! dataset.replicas: there is no [[replica]] named "r3"
        ]
        hook_pre = [""]                     #! dataset.hook_pre: the program's name is empty
        [[dataset]]
        name = "d"                          #! dataset.name: has the name of dataset "d" above
        path = "/e"
        """,
    "directories within each other": """
        [node]
        name = "n"
        state = "/data/state"               #! node.state: lies inside dataset "all", /data
        [listen]
        store = "/data/www/store"           #! listen.store: inside dataset "all" #! listen.store: inside dataset "www"
        [[replica]]
        name = "r"
        address = "r:1"
        key = "KEY_A"
        [[dataset]]
        name = "all"
        path = "/data"
        [[dataset]]
        name = "www"
        path = "/data/./x/../www"           #! dataset.path: /data/www lies inside dataset "all", /data
        [[dataset]]
        name = "near"
        path = "/database"
        [[dataset]]
        name = "again"
        path = "/database/"                 #! dataset.path: /database is also dataset "near"
        """,
    "a dataset where replicad's own files are": """
        [node]
        name = "n"
        state = "/store/state"              #! node.state: inside the store #! node.state: inside dataset "store"
        [listen]
        store = "/store"
        [[replica]]
        name = "r"
        address = "r:1"
        key = "KEY_A"
        [[dataset]]
        name = "store"
        path = "/store"                     #! dataset.path: is also the store
        [[dataset]]
        name = "inner"
        path = "/store/c"                   #! dataset.path: inside the store #! dataset.path: inside dataset "store"
        """,
    "a private key that would be copied": """
        [node]
        name = "n"
        state = "/s"
        key = "/etc/replicad/key"           #! node.key: lies inside dataset "etc"
        [[replica]]
        name = "r"
        address = "r:1"
        key = "KEY_A"
        [[dataset]]
        name = "etc"
        path = "/etc"
        exclude = ["/replicad/*.old"]
        """,
    "tables written as what they are not": """
        node = [1]                          #! node: must be written [node]
        client = 7                          #! client: must be written [[client]]
        [replica]                           #! replica: must be written [[replica]]
        [[listen]]                          #! listen: must be written [listen]
        """,
}


@pytest.mark.parametrize("case", WRONG)
def test_every_problem_is_reported_at_once_with_line_and_key(case: str) -> None:
    """All wrong lines of a file, and only those, are found in one run, each with its key and words that say why."""
    text = WRONG[case].replace("KEY_A", KEY_A)
    expected = []
    for number, line in enumerate(text.split("\n"), 1):
        for mark in line.split("#!")[1:]:
            key, _, words = mark.strip().partition(": ")
            expected.append((number, key, words))
    found = judged(text)
    for number, key, words in expected:
        assert any(n == number and k == key and words in t for n, k, t in found), (number, key, words, found)
    assert len(found) == len(expected), found


def test_a_private_key_that_is_left_out_may_lie_in_a_dataset() -> None:
    """What no replica gets is no secret given away."""
    node = NODE + 'key = "/etc/replicad/key"\n'
    for pattern in ("/replicad/", "key"):
        understood(f'{node}{REPLICA}[[dataset]]\nname = "etc"\npath = "/etc"\nexclude = ["{pattern}"]\n')


def test_a_small_file_has_all_defaults() -> None:
    """Only names, paths, addresses and keys have to be given."""
    config = understood(NODE + REPLICA + '[[dataset]]\nname = "d"\npath = "/d"\n')
    assert config.node.key == Path("/var/lib/replicad/key")
    assert config.node.http == "127.0.0.1:9817"
    assert config.listen is None
    assert config.datasets[0].rpo_s == 300.0
    assert config.replicas_of(config.datasets[0]) == config.replicas


def test_values_arrive_in_base_units() -> None:
    """Sizes become bytes, durations seconds, arrays tuples, and comments behind keys go."""
    config = understood(
        NODE
        + REPLICA.replace(KEY_A, KEY_A + " root@r")
        + 'bandwidth = "1.5MiB"\nkeepalive = "500s"\n'
        + '[[dataset]]\nname = "d"\npath = "/d"\nrpo = "1.5h"\ndebounce = 0\nblock_size = "128KiB"\nmax_change = 1\n'
        + 'exclude = ["*.tmp", "!keep.tmp"]\nreplicas = ["r"]\nhook_pre = ["/bin/true", ""]\n'
    )
    replica, dataset = config.replicas[0], config.datasets[0]
    assert (replica.key, replica.bandwidth_bytes, replica.keepalive_s) == (KEY_A, 1536 * 1024, 500.0)
    assert (dataset.rpo_s, dataset.debounce_s, dataset.block_bytes, dataset.max_change) == (5400.0, 0.0, 131072, 1.0)
    assert (dataset.exclude, dataset.hook_pre) == (("*.tmp", "!keep.tmp"), ("/bin/true", ""))
    assert config.replicas_of(dataset) == (replica,)


def test_the_first_of_the_hours_that_holds_sets_the_bandwidth() -> None:
    """In every minute of the day: those over midnight, those within others, and the plain limit outside of all."""
    hours = '["12:00-13:00 0", "08:00-18:00 2MiB", "23:30-05:00 64 KiB"]'
    (replica,) = understood(NODE + REPLICA + f'bandwidth = "1MiB"\nbandwidth_hours = {hours}\n').replicas
    for minute in range(24 * 60):
        at_noon, by_day = 12 * 60 <= minute < 13 * 60, 8 * 60 <= minute < 18 * 60
        by_night = minute >= 23 * 60 + 30 or minute < 5 * 60
        wanted = 0 if at_noon else 2 * 1024**2 if by_day else 64 * 1024 if by_night else 1024**2
        assert replica.bandwidth_at(minute * 60.0) == replica.bandwidth_at(minute * 60 + 59.9) == wanted, minute


def test_scrub_and_repair_are_set_for_each_side() -> None:
    """A replica repairs its store by itself, a primary asks before a byte of the data is written, and both scrub within
    a week, unless the file says otherwise."""
    text = NODE + '[listen]\nstore = "/r"\n{listen}\n' + REPLICA + '[[dataset]]\nname = "d"\npath = "/d"\n{dataset}'
    config = understood(text.format(listen="", dataset=""))
    week_s, sides = 7 * 86400.0, (config.listen, config.datasets[0])
    assert [side and (side.scrub_every_s, side.quiet_hours, side.repair_limit) for side in sides] == [
        (week_s, "", 100)
    ] * 2
    assert [side and (side.scrub_duty, side.repair) for side in sides] == [(0.5, "auto"), (0.25, "ask")]
    other = 'scrub_every = "12h"\nscrub_duty = 1\nquiet_hours = "22:00-06:30"\nrepair = "{}"\nrepair_limit = 0\n'
    config = understood(text.format(listen=other.format("ask"), dataset=other.format("auto")))
    for side, repair in ((config.listen, "ask"), (config.datasets[0], "auto")):
        assert side and (side.scrub_every_s, side.scrub_duty, side.quiet_hours) == (43200.0, 1.0, "22:00-06:30")
        assert (side.repair, side.repair_limit) == (repair, 0)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[node]\nname = \n", 2, "Invalid value at column 8"),
        ('[node]\nname = "a"\nname = "b"\n', 3, "Cannot overwrite a value"),
        ('[node]\nname = """a\nb', 3, "Unterminated string at the end of the file"),
        ("a = " + "[" * 100_000, 1, "nested too deeply"),
        (NODE + "x = " + "[" * 496 + "]" * 496, 5, "nested too deeply"),
        (NODE + "x = [" + "\n{x = [" * 200 + "]}" * 200 + "]", 55, "nested too deeply"),
        (NODE + "x." * 1000 + "x = 1", 5, "nested too deeply"),
        ("", 1, "the table [node] is missing"),
    ],
)
def test_a_syntax_error_has_its_line(text: str, line: int, words: str) -> None:
    """A file that is no TOML gives one problem, at the line where it stops being TOML."""
    [(found, _key, message)] = judged(text)
    assert found == line
    assert words in message


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    """Missing, a directory, not UTF-8 or far too large: one problem that names the file."""
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"[node]\nname = '\xff'\n")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    for path, words in [
        (tmp_path / "none.toml", "No such file or directory; replicad init makes one"),
        (tmp_path, "Is a directory"),
        (binary, "is not UTF-8 (line 2)"),
        (large, "is larger than"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert words in str(caught.value)
        assert caught.value.exit_code == 2


def test_the_error_shows_file_line_and_key(tmp_path: Path) -> None:
    """A ConfigError reads like a compiler's output: FILE:LINE: KEY: TEXT, one line a problem."""
    path = tmp_path / "c.toml"
    path.write_text(NODE + "threads = 0\nlog_level = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(path, check_files=False)
    first, second = str(caught.value).splitlines()
    assert first == f"{path}:5: node.threads: must lie between 1 and 64"
    assert second.startswith(f"{path}:6: node.log_level: ")


# ----------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A directory with a key, a store, a dataset's root and a right configuration, c.toml."""
    return make_house(tmp_path)


def make_house(tmp_path: Path) -> Path:
    for name in ("state", "store", "www"):
        (tmp_path / name).mkdir()
    key = tmp_path / "state/key"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    key.chmod(0o600)
    (tmp_path / "c.toml").write_text(
        f'[node]\nname = "n"\nstate = "{tmp_path}/state"\n'
        f'[listen]\nstore = "{tmp_path}/store"\n{REPLICA}'
        f'[[dataset]]\nname = "www"\npath = "{tmp_path}/www"\nhook_pre = ["true"]\n'
    )
    return tmp_path


def problems(path: Path) -> list[str]:
    return [f"{problem.key}: {problem.text}" for problem in examine(path).problems]


def test_a_right_house_has_no_problem(house: Path) -> None:
    """Key, store, root and hook as they should be: nothing to report."""
    report = examine(house / "c.toml")
    assert (report.problems, report.warnings) == ([], [])
    assert load(house / "c.toml").file == house / "c.toml"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o601, 0o666])
def test_a_key_that_others_can_reach_is_refused(house: Path, mode: int) -> None:
    """Any right of group or others on the private key is a problem that says how to end it."""
    (house / "state/key").chmod(mode)
    [text] = problems(house / "c.toml")
    assert text.startswith("node.key: ")
    assert text.endswith(f"can be read by others (mode {mode:04o}); chmod 600 {house}/state/key")


def test_a_missing_or_wrong_key_is_a_problem(house: Path) -> None:
    """A key has to be there, and to be a private key."""
    (house / "state/key").write_text("ssh-ed25519 AAAA\n")
    assert problems(house / "c.toml") == [f"node.key: {house}/state/key is no private key in OpenSSH format"]
    (house / "state/key").unlink()
    assert "No such file or directory; replicad init makes it" in problems(house / "c.toml")[0]


def test_a_missing_store_is_a_problem_and_a_missing_root_a_warning(house: Path) -> None:
    """Intake into an empty mount point would fill the wrong disk; a root may be unmounted for a while."""
    (house / "store").rmdir()
    (house / "www").rmdir()
    report = examine(house / "c.toml")
    assert [problem.key for problem in report.problems] == ["listen.store"]
    assert [warning.key for warning in report.warnings] == ["dataset.path"]


def test_a_path_that_no_file_system_takes_is_none(house: Path) -> None:
    """A name that is too long is a file that is not there, for each thing that is looked for."""
    path, long = house / "c.toml", "x" * 300
    text = path.read_text().replace(f"{house}/store", f"/{long}").replace(f"{house}/www", f"/{long}y")
    path.write_text(text.replace("[listen]", f'key = "/{long}"\n[listen]') + f'drill_scratch = "/{long}z"\n')
    report = examine(path)
    assert [problem.key for problem in report.problems] == ["node.key", "listen.store"]
    assert [warning.key for warning in report.warnings] == ["dataset.path", "dataset.drill_scratch"]


def test_a_hook_that_is_not_there_is_a_problem(house: Path) -> None:
    """A hook's program is looked up now rather than at the first pass."""
    path = house / "c.toml"
    path.write_text(path.read_text().replace('["true"]', '["/no/such/dump", "-x"]'))
    assert problems(path) == ['dataset.hook_pre: there is no program "/no/such/dump"']


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_the_store_must_be_writable_for_whoever_asks() -> None:
    """Files are judged with the rights of the process: a store of root's is none for the daemon's user."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        house = make_house(Path(directory))
        for path, mode in (house, 0o755), (house / "state", 0o755), (house / "store", 0o755):
            path.chmod(mode)
        os.chown(house / "state/key", nobody, nobody)
        assert problems(house / "c.toml") == []
        os.setresuid(nobody, nobody, 0)
        try:
            found = problems(house / "c.toml")
        finally:
            os.setresuid(0, 0, 0)
        assert [text.partition(" (")[0] for text in found] == [
            f"listen.store: {house}/store is not writable for this user"
        ]


@pytest.mark.parametrize("outer", ["store", "state", "www"])
def test_overlaps_through_symbolic_links_are_found(house: Path, outer: str) -> None:
    """A dataset that leads into another directory by a link is as wrong as one that lies in it."""
    (house / outer / "inner").mkdir()
    (house / "link").symlink_to(house / outer / "inner")
    path = house / "c.toml"
    path.write_text(path.read_text() + f'[[dataset]]\nname = "linked"\npath = "{house}/link"\n')
    [text] = problems(path)
    assert text.startswith(f"dataset.path: {house}/{outer}/inner lies inside ")


def test_files_are_left_alone_when_told_so(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `check_files` nothing but the configuration is touched, so no dead mount can hang a light verb."""

    def touched(*_arguments: object, **_options: object) -> None:
        raise AssertionError("the file system was asked")

    text = (house / "c.toml").read_text()
    for name in ("stat", "lstat", "open", "access", "readlink", "path.realpath"):
        monkeypatch.setattr(f"os.{name}", touched)
    assert examine_text(text, house / "c.toml", check_files=False, follow_links=False).config


def test_rules_of_a_client() -> None:
    """A client has the rules of its own table, else those for all, else none: then nothing goes."""
    own, common = RetentionConfig("a", daily=3), RetentionConfig(weekly=2)
    config = load(EXAMPLE, check_files=False)
    rules = [replace(config, retentions=(own, common)).rules_of(client) for client in ("a", "b")]
    assert (rules[0].daily, rules[0].weekly, rules[1].daily, rules[1].weekly) == (3, 0, 0, 2)
    assert replace(config, retentions=(own,)).rules_of("b").is_off and config.rules_of("fra1").is_off


# --------------------------------------------------------------------------------------------------------- example


def test_the_example_shows_every_key_with_its_default() -> None:
    """config.example.toml holds each key of the schema, nothing else, and where a key has a default, that default."""
    document = tomllib.loads(EXAMPLE.read_text())
    assert list(document) == [table.name for table in TABLES]
    for table in TABLES:
        shown = document[table.name][0] if table.many else document[table.name]
        assert list(shown) == [key.name for key in table.keys]
        for key in table.keys:
            value = tuple(map(key.read, shown[key.name])) if key.each else key.read(shown[key.name])
            if table.default(key) is not MISSING:
                assert value == table.default(key), f"{table.name}.{key.name}"


def test_the_example_is_valid_and_explains_each_key() -> None:
    """The example loads, its `key` is the default too, and each key has a comment directly above it."""
    config = load(EXAMPLE, check_files=False)
    assert config.node.key == config.node.state / "key"
    lines = EXAMPLE.read_text().splitlines()
    for place, number in find_lines(EXAMPLE.read_text()).items():
        if isinstance(place[-1], str) and len(place) > 1:
            assert lines[number - 2].startswith("# "), place


def test_the_window_of_the_configuration_is_what_the_link_grants() -> None:
    """A window that may be configured is one that the link accepts."""
    assert MAX_WINDOW_BYTES == MAX_CREDIT_BYTES


# ----------------------------------------------------------------------------------------------------------- units


@given(st.integers(0, 2**60))
def test_sizes_survive_their_notation(size: int) -> None:
    """What format_size writes, parse_size reads back exactly."""
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(0, 10**11))
def test_durations_survive_their_notation(milliseconds: int) -> None:
    """What format_duration writes, parse_duration reads back exactly."""
    assert units.parse_duration(units.format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 24 * 60 - 1), st.integers(0, 24 * 60 - 1))
def test_hours_survive_their_notation(begin: int, end: int) -> None:
    """Any two moments of a day are hours, over midnight too; the same moment twice is neither a day nor nothing."""
    text = "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (begin, end))
    if begin == end:
        with pytest.raises(ValueError, match="no hours of a day"):
            units.parse_hours(text)
    else:
        assert units.parse_hours(text) == (begin, end)


@given(st.text() | st.from_regex(r"\d?\d:\d\d ?- ?\d\d:\d\d\n?", fullmatch=True))
@example("08:60-09:00")
@example("24:00-01:00")
@example("٠٨:00-09:00")  # digits of another script
@example("08:00-09:00\n")
@example("08:00–09:00")
def test_any_text_is_hours_or_a_value_error(text: str) -> None:
    """Reading hours ends in two minutes of one day or in a ValueError that shows how to write them."""
    try:
        begin, end = units.parse_hours(text)
    except ValueError as error:
        assert "08:00-18:30" in str(error)
    else:
        assert 0 <= begin < 24 * 60 and 0 <= end < 24 * 60 and begin != end
        assert text == f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"


@given(st.text())
@example("１KiB")  # a digit of another script
@example("1e9KiB")
@example("9" * 400 + "TiB")
def test_any_text_is_a_size_and_a_duration_or_a_value_error(text: str) -> None:
    """Reading a unit ends in a number or a ValueError, nothing else."""
    for parse in (units.parse_size, units.parse_duration):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert str(error)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    """No text at all makes the loader do anything but judge."""
    examine_text(text, Path("c.toml"), check_files=False, follow_links=False)


_names = st.sampled_from([key.name for table in TABLES for key in table.keys] + ["x"])
_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True) | st.text(max_size=9)


@given(
    st.dictionaries(
        st.sampled_from([table.name for table in TABLES] + ["x"]),
        st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(_names, inner), max_leaves=20),
    )
)
def test_any_document_is_judged(document: dict[str, Any]) -> None:
    """No values under the known keys make the loader do anything but judge."""
    examine_text("\n".join(_toml(document)), Path("c.toml"), check_files=False, follow_links=False)


@settings(deadline=None)
@given(st.binary() | st.binary().map(lambda junk: EXAMPLE.read_bytes()[: 20 * len(junk)] + junk))
def test_any_file_is_judged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No bytes at all make the loader do anything but judge, with the file's name in each problem."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    report = examine(path)
    assert all(problem.file == str(path) for problem in report.problems) and (report.config or report.problems)


def _toml(document: dict[str, Any]) -> Iterator[str]:
    for name, value in document.items():
        yield f"{name} = {_inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(_toml(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
    return "1979-05-27T07:32:00Z" if value is None else repr(value).lower()


def _least_with(table: Table, key: Key, value: str) -> str:
    """A configuration of each table with what has to be given, and `key` of one of them as this TOML."""
    lines = list[str]()
    for one in TABLES:
        given = _SHOWN[one.name][0] if one.many else _SHOWN[one.name]
        written = {k.name: _inline(given[k.name]) for k in one.required()} | ({key.name: value} if one is table else {})
        lines.append(f"[[{one.name}]]" if one.many else f"[{one.name}]")
        lines += (f"{name} = {toml}" for name, toml in written.items())
    return "\n".join(lines)


_SHOWN = tomllib.loads(EXAMPLE.read_text())
_KEYS_OF_TABLES = [(table, key) for table in TABLES for key in table.keys]
HOSTILE = {
    **{text[:8]: _inline(text) for text in ("[z-a]", r"[a-\d]", "[[:alpha:]--[a]", "!", "\\", "*" * 4000, "1" * 5000)},
    **{f"{name[0]} {len(name)} long": _inline(f"/{name}") for name in ("x" * 300, "x/" * 2040, "é" * 200)},
    **{f"{depth} brackets": "[" * depth + "]" * depth for depth in (2, 101, 490, 2000)},
    **{f"{base}{count} digits": base + "1" * count for base in ("", "-", "0x", "1.") for count in (30, 4300, 5000)},
    "tables": "{a = " * 300 + "1" + "}" * 300,
    "no number": "nan",
    "no end": "-inf",
    "a moment": "9999-12-31T23:59:59.999999999999+23:59",
}


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # of re, about sets that a later Python may understand
@pytest.mark.parametrize("value", HOSTILE)
def test_what_no_key_expects_is_judged_behind_each(value: str) -> None:
    """Alone and in an array: the loader judges, and looks at the files that are named; nothing else happens."""
    for table, key in _KEYS_OF_TABLES:
        for toml in (HOSTILE[value], f"[{HOSTILE[value]}]"):
            examine_text(_least_with(table, key, toml), Path("c.toml"), check_files=True)


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
@settings(deadline=None)
@given(
    st.sampled_from(_KEYS_OF_TABLES),
    st.text("[]!^*?/\\-&|~.:az09 {}()", max_size=12)
    | st.text(max_size=9).map("/{}".format)
    | st.lists(_scalars)
    | _scalars,
)
def test_any_value_of_any_key_is_judged(which: tuple[Table, Key], value: Any) -> None:
    """Whatever stands behind a key of a file that is right otherwise."""
    examine_text(_least_with(*which, _inline(value)), Path("c.toml"), check_files=True)


# ----------------------------------------------------------------------------------------------------------- lines

_KEYS = st.sampled_from(["a", "b-1", "C_d", "9", '"q.r"', "'s # t'", '"\\u00e9\\""', '""', "'='"])
_LEAVES = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        "1979-05-27 07:32:00",
        '"# no comment ]"',
        "'a = [1]'",
        '"\\"]\\\\"',
        '""',
        '"""\n[no.table]\nx = 1 \\\n  ""two"" # no comment"""',
        "'''\n'' ] = '''",
        '""""one before"""',
        '"""two behind"""""',
        "'''one behind''''",
        '""""""',
    ]
)
_GAPS = st.sampled_from(["", "\n", '# comment [x] "\n', "  \n\t\n", '#"""\n'])


class _Writer:
    """Writes a TOML document and notes where it puts things."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.text = ""
        self.lines: dict[Place, int] = {}
        self._draw = draw

    def write(self) -> None:
        """A few keys, then tables and arrays of tables with tables below them."""
        self.pairs(())
        for number in range(self._draw(st.integers(0, 4))):
            self.text += self._draw(_GAPS)
            name = f"t{number % 2}"
            if number % 2:
                index = sum(place[0] == name and len(place) == 2 for place in self.lines)
                self.note((name,))
                self.note((name, index))
                self.header(f"[[ {name} ]]", (name, index))
                self.table_below((name, index), name)
            elif (name,) not in self.lines:
                self.note((name,))
                self.header(f"[{name}]", (name,))
                self.table_below((name,), name)

    def table_below(self, place: Place, name: str) -> None:
        if self._draw(st.booleans()):
            self.note((*place, "mid dle"))
            self.note((*place, "mid dle", "sub"))
            self.header(f"[{name}.'mid dle' . sub]", (*place, "mid dle", "sub"))

    def header(self, text: str, place: Place) -> None:
        self.text += text + self._draw(st.sampled_from(["\n", " # [[x]]\n"]))
        self.pairs(place)

    def pairs(self, table: Place) -> None:
        for raw in self._draw(st.lists(_KEYS, unique=True, max_size=3)):
            self.text += self._draw(_GAPS) + self._draw(st.sampled_from(["", "  "]))
            self.pair(table, raw)
            self.text += self._draw(st.sampled_from(["\n", " # end\n", "\r\n"]))

    def pair(self, table: Place, raw: str) -> None:
        place = (*table, tomllib.loads(f"{raw} = 0").popitem()[0])
        self.note(place)
        if self._draw(st.booleans()):
            raw, place = f'{raw} . "dotted"', (*place, "dotted")
            self.note(place)
        self.text += f"{raw} ="
        self.value(place, self._draw(st.integers(0, 2)))

    def value(self, place: Place, depth: int) -> None:
        shape = self._draw(st.sampled_from(["leaf", "array", "table"])) if depth else "leaf"
        if shape == "leaf":
            self.text += " " + self._draw(_LEAVES)
        elif shape == "array":
            self.text += " ["
            for index in range(self._draw(st.integers(0, 3))):
                self.text += ("," if index else "") + self._draw(_GAPS)
                self.note((*place, index))
                self.value((*place, index), depth - 1)
            self.text += self._draw(_GAPS) + "]"
        else:
            self.text += "{"
            for index, raw in enumerate(self._draw(st.lists(_KEYS, unique=True, max_size=2))):
                self.text += ", " if index else " "
                self.pair(place, raw)
            self.text += "}"

    def note(self, place: Place) -> None:
        self.lines.setdefault(place, self.text.count("\n") + 1)


@st.composite
def _documents(draw: st.DrawFn) -> _Writer:
    writer = _Writer(draw)
    writer.write()
    return writer


@settings(max_examples=400)
@given(_documents())
def test_every_key_is_found_on_its_line(written: _Writer) -> None:
    """Through comments, strings of all kinds, arrays, inline tables, dotted and quoted keys: each key has its line."""
    tomllib.loads(written.text)  # the writer writes TOML
    assert find_lines(written.text) == written.lines


@settings(max_examples=400)
@given(_documents())
def test_the_scanner_sees_the_keys_that_the_parser_sees(written: _Writer) -> None:
    """The places with a line are exactly the keys, tables and elements of the parsed document."""
    assert set(find_lines(written.text)) == set(_places(tomllib.loads(written.text), ()))


def _places(value: Any, place: Place) -> Iterator[Place]:
    if place:
        yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(inner, (*place, index))
