"""Take the vmlinux out of a bzImage.

QEMU enters a vmlinux directly (PVH), which spares the guest its own decompression, and the BIOS the loading of it.
Source: Documentation/arch/x86/boot.rst, ``payload_offset`` and ``payload_length`` of the setup header (protocol 2.08).
"""

from __future__ import annotations

import struct

from rundctl.errors import HostError
from rundctl.guest import elf
from rundctl.guest.compression import decompress

_SETUP_SECTORS = 0x1F1
_SETUP_SECTORS_DEFAULT = 4
_HEADER_MAGIC = 0x202
_PAYLOAD = struct.Struct("<II")
_PAYLOAD_AT = 0x248
_SECTOR = 512


def vmlinux(image: bytes, what: str) -> bytes:
    """The vmlinux of a bzImage, or the image itself if it is one. HostError if it is neither or cannot be booted by QEMU."""
    kernel = image if image.startswith(elf.MAGIC) else decompress(_payload(image, what), what)
    try:
        bootable = elf.has_pvh_note(kernel)
    except elf.ElfError as error:
        raise HostError(f"{what}: {error}", hint="expected a vmlinux or a bzImage for x86-64") from error
    if not bootable:
        raise HostError(f"{what}: the kernel has no PVH entry point", hint="build it with CONFIG_PVH=y")
    return kernel


def _payload(image: bytes, what: str) -> bytes:
    if len(image) < _PAYLOAD_AT + _PAYLOAD.size or image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise HostError(f"{what}: neither a vmlinux nor a bzImage")
    offset, length = _PAYLOAD.unpack_from(image, _PAYLOAD_AT)
    start = (1 + (image[_SETUP_SECTORS] or _SETUP_SECTORS_DEFAULT)) * _SECTOR + offset
    payload = image[start : start + length]
    if len(payload) != length or not length:
        raise HostError(f"{what}: the bzImage is truncated")
    return payload
