"""Hybrid root file system: a shared read-only lower and a private volatile upper, joined by overlayfs in the guest.

Problem
    A container needs a root file system that starts at once, costs nothing until written to, and behaves like a local one. Copying an image
    per VM is slow; writing through a shared file system makes every small write a round trip through the VMM.
Mechanism
    lower   the bundle's rootfs, exported read-only by virtio-9p from within QEMU; caches stay in the guest (``cache=loose``)
    upper   an ext4 image on virtio-blk: a reflink (or a copy of the data extents) of the template's, in a file that never has a name.
            The template's guest has it mounted already, so that a clone's first write needs no mount.
    volumes bind mounts of the host: one read-write 9p export of a directory per container, assembled by QEMU's parent
    Both 9p devices are in the template with an empty directory behind them; a clone puts another path there before the guest mounts it.
Cost
    Upper: one ioctl where the file system has reflinks (XFS, btrfs), else as long as its data extents take to copy (about 1 MiB).
    Guest: two mounts, about 15 ms under emulation, 1 ms with KVM.
Invariants
    The lower is never written. The upper is gone with the last descriptor to it. The template's image is never opened for writing.
    The image and the template's memory are of the same moment: one is never used without the other.
Measured by
    bench/, and tests/system/test_template_clone.py.
"""

from __future__ import annotations

from rundctl.engine import upper
from rundctl.guest import ops
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.template_store import Template

_MS_RDONLY = 1  # linux/mount.h

ROOT = "/root"
VOLUMES = "/volumes"
_LOWER = "/lower"
_MSIZE = 500 * 1024  # bytes of a 9p message: virtio's ring has room for 128 pages, headers included
_TRANSPORT = f"trans=virtio,version=9p2000.L,msize={_MSIZE}"
_OVERLAY = (
    # option, why
    (f"lowerdir={_LOWER}", "the shared layer"),
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


def open_upper(template: Template) -> tuple[int, int]:
    """The upper of a clone, as `qemu.Wiring` takes it; the caller closes both. HostError says what the host refused."""
    return upper.clone(template.upper, template.directory)


def guest_ops(*, volumes: bool = False) -> list[ops.Op]:
    """Make the container's root at `ROOT`, and its volumes at `VOLUMES`/0, /1 ... if it has any."""
    made = [
        ops.mount(qemu.ROOTFS_TAG, _LOWER, "9p", _MS_RDONLY, f"{_TRANSPORT},cache=loose"),
        ops.mount("overlay", ROOT, "overlay", 0, ",".join(option for option, _ in _OVERLAY)),
    ]
    if volumes:
        # No cache but for mmap: the host, and other containers, write there too.
        made.append(ops.mount(qemu.VOLUMES_TAG, VOLUMES, "9p", 0, f"{_TRANSPORT},cache=mmap"))
    return made
