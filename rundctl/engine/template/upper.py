"""The upper layer's image: an ext4 file system in a file that is formatted once, cloned for every VM, and never has a name there.

Template builder and hybrid rootfs both stand on it.
"""

from __future__ import annotations

import os

from rundctl.errors import HostError, words
from rundctl.guest import ops
from rundctl.host import ficlone, files, process
from rundctl.vmm import qemu

MOUNT_POINT = "/upper"
DIRECTORY = f"{MOUNT_POINT}/u"
WORK = f"{MOUNT_POINT}/w"
MS_NOATIME = 1024  # linux/mount.h
# discard: what is deleted in the container is a hole again in the host's file
OPTIONS = "discard,noinit_itable"
_BLOCK = 4096  # bytes; mkfs takes 1024 below 512 MiB, and the host could not free such a block by itself
# Bytes at the end that mkfs.ext4 overwrites against remains of a RAID. In a new file they may be a hole again, which is one extent less.
_WIPED = 1 << 16
_FEATURES = (
    # mkfs.ext4's name; why
    "^has_journal",  # nothing survives a crash of the VM anyhow
    "^resize_inode",  # a MiB of zeroes, written, for a growth that never comes
    "^flex_bg",  # with it the tables of 16 groups lie between a group's own, and the directories 32 MiB behind all of them
    "sparse_super2",  # no copies of the superblock (num_backup_sb): each is an extent
)
_EXTENDED = (
    "num_backup_sb=0",
    # All tables count as initialised (or a kernel thread does it in every clone), which in a new sparse file they are: zeroes that nobody
    # has to write.
    "lazy_itable_init=0",
    "assume_storage_prezeroed=1",
    "nodiscard",  # nothing to discard in a new file
)


def clone(image: str, directory: str, what: str = "the upper layer") -> int:
    """A private copy of ``image`` in a nameless file in ``directory``: its descriptor. HostError says what the host refused."""
    try:
        return _clone(image, directory)
    except OSError as error:
        raise HostError(f"make {what} in {directory}: {words(error)}") from error


def format_image(path: str, size_mib: int) -> None:
    """Make a file system in a sparse file, with the directories overlayfs wants. HostError if it cannot be."""
    import shutil

    skeleton = f"{path}.skeleton"
    try:
        for directory in (DIRECTORY, WORK):
            made = f"{skeleton}/{os.path.relpath(directory, MOUNT_POINT)}"
            os.makedirs(made)
            os.chmod(made, 0o755)  # noqa: S103 (DIRECTORY's is the mode of the container's root)
        mkfs(path, size_mib, "-d", skeleton, what="format the upper layer")
    finally:
        shutil.rmtree(skeleton, ignore_errors=True)


def mkfs(path: str, size_mib: int, *options: str, what: str) -> None:
    """Make an ext4 file system in a file that is a hole then, but for little. HostError or OSError if it cannot be.

    Each extent costs a start about 8 µs to reflink, each KiB of data its time to copy where there are no reflinks: so there are few of both.
    """
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(_BLOCK)]
    command += ["-O", ",".join(_FEATURES), "-E", ",".join(_EXTENDED), *options, path]
    process.run(command, what=what, hint="apt-get install e2fsprogs")
    os.truncate(path, (size_mib << 20) - _WIPED)
    os.truncate(path, size_mib << 20)


def setup_ops() -> list[ops.Op]:
    """Mount the upper in the guest, once, in the template."""
    return [ops.mount(qemu.UPPER_DEVICE, MOUNT_POINT, "ext4", MS_NOATIME, OPTIONS)]


def _clone(image: str, directory: str) -> int:
    source = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = files.nameless(directory)
        try:
            if not ficlone.clone(source, target):
                files.copy_sparse(source, target)
        except BaseException:
            os.close(target)
            raise
        return target
    finally:
        os.close(source)
