"""Programs beside QEMU: what they see, what their end means; and the guest's own copy of its template's memory."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from rundctl.errors import GuestError
from rundctl.guest import wire

PROBE = Path(__file__).with_name("guest_probe.py")
SLEEP = ("/bin/sleep", "1000")
DEADLINE_S = 120.0  # for what must come, on a busy machine
LOSS_S = 2.0  # LOSS_MS of serve.c
PAGE = 4096


def with_helper(launch, *argv, qemu=SLEEP, more=(), **arguments):
    """Launch with a helper ``served`` that serves the rootfs, read-only."""
    with ExitStack() as opened:
        keep, directory = os.open(os.devnull, os.O_RDONLY), os.open("/usr", os.O_PATH)
        opened.callback(os.close, keep)
        opened.callback(os.close, directory)
        options = (*more, "--helper", f"served,{keep},ro,{directory}")
        return launch(qemu=(*argv, ";", *qemu), options=options, keep=(keep, directory), **arguments)


@pytest.fixture
def go(tmp_path):
    """A FIFO, and a line to end the helper that reads it: the helper's is there also if it opens the FIFO later."""
    path = tmp_path / "go"
    os.mkfifo(path)
    writing = os.open(path, os.O_RDWR)
    yield path, lambda: os.write(writing, b"go\n")
    os.close(writing)


def await_end(pidfd):
    """Of who need not be reaped."""
    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)


def facts_of_helper(launch, tmp_path, serve, options=(), keep=()):
    """What the probe finds as a helper. ``serve``: what comes after its name and descriptor."""
    reading, writing = os.pipe()
    state = tmp_path / "c0/state"
    try:
        probe = (sys.executable, "-I", "-S", PROBE, writing, state)
        helper = ("--helper", f"served,{writing},{serve}")
        shim = launch(qemu=(*probe, ";", *SLEEP), options=(*options, *helper), keep=(writing, *keep))
        os.close(writing)
        with os.fdopen(os.dup(reading), "rb") as report:
            return shim, json.loads(report.readline())
    finally:
        os.close(reading)


@pytest.mark.usefixtures("own_mounts")
@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_a_helper_sees_its_directory_in_the_place_of_the_containers(launch, tmp_path, mode):
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "data/file").write_text("content")
    subprocess.run(["mount", "-t", "tmpfs", "inner", tmp_path / "data/inner"], check=True)
    before = Path("/proc/self/mountinfo").read_text()
    directory = os.open(tmp_path / "data", os.O_PATH)
    try:
        (tmp_path / "data/inner/b").write_text("2")
        shim, facts = facts_of_helper(launch, tmp_path, f"{mode},{directory}", keep=(directory,))
        assert Path("/proc/self/mountinfo").read_text() == before
    finally:
        os.close(directory)
        subprocess.run(["umount", tmp_path / "data/inner"], check=True)
    assert facts["without_devices"]
    read_only = mode == "ro"
    assert facts["volumes"]["file"] == {"is_file": True, "read_only": read_only, "text": "content"}
    assert facts["volumes"]["inner"]["read_only"] is read_only
    assert facts["volumes"]["inner"]["tree"] == ["b"]
    for kind in ("pid", "net", "ipc", "uts", "cgroup"):
        assert facts["namespaces"][kind] == os.readlink(f"/proc/{shim.pid}/ns/{kind}")
    assert facts["namespaces"]["mnt"] != os.readlink(f"/proc/{shim.qemu_pid()}/ns/mnt")


def test_a_helper_inherits_only_what_it_was_promised(launch, tmp_path):
    directory = os.open(tmp_path, os.O_PATH)
    try:
        shim, facts = facts_of_helper(launch, tmp_path, f"ro,{directory}", keep=(directory,))
    finally:
        os.close(directory)
    others = {fd: target for fd, target in facts["descriptors"].items() if int(fd) > 2}
    assert len(others) == 1, others
    assert next(iter(others.values())).startswith("pipe:")
    assert int(facts["blocked"], 16) == 0
    held = [os.readlink(f"/proc/{shim.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{shim.pid}/fd")]
    assert str(tmp_path) not in held


def test_volumes_may_be_a_helpers(launch, tmp_path):
    (tmp_path / "file").write_text("content")
    fd = os.open(tmp_path / "file", os.O_PATH)
    try:
        _, facts = facts_of_helper(launch, tmp_path, "volumes", ("--volume", f"{fd},ro,file,file"), (fd,))
    finally:
        os.close(fd)
    assert facts["volumes"] == {"0": {"name": "file", "is_file": True, "read_only": True, "text": "content"}}


def test_a_killed_helper_ends_the_vm_at_once(launch):
    shim = with_helper(launch, *SLEEP).running()
    qemu = os.pidfd_open(shim.qemu_pid())
    os.kill(shim.helper_pid(), signal.SIGKILL)
    assert shim.wait() == 255
    assert shim.record()["reason"] == "served"
    assert shim.record()["detail"] == "served was killed by signal 9"
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(qemu, 0)
    os.close(qemu)


def test_a_killed_helper_does_not_wait_for_what_may_explain_its_end(launch):
    shim = with_helper(launch, *SLEEP).running()
    pids = shim.helper_pid(), shim.qemu_pid()  # in the order in which the shim finds them
    ends = [os.pidfd_open(pid) for pid in pids]
    with shim.stopped():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for end in ends:
            await_end(end)
    assert shim.wait() == 255
    assert shim.record()["detail"] == "served was killed by signal 9"


def test_a_helper_that_exits_ends_the_vm(launch, go):
    fifo, end_helper = go
    shim = with_helper(launch, "/bin/sh", "-c", f"read line < {fifo}; exit 3").running()
    begun = time.monotonic()
    end_helper()
    assert shim.wait() == 255
    assert time.monotonic() - begun >= LOSS_S  # in which QEMU's end would have come, if it had been the reason
    assert (shim.record()["reason"], shim.record()["detail"]) == ("served", "served exited with status 3")


def test_a_helper_that_cannot_be_executed_is_told_to_the_creator(launch):
    shim = with_helper(launch, "/no/such/helper")
    with pytest.raises(GuestError, match="served exited with status 127"):
        shim.channel.wait(shim.channel.post(wire.PLAN, b"a plan", container=1), DEADLINE_S)
    assert shim.wait() == 255
    assert "start /no/such/helper: No such file or directory" in shim.log.read_text()


def test_an_end_that_qemus_may_explain_is_not_judged_before_qemus(launch, go):
    fifo, end_helper = go
    shim = with_helper(launch, "/bin/sh", "-c", f"read line < {fifo}; exit 0").running()
    qemu = shim.qemu_pid()
    ends = [os.pidfd_open(pid) for pid in (shim.helper_pid(), qemu)]
    with shim.stopped():  # it finds the helper's end first, and both before it would judge that
        end_helper()
        os.kill(qemu, signal.SIGKILL)
        for end in ends:
            await_end(end)
    assert shim.wait() == 137
    assert shim.record()["reason"] == "qemu"


def test_killing_the_shim_kills_its_helpers(launch):
    shim = with_helper(launch, *SLEEP)
    helper = os.pidfd_open(shim.helper_pid())
    os.kill(shim.pid, signal.SIGKILL)
    assert shim.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(helper, 0)
    os.close(helper)


@pytest.mark.parametrize("words", [(), SLEEP, (";", *SLEEP), (*SLEEP, ";")])
def test_commands_that_are_not_two_are_refused(sanitized, words):
    numbers = [f"--{name}=9" for name in ("creator", "agent", "qmp", "control", "state", "rootfs", "log")]
    argv = [sanitized["shim"], "launch", *numbers, "--helper", "served,9,ro,9", "--", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "shim: a required option is missing\n")


@pytest.mark.parametrize("helper", ["served", "served,x,volumes", "served,9,wo,9", "served,9,ro,", "served,9,"])
def test_a_helper_that_is_not_understood_is_refused(sanitized, helper):
    done = subprocess.run(
        [sanitized["shim"], "launch", "--helper", helper, "--", *SLEEP], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("shim: ")


def _copied(launch, template, size):
    source, target = os.open(template, os.O_RDONLY), os.memfd_create("memory")
    os.ftruncate(target, size)
    shim = launch(options=("--copy", f"{source},{target}"), keep=(source, target))
    os.close(source)
    return shim, target


def test_memory_is_copied_but_for_zeroes(launch, tmp_path):
    """By the time of the shim's HELLO."""
    pages = [random.Random(number).randbytes(PAGE) if number % 3 else bytes(PAGE) for number in range(40)]
    size = 4 << 20
    with (tmp_path / "memory").open("wb") as file:
        file.write(b"".join(pages))
        file.seek(size - 2 * PAGE)
        file.write(pages[1] + bytes(PAGE))
    shim, copy = _copied(launch, tmp_path / "memory", size)
    shim.channel.wait_hello(DEADLINE_S)
    assert os.pread(copy, size, 0) == (tmp_path / "memory").read_bytes()
    assert os.fstat(copy).st_blocks * 512 == (sum(map(any, pages)) + 1) * PAGE
    held = [os.readlink(f"/proc/{shim.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{shim.pid}/fd")]
    assert not any(target in (str(tmp_path / "memory"), "/memfd:memory (deleted)") for target in held)
    os.close(copy)


def test_memory_that_cannot_be_copied_is_told_to_the_creator(launch, tmp_path):
    (tmp_path / "memory").write_bytes(bytes([1]) * PAGE)
    source = os.open(tmp_path / "memory", os.O_RDONLY)
    shim = launch(options=("--copy", f"{source},{source}"), keep=(source,), wait=False)
    os.close(source)
    with pytest.raises(GuestError, match="copy the template's memory: Bad file descriptor"):
        shim.started().channel.wait_hello(DEADLINE_S)


def test_patience_is_for_all_that_is_waited_for(launch):
    """A helper has ended and QEMU lives on, which is given up after so many times `LOSS_S`."""
    begun = time.monotonic()
    shim = with_helper(launch, "/bin/false", more=("--patience", "2"))
    assert shim.wait() == 255
    assert time.monotonic() - begun >= 2 * LOSS_S
    assert shim.record()["reason"] == "served"


@pytest.mark.parametrize("said", ["0", "-1", "101", "x", ""])
def test_a_patience_that_makes_no_sense(sanitized, said):
    done = subprocess.run(
        [sanitized["shim"], "launch", "--patience", said, "--", "true"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "shim:" in done.stderr) == (2, True)
