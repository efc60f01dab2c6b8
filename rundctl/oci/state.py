"""The state of a container as JSON (runtime-spec, "State"), with the fields runc adds."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rundctl.types import ContainerId, HostPid, Status

# What `state` reports: the newest version whose state we write, whatever version the bundle is of (as runc does).
OCI_VERSION = "1.2.1"
_NANOSECONDS = 1_000_000_000


def oci_state(
    container: ContainerId, status: Status, pid: HostPid | int, bundle: str, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """What hooks read on their standard input; ``pid`` 0 means that there is none."""
    state: dict[str, Any] = {"ociVersion": OCI_VERSION, "id": container, "status": status.value}
    if pid:
        state["pid"] = pid
    state["bundle"] = bundle
    if annotations:
        state["annotations"] = dict(annotations)
    return state


def runc_state(  # noqa: PLR0913 - one a field
    container: ContainerId,
    status: Status,
    pid: HostPid | int,
    bundle: str,
    annotations: Mapping[str, str],
    *,
    rootfs: str,
    created_ns: int,
    owner: str,
) -> dict[str, Any]:
    """What ``state`` prints: runc's fields in runc's order, ``pid`` even if 0. ``created_ns`` counts from the epoch."""
    state: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "id": container,
        "pid": pid,
        "status": status.value,
        "bundle": bundle,
        "rootfs": rootfs,
        "created": timestamp(created_ns),
    }
    if annotations:
        state["annotations"] = dict(annotations)
    state["owner"] = owner
    return state


def timestamp(time_ns: int) -> str:
    """RFC 3339 in UTC as Go's RFC3339Nano writes it: a fraction of up to 9 digits without trailing zeros."""
    seconds, nanoseconds = divmod(time_ns, _NANOSECONDS)
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"
