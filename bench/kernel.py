"""Guest kernels side by side: size, what they leave of a VM's memory, boot, template, and starts from it.

usage: kernel.py [RUNS [KERNEL ...]]        writes build/bench/kernel.json; without names: Debian's newest and the lean one
"""

from __future__ import annotations

import json
import lzma
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from busybox import RUNDCTL, make_bundle

from rundctl.engine import settings
from rundctl.guest import kernel
from rundctl.vmm.cmdline import cmdline

MEMORY_MIB = 128
HOME = settings.load().home


def chosen() -> list[str]:
    """Debian's newest and the newest lean one, or those that are named."""
    if len(sys.argv) > 2:
        return sys.argv[2:]
    names = kernel.names(HOME)
    kinds = ([name for name in names if ending in name] for ending in ("-amd64", "-lean-"))
    return [found[-1] for found in kinds if found]


def run(bundle: Path, name: str, template: str, environment: dict[str, str]) -> tuple[str, float, dict[str, float]]:
    """Output, wall-clock milliseconds, stages of a run."""
    before = time.perf_counter()
    argv = [RUNDCTL, "run", "--timings", "--template", template, "--bundle", str(bundle), name]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    wall_ms = (time.perf_counter() - before) * 1e3
    return done.stdout, wall_ms, {stage: float(ms) for stage, ms in re.findall(r"(\w+)=([\d.]+)", done.stderr)}


def boot(vmlinux: str, archive: bytes) -> tuple[float, float]:
    """(wall-clock, processor) milliseconds of a QEMU whose kernel starts an init that ends at once, under TCG: the kernel's own cost."""
    with tempfile.TemporaryDirectory() as directory:
        initramfs, console = Path(directory, "initramfs"), Path(directory, "console")
        initramfs.write_bytes(archive)
        # fmt: off
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35,hpet=off", "-accel", "tcg",
            "-cpu", "max", "-m", f"{MEMORY_MIB}M", "-kernel", vmlinux, "-initrd", str(initramfs), "-append", cmdline(verbose=False),
            "-chardev", f"file,id=c,path={console}", "-serial", "chardev:c",
        ]
        # fmt: on
        before = time.perf_counter()
        child = subprocess.Popen(argv)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert "Attempted to kill init" in console.read_text(errors="replace"), console.read_text(errors="replace")[
            -500:
        ]
        return (time.perf_counter() - before) * 1e3, (used.ru_utime + used.ru_stime) * 1e3


def ending_init() -> bytes:
    """An initramfs whose init exits: the kernel panics and, with panic=-1, QEMU ends."""
    from rundctl.guest import cpio

    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "init")
        source = b".globl _start\n_start: mov $60, %eax\nxor %edi, %edi\nsyscall\n"
        argv = ["gcc", "-static", "-nostdlib", "-x", "assembler", "-", "-o", str(program)]
        subprocess.run(argv, input=source, check=True)
        archive = cpio.Archive()
        archive.directory("dev")
        archive.character_device("dev/console", 5, 1)
        archive.file("init", program.read_bytes(), 0o755)
        return archive.close()


class Subject:
    """A kernel, with settings that name it and bundles to run on it."""

    def __init__(self, name: str, directory: Path) -> None:
        config = directory / f"{name}.toml"
        config.write_text(f'kernel = "{name}"\nhome = "{HOME}"\nmemory_mib = {MEMORY_MIB}\n')
        self.name = name
        self.path = Path(HOME, "kernels", name)
        self.environment = {**os.environ, "RUNDCTL_CONFIG": str(config)}
        self.report = make_bundle(directory / f"report-{name}", "/bin/sh", "-c", "cat /proc/meminfo")
        self.quick = make_bundle(directory / f"quick-{name}", "/bin/sh", "-c", "exit 0")
        build = [RUNDCTL, "template", "build"]
        key = subprocess.run(build, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()
        self.template = Path(HOME, "templates", key)
        self.clones: list[tuple[float, dict[str, float]]] = []
        self.colds: list[float] = []
        self.boots: list[tuple[float, float]] = []

    def round(self, archive: bytes) -> None:
        """One clone, one cold start, one bare boot."""
        self.clones.append(run(self.quick, "bench-clone", "on", self.environment)[1:])
        self.colds.append(run(self.quick, "bench-cold", "off", self.environment)[1])
        self.boots.append(boot(f"{self.path}/vmlinux", archive))

    def facts(self) -> dict[str, object]:
        """What the table says of it."""
        image = (self.path / "vmlinux").read_bytes()
        modules = sum(path.stat().st_size for path in (self.path / "modules").iterdir())
        meminfo = dict(re.findall(r"(\w+): +(\d+) kB", run(self.report, "bench-meminfo", "on", self.environment)[0]))
        stages = {
            stage: round(statistics.median(row[stage] for _, row in self.clones), 1) for stage in self.clones[0][1]
        }
        return {
            "vmlinux_mib": round(len(image) / 2**20, 1),
            "modules_mib": round(modules / 2**20, 1),
            "xz_mib": round(len(lzma.compress(image, preset=9)) / 2**20, 1),
            "mem_total_mib": round(int(meminfo["MemTotal"]) / 1024, 1),
            "mem_available_mib": round(int(meminfo["MemAvailable"]) / 1024, 1),
            "template_mib": round(sum(path.stat().st_blocks * 512 for path in self.template.iterdir()) / 2**20, 1),
            "template_memory_mib": round((self.template / "memory").stat().st_blocks * 512 / 2**20, 1),
            "boot_ms": round(statistics.median(wall for wall, _ in self.boots)),
            "boot_cpu_ms": round(statistics.median(used for _, used in self.boots)),
            "cold_run_ms": round(statistics.median(self.colds)),
            "clone_run_ms": round(statistics.median(wall for wall, _ in self.clones)),
            "clone_run_min_ms": round(min(wall for wall, _ in self.clones)),
            "clone_stages_ms": stages,
        }


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as directory:
        subjects = [Subject(name, Path(directory)) for name in chosen()]
        archive = ending_init()
        for _ in range(runs):  # in turn, so that a busy host is busy for all of them
            for subject in subjects:
                subject.round(archive)
        rows = {subject.name: subject.facts() for subject in subjects}
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}",
        "command": " ".join(["bench/kernel.py", *sys.argv[1:]]),
        "memory_mib": MEMORY_MIB,
        "runs": runs,
        "kernels": rows,
    }
    target = Path("build/bench/kernel.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    for fact in next(iter(rows.values())):
        if fact != "clone_stages_ms":
            print(f"{fact:22}" + "".join(f"{row[fact]!s:>16}" for row in rows.values()))
    for name, row in rows.items():
        print(f"{name}: stages {row['clone_stages_ms']}")
    print(f"{result['machine']}, {result['date']}   ({target})")


main()
