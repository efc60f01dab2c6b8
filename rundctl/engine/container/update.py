"""``update``: other limits for a container that runs, on the host and in its guest: all of them, or none.

What is written is always the whole of the new limits, so an update mends what one that was killed in the middle has left.
"""

from __future__ import annotations

import copy
import errno
import os

from rundctl.engine.cgroups import kinds, limits
from rundctl.engine.container import vm
from rundctl.engine.container.guest import Guest
from rundctl.engine.plan import compiler
from rundctl.engine.records import store
from rundctl.errors import ConfigError, GuestError, RundctlError, StateError
from rundctl.guest import ops, wire
from rundctl.host import cgroup_files, cgroup_settings
from rundctl.host.cgroup_settings import PERIOD_US, UNLIMITED
from rundctl.oci import support
from rundctl.types import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.cgroups.limits import Machine
    from rundctl.engine.container.context import Context
    from rundctl.engine.records.store import Container
    from rundctl.host.cgroup_settings import Change, Limits

ANSWER_TIMEOUT_S = 10.0
_CONTAINER = 1
# What can be changed, as in runc; 0 and "" mean: as before.
_FIELDS = {
    "memory": ("limit", "reservation", "swap"),
    "cpu": ("shares", "quota", "period", "cpus", "mems"),
    "blockIO": ("weight",),
    "pids": ("limit",),
}
_CPU_ALSO_ZERO = ("burst", "idle")  # here 0 says something
# Files of ``unified`` that would hide what a field now says.
_HIDES = {
    ("memory", "limit"): "memory.max",
    ("memory", "reservation"): "memory.low",
    ("memory", "swap"): "memory.swap.max",
    ("cpu", "shares"): "cpu.weight",
    ("cpu", "quota"): "cpu.max",
    ("cpu", "period"): "cpu.max",
    ("cpu", "burst"): "cpu.max.burst",
    ("cpu", "idle"): "cpu.idle",
    ("cpu", "cpus"): "cpuset.cpus",
    ("cpu", "mems"): "cpuset.mems",
    ("pids", "limit"): "pids.max",
}


def update(ctx: Context, container_id: str, asked: dict[str, Any]) -> None:
    """Hold a container to other limits (``asked``: some of ``linux.resources``). StateError if it does not run.

    ConfigError for what makes no sense or is more than the VM has; HostError or GuestError, naming the file, for what a kernel refuses: then all is as
    before, or what is not is told.
    """
    container = store.load(ctx.root, container_id)
    with store.locked(container):
        try:
            _check_state(container)
            for line in (*support.check({"linux": {"resources": asked}}), *_left_out(asked)):
                ctx.debug(line)
            _update_locked(container, asked)
        except ConfigError as error:
            error.message = error.message.removeprefix("config.json: ")  # none was read
            raise


def _check_state(container: Container) -> None:
    status = container.status()
    if status is Status.PAUSED:
        raise StateError(
            "cannot update a paused container: its guest cannot answer", hint=f"rundctl resume {container.id}"
        )
    if not status.can_kill:
        raise container.not_running()


def _left_out(asked: dict[str, Any]) -> list[str]:
    """A line for what `update` does not change; as with runc it may be there, for callers send all they know."""
    lines = []
    for section, content in asked.items():
        known = (*_FIELDS.get(section, ()), *(_CPU_ALSO_ZERO if section == "cpu" else ()))
        names = content if isinstance(content, dict) and section in _FIELDS else {"": content}
        for name, value in names.items():
            if section != "unified" and name not in known and not support.asks_for_nothing(value):
                lines.append(f"update: {section}{'.' if name else ''}{name}: not changed by update")
    return lines


def _update_locked(container: Container, asked: dict[str, Any]) -> None:
    record = container.record
    machine = limits.Machine(**record["machine"])
    merged = merge(record["resources"], asked)
    before, wanted = limits.parse(record["resources"]), limits.parse(merged)
    check_room(wanted, machine)
    if wanted.memory is not None and (asked.get("memory") or {}).get("checkBeforeUpdate"):
        _check_usage(container, wanted.memory)
    limits.release(wanted, before)
    cgroups = kinds.recorded(record["cgroups"])
    held = limits.for_vm(wanted, machine)
    settings = cgroup_settings.settings(held)
    host = cgroup_settings.changes(cgroups.directories, settings)
    guest = _Guest(container, limits.guest_files(before), limits.guest_files(wanted))
    # A limit never falls below what is used because the other side was not there yet.
    if _grows(wanted, before):
        _in_turn(lambda: cgroup_settings.perform(host), guest.write, lambda: _take_back(host))
    else:
        _in_turn(guest.write, lambda: cgroup_settings.perform(host), guest.take_back)
    record["resources"] = merged
    container.save()
    cgroups.limited(held)


def merge(before: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The resources of a container after an update, by runc's rules. Pure."""
    merged = copy.deepcopy(before)
    unified = merged.setdefault("unified", {})
    unified.update(asked.get("unified") or {})
    for section, names in _FIELDS.items():
        given = asked.get(section) or {}
        also = [name for name in _CPU_ALSO_ZERO if given.get(name) is not None] if section == "cpu" else []
        for name in [*(name for name in names if given.get(name)), *also]:
            merged.setdefault(section, {})[name] = given[name]
            if _HIDES.get((section, name)) not in (asked.get("unified") or {}):
                unified.pop(_HIDES.get((section, name), ""), None)
    memory = asked.get("memory") or {}
    if memory.get("limit") == UNLIMITED and not memory.get("swap"):
        merged["memory"]["swap"] = UNLIMITED  # a limit of both is none without one of memory
    return merged


def check_room(wanted: Limits, machine: Machine) -> None:
    """ConfigError for more than the container's VM, whose size is fixed, has. Pure."""
    if wanted.memory is not None and wanted.memory > machine.limit_max:
        most = machine.limit_max
        raise ConfigError(
            f"memory limit {wanted.memory}: this container's VM has room for at most {most} bytes ({most >> 20} MiB)",
            hint="a VM does not grow: create the container anew with that limit",
        )
    if wanted.quota is not None and wanted.quota > machine.vcpus * (wanted.period or PERIOD_US):
        most = machine.vcpus * (wanted.period or PERIOD_US)
        raise ConfigError(
            f"CPU quota {wanted.quota}: this container's VM has {machine.vcpus} CPUs, so at most {most} of a period of {most // machine.vcpus}",
            hint="a VM does not grow: create the container anew with that quota",
        )


def _check_usage(container: Container, limit: int) -> None:
    """ConfigError for a limit below what the container uses, at which its kernel would kill (``checkBeforeUpdate``)."""
    with Guest(container) as guest:
        used = int(guest.read(("memory.current",)).get("memory.current", b"0"))
    if used > limit:
        raise ConfigError(f"memory limit {limit}: the container uses {used} bytes, and checkBeforeUpdate is set")


def _grows(wanted: Limits, before: Limits) -> bool:
    if wanted.memory is None or before.memory is None:
        return False
    return wanted.memory == UNLIMITED or wanted.memory > before.memory


def _in_turn(first: Any, second: Any, back: Any) -> None:
    """Two steps, of which the first is taken back if the second fails. That it cannot be is told with the failure."""
    first()
    try:
        second()
    except RundctlError as error:
        try:
            back()
        except RundctlError as other:
            error.message += f"; and not taken back: {other.message}"
        raise


def _take_back(changes: list[Change]) -> None:
    cgroup_settings.perform([change.back() for change in reversed(changes)])


class _Guest:
    """The container's cgroup in its guest, which is v2."""

    __slots__ = ("_before", "_container", "_wanted")

    def __init__(self, container: Container, before: dict[str, str], wanted: dict[str, str]) -> None:
        defaults = cgroup_files.defaults(is_v2=True)
        self._container = container
        self._wanted = wanted
        # What another part of the system has set there, nobody here knows: only what was asked for is taken back.
        self._before = {name: before.get(name, defaults.get(name, "max")) for name in wanted}

    def write(self) -> None:
        """All files, or none of them."""
        self._send(self._wanted, undo=True)

    def take_back(self) -> None:
        """What was there before."""
        self._send(self._before, undo=False)

    def _send(self, files: dict[str, str], *, undo: bool) -> None:
        if not files:
            return
        where = compiler.cgroup_of(_CONTAINER)
        bound = [("cpu.max.burst", "0")] if "cpu.max.burst" in files else []  # by the quota, which may become less
        writes = [ops.write(f"{where}/{name}", text) for name, text in (*bound, *files.items())]
        sent = ops.Plan(0, tuple(writes))
        try:
            result = vm.ask(self._container, wire.PLAN, sent.encode(), ANSWER_TIMEOUT_S, about=0)
        except GuestError as late:  # what was sent is with the guest, and nobody can call it back
            late.hint = "the guest may still take the new limits when it runs again; repeat the update to be sure"
            raise
        if result is None or result.error == errno.ECHILD:
            raise self._container.not_running()
        if not result.error:
            return
        what = sent.ops[result.index].describe() if result.index < len(sent.ops) else "write the guest's limits"
        error = GuestError(f"in the guest: {what}: {os.strerror(result.error).lower()}")
        if undo:
            _in_turn(lambda: None, lambda: _raise(error), self.take_back)
        raise error


def _raise(error: RundctlError) -> None:
    raise error
