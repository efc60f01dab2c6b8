"""Annotations ``io.rundctl.*``: what a bundle may ask of rundctl itself. The one place that reads them."""

from __future__ import annotations

from rundctl.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "io.rundctl."
# annotation: what it may say
KNOWN: dict[str, tuple[str, ...]] = {
    "io.rundctl.template": ("on", "off"),
}


class Options:
    """What the annotations ask for. ``template``: start as a clone of the template (True) or boot cold (False)."""

    __slots__ = ("template",)

    def __init__(self, *, template: bool = True) -> None:
        self.template = template


def parse(annotations: Mapping[str, str]) -> Options:
    """Read the annotations; ConfigError for an unknown ``io.rundctl.*`` or value: these are typing errors."""
    for name, value in annotations.items():
        if not name.startswith(PREFIX):
            continue
        if name not in KNOWN:
            known = f"known: {', '.join(KNOWN)}"
            raise ConfigError(f"config.json: annotations: unknown annotation {name!r}", hint=known)
        if value not in KNOWN[name]:
            wanted = " or ".join(KNOWN[name])
            raise ConfigError(f"config.json: annotations: {name}: expected {wanted}, got {value!r}")
    return Options(template=annotations.get("io.rundctl.template", "on") == "on")
