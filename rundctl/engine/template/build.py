"""Boot a guest, bring it to where every container begins, and save it. Cold: never on the path of a start that finds its template."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

from rundctl.engine.plan import device_filter
from rundctl.engine.template import store, upper
from rundctl.errors import GuestError, HostError, RundctlError, words
from rundctl.guest import initramfs, ops, wire
from rundctl.host import files, process
from rundctl.host import manifest as manifests
from rundctl.vmm import accelerator, qemu
from rundctl.vmm.qmp import Qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from rundctl.guest.kernel import Kernel
    from rundctl.types import Progress, TemplateKey
    from rundctl.vmm.shape import MachineShape


_CONSOLE_LINES = 8  # of a guest's last words in an error message
_DISK = store.UPPERS[0]
_CGROUP = "/sys/fs/cgroup"
# linux/mount.h
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8


class Recipe:
    """What to build: the shape, the kernel and the agent that go into it, why this accelerator."""

    __slots__ = ("agent", "kernel", "reason", "shape")

    def __init__(self, shape: MachineShape, kernel: Kernel, agent: str, reason: str) -> None:
        self.shape = shape
        self.kernel = kernel
        self.agent = agent
        self.reason = reason


def build(home: str, key: TemplateKey, recipe: Recipe, progress: Progress) -> None:
    """Build a template and move it into place; the caller holds the lock on all templates.

    GuestError with the guest's last words, HostError for what the host refuses; nothing is left then.
    """
    root = store.root(home)
    store.sweep(home)
    directory = f"{root}/.{key}.tmp"
    store.make_directories(directory)
    try:
        started = time.monotonic()
        _boot_and_save(directory, recipe, progress)
        _finish(directory, key, recipe, time.monotonic() - started)
        shutil.rmtree(f"{root}/{key}", ignore_errors=True)
        os.rename(directory, f"{root}/{key}")
        files.sync_directory(root)
    except OSError as error:
        raise HostError(f"build the template in {root}: {words(error)}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


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
        ops.mount("cgroup2", _CGROUP, "cgroup2", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC),
        ops.write(f"{_CGROUP}/cgroup.subtree_control", controllers),
        # What containers without rules of their own have. Its verification is a quarter of an emulated container's plan.
        ops.device_filter_ready(device_filter.compile_filter(())),
        # Errors and worse still reach the console; the boot messages were for the builder.
        ops.write("/proc/sys/kernel/printk", "4"),
    ]
    return ops.Plan(0, tuple(made))


def _boot_and_save(directory: str, recipe: Recipe, progress: Progress) -> None:
    _make_disk(f"{directory}/{_DISK}", recipe.shape, progress)
    progress(f"booting the guest ({recipe.shape.accelerator.value})")
    with _Guest(directory, recipe) as guest:
        try:
            guest.set_up(accelerator.BOOT_DEADLINE_S[recipe.shape.accelerator])
            progress("saving the guest")
            guest.save()
        except RundctlError as error:
            raise GuestError(f"build the template: {error.message}", hint=guest.last_words()) from error


def _make_disk(path: str, shape: MachineShape, progress: Progress) -> None:
    if shape.upper_mib:
        progress("formatting the upper layer")
        upper.format_image(path, shape.upper_mib)
    else:  # each clone has a disk of its own there, of this size
        with open(path, "wb") as file:
            file.truncate(shape.root_mib << 20)


class _Guest:
    """A booting QEMU with its two channels; a ``with`` block kills it, and so does the end of this process."""

    __slots__ = ("_channel", "_directory", "_fds", "_plan", "_process", "_qmp", "_recipe", "_sockets", "_state")

    def __init__(self, directory: str, recipe: Recipe) -> None:
        self._directory = directory
        self._recipe = recipe
        self._plan = setup_plan(recipe.kernel, recipe.shape)
        self._fds: list[int] = []
        self._sockets = [*socket.socketpair(), *socket.socketpair()]

    def __enter__(self) -> Self:
        agent, agent_far, monitor, monitor_far = self._sockets
        try:
            log = self._open("qemu.log", os.O_WRONLY | os.O_CREAT)
            argv, keep = qemu.template_argv(self._recipe.shape, self._wiring(agent_far.fileno(), monitor_far.fileno()))
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
        """Boot, run the set-up plan, flush what a clone need not carry. Everything is sent at once: the agent reads it when it is there."""
        self._channel.hello(wire.ROLE_SHIM)
        plan = self._channel.post(wire.PLAN, self._plan.encode())
        result = self._channel.wait(plan, timeout_s)
        if result.error:
            raise GuestError(f"{self._plan.ops[result.index].describe()}: {result.describe()}")
        settled = self._channel.wait(self._channel.post(wire.SETTLE), timeout_s)
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
        return " | ".join([line for line in lines if line][-_CONSOLE_LINES:])

    def _wiring(self, agent: int, monitor: int) -> qemu.Wiring:
        memory = f"{self._directory}/memory"
        with open(memory, "wb") as file:
            file.truncate(self._recipe.shape.memory_mib << 20)
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


def _finish(directory: str, key: TemplateKey, recipe: Recipe, seconds: float) -> None:
    """Make the files durable and read-only, and describe them."""
    for name in store.UPPERS[1:]:
        _copy_disk(f"{directory}/{_DISK}", f"{directory}/{name}")
    for name in ("console.log", "qemu.log"):
        files.unlink(f"{directory}/{name}")
    described = {name: _describe(f"{directory}/{name}", _mode(name, recipe.shape)) for name in store.FILES}
    manifest = {
        "format": store.FORMAT,
        "key": key,
        "shape": recipe.shape.facts(),
        "accelerator": {"name": recipe.shape.accelerator.value, "reason": recipe.reason},
        "kernel": recipe.kernel.name,
        "built_ns": time.time_ns(),
        "build_s": round(seconds, 3),
        "files": described,
    }
    files.replace(f"{directory}/{manifests.NAME}", json.dumps(manifest, indent=1).encode())
    files.sync_directory(directory)


def _copy_disk(source: str, target: str) -> None:
    """Copy an image's data to blocks of its own: shared ones would be counted in one place for all copies."""
    with open(source, "rb") as old, open(target, "xb") as new:
        files.copy_sparse(old.fileno(), new.fileno(), may_share=False)


def _mode(name: str, shape: MachineShape) -> int:
    """Nobody writes to a template; but a QEMU that cannot map its memory read-only must be able to open it for writing."""
    return 0o600 if name == "memory" and not qemu.maps_memory_read_only(shape.qemu_version) else 0o400


def _describe(path: str, mode: int) -> dict[str, object]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(fd, mode)
        os.fsync(fd)
        digest = files.content_digest(fd)
        return {"size": os.fstat(fd).st_size, "digest": digest, "identity": manifests.file_identity(path)}
    finally:
        os.close(fd)
