"""What images are written by: mkfs.erofs, or mkfs.ext4, cp and the host's ext4. Cold.

EROFS must be exact, and mapped:
    noinline_data   the kernel maps only files directly (DAX) whose data are whole blocks of their own (fs/erofs/inode.c: FLAT_PLAIN).
    extended inodes have times in nanoseconds and 32 bits for user and group.
    no compression  nothing that is compressed can be mapped.
ext4 is filled by cp through a loop device, in a mount namespace of its own. ``mkfs.ext4 -d`` needs no such device, but (1.47.0, seen) writes times in whole
    seconds, and those after 2038 wrong, leaves directories without an index, and takes four times as long for 10,000 files.
Both are padded, with a hole, to the size of the device that a template has for them (`rootfs.images.content.device_mib`).
"""

from __future__ import annotations

import errno
import os

from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images.scan import BLOCK
from rundctl.errors import HostError
from rundctl.host import ext4, mounts, process
from rundctl.host.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.rootfs.images.scan import Tree

SPACE_HINT = "rundctl image prune --max-size, or make room"
_OPTIONS = ("--quiet", "-d1", "-E", "noinline_data,force-inode-extended")
_NO_XATTRS = ("-x-1",)  # of a source without xattrs mkfs.erofs fails to list them
_HINT = "apt-get install erofs-utils"
_INODE_BYTES = 256  # of an inode with its name and common attributes: an estimate from above
_SUPERBLOCK = (
    1024  # its offset; erofs_fs.h: magic, then at 12 the logarithm of the block size, at 16 the number of inodes
)
_MAGIC = 0xE0F5E1E2
_SAID_BYTES = 600  # of a program's complaints
# Not --archive: that passes over attributes which cannot be set.
_COPY = (
    "cp", "--recursive", "--no-dereference", "--one-file-system", "--reflink=never", "--preserve=mode,ownership,timestamps,links,xattr",
)  # fmt: skip
_EXT4_RESERVED = 10  # inodes (fs/ext4/ext4.h: EXT4_GOOD_OLD_FIRST_INO), of which the root is one
_INODES_PER_MIB = 64  # mkfs.ext4's own ratio
_NO_SPACE = os.strerror(errno.ENOSPC)


class Erofs:
    """An EROFS image of a tree."""

    def needed_bytes(self, tree: Tree) -> int:
        """What it takes on disk while it is made: mkfs.erofs writes zeroes for holes."""
        return tree.size_bytes + tree.inodes * _INODE_BYTES

    def write(self, source: str, image: str, tree: Tree, what: str) -> None:
        """Write it. HostError beginning with ``what`` if it cannot be, or is not exact."""
        tool = process.need_tool("mkfs.erofs", _HINT)
        self._mkfs(tool, source, image, tree, what)
        self._check(image, tree, what)
        if tree.sparse:
            what_for, hint = "free the image's zeroes", "apt-get install util-linux"
            # 1: the file system has no holes. The image takes more room then, that is all.
            process.run(["fallocate", "--dig-holes", image], what=what_for, hint=hint, accepted=(0, 1))
        os.truncate(image, images.device_mib(os.stat(image).st_size) << 20)

    def _mkfs(self, tool: str, source: str, image: str, tree: Tree, what: str) -> None:
        status, said = _run([tool, *_OPTIONS, *(() if tree.has_xattrs else _NO_XATTRS), image, source])
        said = said.replace("<E> erofs: ", "")
        if _NO_SPACE in said:
            raise HostError(f"{what}: no space left in {os.path.dirname(os.path.dirname(image))}", hint=SPACE_HINT)
        if status != 0:
            raise HostError(f"{what}: mkfs.erofs: {said or status}", hint=_doubt(tree))

    def _check(self, image: str, tree: Tree, what: str) -> None:
        """mkfs.erofs has its own mind of what belongs into an image, another in each version."""
        with open(image, "rb") as file:
            head = file.read(_SUPERBLOCK + BLOCK)[_SUPERBLOCK:]
        magic, bits, inodes = (int.from_bytes(head[start:end], "little") for start, end in ((0, 4), (12, 13), (16, 24)))
        if (magic, 1 << bits) != (_MAGIC, BLOCK):
            raise HostError(f"{what}: mkfs.erofs did not write an EROFS with blocks of {BLOCK} bytes")
        if inodes != tree.inodes:
            raise HostError(f"{what}: mkfs.erofs took {inodes} of {tree.inodes} inodes", hint=_doubt(tree))


class Ext4:
    """An ext4 file system that holds a tree and has room for what a container writes."""

    def __init__(self, room_mib: int) -> None:
        self._room_mib = room_mib

    def needed_bytes(self, tree: Tree) -> int:
        """What it takes on disk, from above: each inode may be a directory, with a block of its own."""
        return tree.data_bytes + tree.inodes * (BLOCK + _INODE_BYTES)

    def size_mib(self, tree: Tree) -> int:
        """Size of the file system and its device. A 25th is more than the inodes of the room take, and the bitmaps."""
        needed = (self.needed_bytes(tree) + (self._room_mib << 20)) * 26 // 25
        return images.device_mib(needed)

    def write(self, source: str, image: str, tree: Tree, what: str) -> None:
        """Write it. HostError beginning with ``what`` if it cannot be, or is not exact."""
        point = f"{os.path.dirname(image)}/mounted"
        os.mkdir(point)
        used = self.fill(source, image, self.size_mib(tree), point, what, inodes=tree.inodes)
        os.rmdir(point)
        if used != tree.inodes:
            raise HostError(f"{what}: cp took {used} of {tree.inodes} inodes")

    def fill(self, source: str, image: str, size_mib: int, point: str, what: str, *, inodes: int) -> int:
        """Make the file system in the file ``image`` and copy the tree into it; the number of its inodes.

        ``point``: any empty directory; the mount over it is seen by nobody else, and gone whatever kills us. HostError if it cannot be.
        """
        ext4.make(image, size_mib, "-N", str(size_mib * _INODES_PER_MIB + inodes), what=what)
        with mounts.PrivateMounts():
            # cp goes by paths: who else writes to the tree could put a symlink in a directory's place, and have a file of the host copied.
            mounts.fence(source)
            with Loop(image) as device:
                mounts.mount(device.path, point, "ext4", mounts.MS_NOATIME, "noinit_itable")
            try:
                os.rmdir(f"{point}/lost+found")  # the tree's own may be there again
                self._copy(source, point, what)
                status = os.statvfs(point)
            finally:
                mounts.unmount(point)
        return status.f_files - status.f_ffree - _EXT4_RESERVED + 1

    def _copy(self, source: str, point: str, what: str) -> None:
        for command in ([*_COPY, f"{source}/.", point], ["sync", "--file-system", point]):
            status, said = _run([process.need_tool(command[0], "apt-get install coreutils"), *command[1:]])
            if status != 0:
                # The file system was made large enough: what is full is the host's. Pages that it cannot write are an I/O error.
                is_full = _NO_SPACE in said or os.strerror(errno.EIO) in said
                raise HostError(f"{what}: {said or f'{command[0]}: {status}'}", hint=SPACE_HINT if is_full else "")


def _run(argv: list[str]) -> tuple[int, str]:
    """Run a program that ends with us, whatever kills us: its exit code, and the beginning of what it said, on one line."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    out = os.memfd_create("said", os.MFD_CLOEXEC)  # a file beside the image would be as full as the disk
    try:
        with process.Child(argv, (), (null, out, out)) as child:
            status = child.wait()
        return status, " ".join(os.pread(out, _SAID_BYTES, 0).decode(errors="replace").split())
    finally:
        os.close(null)
        os.close(out)


def _doubt(tree: Tree) -> str:
    return f"some versions of mkfs.erofs cannot hold {tree.doubtful}" if tree.doubtful else ""
