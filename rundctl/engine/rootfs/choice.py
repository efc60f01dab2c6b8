"""What transports can be had for a bundle's rootfs, and why not: by the content, by what the guest's kernel can mount, by what is installed.

`hybrid_rootfs.choose` asks here. What goes with each transport says `combinations`; what each is, `transport`.
"""

from __future__ import annotations

from rundctl.engine.rootfs import combinations, transport
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images import overlay, overlay_marks
from rundctl.engine.rootfs.images.content import Content
from rundctl.errors import ConfigError, HostError, words
from rundctl.host import mountinfo
from rundctl.lean import os
from rundctl.oci import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.rootfs.images.content import Image
    from rundctl.engine.rootfs.images.overlay import Overlay
    from rundctl.engine.rootfs.transport import Rootfs
    from rundctl.engine.settings import Settings
    from rundctl.host.memo import Memo
    from rundctl.lean.contextlib import ExitStack
    from rundctl.oci.bundle import Bundle
    from rundctl.types import Progress
    from rundctl.vmm.virtiofsd import Daemon

# By what an upper directory of the host may have been written that the guest's overlay (`hybrid_rootfs`) would read wrongly.
_NOT_IN_THE_GUEST = ("metacopy", "userxattr")
_AUTOREMOVE = "io.podman.annotations.autoremove"  # TRUE: podman run --rm
_ENGINES_FILES = ("umoci.json",)  # in a bundle: by umoci-unpack(1), for umoci-repack(1)


class Choice:
    """One bundle's transports, each by its name. ConfigError for one that cannot be had, HostError for what the host cannot do."""

    __slots__ = ("_able", "_bundle", "_memo", "_memory_mib", "_settings", "_undo", "_warn")

    def __init__(
        self,
        undo: ExitStack,
        bundle: Bundle,
        settings: Settings,
        memo: Memo,
        memory_mib: int,
        able: Callable[[], frozenset[str]],
        *,
        warn: Progress | None = None,
    ) -> None:
        """As for `hybrid_rootfs.choose`."""
        self._undo = undo
        self._bundle = bundle
        self._settings = settings
        self._memo = memo
        self._memory_mib = memory_mib
        self._able = able
        self._warn = warn

    def by_name(self, asked: str) -> Rootfs:
        """The transport that annotation or setting names; what it needs is waited for."""
        if asked == "9p":
            return transport.nine_p(self._bundle.rootfs)
        if asked == "virtiofs":
            return transport.virtiofs(self._bundle.rootfs, self._find_daemon())
        return self._erofs() if asked == "erofs" else self._blk()

    def persistent(self, asked: str, reader: str = "") -> Rootfs:
        """The bundle's rootfs itself; ``reader``: who will look at it, if nobody asked for that. ConfigError where something else says that nobody writes."""
        where, out = self._asked_to_keep(reader)
        if self._bundle.options.immutable:
            why = f"{options.IMMUTABLE} says that the rootfs does not change"
            raise ConfigError(f"{where}: {why}", hint="drop one of them")
        if asked == "auto":
            return transport.persistent(self._bundle.rootfs, self._daemon_in_c(), reader)
        refusal = combinations.of(asked).read_only
        if refusal:
            hint = f"{out}only {' or '.join(combinations.writable())}, or auto, can be written to"
            raise ConfigError(f"{where}: a rootfs by {asked} {refusal}", hint=hint)
        return transport.persistent(self._bundle.rootfs, self._find_daemon() if asked == "virtiofs" else None, reader)

    def _asked_to_keep(self, reader: str) -> tuple[str, str]:
        """What says that writes are kept, and how to say otherwise if nobody did."""
        annotated = f"config.json: annotations: {options.ROOTFS}"
        if reader:
            lower = f"{annotated}.lower" if self._bundle.options.lower else "lower"
            return (
                f"{lower}: what the container writes is kept ({reader})",
                f"annotation {options.ROOTFS}=volatile loses it; ",
            )
        return (f"{annotated}: persistent" if self._bundle.options.rootfs else "rootfs = persistent"), ""

    def _daemon_in_c(self) -> Daemon | None:
        """The virtiofsd that a persistent root comes by without having been asked for: it is of the same QEMU whose 9p server makes no FIFOs and sockets.

        By its successor in Rust files cannot be mapped shared before Linux 6.6; and QEMU's 9p server is a newer one then.
        """
        if self.lacking("virtiofs"):
            return None
        try:
            daemon = self._find_daemon()
        except HostError:  # there is none, or none that works: nobody asked for it
            return None
        return None if daemon.is_rust else daemon

    def lacking(self, asked: str, live: str = "") -> str:
        """What the guest's kernel lacks for a transport, in words; "" if nothing."""
        missing = combinations.of(asked, live=bool(live)).missing(self._able())
        return f"the guest's kernel has no {' and no '.join(missing)}" if missing else ""

    def _erofs(self) -> Rootfs:
        """Waits for the image, if there is none yet."""
        content, live, reason = immutable_content(self._bundle)
        if content is None:
            declare = f"auto takes another transport; {options.IMMUTABLE} declares that a rootfs does not change"
            raise self._refused("erofs", reason, transport.MOUNTS_HINT if self._bundle.options.immutable else declare)
        self._need_kernel("erofs", live)
        return transport.erofs(self._find_or_build(content), self._memory_mib, live, content.directories)

    def _blk(self) -> Rootfs:
        """A disk of the container's own: of the content's image, for which it waits; of what may change, a copy as it is now."""
        content, live, reason = immutable_content(self._bundle)
        if content is None or (live and os.listdir(live)):
            from rundctl.engine.rootfs import disk

            mib = disk.size_mib(self._bundle.rootfs, self._settings.upper_mib)
            return transport.blk(self._bundle.rootfs, mib, f"copied: {reason or f'{live} is not empty'}")
        image = self._find_or_build(content.with_room(self._settings.upper_mib))
        return transport.blk(image.path, image.size_bytes >> 20, f"a copy of image {image.key}", image)

    def _find_or_build(self, content: Content) -> Image:
        home = self._settings.home
        found = images.find_open(self._undo, home, content)
        if found is None:
            from rundctl.engine.rootfs.images import build

            build.build(home, content, lambda _: None, max_mib=self._settings.images_max_mib, warn=self._warn)
            found = images.find_open(self._undo, home, content)
        if found is None:
            raise HostError(f"image {content.key} of {content}: removed as soon as it was made", hint="try again")
        return found

    def _need_kernel(self, asked: str, live: str = "") -> None:
        reason = self.lacking(asked, live)
        if reason:
            raise self._refused(asked, reason, "rundctl kernel build makes one that has it")

    def _find_daemon(self) -> Daemon:
        from rundctl.engine.rootfs import shares

        self._need_kernel("virtiofs")
        return shares.find_daemon(self._settings, self._memo)

    def _refused(self, asked: str, reason: str, hint: str) -> ConfigError:
        annotation = f"config.json: annotations: {options.LOWER}: {asked}"
        where = annotation if self._bundle.options.lower else f"lower = {asked}"
        return ConfigError(f"{where}: rootfs {self._bundle.rootfs}: {reason}", hint=hint)


def reader_of(bundle: Bundle) -> str:
    """Who may look at what the container writes to its root, in words; "" if nobody will, or if nothing can be written there.

    An engine's root is known by its place: engines keep roots outside of bundles, or mount them. What a caller made by hand is a directory in the bundle.
    """
    root, home = bundle.rootfs, bundle.path
    if bundle.spec.get("root", {}).get("readonly") or bundle.options.immutable:
        return ""
    if bundle.spec.get("annotations", {}).get(_AUTOREMOVE) == "TRUE":
        return ""
    try:
        if os.statvfs(root).f_flag & os.ST_RDONLY:
            return ""
        if not _is_in(root, home) and not _is_in(root, os.path.realpath(home)):
            return f"the rootfs {root} is outside of the bundle, as engines have it"
        if mountinfo.is_mount_point(root):
            return f"the rootfs {root} is a mount, as engines have it"
    except OSError as error:
        raise HostError(f"rootfs {root}: {words(error)}") from error
    made = next((name for name in _ENGINES_FILES if os.path.exists(f"{home}/{name}")), "")
    return f"{home}/{made} belongs to an engine that reads the rootfs" if made else ""


def _is_in(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def immutable_content(bundle: Bundle) -> tuple[Content | None, str, str]:
    """What of a rootfs is known not to change, the live directory on top of it ("" without), and if there is no such content: why."""
    if bundle.options.immutable:
        inside = mountinfo.below(bundle.rootfs, mountinfo.read())  # perhaps since an image was made
        if inside is not None:
            return None, "", f"something is mounted inside of it, at {inside}"
        return Content.of_directory(bundle.rootfs, bundle.options.immutable), "", ""
    parts, reason = overlay.of_rootfs(bundle.rootfs)
    reason = f"{reason}: it may change" if parts is None else _unfit(parts)
    if parts is None or reason:
        return None, "", reason
    return Content(parts.lowers, parts.merging), parts.upper or "", ""


def _unfit(parts: Overlay) -> str:
    """Why its layers cannot be an image with its upper directory live on it; "" if they can."""
    mutable = next((layer for layer in parts.lowers if not overlay.is_of_an_image(layer)), None)
    if mutable is not None:
        return f"its layer {mutable} is not in an engine's store of images: it may change"
    if not parts.upper:
        return ""
    unread = [option for option in parts.merging if option.partition("=")[0] in _NOT_IN_THE_GUEST]
    if unread:
        return f"its upper directory needs {', '.join(unread)}, which the guest's overlay does not have"
    return overlay_marks.unseen(parts.upper, parts.lowers)


def check_live(rootfs: Rootfs) -> None:
    """Look again, when the guest has its root: since the choice a template may have been built, or a hook of the host have been at work.

    HostError if the guest would now misread the directory that is live.
    """
    unseen = overlay_marks.unseen(rootfs.live, rootfs.layers) if rootfs.live else ""
    if unseen:
        raise HostError(
            f"the rootfs was changed while its VM started: {unseen}", hint="the next start takes that into account"
        )
