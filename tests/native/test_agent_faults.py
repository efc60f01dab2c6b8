"""What the agent does when its kernel has no memory, or all the time in the world: the real one, with system calls that fail or wait."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import Bundle, Rig, exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


def test_nothing_is_lost_where_writes_find_no_memory(faulty, tmp_path):
    """DATA, EXITED and the greeting outlive it: a conversation that is forgotten ends the VM."""
    with Rig(faulty, wrapper=("env", "FAULT=memory")) as rig:
        status, out, _ = rig.run(Bundle(tmp_path).shell("seq 60000; exit 3"))
        assert exit_code(status) == 3
        assert out == "".join(f"{number}\n" for number in range(1, 60001))


def test_the_end_is_told_before_cgroups_are_removed(faulty, tmp_path):
    """A container may have made thousands of them."""
    with Rig(faulty, wrapper=("env", "FAULT=removal")) as rig:
        status, out, _ = rig.run(Bundle(tmp_path).shell("echo out; exit 5"))
        assert (exit_code(status), out) == (5, "out\n")
        os.kill(rig.process.pid, signal.SIGUSR1)
