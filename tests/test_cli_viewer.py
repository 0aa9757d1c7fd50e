"""`replicad viewer`: what is written, what is printed, and what is refused with nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from replicad.config import examine_text, load
from replicad.link.ssh import generate_key, public_key
from replicad.model.pairing import fingerprint, known_hosts_line

Typed = Callable[..., tuple[int, str, str]]


class Replica:
    """A replica's configuration, and two keys of people."""

    def __init__(self, directory: Path, typed: Typed) -> None:
        self.directory, self.config, self._typed = directory, directory / "R.toml", typed
        code, _, said = typed(
            "init", "replica", "--config", self.config, "--name", "fra1", "--listen", "fra1.example.org:7022",
            "--store", directory / "store", "--state", directory / "state",
        )  # fmt: skip
        assert code == 0, said
        self.keys = {name: generate_key(directory / name, name) for name in ("ada", "bob")}
        for name, line in self.keys.items():
            (directory / f"{name}.pub").write_text(f"{line} {name}@example.org\n")

    def type(self, *words: object) -> tuple[int, str, str]:
        """`replicad viewer …`."""
        return self._typed("viewer", *words, "--config", self.config)


@pytest.fixture
def replica(tmp_path: Path, typed: Typed) -> Replica:
    return Replica(tmp_path, typed)


def test_a_viewer_is_added_changed_listed_and_removed(replica: Replica) -> None:
    """stdout of `add` is the line for known_hosts alone; the file keeps its comments and is valid all along."""
    before = replica.config.read_text()
    code, out, said = replica.type("add", "ada", replica.directory / "ada.pub", "--dataset", "ams1/www")
    pin = known_hosts_line("fra1.example.org:7022", public_key(replica.directory / "state" / "key"))
    assert (code, out) == (0, pin + "\n") and pin.startswith("[fra1.example.org]:7022 ssh-ed25519 ")
    assert "nothing of ams1/www is stored here yet" in said and "sftp -P 7022 -i KEY view@fra1.example.org" in said
    [viewer] = load(replica.config, check_files=False).viewers
    assert (viewer.name, viewer.key, viewer.datasets) == ("ada", replica.keys["ada"], ("ams1/www",))
    assert "(as before)" in replica.type("add", "ada", replica.keys["ada"], "--dataset", "ams1/www")[2]
    code, out, _ = replica.type(
        "add", "ada", replica.keys["ada"], "--dataset", "ams1/*", "--advertise", "r.example.org:22", "--json"
    )
    told = json.loads(out)
    assert told["known_hosts"].startswith("r.example.org ssh-ed25519 ") and told["changed"] is True
    replica.type("add", "bob", replica.directory / "bob.pub", "--dataset", "ams1/www", "--dataset", "ams2/mail")
    code, out, _ = replica.type("list")
    assert code == 0 and fingerprint(replica.keys["bob"]) in out and "ams1/www, ams2/mail" in out
    listed = json.loads(replica.type("list", "--json")[1])
    assert [(one["name"], one["datasets"]) for one in listed] == [
        ("ada", ["ams1/*"]),
        ("bob", ["ams1/www", "ams2/mail"]),
    ]
    assert replica.type("remove", "ada")[0] == 0 and json.loads(replica.type("remove", "bob", "--json")[1])
    assert replica.type("list")[1] == "nobody may view anything\n"
    assert replica.config.read_text().strip() == before.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "ada", "{ada}", "--dataset", "www"), "is no CLIENT/DATASET"),
        (("add", "ada", "{ada}", "--dataset", "ams1/../x"), "is no name"),
        (("add", "../ada", "{ada}", "--dataset", "ams1/www"), "is no name"),
        (("add", "ada", "ssh-rsa AAAA", "--dataset", "ams1/www"), "is no public key"),
        (("add", "ada", "{directory}/ada", "--dataset", "ams1/www"), "is a private key"),
        (("add", "ada", "{directory}/nothing", "--dataset", "ams1/www"), "cannot be read"),
        (("add", "bob", "{ada}", "--dataset", "ams1/www"), 'has the key of viewer "first"'),
        (("add", "first", "{bob}", "--dataset", "ams1/www"), "is known with another key"),
        (("add", "bob", "{bob}", "--dataset", "ams1/www", "--advertise", "nowhere"), "HOST:PORT"),
        (("remove", "bob"), "there is no viewer 'bob'"),
    ],
)
def test_what_is_wrong_changes_nothing(replica: Replica, words: tuple[str, ...], said: str) -> None:
    """One line, exit code 2, and the file is what it was."""
    assert replica.type("add", "first", replica.keys["ada"], "--dataset", "ams1/www")[0] == 0
    before = replica.config.read_text()
    filled = [word.format(directory=replica.directory, **replica.keys) for word in words]
    code, out, err = replica.type(*filled)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1, err
    assert replica.config.read_text() == before


def test_a_new_key_needs_a_word(replica: Replica) -> None:
    """--replace is what takes it."""
    replica.type("add", "ada", replica.keys["ada"], "--dataset", "ams1/www")
    assert replica.type("add", "ada", replica.keys["bob"], "--dataset", "ams1/www", "--replace")[0] == 0
    assert [viewer.key for viewer in load(replica.config, check_files=False).viewers] == [replica.keys["bob"]]


def test_a_node_that_does_not_listen_has_no_viewers(tmp_path: Path, typed: Typed) -> None:
    """Neither without a [listen] table nor behind an OpenSSH server alone."""
    config, key = tmp_path / "P.toml", generate_key(tmp_path / "ada", "ada")
    (tmp_path / "store").mkdir()
    for listen in ("", f'[listen]\nstore = "{tmp_path}/store"\n'):
        config.write_text(f'[node]\nname = "ams1"\nstate = "{tmp_path}/state"\n{listen}')
        words = ("viewer", "add", "ada", key, "--dataset", "ams1/www", "--config", config)
        code, out, err = typed(*words)
        assert (code, out) == (2, "") and "listens nowhere" in err


def test_the_rules_of_viewers(tmp_path: Path) -> None:
    """A viewer needs a store, a name and a key of its own, and something to view; a client's key may be a viewer's."""
    key = generate_key(tmp_path / "ada", "ada")
    table = f'[[viewer]]\nname = "ada"\nkey = "{key}"\ndatasets = ["ams1/www"]\n'
    client = f'[[client]]\nname = "ams1"\nkey = "{key}"\n'
    node = f'[node]\nname = "fra1"\nstate = "{tmp_path}/state"\n'
    listen = f'[listen]\nstore = "{tmp_path}/store"\n'
    wrong = {
        node + table: "a viewer needs a [listen] table",
        node + listen + table + table.replace('"ada"', '"bob"'): "has the key of viewer",
        node + listen + table + table: "has the name of viewer",
        node + listen + table.replace('"ams1/www"', ""): "is empty",
        node + listen + table.replace("ams1/www", "www"): "is no CLIENT/DATASET",
    }
    for text, said in wrong.items():
        report = examine_text(text, tmp_path / "c.toml", check_files=False)
        assert any(said in problem.text for problem in report.problems), said
    assert examine_text(node + listen + client + table, tmp_path / "c.toml", check_files=False).config
