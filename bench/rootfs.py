"""The paper's comparison of root file systems, on this machine: each transport of the shared layer, and the private upper.

usage: rootfs.py [--quick]     writes build/bench/rootfs.json and build/bench/rootfs.svg
A transport is tried by a `create` that asks for it; one that is refused is left out, and its row says why.
    prepare       what is private is made before there is a machine (`rootfs_prepare.py`): wall-clock for one, and for many at once
    first byte    wall-clock of `create` and `start` until the container's first output is here
    first scan    lstat of 1,400 files in a new VM; the median of as many VMs as for the first byte, since a busy moment is as long as a scan
    scan, read    1,400 and 10,000 files of 100 bytes, in the guest's own time: lstat of each ("cold": the first of this VM; "warm": once more), and their data
    fio           one pass in the guest; reads through its page cache, of a file that it has not read yet (the host has); writes to the upper, O_DIRECT
    host CPU      of QEMU, while the guest did it
    memory        of the host, while containers hold 100 MB that each has read: PSS of all VMs' processes, pages of a VM's own memory file (virtio-fs) that
                  none of them has touched, and page cache of the source, or of the disks, that none of them maps
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import select
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parent))
import rootfs_plot
import rootfs_prepare
import smaps
from rootfs_image import FULL, QUICK, RUNDCTL, Image, Sizes

from rundctl.engine import settings
from rundctl.engine.template import kernel_template
from rundctl.host import memo

if TYPE_CHECKING:
    from collections.abc import Iterator

GOAL_SCAN = 0.1  # of 9p's time
GOAL_UPPER_MS = 0.1  # median on XFS
GOAL_AT_ONCE_MS = 0.15  # wall-clock by the number at once, of the most at once
_TIMEOUT_S = 120.0
_OWN_MEMORY = "/memfd:memory (deleted)"  # as QEMU's memory-backend-memfd names it


@dataclass(frozen=True)
class Transport:
    """A row: what the annotation asks for, and the device that must come of it."""

    name: str
    lower: str
    device: str
    padded: bool = False


TRANSPORTS = (
    Transport("9p", "9p", "9p"),
    Transport("blk", "blk", "disk"),
    Transport("virtiofs", "virtiofs", "virtiofs"),
    Transport("erofs-pmem", "erofs", "pmem"),
    Transport("erofs-blk", "erofs", "blk", padded=True),
)


class RefusedError(Exception):
    """`create` did not do what was asked."""


class Container:
    """One container with a pipe to its input and one from its output."""

    def __init__(self, scratch: Path, bundle: Path, name: str) -> None:
        self._root, self._name = scratch / "root", name
        self._errors = scratch / f"{name}.stderr"
        self._stdin, self._input = os.pipe()
        self._output, self._stdout = os.pipe()
        self._bundle = bundle
        self._buffer = b""
        self.created = False
        self.machine = 0  # pid of QEMU
        self.processes: list[int] = []  # of the VM: QEMU, and what serves it
        self.device = ""

    def __enter__(self) -> Self:
        with self._errors.open("wb") as errors:
            argv = [RUNDCTL, "--root", str(self._root), "--debug", "create", "--bundle", str(self._bundle), self._name]
            code = subprocess.run(
                argv, stdin=self._stdin, stdout=self._stdout, stderr=errors, check=False, timeout=600
            ).returncode
        os.close(self._stdin)
        os.close(self._stdout)
        said = self._errors.read_text(errors="replace")
        if code:
            self._close()
            lines = [line for line in said.splitlines() if "level=debug" not in line and line.strip()]
            raise RefusedError(re.sub(r"^.*?Error: ", "", lines[-1]) if lines else f"create: exit code {code}")
        self.created = True
        found = re.search(r"rootfs by \w+ \((\w+)\)", said)
        self.device = found[1] if found else ""
        return self

    def __exit__(self, *_: object) -> None:
        if self.created:
            self._call("delete", "--force", self._name)
        self._close()

    def _close(self) -> None:
        os.close(self._input)
        os.close(self._output)

    def start(self) -> None:
        """As the verb does."""
        self._call("start", self._name)

    def find_machine(self) -> None:
        """After `start`: which process is its QEMU."""
        shim = json.loads(self._call("state", self._name))["pid"]
        self.processes = [int(pid) for pid in Path(f"/proc/{shim}/task/{shim}/children").read_text().split()]
        self.processes = [pid for pid in self.processes for pid in (pid, *_children(pid))]
        (self.machine,) = (pid for pid in self.processes if Path(f"/proc/{pid}/comm").read_text().startswith("qemu"))

    def memory_mib(self) -> float:
        """Memory of its VM's processes, and what of its own memory file was copied from the template's and is not mapped yet."""
        mapped = sum(smaps.pss_kib(pid) for pid in self.processes) / 1024
        own = self._own_memory()
        return mapped + (
            smaps.cached_mib(own) - sum(smaps.mapped_mib(pid, _OWN_MEMORY) for pid in self.processes) if own else 0.0
        )

    def dirtied_mib(self, template: str) -> float:
        """Of the guest's memory, what is not shared with the template of this file name."""
        own = self._own_memory()
        return smaps.cached_mib(own) if own else smaps.breakdown_kib(self.machine, template)["guest, dirtied"] / 1024

    def _own_memory(self) -> str:
        """Path of the guest's memory if it is its own, as virtiofsd needs it; else empty."""
        links = Path(f"/proc/{self.machine}/fd").iterdir()
        return next((str(link) for link in links if str(link.readlink()) == _OWN_MEMORY), "")

    def disk(self) -> str:
        """Path, through QEMU's descriptors, of its private disk: the largest file without a name that is open for writing."""
        found = {}
        for link in Path(f"/proc/{self.machine}/fd").iterdir():
            status = link.stat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                found[status.st_size] = str(link)
        return found[max(found)]

    def say(self, line: str) -> None:
        """Give it a line to read."""
        os.write(self._input, line.encode() + b"\n")

    def hear(self) -> str:
        """Its next line."""
        while b"\n" not in self._buffer:
            if not select.select([self._output], [], [], _TIMEOUT_S)[0]:
                raise TimeoutError(f"{self._name}: nothing for {_TIMEOUT_S:.0f} s")
            piece = os.read(self._output, 65536)
            if not piece:
                raise EOFError(f"{self._name} ended: {self._errors.read_text()[-500:]}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def cpu_s(self) -> float:
        """CPU time of its VM's processes so far, in ticks of 10 ms (proc(5), stat)."""
        told = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.processes)
        return sum(int(fields[11]) + int(fields[12]) for fields in told) / os.sysconf("SC_CLK_TCK")

    def _call(self, *arguments: str) -> str:
        argv = [RUNDCTL, "--root", str(self._root), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def first_ms(scratch: Path, bundle: Path, name: str) -> tuple[float, float]:
    """Of one new VM: the time to its first byte, and to look at the smallest tree for the first time."""
    begun = time.perf_counter()
    with Container(scratch, bundle, name) as container:
        container.start()
        container.hear()
        first_byte = (time.perf_counter() - begun) * 1e3
        container.say("go")
        return first_byte, int(container.hear().split()[1]) / 1e3


def guest_script(sizes: Sizes) -> str:
    """Each step waits for a line, so that the host's CPU is read between them."""
    steps = [f"scan {how} /trees/{count}" for count in sizes.files for how in ("stat", "stat", "read", "read")]
    told = "".join(f"read x; {step}; " for step in steps)
    return f"echo ready; {told} read x; fio --output-format=json --output=/tmp/r /jobs 2>/tmp/e; echo $? $(cat /tmp/e); cat /tmp/r; echo END; read x"


def inside(scratch: Path, image: Image, transport: Transport, sizes: Sizes) -> dict[str, Any]:
    """Scans and fio, in one VM."""
    row: dict[str, Any] = {"scan": {}, "cpu_s": {}}
    with Container(scratch, image.bundle(transport.lower, f"{transport.name}-in", guest_script(sizes)), "inside") as it:
        it.start()
        it.hear()
        it.find_machine()
        for count in sizes.files:
            times: dict[str, float] = {}
            for name in ("cold_ms", "warm_ms", "read_cold_ms", "read_warm_ms"):
                before = it.cpu_s()
                it.say("go")
                found, micros = map(int, it.hear().split())
                assert found == count, (found, count)
                times[name] = micros / 1e3
                if name == "cold_ms":
                    row["cpu_s"][f"scan {count}"] = round(it.cpu_s() - before, 2)
            row["scan"][str(count)] = times
        before = it.cpu_s()
        it.say("go")
        code = it.hear()
        assert code.split()[0] == "0", f"fio: {code}"
        lines = []
        while (line := it.hear()) != "END":
            lines.append(line)
        row["cpu_s"]["fio"] = round(it.cpu_s() - before, 2)
    text = "\n".join(lines)
    row["fio"] = {job["jobname"]: figures(job) for job in json.loads(text[text.index("{") :])["jobs"]}
    return row


def figures(job: dict[str, Any]) -> dict[str, float]:
    side = job["read"] if job["read"]["io_bytes"] else job["write"]
    return {"mb_s": round(side["bw_bytes"] / 1e6, 1), "iops": round(side["iops"], 0)}


@contextlib.contextmanager
def running(scratch: Path, bundle: Path, name: str, count: int) -> Iterator[list[Container]]:
    with contextlib.ExitStack() as stack:
        some = []
        for number in range(count):
            container = stack.enter_context(Container(scratch, bundle, f"{name}{number}"))
            container.start()
            container.find_machine()
            some.append(container)
        yield some


def memory(scratch: Path, image: Image, transport: Transport, count: int) -> dict[str, float]:
    """What ``count`` containers that each read the data cost the host, MiB."""
    host = settings.load()
    template = kernel_template.ensure(host, memo.of_home(host.home), print)
    ending = Path(template.memory).name
    script = "echo ready; read x; cat /data/big >/dev/null; echo done; read x"
    bundle = image.bundle(transport.lower, f"{transport.name}-m{count}", script)
    source = image.erofs() if transport.lower == "erofs" else image.rootfs / "data/big"
    with running(scratch, bundle, f"m{count}-", count) as some:
        for container in some:
            container.hear()
        before = sum(container.memory_mib() for container in some)
        dirtied = sum(container.dirtied_mib(ending) for container in some)
        begun = time.perf_counter()
        cpu = sum(container.cpu_s() for container in some)
        for container in some:
            container.say("go")
        for container in some:
            assert container.hear() == "done"
        row = {
            "containers": count,
            "read_all_s": time.perf_counter() - begun,
            "cpu_s": sum(container.cpu_s() for container in some) - cpu,
            "machines_before": before,
            "machines": sum(container.memory_mib() for container in some),
            "dirtied_by_reading": sum(container.dirtied_mib(ending) for container in some) - dirtied,
            "source_cached": sum(smaps.cached_mib(container.disk()) for container in some)
            if transport.device == "disk"
            else smaps.cached_mib(str(source)),
            "source_mapped": sum(smaps.mapped_mib(container.machine, str(source)) for container in some),
        }
    row["host"] = row["machines"] + max(0.0, row["source_cached"] - row["source_mapped"])
    return {name: round(value, 1) for name, value in row.items()}


def transport_row(scratch: Path, image: Image, transport: Transport, sizes: Sizes) -> dict[str, Any]:
    """One transport, or why there is no row of it."""
    script = f"echo hello; read x || exit 0; scan stat /trees/{sizes.files[0]}"
    hello = image.bundle(transport.lower, f"{transport.name}-hello", script)
    try:
        with Container(scratch, hello, "try") as tried:
            device = tried.device
            tried.start()
            tried.hear()
    except RefusedError as refused:
        return {"refused": str(refused)}
    if device != transport.device:
        return {"refused": f"it came by {device}, not by {transport.device}"}
    print(f"{transport.name} ...", file=sys.stderr)
    measured = [first_ms(scratch, hello, f"first{number}") for number in range(sizes.starts)]
    firsts, scans = zip(*measured, strict=True)
    row: dict[str, Any] = {
        "first_byte_ms": round(statistics.median(firsts), 1),
        "first_byte_min_ms": round(min(firsts), 1),
        "first_scan_ms": round(statistics.median(scans), 1),
        "first_scan_min_ms": round(min(scans), 1),
    }
    row |= inside(scratch, image, transport, sizes)
    row["memory_mib"] = memory(scratch, image, transport, sizes.readers)
    if sizes.many and transport.device == "pmem":
        row["memory_many_mib"] = memory(scratch, image, transport, sizes.many)
    return row


def measure(sizes: Sizes) -> dict[str, Any]:
    """All of it, as plain data."""
    started = time.monotonic()
    host = settings.load()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}",
        "command": " ".join(["bench/rootfs.py", *sys.argv[1:]]),
        "accelerator": kernel_template.ensure(host, memo.of_home(host.home), print).shape.accelerator.value,
        "load_before": os.getloadavg()[0],
        "data_mib": sizes.data_mib,
        "transports": {},
    }
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        scratch = Path(directory)
        result["preparation_ms"] = rootfs_prepare.measure(scratch, sizes)
        for padded in (False, True):
            image = Image(scratch, sizes, padded=padded)
            try:
                for transport in TRANSPORTS:
                    if transport.padded == padded:
                        result["transports"][transport.name] = transport_row(scratch, image, transport, sizes)
            finally:
                image.forget()
    result["private"] = rootfs_prepare.PRIVATE
    result["goals"] = goals(result, str(sizes.files[0]), str(sizes.uppers[-1]))
    result["load_after"] = os.getloadavg()[0]
    result["took_s"] = round(time.monotonic() - started)
    return result


def goals(result: dict[str, Any], files: str, most: str) -> dict[str, float]:
    """What was found where a goal is set; a transport that has no row has no goal either."""
    rows = result["transports"]
    uppers = result["preparation_ms"][rootfs_prepare.UPPER]["xfs"]
    found = {"upper, xfs, median ms": uppers["in a row"]["p50_ms"]}
    found[f"at once: {most} uppers, xfs, ms each"] = uppers[most]["wall_each_ms"]
    if "first_scan_ms" in rows["9p"] and "first_scan_ms" in rows["erofs-pmem"]:
        cold = [rows[name]["first_scan_ms"] for name in ("erofs-pmem", "9p")]
        found[f"scan of {files}, erofs-pmem / 9p"] = round(cold[0] / cold[1], 3)
    return found


def main() -> None:
    """Measure, save, print."""
    result = measure(QUICK if "--quick" in sys.argv[1:] else FULL)
    target = Path("build/bench/rootfs.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    target.with_suffix(".svg").write_text(rootfs_plot.plot(result))
    print(rootfs_plot.table(result, {"upper": GOAL_UPPER_MS, "at once": GOAL_AT_ONCE_MS, "scan": GOAL_SCAN}))
    print(target)


if __name__ == "__main__":
    main()
