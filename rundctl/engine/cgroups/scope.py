"""Cgroups that systemd makes: a lease that is one of its transient scopes, for ``--systemd-cgroup`` (docs/adr/0007-systemd.md). The pool has no part in it.

systemd makes a scope only around a process that is there already, and ours is to be *born* in it. So a placeholder, which does nothing, is moved in by
systemd; the launcher joins as it joins any cgroup, and then the placeholder ends. It ends as well when this process does, because it waits at a pipe whose
other end is here.
"""

from __future__ import annotations

from string import ascii_letters, digits

from rundctl.engine.cgroups.lease import Lease
from rundctl.errors import ConfigError, HostError
from rundctl.host import cgroupfs, process, systemd
from rundctl.host.cgroup_settings import PERIOD_US, UNLIMITED, io_weight_of, weight_of_shares
from rundctl.host.cgroupfs import Place
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rundctl.engine.cgroups.lease import Facts
    from rundctl.host.cgroup_settings import Limits
    from rundctl.host.cgroupfs import Hierarchy

_DEFAULT_SLICE = "system.slice"  # runc's, for root
_PREFIX = "rundctl"
_PARTS = 3
_UNIT_MAX = 255
_NO_UNIT_CHARACTERS = str.maketrans("", "", ascii_letters + digits + ":-_.\\@")  # systemd.unit(5)
_INFINITY = (1 << 64) - 1
_STOP_TIMEOUT_US = 10_000_000  # of processes that somebody else has put into the scope; ours have ended before


def path_of(cgroups_path: str, container_id: str, root_name: str = "") -> str:
    """The scope's path below each hierarchy, for ``slice:prefix:name``; without it a scope of the container's id in systemd's usual slice.

    ConfigError for another form, in runc's words, and for a slice that cannot be one.
    """
    if not cgroups_path:
        name = f"{container_id}{'.' if root_name else ''}{root_name}"
        return f"{expand(_DEFAULT_SLICE)}/{_PREFIX}-{name}.scope"
    parts = cgroups_path.split(":")
    if len(parts) != _PARTS:
        raise ConfigError(
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got {_quoted(cgroups_path)} instead'
        )
    slice_, prefix, name = parts
    unit = f"{prefix}-{name}.scope"
    if not name or not unit.isascii() or len(unit) > _UNIT_MAX or unit.translate(_NO_UNIT_CHARACTERS):
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r}: {unit!r} cannot be the name of a scope")
    if name.endswith(".slice"):
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r}: a container's unit is a scope")
    return f"{expand(slice_ or _DEFAULT_SLICE).rstrip('/')}/{unit}"


def expand(slice_: str) -> str:
    """The path of a slice: each dash of its name is a level (systemd.slice(5)): ``a-b.slice`` is ``/a.slice/a-b.slice``. ConfigError for what is none."""
    name = slice_.removesuffix(".slice")
    if name == "-" and name != slice_:
        return "/"
    levels = name.split("-")
    if name == slice_ or "/" in slice_ or not all(levels):
        raise ConfigError(f"config.json: linux.cgroupsPath: invalid slice name: {slice_}")
    return "".join(f"/{'-'.join(levels[: depth + 1])}.slice" for depth in range(len(levels)))


def lease(hierarchies: Sequence[Hierarchy], path: str) -> Scope:
    """Name a container's scope. HostError where no hierarchy could show it."""
    if not hierarchies:
        raise HostError("--systemd-cgroup: no writable cgroup hierarchy is mounted", hint="rundctl doctor")
    return Scope([Place(hierarchy, path) for hierarchy in hierarchies])


class Scope(Lease):
    """A transient scope of systemd, and the same path in hierarchies that systemd does not keep (v1)."""

    __slots__ = ("_is_ours", "_placeholder")
    kind = "systemd"

    def __init__(self, where: list[Place]) -> None:
        super().__init__(where)
        self._is_ours = False
        self._placeholder: tuple[int, int] | None = None

    def facts(self) -> Facts:
        """As `Lease.facts`; without places until systemd has made it: a unit of that name may be another container's, which nobody must stop for ours.

        Who is killed in between leaves an empty scope, which systemd removes.
        """
        return super().facts() if self._is_ours else {"kind": self.kind, "places": []}

    @property
    def _path(self) -> str:
        return self.places[0].path

    def make(self, record: Callable[[Facts], None]) -> None:
        """Have systemd make it. HostError if there is no systemd, in its words if it refuses, or if it has another view of the tree."""
        with systemd.Manager() as manager:
            pid = self._start_placeholder()
            try:
                manager.start_scope(os.path.basename(self._path), self._properties(pid))
                self._is_ours = True
                record(self.facts())
                self._check(pid)
                for place in self.places:
                    cgroupfs.make(place.hierarchy, place.path)
            except BaseException:
                self.joined()
                raise

    def joined(self) -> None:
        """The launcher is in it, or never will be: the placeholder may go."""
        if self._placeholder is not None:
            pid, pipe = self._placeholder
            self._placeholder = None
            os.close(pipe)
            os.waitpid(pid, 0)

    def limited(self, limits: Limits) -> None:
        """As `Lease.limited`: systemd writes its own idea of limits at a ``daemon-reload``. HostError in its words."""
        told = properties(limits, is_v2=all(place.hierarchy.is_v2 for place in self.places))
        if told:
            with systemd.Manager() as manager:
                manager.set_properties(os.path.basename(self._path), told)

    def give_back(self, *, unfinished: bool = False) -> str:
        """As `Lease.give_back`: stop the scope, and remove what systemd does not. What is gone is fine, systemd included."""
        del unfinished  # systemd waits as long as it takes
        if self.places and systemd.is_running():
            with systemd.Manager() as manager:
                manager.stop(os.path.basename(self._path))
        for place in self.places:
            cgroupfs.remove(place.hierarchy, place.path)
        return ""

    def describe(self) -> str:
        """As `Lease.describe`."""
        return "a scope made by systemd, without the pool"

    def _start_placeholder(self) -> int:
        waits, pipe = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            pid = process.spawn([process.need_tool("cat", "coreutils")], stdio=(waits, null, null))
        except BaseException:
            os.close(pipe)
            raise
        finally:
            os.close(waits)
            os.close(null)
        self._placeholder = pid, pipe
        return pid

    def _properties(self, pid: int) -> list[systemd.Property]:
        """As runc sets them: its own subtree is the container's business, accounts are kept, and no target's start or stop touches it."""
        slice_ = os.path.basename(os.path.dirname(self._path)) or "-.slice"
        accounts = [f"{name}Accounting" for name in ("CPU", "IO", "Memory", "Tasks")]
        return [
            ("Description", ("s", f"rundctl container {os.path.basename(self._path)}")),
            ("Slice", ("s", slice_)),
            ("PIDs", ("au", [pid])),
            ("Delegate", ("b", True)),
            ("DefaultDependencies", ("b", False)),
            ("TimeoutStopUSec", ("t", _STOP_TIMEOUT_US)),
            *((name, ("b", True)) for name in accounts),
        ]

    def _check(self, pid: int) -> None:
        """Whether systemd's scope is where we are going to join it."""
        where = cgroupfs.paths_of_process(pid)
        kept = [where[controller] for controller in ("", "name=systemd") if controller in where]
        if self._path not in kept:
            raise HostError(f"--systemd-cgroup: systemd made the scope at {' '.join(kept)}, not at {self._path}")


def properties(limits: Limits, *, is_v2: bool) -> list[systemd.Property]:
    """Limits as systemd.resource-control(5) has them, those that it knows. Pure; the files are `cgroup_settings`' business, these say the same."""
    found: list[systemd.Property] = []

    def tell(name: str, value: int | None) -> None:
        if value is not None:
            found.append((name, ("t", _INFINITY if value == UNLIMITED else value)))

    tell("MemoryMax" if is_v2 else "MemoryLimit", limits.memory)
    if is_v2:
        tell("MemoryLow", limits.reservation if limits.reservation != UNLIMITED else 0)
        tell("MemorySwapMax", _swap(limits))
    if limits.shares is not None:
        tell("CPUWeight" if is_v2 else "CPUShares", weight_of_shares(limits.shares) if is_v2 else limits.shares)
    tell("CPUQuotaPerSecUSec", _quota_per_second_us(limits))
    tell("CPUQuotaPeriodUSec", limits.period)
    if limits.io_weight is not None:
        tell("IOWeight" if is_v2 else "BlockIOWeight", io_weight_of(limits.io_weight) if is_v2 else limits.io_weight)
    tell("TasksMax", limits.pids)
    for name, text in (("AllowedCPUs", limits.cpus), ("AllowedMemoryNodes", limits.mems)):
        if text and is_v2:
            found.append((name, ("ay", _bits(text))))
    return found


def _swap(limits: Limits) -> int | None:
    if limits.memory_swap is None or limits.memory_swap == UNLIMITED:
        return limits.memory_swap
    return limits.memory_swap - (limits.memory or 0)


def _quota_per_second_us(limits: Limits) -> int | None:
    """systemd keeps whole percents of a CPU: rounded up to them, as runc does, so that nobody gets less."""
    if limits.quota is None or limits.quota == UNLIMITED:
        return limits.quota
    per_second = limits.quota * 1_000_000 // (limits.period or PERIOD_US)
    return -(-per_second // 10_000) * 10_000


def _bits(text: str) -> bytes:
    """``0-2,7`` as a little-endian mask."""
    mask = 0
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        for number in range(int(low), int(high or low) + 1):
            mask |= 1 << number
    return mask.to_bytes(-(-mask.bit_length() // 8), "little")


def _quoted(text: str) -> str:
    """As Go's %q has it, for what a path may hold."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
