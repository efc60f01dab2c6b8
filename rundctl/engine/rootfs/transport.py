"""By what a root file system reaches its guest: for each transport what it asks of the machine (`device`), and how the guest mounts it.

One class, and one constructor for each way; `hybrid_rootfs` and `rootfs.choice` decide between them.
"""

from __future__ import annotations

from rundctl.engine.rootfs.images import content as images
from rundctl.engine.template import upper
from rundctl.errors import HostError, words
from rundctl.guest import ops
from rundctl.lean import os
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.rootfs.images.content import Image
    from rundctl.lean.contextlib import ExitStack
    from rundctl.vmm.virtiofsd import Daemon

LOWER = "/lower"  # where the guest has the shared layer
ROOT = "/root"  # the container's root in the guest, before it becomes that
MOUNTS_HINT = "9p shows what is mounted in a rootfs"
ASKED = "asked for"
_MS_RDONLY = 1  # linux/mount.h
_MSIZE = 500 * 1024  # bytes of a 9p message: virtio's ring has room for 128 pages, headers included
# Without posixacl, ACLs are listed and cannot be read: nothing that has one can be copied up, and nothing be made in a directory that has one
# (ENODATA). They cost two messages more a lookup.
NINE_P = f"trans=virtio,version=9p2000.L,msize={_MSIZE},access=client,posixacl"
_PAGE_STRUCTS = 64  # a guest describes each 4096 bytes of pmem by 64 bytes of its memory
_PAGE_STRUCTS_MAX_PERCENT = 4


class Rootfs:
    """A container's root file system on its way into the VM.

    transport   how it reaches the guest: 9p, virtiofs, erofs or blk; ``reason``: why so, in words
    device      what of the machine that takes, and its size ``device_mib``: as in `MachineShape`
    mount       the guest's operation that mounts what comes by it
    path        of the host: a directory, or the image's
    image       what is behind the device, None for a directory
    live        a directory of the host that is stacked on the image, "" without; ``layers``: those the image was made of
    persistent  whether the guest writes to the directory itself
    """

    __slots__ = (
        "daemon",
        "device",
        "device_mib",
        "image",
        "layers",
        "live",
        "mount",
        "path",
        "persistent",
        "reason",
        "transport",
    )

    def __init__(  # noqa: PLR0913  one argument a property, all but the first by name
        self,
        transport: str,
        *,
        reason: str,
        device: str,
        mount: ops.Op,
        path: str,
        device_mib: int = 0,
        image: Image | None = None,
        live: str = "",
        layers: tuple[str, ...] = (),
        persistent: bool = False,
        daemon: Daemon | None = None,
    ) -> None:
        self.transport = transport
        self.reason = reason
        self.device = device
        self.device_mib = device_mib
        self.mount = mount
        self.path = path
        self.image = image
        self.live = live
        self.layers = layers
        self.persistent = persistent
        self.daemon = daemon

    @property
    def is_disk(self) -> bool:
        """Whether it is the container's own disk, with the whole root file system (`disk.open_copy`)."""
        return self.device == qemu.DISK

    @property
    def is_lower(self) -> bool:
        """Whether it is a shared read-only layer, on which the container's upper is laid."""
        return not self.persistent and not self.is_disk

    def open(self, undo: ExitStack) -> int:
        """Its directory, until ``undo``, or its image, which has been open since it was chosen. HostError if it cannot be opened."""
        if self.image is not None:
            return self.image.fd
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise HostError(f"open the rootfs {self.path}: {words(error)}") from error
        undo.callback(os.close, fd)
        return fd


def nine_p(directory: str, reason: str = ASKED) -> Rootfs:
    """A directory of the host, as it is at each moment; QEMU serves it. The guest keeps what it has read (``cache=loose``)."""
    mount = ops.mount(qemu.ROOTFS_TAG, LOWER, "9p", _MS_RDONLY, f"{NINE_P},cache=loose")
    return Rootfs("9p", reason=reason, device="9p", mount=mount, path=directory)


def virtiofs(directory: str, daemon: Daemon) -> Rootfs:
    """A directory of the host, served by a virtiofsd beside QEMU. The guest keeps what it has read."""
    mount = ops.mount(qemu.ROOTFS_TAG, LOWER, "virtiofs", _MS_RDONLY)
    return Rootfs("virtiofs", reason=ASKED, device="virtiofs", mount=mount, path=directory, daemon=daemon)


def erofs(image: Image, memory_mib: int, live: str = "", layers: tuple[str, ...] = ()) -> Rootfs:
    """An EROFS image. On pmem its pages are in the host's page cache alone, once for all VMs; what would need too many page structs is a disk."""
    mib = images.device_mib(image.size_bytes)
    device = "pmem" if mib * 100 <= memory_mib * _PAGE_STRUCTS * _PAGE_STRUCTS_MAX_PERCENT else "blk"
    mount = ops.mount(qemu.IMAGE_PATHS[device], LOWER, "erofs", _MS_RDONLY, "dax=always" if device == "pmem" else "")
    return Rootfs(
        "erofs", reason=f"image {image.key}", device=device, device_mib=mib, mount=mount, path=image.path, image=image,
        live=live, layers=layers,
    )  # fmt: skip


def persistent(directory: str, daemon: Daemon | None = None, why: str = "") -> Rootfs:
    """The bundle's directory as the whole root file system, written to at once: by virtio-fs where there is a ``daemon``, else by 9p. ``why``: in words.

    Nothing is cached but what is mapped, as with volumes.
    """
    transport, options = ("virtiofs", "") if daemon else ("9p", f"{NINE_P},cache=mmap")
    mount = ops.mount(qemu.ROOTFS_TAG, ROOT, transport, 0, options)
    return Rootfs(
        transport, reason=f"persistent: {why or ASKED}", device=transport, mount=mount, path=directory, persistent=True,
        daemon=daemon,
    )  # fmt: skip


def blk(path: str, mib: int, reason: str = ASKED, image: Image | None = None) -> Rootfs:
    """The whole root file system on a disk of the container's own: a copy of an image, or of a directory."""
    mount = ops.mount(qemu.DISK_PATH, ROOT, "ext4", upper.MS_NOATIME, upper.OPTIONS)
    return Rootfs("blk", reason=reason, device=qemu.DISK, device_mib=mib, mount=mount, path=path, image=image)
