"""Annotations ``io.rundctl.*``: what a bundle may ask of rundctl itself. The one place that reads them."""

from __future__ import annotations

from rundctl.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "io.rundctl."
TEMPLATE = "io.rundctl.template"
ROOTFS = "io.rundctl.rootfs"
LOWER = "io.rundctl.rootfs.lower"
IMMUTABLE = "io.rundctl.rootfs.immutable"
ROOTFS_MODES = ("auto", "volatile", "persistent")
TRANSPORTS = ("auto", "virtiofs", "erofs", "9p", "blk")
_ON_OFF = {"on": True, "off": False}
# annotation: what it may say; nothing: any text
KNOWN: dict[str, tuple[str, ...]] = {
    TEMPLATE: tuple(_ON_OFF),
    ROOTFS: ROOTFS_MODES,
    LOWER: TRANSPORTS,
    IMMUTABLE: (),
}


class Options:
    """What the annotations ask for.

    template   start as a clone of the template (True) or boot cold (False); None = what the settings say
    rootfs     auto, volatile or persistent: where writes to the root file system go; "" = what the settings say
    lower      transport of the shared layer, "" = what the settings say
    immutable  the user's word that the rootfs does not change as long as this text does not; "" = it may
    """

    __slots__ = ("immutable", "lower", "rootfs", "template")

    def __init__(self, *, template: bool | None = None, rootfs: str = "", lower: str = "", immutable: str = "") -> None:
        self.template = template
        self.rootfs = rootfs
        self.lower = lower
        self.immutable = immutable


def parse(annotations: Mapping[str, str]) -> Options:
    """Read the annotations; ConfigError for an unknown ``io.rundctl.*`` or value: these are typing errors."""
    for name, value in annotations.items():
        if name.startswith(PREFIX):
            _check(name, value)
    return Options(
        template=_ON_OFF[annotations[TEMPLATE]] if TEMPLATE in annotations else None,
        rootfs=annotations.get(ROOTFS, ""),
        lower=annotations.get(LOWER, ""),
        immutable=annotations.get(IMMUTABLE, ""),
    )


def _check(name: str, value: str) -> None:
    if name not in KNOWN:
        known = f"known: {', '.join(KNOWN)}"
        raise ConfigError(f"config.json: annotations: unknown annotation {name!r}", hint=known)
    allowed = KNOWN[name]
    if value not in allowed if allowed else not value:
        wanted = " or ".join(allowed) or "a text that changes with the rootfs, such as a version"
        raise ConfigError(f"config.json: annotations: {name}: expected {wanted}, got {value!r}")
