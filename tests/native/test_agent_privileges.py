"""What the container's process may do, as the kernel itself reports it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from rundctl.guest import ops

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
CAP_CHOWN, CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT = 1 << 0, 1 << 10, 1 << 18


def status_of(rig, bundle, *operations):
    """/proc/self/status of the container's process."""
    status, out, err = rig.run(bundle.plan("cat", "/proc/self/status", after=operations))
    assert exit_code(status) == 0, err
    return {key: value.split() for key, value in (line.split(":", 1) for line in out.splitlines())}


def test_ids(rig, bundle):
    facts = status_of(rig, bundle, ops.ids(1000, 1001, (5, 6, 1001)))
    assert (facts["Uid"], facts["Gid"], facts["Groups"]) == (["1000"] * 4, ["1001"] * 4, ["5", "6", "1001"])
    assert facts["CapEff"] == facts["CapPrm"] == ["0000000000000000"]


def test_no_groups_are_left(rig, bundle):
    assert status_of(rig, bundle, ops.ids(0, 0))["Groups"] == []


def test_capabilities_of_a_user(rig, bundle):
    kept = CAP_CHOWN | CAP_NET_BIND_SERVICE | CAP_SYS_CHROOT
    facts = status_of(
        rig,
        bundle,
        ops.bounding(kept),
        ops.ids(1000, 1000),
        ops.caps(kept, kept, CAP_NET_BIND_SERVICE, CAP_NET_BIND_SERVICE),
    )
    masks = {name: int(facts[name][0], 16) for name in ("CapBnd", "CapAmb", "CapInh", "CapEff", "CapPrm")}
    # A plain file without capabilities: what crosses the exec is what is ambient.
    assert masks == {"CapBnd": kept} | dict.fromkeys(("CapAmb", "CapInh", "CapEff", "CapPrm"), CAP_NET_BIND_SERVICE)


def test_capabilities_of_root(rig, bundle):
    kept = CAP_CHOWN | CAP_SYS_CHROOT
    facts = status_of(rig, bundle, ops.bounding(kept), ops.ids(0, 0), ops.caps(kept, kept, 0, 0))
    assert {int(facts[name][0], 16) for name in ("CapBnd", "CapEff", "CapPrm")} == {kept}
    assert int(facts["CapInh"][0], 16) == int(facts["CapAmb"][0], 16) == 0


def test_ambient_needs_inheritable(rig, bundle):
    assert rig.create(bundle.plan("true", after=(ops.caps(1, 1, 0, 1),))).error == errno.EPERM


def test_umask_and_no_new_privs(rig, bundle):
    facts = status_of(rig, bundle, ops.umask(0o137), ops.no_new_privs())
    assert (facts["Umask"], facts["NoNewPrivs"]) == (["0137"], ["1"])
    assert status_of(rig, bundle)["NoNewPrivs"] == ["0"]


def test_rlimits(rig, bundle):
    _, out, _ = rig.run(
        bundle.plan("cat", "/proc/self/limits", after=(ops.rlimit(7, 100, 200), ops.rlimit(4, 0, 2**64 - 1)))
    )
    limits = {line[:26].strip(): line[26:].split()[:2] for line in out.splitlines()}
    assert limits["Max open files"] == ["100", "200"]
    assert limits["Max core file size"] == ["0", "unlimited"]


def test_stdio_can_be_reopened_by_its_user(rig, bundle):
    unshared = (ops.stdio_owner(1000, 1000), ops.ids(1000, 1000))
    status, out, err = rig.run(bundle.shell("echo again > /proc/self/fd/1; id -u", after=unshared))
    assert (exit_code(status), out) == (0, "again\n1000\n"), err


def test_chdir_as_root_then_as_the_user(rig, bundle):
    (bundle.root / "mnt/root").mkdir(mode=0o700)
    (bundle.root / "mnt/user").mkdir(mode=0o700)
    os.chown(bundle.root / "mnt/user", 1000, 1000)
    drop = (ops.bounding(0), ops.caps(0xC0, 0xC0, 0, 0))  # SETGID and SETUID, not DAC_OVERRIDE

    def cwd(path):
        user = (
            *drop,
            ops.chdir(path, last=False),
            ops.ids(1000, 1000),
            ops.caps(0, 0, 0, 0),
            ops.chdir(path, last=True),
        )
        return bundle.plan("readlink", "/proc/self/cwd", after=user)

    assert rig.run(cwd("/mnt/user"))[1] == "/mnt/user\n"
    assert rig.run(cwd("/mnt/root"))[1] == "/mnt/root\n"  # entered while still root
    os.chown(bundle.root / "mnt/root", 1001, 1001)
    result = rig.create(cwd("/mnt/root"))
    assert result.error == errno.EACCES


@pytest.mark.parametrize(
    ("passwd", "uid", "home"),
    [
        ("root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n", 1000, "/home/u"),
        ("u:x:1000:1000::/home/last", 1000, "/home/last"),
        ("u:x:1000:1000:::/bin/sh\n", 1000, "/"),
        ("u:x:10000:1000::/home/u:\nu:x::0::/home/v:\nbroken\n::::::\n", 1000, "/"),
        ("", 0, "/"),
        (None, 0, "/"),
    ],
)
def test_home(rig, bundle, passwd, uid, home):
    if passwd is not None:
        (bundle.root / "etc/passwd").write_text(passwd)
    for env, expected in ((("PATH=/bin",), home), (("HOME=", "PATH=/bin"), home), (("HOME=/set", "PATH=/bin"), "/set")):
        plan = bundle.shell("echo $HOME", env=env)
        plan.ops = tuple(
            piece for op in plan.ops for piece in ((op, ops.home(uid)) if op.opcode == ops.Opcode.ENV else (op,))
        )
        assert rig.run(plan)[1] == expected + "\n"
