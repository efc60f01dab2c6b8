"""What a guest, a client or QEMU can make the shim keep, or do, without reading what it gets: all of it has a bound."""

import errno
import os
import resource
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from shim_rig import wait_for

from rundctl.errors import GuestError
from rundctl.guest import wire

DEADLINE_S = 120.0  # for what must come, on a busy machine
GROWTH_MAX_KIB = 1024
LOG_MAX, LOG_LAST = 64 * 1024, 16 * 1024  # of log.c
GONE = (BrokenPipeError, ConnectionResetError)
SIGTERM_TO_ALL = struct.pack("<II", signal.SIGTERM, 1)


def frame(kind, flags, payload):
    return wire.HEADER.pack(len(payload), kind, flags, 1, 0, 0) + payload


def rss_kib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) if "VmRSS:" in status else 0


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def assert_idle(shim):
    before = cpu_ticks(shim.pid)
    assert shim.is_alive(1.0)
    assert cpu_ticks(shim.pid) - before <= 5


def flood(shim, one):
    """Send the same frame without end, and read nothing, until the shim has had enough; it must not grow meanwhile."""
    many = one * 4096
    before = rss_kib(shim.pid)
    with pytest.raises(GONE):
        for _ in range(1000):
            shim.agent.raw(many)
            assert rss_kib(shim.pid) - before < GROWTH_MAX_KIB
    assert shim.wait() == 255
    assert shim.record()["reason"] == "agent"
    return shim.record()["detail"]


def test_a_guest_that_does_not_read_gets_no_credit(launch, released):
    shim = launch(program=released["shim"]).running()
    said = flood(shim, frame(wire.DATA, wire.STDOUT, b"x"))
    assert said == "protocol violation: data without credit"


def test_a_guest_that_acknowledges_stdin_unread_gets_no_more_of_it(launch, released):
    with open("/dev/zero", "rb") as endless:
        shim = launch(program=released["shim"], stdio=(endless, None, None)).running()
    said = flood(shim, frame(wire.CREDIT, wire.STDIN, struct.pack("<I", 1)))
    assert said == "protocol violation: credit for more than was sent"


def test_credit_that_had_to_wait_is_returned_when_the_guest_reads(launch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stdout:
        shim = launch(stdio=(None, stdout, None)).running()
    sent = 3000  # frames for so many take more than socket and queue have room for
    for _ in range(sent):
        shim.agent.output(b"x")
        assert os.read(reader, 1) == b"x"
    os.close(reader)
    frames, returned = 0, 0
    while returned < sent:
        returned += struct.unpack("<I", shim.agent.expect(wire.CREDIT).payload)[0]
        frames += 1
    assert returned == sent
    assert frames < sent
    assert shim.agent.is_mute(0.1)


# A client


def test_a_client_that_has_shut_its_ears_burns_nothing(launch):
    shim = launch().running()
    client = shim.client()
    client.wait_hello(DEADLINE_S)
    client._socket.shutdown(socket.SHUT_RD)
    client.post(0x7F)
    assert_idle(shim)
    client.post(wire.SIGNAL, SIGTERM_TO_ALL, container=1)
    assert shim.agent.expect(wire.SIGNAL).payload == SIGTERM_TO_ALL
    client.close()
    assert shim.client().wait_hello(DEADLINE_S) is None


def test_connections_without_a_descriptor_wait_and_burn_nothing(launch):
    shim = launch().running()
    most = max(map(int, os.listdir(f"/proc/{shim.pid}/fd"))) + 3
    resource.prlimit(shim.pid, resource.RLIMIT_NOFILE, (most, most))
    clients = [shim.client() for _ in range(20)]
    clients[0].wait_hello(DEADLINE_S)
    last = clients[-1]._socket
    assert_idle(shim)
    assert not select.select([last], [], [], 0)[0]
    for client in clients[:-1]:
        client.close()
    clients[-1].wait_hello(DEADLINE_S)
    assert shim.is_alive(0)


def test_a_request_to_a_closed_channel_is_answered(launch):
    shim = launch().running()
    client = shim.client()
    client.wait_hello(DEADLINE_S)
    shim.agent.socket.close()
    for kind in (wire.SIGNAL, wire.READ, wire.START):
        result = client.wait(client.post(kind, SIGTERM_TO_ALL, container=1), DEADLINE_S)
        assert (result.error, result.detail) == (errno.ECHILD, "the VM has ended")
    assert shim.wait() == 255
    assert shim.record()["detail"] == "the agent's channel closed"


def test_a_kill_ends_a_stalled_flush_that_no_agent_hears_of(launch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stdout:
        shim = launch(stdio=(None, stdout, None)).running()
    for _ in range(wire.WINDOW // wire.PAYLOAD_MAX):
        shim.agent.output(bytes(wire.PAYLOAD_MAX))
    shim.agent.exited(0)
    os.kill(shim.qemu_pid(), signal.SIGKILL)
    assert shim.is_alive(2.5)
    client = shim.client()
    tag = client.post(wire.SIGNAL, struct.pack("<II", signal.SIGKILL, 1), container=1)
    assert client.wait(tag, DEADLINE_S).error == errno.ECHILD
    assert shim.wait() == 0
    os.close(reader)


def test_memory_that_is_lacking_is_not_taken_for_a_closed_channel(launch, released):
    shim = launch(program=released["shim"]).running()
    resource.prlimit(shim.pid, resource.RLIMIT_AS, (1, resource.getrlimit(resource.RLIMIT_AS)[1]))
    half = wire.HEADER.pack(wire.PAYLOAD_MAX, wire.PLAN, 0, 1, 0, 1) + bytes(wire.PAYLOAD_MAX // 2)
    for client in [shim.client() for _ in range(30)]:
        with suppress(GuestError):  # those that find no memory are dropped
            client.wait_hello(DEADLINE_S)
            client._send(half)
    with suppress(*GONE):
        assert client._socket.recv(1) == b""
    shim.agent.raw(frame(wire.DATA, wire.STDOUT, bytes(wire.PAYLOAD_MAX)))
    assert shim.wait() == 255
    assert (shim.record()["reason"], shim.record()["detail"]) == ("internal", "out of memory")


# QEMU

MANY = "i=0; while [ $i -lt 3000 ]; do echo {} $i ............................................................; i=$((i+1)); done"
SAY = "import os; os.set_blocking(2, True); say = lambda text: os.write(2, text.encode()); "  # QEMU would lose words


def _ends_after(launch, script: str) -> bytes:
    shim = launch(qemu=(sys.executable, "-c", f"{SAY}{script}; os._exit(3)"))
    with pytest.raises(GuestError, match="qemu exited with status 3"):
        shim.channel.wait(1, DEADLINE_S)
    assert shim.wait() == 255
    said = shim.log.read_bytes()
    assert LOG_MAX // 2 < len(said) <= LOG_MAX
    return said


def test_the_log_has_the_first_words_and_the_last(launch):
    said = _ends_after(
        launch, f"say('first words\\n'); [say(f'again {{i}} {'.' * 60}\\n') for i in range(3000)]; say('last words\\n')"
    )
    assert said.startswith(b"first words\nagain 0 ")
    assert said.endswith(b"\nlast words\n")
    last = [int(line.split()[1]) for line in said[-LOG_LAST:].splitlines()[1:-1]]
    assert last == list(range(last[0], 3000))


def test_the_last_words_are_kept_also_when_they_come_letter_by_letter(launch):
    """As from a guest's console: the log is full between any two of them."""
    said = _ends_after(launch, f"say('x' * {LOG_MAX - 4000}); [say(letter) for letter in '%04095d.' % 7]")
    assert said.endswith(b"x" + b"0" * 4094 + b"7.")


def test_words_do_not_hold_qemu_up_when_the_shim_does_not_come_to_read_them(launch, tmp_path):
    script = (
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; {MANY.format('x')}; : > {tmp_path}/done; exec sleep 1000"
    )
    shim = launch(qemu=("/bin/sh", "-c", script)).running()
    os.kill(shim.pid, signal.SIGSTOP)
    (tmp_path / "go").touch()
    wait_for((tmp_path / "done").exists)
    os.kill(shim.pid, signal.SIGCONT)
    shim.agent.exited(0)
    assert shim.wait() == 0


def test_a_qemu_that_has_closed_its_stderr_burns_nothing(launch):
    shim = launch(qemu=("/bin/sh", "-c", "exec sleep 1000 >&- 2>&-")).running()
    assert_idle(shim)
