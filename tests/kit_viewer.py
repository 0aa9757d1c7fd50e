"""Kit for the SFTP view as a user has it: a key that was let in, and OpenSSH's sftp and scp, and rclone, with it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from kit_pair import Pair, replicad


@dataclass
class Viewer:
    """Somebody with a key, the replica's host key, and the usual programs."""

    pair: Pair
    home: Path

    def options(self, *more: str) -> list[str]:
        """What OpenSSH's programs are told: nobody's configuration, this key, this known_hosts, and no question."""
        wanted = [f"IdentityFile={self.home}/key", f"UserKnownHostsFile={self.home}/known_hosts"]
        wanted += ["StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "IdentityAgent=none", "BatchMode=yes", *more]
        return [word for option in wanted for word in ("-o", option)]

    def run(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the viewer's home."""
        done = subprocess.run([str(w) if not isinstance(w, bytes) else w for w in words], cwd=self.home,
                              capture_output=True, timeout=120, check=False)  # fmt: skip
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def sftp(self, *lines: str, code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        """Type lines into `sftp`."""
        (self.home / "batch").write_text("\n".join(lines) + "\n")
        words = ["-F", "/dev/null", "-P", str(self.pair.port), *self.options(), "-b", "batch", "view@127.0.0.1"]
        return self.run("sftp", *words, code=code)

    def scp(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        """Copy with `scp`."""
        return self.run("scp", "-F", "/dev/null", "-P", self.pair.port, *self.options(), *words, code=code)

    def rclone(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        """Run `rclone` with a remote called `view:`."""
        config = self.home / "rclone.conf"
        config.write_text(
            f"[view]\ntype = sftp\nhost = 127.0.0.1\nport = {self.pair.port}\nuser = view\nkey_file = {self.home}/key\n"
            f"known_hosts_file = {self.home}/known_hosts\nshell_type = none\n"
        )
        return self.run("rclone", "--config", config, "--retries", "1", *words, code=code)


def let_in(pair: Pair, home: Path, *datasets: str) -> Viewer:
    """Make a home with a key, let it see these datasets, and pin the host key that the verb printed."""
    home.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "key")], check=True)
    words = [word for dataset in datasets for word in ("--dataset", dataset)]
    said = replicad("viewer", "add", "ada", home / "key.pub", *words, "--config", pair.replica.config)
    (home / "known_hosts").write_text(said.stdout)
    (home / "batch").write_text("ls /\n")
    return Viewer(pair, home)
