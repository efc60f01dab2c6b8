"""Seccomp: compiled filters do, in a real kernel, what the profile says."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.engine.plan import seccomp
from rundctl.errors import ConfigError
from rundctl.host.memo import Memo

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"
ALLOWED, KILLED = 0, 256  # what _result reports beside errnos
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SYS_GETPRIORITY, SYS_PERSONALITY, SYS_KEYCTL, SYS_ADD_KEY, SYS_BPF, SYS_NOSUCH = 140, 135, 250, 248, 321, 461 + 300

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86-64")


def _load(bpf: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(bpf, len(bpf))
    program = struct.pack("HxxxxxxP", len(bpf) // 8, ctypes.addressof(buffer))
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0) == 0


def _result(bpf: bytes, number: int, *arguments: int) -> int:
    """What becomes of a system call under the filter: ALLOWED (or failed for reasons of its own), KILLED or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        try:
            _load(bpf)
            ctypes.set_errno(0)
            code = ctypes.get_errno() if libc.syscall(number, *map(ctypes.c_long, arguments)) == -1 else ALLOWED
            os._exit(code)
        finally:
            os._exit(250)
    _, status = os.waitpid(pid, 0)
    return KILLED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def _rule(
    name: str, action: str = "SCMP_ACT_ERRNO", *args: tuple[int, int, str] | tuple[int, int, str, int], **more: Any
) -> dict[str, Any]:
    conditions = [
        {"index": a[0], "value": a[1], "op": a[2], **({"valueTwo": a[3]} if len(a) > 3 else {})} for a in args
    ]
    return {"names": [name], "action": action, "args": conditions, **more}


def test_errno_default_is_eperm_and_errno_ret_is_kept() -> None:
    assert _result(seccomp.compile_profile(_profile(_rule("getpriority"))), SYS_GETPRIORITY, 0, 0) == errno.EPERM
    bpf = seccomp.compile_profile(_profile(_rule("getpriority", errnoRet=errno.EXDEV)))
    assert _result(bpf, SYS_GETPRIORITY, 0, 0) == errno.EXDEV
    assert _result(bpf, SYS_PERSONALITY, 0xFFFFFFFF) == ALLOWED


def test_kill() -> None:
    assert (
        _result(seccomp.compile_profile(_profile(_rule("getpriority", "SCMP_ACT_KILL_PROCESS"))), SYS_GETPRIORITY, 0, 0)
        == KILLED
    )


@pytest.mark.parametrize(
    ("condition", "hit", "miss"),
    [
        ((0, 5, "SCMP_CMP_EQ"), 5, 6),
        ((0, 5, "SCMP_CMP_NE"), 6, 5),
        ((0, 5, "SCMP_CMP_LT"), 4, 5),
        ((0, 5, "SCMP_CMP_LE"), 5, 6),
        ((0, 5, "SCMP_CMP_GE"), 5, 4),
        ((0, 5, "SCMP_CMP_GT"), 6, 5),
        ((0, 0xF0, "SCMP_CMP_MASKED_EQ", 0x10), 0x1A, 0x2A),
    ],
)
def test_operators(condition: tuple[int, int, str], hit: int, miss: int) -> None:
    bpf = seccomp.compile_profile(_profile(_rule("personality", "SCMP_ACT_ERRNO", condition, errnoRet=errno.EXDEV)))
    assert _result(bpf, SYS_PERSONALITY, hit) == errno.EXDEV
    assert _result(bpf, SYS_PERSONALITY, miss) == ALLOWED


def test_conditions_on_different_arguments_are_all_needed() -> None:
    rule = _rule("getpriority", "SCMP_ACT_ERRNO", (0, 0, "SCMP_CMP_EQ"), (1, 0, "SCMP_CMP_EQ"), errnoRet=errno.EXDEV)
    bpf = seccomp.compile_profile(_profile(rule))
    assert _result(bpf, SYS_GETPRIORITY, 0, 0) == errno.EXDEV
    assert _result(bpf, SYS_GETPRIORITY, 0, os.getpid()) != errno.EXDEV


def test_conditions_on_the_same_argument_are_alternatives() -> None:
    rule = _rule("personality", "SCMP_ACT_ERRNO", (0, 8, "SCMP_CMP_EQ"), (0, 9, "SCMP_CMP_EQ"), errnoRet=errno.EXDEV)
    bpf = seccomp.compile_profile(_profile(rule))
    assert [_result(bpf, SYS_PERSONALITY, value) for value in (8, 9, 0)] == [errno.EXDEV, errno.EXDEV, ALLOWED]


def test_unknown_names_and_rules_equal_to_the_default_are_left_out() -> None:
    bpf = seccomp.compile_profile(
        _profile(_rule("no_such_call"), _rule("getpriority", "SCMP_ACT_ALLOW"), _rule("personality"))
    )
    assert _result(bpf, SYS_PERSONALITY, 0) == errno.EPERM
    assert _result(bpf, SYS_GETPRIORITY, 0, 0) == ALLOWED


def test_podman_profile() -> None:
    profile = json.loads((DATA / "podman-basic.json").read_bytes())["linux"]["seccomp"]
    bpf = seccomp.compile_profile(profile)
    assert _result(bpf, SYS_GETPRIORITY, 0, 0) == ALLOWED
    assert _result(bpf, SYS_BPF, 0, 0, 0) == errno.EPERM
    assert _result(bpf, SYS_NOSUCH) == profile["defaultErrnoRet"] == errno.ENOSYS
    assert _result(bpf, SYS_PERSONALITY, 1) == errno.ENOSYS
    assert _result(bpf, SYS_PERSONALITY, 8) == ALLOWED


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (_profile(default="SCMP_ACT_NOTIFY"), "linux.seccomp.defaultAction"),
        (_profile(_rule("read", "SCMP_ACT_NOTIFY")), r"linux.seccomp.syscalls\[0\].action"),
        (_profile(_rule("read", "SCMP_ACT_ERRNO", (6, 0, "SCMP_CMP_EQ"))), r"linux.seccomp.syscalls\[0\].args"),
    ],
)
def test_refusals(profile: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        seccomp.compile_profile(profile)


def _compile(home: Path, profile: dict[str, Any]) -> bytes:
    """With what is remembered on disk, as another call has it."""
    return seccomp.compile_filter(profile, str(home), Memo(str(home / "digests.json")))


def _cached(home: Path) -> set[str]:
    return {path.name for path in (home / "seccomp").iterdir()}


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _compile(tmp_path, _profile(_rule("getpriority")))
    [entry] = (tmp_path / "seccomp").iterdir()
    assert entry.read_bytes() == first

    def no_compiler(_profile: dict[str, Any]) -> bytes:
        raise AssertionError("compiled again")

    compile_profile: Callable[[dict[str, Any]], bytes] = seccomp.compile_profile
    monkeypatch.setattr(seccomp, "compile_profile", no_compiler)
    assert _compile(tmp_path, _profile(_rule("getpriority"))) == first
    monkeypatch.setattr(seccomp, "compile_profile", compile_profile)
    entry.write_bytes(first[:-3])  # torn
    assert _compile(tmp_path, _profile(_rule("getpriority"))) == first
    assert entry.read_bytes() == first
    assert _compile(tmp_path, _profile()) != first
    assert len(_cached(tmp_path)) == 2


def test_another_libseccomp_is_another_filter(tmp_path: Path) -> None:
    """A newer one knows calls that the older one had to leave out of the same profile."""
    _compile(tmp_path, _profile(_rule("getpriority")))
    [before] = _cached(tmp_path)
    memo = Memo(str(tmp_path / "digests.json"))
    compiler = memo.recall_unchanged(seccomp._COMPILER)
    assert re.fullmatch(r"libseccomp \d+\.\d+\.\d+, pyseccomp \d+\.\d+\.\d+", compiler)
    (tmp_path / "libseccomp.so.2").write_bytes(b"")
    memo.remember(seccomp._COMPILER, "libseccomp 2.4.0, pyseccomp 0.1.2", str(tmp_path / "libseccomp.so.2"))
    memo.save()
    (tmp_path / "seccomp" / before).write_bytes(b"12345678")
    assert _compile(tmp_path, _profile(_rule("getpriority"))) != b"12345678", "it was compiled by the older one"
    assert (tmp_path / "seccomp" / before).read_bytes() != b"12345678"


def test_a_libseccomp_that_was_replaced_is_asked_again(tmp_path: Path) -> None:
    _compile(tmp_path, _profile())
    memo = Memo(str(tmp_path / "digests.json"))
    library = tmp_path / "libseccomp.so.2"
    library.write_bytes(b"")
    memo.remember(seccomp._COMPILER, "libseccomp 2.4.0, pyseccomp 0.1.2", str(library))
    memo.save()
    library.write_bytes(b"upgraded")
    _compile(tmp_path, _profile())
    compiler = Memo(str(tmp_path / "digests.json")).recall_unchanged(seccomp._COMPILER)
    assert compiler is not None
    assert "2.4.0" not in compiler


def test_of_many_filters_the_last_used_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_MOST_FILTERS", 3)
    profiles = [_profile(_rule("getpriority", errnoRet=number)) for number in range(1, 5)]
    names: list[str] = []
    for age, profile in enumerate(profiles[:3]):
        _compile(tmp_path, profile)
        names += sorted(_cached(tmp_path) - set(names))
        os.utime(tmp_path / "seccomp" / names[-1], (age, age))
    _compile(tmp_path, profiles[0])  # used, so the second is now the oldest
    (tmp_path / "seccomp/left.123.tmp").write_bytes(b"by a writer that was killed")
    os.utime(tmp_path / "seccomp/left.123.tmp", (0, 0))
    _compile(tmp_path, profiles[3])
    assert len(_cached(tmp_path)) == 3
    assert {names[0], names[2]} < _cached(tmp_path)


def test_a_hit_loads_no_compiler_and_writes_nothing(tmp_path: Path) -> None:
    _compile(tmp_path, _profile())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "digests.json", *(tmp_path / "seccomp").iterdir())}
    code = (
        "import sys; from rundctl.engine.plan import seccomp; from rundctl.host.memo import Memo; "
        f"seccomp.compile_filter({_profile()!r}, {str(tmp_path)!r}, Memo({str(tmp_path / 'digests.json')!r})); "
        "sys.exit(bool({'pyseccomp', 'ctypes', 'hashlib'} & set(sys.modules)))"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "seccomp").symlink_to("/proc/self")  # nothing can be made in there, not by root either
    assert _compile(tmp_path, _profile(_rule("getpriority")))
