"""What the upper layer costs a start: a private copy of the template's image, by reflink on XFS and by copying its data on ext4.

usage: upper.py [ROUNDS]     writes build/bench/upper.json
At once means in separate processes, each an interpreter of its own, because that is what `create`s at once are: they meet in the kernel (locks of the
directory, of the image's inode and of the allocation groups) and on the CPUs. They are let go together and hold what they made until the last is done,
as containers that run would. In a row means in one process, which is warm from the second call on.
Both file systems are new, in sparse files on loop devices of one directory; nothing of a home is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rundctl.engine import settings
from rundctl.engine.template import kernel_template, store, upper
from rundctl.host import files, memo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COUNTS = (1, 10, 50, 200)
ROUNDS = 5
KINDS = {"xfs": ["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1"], "ext4": ["mkfs.ext4", "-q", "-F"]}
OPTIONS = {"xfs": "discard,ikeep", "ext4": "discard"}  # as `rundctl storage` mounts its XFS
GOAL_MS = {"median in a row": 0.1, "wall of 200, each": 0.15}  # on XFS
_SINGLE_ROUNDS = 40
_IN_A_ROW = 300
_ONE_IMAGE = "xfs, one image"  # what it would cost if a template had its image once
_DISK = 4 << 30  # bytes
_SETTLE_S = 0.05  # until those who wait sleep, and what a round left is gone
_TIMES = struct.Struct("=QQ")
# Arguments: descriptors to say "ready" on, to wait on, to write the times to, to wait on before the end; images, of which each takes one by its pid
_START = """
import os, struct, sys, time
sys.path[:0] = {path!r}
from rundctl.engine.template import upper
ready, go, result, end = map(int, sys.argv[1:5])
images = sys.argv[5:]
os.write(ready, b"r")
os.read(go, 1)
begun = time.monotonic_ns()
image = images[os.getpid() % len(images)]
made = upper.clone(image, os.path.dirname(image))
done = time.monotonic_ns()
os.write(result, struct.pack("=QQ", begun, done))
os.read(end, 1)
os._exit(0)
"""


@contextlib.contextmanager
def disk(kind: str, directory: Path) -> Iterator[Path]:
    """An empty file system of a kind."""
    image, point = directory / f"{kind}.img", directory / kind
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(_DISK)
    subprocess.run([*KINDS[kind], str(image)], check=True)
    subprocess.run(["mount", "-o", f"loop,noatime,{OPTIONS[kind]}", str(image), str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        image.unlink()


def put(source: str, directory: Path, names: Iterable[str] = store.UPPERS) -> list[Path]:
    """Copy an image's data, as often as templates hold it and where they have it."""
    images = [directory / name for name in names]
    for image in images:
        image.parent.mkdir(exist_ok=True)
        with open(source, "rb") as old, image.open("xb+") as new:
            files.copy_sparse(old.fileno(), new.fileno(), may_share=False)
            os.fsync(new.fileno())
    return images


def in_a_row(images: list[Path], count: int = _IN_A_ROW) -> list[float]:
    """Milliseconds of each preparation, one after the other in this process, which always has the same image."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        made = upper.clone(str(images[0]), str(images[0].parent))
        taken.append((time.perf_counter() - begun) * 1e3)
        os.close(made)
    return taken


def at_once(images: list[Path], count: int) -> tuple[float, list[float]]:
    """Let ``count`` processes go together: milliseconds until the last is done, and of each."""
    with contextlib.ExitStack() as opened:
        ready, ready_far, go_far, go, result, result_far, end_far, end = (fd for _ in range(4) for fd in os.pipe())
        for fd in (ready, ready_far, go_far, result, result_far, end_far, end):
            opened.callback(os.close, fd)
        program = _START.format(path=sys.path)
        inherited = (ready_far, go_far, result_far, end_far)
        argv = [sys.executable, "-I", "-S", "-c", program, *map(str, inherited), *map(str, images)]
        starts = [subprocess.Popen(argv, pass_fds=inherited) for _ in range(count)]
        _read(ready, count)
        time.sleep(_SETTLE_S)
        released = time.monotonic_ns()
        os.close(go)  # the end of file wakes all of them
        times = list(_TIMES.iter_unpack(_read(result, count * _TIMES.size)))
        os.write(end, b"e" * count)
        assert [start.wait() for start in starts] == [0] * count
    return (max(done for _, done in times) - released) / 1e6, [(done - begun) / 1e6 for begun, done in times]


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def row(walls: list[float], each: list[float], count: int) -> dict[str, float]:
    """One line of the table, milliseconds."""
    return {
        "p50_ms": round(statistics.median(each), 3),
        "p99_ms": round(statistics.quantiles(each, n=100, method="inclusive")[-1], 3),
        "wall_ms": round(statistics.median(walls), 2),
        "wall_min_ms": round(min(walls), 2),
        "wall_each_ms": round(statistics.median(walls) / count, 3),
    }


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """All of it, as plain data; the kinds take turns, so that a busy moment of the host meets both."""
    host = settings.load()
    template = kernel_template.ensure(host, memo.of_home(host.home), print)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}",
        "load_before": os.getloadavg()[0],
        "upper_mib": template.shape.upper_mib,
        "data_kib": os.stat(template.upper(0)).st_blocks // 2,
        "processes": "one for each start",
        "in_a_row": {},
        "at_once": {kind: {} for kind in (*KINDS, _ONE_IMAGE)},
    }
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, contextlib.ExitStack() as mounted:
        points = {kind: mounted.enter_context(disk(kind, Path(scratch))) for kind in KINDS}
        images = {kind: put(template.upper(0), point) for kind, point in points.items()}
        for kind in KINDS:
            taken = in_a_row(images[kind])
            result["in_a_row"][kind] = row([sum(taken)], taken, len(taken))
        images[_ONE_IMAGE] = images["xfs"][:1]
        for count in COUNTS:
            walls: dict[str, list[float]] = {kind: [] for kind in images}
            each: dict[str, list[float]] = {kind: [] for kind in images}
            for _ in range(_SINGLE_ROUNDS if count == 1 else rounds):
                for kind, sources in images.items():
                    wall, times = at_once(sources, count)
                    walls[kind].append(wall)
                    each[kind] += times
            for kind in images:
                result["at_once"][kind][count] = row(walls[kind], each[kind], count)
    result["goals"] = {
        "median in a row": result["in_a_row"]["xfs"]["p50_ms"],
        "wall of 200, each": result["at_once"]["xfs"][COUNTS[-1]]["wall_each_ms"],
    }
    result["load_after"] = os.getloadavg()[0]
    return result


def table(result: dict[str, Any]) -> str:
    """The measured as lines of text."""
    names = list(result["in_a_row"]["xfs"])
    lines = [f"{'milliseconds':28}" + "".join(f"{name.removesuffix('_ms'):>11}" for name in names)]
    rows = [(f"{kind}, in a row", values) for kind, values in result["in_a_row"].items()]
    rows += [
        (f"{kind}, {count} at once", values)
        for kind, some in result["at_once"].items()
        for count, values in some.items()
    ]
    lines += [f"{label:28}" + "".join(f"{values[name]:11.3f}" for name in names) for label, values in rows]
    for name, goal in GOAL_MS.items():
        found = result["goals"][name]
        lines.append(f"goal, xfs, {name}: {goal} ms; {found} {'reached' if found <= goal else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    """Measure, save, print."""
    result = measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    target = Path("build/bench/upper.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(target)


if __name__ == "__main__":
    main()
