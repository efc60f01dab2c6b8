"""The state of a container as JSON (runtime-spec, "State"), with the fields runc adds."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rundctl.types import Status

OCI_VERSION = "1.2.1"  # the newest version this code knows
_NANOSECONDS = 1_000_000_000


def state_json(record: Mapping[str, Any], status: Status, pid: int) -> dict[str, Any]:
    """What ``state`` prints and hooks read: runc's fields in runc's order; ``pid`` is 0 for what is stopped.

    Of the record: ``id``, ``oci_version``, ``bundle``, ``rootfs``, ``created`` (seconds since the epoch), ``annotations``,
    ``owner_uid``.
    """
    state: dict[str, Any] = {
        "ociVersion": record["oci_version"],
        "id": record["id"],
        "pid": pid,
        "status": status.value,
        "bundle": record["bundle"],
        "rootfs": record["rootfs"],
        "created": timestamp(round(record["created"] * _NANOSECONDS)),
    }
    if record["annotations"]:
        state["annotations"] = record["annotations"]
    state["owner"] = _user_name(record["owner_uid"])
    return state


def timestamp(time_ns: int) -> str:
    """RFC 3339 in UTC as Go's RFC3339Nano writes it: a fraction of up to 9 digits without trailing zeros."""
    seconds, nanoseconds = divmod(time_ns, _NANOSECONDS)
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def _user_name(uid: int) -> str:
    """Name of a host's user; empty if it has none, as in runc."""
    if uid == 0:  # spares the name service
        return "root"
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
