"""Trees with every kind of entry that a dataset can hold, and an independent description of any tree.

`build_tree` leaves out what this user may not create (devices, owners and ACLs need root or setfacl); tests that
compare two descriptions need not know. `describe_tree` uses plain calls only, nothing of replicad.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
DEEP_PATH_BYTES = 4095


def is_root() -> bool:
    """Whether this process may create devices and give files away."""
    return os.geteuid() == 0


def build_tree(root: Path, *, deep: bool = True) -> None:
    """Fill the directory `root` (created if need be) with one or more of every kind of entry."""
    root.mkdir(parents=True, exist_ok=True)
    top = os.fsencode(root)
    _plain_files(root)
    _odd_names(top)
    _links(top)
    _specials(top)
    _holes(root)
    _attributes(root)
    if is_root():
        _owners_and_devices(top)
    if deep:
        make_deep(top, DEEP_PATH_BYTES)
    _times(top)


def _plain_files(root: Path) -> None:
    (root / "docs" / "empty directory").mkdir(parents=True)
    (root / "docs" / "empty").write_bytes(b"")
    (root / "docs" / "short.txt").write_bytes(b"one line\n")
    (root / "docs" / "one block").write_bytes(os.urandom(65536))
    (root / "docs" / "blocks.bin").write_bytes(os.urandom(200_001))
    (root / "docs" / "large.bin").write_bytes(os.urandom(3_000_001))
    (root / "docs" / "zeros").write_bytes(bytes(150_000))
    modes = {"setuid": 0o4755, "setgid": 0o2755, "sticky": 0o1777, "nothing": 0o000, "read-only": 0o444}
    for name, mode in modes.items():
        path = root / "docs" / name
        path.write_bytes(name.encode())
        path.chmod(mode)
    shared = root / "shared directory"
    shared.mkdir()
    shared.chmod(0o3775)


def _odd_names(top: bytes) -> None:
    names = (b"new\nline", b"tab\there", b"latin-\xe9\xff", b"caf\xc3\xa9", b"*", b"back\\slash", b" ", b"-rf")
    os.mkdir(top + b"/odd")
    for name in (*names, b"n" * 255):
        with open(top + b"/odd/" + name, "wb") as file:
            file.write(name)
    os.mkdir(top + b"/odd/dir-\xfe\n")
    with open(top + b"/odd/dir-\xfe\n/inside", "wb") as file:
        file.write(b"inside")


def _links(top: bytes) -> None:
    os.mkdir(top + b"/links")
    targets = {b"relative": b"../docs/short.txt", b"dangling": b"no/where", b"to-directory": b"../docs", b"loop": b".",
               b"absolute": b"/etc/hostname", b"odd-target": b"\xff\xfe\n", b"long": b"t/" * 2000}  # fmt: skip
    for name, target in targets.items():
        os.symlink(target, top + b"/links/" + name)
    os.link(top + b"/docs/short.txt", top + b"/links/hard-1")
    os.link(top + b"/docs/short.txt", top + b"/odd/hard-2\n")
    os.link(top + b"/links/dangling", top + b"/links/hard-symlink", follow_symlinks=False)


def _specials(top: bytes) -> None:
    os.mkdir(top + b"/special")
    os.mkfifo(top + b"/special/fifo", 0o640)
    here = os.open(top + b"/special", os.O_RDONLY)
    try:  # a socket's own path must be short, so it is bound through the directory's descriptor
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/socket")
    finally:
        os.close(here)


def _holes(root: Path) -> None:
    (root / "sparse").mkdir()
    for name, pieces, size in (
        ("all hole", (), 5_000_000),
        ("islands", (0, 1_048_576, 6_000_123), 9_000_001),
        ("hole at the end", (0,), 3_000_000),
        ("data at the end", (2_999_000,), 2_999_004),
    ):
        with open(root / "sparse" / name, "wb") as file:
            for offset in pieces:
                os.pwrite(file.fileno(), b"data" * 1, offset)
            file.truncate(size)


def _attributes(root: Path) -> None:
    (root / "attributes").mkdir()
    for name, of in (("file", b"file"), ("directory", b"directory")):
        path = root / "attributes" / name
        path.mkdir() if of == b"directory" else path.write_bytes(b"x")
        with _if_supported():
            os.setxattr(path, "user.plain", b"value")
            os.setxattr(path, "user.binary", bytes(range(256)))
            os.setxattr(path, os.fsdecode(b"user.odd-\xff"), b"")
        if is_root():
            with _if_supported():
                os.setxattr(path, "trusted.replicad", b"root only")
    set_acl(root / "attributes" / "file", f"u:{NOBODY}:r")
    set_acl(root / "attributes" / "directory", f"u:{NOBODY}:rx,d:u:{NOBODY}:rwx")


def set_acl(path: Path, acl: str) -> bool:
    """Give `path` an access control list; False where that is not possible."""
    program = shutil.which("setfacl")
    if program is None:
        return False
    return subprocess.run([program, "-m", acl, str(path)], capture_output=True, check=False).returncode == 0


@contextmanager
def _if_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (95, 1, 28):  # ENOTSUP, EPERM, ENOSPC: this file system, or this user, cannot
            raise


def _owners_and_devices(top: bytes) -> None:
    for name, uid, gid in ((b"somebody", 12345, 54321), (b"big-ids", 4_000_000_000, 4_000_000_001)):
        path = top + b"/special/" + name
        with open(path, "wb") as file:
            file.write(name)
        os.chown(path, uid, gid)
    os.symlink(b"owned link", top + b"/special/owned-link")
    os.lchown(top + b"/special/owned-link", 12345, 54321)
    with _if_supported():
        os.mknod(top + b"/special/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(top + b"/special/disk", 0o660 | stat.S_IFBLK, os.makedev(7, 300))


def make_deep(top: bytes, path_bytes: int) -> bytes:
    """Make directories and a file below `top` so that the file's path, relative to `top`, has `path_bytes` bytes; that
    path. Each step goes through the directory above it, since the kernel takes no path of that length."""
    names = []
    left = path_bytes
    while left > 255:
        size = min(250, left - 2)
        names.append(bytes([97 + len(names) % 26]) * size)
        left -= size + 1
    leaf = b"f" * left
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        file = os.open(leaf, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here)
        os.write(file, b"deep down")
        os.close(file)
    finally:
        os.close(here)
    return b"/".join([*names, leaf])


def _times(top: bytes) -> None:
    """Times with all nine digits, before 1970 and far ahead; directories last, since their times move with entries."""
    wanted = {
        b"docs/short.txt": 1_234_567_890_123_456_789,
        b"docs/empty": 1,
        b"links/relative": 999_999_999_999_999_999,
        b"special/fifo": 2_000_000_000_000_000_001,
        b"docs/one block": -1_000_000_001,
        b"docs/empty directory": 1_111_111_111_111_111_111,
        b"odd": 1_222_222_222_222_222_222,
    }
    for path, time_ns in wanted.items():
        os.utime(top + b"/" + path, ns=(time_ns, time_ns), follow_symlinks=False)


Described = dict[str, object]


def describe_tree(root: Path | bytes, *, content: bool = True) -> dict[bytes, Described]:
    """Every entry below and with `root` (b""), by path: whatever a faithful copy must have in common.

    Hard links show as `same_as`, the first path in order with the same inode. Holes are not described.
    """
    found: dict[bytes, Described] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    top = os.fsencode(root)
    for directory, directories, files, here in os.fwalk(top, follow_symlinks=False):
        prefix = directory[len(top) :].lstrip(b"/")
        for name in [b"."] * (not prefix) + directories + files:
            path = b"/".join(part for part in (prefix, name) if part) if name != b"." else b""
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            found[path] = _describe(name, here, status, content)
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
    for paths in inodes.values():
        for path in paths:
            found[path]["same_as"] = min(paths)
    return found


def _describe(name: bytes, here: int, status: os.stat_result, content: bool) -> Described:
    mode = status.st_mode
    where = b"/proc/self/fd/%d/%s" % (here, name)
    described: Described = {
        "type": stat.S_IFMT(mode),
        "mode": stat.S_IMODE(mode),
        "owner": (status.st_uid, status.st_gid),
        "mtime_ns": status.st_mtime_ns,
        "xattrs": {
            os.fsencode(key): os.getxattr(where, key, follow_symlinks=False)
            for key in os.listxattr(where, follow_symlinks=False)
        },
    }
    if stat.S_ISLNK(mode):
        described["target"] = os.readlink(name, dir_fd=here)
    elif stat.S_ISREG(mode):
        described["size"] = status.st_size
        if content:
            described["content"] = _content(name, here)
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        described["device"] = status.st_rdev
    return described


def _content(name: bytes, here: int) -> bytes:
    fd = os.open(name, os.O_RDONLY, dir_fd=here)
    with open(fd, "rb") as file:
        return file.read()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Do something without root's rights (nothing changes for a user who is not root)."""
    if not is_root():
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As nobody, and still allowed to look at /proc/self, as any ordinary process is."""
    with as_nobody():
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, cleared by the change of user
        yield
