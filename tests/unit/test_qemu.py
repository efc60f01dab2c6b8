"""QEMU's command line: escaping, and what template, clone and cold boot have in common."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.errors import HostError
from rundctl.host.memo import Memo
from rundctl.types import Accelerator, MemoryMode
from rundctl.vmm import binary, cmdline, qemu
from rundctl.vmm.shape import MachineShape

if TYPE_CHECKING:
    from pathlib import Path


def _shape(chosen: Accelerator = Accelerator.TCG, version: tuple[int, int] = (7, 2), **changes: Any) -> MachineShape:
    sizes = {"memory_mib": 128, "vcpus": 1, "upper_mib": 2048, "volumes": True, **changes}
    return MachineShape(
        qemu="/usr/bin/qemu", qemu_version=version, machine="pc-q35-7.2", accelerator=chosen,
        digests={"kernel": "1", "agent": "2"}, host="linux", **sizes,
    )  # fmt: skip


def _wiring(
    *,
    rootfs: int = -1,
    volumes: int = -1,
    image: int = -1,
    kernel: int = -1,
    initrd: int = -1,
    console: int = -1,
    **more: Any,
) -> qemu.Wiring:
    return qemu.Wiring(
        agent=10, qmp=11, disk=12, empty="/t/empty", memory_path="/t/a,b/memory",
        rootfs=rootfs, volumes=volumes, image=image, kernel=kernel, initrd=initrd, console=console, **more,
    )  # fmt: skip


def _devices(argv: list[str]) -> list[str]:
    return [value for flag, value in itertools.pairwise(argv) if flag == "-device"]


def test_commas_are_doubled() -> None:
    argv, _ = qemu.clone_argv(_shape(), _wiring(), 14)
    assert "memory-backend-file,id=memory,size=128M,mem-path=/t/a,,b/memory,share=off" in argv


def test_template_and_clone_are_one_machine() -> None:
    """All that may differ: sharing, where exports lead, and how the machine begins."""
    template, _ = qemu.template_argv(_shape(), _wiring(kernel=20, initrd=21))
    clone, _ = qemu.clone_argv(_shape(), _wiring(rootfs=15, volumes=16), 14)
    assert _devices(template) == _devices(clone)
    assert [word for word in template if word not in clone] == [
        "memory-backend-file,id=memory,size=128M,mem-path=/t/a,,b/memory,share=on",
        "local,id=rootfs,path=/t/empty,readonly=on,security_model=passthrough,multidevs=remap",
        "local,id=volumes,path=/t/empty,readonly=on,security_model=passthrough,multidevs=remap",
        "-kernel", "/proc/self/fd/20", "-initrd", "/proc/self/fd/21", "-append", cmdline.cmdline(verbose=True),
    ]  # fmt: skip


def test_a_guest_s_console_is_its_qemu_s_stderr() -> None:
    for argv in (
        qemu.clone_argv(_shape(), _wiring(), 14)[0],
        qemu.cold_argv(_shape(), _wiring(kernel=20, initrd=21))[0],
    ):
        assert "file,id=console,path=/proc/self/fd/2,append=on" in argv
        assert "chardev:console" in argv


def test_nothing_in_a_clone_can_punch_holes_into_the_template() -> None:
    clone, _ = qemu.clone_argv(_shape(), _wiring(), 14)
    assert not [word for word in clone if "balloon" in word or "virtio-mem" in word or "free-page" in word]


def test_only_volumes_are_exported_for_writing() -> None:
    def writable(**directories: int) -> list[str]:
        argv, _ = qemu.clone_argv(_shape(), _wiring(**directories), 14)
        exports = [word for word in argv if word.startswith("local,")]
        assert len(exports) == 2
        return [word for word in exports if "readonly=on" not in word]

    assert writable(rootfs=15) == []
    assert ["id=volumes" in word for word in writable(rootfs=15, volumes=16)] == [True]


def test_a_machine_has_the_devices_that_its_containers_need() -> None:
    def tags(**changes: Any) -> list[str]:
        argv, _ = qemu.clone_argv(_shape(**changes), _wiring(rootfs=15, image=16, volumes=17), 14)
        names = [device.partition(",")[0] for device in _devices(argv)]
        return names[2 : -qemu._SPARE_PORTS]  # without the agent's channel

    assert tags(volumes=False) == ["virtio-blk-pci", "virtio-9p-pci"]
    assert tags() == ["virtio-blk-pci", "virtio-9p-pci", "virtio-9p-pci"]
    assert tags(root_device="pmem", root_mib=64) == ["virtio-blk-pci", "virtio-pmem-pci", "virtio-9p-pci"]
    assert tags(root_device="blk", root_mib=64, volumes=False) == ["virtio-blk-pci", "virtio-blk-pci"]


@pytest.mark.parametrize("device", ["pmem", "blk"])
def test_an_image_is_a_descriptor_and_never_written(device: str) -> None:
    shape = _shape(root_device=device, root_mib=256)
    clone, kept = qemu.clone_argv(shape, _wiring(image=16), 14)
    template, _ = qemu.template_argv(shape, _wiring(image=18, kernel=20, initrd=21))
    (image,) = [word for word in clone if "/proc/self/fd/16" in word]
    assert image.replace("fd/16", "fd/18") in template
    assert "readonly=on" in image or "read-only=on" in image
    assert "size=256M" in image or device == "blk"
    assert 16 in kept


def _shared() -> qemu.Wiring:
    return _wiring(kernel=20, initrd=21, shares=(("rootfs", 30), ("volumes", 31)), memory=32)


OWN_MEMORY = "memory-backend-file,id=memory,size=128M,mem-path=/proc/self/fd/32,share=on"


def test_what_comes_by_virtiofs_is_plugged_into_a_clone_with_memory_of_its_own() -> None:
    shape = _shape(root_device="virtiofs", volumes=False)
    assert (shape.memory_mode, _shape().memory_mode) == (MemoryMode.COPY, MemoryMode.COW)
    template, _ = qemu.template_argv(shape, _wiring(kernel=20, initrd=21))
    clone, kept = qemu.clone_argv(shape, _shared(), 14)
    assert _devices(template) == _devices(clone)
    assert not [device for device in _devices(clone) if "9p" in device or "vhost" in device]
    assert "-S" in clone
    assert OWN_MEMORY in clone
    assert "socket,id=share1,fd=31" in clone
    assert {30, 31, 32} <= set(kept)
    assert qemu.plugged(_shared()) == [
        {"driver": "vhost-user-fs-pci", "chardev": "share0", "tag": "rootfs", "bus": "spare0"},
        {"driver": "vhost-user-fs-pci", "chardev": "share1", "tag": "volumes", "bus": "spare1"},
    ]


def test_a_cold_machine_has_them_from_the_beginning() -> None:
    argv, kept = qemu.cold_argv(_shape(root_device="virtiofs", volumes=False), _shared())
    assert "driver=vhost-user-fs-pci,chardev=share1,tag=volumes,bus=spare1" in _devices(argv)
    assert OWN_MEMORY in argv
    assert "-S" not in argv
    assert {30, 31, 32} <= set(kept)


def test_emulation_s_buffer_is_not_part_of_the_machine() -> None:
    assert "tcg,tb-size=3" in qemu.clone_argv(_shape(), _wiring(translations_mib=3), 14)[0]


@pytest.mark.parametrize(
    ("version", "vcpus", "chosen", "expected"),
    [
        ((7, 2), 2, Accelerator.TCG, "tcg,tb-size=16,thread=single"),
        ((9, 0), 4, Accelerator.TCG, "tcg,tb-size=16,thread=single"),
        ((7, 2), 1, Accelerator.TCG, "tcg,tb-size=16"),
        ((9, 1), 2, Accelerator.TCG, "tcg,tb-size=16"),
        ((7, 2), 2, Accelerator.KVM, "kvm,kernel-irqchip=split"),
    ],
)
def test_an_emulator_that_misses_changes_of_code_runs_all_vcpus_on_one_thread(
    version: tuple[int, int], vcpus: int, chosen: Accelerator, expected: str
) -> None:
    shape = _shape(chosen, version, vcpus=vcpus)
    for argv in (
        qemu.template_argv(shape, _wiring(kernel=20, initrd=21))[0],
        qemu.clone_argv(shape, _wiring(), 14)[0],
        qemu.cold_argv(shape, _wiring(kernel=20, initrd=21))[0],
    ):
        assert argv[argv.index("-accel") + 1] == expected


def test_newer_qemu_never_opens_the_memory_for_writing() -> None:
    clone, _ = qemu.clone_argv(_shape(version=(8, 2)), _wiring(), 14)
    assert "memory-backend-file,id=memory,size=128M,mem-path=/t/a,,b/memory,share=off,readonly=on,rom=off" in clone
    template, _ = qemu.template_argv(_shape(version=(8, 2)), _wiring())
    assert not any("readonly" in word for word in template if word.startswith("memory-backend"))


def test_kept_descriptors() -> None:
    """Volumes are opened by QEMU's parent, in the child."""
    _, kept = qemu.clone_argv(_shape(), _wiring(rootfs=15, volumes=16, console=17), 14)
    assert kept == [10, 11, 12, 15, 17, 14]


def test_cold_memory_is_private_and_anonymous() -> None:
    argv, _ = qemu.cold_argv(_shape(), _wiring(kernel=20, initrd=21))
    assert "memory-backend-ram,id=memory,size=128M" in argv
    assert "-incoming" not in argv


def test_memory_larger_than_the_host_s_is_not_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(argv: list[str]) -> bool:
        (memory,) = [word for word in argv if word.startswith("memory-backend-") and "id=memory" in word]
        return "reserve=off" in memory

    cold = _wiring(kernel=20, initrd=21)
    for host_mib, unreserved in ((127, True), (128, False)):
        monkeypatch.setattr(qemu.machine, "memory_mib", lambda mib=host_mib: mib)
        assert told(qemu.clone_argv(_shape(), _wiring(), 14)[0]) == unreserved
        assert told(qemu.cold_argv(_shape(), cold)[0]) == unreserved
        assert not told(qemu.template_argv(_shape(), cold)[0])  # its memory is a shared file


def test_kvm() -> None:
    argv, _ = qemu.clone_argv(_shape(Accelerator.KVM), _wiring(), 14)
    assert argv[argv.index("-accel") + 1] == "kvm,kernel-irqchip=split"
    assert argv[argv.index("-cpu") + 1] == "host,svm=off,vmx=off,pmu=off"
    assert "pit=off" in argv[argv.index("-machine") + 1].split(",")
    emulated, _ = qemu.clone_argv(_shape(), _wiring(), 14)
    assert "pit=" not in emulated[emulated.index("-machine") + 1]  # its Linux measures the APIC's timer by it


def test_state_of_newer_qemu_is_a_descriptor_set() -> None:
    assert qemu.state_uri(_shape(), 14) == "fd:14"
    assert qemu.state_uri(_shape(version=(9, 0)), 14) == "file:/dev/fdset/14"
    assert "fd=14,set=14" in qemu.clone_argv(_shape(version=(9, 0)), _wiring(), 14)[0]


def test_every_difference_is_another_key() -> None:
    shapes = [
        _shape(),
        _shape(Accelerator.KVM),
        _shape(memory_mib=256),
        _shape(vcpus=2),
        _shape(upper_mib=64),
        _shape(version=(8, 0)),
        _shape(volumes=False),
        _shape(root_device="pmem", root_mib=64),
        _shape(root_device="pmem", root_mib=128),
        _shape(root_device="blk", root_mib=64),
        _shape(root_device="virtiofs"),
    ]
    assert len({shape.key("1") for shape in shapes}) == len(shapes)
    assert _shape().key("1") == _shape().key("1") != _shape().key("2")


@pytest.mark.parametrize("verbose", [True, False])
def test_every_word_of_the_kernel_is_justified(verbose: bool) -> None:
    words = (*cmdline.WORDS, cmdline.EMULATED_AND_SHARED, cmdline.KNOWN_RATE, cmdline.QUIET, cmdline.VERBOSE)
    rows = {word.format(2600000) for word, why, cost in words if why and cost}
    assert set(cmdline.cmdline(verbose=verbose, emulated_and_shared=True, tsc_khz=2600000).split()) < rows


def test_only_an_emulated_guest_is_given_the_rate_that_its_kernel_would_measure() -> None:
    wiring = _wiring(kernel=20, initrd=21)
    for accelerated, khz, given in (
        (Accelerator.TCG, 2600000, True),
        (Accelerator.TCG, 0, False),
        (Accelerator.KVM, 2600000, False),
    ):
        for make in (qemu.template_argv, qemu.cold_argv):
            argv, _ = make(_shape(accelerated), wiring, khz)
            assert ("tsc_early_khz=2600000" in argv[argv.index("-append") + 1].split()) is given
            assert given or "tsc_early_khz" not in " ".join(argv)


def test_only_who_emulates_over_shared_memory_has_its_pages_cleared() -> None:
    """The template as well as a cold boot; by KVM the processor sees who writes to the memory."""
    word = cmdline.EMULATED_AND_SHARED[0]
    wiring = _wiring(kernel=20, initrd=21)
    for device, chosen, cleared in (("virtiofs", "tcg", True), ("virtiofs", "kvm", False), ("9p", "tcg", False)):
        shape = _shape(Accelerator(chosen), root_device=device)
        for make in (qemu.template_argv, qemu.cold_argv):
            argv, _ = make(shape, wiring)
            assert (word in argv[argv.index("-append") + 1].split()) is cleared


def test_newest_versioned_machine() -> None:
    listing = "pc-q35-2.10  x\npc-q35-9.2 y\nq35 Standard PC (alias of pc-q35-10.0)\npc-q35-10.0 z\npc-i440fx-11.0 w\n"
    assert binary._newest_machine(listing, "qemu") == "pc-q35-10.0"
    with pytest.raises(HostError):
        binary._newest_machine("microvm\n", "qemu")


def test_version() -> None:
    assert binary._version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright") == (7, 2)
    with pytest.raises(HostError):
        binary._version("hello")


def test_firmware_that_moved_is_looked_for(tmp_path: Path) -> None:
    memo = Memo(str(tmp_path / "memo"))
    program, firmware = tmp_path / "qemu", tmp_path / "pvh.bin"
    program.write_bytes(b"")
    firmware.write_bytes(b"")
    facts = {"version": (7, 2), "machine": "pc-q35-7.2", "firmware": [str(firmware)]}
    memo.remember(f"qemu {program}", facts, str(program))
    assert binary.known(str(program), memo) is not None
    firmware.rename(tmp_path / "moved")
    assert binary.known(str(program), memo) is None
