"""linux.seccomp to BPF, through libseccomp; kept in ``HOME/seccomp``, since podman always brings the same profile.

pyseccomp takes 60 ms to import and to compile, so it is loaded on a miss only. The guest runs the host's architecture.

A filter's name is a digest of all that it was made from: the profile, this module's version, the architecture, and libseccomp's version, which has
the table of system calls: one that has learned a new call makes another filter. Which libseccomp that is was noted when it was loaded, beside the
identity of its file, so a hit costs one stat for it. The host's kernel is no input: libseccomp asks it only whether it has an action, and refuses.
"""

from __future__ import annotations

import time
from _blake2 import blake2b  # the C module itself: hashlib loads OpenSSL, for 5 ms

from rundctl.errors import HostError
from rundctl.host import files
from rundctl.lean import json, os
from rundctl.lean.contextlib import suppress
from rundctl.oci.linux import SECCOMP_ACTIONS
from rundctl.oci.support import invalid, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.host.memo import Memo

_VERSION = "2"  # of what this module makes out of a profile: raise it with every change of the output
# Its version, in the memo; each installation of ours has a binding of its own.
_COMPILER = f"seccomp's compiler for {os.path.dirname(__file__)}"
_MOST_FILTERS = 64  # kept, by their last use; with each a podman default profile's 6 KiB, all are less than a MiB
_USED_S = 3600  # how exact that last use is: a file that was touched within the hour is not touched again
_INSTRUCTION = 8  # bytes of a struct sock_filter
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_EPERM = 1
_SYSCALL_ARGUMENTS = 6
_UNKNOWN_SYSCALL = -1  # __NR_SCMP_ERROR; other negative numbers stand for calls of other architectures


def compile_filter(profile: dict[str, Any], home: str, memo: Memo) -> bytes:
    """The filter, ``struct sock_filter[]``, from the cache below ``home`` or compiled into it.

    ConfigError for what is refused or means nothing, HostError without libseccomp.
    """
    directory = os.path.join(home, "seccomp")
    text = json.dumps(profile, sort_keys=True, separators=(",", ":"))
    compiler = memo.recall_unchanged(_COMPILER)
    cached = None if compiler is None else _read(_path(directory, text, compiler))
    if cached is not None:
        return cached
    bpf = compile_profile(profile)
    compiler = _compiler(memo)
    _write(_path(directory, text, compiler), bpf)
    return bpf


def compile_profile(profile: dict[str, Any]) -> bytes:
    """Compile without a cache."""
    _check(profile)
    pyseccomp = _library()
    default = _action(pyseccomp, profile["defaultAction"], profile.get("defaultErrnoRet", _EPERM))
    try:
        compiled = pyseccomp.SyscallFilter(default)
        _add_architectures(pyseccomp, compiled, profile.get("architectures", ()))
        for index, rule in enumerate(profile.get("syscalls", ())):
            _add_rule(pyseccomp, compiled, rule, default, f"linux.seccomp.syscalls[{index}]")
        return _export(compiled)
    except OSError as error:
        raise HostError(f"compile the seccomp profile: {error.strerror}") from error


def _library() -> Any:
    """libseccomp's binding. HostError if libseccomp is missing."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise HostError(f"compile the seccomp profile: {error}", hint="apt-get install libseccomp2") from error
    return pyseccomp


def _compiler(memo: Memo) -> str:
    """What compiles here: the version of libseccomp (seccomp_version(3)) and of its binding, remembered with the files that were loaded."""
    import ctypes

    class Version(ctypes.Structure):
        _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))

    library = _library()
    path = _loaded_from("libseccomp.so")
    asked = ctypes.CDLL(path).seccomp_version
    asked.restype = ctypes.POINTER(Version)
    found = asked().contents
    version = f"libseccomp {found.major}.{found.minor}.{found.micro}, pyseccomp {library.__version__}"
    memo.remember(_COMPILER, version, path, library.__file__)
    memo.save()
    return version


def _loaded_from(name: str) -> str:
    """Path of a shared library that this process has mapped (proc_pid_maps(5))."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        mapped = (line.rstrip("\n").partition("/") for line in file)
        return next(f"/{path}" for _, _, path in mapped if os.path.basename(path).startswith(name))


def _path(directory: str, profile: str, compiler: str) -> str:
    made_from = f"{_VERSION}\n{compiler}\n{os.uname().machine}\n{profile}"
    return os.path.join(directory, blake2b(made_from.encode(), digest_size=20).hexdigest())


def _read(path: str) -> bytes | None:
    """A cached filter, noted as used; None if there is none, or a torn one of a crashed file system."""
    try:
        with open(path, "rb") as file:
            bpf = file.read()
            used_s = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"read {path}: {error.strerror}") from error
    if abs(time.time() - used_s) > _USED_S:
        with suppress(OSError):  # a read-only home
            os.utime(path)
    return bpf if 0 < len(bpf) <= _MOST_INSTRUCTIONS * _INSTRUCTION and len(bpf) % _INSTRUCTION == 0 else None


def _write(path: str, bpf: bytes) -> None:
    with suppress(OSError):  # a full or read-only home costs the next start the time, and nothing else
        directory = os.path.dirname(path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        files.replace(path, bpf)
        _evict(directory)


def _evict(directory: str) -> None:
    """Remove the least recently used beyond the bound; of what killed writers left as well, in its turn."""
    used = sorted(os.scandir(directory), key=_used_s, reverse=True)
    for entry in used[_MOST_FILTERS:]:
        files.unlink(entry.path)


def _used_s(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # another call was faster
        return 0.0


def _check(profile: dict[str, Any]) -> None:
    """Refuse what needs a notify descriptor, and arguments no system call has."""
    actions = [("linux.seccomp.defaultAction", profile["defaultAction"])]
    for index, rule in enumerate(profile.get("syscalls", ())):
        where = f"linux.seccomp.syscalls[{index}]"
        actions.append((f"{where}.action", rule["action"]))
        if any(condition["index"] >= _SYSCALL_ARGUMENTS for condition in rule.get("args", ())):
            raise invalid(f"{where}.args", f"a system call has {_SYSCALL_ARGUMENTS} arguments, counted from 0")
    for where, action in actions:
        if action not in SECCOMP_ACTIONS:
            raise refused(where, f"{action}: a notify descriptor would have to leave the VM")


def _action(library: Any, name: str, errno_ret: int) -> int:
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return int((library.ERRNO if name == "SCMP_ACT_ERRNO" else library.TRACE)(errno_ret))
    return int(getattr(library, name.removeprefix("SCMP_ACT_")))


def _add_architectures(library: Any, compiled: Any, names: list[str]) -> None:
    """The native architecture is always there; one libseccomp's binding does not know cannot be the guest's."""
    for name in names:
        architecture = getattr(library.Arch, name.removeprefix("SCMP_ARCH_"), None)
        if architecture is not None and not compiled.exist_arch(architecture):
            compiled.add_arch(architecture)


def _add_rule(library: Any, compiled: Any, rule: dict[str, Any], default: int, where: str) -> None:
    """Add one entry for all its names; unknown ones are left out, as in runc: profiles name newer kernels' calls."""
    action = _action(library, rule["action"], rule.get("errnoRet", _EPERM))
    if action == default:  # libseccomp takes no rule that changes nothing
        return
    alternatives = _alternatives(library, rule.get("args", []))
    for name in rule["names"]:
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        if number == _UNKNOWN_SYSCALL:
            continue
        for conditions in alternatives:
            try:
                compiled.add_rule(action, number, *conditions)
            except OSError as error:
                raise invalid(where, f"{name}: {error.strerror}") from error


def _alternatives(library: Any, conditions: list[dict[str, Any]]) -> list[list[Any]]:
    """Rules to make of the conditions: one with all, or, as in runc, one for each if two are about the same argument."""
    compiled = [
        library.Arg(
            condition["index"],
            getattr(library, condition["op"].removeprefix("SCMP_CMP_")),
            condition["value"],
            condition.get("valueTwo", 0),
        )
        for condition in conditions
    ]
    indexes = [condition["index"] for condition in conditions]
    if len(set(indexes)) < len(indexes):
        return [[condition] for condition in compiled]
    return [compiled]


def _export(compiled: Any) -> bytes:
    with open(os.memfd_create("seccomp"), "w+b", buffering=0) as file:
        compiled.export_bpf(file)
        file.seek(0)
        return file.read()
