"""What the tests of a rootfs' choice share: a bundle, and what is chosen for it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from rundctl.engine.rootfs import hybrid_rootfs
from rundctl.host import memo
from rundctl.oci import options
from rundctl.oci.bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path

    from rundctl.engine.rootfs.transport import Rootfs
    from rundctl.engine.settings import Settings

ABLE = frozenset(("9p", "erofs", "pmem", "virtiofs"))


def bundle_of(rootfs: Path, **annotations: str) -> Bundle:
    rootfs.mkdir(exist_ok=True)
    asked = options.parse({f"io.rundctl.rootfs.{name}": value for name, value in annotations.items()})
    return Bundle(str(rootfs.parent), {}, str(rootfs), asked)


def chosen_for(bundle: Bundle, settings: Settings, able: frozenset[str] = ABLE) -> Rootfs:
    with ExitStack() as undo:
        return hybrid_rootfs.choose(undo, bundle, settings, memo.of_home(settings.home), 128, lambda: able)
