"""The seccomp filter comes last: nothing that the agent does needs the profile's leave, and nothing that loading took is left."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rundctl.guest import ops

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import Bundle, Rig, exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

ALLOW, ERRNO, KILL_PROCESS, TRAP = 0x7FFF0000, 0x00050000, 0x80000000, 0x00030000
SYS_WRITE, SYS_EXECVE, SYS_EXIT, SYS_MKDIR, SYS_EXIT_GROUP, SYS_MKDIRAT, LAST = 1, 59, 60, 83, 231, 258, 462
CAP_CHOWN, CAP_SYS_CHROOT, CAP_SYS_ADMIN = 1 << 0, 1 << 18, 1 << 21
ANSWER = 42
# exit_group(42), or exit(42) where that is denied: a program that needs no system call but one of these.
ANSWERING = """
void _start(void)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(231L), "D"(42L) : "rcx", "r11", "memory");
	__asm__ volatile("syscall" : "=a"(result) : "0"(60L), "D"(42L) : "rcx", "r11", "memory");
	__builtin_trap();
}
"""


def bpf(numbers, matched, other):
    """A filter: one action for these system calls, another for the rest."""
    program = [(0x20, 0, 0, 0)]  # load the number
    program += [(0x15, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    program += [(0x06, 0, 0, other), (0x06, 0, 0, matched)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def denying(*numbers):
    return bpf(numbers, ERRNO | errno.EPERM, ALLOW)


def allowing(*numbers, other=KILL_PROCESS):
    return bpf(numbers, ALLOW, other)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    directory = tmp_path_factory.mktemp("answering")
    source = directory / "answering.c"
    source.write_text(ANSWERING)
    flags = ("-static", "-nostdlib", "-O1", "-fno-stack-protector")
    subprocess.run(["cc", *flags, "-o", directory / "answering", source], check=True)
    return directory / "answering"


@pytest.fixture
def bundle(tmp_path, answering):
    bundle = Bundle(tmp_path)
    (bundle.root / "bin/answering").write_bytes(answering.read_bytes())
    (bundle.root / "bin/answering").chmod(0o755)
    (bundle.root / "bin/nothing").write_text("no program")
    (bundle.root / "bin/nothing").chmod(0o755)
    return bundle


@pytest.fixture
def bare_rig(released):
    """Without sanitizers, whose code makes system calls of its own when a program fails."""
    with Rig(released["agent"]) as rig:
        yield rig


def privileges(*, confined, uid=1000, kept=CAP_CHOWN):
    """What the compiler makes of a process, between its root and its filter."""
    loader = 0 if confined else CAP_SYS_ADMIN
    return (
        *([ops.no_new_privs()] if confined else []),
        ops.bounding(kept),
        ops.chdir("/", last=False),
        ops.ids(uid, uid),
        ops.caps(kept, kept | loader, 0, 0),
        ops.chdir("/", last=True),
        ops.home(uid),
    )


def plan(bundle, filter_, *argv, confined, **process):
    made = bundle.plan(*argv, after=privileges(confined=confined, **process))
    made.ops = tuple(
        piece
        for op in made.ops
        if op.opcode != ops.Opcode.HOME
        for piece in ((ops.home(0), op) if op.opcode == ops.Opcode.FIND else (op,))
    )
    head = next(index for index, op in enumerate(made.ops) if op.opcode == ops.Opcode.WAIT)
    made.ops = (*made.ops[:head], ops.seccomp(0, filter_), *made.ops[head:])
    return made


@pytest.mark.parametrize("confined", [False, True])
def test_a_filter_denies(rig, bundle, confined):
    script = "mkdir /tmp/x || grep -E 'Seccomp:' /proc/self/status"
    filter_ = denying(SYS_MKDIR, SYS_MKDIRAT)
    status, out, err = rig.run(plan(bundle, filter_, "sh", "-c", script, confined=confined, uid=0))
    assert (exit_code(status), out.split()) == (0, ["Seccomp:", "2"])
    assert "Operation not permitted" in err
    assert not (bundle.root / "tmp/x").exists()


@pytest.mark.parametrize("confined", [False, True])
def test_each_system_call_denied_in_turn(rig, bundle, confined):
    ended = {}
    for number in range(LAST + 1):
        if number == SYS_EXECVE:
            continue
        status, _, _ = rig.run(plan(bundle, denying(number), "answering", confined=confined))
        ended[number] = exit_code(status)
    assert {number: code for number, code in ended.items() if code != ANSWER} == {}


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("other", [ERRNO | errno.ENOSYS, KILL_PROCESS, TRAP])
@pytest.mark.parametrize("way_out", [SYS_EXIT, SYS_EXIT_GROUP])
def test_an_exec_is_all_it_takes(rig, bundle, confined, other, way_out):
    filter_ = allowing(SYS_EXECVE, way_out, other=other)
    status, _, _ = rig.run(plan(bundle, filter_, "answering", confined=confined))
    stopped_at_exit_group = way_out == SYS_EXIT and other in (KILL_PROCESS, TRAP)
    assert exit_code(status) == (-signal.SIGSYS if stopped_at_exit_group else ANSWER)


@pytest.mark.parametrize("other", [ERRNO | errno.EPERM, KILL_PROCESS, TRAP])
def test_an_exec_that_fails_is_told_without_a_system_call(bare_rig, bundle, other):
    """Neither write(2) nor exit_group(2) is allowed."""
    made = plan(bundle, allowing(SYS_EXECVE, other=other), "nothing", confined=False)
    status, _, err = bare_rig.run(made)
    assert (exit_code(status), err) == (1, "exec /bin/nothing: exec format error\n")


def test_an_exec_that_is_denied(bare_rig, bundle):
    status, _, err = bare_rig.run(plan(bundle, denying(SYS_EXECVE), "answering", confined=False))
    assert (exit_code(status), err) == (1, "exec /bin/answering: operation not permitted\n")


def test_an_exec_that_kills_is_an_end_by_that_signal(rig, bundle):
    filter_ = bpf([SYS_EXECVE], KILL_PROCESS, ALLOW)
    status, _, _ = rig.run(plan(bundle, filter_, "answering", confined=False))
    assert exit_code(status) == -signal.SIGSYS


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("kept", [0, CAP_CHOWN | CAP_SYS_CHROOT, CAP_CHOWN | CAP_SYS_ADMIN])
def test_nothing_is_left_of_what_loading_took(rig, bundle, uid, kept):
    made = plan(bundle, denying(SYS_MKDIR), "cat", "/proc/self/status", confined=False, uid=uid, kept=kept)
    status, out, err = rig.run(made)
    assert exit_code(status) == 0, err
    facts = {key: value.split() for key, value in (line.split(":", 1) for line in out.splitlines())}
    masks = {name: int(facts[name][0], 16) for name in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")}
    after_exec = kept if uid == 0 else 0  # capabilities(7): root's come from the bounding set, a user's are ambient
    assert masks == {"CapBnd": kept, "CapPrm": after_exec, "CapEff": after_exec, "CapInh": 0, "CapAmb": 0}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == (["0"], ["2"])


def test_a_filter_without_privilege_fails_at_start(rig, bundle):
    made = bundle.plan("true", after=(ops.ids(1000, 1000), ops.caps(0, 0, 0, 0), ops.seccomp(0, denying(SYS_MKDIR))))
    assert rig.create(made).error == 0
    result = rig.start()
    assert (result.error, result.detail) == (errno.EACCES, "load the seccomp filter")
    rig.finish()


def test_a_second_filter_is_refused(rig, bundle):
    filter_ = ops.seccomp(0, denying(SYS_MKDIR))
    assert rig.create(bundle.plan("true", after=(filter_, filter_))).error == errno.EINVAL
