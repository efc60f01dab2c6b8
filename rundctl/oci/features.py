"""What ``rundctl features`` prints (runtime-spec, "Features"), from the tables that the plan compiler follows."""

from __future__ import annotations

from rundctl.oci import linux, options, support_table
from rundctl.oci.state import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ARCHITECTURES = ("SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64")  # those an x86-64 guest can run
_OFF = {"enabled": False}


def document() -> dict[str, Any]:
    """The features document."""
    mount_options = {*linux.MOUNT_OPTIONS, *linux.RECURSIVE_OPTIONS, *linux.PROPAGATIONS, "tmpcopyup"}
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": _hooks(),
        "mountOptions": sorted(mount_options),
        "linux": {
            "namespaces": sorted((*linux.REQUIRED_NAMESPACES, *linux.OPTIONAL_NAMESPACES)),
            "capabilities": list(linux.CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": list(linux.SECCOMP_ACTIONS),
                "operators": list(linux.SECCOMP_OPERATORS),
                "archs": list(_ARCHITECTURES),
                "knownFlags": [*linux.SECCOMP_FLAGS, *linux.SECCOMP_REFUSED_FLAGS],
                "supportedFlags": list(linux.SECCOMP_FLAGS),
            },
            "apparmor": _OFF,
            "selinux": _OFF,
            "intelRdt": _OFF,
            "mountExtensions": {"idmap": _OFF},
        },
        "potentiallyUnsafeConfigAnnotations": sorted(options.KNOWN),
    }


def _hooks() -> list[str]:
    """The hooks the support table calls honoured."""
    rows = (row for row in support_table.ROWS if row[1] == support_table.HONOURED)
    names = (row[0].removeprefix("hooks.") for row in rows if row[0].startswith("hooks."))
    return [name for name in names if "[" not in name]
