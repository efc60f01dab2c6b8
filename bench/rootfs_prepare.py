"""What a start waits for before there is a machine, by transport: the private part of its root file system.

All transports with an overlay clone the template's upper; blk copies the image of the whole root file system, here one of 8 MiB of data (a container
system's smallest). Each is what `hybrid_rootfs.open_private` does, measured as `upper.py` does it, on XFS (reflinks) and ext4 (none).
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import upper

from rundctl.engine import settings
from rundctl.engine.rootfs.images import build
from rundctl.engine.rootfs.images.content import Content
from rundctl.engine.template import kernel_template, store
from rundctl.host import memo

if TYPE_CHECKING:
    from pathlib import Path

    from rootfs_image import Sizes

DATA_MIB = 8
UPPER, DISK = "upper", "disk"
PRIVATE = {"9p": UPPER, "virtiofs": UPPER, "erofs-pmem": UPPER, "erofs-blk": UPPER, "blk": DISK}


def measure(scratch: Path, sizes: Sizes) -> dict[str, Any]:
    """By what is private, kind of file system, and how many at once ("in a row": in one process): milliseconds."""
    host = settings.load()
    sources = {UPPER: kernel_template.ensure(host, memo.of_home(host.home), print).upper(0), DISK: _image(scratch)}
    places = {UPPER: store.UPPERS, DISK: ("disk/image",)}
    result: dict[str, Any] = {name: {} for name in sources}
    for kind in upper.KINDS:
        with upper.disk(kind, scratch) as point:
            for name, source in sources.items():
                made = upper.put(source, point, places[name])
                taken = upper.in_a_row(made, sizes.in_a_row)
                rows = {"in a row": upper.row([sum(taken)], taken, len(taken))}
                for count in sizes.uppers:
                    rounds = [upper.at_once(made, count) for _ in range(sizes.rounds)]
                    times = [time_ms for _, each in rounds for time_ms in each]
                    rows[str(count)] = upper.row([wall for wall, _ in rounds], times, count)
                result[name][kind] = rows
    return result


def _image(scratch: Path) -> str:
    """An image for blk, as it is made of a directory that is declared immutable."""
    rootfs, home = scratch / "prepared", scratch / "home"
    rootfs.mkdir()
    (rootfs / "data").write_bytes(os.urandom(DATA_MIB << 20))
    content = Content.of_directory(str(rootfs), "bench").with_room(settings.load().upper_mib)
    image = build.build(str(home), content, lambda _: None, max_mib=1 << 20)
    shutil.rmtree(rootfs)
    return image.path
