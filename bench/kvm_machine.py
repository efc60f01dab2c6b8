"""The machine that counts: QEMU emulates a processor with SVM, a nanosecond of its clock is an instruction, and all that it runs is in its initramfs.

Time jumps while such a machine waits for something outside. This one has nothing outside: no disk, no network, no shared directory. Its seed and its date are
always the same. What `kvm_inside.py` tells comes through its second serial port.
"""

from __future__ import annotations

import json
import os
import platform
import py_compile
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import kvm_bed
import kvm_inside as inside
import psutil
from busybox import make_bundle

from rundctl.engine import settings
from rundctl.guest import kernel
from rundctl.vmm import binary

_HERE = Path(__file__).resolve().parent
_MEMORY_MIB = 3072
_TRIES = 4
_TIMEOUT_S = 1500.0
_LOOK_S = 2.0
_SILENCE_S = 90.0  # of processor time; the longest is the template's build, 20 s on a slow host
_HUNG = "the machine told nothing"
_LIBRARY = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
_NOT_NEEDED = {
    "test",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "turtledemo",
    "tkinter",
    "unittest",
    "__phello__",
}
_PACKAGES = ("rundctl", "pyseccomp.py", "psutil", "jeepney")
_PROGRAMS = (
    "/bin/busybox", "/usr/bin/dash", "/usr/bin/setpriv", "/usr/bin/readlink", "/usr/bin/true", "/usr/sbin/mke2fs", "/usr/sbin/runc",
    "/usr/lib/x86_64-linux-gnu/libseccomp.so.2",
)  # fmt: skip
_ETC = ("passwd", "group", "ld.so.cache", "os-release", "mke2fs.conf")
_TREES = ("/usr/share/qemu", "/usr/share/seabios")  # firmware
_EMPTY = "proc sys dev run tmp root var/tmp dev/shm usr/lib64"
_LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/sh": "dash",
    "usr/sbin/mkfs.ext4": "mke2fs",
}
BUNDLES = {"true": ["/bin/true"], "sleep": ["/bin/sleep", "1000"]}
_ROOT = "/new"
# Fixed addresses: what differs from run to run is the interpreter's hash seed and runc's scheduler alone, and medians do for these.
_KERNEL_WORDS = "console=ttyS0 panic=-1 quiet mitigations=off norandmaps tsc_early_khz=1000000"
_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
set -e  # an init that ends is a panic, and that the machine's end
mount --bind {_ROOT} {_ROOT}; cd {_ROOT}
mount -o move /proc proc; mount -o move /sys sys; mount -o move /dev dev
mkdir -p dev/shm; mount -t tmpfs shm dev/shm; mount -t tmpfs run run
mount -t tracefs tracefs sys/kernel/tracing; mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir sys/fs/cgroup/init; echo 1 > sys/fs/cgroup/init/cgroup.procs
sed 's/[^ ]*/+&/g' sys/fs/cgroup/cgroup.controllers > sys/fs/cgroup/cgroup.subtree_control
stty raw -F dev/ttyS1
mount -o move . /
exec chroot . /bin/sh -c '/usr/bin/python3 -I -S /kvm_inside.py "$@"; echo o > /proc/sysrq-trigger; /bin/busybox sleep 60' sh ARGUMENTS
"""


class MachineError(Exception):
    """A machine that told no figures: why."""


class Root:
    """What is in the initramfs: files and symbolic links with their places, directories as they are needed."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes | Path, int]] = {}
        self._libraries: set[str] = set()

    def directory(self, path: str) -> None:
        """An empty one, and those above it."""
        place = path.strip("/")
        for each in [*reversed(Path(place).parents), Path(place)]:
            if str(each) != ".":
                self._entries.setdefault(str(each), (stat.S_IFDIR | 0o755, b"", 0))

    def link(self, path: str, to: str) -> None:
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, to.encode(), 0)

    def text(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A file that the host has not."""
        self._add(path, stat.S_IFREG | mode, data, 0)

    def file(self, path: str, source: Path) -> None:
        """A copy, with its time: by that the interpreter knows whether a .pyc is of its source."""
        found = source.stat()
        self._add(path, stat.S_IFREG | stat.S_IMODE(found.st_mode), source, int(found.st_mtime))

    def tree(self, path: str, source: Path, without: frozenset[str] | set[str] = frozenset()) -> None:
        """A directory and what is in it, but those of the names in ``without``."""
        self.directory(path)
        for each in sorted(source.iterdir()):
            place = f"{path}/{each.name}"
            if each.is_symlink():
                self.link(place, str(each.readlink()))
            elif each.is_dir():
                if each.name not in without:
                    self.tree(place, each, without)
            else:
                self.file(place, each)

    def program(self, source: str) -> None:
        """A program or a library at its own place, and the libraries that it is linked to."""
        self.file(f"{_ROOT}{os.path.realpath(source)}", Path(source))
        listed = subprocess.run(
            ["ldd", source], capture_output=True, text=True, check=False
        ).stdout  # fails for a static one
        for path in {word for word in listed.split() if word.startswith("/")} - self._libraries:
            self._libraries.add(path)
            self.file(f"{_ROOT}{os.path.realpath(path)}", Path(path))
            named = path if path.startswith("/usr") else f"/usr{path}"
            if named != os.path.realpath(path):
                self.link(f"{_ROOT}{named}", os.path.realpath(path))
        if source != os.path.realpath(source) and source.startswith("/usr"):
            self.link(f"{_ROOT}{source}", os.path.realpath(source))

    def _add(self, path: str, mode: int, data: bytes | Path, mtime: int) -> None:
        self.directory(os.path.dirname(path.strip("/")))
        self._entries.setdefault(path.strip("/"), (mode, data, mtime))

    def write(self, target: Path) -> None:
        """The archive, in the format of buffer-format.rst of the kernel ("newc")."""
        with target.open("wb") as file:
            for number, (name, (mode, data, mtime)) in enumerate(self._entries.items(), 1):
                content = data.read_bytes() if isinstance(data, Path) else data
                file.write(_entry(number, name, mode, mtime, content))
            file.write(_entry(0, "TRAILER!!!", 0, 0, b""))


def _entry(number: int, name: str, mode: int, mtime: int, data: bytes) -> bytes:
    named = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(named), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + named
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _root(scratch: Path, arguments: list[str]) -> Root:
    root = Root()
    for name in ("proc", "sys", "dev"):
        root.directory(name)
    root.text("init", _INIT.replace("ARGUMENTS", " ".join(arguments)).encode(), 0o755)
    root.file("bin/busybox", Path("/bin/busybox"))
    root.tree("modules", kvm_bed.kernel() / "modules")
    for name in _EMPTY.split():
        root.directory(f"{_ROOT}/{name}")
    for name, to in _LINKS.items():
        root.link(f"{_ROOT}/{name}", to)
    for path in _PROGRAMS:
        root.program(path)
    for name in _ETC:
        root.file(f"{_ROOT}/etc/{name}", Path("/etc") / name)
    for path in _TREES:
        root.tree(f"{_ROOT}{path}", Path(path))
    for name in ("kvm_inside.py", "kvm_perf.py"):
        root.file(f"{_ROOT}/{name}", _HERE / name)
    _python(root)
    _package(root, scratch)
    _home(root)
    for name, command in BUNDLES.items():
        root.tree(f"{_ROOT}{inside.BUNDLES}/{name}", make_bundle(scratch / name, *command))
    return root


def _python(root: Root) -> None:
    interpreter = os.path.realpath(sys.executable)
    root.program(interpreter)
    root.link(f"{_ROOT}/usr/bin/python3", interpreter)
    root.tree(f"{_ROOT}{_LIBRARY}", Path(_LIBRARY), _NOT_NEEDED)
    for extension in sorted(Path(_LIBRARY, "lib-dynload").glob("*.so")):
        root.program(str(extension))


def _package(root: Root, scratch: Path) -> None:
    """rundctl as installed, compiled as if it had been installed there: else each module's code objects are renamed when it is loaded."""
    installed = Path(sys.prefix)
    library = f"lib/{Path(_LIBRARY).name}/site-packages"
    root.file(f"{_ROOT}{inside.PREFIX}/pyvenv.cfg", installed / "pyvenv.cfg")
    root.file(f"{_ROOT}{inside.PREFIX}/bin/rundctl", installed / "bin/rundctl")
    root.link(f"{_ROOT}{inside.PREFIX}/bin/python3", "/usr/bin/python3")
    for name in _PACKAGES:
        package = installed / library / name
        for source in sorted(package.rglob("*")) if package.is_dir() else [package]:
            place = f"{inside.PREFIX}/{library}/{source.relative_to(installed / library)}"
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            root.file(f"{_ROOT}{place}", source)
            if source.suffix == ".py":
                compiled = scratch / "compiled" / place.lstrip("/")
                py_compile.compile(str(source), str(compiled), dfile=place, doraise=True)
                cache = f"{os.path.dirname(place)}/__pycache__/{source.stem}.{sys.implementation.cache_tag}.pyc"
                root.file(f"{_ROOT}{cache}", compiled)


def _home(root: Root) -> None:
    home = Path(settings.load().home)
    for kind in ("kernels", "qemu"):
        current = home / kind / "current"
        if not current.exists():
            raise MachineError(f"{current} is missing: make setup-system builds the lean kernel and QEMU")
        root.link(f"{_ROOT}{inside.HOME}/{kind}/current", current.resolve().name)
        root.tree(f"{_ROOT}{inside.HOME}/{kind}/{current.resolve().name}", current.resolve())


def environment() -> dict[str, str]:
    """What decides the figures and is not rundctl's: figures are comparable where all of it is the same."""
    home = settings.load().home
    return {
        "machine's kernel": kvm_bed.kernel().name,
        "machine's QEMU": _first_line([kvm_bed.qemu(), "--version"]),
        "guest's kernel": kernel.Kernel(os.path.realpath(f"{home}/kernels/current")).manifest()["version"],
        "QEMU": binary.manifest(home, os.path.basename(os.path.realpath(f"{home}/qemu/current")))["version"],
        "Python": sys.version,
        "C library": " ".join(platform.libc_ver()),
        "C compiler": _first_line(["gcc", "--version"]),
        "busybox": _first_line(["/bin/busybox"]),
    }


def _first_line(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split("\n")[0]


def reports(plain: int, sampled: int, traced: int) -> list[dict[str, Any]]:
    """What such machines tell of themselves. MachineError with the last words of one that does not come to its end.

    A host's QEMU 7.2 now and then interrupts a guest that has interrupts off, once in some hundreds of its interrupts. The guest then waits
    for its own lock, and the machine for the guest. The lean one has a patch against that. Samples interrupt guests often: they are taken
    in a machine of their own. One that hangs is made again with another seed, and what was told so far holds.
    """
    told: list[dict[str, Any]] = []
    for times in ((plain, 0, traced), (0, sampled, 0)):
        if any(times):
            told += _told(times)
    return told


def _told(times: tuple[int, int, int]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for seed in range(1, _TRIES + 1):
        told, said = _one(times, seed)
        kept += [report for report in told if report]
        if told and "done" in told[-1]:
            return kept
        if _HUNG not in said:
            raise MachineError(f"the counting machine did not come to its end: {told[-1:]}\n{said}")
        kept.append({"hang": seed})
    raise MachineError(f"{_TRIES} counting machines hung, each with another seed\n{said}")


def _one(times: tuple[int, int, int], seed: int) -> tuple[list[dict[str, Any]], str]:
    """A machine's reports, and what was said beside them."""
    kvm_bed.need_room(_MEMORY_MIB)
    place = kvm_bed.scratch_directory()
    with tempfile.TemporaryDirectory(prefix="kvm-machine-", dir=place) as directory:
        scratch = Path(directory)
        _root(scratch, [str(number) for number in times]).write(scratch / "initramfs")
        said = _run(scratch, seed)
        lines = (scratch / "reports").read_text().split("\n")[:-1]  # the last is not whole
        return [json.loads(line) for line in lines], said


def _run(scratch: Path, seed: int) -> str:
    """Run the machine to its end; how that was."""
    argv = [
        "setpriv", "--pdeathsig", "KILL", "--",  # it goes with us, even if we are killed
        kvm_bed.qemu(), "-machine", "q35", "-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", str(_MEMORY_MIB),
        "-accel", "tcg,thread=single,tb-size=1024", "-icount", "shift=0,sleep=off", "-seed", str(seed), "-rtc", "base=2026-01-01,clock=vm",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{scratch}/console", "-serial", f"file:{scratch}/reports",
        "-kernel", f"{kvm_bed.kernel()}/vmlinuz", "-initrd", f"{scratch}/initramfs", "-append", _KERNEL_WORDS,
    ]  # fmt: skip
    with (scratch / "said").open("wb") as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            ended = _watch(process, scratch / "reports")
        finally:
            process.kill()
            process.wait()
    texts = [(scratch / name).read_text(errors="replace")[-4000:] for name in ("said", "console")]
    return "\n".join([ended, *texts])


def _watch(process: subprocess.Popen[bytes], reports: Path) -> str:
    """Wait for its end, as long as it tells something now and then: by its own time, for the host may be busy."""
    told, since_s, until_s = 0, 0.0, time.monotonic() + _TIMEOUT_S
    used = psutil.Process(process.pid)
    while True:
        try:
            return f"QEMU ended with {process.wait(_LOOK_S)}"
        except subprocess.TimeoutExpired:
            now_s = used.cpu_times().user
            size = reports.stat().st_size if reports.exists() else 0
            if size != told:
                told, since_s = size, now_s
            if now_s - since_s > _SILENCE_S:
                return f"{_HUNG} for {_SILENCE_S:g} s of its processor's time"
            if time.monotonic() > until_s:
                return f"{_HUNG} that it is done after {_TIMEOUT_S:g} s"
