"""A machine in which KVM works, on any host: QEMU emulates an AMD processor with SVM and nested paging, and Debian's kernel in it loads ``kvm_amd``.

    code, printed = kvm_bed.run(["sh", "-c", "ls /dev/kvm"], results)          # the host's / is there; what is written stays in the machine's memory
    kvm_bed.run(command, results, machine=kvm_bed.Machine(cpu="Opteron_G3"))   # another processor
    with kvm_bed.Bed(command, results, kvm_bed.Machine()) as bed: ...          # bed.pid is QEMU's, bed.wait(timeout_s) its end
    python tests/kvm_bed.py COMMAND...                                         # by hand

In the machine: ``results`` is `RESULTS`, and what is written there stays. `DISK` is an XFS of its own, `HOME` on it leads to the host's guest kernels and QEMUs
and is ``RUNDCTL_HOME``; /var/tmp is there, too. Control groups are version 2, all controllers. `hold` stops the whole machine for a while, as a host that sleeps.

One processor: with two of QEMU 7.2 the kernel in the machine sometimes loses timer interrupts and locks up. Nothing is installed: the kernel is Debian's package,
unpacked below the host's ``RUNDCTL_HOME``, once. The root comes by 9p and stays in the machine's page cache: the first pytest in there has 1.7 s of system time more
than the second, so a disk image, which would have to be made first, gains nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rundctl.engine import settings
from rundctl.errors import RundctlError
from rundctl.guest import kernel_fetch, modules
from rundctl.guest.cpio import Archive
from rundctl.host import apt, files
from rundctl.vmm import binary

if TYPE_CHECKING:
    from typing import Self

RESULTS = "/results"
DISK = "/bed"
HOME = f"{DISK}/home"
PATIENCE = 10  # how many times longer than usual all takes in there (settings: patience)
_BUSYBOX = "/bin/busybox"
_MODULES = "virtio_pci virtio_console virtio_rng virtio_blk 9p 9pnet_virtio overlay kvm_amd msr tun loop ext4 xfs erofs squashfs fuse virtiofs"
_SPARE_MIB = 512  # of the host's memory: QEMU's own, translated code among it
_TOLD = ("printed", "code")  # in the results
_INIT = Path(__file__).with_suffix(".sh")
_DIRECTORIES = "bin modules proc sys dev host overlay new"
# Of the kernel. On a busy host the machine's timers are late: it must not take the first for missing ("MP-BIOS bug"), nor guess how fast its processor's
# counter is (it went four times too fast).
_WORDS = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tsc=reliable tsc_early_khz={}"
_RDTSC = "0f31 48c1e220 4809d0 c3"  # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_MEASURED_S = 0.1
_BARE = ("-nodefaults", "-no-user-config", "-display", "none")


class BedError(Exception):
    """A machine that did not come up, or not to its command's end: what it said, and in the last line what happened."""


@dataclass(frozen=True)
class Machine:
    """What the machine is. The host must have ``memory_mib`` free, and room for the disk where temporary files are (TMPDIR, else /var/tmp).

    disk       an image with the XFS of an earlier machine (`make_disk`), to go on with; "": a new one of ``disk_mib``
    disks      further raw images: /dev/vdb ...
    arguments  further words for QEMU
    """

    cpu: str = "EPYC"
    memory_mib: int = 4096
    processors: int = 1
    disk: str = ""
    disk_mib: int = 4096
    disks: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


def qemu() -> str:
    """The program that is the machine: the lean QEMU, whose SVM delivers an injected interrupt once (rundctl/vmm/patches/7.2/0009); else the host's."""
    home = settings.load().home
    lean = binary.current(home)
    return binary.program(home, lean) if lean else binary.NAME


def missing(program: str = "", features: str = "+svm,+npt") -> str:
    """Why there can be no such machine on this host; "" if there can."""
    wanted = program or qemu()
    path = shutil.which(wanted)
    if path is None:
        return f"{wanted} is missing: apt-get install qemu-system-x86"
    argv = [path, "-machine", "q35", "-accel", "tcg", "-m", "32", "-cpu", f"qemu64,{features},enforce", *_BARE]
    done = subprocess.run(
        [*argv, "-S", "-monitor", "stdio"], input="quit\n", capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        return f"{path} does not emulate a processor with {features}: {' '.join(done.stderr.split())}"
    return ""


def kernel() -> Path:
    """The directory of the machine's kernel: ``vmlinuz``, and ``modules/`` in the order in which they are loaded. Fetched if it is not there.

    RundctlError if it cannot be: apt's own words.
    """
    # By the list of modules: another checkout may have another one, and a machine that runs.
    store = Path(settings.load().home) / "kvm-bed" / f"{zlib.crc32(_MODULES.encode()):08x}"
    store.mkdir(parents=True, exist_ok=True)
    with files.Lock(str(store / ".lock")):
        there = sorted(store.glob("[!.]*"))
        if there:
            return there[-1]
        return _fetch(store)


def _fetch(store: Path) -> Path:
    package = kernel_fetch._newest_package()
    version = package.removeprefix("linux-image-")
    scratch = store / ".fetch"
    shutil.rmtree(scratch, ignore_errors=True)
    made = scratch / version
    (made / "modules").mkdir(parents=True)
    try:
        root = apt.unpack(package, str(scratch))
        shutil.copyfile(f"{root}/boot/vmlinuz-{version}", made / "vmlinuz")
        found = modules.resolve(kernel_fetch._modules_directory(root, version), tuple(_MODULES.split()))
        for number, module in enumerate(found):
            (made / "modules" / f"{number:03}-{module.name}.ko").write_bytes(module.data)
        made.rename(store / version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return store / version


def make_disk(path: str | Path, mib: int) -> None:
    """A new image with an XFS, for ``Machine(disk=...)``. All its room is taken at once: BedError if there is none."""
    with open(path, "wb") as file:
        _format(file.fileno(), mib, str(path))


def _format(fd: int, mib: int, name: str) -> None:
    try:
        os.posix_fallocate(fd, 0, mib << 20)
    except OSError as error:
        raise BedError(
            f"a disk of {mib} MiB for the machine: {name}: {error.strerror} (TMPDIR: another place)"
        ) from error
    argv = ["mkfs.xfs", "-q", "-K", f"/proc/self/fd/{fd}"]
    done = subprocess.run(argv, capture_output=True, text=True, pass_fds=[fd], check=False)
    if done.returncode:
        raise BedError(f"{name}: mkfs.xfs: {done.stderr.strip()}")


def hold(seconds: float) -> None:
    """In the machine: stop all of it for so long, from outside. Returns when it goes on."""
    port = next(
        each for each in Path("/sys/class/virtio-ports").iterdir() if (each / "name").read_text().strip() == "bed"
    )
    with open(f"/dev/{port.name}", "r+b", buffering=0) as channel:
        channel.write(f"{seconds}\n".encode())
        if channel.read(1) != b".":
            raise BedError("the host did not answer")


class Bed:
    """A running machine; a ``with`` block ends it, and so does the end of the thread that began it."""

    def __init__(
        self, command: list[str], results: Path, machine: Machine = Machine(), environment: dict[str, str] | None = None
    ) -> None:
        self._command = command
        self._results = results
        self._machine = machine
        self._environment = environment or {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._scratch = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-bed-", dir=scratch_directory()))
            )
            need_room(self._machine.memory_mib)
            for name in _TOLD:
                files.unlink(str(self._results / name))  # of a machine before this one
            here, there = socket.socketpair()
            stack.enter_context(here)
            with there, (self._scratch / "qemu").open("wb") as said:
                drives = self._drives(stack)
                self._process = subprocess.Popen(
                    self._argv(there.fileno(), drives),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=[there.fileno(), *drives],
                )
            stack.callback(self._end)
            threading.Thread(target=self._serve, args=(here,), daemon=True).start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """QEMU's."""
        return self._process.pid

    def wait(self, timeout_s: float) -> tuple[int, str]:
        """The command's exit code and what it printed. BedError if the machine does not come to that."""
        try:
            ended = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BedError(f"{self.said()}\nthe machine is not done after {timeout_s:g} s") from None
        code = self._results / "code"
        if not code.exists():
            raise BedError(f"{self.said()}\nthe machine did not come to its command's end: {_words(ended)}")
        return int(code.read_text()), self._read(self._results / "printed")

    def said(self) -> str:
        """All that the command, the machine's kernel and QEMU have printed so far."""
        parts = [self._results / "printed", self._scratch / "console", self._scratch / "qemu"]
        return "\n".join(text for text in map(self._read, parts) if text.strip())

    def _read(self, path: Path) -> str:
        return path.read_text(errors="replace") if path.exists() else ""

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _serve(self, channel: socket.socket) -> None:
        """`hold`, on this side."""
        with channel.makefile("rb") as lines:
            for line in lines:
                self._process.send_signal(signal.SIGSTOP)
                time.sleep(float(line))
                self._process.send_signal(signal.SIGCONT)
                with suppress(OSError):  # the machine was ended meanwhile
                    channel.sendall(b".")

    def _drives(self, stack: ExitStack) -> list[int]:
        """Descriptors of its disks. That of its own has no name, so it is gone with the machine, whatever ends this process."""
        machine = self._machine
        opened = []
        if not machine.disk:
            opened.append(files.nameless(str(self._scratch)))
            stack.callback(os.close, opened[0])
            _format(opened[0], machine.disk_mib, str(self._scratch))
        for path in filter(None, (machine.disk, *machine.disks)):
            opened.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            stack.callback(os.close, opened[-1])
        return opened

    def _argv(self, port: int, drives: list[int]) -> list[str]:
        machine, found = self._machine, kernel()
        (self._scratch / "initramfs").write_bytes(self._initramfs(found))
        return [
            "setpriv", "--pdeathsig", "KILL", qemu(), "-machine", "q35", "-cpu", f"{machine.cpu},+svm,+npt", "-smp", str(machine.processors), "-m", str(machine.memory_mib),
            "-accel", "tcg,tb-size=1024",
            *_BARE, "-serial", f"file:{self._scratch}/console", "-no-reboot",
            "-kernel", f"{found}/vmlinuz", "-initrd", f"{self._scratch}/initramfs",
            "-append", _WORDS.format(_counter_khz()),
            "-device", "virtio-rng-pci",
            "-chardev", f"socket,id=bed,fd={port}", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=bed,name=bed",
            *_export("host", "/", "readonly=on"),
            *_export("results", str(self._results), "readonly=off"),
            *(word for fd in drives for word in _drive(fd)),
            *machine.arguments,
        ]  # fmt: skip

    def _initramfs(self, found: Path) -> bytes:
        given = {
            "results": RESULTS,
            "disk": DISK,
            "home": HOME,
            "host_home": settings.load().home,
            "patience": str(PATIENCE),
        }
        environment = {
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "RUNDCTL_HOME": HOME,
            "RUNDCTL_PATIENCE": str(PATIENCE),
            "TMPDIR": "/var/tmp",
            **self._environment,
        }
        exports = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
        archive = Archive()
        for directory in _DIRECTORIES.split():
            archive.directory(directory)
        archive.character_device("dev/console", 5, 1)
        archive.file("bin/busybox", Path(_BUSYBOX).read_bytes(), 0o755)
        archive.file("init", _INIT.read_bytes(), 0o755)
        archive.file("settings", "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items()).encode())
        archive.file("command", ("".join(exports) + shlex.join(["exec", *self._command]) + "\n").encode())
        for module in sorted((found / "modules").iterdir()):
            archive.file(f"modules/{module.name}", module.read_bytes())
        return archive.close()


def _counter_khz() -> int:
    """How fast the host's time stamp counter is: the emulator hands it on."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(bytes.fromhex(_RDTSC))
        code = ctypes.c_char.from_buffer(page)
        counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))

        def now() -> tuple[int, int, int]:
            """Between two readings of the clock: that of many where they were closest."""
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            ticks = counter()
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            return after - before, before, ticks

        _, began, first = min(now() for _ in range(50))
        time.sleep(_MEASURED_S)
        _, ended, last = min(now() for _ in range(50))
        del code  # the page is not closed while it is borrowed
    return round((last - first) * 1e6 / (ended - began))


def _export(tag: str, path: str, access: str) -> list[str]:
    options = f"local,id={tag},path={_escaped(path)},security_model=none,multidevs=remap,{access}"
    return ["-fsdev", options, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _drive(fd: int) -> list[str]:
    options = f"if=none,id=disk{fd},file=/proc/self/fd/{fd},format=raw,cache=unsafe,discard=unmap,werror=report"
    return ["-drive", options, "-device", f"virtio-blk-pci,drive=disk{fd}"]


def _escaped(path: str) -> str:
    return path.replace(",", ",,")


def _words(ended: int) -> str:
    if ended < 0:
        return f"QEMU was killed by signal {-ended} ({signal.Signals(-ended).name})"
    return f"QEMU ended with {ended}: what it or the machine's kernel said is above"


def scratch_directory() -> str:
    """Where disks are: /tmp may be the host's memory."""
    return os.environ.get("TMPDIR", "/var/tmp")


def need_room(memory_mib: int) -> None:
    """BedError where the host has no memory for such a machine: the kernel would kill QEMU, or another, in the middle."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available_mib = int(lines["MemAvailable"].split()[0]) >> 10
    if available_mib < memory_mib + _SPARE_MIB:
        raise BedError(
            f"the machine needs {memory_mib} MiB of memory and {_SPARE_MIB} MiB beside it: this host has {available_mib} MiB"
        )


def run(
    command: list[str],
    results: Path,
    *,
    environment: dict[str, str] | None = None,
    machine: Machine = Machine(),
    timeout_s: float = 900.0,
) -> tuple[int, str]:
    """Run a command in such a machine, to its end: its exit code, and what it printed. BedError if it does not come to that."""
    with Bed(command, results, machine, environment) as bed:
        return bed.wait(timeout_s)


def _main(command: list[str]) -> int:
    """By hand: run a command. Without one, only see to the kernel (tools/setup)."""
    with tempfile.TemporaryDirectory(dir=scratch_directory()) as results:
        try:
            code, said = run(command, Path(results)) if command else (0, f"{kernel()}\n")
        except (BedError, RundctlError) as error:
            code, said = 1, f"{error}\n"
    sys.stdout.write(said)
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
