"""QEMU's command line, in QEMU's own words: one function an option, one escaping, one list of devices for template, clone and cold boot.

Everything is handed over as descriptors. The exception is the memory file: it must be *named*, because newer QEMU's x-ignore-shared
leaves only named files out of the migration stream.
"""

from __future__ import annotations

from rundctl.host import machine
from rundctl.types import Accelerator, MemoryMode
from rundctl.vmm.cmdline import cmdline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.vmm.shape import MachineShape

ARGV_FORMAT = "10"  # raise it with every change here that makes a clone's machine differ from an older template's
AGENT_PORT = "rundctl.agent"
ROOTFS_TAG = "rootfs"
VOLUMES_TAG = "volumes"
DISK = "disk"  # `MachineShape.root_device` where the only disk, in the upper's place, holds the whole root file system
DISK_PATH = "/dev/vda"  # where the guest finds it, or the upper
IMAGE_PATHS = {"pmem": "/dev/pmem0", "blk": "/dev/vdb"}  # where it finds an image, by `MachineShape.root_device`
_ROOM_MIB = 4096  # of addresses beside the memory, for devices that are memory
_MEMORY_SLOTS = 2
_UPPER_SET = 1
_STDERR = 2
# Nothing in a container needs a hypervisor of its own, and who has taken over a guest's kernel would reach that much more of KVM, or of the emulator.
# Counters of a processor's events are the same to an attacker: they measure what its neighbours do. And each clone would load their registers.
_PROCESSORS: dict[Accelerator, tuple[str, dict[str, str | int | bool]]] = {
    Accelerator.KVM: ("host", {"svm": False, "vmx": False, "pmu": False}),
    Accelerator.TCG: ("max", {"svm": False}),
}
_FIRST_SLOT = 2  # PCI slot 0 is the host bridge; 1 is left to what a machine type may put there
_SPARE_PORTS = 2
_READ_ONLY_MEMORY = (8, 2)  # from here on a private mapping may be of a file that is opened for reading only
# Before, a vCPU that translates code while another changes it may keep what it was: kernels, which patch themselves as they run, panic (docs/performance.md).
_CODE_CHANGES_SEEN = (9, 1)
_FILE_FD_URI = (9, 0)  # from here on `fd:` on a plain file is deprecated, and file:/dev/fdset/N is there


class Option:
    """One option of the command line: ``-device virtio-blk-pci,drive=upper``. Names of properties are QEMU's, letter by letter."""

    __slots__ = ("flag", "head", "properties")

    def __init__(self, flag: str, head: str = "", properties: dict[str, str | int | bool] | None = None) -> None:
        self.flag = flag
        self.head = head
        self.properties = properties or {}

    def argv(self) -> list[str]:
        """The option's words: two, or one that has no value."""
        named = [f"{name}={_value(value)}" for name, value in self.properties.items()]
        value = ",".join([self.head, *named] if self.head else named)
        return [f"-{self.flag}", value] if value else [f"-{self.flag}"]


def _value(value: str | int | bool) -> str:  # noqa: FBT001  the value of a property, not a switch of this function
    """A property's value; a comma in it is doubled (QEMU's ``keyval`` and ``QemuOpts`` syntax). The only place that escapes."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


class Wiring:
    """What differs between two machines of one shape: descriptors (``-1``: none) and paths.

    agent, qmp      far ends of the two socketpairs          disk                the container's own (mostly its upper), for reading and writing
    rootfs, volumes directories exported by 9p; ``volumes`` may be a number that only QEMU's parent opens. Without them: ``empty``
    persistent      whether the guest may write to ``rootfs``
    image           of the shared layer                      translations_mib  TCG's buffer of translated code (QEMU's own default: a GiB)
    empty           path of an empty directory                memory_path          named file with the guest's memory; "" = anonymous memory
    kernel, initrd  of a boot, never of a clone               console              file for the serial port's output; without it: stderr
    memory          file of this guest's own memory, where clones do not share the template's (`MemoryMode.COPY`)
    shares          (tag, socket connected to a virtiofsd) of each directory that comes by virtio-fs, at most two
    """

    __slots__ = (
        "agent", "console", "disk", "empty", "image", "initrd", "kernel", "memory", "memory_path", "name", "persistent", "qmp", "rootfs", "shares",
        "translations_mib", "volumes",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  one argument a property of the machine, all by name
        self,
        *,
        agent: int,
        qmp: int,
        disk: int,
        empty: str,
        memory_path: str = "",
        rootfs: int = -1,
        persistent: bool = False,
        volumes: int = -1,
        image: int = -1,
        kernel: int = -1,
        initrd: int = -1,
        console: int = -1,
        memory: int = -1,
        shares: Sequence[tuple[str, int]] = (),
        name: str = "",
        translations_mib: int = 16,
    ) -> None:
        self.agent = agent
        self.qmp = qmp
        self.disk = disk
        self.empty = empty
        self.memory_path = memory_path
        self.rootfs = rootfs
        self.persistent = persistent
        self.volumes = volumes
        self.image = image
        self.kernel = kernel
        self.initrd = initrd
        self.console = console
        self.memory = memory
        self.shares = tuple(shares)
        self.name = name
        self.translations_mib = translations_mib

    def kept(self) -> list[int]:
        """Descriptors QEMU must inherit under their own numbers; not ``volumes``, which QEMU's parent opens in the child."""
        numbers = (
            self.agent,
            self.qmp,
            self.disk,
            self.rootfs,
            self.image,
            self.kernel,
            self.initrd,
            self.console,
            self.memory,
            *(fd for _, fd in self.shares),
        )
        return [fd for fd in numbers if fd >= 0]


def template_argv(shape: MachineShape, wiring: Wiring, tsc_khz: int = 0) -> tuple[list[str], list[int]]:
    """Boot with memory shared with its file, so that a snapshot needs no copy of it. (argv, descriptors to keep).

    ``tsc_khz``: the rate of the time stamp counter, 0 if it is not known.
    """
    return _argv(
        shape, wiring, _memory_file(shape, wiring, share=True), _boot(shape, wiring, tsc_khz, verbose=True)
    ), wiring.kept()


def clone_argv(shape: MachineShape, wiring: Wiring, state: int) -> tuple[list[str], list[int]]:
    """Wait for `Qmp.restore` over a copy-on-write view of the template's memory. No kernel: that is in the memory already.

    ``state`` is a descriptor of the template's device state with an offset of its own (opened for this clone alone).
    """
    incoming = [Option("incoming", "defer")]
    memory = _memory_file(shape, wiring, share=False)
    if shape.memory_mode is MemoryMode.COPY:
        memory = _own_memory(shape, wiring)
        incoming += [Option("S"), *_shares(wiring)]
    if shape.qemu_version >= _FILE_FD_URI:
        incoming.append(Option("add-fd", "", {"fd": state, "set": state}))
    return _argv(shape, wiring, memory, incoming), [*wiring.kept(), state]


def cold_argv(shape: MachineShape, wiring: Wiring, tsc_khz: int = 0) -> tuple[list[str], list[int]]:
    """Boot from the kernel, as the template did, over memory of its own."""
    memory = Option(
        "object", "memory-backend-ram", {"id": "memory", "size": f"{shape.memory_mib}M", **_unreserved(shape)}
    )
    if shape.memory_mode is MemoryMode.COPY:
        memory = _own_memory(shape, wiring)
    shares = [*_shares(wiring), *(Option("device", "", {**device}) for device in plugged(wiring))]
    return _argv(shape, wiring, memory, [*shares, *_boot(shape, wiring, tsc_khz, verbose=False)]), wiring.kept()


def plugged(wiring: Wiring) -> list[dict[str, str]]:
    """The devices of shared directories, as QMP's ``device_add`` takes them; QEMU 7.2 would not load a state into a machine that has one."""
    return [
        {"driver": "vhost-user-fs-pci", "chardev": f"share{port}", "tag": tag, "bus": f"spare{port}"}
        for port, (tag, _) in enumerate(wiring.shares)
    ]


def state_uri(shape: MachineShape, state: int) -> str:
    """How QMP names the device state's descriptor to this QEMU."""
    return f"file:/dev/fdset/{state}" if shape.qemu_version >= _FILE_FD_URI else f"fd:{state}"


def _argv(shape: MachineShape, wiring: Wiring, memory: Option, start: list[Option]) -> list[str]:
    options = [
        *_board(shape, wiring),
        memory,
        *_channels(wiring),
        *_disk(wiring),
        *_root(shape, wiring),
        *_volumes(shape, wiring),
        *_spare_ports(),
        *_console(wiring),
        *start,
    ]
    words = [word for option in options for word in option.argv()]
    naming = Option("name", "", {"guest": wiring.name}).argv() if wiring.name else []
    return [shape.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", *naming, *words]


# Local APICs in the kernel, what hangs on them in QEMU: all that is fast here are messages (MSI-X), which need no more. KVM's own I/O APIC and PIC would be
# two devices more in each clone and its state, and more of KVM that a guest reaches.
_KVM = Option("accel", "kvm", {"kernel-irqchip": "split"})
# KVM's PIT ticks 18 times a second for as long as a VM lives, though Linux turns to the APIC's deadline timer, which every KVM has, before it would listen.
# To end it takes two grace periods of the host's kernel: 13 ms. An emulated APIC has no such timer, and Linux measures it by the PIT.
_TIMERS: dict[Accelerator, dict[str, str | int | bool]] = {Accelerator.KVM: {"pit": False}, Accelerator.TCG: {}}


def _board(shape: MachineShape, wiring: Wiring) -> list[Option]:
    """Machine, accelerator, processor. What q35 brings unasked and no guest of ours uses is left out."""
    accelerator = _KVM if shape.accelerator is Accelerator.KVM else _emulator(shape, wiring)
    return [
        Option(
            "machine",
            shape.machine,
            # No mem-merge: on a host with KSM, guests' pages would be merged, and merging can be timed.
            {
                "memory-backend": "memory",
                "mem-merge": False,
                "vmport": False,
                "smbus": False,
                "sata": False,
                "hpet": False,
                **_TIMERS[shape.accelerator],
                "i8042": False,
                "smm": False,
            },
        ),
        accelerator,
        Option("cpu", *_PROCESSORS[shape.accelerator]),
        Option("smp", str(shape.vcpus)),
        Option(
            "m",
            f"{shape.memory_mib}M",
            {
                "maxmem": f"{shape.memory_mib + max(_ROOM_MIB, shape.root_mib if shape.root_device != DISK else 0)}M",
                "slots": _MEMORY_SLOTS,
            },
        ),
        # A shadow of the APIC for 32-bit systems that write its task priority a lot: a ROM and a device less.
        Option("global", "", {"apic-common.vapic": False}),
        # Both sides: the stream then does not say "was stopped", and a clone runs as soon as it is loaded, without a `cont`.
        Option("global", "", {"migration.store-global-state": False}),
    ]


def _emulator(shape: MachineShape, wiring: Wiring) -> Option:
    properties: dict[str, str | int | bool] = {"tb-size": wiring.translations_mib}
    if shape.vcpus > 1 and shape.qemu_version < _CODE_CHANGES_SEEN:
        properties["thread"] = "single"
    return Option("accel", "tcg", properties)


def maps_memory_read_only(version: tuple[int, int]) -> bool:
    """Whether a clone's QEMU of this version opens the memory file for reading only."""
    return version >= _READ_ONLY_MEMORY


def _memory_file(shape: MachineShape, wiring: Wiring, *, share: bool) -> Option:
    properties: dict[str, str | int | bool] = {
        "id": "memory", "size": f"{shape.memory_mib}M", "mem-path": wiring.memory_path, "share": share,
    }  # fmt: skip
    if not share and maps_memory_read_only(shape.qemu_version):
        properties |= {"readonly": True, "rom": False}  # the file is, the guest's memory over it is not
    if not share:
        properties |= _unreserved(shape)
    return Option("object", "memory-backend-file", properties)


def _unreserved(shape: MachineShape) -> dict[str, bool]:
    """For memory that is private to this QEMU.

    The kernel refuses one mapping that is larger than the host's memory (overcommit-accounting.rst), unless it is told that not all will be used. A
    container's limit may be that large, for it promises nothing. Smaller ones go without: QEMU refuses the word where the host's accounting is strict.
    """
    return {"reserve": False} if shape.memory_mib > machine.memory_mib() else {}


def _own_memory(shape: MachineShape, wiring: Wiring) -> Option:
    """Shared, so that who serves the guest's virtio-fs can map it."""
    path = f"/proc/self/fd/{wiring.memory}"
    return Option("object", "memory-backend-file", {
        "id": "memory", "size": f"{shape.memory_mib}M", "mem-path": path, "share": True,
    })  # fmt: skip


def _shares(wiring: Wiring) -> list[Option]:
    return [Option("chardev", "socket", {"id": f"share{port}", "fd": fd}) for port, (_, fd) in enumerate(wiring.shares)]


def _channels(wiring: Wiring) -> list[Option]:
    return [
        Option("chardev", "socket", {"id": "qmp", "fd": wiring.qmp}),
        Option("mon", "", {"chardev": "qmp", "mode": "control"}),
        Option("chardev", "socket", {"id": "agent", "fd": wiring.agent}),
        Option("device", "virtio-serial-pci", {"id": "serial", "max_ports": 2, "addr": _slot(0)}),
        Option("device", "virtserialport", {"bus": "serial.0", "nr": 1, "chardev": "agent", "name": AGENT_PORT}),
    ]


def _disk(wiring: Wiring) -> list[Option]:
    """What is the container's alone. ``no-flush`` is cache=unsafe: nobody outlives the VM who could miss what was not flushed.

    ``werror``: a write for which the host has no space fails in the guest; by default QEMU would stop the VM, for ever.
    """
    return [
        Option("add-fd", "", {"fd": wiring.disk, "set": _UPPER_SET}),
        Option("blockdev", "", {
            "driver": "file", "node-name": "upper", "filename": f"/dev/fdset/{_UPPER_SET}", "locking": "off",
            "discard": "unmap", "cache.direct": False, "cache.no-flush": True,
        }),
        Option("device", "virtio-blk-pci", {"drive": "upper", "werror": "report", "addr": _slot(1)}),
    ]  # fmt: skip


def _root(shape: MachineShape, wiring: Wiring) -> list[Option]:
    """The device that the root file system comes by. What is behind it in a clone is another than in the template; its size is not."""
    if shape.root_device in ("virtiofs", DISK):  # plugged into the clone, or in the disk's place
        return []
    path = f"/proc/self/fd/{wiring.image}"
    if shape.root_device == "pmem":
        return [
            Option("object", "memory-backend-file", {
                "id": "lower", "size": f"{shape.root_mib}M", "mem-path": path, "share": True, "readonly": True,
            }),
            Option("device", "virtio-pmem-pci", {"memdev": "lower", "addr": _slot(2)}),
        ]  # fmt: skip
    if shape.root_device == "blk":
        return [
            Option("blockdev", "", {
                "driver": "file", "node-name": "lower", "filename": path, "locking": "off", "read-only": True,
            }),
            Option("device", "virtio-blk-pci", {"drive": "lower", "addr": _slot(2)}),
        ]  # fmt: skip
    return _export(ROOTFS_TAG, _directory(wiring.rootfs, wiring), _slot(2), readonly=not wiring.persistent)


def _volumes(shape: MachineShape, wiring: Wiring) -> list[Option]:
    """A device that costs each clone a MiB: only where there is a volume."""
    # Without one (in the template) it exports an empty directory, which a hostile guest would otherwise fill for all.
    if not shape.volumes:
        return []
    return _export(VOLUMES_TAG, _directory(wiring.volumes, wiring), _slot(3), readonly=wiring.volumes < 0)


def _export(tag: str, path: str, slot: str, *, readonly: bool) -> list[Option]:
    """A directory of the host as a 9p device. ``remap``: it may hold mounts, whose inode numbers would collide."""
    sharing: dict[str, str | int | bool] = {"security_model": "passthrough", "multidevs": "remap"}
    return [
        Option("fsdev", "local", {"id": tag, "path": path, "readonly": readonly, **sharing}),
        Option("device", "virtio-9p-pci", {"fsdev": tag, "mount_tag": tag, "addr": slot}),
    ]


def _directory(fd: int, wiring: Wiring) -> str:
    return f"/proc/self/fd/{fd}" if fd >= 0 else wiring.empty


def _spare_ports() -> list[Option]:
    """Empty PCIe ports: a device put there after the restore is found by the guest by itself."""
    return [
        Option(
            "device",
            "pcie-root-port",
            {"id": f"spare{index}", "chassis": index + 1, "slot": index + 1, "addr": _slot(4 + index)},
        )
        for index in range(_SPARE_PORTS)
    ]


def _slot(index: int) -> str:
    return f"{_FIRST_SLOT + index:#x}"


def _console(wiring: Wiring) -> list[Option]:
    path = f"/proc/self/fd/{wiring.console if wiring.console >= 0 else _STDERR}"
    return [
        Option("chardev", "file", {"id": "console", "path": path, "append": True}),
        Option("serial", "chardev:console"),
    ]


def _boot(shape: MachineShape, wiring: Wiring, tsc_khz: int, *, verbose: bool) -> list[Option]:
    emulated = shape.accelerator is Accelerator.TCG
    shared = shape.memory_mode is MemoryMode.COPY and emulated
    return [
        Option("kernel", f"/proc/self/fd/{wiring.kernel}"),
        Option("initrd", f"/proc/self/fd/{wiring.initrd}"),
        Option("append", cmdline(verbose=verbose, emulated_and_shared=shared, tsc_khz=tsc_khz if emulated else 0)),
    ]
