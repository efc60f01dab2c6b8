"""The little of ELF that a guest kernel and its modules need: sections, and the PVH note that makes a vmlinux bootable by QEMU.

Source: elf(5); include/xen/interface/elfnote.h in Linux for the note.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x7fELF"
_CLASS64_LITTLE = b"\x02\x01"
_PT_NOTE = 4
_XEN_NOTE_PHYS32_ENTRY = 18  # where a hypervisor enters the kernel in 32-bit mode: "PVH"
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")


class ElfError(ValueError):
    """The bytes are not the 64-bit little-endian ELF file they should be."""


def section(image: bytes, name: bytes) -> bytes:
    """Contents of a named section, empty if the file has none of that name."""
    try:
        return _section(image, name)
    except struct.error as error:
        raise ElfError("truncated ELF file") from error


def has_pvh_note(image: bytes) -> bool:
    """Whether QEMU's ``-kernel`` can enter this vmlinux directly (CONFIG_PVH)."""
    try:
        return any(owner == b"Xen\0" and kind == _XEN_NOTE_PHYS32_ENTRY for owner, kind in _notes(image))
    except struct.error as error:
        raise ElfError("truncated ELF file") from error


def _check(image: bytes) -> None:
    if image[:4] != MAGIC or image[4:6] != _CLASS64_LITTLE:
        raise ElfError("not a 64-bit little-endian ELF file")


def _section(image: bytes, name: bytes) -> bytes:
    _check(image)
    (table,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", image, 0x3A)
    headers = [_SECTION.unpack_from(image, table + index * size) for index in range(count)]
    if not headers:
        return b""
    names = headers[names_index][4]
    for header in headers:
        start = names + header[0]
        if image[start : image.index(b"\0", start)] == name:
            return image[header[4] : header[4] + header[5]]
    return b""


def _notes(image: bytes) -> Iterator[tuple[bytes, int]]:
    _check(image)
    (table,) = struct.unpack_from("<Q", image, 0x20)
    size, count = struct.unpack_from("<HH", image, 0x36)
    for index in range(count):
        kind, _, offset, _, _, length, _, _ = _SEGMENT.unpack_from(image, table + index * size)
        if kind == _PT_NOTE:
            yield from _notes_of_segment(image[offset : offset + length])


def _notes_of_segment(data: bytes) -> Iterator[tuple[bytes, int]]:
    offset = 0
    while offset + _NOTE.size <= len(data):
        owner_size, value_size, kind = _NOTE.unpack_from(data, offset)
        offset += _NOTE.size
        yield data[offset : offset + owner_size], kind
        offset += _aligned(owner_size) + _aligned(value_size)


def _aligned(size: int) -> int:
    return (size + 3) & ~3
