"""Hybrid root file system: a shared read-only lower and a private volatile upper, joined by overlayfs in the guest.

Problem
    A container needs a root file system that starts at once, costs nothing until written to, and behaves like a local one. Copying an image
    per VM is slow; writing through a shared file system makes every small write a round trip through the VMM.
Mechanism
    lower   by what suits the rootfs (`choose`): an EROFS image on virtio-pmem, mapped from the host's page cache, or on virtio-blk, where the
            content is known not to change; else the directory itself, exported read-only by virtio-9p from within QEMU, or on request by a
            virtiofsd beside it (`shares`). The parts: `lower`.
            A rootfs that is an overlay mount is taken apart: its layers are the image, its own upper directory is stacked on it, live.
    upper   an ext4 image on virtio-blk: a reflink (or a copy of the data extents) of the template's, in a file that never has a name.
            The template's guest has it mounted already, so that a clone's first write needs no mount.
    none of both, where the container is asked to be persistent: the directory itself is the root, exported read-write;
            or where it asks for the way things were without this idea: the whole rootfs copied to an ext4 disk of its own (`disk`)
    volumes bind mounts of the host: one read-write export of a directory per container, by 9p assembled by QEMU's parent, or by a second virtiofsd
    The template has the devices that its clones need, with something empty behind them; a clone puts its own there before the guest mounts it.
Cost
    Upper: one ioctl where the file system has reflinks (XFS, btrfs), else as long as its data extents take to copy (about 1 MiB).
    Guest: two mounts, about 15 ms under emulation, 1 ms with KVM; by 9p 1.2 MiB of QEMU's memory, on pmem 1/64 of the image's size of the guest's.
Invariants
    The lower is never written, unless it is persistent. The upper is gone with the last descriptor to it. The template's image is never opened for writing.
    The image and the template's memory are of the same moment: one is never used without the other.
    A start never waits for an image to be made, unless it was told to use one.
Measured by
    bench/, tests/system/test_rootfs_contract.py and test_template_clone.py.
"""

from __future__ import annotations

import os

from rundctl.engine import combinations, lower_images, overlay_mount, shares, upper
from rundctl.engine import lower as lowers
from rundctl.engine.lower_images import Content
from rundctl.errors import ConfigError
from rundctl.guest import ops
from rundctl.oci import options
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.lower import Lower
    from rundctl.engine.lower_images import Image
    from rundctl.engine.settings import Settings
    from rundctl.engine.template_store import Template
    from rundctl.oci.bundle import Bundle

    Progress = Callable[[str], None]

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


# By what an upper directory of the host may have been written that the guest's overlay, by the options above, would read wrongly.
_NOT_IN_THE_GUEST = ("metacopy", "userxattr")
_LIVE = {"9p": lowers.nine_p, "virtiofs": lowers.virtiofs}


def open_private(lower: Lower, template: Template) -> tuple[int, int]:
    """What is the clone's alone (its upper; or all, on a disk), as `qemu.Wiring` takes it; the caller closes both. HostError says what the host refused."""
    if lower.is_disk:
        from rundctl.engine import disk

        return disk.open_copy(lower, template.directory, template.empty)
    return upper.clone(template.upper, template.directory)


def choose(bundle: Bundle, settings: Settings, memory_mib: int, able: Callable[[], frozenset[str]]) -> Lower:
    """The transport for a bundle's rootfs, with the reason: what its annotation or else the settings name, or what suits it best.

    ``able`` tells what the guest's kernel can mount, and is asked only if that matters. ConfigError for what cannot be had.
    """
    asked = bundle.options.lower or settings.lower
    if asked == "virtiofs":
        _check_virtiofs(bundle, settings, able)
    if (bundle.options.rootfs or settings.rootfs) == "persistent":
        return _persistent(bundle, asked)
    if asked in _LIVE:
        return _because(_LIVE[asked](bundle.rootfs), "asked for")
    content, live, reason = _content(bundle)
    if asked == "blk":
        return _disk(bundle, settings, content, live, reason)
    if content is None:
        if asked == "erofs":
            raise _refused(bundle, asked, reason, f"{options.IMMUTABLE} declares a rootfs that does not change")
        return _because(lowers.nine_p(bundle.rootfs), reason)
    missing = combinations.of("erofs").missing(able())
    if missing:
        reason = f"the guest's kernel has no {' and no '.join(missing)}"
        if asked == "erofs":
            raise _refused(bundle, asked, reason, "rundctl kernel build makes one that has")
        return _because(lowers.nine_p(bundle.rootfs), reason)
    return _image(bundle, settings, memory_mib, content, live, wait=asked == "erofs")


def guest_ops(lower: Lower, *, volumes: bool = False, live: str = "") -> list[ops.Op]:
    """Make the container's root at `ROOT`, and its volumes at `VOLUMES`/0, /1 ... if it has any.

    ``live``: where the guest finds the directory that is stacked on an image.
    """
    made = [lower.mount]
    if volumes:
        # No cache but for mmap: the host, and other containers, write there too.
        by = combinations.of(lower.name).volumes
        made.append(ops.mount(qemu.VOLUMES_TAG, VOLUMES, by, 0, f"{lowers.NINE_P},cache=mmap" if by == "9p" else ""))
    if lower.persistent or lower.is_disk:
        return made
    shared = f"lowerdir={live}:{lowers.DIRECTORY}" if live else f"lowerdir={lowers.DIRECTORY}"
    made.append(ops.mount("overlay", ROOT, "overlay", 0, ",".join((shared, *(option for option, _ in _OVERLAY)))))
    return made


def _persistent(bundle: Bundle, asked: str) -> Lower:
    """The bundle's rootfs itself. ConfigError where something else says that nobody writes to it."""
    where = (
        f"config.json: annotations: {options.ROOTFS}: persistent" if bundle.options.rootfs else "rootfs = persistent"
    )
    if bundle.options.immutable:
        raise ConfigError(f"{where}: {options.IMMUTABLE} says that the rootfs does not change", hint="drop one of them")
    if asked != "auto" and combinations.of(asked).read_only:
        raise ConfigError(
            f"{where}: a rootfs by {asked} {combinations.of(asked).read_only}",
            hint=f"only {' or '.join(combinations.writable())}, or auto, can be written to",
        )
    return _because(lowers.persistent(bundle.rootfs, "9p" if asked == "auto" else asked), "persistent")


def _check_virtiofs(bundle: Bundle, settings: Settings, able: Callable[[], frozenset[str]]) -> None:
    """ConfigError for a guest that cannot mount it, HostError for a host that cannot serve it."""
    if combinations.of("virtiofs").missing(able()):
        reason = "the guest's kernel has no virtio-fs"
        raise _refused(bundle, "virtiofs", reason, "rundctl kernel build makes one that has")
    shares.find_daemon(settings)


def _content(bundle: Bundle) -> tuple[Content | None, str, str]:
    """What an image could be made of, the live directory on top of it, and if there is none: why."""
    if bundle.options.immutable:
        return Content.of_directory(bundle.rootfs, bundle.options.immutable), "", ""
    overlay, reason = overlay_mount.of_rootfs(bundle.rootfs)
    if overlay is None:
        return None, "", f"{reason}: it may change"
    mutable = next((layer for layer in overlay.lowers if not overlay_mount.is_of_an_image(layer)), None)
    if mutable is not None:
        return None, "", f"its layer {mutable} is in no engine's store of images: it may change"
    unread = [option for option in overlay.merging if option.partition("=")[0] in _NOT_IN_THE_GUEST]
    if unread and overlay.upper:
        return None, "", f"its upper directory is read by {', '.join(unread)}, which the guest's overlay is not"
    return Content(overlay.lowers, overlay.merging), overlay.upper or "", ""


def _image(bundle: Bundle, settings: Settings, memory_mib: int, content: Content, live: str, *, wait: bool) -> Lower:
    """The content's image; where there is none yet, the live rootfs while one is made, or the one that is made at once."""
    image = lower_images.find(settings.home, content)
    if image is None and wait:
        image = _build(settings, content)
    if image is None:
        return _because(lowers.nine_p(bundle.rootfs), lower_images.start_background(settings, content))
    lower = _because(lowers.erofs(image, memory_mib), f"image {image.key}")
    lower.live = live
    return lower


def _disk(bundle: Bundle, settings: Settings, content: Content | None, live: str, reason: str) -> Lower:
    """A disk of the container's own: of the content's image, made at once if need be; else a copy of what is there now."""
    if content is None or (live and os.listdir(live)):
        from rundctl.engine import disk

        mib = disk.size_mib(bundle.rootfs, settings.upper_mib)
        return _because(lowers.blk(bundle.rootfs, mib), f"copied: {reason or f'{live} is not empty'}")
    content = content.with_room(settings.upper_mib)
    image = lower_images.find(settings.home, content) or _build(settings, content)
    return _because(lowers.blk(image.path, image.size_bytes >> 20, image), f"a copy of image {image.key}")


def _build(settings: Settings, content: Content) -> Image:
    from rundctl.engine import lower_image_build

    return lower_image_build.build(settings.home, content, lambda _: None, max_mib=settings.images_max_mib)


def _because(lower: Lower, reason: str) -> Lower:
    lower.reason = reason
    return lower


def _refused(bundle: Bundle, asked: str, reason: str, hint: str) -> ConfigError:
    return ConfigError(
        f"config.json: annotations: {options.LOWER}: {asked}: rootfs {bundle.rootfs}: {reason}", hint=hint
    )
