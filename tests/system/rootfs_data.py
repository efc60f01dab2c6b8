"""The tree that the contract of lower transports is about: how it is made on the host, and how a container's manifest of it is read.

What is in it is what rootfs_lower.c, rootfs_overlay.c and rootfs_upper.c look for. Formats of extended attributes: linux/posix_acl_xattr.h,
linux/capability.h.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATTERN_SIZE: Final = 300_001
BIG_DIRECTORY: Final = 10_000
LONGEST_NAME: Final = 254  # mkfs.erofs takes no more; test_rootfs_errors.py has one of 255
GIB: Final = 1 << 30
LOWER: Final = b"lower\n"
_MTIME_NS: Final = 1_234_567_890_123_456_789
_LARGEST: Final = "sparse/5GiB"
_LARGE: Final = 64 << 20  # as in rootfs_manifest.c

# linux/capability.h: a version 2 vfs_cap_data, effective, with CAP_CHOWN permitted
_CAP_CHOWN: Final = struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)
_CODE: Final = bytes.fromhex("b82a000000c3")  # x86-64: mov $42, %eax; ret

# linux/posix_acl.h
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32
_NOBODY = 0xFFFFFFFF


def pattern(size: int) -> bytes:
    """As in rootfs_probe.c."""
    return bytes((offset * 7 + offset // 251) & 255 for offset in range(size))


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_ACL_5000 = _acl(
    (_USER_OBJ, 6, _NOBODY), (_USER, 4, 5000), (_GROUP_OBJ, 0, _NOBODY), (_MASK, 4, _NOBODY), (_OTHER, 0, _NOBODY)
)
_ACL_DEFAULT = _acl(
    (_USER_OBJ, 7, _NOBODY), (_USER, 7, 5000), (_GROUP_OBJ, 0, _NOBODY), (_MASK, 7, _NOBODY), (_OTHER, 0, _NOBODY)
)


class _Maker:
    """Writes below one directory; names are bytes, since not all are text."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def path(self, name: str | bytes) -> bytes:
        path = os.path.join(self.root, os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def file(
        self,
        name: str | bytes,
        data: bytes = LOWER,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        **xattrs: bytes,
    ) -> bytes:
        """``xattrs``: by name, with ``_`` for the first dot."""
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(data)
        os.chown(path, *owner)
        os.chmod(path, mode)
        for key, value in xattrs.items():
            os.setxattr(path, key.replace("_", ".", 1), value)
        return path

    def directory(self, name: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> bytes:
        path = self.path(name)
        os.makedirs(path, exist_ok=True)
        os.chown(path, *owner)
        os.chmod(path, mode)
        return path

    def symlink(self, target: str | bytes, name: str) -> bytes:
        path = self.path(name)
        os.symlink(os.fsencode(target), path)
        return path

    def sparse(self, name: str, size: int, data: dict[int, bytes]) -> None:
        path = self.file(name, b"")
        os.truncate(path, size)
        with open(path, "r+b") as file:
            for offset, piece in data.items():
                file.seek(offset)
                file.write(piece)


def make(root: Path, probe: Path, outside: Path) -> None:
    """Make the tree in the empty directory ``root``; ``outside`` is a file of the host that a link in the tree names too."""
    for name in ("proc", "sys", "dev", "tmp", "bin"):
        (root / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", root / "bin/sh")
    shutil.copy2(probe, root / "probe")
    inside = root / outside.relative_to("/")
    inside.parent.mkdir(parents=True)
    inside.write_text("inside\n")
    make = _Maker(root / "t")
    _contents(make)
    _links(make, outside)
    _special(make)
    _attributes(make)
    _names(make)
    _programs(make, probe)
    _for_changes(make)


def _contents(make: _Maker) -> None:
    noise = random.Random(4)
    for size in (0, 1, 4095, 4096, 4097, 65537):
        make.file(f"contents/{size}", noise.randbytes(size))
    large = noise.randbytes(3 << 20)
    make.file("contents/3MiB", large)
    make.file("contents/3MiB-copy", large)
    make.file("contents/pattern", pattern(PATTERN_SIZE))
    make.sparse("sparse/holes", 3 << 20, {1 << 20: b"data", (2 << 20) + 5: b"more"})
    make.sparse("sparse/only-a-hole", 1 << 20, {})
    _largest(make)
    for index in range(BIG_DIRECTORY):
        with open(make.root + b"/big/entry-%05d" % index if index else make.path("big/entry-00000"), "wb"):
            pass
    for name in "abcdefgh":
        make.file(f"concurrent/{name}")


def _largest(make: _Maker) -> None:
    make.sparse(_LARGEST, 5 * GIB, {5 * GIB - 8: b"the end\n"})


def _links(make: _Maker, outside: Path) -> None:
    make.file("links/target/file")
    make.symlink("target/file", "links/relative")
    make.symlink("/t/links/target/file", "links/absolute")
    make.symlink("target", "links/to-directory")
    make.symlink("../links/relative", "links/chain")
    make.symlink("made-by-dangling", "links/dangling")
    make.symlink("loop", "links/loop")
    make.symlink(outside, "links/outside")
    make.symlink("../../../../../../../../" + str(outside), "links/outside-by-dots")
    make.symlink("a/" * 2047 + "a", "links/long")
    make.symlink(b"\xff\n %", "links/odd")
    make.file("hard/first")
    os.link(make.path("hard/first"), make.path("hard/second"))
    os.link(make.path("hard/first"), make.path("hard/elsewhere/third"))
    make.file("hard/alone")


def _special(make: _Maker) -> None:
    os.mkfifo(make.path("special/fifo"))
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.open(".", os.O_PATH)
        os.chdir(os.path.dirname(make.path("special/socket")))  # its path may be longer than an address
        listening.bind("socket")
        os.fchdir(before)
        os.close(before)
    for name, kind, device in (
        ("null", stat.S_IFCHR, (1, 3)), ("zero", stat.S_IFCHR, (1, 5)), ("block", stat.S_IFBLK, (7, 200)),
        ("large-numbers", stat.S_IFBLK, (259, 1_048_575)), ("large-character", stat.S_IFCHR, (511, 70_000)),
    ):  # fmt: skip
        os.mknod(make.path(f"special/{name}"), kind | 0o600, os.makedev(*device))


def _attributes(make: _Maker) -> None:
    make.file("xattrs/user", user_a=b"a", user_empty=b"", user_binary=bytes(range(256)))
    make.file("xattrs/large", user_large=b"v" * 3000)
    make.file("xattrs/many", **{f"user_{index}": b"%d" % index for index in range(40)})
    make.file("xattrs/trusted", trusted_a=b"for root")
    make.file("xattrs/security", security_rundctl=b"any", security_capability=_CAP_CHOWN)
    os.setxattr(make.directory("xattrs/directory"), "user.a", b"of a directory")
    os.setxattr(make.symlink("x", "xattrs/link"), "trusted.a", b"of a link", follow_symlinks=False)
    make.file("acl/for-5000", b"secret\n", 0o600, system_posix_acl_access=_ACL_5000)
    os.setxattr(make.directory("acl/default", 0o770), "system.posix_acl_default", _ACL_DEFAULT)
    os.setxattr(make.path("acl/default"), "system.posix_acl_access", _ACL_DEFAULT)
    for owner in ((0, 1), (1000, 1000), (65535, 65535), (65536, 65536), (70000, 70001), (4294967294, 4294967294)):
        name = "{}-{}".format(*owner)
        make.file(f"owners/{name}", name.encode() + b"\n", 0o600, owner)
    for mode in (0, 0o600, 0o644, 0o777, 0o4755, 0o2755, 0o1644, 0o6711, 0o7777):
        make.file(f"modes/{mode:04o}", b"%04o\n" % mode, mode)
    for mode in (0o700, 0o1777, 0o2777, 0o555):
        make.directory(f"modes/dir-{mode:04o}", mode, (0, 3000))
    make.file("modes/dir-0700/inside")
    make.file("modes/dir-1777/theirs", mode=0o666)
    for name, time_ns in (
        ("nanoseconds", _MTIME_NS), ("epoch", 0), ("before-1970", -1_000_000_000 * 10**9 + 1), ("after-2038", 3_000_000_000 * 10**9 + 999_999_999),
        ("after-2106", 5_000_000_000 * 10**9 + 1),
    ):  # fmt: skip
        os.utime(make.file(f"times/{name}"), ns=(0, time_ns))
    os.utime(make.directory("times/directory"), ns=(0, _MTIME_NS))
    os.utime(make.symlink("x", "times/link"), ns=(0, _MTIME_NS), follow_symlinks=False)


def _names(make: _Maker) -> None:
    make.file(b"names/\xff\xfe", b"invalid UTF-8\n")
    make.file("names/" + "0" * LONGEST_NAME, b"long\n")
    for name in (
        "new\nline",
        " ",
        "back\\slash",
        "'quote\"",
        "tab\t",
        "*?[x]",
        "-rf",
        "...",
        ".hidden",
        "%41",
        "$HOME",
        "naïve",
        "\x01\x7f",
        "a,b:c=d",
    ):
        make.file(f"names/{name}", name.encode())
    make.file(b"names/\xc3/\xe9", b"in an odd directory\n")
    make.file("deep/" + "/".join(f"{level:0250d}" for level in range(15)) + "/bottom", b"bottom\n")
    make.file("deep/short" + "/d" * 100 + "/bottom", b"bottom\n")


def _programs(make: _Maker, probe: Path) -> None:
    program = probe.read_bytes()
    make.file("exec/binary", program, 0o755)
    make.file("exec/not-executable", program, 0o644)
    make.file("exec/setuid", program, 0o4755, (2000, 0))
    make.file("exec/setgid", program, 0o2755, (0, 3000))
    make.file("exec/capable", program, 0o755, security_capability=_CAP_CHOWN)
    make.file("exec/script", b'#!/bin/sh\nexit "$2"\n', 0o755)
    make.file("exec/code", _CODE)
    make.file("exec/not-mine")


def _for_changes(make: _Maker) -> None:
    for name in (
        "deleted/file", "deleted/other", "kinds/file", "kinds/directory/inside", "not-empty/a", "not-empty/b", "opaque/a", "opaque/sub/b",
        "from/a", "from/sub/b", "full/a", "inode",
        "linked-inode", "open", "unlinked", "unlinked-rw", "chown-link-target", "xattrs-directory/inside",
    ):  # fmt: skip
        make.file(f"overlay/{name}")
    for index in range(300):
        make.file(f"overlay/many/{index}", b"")
    for name in ("again/file", "over/file"):
        make.file(f"overlay/{name}", mode=0o600, owner=(1001, 1002), user_old=b"old", trusted_old=b"old")
    for name in (
        "append", "middle", "mapped", "truncate", "grown", "emptied", "chmod", "chown", "times", "xattrs", "linked", "punched", "rename/file",
    ):  # fmt: skip
        path = make.file(f"overlay/{name}", pattern(PATTERN_SIZE), 0o640, (1001, 1002), user_kept=b"kept")
        os.utime(path, ns=(_MTIME_NS, _MTIME_NS))
    make.sparse("overlay/sparse", 8 << 20, {(8 << 20) - 8: b"the end\n"})
    make.file("overlay/trusted", trusted_kept=b"kept")
    make.file("overlay/flags/a", b"a\n")
    make.file("overlay/flags/b", b"b\n")
    os.setxattr(make.path("overlay/xattrs-directory"), "user.kept", b"kept")
    make.symlink("chown-link-target", "overlay/chown-link")
    make.symlink("nowhere", "overlay/link")
    for name in ("capable", "capable-written"):
        make.file(f"overlay/{name}", security_capability=_CAP_CHOWN)
    make.file("overlay/acl", LOWER, 0o600, system_posix_acl_access=_ACL_5000)
    os.mkfifo(make.path("overlay/fifo"))
    os.mknod(make.path("overlay/device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.link(make.file("overlay/hard/a"), make.path("overlay/hard/b"))
    for name in ("upper/empty", "upper/many"):
        make.directory(name)
    for name in (
        "locks/lower",
        "locks/copied-up",
        "watched/lower",
        "isolation/changed",
        "isolation/mine-to-delete",
        "isolation/theirs-to-delete",
    ):
        make.file(name)
    for name in ("deleted", "deleted-directory/inside", "changed", "appended", "kept", "renamed", "directory/inside"):
        make.file(f"layers/{name}", pattern(PATTERN_SIZE), 0o640, (1001, 1002), user_old=b"old", trusted_old=b"old")


def make_layer(root: Path, probe: Path, outside: Path) -> None:
    """The same without its largest file, so that an image is made in a second."""
    make(root, probe, outside)
    (root / "t" / _LARGEST).unlink()


def into_upper(merged: Path) -> None:
    """Complete and change such a layer where it is mounted below an upper directory: by nothing of what needs overlayfs's marks."""
    make = _Maker(merged / "t")
    _largest(make)
    layers = merged / "t/layers"
    (layers / "deleted").unlink()
    shutil.rmtree(layers / "deleted-directory")
    make.file("layers/changed", b"changed\n", 0o4755, (70000, 70001), user_new=b"new", trusted_new=b"new")
    with open(layers / "appended", "ab") as file:
        file.write(b"more\n")
    (layers / "renamed").rename(layers / "renamed-to")
    make.directory("layers/directory", 0o2770, (3, 3000))
    make.file("layers/new/capable", security_capability=_CAP_CHOWN)
    make.file("layers/new/acl", LOWER, 0o600, system_posix_acl_access=_ACL_5000)
    os.setxattr(make.directory("layers/new/deeper", 0o770), "system.posix_acl_default", _ACL_DEFAULT)
    make.file(b"layers/new/deeper/\xff\n", b"odd\n")
    make.symlink("../nowhere", "layers/new/link")
    os.link(make.file("layers/new/one"), make.path("layers/new/another"))
    os.mkfifo(make.path("layers/new/fifo"))
    os.mknod(make.path("layers/new/device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.utime(make.file("layers/new/times"), ns=(0, _MTIME_NS))


@dataclass(frozen=True)
class Entry:
    """What a walk sees of one file. ``data``: CRC of contents, or a link's target; ``inode`` and ``device`` mean nothing elsewhere."""

    kind: str
    d_type: str
    mode: str
    owner: tuple[int, int]
    links: int
    size: int
    mtime: str
    rdev: str
    inode: int
    d_inode: int
    device: int
    data: str
    xattrs: tuple[str, ...]


def parse(lines: list[str]) -> dict[str, Entry]:
    """Lines of rootfs_manifest.c, by path. An entry that is listed twice is an error."""
    found: dict[str, Entry] = {}
    for line in lines:
        word, path, kind, d_type, mode, uid, gid, links, size, mtime, rdev, inode, d_inode, device, data, xattrs = (
            line.split(" ")
        )
        assert word == "entry", line
        assert path not in found, f"listed twice: {path}"
        found[path] = Entry(
            kind, d_type, mode, (int(uid), int(gid)), int(links), int(size), mtime, rdev, int(inode), int(d_inode), int(device), data, tuple(filter(None, xattrs.split(",")))
        )  # fmt: skip
    return found


def _escape(text: bytes) -> str:
    """As print_escaped() of rootfs_manifest.c."""
    plain = b"/._-"
    return "".join(
        chr(byte) if byte < 128 and (chr(byte).isalnum() or byte in plain) else f"%{byte:02x}" for byte in text
    )


def read(root: Path) -> dict[str, Entry]:
    """The manifest of the host's tree at ``root``/t, as its container should see it."""
    found: dict[str, Entry] = {}
    for directory, _, _, fd in os.fwalk(os.fsencode(root / "t")):
        inside = b"/t" + directory[len(os.fsencode(root / "t")) :]
        if inside == b"/t/big":
            continue
        for entry in os.scandir(fd):
            name = os.fsencode(entry.name)
            found[_escape(inside + b"/" + name)] = _entry(fd, name, entry)
    return found


def _entry(directory: int, name: bytes, entry: os.DirEntry[str]) -> Entry:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = stat.filemode(status.st_mode)[0]
    place = b"/proc/self/fd/%d/%s" % (directory, name)
    data = "."
    if kind == "l":
        data = _escape(os.readlink(place))
    elif kind == "-" and status.st_size <= _LARGE:
        with open(place, "rb") as file:
            data = f"{zlib.crc32(file.read()):08x}"
    xattrs = {
        key: os.getxattr(place, key, follow_symlinks=False).hex() for key in os.listxattr(place, follow_symlinks=False)
    }
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    return Entry(
        kind,
        kind,
        f"{stat.S_IMODE(status.st_mode):04o}",
        (status.st_uid, status.st_gid),
        status.st_nlink,
        status.st_size,
        f"{seconds}.{nanoseconds:09d}",
        f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}",
        status.st_ino,
        entry.inode(),
        status.st_dev,
        data,
        tuple(f"{key}={xattrs[key]}" for key in sorted(xattrs)),
    )


def groups(entries: dict[str, Entry]) -> set[frozenset[str]]:
    """Names that are one file, where it has more than one."""
    names = defaultdict(set)
    for path, entry in entries.items():
        if entry.kind != "d":
            names[entry.device, entry.inode].add(path)
    return {frozenset(paths) for paths in names.values() if len(paths) > 1}


def fingerprint(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What shows any change of the host's tree: all that stat(2) says but the access time, ctime included."""
    found = {}
    for directory, _, _, fd in os.fwalk(os.fsencode(root)):
        for entry in (b".", *(os.fsencode(name) for name in os.listdir(fd))):
            status = os.stat(entry, dir_fd=fd, follow_symlinks=False)
            found[directory + b"/" + entry] = (*status[:7], status.st_mtime_ns, status.st_ctime_ns, status.st_blocks)
    return found
