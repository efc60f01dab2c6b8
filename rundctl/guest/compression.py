"""Undo the compressions of kernels and kernel modules: Python's own where there is one, else the tool of that name."""

from __future__ import annotations

import lzma
import zlib

from rundctl.errors import HostError
from rundctl.host import process

GZIP = b"\x1f\x8b\x08"
XZ = b"\xfd7zXZ\0"
ZSTD = b"\x28\xb5\x2f\xfd"
LZ4_LEGACY = b"\x02\x21\x4c\x18"  # the frame the kernel's build makes with `lz4 -l`
_TOOLS = {ZSTD: "zstd", LZ4_LEGACY: "lz4"}


def decompress(data: bytes, what: str) -> bytes:
    """The plain bytes; data in no known compression comes back as it is. HostError if it is damaged or a tool is missing.

    Bytes after the compressed stream are ignored: a kernel's payload ends with the length of what it unpacks to.
    """
    try:
        if data.startswith(GZIP):
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(data)
        if data.startswith(XZ):
            return lzma.LZMADecompressor().decompress(data)
    except (zlib.error, lzma.LZMAError) as error:
        raise HostError(f"decompress {what}: {error}") from error
    for magic, tool in _TOOLS.items():
        if data.startswith(magic):
            # The legacy lz4 frame has no end of its own: the size that the kernel's build appends would be read as a block.
            return _by_tool(tool, data[:-4] if magic == LZ4_LEGACY else data, what)
    return data


def _by_tool(tool: str, data: bytes, what: str) -> bytes:
    path = process.find_tool(tool)
    if path is None:
        raise HostError(f"decompress {what}: the tool {tool} is missing", hint=f"apt-get install {tool}")
    # zstd says "garbage after the stream" by a status of 1 after it wrote all that was in it.
    return process.run([path, "-dc"], what=f"decompress {what}", data=data, accepted=(0, 1))
