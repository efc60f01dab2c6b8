"""Compile ``linux.devices`` and the devices and links that every container has (spec, "Default Devices"). Pure."""

from __future__ import annotations

import posixpath
import stat

from rundctl.guest import ops
from rundctl.oci.support import invalid, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.plan.mounts import Mount

_MODE = 0o666
_MODE_BITS = 0o7777

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


def compile_devices(devices: list[dict[str, Any]], mounts: list[Mount]) -> list[ops.Op]:
    """Nodes and links, before PIVOT. A /dev that is bound from the host is left as it is, as in runc."""
    nodes = {path: ops.mknod(path, stat.S_IFCHR | _MODE, major, minor) for path, (major, minor) in _DEFAULTS.items()}
    for index, device in enumerate(devices):
        op = _device(device, f"linux.devices[{index}]")
        nodes[str(op.arguments[0])] = op
    if any(mount.is_bind and mount.destination == "/dev" for mount in mounts):
        return []
    return [*nodes.values(), *(ops.symlink(path, text) for path, text in _LINKS if path not in nodes)]


def _device(device: dict[str, Any], where: str) -> ops.Op:
    kind, path = device["type"], device["path"]
    if not path.startswith("/"):
        raise invalid(f"{where}.path", f"expected an absolute path, got {path!r}")
    major, minor = device.get("major", 0), device.get("minor", 0)
    if kind == "b" or (kind in ("c", "u") and (major, minor) not in _UNIVERSAL):
        raise refused(where, f"{path} ({kind} {major}:{minor}) is a device of the host, and does not exist in the VM")
    if kind not in ("c", "u", "p"):
        raise invalid(f"{where}.type", f"expected one of b, c, u, p, got {kind!r}")
    node = posixpath.normpath("/" + path.lstrip("/"))
    mode = device.get("fileMode", _MODE) & _MODE_BITS
    owner = (device.get("uid", 0), device.get("gid", 0))
    if kind == "p":
        return ops.mknod(node, stat.S_IFIFO | mode, 0, 0, *owner)
    return ops.mknod(node, stat.S_IFCHR | mode, major, minor, *owner)
