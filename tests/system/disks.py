"""File systems of their own for tests that need one kind, or little space."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAKE = {"xfs": ["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1"], "ext4": ["mkfs.ext4", "-q", "-F"]}


@contextmanager
def disk(directory: Path, kind: str, size_mib: int) -> Iterator[Path]:
    """A new file system on a loop device; its mount point."""
    image, point = directory / f"{kind}.disk", directory / f"{kind}-disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run([*_MAKE[kind], str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,discard", str(image), str(point)], check=True)
    try:
        yield point
    finally:
        # Lazily: where / is private (no systemd), the namespaces of other suites' VMs keep copies of what is mounted in here till they end.
        subprocess.run(["umount", "--recursive", "--lazy", str(point)], check=True)
        image.unlink()
        point.rmdir()


def fill(directory: Path) -> Path:
    """A file that takes all the space there is."""
    path = directory / "full"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path
