"""The upper layer's image: an ext4 file system in a file that is formatted once, cloned for every VM, and never has a name there.

Template builder and hybrid rootfs both stand on it.
"""

from __future__ import annotations

from rundctl.errors import HostError, words
from rundctl.guest import ops
from rundctl.host import ficlone, files
from rundctl.lean import os
from rundctl.vmm import qemu

MOUNT_POINT = "/upper"
DIRECTORY = f"{MOUNT_POINT}/u"
WORK = f"{MOUNT_POINT}/w"
MS_NOATIME = 1024  # linux/mount.h
# discard: what is deleted in the container is a hole again in the host's file
OPTIONS = "discard,noinit_itable"


def clone(image: str, directory: str, what: str = "the upper layer", extents: files.Extents | None = None) -> int:
    """A private copy of ``image`` in a nameless file in ``directory``: its descriptor. HostError says what the host refused.

    ``extents``: where its data are, where its file system does not tell.
    """
    try:
        return _clone(image, directory, extents)
    except OSError as error:
        raise HostError(f"make {what} in {directory}: {words(error)}") from error


def format_image(path: str, size_mib: int) -> None:
    """Make a file system in a sparse file, with the directories overlayfs wants. HostError if it cannot be."""
    import shutil

    from rundctl.host import ext4

    skeleton = f"{path}.skeleton"
    try:
        for directory in (DIRECTORY, WORK):
            made = f"{skeleton}/{os.path.relpath(directory, MOUNT_POINT)}"
            os.makedirs(made)
            os.chmod(made, 0o755)  # DIRECTORY's is the mode of the container's root
        ext4.make(path, size_mib, "-d", skeleton, what="format the upper layer")
    finally:
        shutil.rmtree(skeleton, ignore_errors=True)


def setup_ops() -> list[ops.Op]:
    """Mount the upper in the guest, once, in the template."""
    return [ops.mount(qemu.DISK_PATH, MOUNT_POINT, "ext4", MS_NOATIME, OPTIONS)]


def _clone(image: str, directory: str, extents: files.Extents | None) -> int:
    source = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = files.nameless(directory)
        try:
            if not ficlone.clone(source, target):
                files.copy_sparse(source, target, extents=extents)
        except BaseException:
            os.close(target)
            raise
        return target
    finally:
        os.close(source)
