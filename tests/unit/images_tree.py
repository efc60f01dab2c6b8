"""A tree with one of everything, and how two trees are compared."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

ODD_NAME = os.fsdecode(b"odd\xff\n\x01:,\\ name")
_ACL_UNDEFINED = 0xFFFFFFFF


def make(root: Path) -> None:
    """Fill an empty directory."""
    (root / "file").write_text("hello")
    os.chown(root / "file", 70000, 4_000_000_000)
    (root / "directory").mkdir()
    os.link(root / "file", root / "hard")
    os.link(root / "file", root / "directory/hard")
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # linux/capability.h: cap_net_raw=ep
    for name, value in (("user.x", b"v\0w"), ("trusted.t", b"1"), ("security.capability", capability)):
        os.setxattr(root / "file", name, value)
    os.setxattr(root / "directory", "user.big", b"x" * 3000)
    os.setxattr(root / "directory", "system.posix_acl_default", _acl())
    (root / "acl").touch()
    os.setxattr(root / "acl", "system.posix_acl_access", _acl())
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "block", 0o600 | stat.S_IFBLK, os.makedev(300, 70000))
    (root / "link").symlink_to("../../etc")
    os.lchown(root / "link", 100000, 100000)
    (root / "long").symlink_to("x/" * 2000)
    (root / "empty").mkdir()
    (root / ODD_NAME).write_text("odd")
    (root / ("n" * 254)).touch()
    with (root / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    for name, size in (("none", 0), ("tail", 4097), ("block-sized", 8192), ("big", 5_000_000)):
        (root / name).write_bytes(os.urandom(size))
    (root / "setuid").write_text("#")
    (root / "setuid").chmod(0o6711)
    (root / "directory").chmod(0o1777)
    (root / "many").mkdir()
    for number in range(2000):
        (root / f"many/{number}").write_text(str(number))
    deep = root
    for number in range(60):
        deep /= f"deep-{number}"
        deep.mkdir()
    (deep / "bottom").touch()
    for name, time_ns in (("file", 1234567890123456789), ("tail", -5 * 10**18), ("none", 2**33 * 10**9 + 7)):
        os.utime(root / name, ns=(1, time_ns))


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """All about each entry that a program in it could see, but inode numbers, atime, ctime, and the size of a directory."""
    seen: dict[str, tuple[object, ...]] = {}
    links: dict[tuple[int, int], str] = {}
    for path in sorted([root, *root.rglob("*")], key=os.fsencode):
        status = path.lstat()
        name = str(path.relative_to(root))
        first = links.setdefault((status.st_dev, status.st_ino), name)  # hard links: the name they have in common
        content: object = None
        size_and_links: tuple[int, ...] = ()
        if stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        if not stat.S_ISDIR(status.st_mode):
            size_and_links = (status.st_size, status.st_nlink)
        xattrs = {
            xattr: os.getxattr(path, xattr, follow_symlinks=False)
            for xattr in os.listxattr(path, follow_symlinks=False)
        }
        seen[name] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_rdev, size_and_links, status.st_mtime_ns, first, xattrs, content,
        )  # fmt: skip
    return seen


def _acl() -> bytes:
    """POSIX ACL (linux/posix_acl_xattr.h) with a named user above 65535."""
    entries = [
        (1, 6, _ACL_UNDEFINED),
        (2, 7, 70000),
        (4, 4, _ACL_UNDEFINED),
        (0x10, 7, _ACL_UNDEFINED),
        (0x20, 4, _ACL_UNDEFINED),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
