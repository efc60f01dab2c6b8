"""PAUSE and RESUME through the real shim; the test speaks for QEMU's monitor, which a hostile guest may have taken over."""

import errno
import json
import os
import signal
import struct
import time

import pytest
from shim_rig import Reader

from rundctl.guest import wire

DEADLINE_S = 120.0  # for what must come, on a busy machine
CLOCK_SLACK_NS = 60 * 10**9


class Monitor:
    """QEMU's end, line by line."""

    def __init__(self, shim):
        self.socket = shim.qmp
        self.socket.settimeout(DEADLINE_S)
        self.data = b""
        assert self.command() == {"execute": "qmp_capabilities"}

    def command(self):
        while b"\n" not in self.data:
            more = self.socket.recv(4096)
            assert more, "the shim has closed the monitor"
            self.data += more
        line, _, self.data = self.data.partition(b"\n")
        return json.loads(line)

    def raw(self, data):
        self.socket.sendall(data)

    def confirm(self, command):
        self.raw(json.dumps({"return": {}, "id": command["id"]}).encode() + b"\r\n")


def result_of(client, tag):
    return client.wait(tag, DEADLINE_S)


@pytest.fixture
def shim(launch):
    return launch().running()


def test_a_machine_that_qemu_stops_by_itself_is_ended(shim):
    """KVM gave up: QEMU stays, and waits for somebody to look at it."""
    shim.qmp.sendall(b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n')
    assert shim.wait() == 255
    assert shim.record()["reason"] == "qemu"
    assert "KVM could not go on" in shim.record()["detail"]


def test_that_a_pause_stops_the_machine_is_no_end(asked):
    client, tag, monitor, command = asked
    monitor.raw(b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n')
    monitor.confirm(command)
    assert result_of(client, tag).error == 0
    resume = client.post(wire.RESUME, container=1)
    monitor.confirm(monitor.command())
    assert result_of(client, resume).error == 0


@pytest.fixture
def asked(shim):
    """A PAUSE that QEMU has been told of: the client, its tag, the monitor, the command."""
    client = shim.client()
    tag = client.post(wire.PAUSE, container=1)
    monitor = Monitor(shim)
    command = monitor.command()
    assert command["execute"] == "stop"
    return client, tag, monitor, command


@pytest.fixture
def paused(shim, asked):
    client, tag, monitor, command = asked
    monitor.confirm(command)
    assert result_of(client, tag).error == 0
    assert (shim.state / "paused").exists()
    return client, monitor


def test_mark_and_result_come_when_qemu_has_confirmed(shim, asked):
    client, tag, monitor, command = asked
    monitor.raw(b'{"return": {}}\r\n{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n')
    assert shim.is_alive(0.1)
    assert not (shim.state / "paused").exists()
    monitor.confirm(command)
    assert result_of(client, tag).error == 0
    assert (shim.state / "paused").exists()


def test_resume_removes_the_mark_and_tells_the_guest_the_time(shim, paused):
    client, monitor = paused
    tag = client.post(wire.RESUME, container=1)
    command = monitor.command()
    assert command["execute"] == "cont"
    assert (shim.state / "paused").exists()
    monitor.confirm(command)
    assert result_of(client, tag).error == 0
    assert not (shim.state / "paused").exists()
    told = shim.agent.expect(wire.CLOCK)
    assert (told.tag, told.container) == (0, 0)
    realtime_ns, back, _ = struct.unpack("<QII", told.payload)
    assert abs(realtime_ns - time.time_ns()) < CLOCK_SLACK_NS
    assert not back


def test_not_before_commit(launch):
    shim = launch().planned()
    for channel in (shim.channel, shim.client()):
        assert result_of(channel, channel.post(wire.PAUSE, container=1)).error == errno.EPERM
    assert not (shim.state / "paused").exists()


def test_mark_is_made_for_a_client_that_was_killed(shim):
    client = shim.client()
    client.post(wire.PAUSE, container=1)
    monitor = Monitor(shim)
    client.close()
    monitor.confirm(monitor.command())
    other = shim.client()
    tag = other.post(wire.RESUME, container=1)
    command = monitor.command()  # the shim has read the confirmation that came before it, or reads it now
    monitor.confirm(command)
    assert result_of(other, tag).error == 0
    assert not (shim.state / "paused").exists()
    assert shim.is_alive(0)


def test_refusal_of_qemu(shim, asked):
    client, tag, monitor, command = asked
    refusal = {"error": {"class": "GenericError", "desc": "not now"}, "id": command["id"]}
    monitor.raw(json.dumps(refusal).encode() + b"\r\n")
    result = result_of(client, tag)
    assert (result.error, result.detail) == (errno.EIO, "QEMU refused")
    assert not (shim.state / "paused").exists()


def test_a_machine_that_cannot_be_marked_goes_on(shim, asked):
    client, tag, monitor, command = asked
    (shim.state / "paused").mkdir()  # no file can be made there
    monitor.confirm(command)
    result = result_of(client, tag)
    assert (result.error, result.detail) == (errno.EISDIR, "mark it")
    command = monitor.command()
    assert command["execute"] == "cont"
    (shim.state / "paused").rmdir()
    # The shim does not answer as it does for one that is paused.
    tag = client.post(wire.SIGNAL, struct.pack("<II", 15, 0), container=1)
    shim.agent.result(shim.agent.expect(wire.SIGNAL), error=errno.EPERM)
    assert result_of(client, tag).error == errno.EPERM
    monitor.confirm(command)
    shim.agent.expect(wire.CLOCK)
    tag = client.post(wire.PAUSE, container=1)
    monitor.confirm(monitor.command())
    assert result_of(client, tag).error == 0
    assert (shim.state / "paused").is_file()


@pytest.mark.parametrize("keys", [("return", "id"), ("id", "return")])
def test_answer_in_pieces_and_in_either_order(shim, asked, keys):
    client, tag, monitor, command = asked
    values = {"return": {}, "id": command["id"]}
    for byte in json.dumps({key: values[key] for key in keys}).encode() + b"\r\n":
        monitor.raw(bytes([byte]))
    assert result_of(client, tag).error == 0


@pytest.mark.parametrize(
    "noise",
    [
        b"\0" * 5000 + b"\n",
        b"x" * 100_000 + b"\n",
        b"\n" * 5000,
        bytes(range(256)) * 40 + b"\n",
        b'{"return": {}, "id": 11}\n{"return": {}, "id": 2}\n{"return": {}, "id": "1"}\n{"return": {}, "id": 1',
        b'{"id": 1}\n{"event": "x", "id": 1}\n',
        b'{"return": {}, "id": 99999999999999999999999}\n' * 100,
    ],
    ids=["nul", "long", "empty", "bytes", "other-ids", "no-answer", "many"],
)
def test_what_is_no_answer_is_none(shim, asked, noise):
    client, tag, monitor, command = asked
    monitor.raw(noise)
    assert shim.is_alive(0.05)
    assert not (shim.state / "paused").exists()
    monitor.raw(b"\n")
    monitor.confirm(command)
    assert result_of(client, tag).error == 0


def test_a_monitor_that_closes_is_said_and_ends_nothing(shim, asked):
    client, tag, monitor, _ = asked
    monitor.socket.close()
    result = result_of(client, tag)
    assert (result.error, result.detail) == (errno.ECHILD, "QEMU's monitor closed")
    again = client.post(wire.PAUSE, container=1)
    assert result_of(client, again).error == errno.EPIPE
    shim.agent.exited(0)
    assert shim.wait() == 0


def test_a_monitor_that_does_not_answer_holds_nobody_else_up(shim, asked):
    client, _, monitor, _ = asked
    tags = [client.post(wire.PAUSE, container=1) for _ in range(10)]
    assert [result_of(client, tag).error for tag in tags[-3:]] == [errno.ENOBUFS] * 3
    tag = client.post(wire.SIGNAL, struct.pack("<II", 15, 0), container=1)
    shim.agent.result(shim.agent.expect(wire.SIGNAL))
    assert result_of(client, tag).error == 0
    monitor.raw(b"".join(b'{"return": {}, "id": %d}\r\n' % number for number in range(1, 9)))
    assert [result_of(client, tag).error for tag in tags[:-3]] == [0] * 7


def test_signals_wait_in_the_channel_and_their_senders_do_not(shim, paused):
    client, _ = paused
    tag = client.post(wire.SIGNAL, struct.pack("<II", 15, 1), container=1)
    assert result_of(client, tag).error == 0
    frame = shim.agent.expect(wire.SIGNAL)
    assert (frame.tag, struct.unpack("<II", frame.payload)) == (0, (15, 1))
    os.kill(shim.pid, signal.SIGHUP)
    assert struct.unpack("<II", shim.agent.expect(wire.SIGNAL).payload) == (signal.SIGHUP, 0)


def test_stop_of_a_paused_one_flushes_what_the_shim_holds(launch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stdout:
        shim = launch(stdio=(None, stdout, None)).running()
    client = shim.client()
    output = b"".join(b"%07d\n" % number for number in range(wire.WINDOW // 8))
    for offset in range(0, len(output), wire.PAYLOAD_MAX):  # more than the pipe takes
        shim.agent.output(output[offset : offset + wire.PAYLOAD_MAX])
    tag = client.post(wire.PAUSE, container=1)
    monitor = Monitor(shim)
    monitor.confirm(monitor.command())
    assert result_of(client, tag).error == 0
    shim.agent.heard()
    with shim.stopped():  # else its patience with us might be at its end
        client.post(wire.STOP)
        reading = Reader(reader)
    assert reading.result() == output
    os.close(reader)
    assert shim.wait() == 137
    assert shim.record()["reason"] == "stopped"
