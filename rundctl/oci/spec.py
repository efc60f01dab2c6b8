"""The example configuration that ``rundctl spec`` writes: a shell with the isolation that is usual, as runc's."""

from __future__ import annotations

import json
import os

from rundctl.errors import ConfigError, words
from rundctl.oci.state import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_QUIET = ["nosuid", "noexec", "nodev"]

_MASKED = (
    "/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats "
    "/proc/sched_debug /sys/firmware /proc/scsi"
)
_READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"


def example() -> dict[str, Any]:
    """The configuration; runc's but for the terminal, which would be refused as yet: the example must run."""
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [_PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "rundctl",
        "mounts": [
            _mount("/proc", "proc", []),
            _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            _mount("/dev/shm", "tmpfs", [*_QUIET, "mode=1777", "size=65536k"], "shm"),  # noqa: S108 - the container's
            _mount("/dev/mqueue", "mqueue", _QUIET),
            _mount("/sys", "sysfs", [*_QUIET, "ro"]),
            _mount("/sys/fs/cgroup", "cgroup", [*_QUIET, "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": _MASKED.split(),
            "readonlyPaths": _READ_ONLY.split(),
        },
    }


def write(bundle: str) -> None:
    """Write config.json into a bundle, never over one that is there; ConfigError says why not."""
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(example(), indent="\t") + "\n")
    except FileExistsError:
        raise ConfigError(f"{path} exists", hint="remove it first") from None
    except OSError as error:
        raise ConfigError(f"write {path}: {words(error)}") from error


def _mount(destination: str, fstype: str, options: list[str], source: str = "") -> dict[str, Any]:
    entry: dict[str, Any] = {"destination": destination, "type": fstype, "source": source or fstype}
    if options:
        entry["options"] = list(options)
    return entry
