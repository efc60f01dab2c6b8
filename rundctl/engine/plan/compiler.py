"""The plan compiler: a checked bundle in, the container's operations out. Pure: no file is read, no process asked.

docs/adr/0002 gives the order and why. What the host had to find out before arrives as ``Facts``.
"""

from __future__ import annotations

from rundctl.engine.cgroups import limits
from rundctl.engine.plan import device_filter, devices
from rundctl.engine.plan import mounts as plan_mounts
from rundctl.engine.plan import process as plan_process
from rundctl.errors import ConfigError
from rundctl.guest import ops
from rundctl.guest.ops import Opcode
from rundctl.oci import support
from rundctl.oci.linux import (
    CLONE_NEWCGROUP,
    CLONE_NEWTIME,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    OPTIONAL_NAMESPACES,
    PROPAGATIONS,
    REQUIRED_NAMESPACES,
    SECCOMP_FLAGS,
    SECCOMP_REFUSED_FLAGS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rundctl.engine.plan.mounts import Volume
    from rundctl.oci.bundle import Bundle

_NANOSECONDS = 1_000_000_000
_INT64 = range(-(1 << 63), 1 << 63)
UTS_NAME_MAX = 64  # bytes, __NEW_UTS_LEN of the kernel

# Sysctls that belong to an IPC or network namespace, in the kernel's path form (runc's list).
_IPC_SYSCTLS = frozenset(
    f"kernel/{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_SYSCTL_TREES = ("net/", "fs/mqueue/")

# What of config.json makes a plan large, by the operation that carries it.
_FIELDS = {
    Opcode.EXEC: "process.args",
    Opcode.FIND: "process.args",
    Opcode.ENV: "process.env",
    Opcode.IDS: "process.user.additionalGids",
    Opcode.MKNOD: "linux.devices",
    Opcode.WRITE: "linux.sysctl",
    Opcode.MASK: "linux.maskedPaths",
    Opcode.READONLY: "linux.readonlyPaths",
    Opcode.SECCOMP: "linux.seccomp",
    Opcode.DEVICE_FILTER: "linux.resources.devices",
}


class Facts:
    """What the compiler needs beside the bundle.

    ``rootfs_ops`` mount the root at ``root`` (engine/rootfs/hybrid_rootfs.py); ``volumes``, ``shm`` (sizes in bytes) and ``cgroups`` are by index of
    ``mounts``; ``devices``: paths of `devices.asked` whose numbers are the host's; ``container`` is the number the wire knows it by; empty ``hostname``,
    ``machine_id`` and ``keyring`` leave these alone. ``rlimits``: soft and hard by number, for those that config.json leaves out. ``nulls`` and ``joined``:
    what the caller's stdio is (host/stdio.py).
    """

    __slots__ = (
        "cgroups",
        "container",
        "devices",
        "hostname",
        "joined",
        "keyring",
        "machine_id",
        "nulls",
        "rlimits",
        "root",
        "rootfs_ops",
        "seccomp_bpf",
        "shm",
        "volumes",
    )

    def __init__(  # noqa: PLR0913 - keywords all
        self,
        *,
        rootfs_ops: tuple[ops.Op, ...],
        root: str = "/root",
        container: int = 1,
        volumes: Mapping[int, Volume] | None = None,
        shm: Mapping[int, int] | None = None,
        cgroups: frozenset[int] = frozenset(),
        devices: frozenset[str] = frozenset(),
        seccomp_bpf: bytes | None = None,
        machine_id: str = "",
        hostname: str = "",
        keyring: str = "",
        nulls: int = 0,
        joined: bool = False,
        rlimits: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        self.rootfs_ops = rootfs_ops
        self.root = root
        self.container = container
        self.volumes = volumes or {}
        self.shm = shm or {}
        self.cgroups = cgroups
        self.devices = devices
        self.seccomp_bpf = seccomp_bpf
        self.machine_id = machine_id
        self.hostname = hostname
        self.keyring = keyring
        self.nulls = nulls
        self.joined = joined
        self.rlimits = rlimits or {}


class CompiledPlan(ops.Plan):
    """A plan, a line for each field that asks for what means nothing here, and one for each mistake that runc warns of, too."""

    __slots__ = ("ignored", "warnings")

    def __init__(
        self,
        clone_flags: int,
        operations: list[ops.Op],
        offsets: tuple[int, int],
        *,
        ignored: list[str],
        warnings: list[str],
    ) -> None:
        monotonic, boottime = offsets
        super().__init__(clone_flags, tuple(operations), monotonic_offset_ns=monotonic, boottime_offset_ns=boottime)
        self.ignored = ignored
        self.warnings = warnings


# What a caller can do who wants to share a namespace.
_WAYS_OUT = {
    "network": "podman: --network none",
    **{kind: f"podman: leave out --{kind}" for kind in ("pid", "ipc", "uts")},
}
_NOT_JOINED = "an existing namespace belongs to the host's kernel, and the container has another"


def compile(bundle: Bundle, facts: Facts) -> CompiledPlan:  # noqa: A001 - what a compiler does
    """Compile; ConfigError names the field that is refused or makes no sense."""
    spec = bundle.spec
    linux: dict[str, Any] = spec.get("linux", {})
    clone_flags = _namespaces(linux)
    ignored = support.check(spec)
    warnings: list[str] = []
    offsets = _time_offsets(linux, clone_flags)
    mounts = plan_mounts.parse(spec)
    process = spec.get("process", {"cwd": "/"})
    operations = [
        ops.propagation("/", MS_PRIVATE | MS_REC),
        ops.link_up("lo"),
        *_limits(linux.get("resources", {}), facts.container),
        *plan_process.oom_score(process),
        *facts.rootfs_ops,
        *_device_filter(linux, facts.container),  # mounting the lower needed devices that the container may not use
        ops.root(facts.root),
        *plan_mounts.compile_mounts(mounts, facts.volumes, facts.shm, facts.cgroups, ignored),
        *devices.compile_devices(linux.get("devices", []), mounts, facts.devices),
        *_names(spec, facts),
        ops.pivot(),
        *([ops.machine_id("/etc/machine-id", facts.machine_id)] if facts.machine_id else []),
        ops.mkdir(plan_process.working_directory(process)),
        *_sysctls(linux.get("sysctl", {})),
        *plan_mounts.compile_late_readonly(mounts),
        *([ops.remount("/", MS_RDONLY)] if spec.get("root", {}).get("readonly") else []),
        *_hidden_paths(linux),
        *_propagation(linux),
        *([ops.keyring(facts.keyring)] if facts.keyring else []),
        *([ops.streams(facts.nulls, joined=facts.joined)] if facts.nulls or facts.joined else []),
        *plan_process.compile_process(process, _seccomp(linux, facts), ignored, warnings, facts.rlimits),
    ]
    _check(operations)
    return CompiledPlan(clone_flags, operations, offsets, ignored=ignored, warnings=warnings)


def _namespaces(linux: dict[str, Any]) -> int:
    """Flags for clone3(2); every container has its own of all that are required, and of cgroup."""
    asked: dict[str, int] = {}
    for index, entry in enumerate(linux.get("namespaces", ())):
        kind = entry["type"]
        if kind in asked:
            raise support.invalid(f"linux.namespaces[{index}]", f"{kind} is given twice, at [{asked[kind]}] too")
        asked[kind] = index
        if kind == "user":
            hint = "podman: leave out --userns and --uidmap"
            raise support.refused(f"linux.namespaces[{index}]", "user namespaces are not supported yet", hint=hint)
        if kind not in REQUIRED_NAMESPACES and kind not in OPTIONAL_NAMESPACES:
            raise support.invalid(f"linux.namespaces[{index}].type", f"unknown namespace {kind!r}")
        if not support.asks_for_nothing(entry.get("path")):
            why = "there are no networks yet, and no pods" if kind == "network" else _NOT_JOINED
            raise support.refused(f"linux.namespaces[{index}].path", why, hint=_WAYS_OUT.get(kind, ""))
    for kind in REQUIRED_NAMESPACES:
        if kind not in asked:
            why = f"the container has no {kind} namespace of its own, so it would share the host's, which a VM cannot"
            raise support.refused("linux.namespaces", why, hint=_WAYS_OUT.get(kind, ""))
    return sum(REQUIRED_NAMESPACES.values()) | CLONE_NEWCGROUP | (CLONE_NEWTIME if "time" in asked else 0)


def _time_offsets(linux: dict[str, Any], clone_flags: int) -> tuple[int, int]:
    """(monotonic, boottime) in nanoseconds."""
    offsets = linux.get("timeOffsets", {})
    if offsets and not clone_flags & CLONE_NEWTIME:
        raise support.invalid("linux.timeOffsets", "needs a time namespace in linux.namespaces")
    result = []
    for clock in ("monotonic", "boottime"):
        entry = offsets.get(clock, {})
        nanoseconds = entry.get("secs", 0) * _NANOSECONDS + entry.get("nanosecs", 0)
        if nanoseconds not in _INT64 or entry.get("nanosecs", 0) >= _NANOSECONDS:
            raise support.invalid(f"linux.timeOffsets.{clock}", "out of range")
        result.append(nanoseconds)
    return result[0], result[1]


def _limits(asked: dict[str, Any], container: int) -> list[ops.Op]:
    """Written through the guest's cgroup mount, before the container's own view replaces it."""
    files = limits.guest_files(limits.parse(asked))
    return [ops.write(f"{cgroup_of(container)}/{name}", text) for name, text in files.items()]


def _device_filter(linux: dict[str, Any], container: int) -> list[ops.Op]:
    program = device_filter.compile_filter(linux.get("resources", {}).get("devices") or ())
    return [ops.device_filter(cgroup_of(container), program)] if program else []


def cgroup_of(container: int) -> str:
    """The container's cgroup, by the guest's own path."""
    return f"/sys/fs/cgroup/c{container}"


def uts_names(spec: dict[str, Any], default: str) -> tuple[str, str]:
    """Host name (``default`` if config.json gives none) and domain name (empty: none). ConfigError for what no system call takes (sethostname(2))."""
    names = (spec.get("hostname") or default, spec.get("domainname") or "")
    for field, name in zip(("hostname", "domainname"), names, strict=True):
        try:
            size = len(name.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:  # JSON can spell half a character
            raise support.invalid(field, "not text") from None
        if size > UTS_NAME_MAX:
            raise support.invalid(field, f"longer than {UTS_NAME_MAX} bytes")
    return names


def _names(spec: dict[str, Any], facts: Facts) -> list[ops.Op]:
    hostname, domainname = uts_names(spec, facts.hostname)
    return [*([ops.hostname(hostname)] if hostname else []), *([ops.domainname(domainname)] if domainname else [])]


def _sysctls(sysctls: dict[str, str]) -> list[ops.Op]:
    return [ops.write("/proc/sys/" + _sysctl_path(key), value) for key, value in sysctls.items()]


def _sysctl_path(key: str) -> str:
    """Path below /proc/sys; ConfigError for what is no namespace's own, so that containers may share a VM later.

    Whichever of ``.`` and ``/`` comes first separates; the other is part of a name (sysctl(8)).
    """
    first = next((character for character in key if character in "./"), ".")
    path = key if first == "/" else key.translate({ord("."): "/", ord("/"): "."})
    where = f"linux.sysctl: {key!r}"
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise support.invalid(where, "not the name of a sysctl")
    if path == "kernel/hostname":
        raise support.invalid(where, "use hostname")
    if path in _IPC_SYSCTLS or path == "kernel/domainname" or path.startswith(_SYSCTL_TREES):
        return path
    raise support.refused(where, "it belongs to no namespace of the container")


def _propagation(linux: dict[str, Any]) -> list[ops.Op]:
    """Last of all mounts: paths on an unbindable one could be neither hidden nor protected."""
    flags = PROPAGATIONS.get(linux.get("rootfsPropagation", ""), 0)
    return [ops.propagation("/", flags)] if flags else []


def _hidden_paths(linux: dict[str, Any]) -> list[ops.Op]:
    """Relative ones count from /, as in runc."""
    readonly, masked = (
        ["/" + path.lstrip("/") for path in linux.get(kind, ())] for kind in ("readonlyPaths", "maskedPaths")
    )
    return [*map(ops.readonly, readonly), *map(ops.mask, masked)]


def _seccomp(linux: dict[str, Any], facts: Facts) -> plan_process.Seccomp | None:
    if "seccomp" not in linux:
        return None
    flags = 0
    for index, name in enumerate(linux["seccomp"].get("flags", ())):
        if name in SECCOMP_REFUSED_FLAGS:
            why = f"{name}: it needs SCMP_ACT_NOTIFY, whose descriptor cannot leave the VM"
            raise support.refused(f"linux.seccomp.flags[{index}]", why)
        flags |= SECCOMP_FLAGS[name]
    if facts.seccomp_bpf is None:
        raise support.refused("linux.seccomp", "no filter was compiled")
    return plan_process.Seccomp(flags, facts.seccomp_bpf)


def _check(operations: list[ops.Op]) -> None:
    """No string holds what no system call takes, and all of them have room in a message: ConfigError names the fields."""
    sizes: dict[str, int] = {}
    for op in operations:
        field = _FIELDS.get(op.opcode, "mounts")
        sizes[field] = sizes.get(field, 0) + ops.OP_SIZE + sum(_size(op, argument) for argument in op.arguments)
    total = sum(sizes.values())
    if total > ops.PLAN_ROOM:
        most = sorted(sizes, key=lambda field: -sizes[field])[:2]
        fields = " and ".join(field for field in most if sizes[field] > total // 10)
        took = sum(size for field, size in sizes.items() if field in most)
        raise ConfigError(f"config.json: {fields}: {took} bytes, and the whole plan of a container has {ops.PLAN_ROOM}")


def _size(op: ops.Op, argument: str | int | bytes) -> int:
    if isinstance(argument, int):
        return ops.ARGUMENT_SIZE + 8
    if isinstance(argument, bytes):
        return ops.ARGUMENT_SIZE + len(argument)
    try:
        data = argument.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = b"\0"
    if b"\0" in data:
        raise ConfigError(f"config.json: {op.describe()!a}: a string holds a NUL or no character")
    return ops.ARGUMENT_SIZE + len(data)
