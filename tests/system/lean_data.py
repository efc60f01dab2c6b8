"""Bytes that the lean kernel is tested with: an EROFS image, and rules for nftables as netlink messages.

Sources: fs/erofs/erofs_fs.h; include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import struct

BLOCK = 4096
_EROFS_MAGIC = 0xE0F5E1E2
_DIRECTORY, _FILE = 2, 1  # file types in directory entries

_NFNL_NFTABLES = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0, 3, 6
_REQUEST, _ACK, _CREATE, _APPEND = 1, 4, 0x400, 0x800
_IPV4 = 2
_POSTROUTING, _SNAT_PRIORITY = 4, 100
_NESTED = 0x8000


def erofs_image(pages: list[bytes]) -> bytes:
    """An uncompressed image of one file ``file``, a block a page: superblock, inodes, the root directory, the file."""
    names = [b".", b"..", b"file"]
    entries = b""
    offset = len(names) * 12
    for name, number, kind in zip(names, (0, 0, 1), (_DIRECTORY, _DIRECTORY, _FILE), strict=True):
        entries += struct.pack("<QHBB", number, offset, kind, 0)
        offset += len(name)
    directory = entries + b"".join(names)
    blocks = 3 + len(pages)
    superblock = struct.pack("<IIIBBHQQIIII", _EROFS_MAGIC, 0, 0, 12, 0, 0, 2, 0, 0, blocks, 1, 0)
    inodes = _inode(0o040755, 2, len(directory), 2) + _inode(0o100644, 1, len(pages) * BLOCK, 3)
    contents = [bytes(1024) + superblock, inodes, directory, *pages]
    return b"".join(content.ljust(BLOCK, b"\0") for content in contents)


def _inode(mode: int, links: int, size: int, block: int) -> bytes:
    return struct.pack("<HHHHIIIIHHI", 0, 0, mode, links, size, 0, block, 0, 0, 0, 0)


def masquerading_rule() -> tuple[bytes, int]:
    """What ``nft`` sends for: table t { chain c { type nat hook postrouting priority srcnat; ct state 2 masquerade } }, and how many answers."""
    table, chain = _text(1, "t"), _text(3, "c")
    hook = _attribute(4, _number(1, _POSTROUTING) + _number(2, _SNAT_PRIORITY), nested=True)
    connection = _expression("ct", _number(1, 1) + _number(2, 0))  # into register 1: the state
    compare = _expression("cmp", _number(1, 1) + _number(2, 0) + _attribute(3, _attribute(1, b"\2\0\0\0"), nested=True))
    count = _expression("counter", b"")
    rule = _attribute(4, connection + compare + count + _expression("masq", b""), nested=True)
    batch = struct.pack(">BBH", 0, 0, _NFNL_NFTABLES)
    messages = [
        _message(_BATCH_BEGIN, _REQUEST, 0, batch),
        _rules(_NEWTABLE, 1, _text(1, "t")),
        _rules(_NEWCHAIN, 2, table + chain + hook + _text(7, "nat")),
        _rules(_NEWRULE, 3, _text(1, "t") + _text(2, "c") + rule, _APPEND),
        _message(_BATCH_END, _REQUEST, 4, batch),
    ]
    return b"".join(messages), 3


def _rules(kind: int, sequence: int, attributes: bytes, flags: int = 0) -> bytes:
    header = struct.pack(">BBH", _IPV4, 0, 0)
    return _message(_NFNL_NFTABLES << 8 | kind, _REQUEST | _ACK | _CREATE | flags, sequence, header + attributes)


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("<IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes, *, nested: bool = False) -> bytes:
    length = 4 + len(value)
    return struct.pack("<HH", length, kind | (_NESTED if nested else 0)) + value.ljust((len(value) + 3) & ~3, b"\0")


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


def _expression(name: str, data: bytes) -> bytes:
    return _attribute(1, _text(1, name) + _attribute(2, data, nested=True), nested=True)
