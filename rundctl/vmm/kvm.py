"""This host's KVM, asked itself: whether it makes virtual machines, and what it would show to their guests.

A guest saved by one KVM is at home only with one that shows the same: ``-cpu host`` is what KVM supports of the processor, and that depends on the
module's parameters, and on the hypervisor below, as much as on the processor. So what KVM tells of itself is a part of a template's key.

It is asked once, and once more when the host has booted or /dev/kvm is another node: loading the module anew, with other parameters, makes one.
"""

from __future__ import annotations

import errno
import time

from rundctl.errors import words
from rundctl.host.machine import boot_id
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.host.memo import Memo

DEVICE = "/dev/kvm"
REFUSED_S = 60.0  # how long a refusal is believed: to ask again takes milliseconds, and another hypervisor ends when its user likes
NAME = "kvm"  # in the memo, and in QEMU's words

# linux/kvm.h
_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_CREATE_VCPU = 0xAE41
_GET_TSC_KHZ = 0xAEA3
_GET_SUPPORTED_CPUID = 0xC008AE05
_GET_MSR_FEATURE_INDEX_LIST = 0xC004AE0A
_GET_MSRS = 0xC008AE88
_API_VERSION = 12
_CPUID_MOST = 256
_MSRS_MOST = 512
# The leaves of CPUID that tell features. The others tell caches, names, and on which of its processors the host was asked.
_FEATURE_LEAVES = frozenset(
    (0x1, 0x7, 0xD, 0x14, 0x19, 0x1D, 0x1E, 0x24, 0x40000001, 0x80000001, 0x80000007, 0x80000008, 0x80000021)
)
_HINTS = {
    errno.EBUSY: "another hypervisor has the processor's virtualisation: end it, or remove its module",
    errno.EACCES: "chmod, or a device rule of the cgroup, keeps rundctl out",
    errno.EPERM: "a device rule of the cgroup, or a security module, keeps rundctl out",
    errno.ENODEV: "modprobe kvm_intel or kvm_amd",
    errno.ENXIO: "modprobe kvm_intel or kvm_amd",
}


class Kvm:
    """What is known of it. ``refusal``: why it makes no virtual machine, empty if it does; then ``identity`` stands for what it shows to guests."""

    __slots__ = ("hint", "identity", "is_there", "refusal")

    def __init__(self, identity: str = "", refusal: str = "", hint: str = "", *, is_there: bool = True) -> None:
        self.identity = identity
        self.refusal = refusal
        self.hint = hint
        self.is_there = is_there


def known(memo: Memo) -> Kvm | None:
    """What is remembered and still true, None if it must be asked. On the path of every start: two stats."""
    if not os.path.exists(DEVICE):
        hint = "modprobe kvm_intel or kvm_amd; in a virtual machine, enable nested virtualisation on its host"
        return Kvm(refusal=f"{DEVICE} is missing", hint=hint, is_there=False)
    kept = memo.recall(NAME, DEVICE)
    if not isinstance(kept, dict) or kept.get("boot") != boot_id():
        return None
    if kept["refusal"] and not 0 <= _now_s() - kept["asked_s"] < REFUSED_S:
        return None
    return Kvm(kept["identity"], kept["refusal"], kept["hint"])


def ask(memo: Memo) -> Kvm:
    """Ask it, and remember the answer."""
    try:
        found = Kvm(_identity())
    except FileNotFoundError:
        found = Kvm(refusal=f"{DEVICE} is missing", hint=_HINTS[errno.ENODEV], is_there=False)
    except OSError as error:
        found = Kvm(refusal=f"{DEVICE}: {words(error)}", hint=_HINTS.get(error.errno or 0, ""))
    if found.is_there:
        facts = {"identity": found.identity, "refusal": found.refusal, "hint": found.hint}
        memo.remember(NAME, {"boot": boot_id(), "asked_s": _now_s(), **facts}, DEVICE)
    return found


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _identity() -> str:
    """A digest of what it shows, once it has made a virtual machine with a processor. OSError for what it refuses."""
    import fcntl
    import hashlib

    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    opened = [device]
    try:
        version = fcntl.ioctl(device, _GET_API_VERSION, 0)  # ENOTTY if it is something else
        if version != _API_VERSION:
            raise OSError(errno.EPROTO, f"version {version} of its interface, {_API_VERSION} expected", DEVICE)
        opened.append(fcntl.ioctl(device, _CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[-1], _CREATE_VCPU, 0))
        # In MHz: the kernel measures it anew at each boot, to within a few kHz.
        rate_mhz = round(fcntl.ioctl(opened[-1], _GET_TSC_KHZ, 0) / 1000)
        shown = [*_cpuid(device), *_features(device), f"tsc {rate_mhz} MHz"]
    finally:
        for fd in reversed(opened):
            os.close(fd)
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()[:16]


def _cpuid(device: int) -> Iterator[str]:
    """What ``-cpu host`` shows (KVM_GET_SUPPORTED_CPUID)."""
    import fcntl
    import struct

    table = bytearray(struct.pack("=II", _CPUID_MOST, 0) + bytes(40 * _CPUID_MOST))
    fcntl.ioctl(device, _GET_SUPPORTED_CPUID, table)
    (count,) = struct.unpack_from("=I", table)
    for number in range(count):
        leaf, index, _, eax, ebx, ecx, edx = struct.unpack_from("=7I", table, 8 + 40 * number)
        if leaf in _FEATURE_LEAVES:
            if leaf == 1:
                ebx &= 0x00FFFFFF  # the rest is the number of the processor that was asked
            yield f"cpuid {leaf:x}.{index:x} {eax:x} {ebx:x} {ecx:x} {edx:x}"


def _features(device: int) -> Iterator[str]:
    """What model specific registers tell guests of features (KVM_GET_MSR_FEATURE_INDEX_LIST)."""
    import fcntl
    import struct

    indices = bytearray(struct.pack("=I", _MSRS_MOST) + bytes(4 * _MSRS_MOST))
    fcntl.ioctl(device, _GET_MSR_FEATURE_INDEX_LIST, indices)
    (count,) = struct.unpack_from("=I", indices)
    for index in struct.unpack_from(f"={count}I", indices, 4):
        entry = bytearray(struct.pack("=IIIIQ", 1, 0, index, 0, 0))
        if fcntl.ioctl(device, _GET_MSRS, entry) == 1:
            yield f"msr {index:x} {struct.unpack_from('=Q', entry, 16)[0]:x}"
