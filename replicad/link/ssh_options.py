"""SSH options: what SSH may use between two nodes, but for the key exchange, which asyncssh has to be asked about.

Everything that asyncssh would otherwise take from its defaults, the account or the environment is said here.
"""

from __future__ import annotations

from typing import Any

from replicad.link.carrier import PACKET_BYTES

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")
"""Authenticated ciphers only, the fastest on hardware with AES first."""
REKEY_BYTES = 16 * 1024**3
"""New keys stall the line for two round trips; AES-GCM allows 64 GiB (RFC 4344's 2**32 blocks)."""
IDLE_KEEPALIVES = 3
"""SSH's own keep-alive, for connections without channels: it asks after this many of the channels' keep-alives and
gives up after as many unanswered questions, so that it never ends a connection before theirs, which knows more."""

COMMON: dict[str, Any] = {
    "config": None,
    "encryption_algs": CIPHERS,
    "signature_algs": ["ssh-ed25519"],
    "compression_algs": None,
    "rekey_bytes": REKEY_BYTES,
    "rekey_seconds": 0,
    "keepalive_count_max": IDLE_KEEPALIVES,
    "tcp_keepalive": True,
    "x509_trusted_certs": None,
    "x509_trusted_cert_paths": [],  # else it looks into ~/.ssh, which the daemon's user may not be allowed to enter
    "gss_kex": False,
    "gss_auth": False,
    "password_auth": False,
    "kbdint_auth": False,
    "host_based_auth": False,
    "agent_forwarding": False,
    "x11_forwarding": False,
}
SERVER: dict[str, Any] = {
    "encoding": None,
    "max_pktsize": PACKET_BYTES,
    "gss_host": None,
    "line_editor": False,
    "allow_pty": False,
    "allow_scp": False,
    "sftp_factory": None,
}
CLIENT: dict[str, Any] = {
    "server_host_key_algs": ["ssh-ed25519"],
    "agent_path": None,
    "agent_identities": None,
    "pkcs11_provider": None,
    "client_host_keysign": False,
    "preferred_auth": ["publickey"],
    "disable_trivial_auth": True,
    "command": None,
    "env": None,
    "send_env": None,
    "request_pty": False,
    "proxy_command": None,
}
