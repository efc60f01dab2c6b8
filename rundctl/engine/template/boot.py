"""Boot a guest and bring it to where every container begins, so that `kernel_template.build` can save it. Cold."""

from __future__ import annotations

import mmap
import os
import socket
import time
from contextlib import contextmanager

from rundctl.engine.plan import device_filter
from rundctl.engine.template import clock, store, upper
from rundctl.errors import GuestError, HostError, RundctlError, words
from rundctl.guest import initramfs, ops, wire
from rundctl.host import files, patience, process
from rundctl.vmm import accelerator, qemu
from rundctl.vmm.qmp import Qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from rundctl.guest.kernel import Kernel
    from rundctl.types import Progress
    from rundctl.vmm.shape import MachineShape

LOGS = ("console.log", "qemu.log")
_BOOTS = 3  # until one has a right clock; from the second on it is given what was measured from outside
_ROOM_LEAST = 1 << 20  # bytes
_CONSOLE_LINES = 8  # of a guest's last words in an error message
_DISK = store.UPPERS[0]
_CGROUP = "/sys/fs/cgroup"
_IMAGE_READ_ONLY = "/sys/bus/nd/devices/region0/read_only"  # drivers/nvdimm/region_devs.c
# linux/mount.h
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8


class Recipe:
    """What to boot: the shape, the kernel and the agent that go into it.

    ``tsc_khz``: the time stamp counter's rate, if it is known, else 0. ``allowed_s``: how long the boot may take, 0: as long as any.
    """

    __slots__ = ("agent", "allowed_s", "kernel", "shape", "tsc_khz")

    def __init__(
        self, shape: MachineShape, kernel: Kernel, agent: str, tsc_khz: int = 0, allowed_s: float = 0.0
    ) -> None:
        self.shape = shape
        self.kernel = kernel
        self.agent = agent
        self.tsc_khz = tsc_khz
        self.allowed_s = allowed_s


@contextmanager
def booted(directory: str, recipe: Recipe, progress: Progress) -> Iterator[Guest]:
    """A guest with its memory and its disk in ``directory``, its set-up plan done and its clock compared with ours.

    GuestError with its last words, for all that goes wrong with it within the ``with`` block as well; one with a wrong clock is booted again.
    """
    allowed_s = recipe.allowed_s or patience.seconds(accelerator.BOOT_TIMEOUT_S)
    for boots_left in reversed(range(_BOOTS)):
        _make_disk(f"{directory}/{_DISK}", recipe.shape, progress)
        progress(f"booting the guest ({recipe.shape.accelerator.value})")
        with Guest(directory, recipe) as guest:
            try:
                guest.set_up(allowed_s)
                guest.clock = clock.compare(guest.tell_time, patience.seconds(clock.PATIENCE_S))
                if guest.clock.is_right:
                    yield guest
                    return
            except RundctlError as error:
                kind = clock.ClockError if isinstance(error, clock.ClockError) else GuestError
                raise kind(f"build the template: {error.message}", hint=guest.last_words()) from error
        progress(f"the guest's clock {guest.clock.describe()}: its kernel measured it wrongly")
        recipe = Recipe(recipe.shape, recipe.kernel, recipe.agent, guest.clock.tsc_khz, recipe.allowed_s)
        if not boots_left:
            hint = "a guest with a wrong clock is not saved; is this host too busy, or its own clock wrong?"
            raise clock.ClockError(
                f"build the template: the guest's clock {guest.clock.describe()}, in {_BOOTS} boots", hint=hint
            )


def initramfs_fd(kernel: Kernel, agent: str) -> int:
    """The initramfs in an anonymous file."""
    with open(agent, "rb") as file:
        data = initramfs.build(kernel, file.read())
    fd = os.memfd_create("initramfs", os.MFD_CLOEXEC)
    files.write_all(fd, data)
    return fd


def setup_plan(kernel: Kernel, shape: MachineShape) -> ops.Plan:
    """What every guest has before it meets its container: container 0's plan, which the agent itself runs after its boot."""
    controllers = " ".join(f"+{name}" for name in kernel.manifest()["controllers"])
    made = [
        *(upper.setup_ops() if shape.upper_mib else ()),
        # What would be written to an image goes nowhere, and QEMU's device, whose queue is in no saved state, never says that it was flushed.
        *((ops.write(_IMAGE_READ_ONLY, "1"),) if shape.root_device == "pmem" else ()),
        ops.mount("cgroup2", _CGROUP, "cgroup2", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC),
        ops.write(f"{_CGROUP}/cgroup.subtree_control", controllers),
        # What containers without rules of their own have. Its verification is a quarter of an emulated container's plan.
        ops.device_filter_ready(device_filter.compile_filter(())),
        # Errors and worse still reach the console; the boot messages were for the builder.
        ops.write("/proc/sys/kernel/printk", "4"),
    ]
    return ops.Plan(0, tuple(made))


def _make_disk(path: str, shape: MachineShape, progress: Progress) -> None:
    if shape.upper_mib:
        progress("formatting the upper layer")
        upper.format_image(path, shape.upper_mib)
    else:  # each clone has a disk of its own there, of this size
        with open(path, "wb") as file:
            file.truncate(shape.root_mib << 20)


def _try_to_map(fd: int, directory: str) -> None:
    """What QEMU does with a guest's memory. HostError in plain words where that cannot be: it has only an error number for it."""
    try:
        mmap.mmap(fd, mmap.PAGESIZE).close()
    except OSError as error:
        text = f"the file system of {directory} does not map files that are written to (mmap: {words(error)})"
        raise HostError(text, hint="RUNDCTL_HOME belongs on ext4, XFS, btrfs or tmpfs") from error


class Guest:
    """A booting QEMU with its two channels; a ``with`` block kills it, and so does the end of this process."""

    __slots__ = (
        "_channel",
        "_directory",
        "_fds",
        "_plan",
        "_process",
        "_qmp",
        "_recipe",
        "_sockets",
        "_state",
        "_timeout_s",
        "boot_s",
        "clock",
    )

    def __init__(self, directory: str, recipe: Recipe) -> None:
        self._directory = directory
        self._recipe = recipe
        self._plan = setup_plan(recipe.kernel, recipe.shape)
        self._fds: list[int] = []
        self.clock = clock.Figures(0, 0, 0)  # until it is compared
        self.boot_s = 0.0  # until it has booted
        self._sockets = [*socket.socketpair(), *socket.socketpair()]

    def __enter__(self) -> Self:
        agent, agent_far, monitor, monitor_far = self._sockets
        try:
            for name in LOGS:
                files.unlink(f"{self._directory}/{name}")
            log = self._open("qemu.log", os.O_WRONLY | os.O_CREAT)
            wiring = self._wiring(agent_far.fileno(), monitor_far.fileno())
            argv, keep = qemu.template_argv(self._recipe.shape, wiring, self._recipe.tsc_khz)
            null = self._keep(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            self._state = self._open("state", os.O_WRONLY | os.O_CREAT)
            self._process = process.Child(argv, keep, (null, log, log))
        except BaseException:
            self._close(self._sockets)
            raise
        self._close([agent_far, monitor_far])
        self._channel = wire.Channel(agent)
        self._qmp = Qmp(monitor)
        return self

    def __exit__(self, *details: object) -> None:
        self._process.__exit__(*details)
        self._close(self._sockets)

    def set_up(self, timeout_s: float) -> None:
        """Boot, and run the set-up plan. It is sent at once: the agent reads it when it is there.

        GuestError if that takes longer, or if the guest says nothing on its console for so long that nothing more is to be expected.
        """
        began_s = time.monotonic()
        self._timeout_s = patience.seconds(accelerator.BOOT_TIMEOUT_S)  # of all that comes later
        self._channel.hello(wire.ROLE_SHIM)
        result = self._await_boot(self._channel.post(wire.PLAN, self._plan.encode()), began_s + timeout_s)
        self.boot_s = time.monotonic() - began_s
        if result.error:
            raise GuestError(f"{self._plan.ops[result.index].describe()}: {result.describe()}")

    def _await_boot(self, tag: int, deadline: float) -> wire.Result:
        """A guest that makes progress is waited for: a slow host is no reason against what it boots with."""
        said = 0
        while True:
            now = time.monotonic()
            allowed_s = min(patience.seconds(accelerator.SILENCE_TIMEOUT_S), deadline - now)
            try:
                return self._channel.wait(tag, allowed_s)
            except wire.LateError as error:
                before, said = said, os.stat(f"{self._directory}/console.log").st_size
                if time.monotonic() >= deadline:
                    raise wire.LateError("the guest did not boot in time") from error
                if said == before:
                    raise wire.LateError(f"the guest said nothing more for {allowed_s:.0f} s") from error

    def tell_time(self) -> wire.Result:
        """Its clock, for `clock.compare`."""
        return self._ask(wire.CLOCK)

    def settle(self) -> None:
        """Nothing is left to be written, or to be measured, and nothing in its memory that no clone needs."""
        settled = self._ask(wire.SETTLE)
        if settled.error:
            raise GuestError(f"settle the guest: {settled.describe()}")

    def save(self) -> None:
        """Stop and write the device state; the memory is in its file already."""
        self._qmp.snapshot(self._state)
        self._qmp.quit()
        self._process.wait()

    def last_words(self) -> str:
        """The end of QEMU's and of the guest's output."""
        text = self._read("qemu.log") + b"\n" + self._read("console.log")
        lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
        return " | ".join([*[line for line in lines if line][-_CONSOLE_LINES:], *self._advice()])

    def _advice(self) -> Iterator[str]:
        """What QEMU does not say: its memory is a file, and where that finds no room it is killed by SIGBUS."""
        room = os.statvfs(self._directory)
        if room.f_bavail * room.f_frsize < _ROOM_LEAST:
            yield f"no space left in {os.path.dirname(self._directory)}"

    def _ask(self, kind: int, payload: bytes = b"") -> wire.Result:
        return self._channel.wait(self._channel.post(kind, payload), self._timeout_s)

    def _wiring(self, agent: int, monitor: int) -> qemu.Wiring:
        memory = f"{self._directory}/memory"
        with open(memory, "wb+") as file:
            file.truncate(self._recipe.shape.memory_mib << 20)
            _try_to_map(file.fileno(), self._directory)
        return qemu.Wiring(
            agent=agent,
            qmp=monitor,
            disk=self._open(_DISK, os.O_RDWR),
            empty=f"{self._directory}/empty",
            memory_path=memory,
            kernel=self._keep(os.open(self._recipe.kernel.vmlinux, os.O_RDONLY | os.O_CLOEXEC)),
            initrd=self._keep(initramfs_fd(self._recipe.kernel, self._recipe.agent)),
            image=self._placeholder(),
            console=self._open("console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        )

    def _placeholder(self) -> int:
        """Zeroes of the size that the clones' images have; -1 where there is no image."""
        if self._recipe.shape.root_device not in qemu.IMAGE_PATHS:
            return -1
        fd = self._keep(os.memfd_create("lower", os.MFD_CLOEXEC))
        os.ftruncate(fd, self._recipe.shape.root_mib << 20)
        return fd

    def _open(self, name: str, flags: int) -> int:
        return self._keep(os.open(f"{self._directory}/{name}", flags | os.O_CLOEXEC, 0o600))

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _read(self, name: str) -> bytes:
        try:
            with open(f"{self._directory}/{name}", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def _close(self, sockets: list[socket.socket]) -> None:
        for each in sockets:
            each.close()
        if sockets is self._sockets:
            for fd in self._fds:
                os.close(fd)
            self._fds.clear()
