"""The paper's comparison of root file systems, on this machine: each transport of the shared layer, and the private upper.

usage: rootfs.py [--quick]     writes build/bench/rootfs.json and build/bench/rootfs.svg
A transport is tried by a `create` that asks for it; one that is refused is left out, and its row says why.
    first byte    wall-clock of `create` and `start` until the container's first output is here
    scan, read    1,400 and 10,000 files of 100 bytes, in the guest's own time: lstat of each ("cold": the first of this VM; "warm": once more), and their data
    fio           one pass in the guest; reads through its page cache, of a file that it has not read yet (the host has); writes to the upper, O_DIRECT
    host CPU      of QEMU, while the guest did it
    memory        of the host, while containers hold 100 MB that each has read: PSS of all QEMUs, and page cache of the source that none of them maps
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import select
import shutil
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
import smaps
import upper

from rundctl.engine import kernel_template, lower_images, settings
from rundctl.engine.lower_images import Content

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNDCTL = os.environ.get("RUNDCTL", f"{sys.prefix}/bin/rundctl")
GOAL_SCAN = 0.1  # of 9p's time
GOAL_UPPER_MS = 0.1  # median on XFS
_TIMEOUT_S = 120.0
_MIB = 1 << 20
_LIMIT_MIB = 320  # of a container's memory: fio's libraries do not load in a VM of 128 MiB
_PADDING_MIB = (
    600  # a hole: an image of more than 512 MiB has a device that is too large for pmem in such a VM (`lower.erofs`)
)
_JOBS = {
    # name of fio's job: what it does, block size, bytes of it (quick: a quarter)
    "seq read": ("read", "1m", 64 * _MIB),
    "rand read": ("randread", "4k", 16 * _MIB),
    "seq write": ("write", "1m", 64 * _MIB),
    "rand write": ("randwrite", "4k", 8 * _MIB),
}


@dataclass(frozen=True)
class Transport:
    """A row: what the annotation asks for, and the device that must come of it."""

    name: str
    lower: str
    device: str
    padded: bool = False


TRANSPORTS = (
    Transport("9p", "9p", "9p"),
    Transport("blk", "blk", "blk"),
    Transport("virtiofs", "virtiofs", "virtiofs"),
    Transport("erofs-pmem", "erofs", "pmem"),
    Transport("erofs-blk", "erofs", "blk", padded=True),
)


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    starts: int  # of which the median is the time to the first byte
    files: tuple[int, ...]  # of the trees that are scanned
    data_mib: int  # that each of `readers` containers reads
    readers: int
    many: int  # containers on erofs-pmem, for issue "one page cache"
    divisor: int  # of fio's bytes
    uppers: tuple[int, ...]  # prepared at once
    rounds: int


FULL = Sizes(7, (1400, 10_000), 100, 50, 100, 1, (1, 50, 200), 5)
QUICK = Sizes(2, (1400,), 30, 4, 0, 4, (1, 10), 2)


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
        (child,) = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
        self.machine = int(child)

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
        """CPU time of its QEMU so far, in ticks of 10 ms (proc(5), stat)."""
        fields = Path(f"/proc/{self.machine}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _call(self, *arguments: str) -> str:
        argv = [RUNDCTL, "--root", str(self._root), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


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
                file.truncate(_PADDING_MIB * _MIB)
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
                file.write(os.urandom(_MIB))
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
        config["linux"].setdefault("resources", {})["memory"] = {"limit": _LIMIT_MIB * _MIB}
        config["root"] = {"path": str(self.rootfs), "readonly": False}
        config["annotations"] = {"io.rundctl.rootfs.lower": lower, "io.rundctl.rootfs.immutable": "bench"}
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    def erofs(self) -> Path | None:
        """The image that was made of it."""
        found = lower_images.find(settings.load().home, Content.of_directory(str(self.rootfs), "bench"))
        return Path(found.path) if found else None

    def forget(self) -> None:
        """Remove that; nobody else's content it can be."""
        image = self.erofs()
        if image is not None:
            shutil.rmtree(image.parent)


def first_byte_ms(scratch: Path, bundle: Path, name: str) -> float:
    begun = time.perf_counter()
    with Container(scratch, bundle, name) as container:
        container.start()
        container.hear()
        return (time.perf_counter() - begun) * 1e3


def job_file(sizes: Sizes) -> str:
    """fio's jobs, one after the other (fio(1))."""
    lines = ["[global]", "ioengine=psync", "thread=1", "invalidate=1", "stonewall"]
    for name, (kind, block, size) in _JOBS.items():
        lines += [f"[{name}]", f"rw={kind}", f"bs={block}", f"io_size={size // sizes.divisor}"]
        if "read" in kind:
            lines += ["filename=/data/big", "readonly=1", f"size={min(64, sizes.data_mib)}m"]
        else:
            lines += ["filename=/out/file", "direct=1", f"size={size // sizes.divisor}"]
    return "\n".join(line for line in lines if line != "readonly=1")


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
    template = kernel_template.ensure(settings.load(), print)
    ending = Path(template.memory).name
    script = "echo ready; read x; cat /data/big >/dev/null; echo done; read x"
    bundle = image.bundle(transport.lower, f"{transport.name}-m{count}", script)
    source = image.erofs() if transport.lower == "erofs" else image.rootfs / "data/big"
    assert source is not None
    with running(scratch, bundle, f"m{count}-", count) as some:
        for container in some:
            container.hear()
        before = sum(smaps.pss_kib(container.machine) for container in some) / 1024
        dirtied = sum(smaps.breakdown_kib(c.machine, ending)["guest, dirtied"] for c in some) / 1024
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
            "pss_before": before,
            "pss": sum(smaps.pss_kib(container.machine) for container in some) / 1024,
            "dirtied_by_reading": sum(smaps.breakdown_kib(c.machine, ending)["guest, dirtied"] for c in some) / 1024
            - dirtied,
            "source_cached": smaps.cached_mib(str(source)),
            "source_mapped": sum(smaps.mapped_mib(container.machine, str(source)) for container in some),
        }
    row["host"] = row["pss"] + max(0.0, row["source_cached"] - row["source_mapped"])
    return {name: round(value, 1) for name, value in row.items()}


def transport_row(scratch: Path, image: Image, transport: Transport, sizes: Sizes) -> dict[str, Any]:
    """One transport, or why there is no row of it."""
    hello = image.bundle(transport.lower, f"{transport.name}-hello", "echo hello")
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
    firsts = [first_byte_ms(scratch, hello, f"first{number}") for number in range(sizes.starts)]
    row: dict[str, Any] = {
        "first_byte_ms": round(statistics.median(firsts), 1),
        "first_byte_min_ms": round(min(firsts), 1),
    }
    row |= inside(scratch, image, transport, sizes)
    row["memory_mib"] = memory(scratch, image, transport, sizes.readers)
    if sizes.many and transport.device == "pmem":
        row["memory_many_mib"] = memory(scratch, image, transport, sizes.many)
    return row


def preparation(scratch: Path, sizes: Sizes) -> dict[str, Any]:
    """The upper alone, as `upper.py` measures it: the same for every transport that has one."""
    template = kernel_template.ensure(settings.load(), print)
    result: dict[str, Any] = {}
    for kind in upper.KINDS:
        with upper.disk(kind, scratch) as point:
            made = upper.put(template.upper, point / "upper")
            taken = upper.in_a_row(made, point)
            result[kind] = {"in a row": upper.row([sum(taken)], taken, len(taken))}
            for count in sizes.uppers:
                rounds = [upper.at_once(made, point, count) for _ in range(sizes.rounds)]
                times = [time_ms for _, each in rounds for time_ms in each]
                result[kind][str(count)] = upper.row([wall for wall, _ in rounds], times, count)
    return result


def measure(sizes: Sizes) -> dict[str, Any]:
    """All of it, as plain data."""
    started = time.monotonic()
    host = settings.load()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}",
        "command": " ".join(["bench/rootfs.py", *sys.argv[1:]]),
        "accelerator": kernel_template.ensure(host, print).shape.accelerator.value,
        "load_before": os.getloadavg()[0],
        "data_mib": sizes.data_mib,
        "transports": {},
    }
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        scratch = Path(directory)
        result["upper_ms"] = preparation(scratch, sizes)
        for padded in (False, True):
            image = Image(scratch, sizes, padded=padded)
            try:
                for transport in TRANSPORTS:
                    if transport.padded == padded:
                        result["transports"][transport.name] = transport_row(scratch, image, transport, sizes)
            finally:
                image.forget()
    result["goals"] = goals(result, str(sizes.files[0]))
    result["load_after"] = os.getloadavg()[0]
    result["took_s"] = round(time.monotonic() - started)
    return result


def goals(result: dict[str, Any], files: str) -> dict[str, float]:
    """What was found where a goal is set; a transport that has no row has no goal either."""
    rows = result["transports"]
    found = {"upper, xfs, median ms": result["upper_ms"]["xfs"]["in a row"]["p50_ms"]}
    if "scan" in rows["9p"] and "scan" in rows["erofs-pmem"]:
        cold = [rows[name]["scan"][files]["cold_ms"] for name in ("erofs-pmem", "9p")]
        found[f"scan of {files}, erofs-pmem / 9p"] = round(cold[0] / cold[1], 3)
    return found


def main() -> None:
    """Measure, save, print."""
    result = measure(QUICK if "--quick" in sys.argv[1:] else FULL)
    target = Path("build/bench/rootfs.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    target.with_suffix(".svg").write_text(rootfs_plot.plot(result))
    print(rootfs_plot.table(result, {"upper": GOAL_UPPER_MS, "scan": GOAL_SCAN}))
    print(target)


if __name__ == "__main__":
    main()
