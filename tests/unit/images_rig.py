"""What the tests of lower images share."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rundctl.engine.rootfs.images import build as builds
from rundctl.engine.rootfs.images import content as images

if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.rootfs.images.content import Content, Image

T = TypeVar("T")
MAX_MIB = 10240
DEADLINE_S = 60
MIB = 1 << 20


def silent(_: str) -> None:
    """No progress."""


def build(home: str, content: Content, progress: Callable[[str], None] = silent) -> Image:
    return builds.build(home, content, progress, max_mib=MAX_MIB)


def names(home: str) -> set[str]:
    """What is in the cache besides the lock."""
    return set(os.listdir(images.root(home))) - {".lock"}


def mounted(image: Image, where: Path) -> Path:
    """The image, as this host's kernel reads it."""
    where.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image.path, where], check=True)
    return where


def host_reads_erofs() -> bool:
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "erofs"], check=False)
    return "\terofs\n" in Path("/proc/filesystems").read_text()


def eventually(probe: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := probe()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)
    return value


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"!")


def replace(directory: Path) -> None:
    """By one that looks the same."""
    subprocess.run(["cp", "-a", directory, f"{directory}.new"], check=True)
    vanish(directory)
    Path(f"{directory}.new").rename(directory)


def vanish(directory: Path) -> None:
    subprocess.run(["rm", "-r", directory], check=True)


def deepen(directory: Path) -> None:
    """Paths that no mkfs.erofs takes."""
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=fd)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
