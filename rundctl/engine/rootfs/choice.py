"""Which transport a rootfs comes by, and why: the one that its annotation or the settings name, or what suits it best.

Each transport says here when it can be had (`combinations` says what goes with it, `lower` what it is). ``auto`` takes an image where the content is
known not to change, and shares live what may; it never waits for an image, and takes no transport that costs a start more than these.
"""

from __future__ import annotations

import os

from rundctl.engine.rootfs import combinations, transport
from rundctl.engine.rootfs.images import content as lower_images
from rundctl.engine.rootfs.images import overlay as overlay_mount
from rundctl.engine.rootfs.images import overlay_marks
from rundctl.engine.rootfs.images.content import Content
from rundctl.errors import ConfigError, HostError
from rundctl.host import mountinfo
from rundctl.oci import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from rundctl.engine.rootfs.images.content import Image
    from rundctl.engine.rootfs.images.overlay import Overlay
    from rundctl.engine.rootfs.transport import Lower
    from rundctl.engine.settings import Settings
    from rundctl.oci.bundle import Bundle

# By what an upper directory of the host may have been written that the guest's overlay (`hybrid_rootfs`) would read wrongly.
_NOT_IN_THE_GUEST = ("metacopy", "userxattr")


def choose(
    undo: ExitStack, bundle: Bundle, settings: Settings, memory_mib: int, able: Callable[[], frozenset[str]]
) -> Lower:
    """The transport for a bundle's rootfs, with the reason.

    ``able`` tells what the guest's kernel can mount, and is asked only if that matters. ``undo`` closes the image that is chosen, if it is one: from the
    choice on it cannot be missed. ConfigError for what cannot be had, HostError for what the host cannot do.
    """
    choice = _Choice(undo, bundle, settings, memory_mib, able)
    asked = bundle.options.lower or settings.lower
    if (bundle.options.rootfs or settings.rootfs) == "persistent":
        return choice.persistent(asked)
    by_name = {
        "auto": choice.auto, "9p": choice.nine_p, "virtiofs": choice.virtiofs, "erofs": choice.erofs, "blk": choice.blk,
    }  # fmt: skip
    return by_name[asked]()


def check_live(chosen: Lower) -> None:
    """Look again, when the guest has its root: since the choice a template may have been built, or a hook of the host have been at work.

    HostError if the guest would now misread the directory that is live.
    """
    unseen = overlay_marks.unseen(chosen.live, chosen.below) if chosen.live else ""
    if unseen:
        raise HostError(
            f"the rootfs was changed while its VM started: {unseen}", hint="the next start takes that into account"
        )


class _Choice:
    """One bundle's. Methods are named as what is asked for."""

    __slots__ = ("_able", "_bundle", "_memory_mib", "_settings", "_undo")

    def __init__(
        self, undo: ExitStack, bundle: Bundle, settings: Settings, memory_mib: int, able: Callable[[], frozenset[str]]
    ) -> None:
        self._undo = undo
        self._bundle = bundle
        self._settings = settings
        self._memory_mib = memory_mib
        self._able = able

    def auto(self) -> Lower:
        content, live, reason = _content(self._bundle)
        reason = reason or self._lacking("erofs", live)
        if content is None or reason:
            return self.nine_p(reason)
        image = lower_images.find_open(self._undo, self._settings.home, content)
        if image is None:
            return self.nine_p(lower_images.start_background(self._settings, content))
        return self._on_image(image, content, live)

    def nine_p(self, reason: str = "asked for") -> Lower:
        return _because(transport.nine_p(self._bundle.rootfs), reason)

    def virtiofs(self) -> Lower:
        self._need_virtiofs()
        return _because(transport.virtiofs(self._bundle.rootfs), "asked for")

    def erofs(self) -> Lower:
        """Waits for the image, if there is none yet."""
        content, live, reason = _content(self._bundle)
        if content is None:
            declare = f"auto has another transport for it; {options.IMMUTABLE} declares a rootfs that does not change"
            raise self._refused("erofs", reason, transport.MOUNTS_HINT if self._bundle.options.immutable else declare)
        self._need_kernel("erofs", live)
        return self._on_image(self._find_or_build(content), content, live)

    def blk(self) -> Lower:
        """A disk of the container's own: of the content's image, for which it waits; of what may change, a copy as it is now."""
        content, live, reason = _content(self._bundle)
        if content is None or (live and os.listdir(live)):
            from rundctl.engine.rootfs import disk

            mib = disk.size_mib(self._bundle.rootfs, self._settings.upper_mib)
            return _because(transport.blk(self._bundle.rootfs, mib), f"copied: {reason or f'{live} is not empty'}")
        image = self._find_or_build(content.with_room(self._settings.upper_mib))
        return _because(transport.blk(image.path, image.size_bytes >> 20, image), f"a copy of image {image.key}")

    def persistent(self, asked: str) -> Lower:
        """The bundle's rootfs itself. ConfigError where something else says that nobody writes to it."""
        annotation = f"config.json: annotations: {options.ROOTFS}: persistent"
        where = annotation if self._bundle.options.rootfs else "rootfs = persistent"
        if self._bundle.options.immutable:
            why = f"{options.IMMUTABLE} says that the rootfs does not change"
            raise ConfigError(f"{where}: {why}", hint="drop one of them")
        if asked == "auto":
            asked = "9p"
        refusal = combinations.of(asked).read_only
        if refusal:
            hint = f"only {' or '.join(combinations.writable())}, or auto, can be written to"
            raise ConfigError(f"{where}: a rootfs by {asked} {refusal}", hint=hint)
        if asked == "virtiofs":
            self._need_virtiofs()
        return _because(transport.persistent(self._bundle.rootfs, asked), "persistent")

    def _on_image(self, image: Image, content: Content, live: str) -> Lower:
        chosen = _because(transport.erofs(image, self._memory_mib), f"image {image.key}")
        chosen.live, chosen.below = live, content.directories
        return chosen

    def _find_or_build(self, content: Content) -> Image:
        home = self._settings.home
        found = lower_images.find_open(self._undo, home, content)
        if found is None:
            from rundctl.engine.rootfs.images import build

            build.build(home, content, lambda _: None, max_mib=self._settings.images_max_mib)
            found = lower_images.find_open(self._undo, home, content)
        if found is None:
            raise HostError(f"image {content.key} of {content}: removed as soon as it was made", hint="try again")
        return found

    def _lacking(self, name: str, live: str = "") -> str:
        missing = combinations.of(name, live=bool(live)).missing(self._able())
        return f"the guest's kernel has no {' and no '.join(missing)}" if missing else ""

    def _need_kernel(self, name: str, live: str = "") -> None:
        reason = self._lacking(name, live)
        if reason:
            raise self._refused(name, reason, "rundctl kernel build makes one that has")

    def _need_virtiofs(self) -> None:
        from rundctl.engine.rootfs import shares

        self._need_kernel("virtiofs")
        shares.find_daemon(self._settings)

    def _refused(self, asked: str, reason: str, hint: str) -> ConfigError:
        annotation = f"config.json: annotations: {options.LOWER}: {asked}"
        where = annotation if self._bundle.options.lower else f"lower = {asked}"
        return ConfigError(f"{where}: rootfs {self._bundle.rootfs}: {reason}", hint=hint)


def _content(bundle: Bundle) -> tuple[Content | None, str, str]:
    """What an image could be made of, the live directory on top of it, and if there is none: why."""
    if bundle.options.immutable:
        inside = mountinfo.below(bundle.rootfs, mountinfo.read())  # perhaps since an image was made
        if inside is not None:
            return None, "", f"something is mounted inside of it, at {inside}"
        return Content.of_directory(bundle.rootfs, bundle.options.immutable), "", ""
    overlay, reason = overlay_mount.of_rootfs(bundle.rootfs)
    reason = f"{reason}: it may change" if overlay is None else _unfit(overlay)
    if overlay is None or reason:
        return None, "", reason
    return Content(overlay.lowers, overlay.merging), overlay.upper or "", ""


def _unfit(overlay: Overlay) -> str:
    """Why its layers cannot be an image with its upper directory live on it; "" if they can."""
    mutable = next((layer for layer in overlay.lowers if not overlay_mount.is_of_an_image(layer)), None)
    if mutable is not None:
        return f"its layer {mutable} is in no engine's store of images: it may change"
    if not overlay.upper:
        return ""
    unread = [option for option in overlay.merging if option.partition("=")[0] in _NOT_IN_THE_GUEST]
    if unread:
        return f"its upper directory is read by {', '.join(unread)}, which the guest's overlay is not"
    return overlay_marks.unseen(overlay.upper, overlay.lowers)


def _because(chosen: Lower, reason: str) -> Lower:
    chosen.reason = reason
    return chosen
