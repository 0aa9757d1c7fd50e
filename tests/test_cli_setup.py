"""Pairing from the command line, and how the command line behaves."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

from replicad import __version__
from replicad.cli import app, options, output
from replicad.config import edit, load
from replicad.model.errors import DiskFullError, HeldError, LockedError, UsageError
from replicad.model.pairing import parse_primary_line, parse_replica_line
from replicad.work import setup

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEwhm0DsGGzBhk1eu0HYYDUgqH0/WZ3Ygw5Lt65Nq2gL"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEoYQAyCpBrAzUElMQ7i1Xdzj5VgBN0BT0YzfQOOt7IH"
REPLICA_LINE = f"replicad-replica fra1 127.0.0.1:7022 {KEY}"
PRIMARY_LINE = f"replicad-primary ams1 {KEY} www,mail"


class Shell:
    """Types commands in a directory; stdout and stderr of the last one are kept."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capture = directory, capture
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        code = app.main([str(word) for word in words])
        self.out, self.err = self._capture.readouterr()
        return code

    def replica(self, *more: object) -> int:
        words = ("--name", "fra1", "--listen", "127.0.0.1:7022", "--store", "store", "--state", "r-state")
        return self("init", "replica", "--config", "R.toml", *words, *more)

    def primary(self, *more: object, line: str = REPLICA_LINE) -> int:
        words = ("--name", "ams1", "--dataset", f"www={self.directory}/www", "--replica", line, "--state", "p-state")
        return self("init", "primary", "--config", "P.toml", *words, *more)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell in an empty directory that has a tree to protect, www."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "www").mkdir()
    return Shell(tmp_path, capsys)


def everything(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every path below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, path.read_bytes() if stat.S_ISREG(status.st_mode) else b"")
    return found


# --------------------------------------------------------------------------------------------------------- pairing


def test_three_commands_pair_two_nodes(shell: Shell) -> None:
    """The pairing as the manual writes it: each line that goes to the other side is all there is on stdout."""
    assert shell.replica("--http", "127.0.0.1:9818") == 0
    replica = parse_replica_line(shell.out)
    assert shell.out == f"{replica}\n"
    assert (replica.name, replica.address) == ("fra1", "127.0.0.1:7022")
    assert "replicad init primary" in shell.err
    assert "replicad authorize --config R.toml" in shell.err

    assert shell.primary(line=shell.out.strip()) == 0
    primary = parse_primary_line(shell.out)
    assert shell.out == f"{primary}\n"
    assert (primary.name, primary.datasets) == ("ams1", ("www",))
    assert "replicad authorize" in shell.err

    assert shell("authorize", "--config", "R.toml", shell.out.strip()) == 0
    assert shell.out == ""
    assert "ams1 may store www" in shell.err

    one, other = load(Path("R.toml")), load(Path("P.toml"))
    assert [(c.name, c.key, c.datasets) for c in one.clients] == [("ams1", primary.key, ("www",))]
    assert [(r.name, r.address, r.key) for r in other.replicas] == [("fra1", "127.0.0.1:7022", replica.key)]
    assert (one.node.http, other.node.http) == ("127.0.0.1:9818", "127.0.0.1:9817")
    assert other.datasets[0].path == shell.directory / "www"


def test_keys_and_directories_are_private(shell: Shell) -> None:
    """State and store are for their owner alone, the private key has mode 0600; its public half stands beside it."""
    shell.replica()
    modes = {name: stat.S_IMODE(Path(name).stat().st_mode) for name in ("r-state", "store", "r-state/key", "R.toml")}
    assert modes == {"r-state": 0o700, "store": 0o700, "r-state/key": 0o600, "R.toml": 0o644}
    assert Path("r-state/key.pub").read_text() == f"{parse_replica_line(shell.out).key} replicad fra1\n"


def test_the_key_is_one_that_openssh_reads(shell: Shell) -> None:
    """ssh-keygen derives the public key of the line from the private key file."""
    shell.replica()
    done = subprocess.run(["ssh-keygen", "-y", "-f", "r-state/key"], capture_output=True, text=True, check=True)
    assert " ".join(done.stdout.split()[:2]) == parse_replica_line(shell.out).key


def test_a_key_that_exists_is_kept(shell: Shell) -> None:
    """After a lost configuration, init with the old state directory gives the old identity."""
    shell.replica()
    before = shell.out
    Path("R.toml").unlink()
    assert shell.replica() == 0
    assert shell.out == before


def test_a_key_that_others_can_read_is_refused(shell: Shell) -> None:
    """init does not build on a key that may be known to others."""
    shell.replica()
    Path("R.toml").unlink()
    Path("r-state/key").chmod(0o644)
    assert shell.replica() == 2
    assert "can be read by others (mode 0644); chmod 600" in shell.err
    assert not Path("R.toml").exists()


def test_init_refuses_a_configuration_that_has_its_role(shell: Shell) -> None:
    """A second init replica or init primary changes nothing and says what to do."""
    shell.replica()
    shell.primary()
    before = everything(shell.directory)
    assert shell.replica() == 2
    assert "R.toml: this node is a replica already (to begin anew, move the file away" in shell.err
    assert shell.primary() == 2
    assert "P.toml: this node is a primary already" in shell.err
    assert shell.out == ""
    assert everything(shell.directory) == before


@pytest.mark.parametrize("first", ["replica", "primary"])
def test_a_node_may_be_both(shell: Shell, first: str) -> None:
    """The second init on one configuration adds to it, whatever came first: one node, one key, all comments kept."""
    replica = ("init", "replica", "--config", "N.toml", "--store", "store")
    primary = ("init", "primary", "--config", "N.toml", "--dataset", "www=www", "--replica", REPLICA_LINE)
    one, two = (replica, primary) if first == "replica" else (primary, replica)
    assert shell(*one, "--name", "both", "--state", "state") == 0
    path = Path("N.toml")
    path.write_text(path.read_text() + "# a remark\n")
    assert shell(*two) == 0
    config = load(path)
    assert (config.node.name, bool(config.listen), len(config.datasets)) == ("both", True, 1)
    assert "# a remark\n" in path.read_text()


@pytest.mark.parametrize(("option", "value"), [("--name", "other"), ("--state", "elsewhere"), ("--http", ":1")])
def test_what_is_said_of_a_node_that_exists_has_to_be_true(shell: Shell, option: str, value: str) -> None:
    """init does not rename or move a node behind its back."""
    shell.replica()
    before = everything(shell.directory)
    words = ("--dataset", "www=www", "--replica", REPLICA_LINE, option, value)
    assert shell("init", "primary", "--config", "R.toml", *words) == 2
    assert f"{option} is " in shell.err
    assert everything(shell.directory) == before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("init replica --store s --state t --name ../x", 'node.name: "../x" is no name'),
        ("init replica --store s --state t --listen 127.0.0.1", "is no HOST:PORT"),
        ("init replica --store s --state t --listen 127.0.0.1:0", "fixed port"),
        ("init replica --store s --state t --advertise here", "is no HOST:PORT"),
        ("init replica --store s --state t --http nowhere", "node.http:"),
        ("init replica --store s --state s/t", "node.state:"),
        ("init replica --state t", "Missing option '--store'"),
        ("init primary --state t --dataset www --replica R", '"www" is no NAME=PATH'),
        ("init primary --state t --dataset www=www --dataset www=x --replica R", "dataset.name:"),
        ("init primary --state t --dataset www=www --dataset inner=www/x --replica R", "dataset.path:"),
        ("init primary --state www/t --dataset www=www --replica R", "node.state:"),
        ("init primary --state t --dataset a/b=www --replica R", '"a/b" is no name'),
        ("init primary --state t --dataset www=www --replica P", "belongs to the other side"),
        ("init primary --state t --dataset www=www --replica R --replica R", "replica.name:"),
        ("authorize P", "replicad init makes one"),
    ],
)
def test_bad_input_changes_nothing(shell: Shell, words: str, complaint: str) -> None:
    """One clear line on stderr, exit code 2, nothing on stdout and not a file or directory made."""
    before = everything(shell.directory)
    lines = {"R": REPLICA_LINE, "P": PRIMARY_LINE}
    assert shell(*(lines.get(word, word) for word in words.split()), "--config", "new/N.toml") == 2
    assert complaint in shell.err
    assert len(shell.err.splitlines()) == 1
    assert shell.out == ""
    assert everything(shell.directory) == before


def test_a_replica_on_all_addresses_is_advertised_by_name(shell: Shell) -> None:
    """Without an address of its own in --listen, the line names this host, or what --advertise says."""
    assert setup.advertised("[::1]:7022", "") == "[::1]:7022"
    host, port = setup.advertised(":7022", "").rsplit(":", 1)
    assert host not in ("", "0.0.0.0") and port == "7022"
    assert (
        shell("init", "replica", "--config", "R.toml", "--store", "s", "--state", "t", "--advertise", "b.org:22") == 0
    )
    assert parse_replica_line(shell.out).address == "b.org:22"
    config = load(Path("R.toml")).listen
    assert config and config.address == ":7022"


def test_a_replica_is_never_advertised_as_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that knows no better name for itself than localhost gives its plain name: others would dial themselves."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost.localdomain")
    monkeypatch.setattr(socket, "gethostname", lambda: "fra1")
    assert setup.advertised(":7022", "") == "fra1:7022"


# ------------------------------------------------------------------------------------------------------- authorize


def clients(path: str = "R.toml") -> list[tuple[str, str, tuple[str, ...]]]:
    return [(c.name, c.key, c.datasets) for c in load(Path(path), check_files=False).clients]


def test_authorize_can_restrict_the_datasets(shell: Shell) -> None:
    """--dataset, repeatable, overrides what the line asks for; a later authorize sets them anew."""
    shell.replica()
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE, "--dataset", "www") == 0
    assert clients() == [("ams1", KEY, ("www",))]
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE, "--dataset", "www", "--dataset", "db") == 0
    assert clients() == [("ams1", KEY, ("www", "db"))]
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE) == 0
    assert clients() == [("ams1", KEY, ("www", "mail"))]


def test_authorize_twice_is_once(shell: Shell) -> None:
    """The same line again leaves the file untouched and still succeeds."""
    shell.replica()
    shell("authorize", "--config", "R.toml", PRIMARY_LINE)
    before = Path("R.toml").stat()
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE) == 0
    assert "(as before)" in shell.err
    after = Path("R.toml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_key_under_a_known_name_is_refused(shell: Shell) -> None:
    """A name that comes with another key is another host, until a person says --replace."""
    shell.replica()
    shell("authorize", "--config", "R.toml", PRIMARY_LINE)
    other = PRIMARY_LINE.replace(KEY, OTHER_KEY)
    before = Path("R.toml").read_bytes()
    assert shell("authorize", "--config", "R.toml", other) == 2
    assert 'client "ams1" is known with another key' in shell.err
    assert Path("R.toml").read_bytes() == before
    assert shell("authorize", "--config", "R.toml", other, "--replace") == 0
    assert clients() == [("ams1", OTHER_KEY, ("www", "mail"))]


def test_a_known_key_under_another_name_is_refused(shell: Shell) -> None:
    """A key stands for one client: it tells whose store a connection may write."""
    shell.replica()
    shell("authorize", "--config", "R.toml", PRIMARY_LINE)
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE.replace("ams1", "ams2")) == 2
    assert 'has the key of client "ams1" above (nothing was changed)' in shell.err


def test_a_primary_alone_authorizes_nobody(shell: Shell) -> None:
    """authorize on a node that has no store says what it lacks."""
    shell.primary()
    assert shell("authorize", "--config", "P.toml", PRIMARY_LINE) == 2
    assert "this node is no replica (replicad init replica makes it one)" in shell.err


def test_comments_and_everything_else_survive(shell: Shell) -> None:
    """authorize adds its lines and changes no other: remarks, order and notation stay as a person wrote them."""
    shell.replica()
    text = Path("R.toml").read_text()
    text += f'[[client]] # the old one\nname = "old" # keep\nkey = "{OTHER_KEY}" # rotated in 2024\n\n# the end\n'
    Path("R.toml").write_text(text)
    shell("authorize", "--config", "R.toml", PRIMARY_LINE)
    after = Path("R.toml").read_text()
    before = [line for line in text.splitlines() if line]
    assert [line for line in after.splitlines() if line in before] == before
    added = [line for line in after.splitlines() if line and line not in before]
    assert added == ["[[client]]", 'name = "ams1"', f'key = "{KEY}"', 'datasets = ["www", "mail"]']
    shell("authorize", "--config", "R.toml", f"replicad-primary old {OTHER_KEY} mail")
    assert 'name = "old" # keep' in Path("R.toml").read_text()
    assert [name for name, _key, _datasets in clients()] == ["old", "ams1"]


def test_clients_in_an_inline_array_are_left_to_a_person(shell: Shell) -> None:
    """`client = [{…}]` cannot get another [[client]]; it is refused with what to do, not broken."""
    shell.replica()
    text = f'client = [{{name = "x", key = "{OTHER_KEY}"}}]\n' + Path("R.toml").read_text()
    Path("R.toml").write_text(text)
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE) == 2
    assert "write its elements as [[client]] tables" in shell.err
    assert Path("R.toml").read_text() == text


def test_a_link_to_the_configuration_stays_one(shell: Shell) -> None:
    """The file behind a symbolic link is replaced, and keeps its mode and owner."""
    shell.replica()
    Path("real").mkdir()
    shutil.move("R.toml", "real/R.toml")
    Path("R.toml").symlink_to("real/R.toml")
    Path("real/R.toml").chmod(0o640)
    if os.geteuid() == 0:
        os.chown("real/R.toml", 65534, 65534)
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE) == 0
    assert Path("R.toml").is_symlink()
    status = Path("real/R.toml").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert os.geteuid() != 0 or (status.st_uid, status.st_gid) == (65534, 65534)
    assert len(clients()) == 1


def test_a_broken_configuration_is_not_edited(shell: Shell) -> None:
    """authorize reports every problem of the file and leaves it alone."""
    shell.replica()
    text = Path("R.toml").read_text() + "threads = 7\ncolour = 1\n"
    Path("R.toml").write_text(text)
    assert shell("authorize", "--config", "R.toml", PRIMARY_LINE) == 2
    assert len(shell.err.splitlines()) == 2
    assert Path("R.toml").read_text() == text


def test_two_edits_at_once_both_count(shell: Shell) -> None:
    """Authorizations from several processes at the same time are all in the file afterwards."""
    shell.replica()
    command = [sys.executable, "-m", "replicad", "authorize", "--config", str(shell.directory / "R.toml")]
    lines = [f"replicad-primary p{n} {_key(n)} d" for n in range(4)]
    running = [subprocess.Popen([*command, line], stderr=subprocess.DEVNULL) for line in lines]
    assert [process.wait(60) for process in running] == [0] * 4
    assert sorted(name for name, _key, _datasets in clients()) == ["p0", "p1", "p2", "p3"]


def _key(number: int) -> str:
    """A public key that differs from others in its last bytes."""
    return KEY[:-4] + f"A{number}A{number}"


def test_an_edit_that_never_ends_is_not_waited_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the lock for too long is reported; nothing hangs."""
    shell.replica()
    monkeypatch.setattr(setup, "LOCK_WAIT_S", 0.05)
    holder = os.open(shell.directory, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process changes the configuration"):
            setup.authorize(Path("R.toml"), parse_primary_line(PRIMARY_LINE))
    finally:
        os.close(holder)


def test_an_inline_array_is_named_when_it_is_in_the_way() -> None:
    """append_table refuses what it could only break."""
    with pytest.raises(UsageError, match="inline array"):
        edit.append_table("client = []\n", "client", {"name": "x"})


# ---------------------------------------------------------------------------------------------------- check-config


def test_check_config_shows_what_the_daemon_would_do(shell: Shell) -> None:
    """A right file gives exit code 0 and a summary of node, store, clients and datasets."""
    shell.replica()
    shell("authorize", "--config", "R.toml", PRIMARY_LINE)
    assert shell("check-config", "--config", "R.toml") == 0
    assert shell.out.splitlines() == [
        "R.toml: ok",
        f"node fra1: state in {shell.directory}/r-state, http://127.0.0.1:9817/metrics",
        f"replica: listens on 127.0.0.1:7022, stores in {shell.directory}/store, stops when 1GiB would not stay free",
        "  client ams1: www, mail",
    ]
    shell.primary()
    assert shell("--config", "P.toml", "check-config") == 0
    assert (
        f"dataset www: {shell.directory}/www to fra1 (127.0.0.1:7022), a snapshot every 5m at the latest" in shell.out
    )


def test_check_config_shows_every_problem(shell: Shell) -> None:
    """A wrong file gives exit code 2 and one line a problem, warnings among them; nothing goes to stdout."""
    shell.primary()
    Path("www").rmdir()
    Path("p-state/key").chmod(0o644)
    Path("P.toml").write_text(Path("P.toml").read_text() + 'rpo = "5"\n')
    assert shell("check-config", "--config", "P.toml") == 2
    assert shell.out == ""
    assert [line.split(": ")[1] for line in shell.err.splitlines()] == ["node.key", "dataset.rpo", "dataset.path"]


def test_check_config_as_json(shell: Shell) -> None:
    """--json gives one document with `ok`, problems and warnings, and the same exit code."""
    shell.primary()
    Path("www").rmdir()
    assert shell("check-config", "--config", "P.toml", "--json") == 0
    found = json.loads(shell.out)
    assert (found["ok"], found["file"], found["problems"]) == (True, "P.toml", [])
    assert [warning["key"] for warning in found["warnings"]] == ["dataset.path"]
    Path("P.toml").write_text("[node]\nname = 1\n")
    assert shell("check-config", "--config", "P.toml", "--json") == 2
    found = json.loads(shell.out)
    assert not found["ok"]
    assert found["problems"][0] == {"file": "P.toml", "line": 1, "key": "node.state", "text": "is missing"}


# ------------------------------------------------------------------------------------------------------- the frame


def test_every_verb_is_there() -> None:
    """Each line of the table leads to a function or to a group of verbs."""
    for verb in app.VERBS:
        found = getattr(import_module(verb.module), verb.attribute)
        assert isinstance(found, typer.Typer) or callable(found), verb


def test_help_and_version_need_no_verb(shell: Shell) -> None:
    """--help lists all verbs with their line, --version names the version; both from the table alone."""
    assert shell("--help") == 0
    for verb in app.VERBS:
        assert re.search(rf"^  {verb.name} +{re.escape(verb.help)}$", shell.out, re.MULTILINE), verb
    assert shell("--version") == 0
    assert shell.out == f"replicad {__version__}\n"


@pytest.mark.parametrize(
    "verb", [("init",), ("init", "replica"), ("init", "primary"), ("authorize",), ("check-config",)]
)
def test_each_verb_explains_itself(shell: Shell, verb: tuple[str, ...]) -> None:
    """VERB --help is text of this program, plain, with its options."""
    assert shell(*verb, "--help") == 0
    assert shell.out.startswith(f"Usage: replicad {' '.join(verb)}")
    assert "\x1b" not in shell.out


def test_no_verb_at_all_is_a_usage_error(shell: Shell) -> None:
    """Without a verb, or a verb's verb, the help goes to stderr and the exit code says that nothing was done."""
    for words in [(), ("init",)]:
        assert shell(*words) == 2
        assert shell.out == ""
        assert shell.err.startswith("Usage: replicad")
        assert "Commands:" in shell.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?"),
        (["check-config", "--jsn"], "No such option: --jsn"),
        (["init", "replca"], "No such command 'replca'"),
        (["authorize"], "Missing argument 'LINE'"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(shell: Shell, words: list[str], complaint: str) -> None:
    """A typing error is answered in one line on stderr, with exit code 2."""
    assert shell(*words) == 2
    assert shell.err.startswith(f"replicad: {complaint}")
    assert len(shell.err.splitlines()) == 1


@pytest.mark.parametrize("place", ["before", "after"])
def test_config_is_taken_before_or_after_the_verb(shell: Shell, place: str) -> None:
    """--config means the same on both sides of the verb, also for a verb of a verb."""
    words = ["init", "replica", "--store", "s", "--state", "t", "--name", "n"]
    given = ["--config", "X.toml"]
    assert shell(*(given + words if place == "before" else words + given)) == 0
    assert Path("X.toml").exists()
    words = ["check-config"]
    assert shell(*(given + words if place == "before" else words + given)) == 0


def test_the_default_configuration_is_in_etc(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config it is /etc/replicad/config.toml."""
    assert Path("/etc/replicad/config.toml") == options.DEFAULT_CONFIG
    assert shell("authorize", "--help") == 0
    assert "[default: /etc/replicad/config.toml]" in " ".join(shell.out.split())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no", where="--x", hint="do y"), 2, "replicad: --x: no (do y)"),
        (HeldError("held"), 1, "replicad: held"),
        (DiskFullError("full", where="/s"), 3, "replicad: /s: full"),
        (PermissionError(13, "Permission denied", "/x"), 3, "replicad: /x: Permission denied"),
        (
            ValueError("odd"),
            3,
            "replicad: unexpected ValueError: odd (a bug in replicad; REPLICAD_DEBUG=1 shows where)",
        ),
        (KeyboardInterrupt(), 130, None),
        (typer.Exit(1), 1, None),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str | None
) -> None:
    """Errors end in one line and the exit code of their type; no traceback is ever shown."""

    def fail(**_options: object) -> None:
        raise error

    monkeypatch.setattr("replicad.cli.setup.examine", lambda _config: fail())
    assert shell("check-config") == code
    assert shell.err == (f"{line}\n" if line else "")


def test_a_bug_shows_where_it_is_when_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """With REPLICAD_DEBUG the exception comes out as it is."""
    monkeypatch.setenv("REPLICAD_DEBUG", "1")
    monkeypatch.setattr("replicad.cli.setup.examine", lambda _config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell("check-config")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`replicad … | head -0` ends silently, with the code that shells give for SIGPIPE."""
    (tmp_path / "c.toml").write_text(f'[node]\nname = "n"\nstate = "{tmp_path}"\n')
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "replicad", "check-config", "--json", "--config", str(tmp_path / "c.toml")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (output.EXIT_PIPE_CLOSED, b"")


def test_a_light_verb_imports_no_heavy_library() -> None:
    """The command line's frame and the configuration import neither asyncio nor SSH, logs, colours or editors."""
    code = "import sys, replicad.cli.app, replicad.config; replicad.cli.app.main(['--version']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"asyncio", "asyncssh", "aiohttp", "structlog", "rich", "tomlkit", "pydantic", "apsw", "pathspec"}
    assert not heavy & set(done.stdout.split())


def test_the_shell_completes_verbs_and_their_options() -> None:
    """Completion knows all verbs, and the options of a verb that is typed already."""
    command = [sys.executable, "-m", "replicad"]

    def completed(words: str) -> list[str]:
        environment = os.environ | {
            "_REPLICAD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.split()

    assert {"status", "stdio"} <= set(completed("replicad st"))
    assert "--store" in completed("replicad init replica --st")


# ---------------------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries"), (1024, "1,024 entries")]
)
def test_one_is_not_called_many(count: int, text: str) -> None:
    """A thing stands alone in the singular."""
    assert output.counted(count, "entry", "entries") == text
    assert output.counted(count, "block") == text.replace("entry", "block").replace("entries", "blocks")


def test_kinds_are_counted_as_people_do() -> None:
    """Each kind in its number; what there is none of is left out."""
    assert output.show_counts({"hard_links": 1, "directories": 1, "files": 2}) == "1 directory, 2 files, 1 hard link"
    assert output.show_counts({"special": 3, "symlinks": 1}) == "3 special, 1 symlink"
    assert output.show_counts({"files": 0}) == "nothing"


def test_a_command_within_a_sentence_stays_on_one_line() -> None:
    """It can be copied as a whole, though the sentence is wrapped around it."""
    lines = output.wrapped("  ", "x" * 50 + " of them: replicad restore www DIR --path A, and look at the disk", "    ")
    assert lines == ["  " + "x" * 50 + " of them:", "    replicad restore www DIR --path A, and look at the disk"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 * 2**20, "20.0 MiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    """Sizes are shown in the unit that keeps them short."""
    assert output.show_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2s"), (59.6, "1m 0s"), (200, "3m 20s"), (3600, "1h 0m"), (90061, "1d 1h"), (86400 * 30, "30d 0h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    """Durations are shown in their two largest units."""
    assert output.show_duration(seconds) == text


def test_tables_align_and_stay_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their widest cell; without a terminal there is no escape sequence."""
    output.table(["name", "state"], [["www", output.mark("ok", "ok")], ["mailbox", "held"]])
    assert capsys.readouterr().out == "name     state\nwww      ok\nmailbox  held\n"


def test_progress_without_a_terminal_is_a_line_at_times(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log, progress is a line every few seconds with rate and time left, and silence when told so."""
    monkeypatch.setattr(output, "PROGRESS_LINE_S", 0.0)
    with output.progress("restore www", 4096) as bar:
        bar.update(1024, "3 files")
    with output.progress("restore www", quiet=True) as bar:
        bar.update(1024)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("restore www: 1.0 KiB of 4.0 KiB, ")
    assert line.endswith(" left, 3 files")


def test_progress_on_a_terminal_is_a_bar() -> None:
    """On a terminal there is a bar, whose total may become known later."""
    master, terminal = os.openpty()
    code = (
        "from replicad.cli import output\n"
        "with output.progress('restore www') as bar:\n"
        "    bar.total = 2048\n    bar.update(2048, '1 file')\n"
    )
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, timeout=60, env=environment)
    os.close(terminal)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert "restore www" in shown
    assert "1 file" in shown
