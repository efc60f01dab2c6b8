"""Limits as files of a cgroup: which file of which version says what, and how several are written that bound one another.

A *setting* is one thing to be said, and all the files it could be said in, in order of preference: of several directories (one a hierarchy in v1,
one in all in v2, both on a hybrid host) the first that has such a file gets it. So nothing here asks which version a host has.
"""

from __future__ import annotations

import errno

from rundctl.errors import HostError, words
from rundctl.host.cgroup_files import read, write
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNLIMITED = -1
PERIOD_US = 100_000  # the kernel's default (Documentation/scheduler/sched-bwc.rst)
_SHARES_MIN, _SHARES_MAX, _WEIGHT_MAX = 2, 262_144, 10_000
_THROTTLES = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
_UNBOUND = (errno.EINVAL, errno.EBUSY, errno.ERANGE)  # what another file, written first, may mend


class Limits:
    """What a cgroup shall be held to; None, or nothing in a dictionary: leave it as it is; `UNLIMITED`: take a limit away. Bytes and microseconds.

    ``memory_swap`` is memory and swap together. ``weights`` and ``throttles``: by device (``8:0``), the latter by ``rbps wbps riops wiops`` too.
    ``unified``: further files of v2, verbatim.
    """

    __slots__ = (
        "burst",
        "cpus",
        "hugepages",
        "idle",
        "io_weight",
        "memory",
        "memory_swap",
        "mems",
        "period",
        "pids",
        "quota",
        "reservation",
        "shares",
        "swappiness",
        "throttles",
        "unified",
        "weights",
    )

    def __init__(self) -> None:
        self.memory: int | None = None
        self.memory_swap: int | None = None
        self.reservation: int | None = None
        self.swappiness: int | None = None
        self.shares: int | None = None
        self.quota: int | None = None
        self.period: int | None = None
        self.burst: int | None = None
        self.idle: int | None = None
        self.cpus: str | None = None
        self.mems: str | None = None
        self.pids: int | None = None
        self.io_weight: int | None = None
        self.weights: dict[str, int] = {}
        self.throttles: dict[tuple[str, str], int] = {}
        self.hugepages: dict[str, int] = {}
        self.unified: dict[str, str] = {}


class Setting:
    """One thing to be said: what it is called in config.json, and (file, text) in order of preference. Where no file is, it fails unless ``optional``."""

    __slots__ = ("candidates", "name", "optional")

    def __init__(self, name: str, *candidates: tuple[str, str], optional: bool = False) -> None:
        self.name = name
        self.candidates = candidates
        self.optional = optional


class Change:
    """One write to be done, and what takes it back."""

    __slots__ = ("before", "path", "text")

    def __init__(self, path: str, text: str, before: str) -> None:
        self.path = path
        self.text = text
        self.before = before

    def back(self) -> Change:
        """The change that takes this one back."""
        return Change(self.path, self.before, self.text)


def weight_of_shares(shares: int) -> int:
    """v2's cpu.weight (1 to 10000) for v1's cpu.shares (2 to 262144), as runc and crun convert it: linear, 1024 is 39."""
    return 1 + (shares - _SHARES_MIN) * (_WEIGHT_MAX - 1) // (_SHARES_MAX - _SHARES_MIN)


def shares_of_weight(weight: int) -> int:
    """The least cpu.shares that have this cpu.weight."""
    return _SHARES_MIN + -(-(weight - 1) * (_SHARES_MAX - _SHARES_MIN) // (_WEIGHT_MAX - 1))


def io_weight_of(weight: int) -> int:
    """v2's io.weight (1 to 10000) for a blkio weight (10 to 1000), as runc converts it."""
    return 1 + (weight - 10) * (_WEIGHT_MAX - 1) // 990


def settings(limits: Limits) -> list[Setting]:
    """Everything that is to be said, each once for both versions."""
    return [
        *_memory(limits),
        *_cpu(limits),
        *_block_io(limits),
        *([Setting("pids.limit", ("pids.max", _max(limits.pids)))] if limits.pids is not None else []),
        *(
            Setting(f"hugepageLimits[{size}]", (f"hugetlb.{size}.{kind}", str(limit)))
            for size, limit in limits.hugepages.items()
            for kind in ("max", "rsvd.max")
        ),
        *(Setting(f"unified.{file}", (file, text)) for file, text in limits.unified.items()),
    ]


def _max(limit: int) -> str:
    """A limit in v2's words; v1 takes -1."""
    return "max" if limit == UNLIMITED else str(limit)


def _memory(limits: Limits) -> Iterable[Setting]:
    if limits.memory is not None:
        yield Setting(
            "memory.limit", ("memory.limit_in_bytes", str(limits.memory)), ("memory.max", _max(limits.memory))
        )
    if limits.memory_swap is not None:
        swap = UNLIMITED if limits.memory_swap == UNLIMITED else limits.memory_swap - (limits.memory or 0)
        total = ("memory.memsw.limit_in_bytes", str(limits.memory_swap))
        yield Setting("memory.swap", total, ("memory.swap.max", _max(swap)), optional=swap <= 0)
    if limits.reservation is not None:
        text, low = str(limits.reservation), str(max(limits.reservation, 0))
        yield Setting("memory.reservation", ("memory.soft_limit_in_bytes", text), ("memory.low", low))
    if limits.swappiness is not None:
        yield Setting("memory.swappiness", ("memory.swappiness", str(limits.swappiness)), optional=True)


def _cpu(limits: Limits) -> Iterable[Setting]:
    if limits.shares is not None and not limits.idle:  # of one that is idle the kernel takes no shares
        weight = str(weight_of_shares(limits.shares))
        yield Setting("cpu.shares", ("cpu.shares", str(limits.shares)), ("cpu.weight", weight))
    both = f"{_max(UNLIMITED if limits.quota is None else limits.quota)} {limits.period or PERIOD_US}"
    if limits.period is not None:
        yield Setting("cpu.period", ("cpu.cfs_period_us", str(limits.period)), ("cpu.max", both))
    if limits.quota is not None:
        yield Setting("cpu.quota", ("cpu.cfs_quota_us", str(limits.quota)), ("cpu.max", both))
    if limits.burst is not None:
        yield Setting("cpu.burst", ("cpu.cfs_burst_us", str(limits.burst)), ("cpu.max.burst", str(limits.burst)))
    if limits.idle is not None:
        yield Setting("cpu.idle", ("cpu.idle", str(limits.idle)))
    for name, text in (("cpus", limits.cpus), ("mems", limits.mems)):
        if text is not None:
            yield Setting(f"cpu.{name}", (f"cpuset.{name}", text))


def _block_io(limits: Limits) -> Iterable[Setting]:
    weight = limits.io_weight
    if weight is not None:
        general = str(io_weight_of(weight))
        v1 = (("blkio.weight", str(weight)), ("blkio.bfq.weight", str(weight)))
        yield Setting("blockIO.weight", *v1, ("io.bfq.weight", str(weight)), ("io.weight", general))
    for device, weight in limits.weights.items():
        line, general = f"{device} {weight}", f"{device} {io_weight_of(weight)}"
        v1 = (("blkio.weight_device", line), ("blkio.bfq.weight_device", line))
        yield Setting("blockIO.weightDevice", *v1, ("io.bfq.weight", line), ("io.weight", general))
    for (device, kind), rate in limits.throttles.items():
        yield Setting(
            f"blockIO, {kind} of {device}",
            (_THROTTLES[kind], f"{device} {rate}"),
            ("io.max", f"{device} {kind}={rate or 'max'}"),
        )


def changes(directories: Sequence[str], wanted: Iterable[Setting]) -> list[Change]:
    """Where each setting is to be written, and what is there now. HostError for one that this host has no file for."""
    found: dict[tuple[str, str], Change] = {}
    for setting in wanted:
        change = _place(directories, setting)
        if change is not None:
            found[change.path, change.text] = change
        elif not setting.optional:
            files = " nor ".join(file for file, _ in setting.candidates)
            raise HostError(
                f"linux.resources.{setting.name}: the container's cgroup has no {files}",
                hint="this kernel, or the parent cgroup, lacks that cgroup controller",
            )
    return list(found.values())


def _place(directories: Sequence[str], setting: Setting) -> Change | None:
    for file, text in setting.candidates:
        for directory in directories:
            path = f"{directory}/{file}"
            if os.path.exists(path):
                return Change(path, text, read(path))
    return None


def perform(wanted: Sequence[Change]) -> None:
    """Write all that is not there already. A file that another one bounds (memory and memory with swap, quota and burst) is tried again after the others.

    HostError naming the first that the kernel refuses; then what was written is taken back, as far as the kernel lets it.
    """
    done, failed = _write_all([change for change in wanted if change.text != change.before])
    if failed:
        change, error = failed[0]
        _, kept = _write_all([change.back() for change in reversed(done)])
        left = "".join(f"; {change.path} keeps {change.before}" for change, _ in kept)
        raise HostError(f"write {change.text!r} to {change.path}: {words(error)}{left}") from error


def _write_all(wanted: Sequence[Change]) -> tuple[list[Change], list[tuple[Change, OSError]]]:
    """What was written, and what was not. Rounds go on as long as each one writes something."""
    done: list[Change] = []
    pending = list(wanted)
    while pending:
        failed = []
        for change in pending:
            try:
                write(change.path, change.text)
            except OSError as error:
                failed.append((change, error))
            else:
                done.append(change)
        hopeless = len(failed) == len(pending) or not all(error.errno in _UNBOUND for _, error in failed)
        pending = [change for change, _ in failed]
        if failed and hopeless:
            return done, failed
    return done, []


def apply(directories: Sequence[str], limits: Limits) -> None:
    """Hold a new container's cgroups to limits. HostError naming the setting, or the file, that cannot be."""
    perform(changes(directories, settings(limits)))


def open_oom_events(directories: Sequence[str]) -> int | None:
    """The file that counts the kernel's kills in a container's cgroup for want of memory, of either version; None without such a controller."""
    for directory in directories:
        for name in ("memory.events", "memory.oom_control"):
            try:
                return os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
    return None
