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
_MS_NOATIME = 1024  # linux/mount.h


def clone(image: str, directory: str) -> tuple[int, int]:
    """A private copy of ``image`` in a nameless file in ``directory``: descriptors for writing and for reading, QEMU wants both.

    HostError says what the host refused.
    """
    try:
        writable = _clone(image, directory)
    except OSError as error:
        raise HostError(f"make the upper layer in {directory}: {words(error)}") from error
    return writable, files.reopen(writable, os.O_RDONLY)


def format_image(path: str, size_mib: int) -> None:
    """Make an empty file system in a sparse file."""
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    # No journal: nothing survives a crash of the VM anyhow. All tables count as initialised (or a kernel thread does it in every clone),
    # which in a new sparse file they are: zeroes that nobody has to write.
    features = ["-O", "^has_journal", "-E", "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard", "-m", "0"]
    command = ["mkfs.ext4", "-q", "-F", *features, path]
    process.run(command, what="format the upper layer", hint="apt-get install e2fsprogs")


def setup_ops() -> list[ops.Op]:
    """Mount the upper in the guest, once, in the template."""
    return [
        ops.mount(qemu.UPPER_DEVICE, MOUNT_POINT, "ext4", _MS_NOATIME, "discard,noinit_itable"),
        ops.mkdir(DIRECTORY),
        ops.mkdir(WORK),
    ]


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
