"""linux.seccomp to BPF, through libseccomp; kept by the profile's digest, since podman always brings the same one.

pyseccomp takes 60 ms to import and to compile, so it is loaded on a miss only. The guest runs the host's architecture.
"""

from __future__ import annotations

import json
import os
from _blake2 import blake2b  # the C module itself: hashlib loads OpenSSL, for 5 ms
from contextlib import suppress

from rundctl.errors import HostError
from rundctl.host import files
from rundctl.oci.linux import SECCOMP_ACTIONS
from rundctl.oci.support import invalid, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VERSION = b"1"  # of what this module makes out of a profile: raise it with every change of the output
_INSTRUCTION = 8  # bytes of a struct sock_filter
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_EPERM = 1
_SYSCALL_ARGUMENTS = 6
_UNKNOWN_SYSCALL = -1  # __NR_SCMP_ERROR; other negative numbers stand for calls of other architectures


def compile_filter(profile: dict[str, Any], home: str) -> bytes:
    """The filter, ``struct sock_filter[]``, from the cache below ``home`` or compiled into it.

    ConfigError for what is refused or means nothing, HostError without libseccomp.
    """
    path = os.path.join(home, "seccomp", _digest(profile))
    cached = _read(path)
    if cached is not None:
        return cached
    bpf = compile_profile(profile)
    _write(path, bpf)
    return bpf


def compile_profile(profile: dict[str, Any]) -> bytes:
    """Compile without a cache."""
    _check(profile)
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise HostError(f"compile the seccomp profile: {error}", hint="apt-get install libseccomp2") from error
    default = _action(pyseccomp, profile["defaultAction"], profile.get("defaultErrnoRet", _EPERM))
    try:
        compiled = pyseccomp.SyscallFilter(default)
        _add_architectures(pyseccomp, compiled, profile.get("architectures", ()))
        for index, rule in enumerate(profile.get("syscalls", ())):
            _add_rule(pyseccomp, compiled, rule, default, f"linux.seccomp.syscalls[{index}]")
        return _export(compiled)
    except OSError as error:
        raise HostError(f"compile the seccomp profile: {error.strerror}") from error


def _digest(profile: dict[str, Any]) -> str:
    text = json.dumps(profile, sort_keys=True, separators=(",", ":"))
    return blake2b(_VERSION + text.encode(), digest_size=20).hexdigest()


def _read(path: str) -> bytes | None:
    """A cached filter; None if there is none, or a torn one of a crashed file system."""
    try:
        with open(path, "rb") as file:
            bpf = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"read {path}: {error.strerror}") from error
    return bpf if 0 < len(bpf) <= _MOST_INSTRUCTIONS * _INSTRUCTION and len(bpf) % _INSTRUCTION == 0 else None


def _write(path: str, bpf: bytes) -> None:
    with suppress(OSError):  # a full or read-only home costs the next start the time, and nothing else
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        files.replace(path, bpf)


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
