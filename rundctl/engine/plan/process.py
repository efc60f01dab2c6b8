"""Compile ``process``: who it is and what it may do. Pure. Reads nothing else, since ``exec`` will use it too."""

from __future__ import annotations

from rundctl.guest import ops
from rundctl.lean import path as paths
from rundctl.oci.linux import CAPABILITIES, RLIMITS
from rundctl.oci.support import invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DEFAULT_UMASK = 0o022  # runc's
_UMASK_BITS = 0o777
_ID_MAX = (1 << 31) - 1
_GROUPS_MAX = 1 << 16  # NGROUPS_MAX of limits.h
_OOM_SCORE = range(-1000, 1001)
_RLIMIT_NUMBERS = frozenset(RLIMITS.values())
_NOFILE = RLIMITS["RLIMIT_NOFILE"]
_NR_OPEN = 1 << 20  # the guest's fs.nr_open, above which no RLIMIT_NOFILE can be set


class Seccomp:
    """A compiled filter: SECCOMP_FILTER_FLAG_* and ``struct sock_filter[]``."""

    __slots__ = ("bpf", "flags")

    def __init__(self, flags: int, bpf: bytes) -> None:
        self.flags = flags
        self.bpf = bpf


def compile_process(
    process: dict[str, Any],
    seccomp: Seccomp | None,
    ignored: list[str],
    warnings: list[str],
    inherited: Mapping[int, tuple[int, int]] | None = None,
) -> list[ops.Op]:
    """Operations after the root is in place, WAIT and EXEC included; the order is that of docs/adr/0002.

    What means nothing goes to ``ignored``, what is a mistake to ``warnings``.
    ``inherited``: resource limits of the caller, which hold where config.json names none, as in runc; a small guest's own would be tiny.
    """
    user = process.get("user", {})
    uid, gid, groups = _ids(user)
    masks = _capabilities(process.get("capabilities", {}), ignored, warnings)
    cwd = working_directory(process)
    confined = bool(process.get("noNewPrivileges", False))
    # Loading a filter takes this capability or no_new_privs. It is permitted, not effective, and the exec takes it away.
    loader = 1 << CAPABILITIES["CAP_SYS_ADMIN"] if seccomp and not confined else 0
    argv = _arguments(process)
    return [
        *_rlimits(process.get("rlimits", ()), inherited or {}),
        ops.umask(user.get("umask", _DEFAULT_UMASK) & _UMASK_BITS),
        *([ops.no_new_privs()] if confined else []),
        ops.stdio_owner(uid, gid),
        ops.bounding(masks["bounding"]),
        ops.chdir(cwd, last=False),
        ops.ids(uid, gid, groups),
        ops.caps(masks["effective"], masks["permitted"] | loader, masks["inheritable"], masks["ambient"]),
        ops.chdir(cwd, last=True),
        ops.env(_environment(process.get("env", ()))),
        ops.home(uid),
        ops.find(argv[0]),
        *([ops.seccomp(seccomp.flags, seccomp.bpf)] if seccomp else []),
        ops.wait(),
        ops.exec_(argv),
    ]


def _ids(user: dict[str, Any]) -> tuple[int, int, tuple[int, ...]]:
    """User, group and additional groups, as far as runc takes them: what is more could be -1, by which system calls mean "as it is"."""
    groups = tuple(dict.fromkeys(user.get("additionalGids", ())))
    if len(groups) > _GROUPS_MAX:
        raise invalid("process.user.additionalGids", f"expected at most {_GROUPS_MAX}, got {len(groups)}")
    named = [("uid", user.get("uid", 0)), ("gid", user.get("gid", 0))]
    for name, number in (*named, *(("additionalGids", number) for number in groups)):
        if number > _ID_MAX:
            raise invalid(f"process.user.{name}", f"expected a number from 0 to {_ID_MAX}, got {number}")
    return named[0][1], named[1][1], groups


def working_directory(process: dict[str, Any]) -> str:
    """``process.cwd``, clean; ConfigError unless absolute."""
    cwd: str = process["cwd"]
    if not cwd.startswith("/"):
        raise invalid("process.cwd", f"expected an absolute path, got {cwd!r}")
    return paths.normpath("/" + cwd.lstrip("/"))


def oom_score(process: dict[str, Any]) -> list[ops.Op]:
    """Set in the guest, through the guest's own /proc: the container's may be missing or read-only."""
    if "oomScoreAdj" not in process:
        return []
    score = process["oomScoreAdj"]
    if score not in _OOM_SCORE:
        raise invalid("process.oomScoreAdj", f"expected a number from {_OOM_SCORE[0]} to {_OOM_SCORE[-1]}, got {score}")
    return [ops.write("/proc/self/oom_score_adj", str(score))]


def _arguments(process: dict[str, Any]) -> tuple[str, ...]:
    argv = tuple(process.get("args", ()))
    if not argv:
        raise invalid("process.args", "must not be empty")
    return argv


def _environment(variables: list[str]) -> tuple[str, ...]:
    """The environment, a name once: the last of several wins, as in runc."""
    last: dict[str, str] = {}
    for index, variable in enumerate(variables):
        name, separator, _ = variable.partition("=")
        if not separator or not name:
            raise invalid(f"process.env[{index}]", f"expected NAME=VALUE, got {variable!r}")
        last[name] = variable
    return tuple(last.values())


def _rlimits(entries: list[dict[str, Any]], inherited: Mapping[int, tuple[int, int]]) -> list[ops.Op]:
    limits = {number: pair for number, pair in inherited.items() if number in _RLIMIT_NUMBERS}
    if _NOFILE in limits:
        soft, hard = limits[_NOFILE]
        limits[_NOFILE] = min(soft, _NR_OPEN), min(hard, _NR_OPEN)
    seen = set()
    for index, entry in enumerate(entries):
        where = f"process.rlimits[{index}]"
        name, soft, hard = entry["type"], entry["soft"], entry["hard"]
        if name not in RLIMITS:
            raise invalid(f"{where}.type", f"unknown limit {name!r}")
        if name in seen:
            raise invalid(f"{where}.type", f"{name} is given twice")
        if soft > hard:
            raise invalid(f"{where}.soft", f"{soft} is above the hard limit {hard}")
        seen.add(name)
        limits[RLIMITS[name]] = soft, hard
    names = {number: name for name, number in RLIMITS.items()}
    return [ops.rlimit(number, soft, hard, names.get(number, "")) for number, (soft, hard) in limits.items()]


def _capabilities(sets: dict[str, list[str]], ignored: list[str], warnings: list[str]) -> dict[str, int]:
    """The five sets as masks. Unknown names are left out with a warning, as in runc, ambient ones that cannot be raised in silence."""
    masks = {}
    unknown = set()
    for kind in ("bounding", "permitted", "effective", "inheritable", "ambient"):
        mask = 0
        for name in sets.get(kind, ()):
            if name in CAPABILITIES:
                mask |= 1 << CAPABILITIES[name]
            else:
                unknown.add(name)
        masks[kind] = mask
    warnings += [
        f"process.capabilities: ignored: unknown capability {name!r}{_meant(name)}" for name in sorted(unknown)
    ]
    possible = masks["permitted"] & masks["inheritable"]
    if masks["ambient"] & ~possible:
        names = [name for name, number in CAPABILITIES.items() if masks["ambient"] & ~possible & 1 << number]
        ignored.append(f"process.capabilities.ambient: ignored: {', '.join(names)}: not both permitted and inheritable")
    masks["ambient"] &= possible
    return masks


def _meant(name: str) -> str:
    full = f"CAP_{name.upper().removeprefix('CAP_')}"
    return f" (did you mean {full}?)" if full in CAPABILITIES else ""
