"""A writer of newc cpio archives, the format the kernel unpacks as initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).

Deterministic: the same entries give the same bytes, whatever the host's clock, owner or inode numbers.
"""

from __future__ import annotations

import stat

_ALIGNMENT = 4
_TRAILER = "TRAILER!!!"


class Archive:
    """Entries in the order given; parents must be added before their children."""

    __slots__ = ("_chunks", "_inode")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(path, stat.S_IFDIR | mode, b"", links=2)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, stat.S_IFREG | mode, data)

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(path, stat.S_IFCHR | mode, b"", device=(major, minor))

    def close(self) -> bytes:
        """The finished archive."""
        return b"".join([*self._chunks, _entry(0, 0, 1, _TRAILER, b"", (0, 0))])

    def _add(self, path: str, mode: int, data: bytes, *, links: int = 1, device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/")
        if not name or "\0" in name:
            raise ValueError(f"bad archive path {path!r}")
        self._inode += 1
        self._chunks.append(_entry(self._inode, mode, links, name, data, device))


def _entry(inode: int, mode: int, links: int, name: str, data: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    uid = gid = mtime = device_major = device_minor = checksum = 0
    fields = (
        inode,
        mode,
        uid,
        gid,
        links,
        mtime,
        len(data),
        device_major,
        device_minor,
        *device,
        len(encoded),
        checksum,
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
