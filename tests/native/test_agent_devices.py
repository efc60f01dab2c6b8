"""The devices of a container, decided by the kernel of this host: the program is attached to a cgroup that the test made."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pytest

from rundctl.engine.plan import device_filter
from rundctl.guest import ops
from rundctl.host import cgroupfs

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import Bundle, exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")
BLOCK_AND_FUSE = "for device in full fuse disk; do head -c 1 /dev/$device >/dev/null 2>/dev/null; echo $device $?; done"


@pytest.fixture
def cgroup():
    v2 = next(hierarchy for hierarchy in cgroupfs.hierarchies() if hierarchy.is_v2)
    name = f"/rundctl-devices-{os.getpid()}"
    cgroupfs.make(v2, name)
    yield v2.directory + name
    cgroupfs.remove(v2, name)


def held_to(cgroup, devices):
    """Operations, before PIVOT, that bring the process into the cgroup and its rules to bear."""
    program = device_filter.compile_filter(devices)
    return (
        ops.mknod("/dev/full", 0o20666, 1, 7),
        ops.mknod("/dev/fuse", 0o20666, 10, 229),
        ops.mknod("/dev/disk", 0o60666, 7, 200),
        *([ops.device_filter(cgroup, program)] if program else []),
    )


def opened(rig, tmp_path, cgroup, devices):
    """What the kernel answers to opening each of three devices."""
    bundle = Bundle(tmp_path)
    plan = bundle.shell(BLOCK_AND_FUSE, before=held_to(cgroup, devices))
    # Before ROOT: the cgroup is named by this host's own paths.
    joined = (
        ops.write(f"{cgroup}/cgroup.procs", "0"),
        *(op for op in plan.ops if op.opcode is ops.Opcode.DEVICE_FILTER),
    )
    rest = tuple(op for op in plan.ops if op.opcode is not ops.Opcode.DEVICE_FILTER)
    status, out, err = rig.run(ops.Plan(plan.clone_flags, (*joined, *rest)))
    assert exit_code(status) == 0, err
    return dict(line.split() for line in out.splitlines())


def test_only_the_usual_devices(rig, tmp_path, cgroup):
    assert opened(rig, tmp_path, cgroup, [{"allow": False, "access": "rwm"}]) == {"full": "0", "fuse": "1", "disk": "1"}


def test_one_more_is_allowed(rig, tmp_path, cgroup):
    rule = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    bundle = Bundle(tmp_path)
    script = "exec 3<>/dev/fuse && echo open; exec 4</dev/full && echo full"
    program = device_filter.compile_filter([{"allow": False, "access": "rwm"}, rule])
    plan = bundle.shell(
        script, before=(ops.mknod("/dev/fuse", 0o20666, 10, 229), ops.mknod("/dev/full", 0o20666, 1, 7))
    )
    joined = (ops.write(f"{cgroup}/cgroup.procs", "0"), ops.device_filter(cgroup, program))
    status, out, err = rig.run(ops.Plan(plan.clone_flags, (*joined, *plan.ops)))
    assert (exit_code(status), out.split()) == (0, ["open", "full"]), err


def test_the_largest_program_passes_the_verifier(rig, cgroup):
    some = [{"allow": True, "major": n, "minor": 1, "access": "rw"} for n in range(device_filter.RULES_MAX)]
    program = device_filter.compile_filter(some)
    assert len(program) // 8 > 3000
    result = rig.machine(ops.device_filter(cgroup, program))
    assert result.error == 0, result.describe()


def test_one_that_is_ready_is_only_attached(rig, cgroup):
    program = device_filter.compile_filter([])
    assert rig.machine(ops.device_filter(cgroup, program)).error == 0
    assert rig.machine(ops.device_filter_ready(program)).error == 0
    assert rig.machine(ops.device_filter(cgroup, program)).error == 0
    # The kernel attaches any number of programs, but none of them twice.
    assert rig.machine(ops.device_filter(cgroup, program)).error == errno.EINVAL
    other = device_filter.compile_filter([{"allow": True, "major": 1, "minor": 1, "access": "r"}])
    assert rig.machine(ops.device_filter(cgroup, other)).error == 0


def test_a_container_of_its_own_process_finds_it(rig, tmp_path, cgroup):
    assert rig.machine(ops.device_filter_ready(device_filter.compile_filter([]))).error == 0
    assert opened(rig, tmp_path, cgroup, []) == {"full": "0", "fuse": "1", "disk": "1"}
    result = rig.machine(ops.device_filter(cgroup, device_filter.compile_filter([])))
    assert result.error == errno.EINVAL  # the child attached this very program


@pytest.mark.parametrize("program", [b"\xff" * 8, struct.pack("<BBhi", 0x95, 0, 0, 0)])
def test_ready_is_a_hope(rig, cgroup, program):
    assert rig.machine(ops.device_filter_ready(program)).error == 0
    assert rig.machine(ops.device_filter(cgroup, program)).error in (errno.EINVAL, errno.EACCES)


@pytest.mark.parametrize("program", [b"", b"1234567", b"\xff" * 8])
def test_what_is_no_program(rig, cgroup, program):
    assert rig.machine(ops.device_filter(cgroup, program)).error == errno.EINVAL


def test_what_is_no_cgroup(rig):
    program = device_filter.compile_filter([])
    assert rig.machine(ops.device_filter("/nonesuch", program)).error == errno.ENOENT
    assert rig.machine(ops.device_filter("/tmp", program)).error == errno.EBADF
