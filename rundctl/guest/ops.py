"""Plan operations: what Python compiles and the agent replays (docs/adr/0002-plan-operations.md).

One function an opcode of ``native/include/wire.h``, its parameters in wire order. Plain functions and one small class, because this module
is on the path of every start: the same table as 32 dataclasses took 30 ms to import.
"""

from __future__ import annotations

import _struct as struct

from rundctl.guest.wire import MESSAGE_MAX, MOUNT_COPY_UP, MOUNT_NO_LINK
from rundctl.lean import enum

_OP = struct.Struct("<III")
_LENGTH = struct.Struct("<I")
_PLAN = struct.Struct("<QIIqq")
PLAN_ROOM = MESSAGE_MAX - _PLAN.size  # bytes that the operations of a plan may have
OP_SIZE = _OP.size  # of an operation, beside its arguments
ARGUMENT_SIZE = _LENGTH.size + 1  # of an argument, beside what it says


class Opcode(enum.IntEnum):
    """Operation numbers, as in ``enum wire_opcode``."""

    MOUNT = 1
    BIND = 2
    REMOUNT = 3
    PROPAGATION = 4
    ROOT = 5
    MKDIR = 6
    MKNOD = 7
    SYMLINK = 8
    WRITE = 9
    HOSTNAME = 10
    DOMAINNAME = 11
    LINK_UP = 12
    PIVOT = 14
    MASK = 15
    READONLY = 16
    RLIMIT = 17
    MACHINE_ID = 18
    KEYRING = 19
    UMASK = 20
    NO_NEW_PRIVS = 21
    STDIO_OWNER = 22
    BOUNDING = 23
    IDS = 24
    CAPS = 25
    SECCOMP = 26
    CHDIR = 27
    ENV = 28
    HOME = 29
    FIND = 30
    WAIT = 31
    EXEC = 32
    DEVICE_FILTER = 33
    DEVICE_FILTER_READY = 34
    STREAMS = 35


class Op:
    """One operation of a plan: opcode, arguments in wire order, and the words for it when it fails."""

    __slots__ = ("arguments", "opcode", "text")

    def __init__(self, opcode: Opcode, arguments: tuple[str | int | bytes, ...], text: str = "") -> None:
        self.opcode = opcode
        self.arguments = arguments
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and (self.opcode, self.arguments) == (other.opcode, other.arguments)

    def __hash__(self) -> int:
        return hash((self.opcode, self.arguments))

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def encode(self) -> bytes:
        """Bytes on the wire; ValueError if a string holds a NUL byte."""
        body = b"".join(map(_encode_argument, self.arguments))
        return _OP.pack(self.opcode, len(self.arguments), len(body)) + body

    def describe(self) -> str:
        """Operation and object, for error messages and ``--debug``."""
        if self.text:
            return self.text
        shown = (str(value) for value in self.arguments if not isinstance(value, bytes))
        return " ".join([self.opcode.name.lower().replace("_", " "), *shown])


class Plan:
    """A container as the agent sees it: namespaces to be born into (``CLONE_NEW*``), then operations in order.

    The offsets are those of the time namespace, in nanoseconds (time_namespaces(7)).
    """

    __slots__ = ("boottime_offset_ns", "clone_flags", "monotonic_offset_ns", "ops")

    def __init__(
        self, clone_flags: int, ops: tuple[Op, ...], *, monotonic_offset_ns: int = 0, boottime_offset_ns: int = 0
    ) -> None:
        self.clone_flags = clone_flags
        self.ops = ops
        self.monotonic_offset_ns = monotonic_offset_ns
        self.boottime_offset_ns = boottime_offset_ns

    def encode(self) -> bytes:
        """Payload of a PLAN message."""
        head = _PLAN.pack(self.clone_flags, len(self.ops), 0, self.monotonic_offset_ns, self.boottime_offset_ns)
        return head + b"".join(op.encode() for op in self.ops)

    def describe(self) -> list[str]:
        """One line an operation."""
        return [f"{index}: {op.describe()}" for index, op in enumerate(self.ops)]


def _encode_argument(value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        data = struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF)
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        if b"\0" in data:
            raise ValueError(f"NUL byte in {value!r}")
    else:
        data = value
    return _LENGTH.pack(len(data)) + data + b"\0"


def mount(  # noqa: PLR0913 - mount(2) has so many
    source: str,
    target: str,
    fstype: str,
    flags: int = 0,
    data: str = "",
    mode: int = 0o755,
    *,
    copy_up: bool = False,
    no_link: bool = False,
) -> Op:
    """mount(2); ``data`` is for the file system; a missing target is made with ``mode``.

    ``copy_up`` (tmpcopyup) fills the new file system with what the target held; ``no_link`` refuses a target that is a symbolic link.
    """
    how = (MOUNT_COPY_UP if copy_up else 0) | (MOUNT_NO_LINK if no_link else 0)
    arguments = (source, target, fstype, flags, data, mode, how)
    return Op(Opcode.MOUNT, arguments, f"mount {fstype} on {target}")


def bind(source: str, target: str, *, recursive: bool = False, is_file: bool = False) -> Op:
    """Bind a path of the guest onto a target, which is made if missing."""
    return Op(Opcode.BIND, (source, target, int(recursive), int(is_file)), f"bind mount on {target}")


def remount(target: str, set_flags: int = 0, clear_flags: int = 0, *, recursive: bool = False) -> Op:
    """Bind-remount that keeps the flags the mount has, but for those set and cleared."""
    return Op(Opcode.REMOUNT, (target, set_flags, clear_flags, int(recursive)), f"remount {target}")


def propagation(target: str, flags: int) -> Op:
    """MS_SHARED, MS_PRIVATE, MS_SLAVE or MS_UNBINDABLE, with or without MS_REC."""
    return Op(Opcode.PROPAGATION, (target, flags), f"set the propagation of {target}")


def root(path: str) -> Op:
    """Name the container's root: from here on targets resolve below it."""
    return Op(Opcode.ROOT, (path,))


def mkdir(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Op:
    """Make a directory and its parents; an existing one is kept."""
    return Op(Opcode.MKDIR, (path, mode, uid, gid), f"make directory {path}")


def mknod(path: str, mode: int, major: int = 0, minor: int = 0, uid: int = 0, gid: int = 0) -> Op:
    """Make a device node or FIFO; ``mode`` has the type bits."""
    return Op(Opcode.MKNOD, (path, mode, major, minor, uid, gid), f"make device {path} ({major}:{minor})")


def symlink(path: str, text: str) -> Op:
    """Make a symbolic link; an existing path is kept."""
    return Op(Opcode.SYMLINK, (path, text), f"make symlink {path}")


def write(path: str, text: str) -> Op:
    """Open an existing file and write once: sysctls, cgroup files, the oom score."""
    return Op(Opcode.WRITE, (path, text), f"write {text!r} to {path}")


def hostname(name: str) -> Op:
    """sethostname(2)."""
    return Op(Opcode.HOSTNAME, (name,), f"set hostname {name!r}")


def domainname(name: str) -> Op:
    """setdomainname(2)."""
    return Op(Opcode.DOMAINNAME, (name,), f"set domainname {name!r}")


def link_up(interface: str) -> Op:
    """Set IFF_UP."""
    return Op(Opcode.LINK_UP, (interface,), f"bring up {interface}")


def pivot(propagation_flags: int = 0) -> Op:
    """pivot_root onto ROOT, detach the guest's root, set the new root's propagation."""
    return Op(Opcode.PIVOT, (propagation_flags,), "pivot onto the rootfs")


def mask(path: str) -> Op:
    """Hide a path; a missing one is skipped."""
    return Op(Opcode.MASK, (path,), f"mask {path}")


def readonly(path: str) -> Op:
    """Make a path read-only, recursively; a missing one is skipped."""
    return Op(Opcode.READONLY, (path,), f"make {path} read-only")


def rlimit(resource: int, soft: int, hard: int, name: str = "") -> Op:
    """setrlimit(2)."""
    return Op(Opcode.RLIMIT, (resource, soft, hard), f"set {name or f'rlimit {resource}'} to {soft}:{hard}")


def machine_id(path: str, text: str) -> Op:
    """Fill an empty or ``uninitialized`` machine-id(5) file, and only that."""
    return Op(Opcode.MACHINE_ID, (path, text))


def keyring(name: str) -> Op:
    """Join a new session keyring."""
    return Op(Opcode.KEYRING, (name,))


def umask(value: int) -> Op:
    """umask(2)."""
    return Op(Opcode.UMASK, (value,), f"set umask {value:04o}")


def no_new_privs() -> Op:
    """PR_SET_NO_NEW_PRIVS."""
    return Op(Opcode.NO_NEW_PRIVS, ())


def stdio_owner(uid: int, gid: int) -> Op:
    """fchown of the stdio pipes, so that /dev/stdout can be reopened."""
    return Op(Opcode.STDIO_OWNER, (uid, gid))


def streams(nulls: int, *, joined: bool) -> Op:
    """Put the container's /dev/null in place of some stdio pipes (a bit each), and one pipe in place of the two of stdout and stderr."""
    return Op(Opcode.STREAMS, (nulls, int(joined)), "arrange stdin, stdout and stderr")


def bounding(kept: int) -> Op:
    """Drop every capability not in the mask from the bounding set."""
    return Op(Opcode.BOUNDING, (kept,), "set the bounding capabilities")


def ids(uid: int, gid: int, additional_gids: tuple[int, ...] = ()) -> Op:
    """setgroups, setresgid, setresuid, keeping capabilities."""
    return Op(Opcode.IDS, (uid, gid, *additional_gids), f"become user {uid}:{gid}")


def caps(effective: int, permitted: int, inheritable: int, ambient: int) -> Op:
    """Four capability sets as masks."""
    return Op(Opcode.CAPS, (effective, permitted, inheritable, ambient), "set the capabilities")


def seccomp(flags: int, bpf: bytes) -> Op:
    """Keep a filter for EXEC, which loads it as its last step before the execve(2): seccomp(SECCOMP_SET_MODE_FILTER)."""
    return Op(Opcode.SECCOMP, (flags, bpf), f"keep the seccomp filter ({len(bpf) // 8} instructions)")


def chdir(path: str, *, last: bool) -> Op:
    """chdir(2), twice as in runc: as root, where EACCES is forgiven, and ``last`` as the user, if it did not succeed before."""
    return Op(Opcode.CHDIR, (path, int(last)), f"chdir to cwd {path!r}")


def env(variables: tuple[str, ...]) -> Op:
    """Replace the environment."""
    return Op(Opcode.ENV, variables, "set the environment")


def home(uid: int) -> Op:
    """Set HOME, if unset, from the container's passwd(5)."""
    return Op(Opcode.HOME, (uid,))


def find(argv0: str) -> Op:
    """Look argv0 up as execvp(3) does, in the container's PATH."""
    return Op(Opcode.FIND, (argv0,), f'exec: "{argv0}"')


def wait() -> Op:
    """Report ready and wait for START."""
    return Op(Opcode.WAIT, ())


def exec_(argv: tuple[str, ...]) -> Op:
    """execve(2) of what FIND kept; nothing follows."""
    return Op(Opcode.EXEC, argv, f'exec: "{argv[0]}"')


def device_filter(cgroup: str, program: bytes) -> Op:
    """Attach an eBPF program to a cgroup that decides on devices for all processes in it."""
    return Op(
        Opcode.DEVICE_FILTER, (cgroup, program), f"filter the devices of {cgroup} ({len(program) // 8} instructions)"
    )


def device_filter_ready(program: bytes) -> Op:
    """Load an eBPF program ahead of the `device_filter` that will ask for it; a kernel that cannot says so only then."""
    return Op(Opcode.DEVICE_FILTER_READY, (program,), "load the usual filter of devices")
