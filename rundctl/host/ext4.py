"""Make an ext4 file system in a file that is a hole then, but for little. Cold."""

from __future__ import annotations

import os

from rundctl.host import process

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


def make(path: str, size_mib: int, *options: str, what: str) -> None:
    """mkfs.ext4(8) with further ``options``; ``what`` it is for begins an error. HostError or OSError if it cannot be.

    Each extent costs a start about 8 µs to reflink, each KiB of data its time to copy where there are no reflinks: so there are few of both.
    """
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(_BLOCK)]
    command += ["-O", ",".join(_FEATURES), "-E", ",".join(_EXTENDED), *options, path]
    process.run(command, what=what, hint="apt-get install e2fsprogs")
    os.truncate(path, (size_mib << 20) - _WIPED)
    os.truncate(path, size_mib << 20)
