"""Compile ``linux.devices`` and the devices and links that every container has (spec, "Default Devices"). Pure."""

from __future__ import annotations

import _stat as stat

from rundctl.errors import ConfigError
from rundctl.guest import ops
from rundctl.lean import path as paths
from rundctl.oci.support import invalid, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.plan.mounts import Mount

_MODE = 0o666
_MODE_BITS = 0o7777
_TYPES = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "u": stat.S_IFCHR, "p": stat.S_IFIFO}
_NUMBERS = (1 << 12, 1 << 20)  # of Linux's major and minor numbers
_PRIVILEGED = "--privileged asks for all devices of the host; what else it gives is --cap-add all, --security-opt seccomp=unconfined and unmask=all"

_DEFAULTS: dict[str, tuple[int, int]] = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}
# Character devices that mean the same on every kernel: the defaults, console, ptmx, fuse and tun.
_UNIVERSAL = frozenset((*_DEFAULTS.values(), (5, 1), (5, 2), (10, 229), (10, 200)))

_LINKS: tuple[tuple[str, str], ...] = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
)


def asked(spec: dict[str, Any]) -> list[tuple[str, int, int, str]]:
    """Kind, numbers and path of those devices that may be the host's, by which to ask it."""
    devices = [_Device(entry, "") for entry in spec.get("linux", {}).get("devices", ())]
    return [(device.kind, *device.number, device.path) for device in devices if device.may_be_the_hosts]


def compile_devices(devices: list[dict[str, Any]], mounts: list[Mount], host: frozenset[str]) -> list[ops.Op]:
    """Nodes and links, before PIVOT. A /dev that is bound from the host is left as it is, as in runc.

    ``host``: the paths of those nodes of `asked` that mean a device of the host.
    """
    nodes = {path: ops.mknod(path, stat.S_IFCHR | _MODE, major, minor) for path, (major, minor) in _DEFAULTS.items()}
    found = [_Device(entry, f"linux.devices[{index}]") for index, entry in enumerate(devices)]
    _refuse_the_hosts([device for device in found if device.may_be_the_hosts and device.path in host])
    for device in found:
        nodes[device.path] = device.compile()
    if any(mount.is_bind and mount.destination == "/dev" for mount in mounts):
        return []
    return [*nodes.values(), *(ops.symlink(path, text) for path, text in _LINKS if path not in nodes)]


class _Device:
    """An entry of ``linux.devices``, checked; a relative path counts from /, as in runc."""

    __slots__ = ("entry", "kind", "number", "path", "where")

    def __init__(self, entry: dict[str, Any], where: str) -> None:
        self.entry = entry
        self.where = where
        self.kind: str = entry["type"]
        self.path = paths.normpath("/" + entry["path"].lstrip("/"))
        self.number: tuple[int, int] = entry.get("major", 0), entry.get("minor", 0)

    @property
    def may_be_the_hosts(self) -> bool:
        """Whether its number means something else, or nothing, on another kernel."""
        return self.kind == "b" or (self.kind in ("c", "u") and self.number not in _UNIVERSAL)

    def compile(self) -> ops.Op:
        """Its node; ConfigError if there can be none."""
        if self.kind not in _TYPES:
            raise invalid(f"{self.where}.type", f"expected one of {', '.join(_TYPES)}, got {self.kind!r}")
        if self.path == "/":
            raise invalid(f"{self.where}.path", f"expected the path of a node, got {self.entry['path']!r}")
        mode = _TYPES[self.kind] | (self.entry.get("fileMode", _MODE) & _MODE_BITS)
        owner = (self.entry.get("uid", 0), self.entry.get("gid", 0))
        if self.kind == "p":
            return ops.mknod(self.path, mode, 0, 0, *owner)
        for name, number, limit in zip(("major", "minor"), self.number, _NUMBERS, strict=True):
            if number not in range(limit):
                raise invalid(f"{self.where}.{name}", f"expected a number from 0 to {limit - 1}, got {number}")
        return ops.mknod(self.path, mode, *self.number, *owner)


def _refuse_the_hosts(devices: list[_Device]) -> None:
    if not devices:
        return
    first = devices[0]
    if len(devices) == 1:
        name = f"{first.path} ({first.kind} {first.number[0]}:{first.number[1]})"
        raise refused(first.where, f"{name} is a device of the host, and does not exist in the VM")
    why = f"{first.path} and {len(devices) - 1} more are devices of the host, and do not exist in the VM"
    raise ConfigError(f"config.json: linux.devices: not supported: {why}", hint=_PRIVILEGED)
