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

import os

from rundctl.errors import HostError
from rundctl.guest import ops
from rundctl.host import ficlone, files, process
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rundctl.engine.template_store import Template

# linux/mount.h
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
_MS_NOATIME = 1024

ROOT = "/root"
VOLUMES = "/volumes"
_LOWER = "/lower"
_UPPER = "/upper"
_CGROUP = "/sys/fs/cgroup"
_MSIZE = 500 * 1024  # bytes of a 9p message: virtio's ring has room for 128 pages, headers included
_TRANSPORT = f"trans=virtio,version=9p2000.L,msize={_MSIZE}"
_OVERLAY = (
    # option, why
    (f"lowerdir={_LOWER}", "the shared layer"),
    (f"upperdir={_UPPER}/u", "the private one"),
    (f"workdir={_UPPER}/w", "on the same file system as the upper"),
    ("volatile", "fsync(2) has nothing to save: the upper dies with the VM"),
    ("redirect_dir=on", "a directory of the lower can be renamed without a copy; safe, as no other overlay ever sees this upper"),
    ("index=off", "hard links of the lower break on copy-up, as they do under Docker and podman; needs no file handles of 9p"),
    ("metacopy=off", "chown copies the data up: the lower may change or vanish"),
    ("xino=off", "9p uses all 64 bits of inode numbers"),
)


class Upper:
    """A private image of the storage, as two descriptors (QEMU wants a read-write one and a read-only one). A ``with`` block closes them."""

    __slots__ = ("fd_ro", "fd_rw")

    def __init__(self, image: str, directory: str) -> None:
        """A clone of ``image`` in a nameless file in ``directory``; HostError says what the host refused."""
        try:
            self.fd_rw = _clone(image, directory)
        except OSError as error:
            raise HostError(f"make the upper layer in {directory}: {error.strerror}") from error
        self.fd_ro = files.reopen(self.fd_rw, os.O_RDONLY)

    def fds(self) -> tuple[int, int]:
        """As `qemu.Wiring` takes them."""
        return self.fd_rw, self.fd_ro

    def __enter__(self) -> Upper:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd_rw)
        os.close(self.fd_ro)


def open_upper(template: Template) -> Upper:
    """The upper of a clone."""
    return Upper(template.upper, template.directory)


def format_image(path: str, size_mib: int) -> None:
    """Make an empty file system in a sparse file."""
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    # No journal: nothing survives a crash of the VM anyhow. All tables count as initialised (or a kernel thread does it in every clone),
    # which in a new sparse file they are: zeroes that nobody has to write.
    features = ["-O", "^has_journal", "-E", "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard", "-m", "0"]
    command = ["mkfs.ext4", "-q", "-F", *features, path]
    process.run(command, what="format the upper layer", hint="apt-get install e2fsprogs")


def setup_ops(controllers: Iterable[str]) -> list[ops.Op]:
    """What every guest has before it meets its container: the upper mounted, mount points, cgroups. Part of the template.

    ``controllers``: the cgroup controllers this guest's kernel has.
    """
    secure = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    return [
        ops.mount(qemu.UPPER_DEVICE, _UPPER, "ext4", _MS_NOATIME, "discard,noinit_itable"),
        *(ops.mkdir(path) for path in (f"{_UPPER}/u", f"{_UPPER}/w", _LOWER, VOLUMES, ROOT)),
        ops.mount("cgroup2", _CGROUP, "cgroup2", secure),
        ops.write(f"{_CGROUP}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers)),
        # Errors and worse still reach the console; the boot messages were for the builder.
        ops.write("/proc/sys/kernel/printk", "4"),
    ]


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
