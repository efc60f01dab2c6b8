"""The root file system that `rootfs.py` measures: its files, its bundles, and how much of everything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rundctl.engine import settings
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images.content import Content

RUNDCTL = os.environ.get("RUNDCTL", f"{sys.prefix}/bin/rundctl")
MIB = 1 << 20
_LIMIT_MIB = 320  # of a container's memory: fio's libraries do not load in a VM of 128 MiB
_PADDING_MIB = (
    600  # a hole: an image of more than 512 MiB has a device that is too large for pmem in such a VM (`lower.erofs`)
)
JOBS = {
    # name of fio's job: what it does, block size, bytes of it (quick: a quarter)
    "seq read": ("read", "1m", 64 * MIB),
    "rand read": ("randread", "4k", 16 * MIB),
    "seq write": ("write", "1m", 64 * MIB),
    "rand write": ("randwrite", "4k", 8 * MIB),
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    starts: int  # of which the median is the time to the first byte
    files: tuple[int, ...]  # of the trees that are scanned
    data_mib: int  # that each of `readers` containers reads
    readers: int
    many: int  # containers on erofs-pmem, for "one page cache for all"
    divisor: int  # of fio's bytes
    uppers: tuple[int, ...]  # prepared at once
    rounds: int
    in_a_row: int


FULL = Sizes(7, (1400, 10_000), 100, 50, 100, 1, (1, 50, 200), 5, 300)
QUICK = Sizes(2, (1400,), 30, 4, 0, 4, (1, 10), 2, 50)


class Image:
    """A root file system with all that the rows need, its bundles, and at the end without the images made of it."""

    def __init__(self, scratch: Path, sizes: Sizes, *, padded: bool) -> None:
        self.directory = scratch / ("padded" if padded else "plain")
        self.rootfs = self.directory / "rootfs"
        self._sizes = sizes
        for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "out"):
            (self.rootfs / name).mkdir(parents=True)
        self._programs()
        self._data()
        if padded:
            with (self.rootfs / "padding").open("wb") as file:
                file.truncate(_PADDING_MIB * MIB)
        subprocess.run([RUNDCTL, "spec", "--bundle", self.directory], check=True)
        self._config = json.loads((self.directory / "config.json").read_text())

    def _programs(self) -> None:
        shutil.copy2("/bin/busybox", self.rootfs / "bin/busybox")
        for name in ("sh", "cat", "echo", "sleep"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        source = Path(__file__).resolve().with_name("rootfs_scan.c")
        subprocess.run(["gcc", "-O2", "-static", "-o", self.rootfs / "bin/scan", source], check=True)
        fio = shutil.which("fio")
        if fio is None:
            raise SystemExit("rootfs.py: there is no fio: apt-get install fio")
        libraries = subprocess.run(["ldd", fio], check=True, capture_output=True, text=True).stdout
        for path in (fio, *re.findall(r"(/\S+) \(0x", libraries)):
            target = self.rootfs / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)

    def _data(self) -> None:
        (self.rootfs / "data").mkdir()
        (self.rootfs / "jobs").write_text(job_file(self._sizes))
        with (self.rootfs / "data/big").open("wb") as file:
            for _ in range(self._sizes.data_mib):
                file.write(os.urandom(MIB))
        for count in self._sizes.files:
            for number in range(count):
                path = self.rootfs / f"trees/{count}/{number // 100}/{number}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x" * 100)

    def bundle(self, lower: str, name: str, script: str) -> Path:
        """A bundle on it that runs a script."""
        directory = self.directory / name
        directory.mkdir()
        config = json.loads(json.dumps(self._config))
        config["process"].update(terminal=False, args=["/bin/sh", "-c", script])
        config["linux"].setdefault("resources", {})["memory"] = {"limit": _LIMIT_MIB * MIB}
        config["root"] = {"path": str(self.rootfs), "readonly": False}
        config["annotations"] = {"io.rundctl.rootfs.lower": lower, "io.rundctl.rootfs.immutable": "bench"}
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    def erofs(self) -> Path | None:
        """The EROFS image that was made of it."""
        found = images.find(settings.load().home, self._content())
        return Path(found.path) if found else None

    def forget(self) -> None:
        """Remove all images of it; nobody else's content it can be."""
        host = settings.load()
        for content in (self._content(), self._content().with_room(host.upper_mib)):
            image = images.find(host.home, content)
            if image is not None:
                shutil.rmtree(Path(image.path).parent)

    def _content(self) -> Content:
        return Content.of_directory(str(self.rootfs), "bench")


def job_file(sizes: Sizes) -> str:
    """fio's jobs, one after the other (fio(1))."""
    lines = ["[global]", "ioengine=psync", "thread=1", "invalidate=1", "stonewall"]
    for name, (kind, block, size) in JOBS.items():
        lines += [f"[{name}]", f"rw={kind}", f"bs={block}", f"io_size={size // sizes.divisor}"]
        if "read" in kind:
            lines += ["filename=/data/big", "readonly=1", f"size={min(64, sizes.data_mib)}m"]
        else:
            lines += ["filename=/out/file", "direct=1", f"size={size // sizes.divisor}"]
    return "\n".join(line for line in lines if line != "readonly=1")
