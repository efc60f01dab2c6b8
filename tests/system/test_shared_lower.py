"""Containers of one image cost one page cache of it: on pmem the guests map the host's pages, and none has its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rundctl.engine import settings
from rundctl.engine.rootfs.images import content
from rundctl.engine.rootfs.images.content import Content

from .conftest import Cli, JsonDict, digest, eventually

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import smaps

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTAINERS = 12
_FILE_MIB = 30
_MIB = 1 << 20
_SCRIPT = "echo ready; read x || exit 0; sha256sum </big; exec sleep 1000"


def _machine(cli: Cli, container: str) -> int:
    """Pid of a container's QEMU."""
    shim = cli.state(container)["pid"]
    (child,) = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    return int(child)


def _dirtied_mib(machines: list[int]) -> float:
    """Memory that the guests have of their own."""
    return sum(smaps.breakdown_kib(pid, "/memory")["guest, dirtied"] for pid in machines) / 1024


def test_many_containers_have_one_page_cache(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    for name in ("bin", "proc", "sys", "dev"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    (rootfs / "bin/sh").chmod(0o755)
    for name in ("sleep", "sha256sum"):
        (rootfs / "bin" / name).symlink_to("sh")
    data = os.urandom(_FILE_MIB * _MIB)
    (rootfs / "big").write_bytes(data)

    def change(config: JsonDict) -> None:
        config["root"]["path"] = str(rootfs)
        config["annotations"] = {"io.rundctl.rootfs.lower": "erofs", "io.rundctl.rootfs.immutable": "1"}

    where = bundle("/bin/sh", "-c", _SCRIPT, change=change)
    cli("run", "--bundle", str(where), "first", stdin=b"")  # builds image and template
    image = content.find(settings.load().home, Content.of_directory(str(rootfs), "1"))
    assert image is not None
    with open(image.path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cached = smaps.cached_mib(image.path)
    assert cached < _FILE_MIB / 2, "what is counted below must come of the containers"

    pipes = [os.pipe() for _ in range(_CONTAINERS)]  # one each: whoever holds a container's input reads what there is
    outputs = [tmp_path / f"out{number}" for number in range(_CONTAINERS)]
    try:
        for number, output in enumerate(outputs):
            with output.open("wb") as stdout:
                cli.create(f"c{number}", where, stdin=pipes[number][0], stdout=stdout)
            cli("start", f"c{number}")
        eventually(lambda: all(output.read_bytes() == b"ready\n" for output in outputs), "all ready")
        machines = [_machine(cli, f"c{number}") for number in range(_CONTAINERS)]
        before = _dirtied_mib(machines)
        for _, order in pipes:
            os.write(order, b"\n")
        wanted = f"ready\n{digest(data)}  -\n".encode()
        eventually(lambda: all(output.read_bytes() == wanted for output in outputs), "all have read it", 120)
        grown = _dirtied_mib(machines) - before
        cached = smaps.cached_mib(image.path) - cached
        mapped = sum(smaps.mapped_mib(pid, image.path) for pid in machines)
    finally:
        for fd in (fd for pair in pipes for fd in pair):
            os.close(fd)
    assert _FILE_MIB <= cached < 2 * _FILE_MIB, "one page cache"
    assert _FILE_MIB <= mapped < 2 * _FILE_MIB, "all map the same"
    # With a page cache in each guest it would be 12 times the file.
    assert grown < 2 * _FILE_MIB, f"{_CONTAINERS} guests dirtied {grown:.1f} MiB by reading {_FILE_MIB}"
