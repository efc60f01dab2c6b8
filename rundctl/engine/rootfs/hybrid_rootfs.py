"""Hybrid root file system: a shared read-only lower and a private volatile upper, joined by overlayfs in the guest.

Problem
    A container needs a root file system that starts at once, costs nothing until written to, and behaves like a local one. Copying an image
    per VM is slow; writing through a shared file system makes every small write a round trip through the VMM.
Mechanism
    lower   what all containers of a rootfs share. An EROFS image on virtio-pmem, mapped from the host's page cache (or on virtio-blk, where it is too
            large for that), if the content is known not to change; else the directory itself, read-only, by virtio-9p from within QEMU or by a
            virtiofsd beside it. What is stacked of layers is taken apart: they are the image, and the directory above them is laid on it, live.
    upper   what is the container's alone: an ext4 image on virtio-blk, a reflink (or a copy of the data extents) of the template's, in a file that
            never has a name. The template's guest has it mounted already, so that a clone's first write needs no mount.
    or one  instead of both: the directory itself, written to, where the container is asked to be persistent; or an ext4 disk of its own with
            the whole rootfs copied to it, which is how it was without this idea.
    volumes bind mounts of the host: one read-write export of a directory per container, by 9p or by a second virtiofsd.
    The template has the devices that its clones need, with something empty behind them; a clone puts its own there before the guest mounts it.
Parts
    `rootfs.choice` which of these, and why; `combinations` what goes with what; `lower` each transport's device and mount; `rootfs.images.content`,
    `rootfs.images.overlay`, `overlay_marks` what does not change; `shares` virtiofsd; `disk` the disk of its own; `upper` the private image; `volumes` the bind
    mounts.
Cost
    Upper: one ioctl where the file system has reflinks (XFS, btrfs), else as long as its data extents take to copy (52 KiB).
    Guest: two mounts, about 15 ms under emulation; by 9p 1.2 MiB of QEMU's memory, on pmem 1/64 of the device's size of the guest's.
Invariants
    The lower is never written, unless it is persistent. The upper is gone with the last descriptor to it. The template's image is never opened for writing.
    The image and the template's memory are of the same moment: one is never used without the other.
    A start never waits for an image to be made, unless it was told to use one.
Measured by
    bench/, tests/system/test_rootfs_contract.py and test_template_clone.py.
"""

from __future__ import annotations

import os

from rundctl.engine.rootfs import combinations
from rundctl.engine.rootfs import transport as lowers
from rundctl.engine.template import upper
from rundctl.guest import ops
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.rootfs.transport import Lower
    from rundctl.engine.template.store import Template

ROOT = lowers.ROOT
VOLUMES = "/volumes"
_OVERLAY = (
    # option, why
    (f"upperdir={upper.DIRECTORY}", "the private one"),
    (f"workdir={upper.WORK}", "on the same file system as the upper"),
    ("volatile", "fsync(2) has nothing to save: the upper dies with the VM"),
    (
        "redirect_dir=on",
        "a directory of the lower can be renamed without a copy; safe, as no other overlay ever sees this upper",
    ),
    (
        "index=off",
        "hard links of the lower break on copy-up, as they do under Docker and podman; needs no file handles of 9p",
    ),
    ("metacopy=off", "chown copies the data up: the lower may change or vanish"),
    ("xino=off", "9p uses all 64 bits of inode numbers"),
)


def open_private(lower: Lower, template: Template) -> int:
    """What is the clone's alone (its upper; or all, on a disk), in a file without a name: its descriptor. HostError says what the host refused."""
    if lower.is_disk:
        from rundctl.engine.rootfs import disk

        return disk.open_copy(lower, template.directory, template.empty)
    image = template.upper(os.getpid())
    return upper.clone(image, os.path.dirname(image))


def guest_ops(lower: Lower, *, volumes: bool = False, live: str = "") -> list[ops.Op]:
    """Make the container's root at `ROOT`, and its volumes at `VOLUMES`/0, /1 ... if it has any.

    ``live``: where the guest finds the directory that is stacked on an image.
    """
    made = [lower.mount]
    if volumes:
        # No cache but for mmap: the host, and other containers, write there too.
        by = combinations.of(lower.name, live=bool(live)).volumes
        made.append(ops.mount(qemu.VOLUMES_TAG, VOLUMES, by, 0, f"{lowers.NINE_P},cache=mmap" if by == "9p" else ""))
    if lower.persistent or lower.is_disk:
        return made
    shared = f"lowerdir={live}:{lowers.DIRECTORY}" if live else f"lowerdir={lowers.DIRECTORY}"
    made.append(ops.mount("overlay", ROOT, "overlay", 0, ",".join((shared, *(option for option, _ in _OVERLAY)))))
    return made
