"""Who ran out of memory: the container in its guest (a flag of EXITED), or the VM on the host (its cgroup's count of kills)."""

import os
import signal
import struct

import psutil
import pytest
from shim_rig import wait_for

from rundctl.guest import wire

KILLED = int(signal.SIGKILL)
SLEEP = ("/bin/sleep", "1000")


def exited(shim, status, flags):
    shim.agent.send(wire.EXITED, struct.pack("<iI", status, flags))


@pytest.mark.parametrize(("flags", "oom"), [(0, "0"), (wire.EXITED_OOM, "1"), (wire.EXITED_OOM | 0xFFFF0000, "1")])
def test_the_container_s_own(launch, flags, oom):
    shim = launch().running()
    exited(shim, KILLED, flags)
    assert shim.wait() == 137
    record = shim.record()
    assert (record["reason"], record["oom"]) == ("container", oom)


def test_a_child_s_does_not_change_the_exit_code(launch):
    shim = launch().running()
    exited(shim, 3 << 8, wire.EXITED_OOM)
    assert shim.wait() == 3
    assert shim.record()["oom"] == "1"


@pytest.fixture
def counted(launch, tmp_path):
    """A shim whose cgroup's file says ``before``, and later what the test writes. ``helper``: a program beside QEMU."""

    def make(text, helper=()):
        path = tmp_path / "events"
        path.write_text(text)
        fd, given, directory = os.open(path, os.O_RDONLY), os.open("/usr", os.O_PATH), os.open("/usr", os.O_PATH)
        options = ("--helper", f"served,{given},ro,{directory}") if helper else ()
        commands = {"qemu": (*helper, ";", *SLEEP)} if helper else {}
        shim = launch(options=("--oom-events", str(fd), *options), keep=(fd, given, directory), **commands)
        for number in (fd, given, directory):
            os.close(number)
        shim.running()
        return shim, path

    return make


V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 12\noom 2\noom_kill {}\noom_group_kill 0\n"


@pytest.mark.parametrize("text", [V1, V2])
def test_the_vm_s(counted, text):
    shim, path = counted(text.format(3))
    qemu = shim.qemu_pid()
    path.write_text(text.format(4))
    os.kill(qemu, signal.SIGKILL)
    assert shim.wait() == 137
    record = shim.record()
    assert (record["reason"], record["oom"], record["status"]) == ("oom", "1", "9")
    assert record["detail"] == "the host killed the VM: its cgroup ran out of memory"


# Killed itself, or a child of its own, whose death it tells by an exit code.
@pytest.mark.parametrize("helper", [SLEEP, ("/bin/sh", "-c", "sleep 1000 & wait $!; exit 1")])
def test_a_helper_s_is_the_vm_s(counted, helper):
    shim, path = counted(V1.format(3), helper)
    victim = psutil.Process(shim.helper_pid())
    path.write_text(V1.format(4))
    wait_for(lambda: helper == SLEEP or victim.children())
    (victim.children() or [victim])[0].kill()
    assert shim.wait() == 137
    record = shim.record()
    assert (record["reason"], record["oom"]) == ("oom", "1")
    assert record["detail"] == "the host killed the VM: its cgroup ran out of memory"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 255)])
def test_a_death_of_another_kind_is_not_called_that(counted, number, code):
    shim, path = counted(V1.format(3))
    qemu = shim.qemu_pid()
    if number != signal.SIGKILL:
        path.write_text(V1.format(4))  # it was somebody else
    os.kill(qemu, number)
    assert shim.wait() == code
    record = shim.record()
    assert (record["reason"], record["oom"]) == ("qemu", "0")


def test_a_file_that_says_nothing(counted):
    shim, path = counted("")
    path.write_text("oom_kill")
    os.kill(shim.qemu_pid(), signal.SIGKILL)
    assert shim.wait() == 137
    assert shim.record()["reason"] == "qemu"
