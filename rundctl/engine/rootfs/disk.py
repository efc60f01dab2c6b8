"""The whole root file system as a private ext4 disk, without an overlay: what a container would have had before there were shared lowers.

What is known not to change is copied from its image, extent by extent or by reflink; what may change is copied file by file, for one container.
"""

from __future__ import annotations

import os

from rundctl.engine.rootfs import transport
from rundctl.engine.template import upper
from rundctl.errors import ConfigError, HostError, words
from rundctl.host import files, interruption, mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.rootfs.transport import Rootfs

_WHAT = "copy the root file system"


def size_mib(rootfs: str, room_mib: int) -> int:
    """Size of the disk for a directory as it is now. ConfigError or HostError for what cannot be copied."""
    from rundctl.engine.rootfs.images.formats import Ext4
    from rundctl.engine.rootfs.images.scan import Tree

    inside = mountinfo.below(rootfs, mountinfo.read())
    if inside is not None:
        raise ConfigError(
            f"rootfs {rootfs}: blk copies one file system, and something is mounted at {inside}",
            hint=transport.MOUNTS_HINT,
        )
    try:
        return Ext4(room_mib).size_mib(Tree(rootfs))
    except HostError as error:
        raise HostError(f"{_WHAT} {rootfs}: {error.message}", hint=error.hint) from error


def open_copy(rootfs: Rootfs, directory: str, empty: str) -> int:
    """The disk of one container, in a nameless file: its descriptor.

    Of an image it lies beside that, so that they can share extents, else in ``directory``; ``empty``: any empty directory. HostError if it cannot be.
    """
    if rootfs.image is not None:
        images = os.path.dirname(os.path.dirname(rootfs.image.path))  # its own directory may be gone by now
        with interruption.allowed():  # without reflinks it is copied, for as long as that takes
            return upper.clone(f"/proc/self/fd/{rootfs.image.fd}", images, "the root disk")
    try:
        writable = files.nameless(directory)
    except OSError as error:
        raise HostError(f"{_WHAT}: {directory}: {words(error)}") from error
    try:
        _fill(rootfs, writable, empty)
    except BaseException:
        os.close(writable)
        raise
    return writable


def _fill(rootfs: Rootfs, disk: int, empty: str) -> None:
    from rundctl.engine.rootfs.images.formats import Ext4

    image, what = f"/proc/{os.getpid()}/fd/{disk}", f"{_WHAT} {rootfs.path}"
    try:
        Ext4(0).fill(rootfs.path, image, rootfs.device_mib, empty, what, inodes=0)
    except OSError as error:
        raise HostError(f"{what}: {error.filename}: {words(error)}") from error
