"""Hybrid root file system: a shared read-only lower and a private volatile upper. overlayfs joins them in the guest.

Problem
    A container needs a root file system that starts at once, costs nothing until it is written to, and behaves like a local one. A copy of an
    image for each VM is slow. Through a shared file system every small write is a round trip to the VMM.
Mechanism
    There are three steps, and a function for each.
    `choose`        chooses the lower, which all containers of a rootfs share. If the content is known not to change, it is an EROFS image. That is made
                    once, and comes by virtio-pmem: each VM maps the host's page cache. If the content may change, it is the directory itself,
                    read-only, by 9p. Of layers that overlayfs stacks it is both: the layers are the image, and the directory above them is
                    laid on it, live.
    `open_private`  opens the upper, which is the container's alone: an ext4 image on virtio-blk. It is a reflink of the template's, or a copy of its
                    few data extents, in a file that never has a name. The template's guest has it mounted already. So a clone's first
                    write needs no mount.
    `join`          makes the operations by which the guest mounts one over the other.
    The template has the devices that its clones need, with something empty behind them. A clone puts its own there before the guest mounts it.
    Some roots have none of this: an engine will read them afterwards. It builds an image's layer, or starts the container again. There the
    container writes to the directory itself (`choice.reader_of`).
    A user can ask by name for something else (`rootfs.choice`): another transport for the lower; the directory itself, written to (persistent);
    or a private disk with a copy of the whole rootfs. This last one is how it was without this idea.
Cost
    Upper: one ioctl where the file system has reflinks (XFS, btrfs). Elsewhere its data extents are copied (52 KiB).
    Guest: two mounts, about 15 ms under emulation. By 9p 1.2 MiB of QEMU's memory. On pmem 1/64 of the device's size, of the guest's memory.
Invariants
    Nobody writes to the lower. The upper is gone with the last descriptor to it. The template's image is never opened for writing.
    The image and the template's memory are of the same moment: one is never used without the other.
    A start never waits for an image to be made, unless it was told to use one.
Measured by
    make bench-rootfs; tests/system/test_rootfs_contract.py (behaves like a local one), test_shared_lower.py, test_upper.py, test_template_clone.py.
"""

from __future__ import annotations

from rundctl.engine.rootfs import combinations, transport
from rundctl.engine.rootfs.choice import Choice, immutable_content, reader_of
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.transport import LOWER, ROOT
from rundctl.engine.template import upper
from rundctl.guest import ops
from rundctl.lean import os
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.rootfs.transport import Rootfs
    from rundctl.engine.settings import Settings
    from rundctl.engine.template.store import Template
    from rundctl.host.memo import Memo
    from rundctl.lean.contextlib import ExitStack
    from rundctl.oci.bundle import Bundle
    from rundctl.types import Progress

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


def choose(
    undo: ExitStack,
    bundle: Bundle,
    settings: Settings,
    memo: Memo,
    memory_mib: int,
    able: Callable[[], frozenset[str]],
    *,
    warn: Progress | None = None,
) -> Rootfs:
    """What the guest gets of a bundle's rootfs, and why: the shared lower that suits it best, or what annotation or settings ask for.

    ``memory_mib`` is the VM's. ``able`` says what its kernel can mount, and is asked only if that matters. ``warn`` is told if another
    process, which makes the image that was asked for, is waited for. If an image is chosen, ``undo`` closes it: it is open from now on, so its removal does no
    harm. ConfigError for what is not possible, HostError for what the host cannot do.
    """
    choice = Choice(undo, bundle, settings, memo, memory_mib, able, warn=warn)
    asked = bundle.options.lower or settings.lower
    kept = bundle.options.rootfs or settings.rootfs
    reader = reader_of(bundle) if kept == "auto" else ""
    if reader or kept == "persistent":
        return choice.persistent(asked, reader)
    if asked != "auto":
        return choice.by_name(asked)
    content, live, reason = immutable_content(bundle)
    reason = reason or choice.lacking("erofs", live)
    if content is None or reason:
        return transport.nine_p(bundle.rootfs, reason)
    image = images.find_open(undo, settings.home, content)
    if image is None:
        return transport.nine_p(bundle.rootfs, images.start_background(settings, content))
    return transport.erofs(image, memory_mib, live, content.directories)


def open_private(rootfs: Rootfs, template: Template) -> int:
    """Open what is the clone's alone: its upper, or on a disk all of the rootfs. The descriptor of a file without a name. HostError: the host refused."""
    if rootfs.is_disk:
        from rundctl.engine.rootfs import disk

        return disk.open_copy(rootfs, template.directory, template.empty)
    image = template.upper(os.getpid())
    return upper.clone(image, os.path.dirname(image), extents=template.upper_extents)


def join(rootfs: Rootfs, *, volumes: bool = False, live: str = "") -> list[ops.Op]:
    """Make the container's root at `ROOT`. If it has volumes, make them at `VOLUMES`/0/NAME, /1/NAME ...

    ``live``: where the guest finds the directory that is stacked on an image.
    """
    made = [rootfs.mount]
    if volumes:
        # No cache but for mmap: the host, and other containers, write there too.
        by = combinations.of(rootfs.transport, live=bool(live)).volumes
        made.append(ops.mount(qemu.VOLUMES_TAG, VOLUMES, by, 0, f"{transport.NINE_P},cache=mmap" if by == "9p" else ""))
    if rootfs.is_lower:
        layers = f"lowerdir={live}:{LOWER}" if live else f"lowerdir={LOWER}"
        made.append(ops.mount("overlay", ROOT, "overlay", 0, ",".join((layers, *(option for option, _ in _OVERLAY)))))
    return made
