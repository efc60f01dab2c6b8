"""The first process that SETTLE makes ahead of its container: used by the plan it fits, gone with any other."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from pathlib import Path

import pytest

from rundctl.guest import ops, wire

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import ALONE, DEADLINE_S, NAMESPACES, Rig, exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

CLONE_NEWCGROUP = 0x02000000
FITTING = NAMESPACES | CLONE_NEWCGROUP


@pytest.fixture
def settled(faulty, tmp_path):
    """An agent that said a snapshot may be taken, and the host's pids of agent and spare."""
    drop = tmp_path / "drop_caches"
    drop.write_text("")
    script = f'mount --bind {drop} /proc/sys/vm/drop_caches && exec "$@"'
    with Rig(faulty, [*ALONE, "sh", "-c", script, "sh"]) as rig:
        assert rig.ask(wire.SETTLE).error == 0
        rig.channel.hello(wire.ROLE_SHIM)
        (agent,) = rig.children()
        (spare,) = children(agent)
        yield rig, agent, spare


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def run(rig, plan):
    status, out, err = rig.run(plan)
    return exit_code(status), out, err


def test_a_fitting_plan_runs_in_it(settled, bundle):
    rig, agent, spare = settled
    plan = bundle.shell("cat; cat /proc/self/net/dev | grep -c :; exit 7", flags=FITTING)
    assert rig.create(plan).error == 0
    assert children(agent) == [spare]
    assert rig.start().error == 0
    assert os.readlink(f"/proc/{spare}/exe").endswith("busybox")
    rig.data(b"through its pipes\n")
    rig.close_stream(wire.STDIN)
    status, out, _ = rig.finish()
    assert (exit_code(status), out) == (7, "through its pipes\n1\n")
    assert children(agent) == []


def test_the_hostname_is_the_one_told_after_the_snapshot(settled, bundle):
    rig, _, _ = settled
    identity = struct.pack("<Q", time.time_ns()) + os.urandom(wire.ENTROPY_SIZE) + b"clone-7"
    assert rig.ask(wire.IDENTITY, identity).error == 0
    plan = bundle.shell("cat /proc/sys/kernel/hostname", flags=FITTING)
    assert run(rig, plan)[:2] == (0, "clone-7\n")


def test_a_failing_operation_is_named(settled, bundle):
    rig, agent, _ = settled
    operations = (*bundle.before_pivot(), ops.mount("none", "/mnt", "no-such-type"), ops.wait(), ops.exec_(("x",)))
    result = rig.create(ops.Plan(FITTING, operations))
    assert (result.error, operations[result.index].opcode) == (19, ops.Opcode.MOUNT)  # ENODEV
    assert children(agent) == []
    assert run(rig, bundle.shell("exit 3", flags=FITTING))[0] == 3


def test_another_plan_ends_it(settled, bundle):
    rig, agent, spare = settled
    assert rig.create(bundle.shell("exit 4", flags=NAMESPACES)).error == 0
    (init,) = children(agent)
    assert init != spare
    assert rig.start().error == 0
    assert exit_code(rig.finish()[0]) == 4


def test_its_death_costs_nothing_but_time(settled, bundle):
    rig, agent, spare = settled
    os.kill(int(spare), signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while children(agent):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run(rig, bundle.shell("exit 5", flags=FITTING))[0] == 5


def test_settling_again_makes_another(settled):
    rig, agent, spare = settled
    assert rig.ask(wire.SETTLE).error == 0
    (other,) = children(agent)
    assert other != spare
