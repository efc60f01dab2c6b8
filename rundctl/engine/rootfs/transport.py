"""The shared layer of a root file system: by what it reaches the guest, what of the machine that takes, and how the guest mounts it.

One class, and one constructor for each transport; `rootfs.choice` decides between them.
"""

from __future__ import annotations

import os

from rundctl.engine.template import upper
from rundctl.errors import HostError, words
from rundctl.guest import ops
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack

    from rundctl.engine.rootfs.images.content import Image

DIRECTORY = "/lower"  # in the guest
MOUNTS_HINT = "9p shows what is mounted in a rootfs"
ROOT = "/root"  # the container's root in the guest, before it becomes that
_MS_RDONLY = 1  # linux/mount.h
_MSIZE = 500 * 1024  # bytes of a 9p message: virtio's ring has room for 128 pages, headers included
# Without posixacl, ACLs are listed and cannot be read: nothing that has one can be copied up, and nothing be made in a directory that has one
# (ENODATA). They cost two messages more a lookup.
NINE_P = f"trans=virtio,version=9p2000.L,msize={_MSIZE},access=client,posixacl"
_WINDOW_MIN_MIB = 64
_PAGE_STRUCTS = 64  # a guest describes each 4096 bytes of pmem by 64 bytes of its memory
_PAGE_STRUCTS_MAX_PERCENT = 4


class Lower:
    """A shared layer: its transport's name, the host path behind it, what the template must have for it, the guest's operations.

    ``device`` and ``mib`` are those of `MachineShape`. ``live``: a host directory that is stacked upon an image, "" without; ``below``: those the
    image was made of.
    ``persistent``: it is the whole root file system, and is written to.
    """

    __slots__ = ("below", "device", "image", "live", "mib", "mount", "name", "path", "persistent", "reason")

    def __init__(self, name: str, path: str, device: str, mib: int, mount: ops.Op) -> None:
        self.name = name
        self.path = path
        self.device = device
        self.mib = mib
        self.mount = mount
        self.live = ""
        self.below: tuple[str, ...] = ()
        self.image: Image | None = None
        self.persistent = False
        self.reason = ""

    @property
    def is_disk(self) -> bool:
        """Whether it is no shared layer but the container's own disk, with the whole root file system (`disk.open_copy`)."""
        return self.device == qemu.DISK

    def open(self, undo: ExitStack) -> int:
        """Its directory, until ``undo``, or its image, which has been open since it was chosen. HostError if it cannot be opened."""
        if self.image is not None:
            return self.image.fd
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise HostError(f"open the lower layer {self.path}: {words(error)}") from error
        undo.callback(os.close, fd)
        return fd


def nine_p(rootfs: str) -> Lower:
    """A directory of the host, as it is at each moment; QEMU serves it. The guest keeps what it has read (``cache=loose``)."""
    mount = ops.mount(qemu.ROOTFS_TAG, DIRECTORY, "9p", _MS_RDONLY, f"{NINE_P},cache=loose")
    return Lower("9p", rootfs, "9p", 0, mount)


def persistent(rootfs: str, transport: str = "9p") -> Lower:
    """The bundle's directory as the whole root file system, written to at once. Nothing is cached but what is mapped, as with volumes."""
    options = f"{NINE_P},cache=mmap" if transport == "9p" else ""
    whole = Lower(transport, rootfs, transport, 0, ops.mount(qemu.ROOTFS_TAG, ROOT, transport, 0, options))
    whole.persistent = True
    return whole


def virtiofs(rootfs: str) -> Lower:
    """A directory of the host, served by a virtiofsd beside QEMU. The guest keeps what it has read."""
    return Lower("virtiofs", rootfs, "virtiofs", 0, ops.mount(qemu.ROOTFS_TAG, DIRECTORY, "virtiofs", _MS_RDONLY))


def erofs(image: Image, memory_mib: int) -> Lower:
    """An EROFS image. On pmem its pages are in the host's page cache alone, once for all VMs; what would need too many page structs is a disk."""
    mib = window_mib(image.size_bytes)
    device = "pmem" if mib * 100 <= memory_mib * _PAGE_STRUCTS * _PAGE_STRUCTS_MAX_PERCENT else "blk"
    options = "dax=always" if device == "pmem" else ""
    mount = ops.mount(qemu.LOWER_DEVICES[device], DIRECTORY, "erofs", _MS_RDONLY, options)
    lower = Lower("erofs", image.path, device, mib, mount)
    lower.image = image
    return lower


def blk(path: str, mib: int, image: Image | None = None) -> Lower:
    """The whole root file system on a disk of the container's own: a copy of an image, or of a directory."""
    whole = Lower(
        "blk", path, qemu.DISK, mib, ops.mount(qemu.UPPER_DEVICE, ROOT, "ext4", upper.MS_NOATIME, upper.OPTIONS)
    )
    whole.image = image
    return whole


def window_mib(size_bytes: int) -> int:
    """Size of the device for an image: a power of two, so that few templates serve all images."""
    mib = _WINDOW_MIN_MIB
    while mib << 20 < size_bytes:
        mib *= 2
    return mib
