"""``linux.resources``: what of it holds the VM on the host, and what the container in its guest. Pure.

``parse`` checks, with the names of config.json, what the schema lets pass and the kernels would refuse; ``for_vm`` and ``for_container`` divide it.
docs/cgroups.md says what each field comes to, and why.
"""

from __future__ import annotations

from rundctl.host.cgroup_settings import PERIOD_US, UNLIMITED, Limits, settings, shares_of_weight
from rundctl.oci.support import invalid, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MIB = 1 << 20
VMM_CPU_PERCENT = 25  # of one CPU, beside a container's quota: QEMU's own threads and the guest's kernel
PAGE_TABLE_SHARE = (
    128  # one byte of tables for so many of guest memory: QEMU's and, with KVM, a second set; twice what both are
)
_WHERE = "linux.resources"
_SHARES = (2, 262_144)
_PERIOD_US = (1_000, 1_000_000)
_QUOTA_MIN_US = 1_000
_WEIGHT = (10, 1_000)
_WEIGHT_V2 = (1, 10_000)
_MAX = (1 << 63) - 1
_DIGITS = len(str(_MAX))
_CPU_LAST = 8191  # x86's NR_CPUS_RANGE_END
MEMORY_MIN = 2 * MIB  # docs/cgroups.md, "Small limits"
_RATES = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}
_SHOWN = 60  # characters of what is wrong that fit a one-line message
_FIELDS = {
    "memory": "memory.limit",
    "reservation": "memory.reservation",
    "memory_swap": "memory.swap",
    "burst": "cpu.burst",
    "quota": "cpu.quota",
    "pids": "pids.limit",
}
_IN_GUEST = ("memory", "cpu", "pids", "hugetlb")
_ON_HOST = ("io", "cpuset")
_CONTAINER_FIELDS = ("memory", "reservation", "shares", "quota", "period", "burst", "pids")


class Machine:
    """A VM as its limits see it: what it has, and what its VMM may take besides. MiB."""

    __slots__ = ("guest_overhead_mib", "memory_mib", "translations_mib", "vcpus", "vmm_overhead_mib")

    def __init__(
        self, *, memory_mib: int, vcpus: int, guest_overhead_mib: int, vmm_overhead_mib: int, translations_mib: int
    ) -> None:
        self.memory_mib = memory_mib
        self.vcpus = vcpus
        self.guest_overhead_mib = guest_overhead_mib
        self.vmm_overhead_mib = vmm_overhead_mib
        self.translations_mib = translations_mib

    @property
    def limit_max(self) -> int:
        """The largest memory limit, in bytes, that this VM can really give a container."""
        return max(self.memory_mib - self.guest_overhead_mib, 0) * MIB

    @property
    def host_memory(self) -> int:
        """What the VM may take of the host, in bytes: all of its memory, and the allowance for the VMM."""
        tables = -(-self.memory_mib // PAGE_TABLE_SHARE)
        return (self.memory_mib + self.vmm_overhead_mib + self.translations_mib + tables) * MIB

    def facts(self) -> dict[str, int]:
        """For the container's record."""
        return {name: getattr(self, name) for name in self.__slots__}


def parse(resources: Mapping[str, Any]) -> Limits:
    """What is asked for, by the fields and by ``unified``, which wins as in runc. ConfigError for what makes no sense."""
    limits = Limits()
    _parse_memory(resources.get("memory") or {}, limits)
    _parse_cpu(resources.get("cpu") or {}, limits)
    _parse_block_io(resources.get("blockIO") or {}, limits)
    limits.pids = _asked((resources.get("pids") or {}).get("limit"))
    for entry in resources.get("hugepageLimits") or ():
        limits.hugepages[entry["pageSize"]] = entry["limit"]
    # memory.swap.max after memory.max, wherever they stand.
    for file, text in sorted((resources.get("unified") or {}).items()):
        _parse_unified(file, text.strip(), limits)
    _check(limits)
    return limits


def _asked(value: int | None) -> int | None:
    """0, -1 and nothing ask for nothing, as in runc."""
    return value if value is not None and value > 0 else None


def _parse_memory(memory: Mapping[str, Any], limits: Limits) -> None:
    for field in ("limit", "reservation", "swap"):
        if (memory.get(field) or 0) < UNLIMITED:  # with runc the kernel refuses it
            raise invalid(f"{_WHERE}.memory.{field}", f"expected a number of bytes, or -1, got {memory[field]}")
    limits.memory = _asked(memory.get("limit"))
    limits.reservation = _asked(memory.get("reservation"))
    limits.memory_swap = _asked(memory.get("swap"))
    limits.swappiness = memory.get("swappiness")


def _parse_cpu(cpu: Mapping[str, Any], limits: Limits) -> None:
    limits.shares = _asked(cpu.get("shares"))
    limits.quota = _asked(cpu.get("quota"))
    limits.period = _asked(cpu.get("period"))
    limits.burst = _asked(cpu.get("burst"))
    limits.idle = cpu.get("idle")
    limits.cpus = cpu.get("cpus") or None
    limits.mems = cpu.get("mems") or None


def _parse_block_io(block_io: Mapping[str, Any], limits: Limits) -> None:
    limits.io_weight = _asked(block_io.get("weight"))
    for entry in block_io.get("weightDevice") or ():
        if entry.get("weight"):
            limits.weights[f"{entry['major']}:{entry['minor']}"] = entry["weight"]
    for field, kind in _RATES.items():
        for entry in block_io.get(field) or ():
            limits.throttles[f"{entry['major']}:{entry['minor']}", kind] = entry["rate"]


def _parse_unified(file: str, text: str, limits: Limits) -> None:
    """Files of v2 that a field has are that field, so that they also size the VM and hold on hosts with v1. Others are written as they are."""
    where = f"{_WHERE}.unified[{file!r}]"
    controller, dot, parameter = file.partition(".")
    if "/" in file or not dot or not parameter:
        raise invalid(where, "expected the name of a file, CONTROLLER.PARAMETER")
    if not text.isprintable():
        raise invalid(where, f"expected one line, got {_shown(text)!r}")
    field = {
        "memory.max": "memory", "memory.low": "reservation", "pids.max": "pids", "cpu.max.burst": "burst", "cpu.idle": "idle",
    }.get(file)  # fmt: skip
    if field is not None:
        setattr(limits, field, _unified_number(text, where))
    elif file == "cpu.max":
        _parse_cpu_max(text, where, limits)
    elif file == "cpu.weight":
        weight = _unified_number(text, where) or 0
        _between(weight, _WEIGHT_V2, where)
        limits.shares = shares_of_weight(weight)
    elif file == "memory.swap.max":
        swap = _unified_number(text, where)
        limits.memory_swap = None if swap is None else swap + (limits.memory or 0)
    elif file in ("cpuset.cpus", "cpuset.mems"):
        setattr(limits, parameter, text or None)
    elif controller in _IN_GUEST or controller in _ON_HOST:
        limits.unified[file] = text
    else:
        raise refused(where, f"a container in a VM has no controller {controller!r}")


def _unified_number(text: str, where: str) -> int | None:
    if text == "max":
        return None
    if not (text.isascii() and text.isdigit()):
        raise invalid(where, f"expected a number or max, got {_shown(text)!r}")
    digits = text.lstrip("0") or "0"
    if len(digits) > _DIGITS or int(digits) > _MAX:
        raise invalid(where, f"expected a number up to {_MAX}, got {_shown(text)}")
    return int(digits)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _parse_cpu_max(text: str, where: str, limits: Limits) -> None:
    quota, _, period = text.partition(" ")
    limits.quota = _unified_number(quota, where)
    if period:
        limits.period = _unified_number(period, where)


def _between(value: int | None, bounds: tuple[int, int], where: str) -> None:
    low, high = bounds
    if value is not None and not low <= value <= high:
        raise invalid(where, f"expected a number from {low} to {high}, got {value}")


def _check(limits: Limits) -> None:
    """Bounds that both versions' kernels have, told before anything is made."""
    for name, field in _FIELDS.items():
        _between(getattr(limits, name), (0, _MAX), f"{_WHERE}.{field}")
    if limits.memory is not None and limits.memory < MEMORY_MIN:
        raise invalid(
            f"{_WHERE}.memory.limit",
            f"expected at least {MEMORY_MIN} bytes ({MEMORY_MIN // MIB} MiB), which a small program needs, got {limits.memory}",
        )
    _between(limits.shares, _SHARES, f"{_WHERE}.cpu.shares")
    _between(limits.period, _PERIOD_US, f"{_WHERE}.cpu.period")
    _between(limits.idle, (0, 1), f"{_WHERE}.cpu.idle")
    _between(limits.swappiness, (0, 100), f"{_WHERE}.memory.swappiness")
    _between(limits.io_weight, _WEIGHT, f"{_WHERE}.blockIO.weight")
    for device, weight in limits.weights.items():
        _between(weight, _WEIGHT, f"{_WHERE}.blockIO.weightDevice: {device}")
    if limits.quota is not None and limits.quota < _QUOTA_MIN_US:
        raise invalid(f"{_WHERE}.cpu.quota", f"expected at least {_QUOTA_MIN_US} microseconds, got {limits.quota}")
    if limits.quota is not None and limits.burst is not None and limits.burst > limits.quota:
        raise invalid(f"{_WHERE}.cpu.burst", f"{limits.burst} is more than the quota, {limits.quota}")
    for name in ("cpus", "mems"):
        _check_list(getattr(limits, name), f"{_WHERE}.cpu.{name}")
    if limits.memory_swap is not None and limits.memory is None:
        raise invalid(f"{_WHERE}.memory.swap", "needs memory.limit: it is the limit of memory and swap together")
    if limits.memory_swap is not None and limits.memory_swap < (limits.memory or 0):
        raise invalid(f"{_WHERE}.memory.swap", f"{limits.memory_swap} is less than memory.limit, {limits.memory}")
    if limits.memory and limits.reservation and limits.reservation > limits.memory:
        raise invalid(
            f"{_WHERE}.memory.reservation", f"{limits.reservation} is more than memory.limit, {limits.memory}"
        )


def _check_list(text: str | None, where: str) -> None:
    """``0-2,7`` (cpuset(7), "List format")."""
    for part in (text or "0").split(","):
        low, dash, high = part.strip().partition("-")
        bounds = [low, high] if dash else [low]
        if not all(bound.isascii() and bound.isdigit() and len(bound) <= _DIGITS for bound in bounds) or not (
            int(bounds[0]) <= int(bounds[-1]) <= _CPU_LAST
        ):
            raise invalid(
                where, f"expected a list like 0-2,7, of numbers up to {_CPU_LAST}, got {_shown(text or '')!r}"
            )


def _is_limit(value: int | None) -> bool:
    return value is not None and value != UNLIMITED


def release(limits: Limits, before: Limits) -> None:
    """Say in so many words that a limit of before is one no more."""
    for name in ("memory", "memory_swap", "reservation", "quota", "pids"):
        if _is_limit(getattr(before, name)) and getattr(limits, name) is None:
            setattr(limits, name, UNLIMITED)
    if before.burst and limits.burst is None:
        limits.burst = 0


def for_vm(limits: Limits, machine: Machine) -> Limits:
    """What the host holds the VM as a whole to: never so little that the VMM would be hurt before the container is.

    Memory: not the container's limit but all that this VM can take, which is fixed; so a container may use its limit to the last page. The number
    of processes is the guest's alone: on the host it would count QEMU's threads.
    """
    host = Limits()
    beside = machine.host_memory - machine.limit_max
    for name in ("memory", "memory_swap", "reservation", "quota"):
        setattr(host, name, getattr(limits, name))
    if _is_limit(limits.memory):
        host.memory = machine.host_memory
    if limits.memory_swap is not None and _is_limit(limits.memory_swap):
        host.memory_swap = machine.host_memory + limits.memory_swap - (limits.memory or 0)
    if limits.reservation is not None and _is_limit(limits.reservation):
        host.reservation = min(limits.reservation + beside, machine.host_memory)
    if limits.quota is not None and _is_limit(limits.quota):
        host.quota = limits.quota + (limits.period or PERIOD_US) * VMM_CPU_PERCENT // 100
    for name in (
        "swappiness",
        "shares",
        "period",
        "burst",
        "idle",
        "cpus",
        "mems",
        "io_weight",
        "weights",
        "throttles",
    ):
        setattr(host, name, getattr(limits, name))
    host.unified = {file: text for file, text in limits.unified.items() if file.partition(".")[0] in _ON_HOST}
    return host


def for_container(limits: Limits) -> Limits:
    """What the guest holds the container to. Its host's CPUs, disks and swap are not there."""
    guest = Limits()
    for name in (*_CONTAINER_FIELDS, "hugepages"):
        setattr(guest, name, getattr(limits, name))
    guest.unified = {file: text for file, text in limits.unified.items() if file.partition(".")[0] in _IN_GUEST}
    return guest


def guest_files(limits: Limits) -> dict[str, str]:
    """Files of the container's cgroup in the guest, which is v2, and what is to be in them."""
    files: dict[str, str] = {}
    for setting in settings(for_container(limits)):
        file, text = setting.candidates[-1]
        files[file] = text
    return files
