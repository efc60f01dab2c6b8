"""stdin, stdout and stderr through the real shim: credit, order, ends, and what kinds of files they may be."""

import errno
import hashlib
import os
import pty
import random
import select
import signal
import socket
import struct
import termios
import threading
import time
from contextlib import suppress

import pytest
from shim_rig import Reader

from rundctl.guest import wire

DEADLINE_S = 120.0  # for what must come, on a busy machine
PATIENCE_S = 2.0  # PATIENCE_MS of end.c
MEGABYTES_8 = 8 << 20


def noise(size):
    return random.Random(4).randbytes(size)


def send_output(agent, data, stream=wire.STDOUT):
    """Send as the agent does: never more than the credit allows. Returns what else came from the shim."""
    room, sent, others = wire.WINDOW, 0, []
    while sent < len(data):
        while room == 0:
            frame = agent.frame()
            if frame.type == wire.CREDIT and frame.flags == stream:
                (bytes_out,) = struct.unpack("<I", frame.payload)
                room += bytes_out
            else:
                others.append(frame)
        piece = data[sent : sent + min(room, wire.PAYLOAD_MAX)]
        agent.output(piece, stream)
        room -= len(piece)
        sent += len(piece)
    return others


class Pipe(list):
    """Read end and write end; each is closed once, as its number may be another file's afterwards."""

    def close(self, end):
        if self[end] >= 0:
            os.close(self[end])
        self[end] = -1


@pytest.fixture
def pipe():
    ends = Pipe(os.pipe())
    yield ends
    ends.close(0)
    ends.close(1)


def test_8_megabytes_through_stdout(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    reader = Reader(pipe[0])
    data = noise(MEGABYTES_8)
    send_output(shim.agent, data)
    shim.agent.exited(0)
    assert shim.wait() == 0
    assert hashlib.sha256(reader.result()).digest() == hashlib.sha256(data).digest()


def test_8_megabytes_through_stdin(launch, pipe):
    shim = launch(stdio=(pipe[0], None, None)).running()
    data = noise(MEGABYTES_8)
    feeder = threading.Thread(target=_feed, args=(pipe, data), daemon=True)
    feeder.start()
    got, unacknowledged = b"", 0
    while (frame := shim.agent.frame()).type == wire.DATA:
        assert frame.flags == wire.STDIN
        got += frame.payload
        unacknowledged += len(frame.payload)
        assert unacknowledged <= wire.WINDOW
        if unacknowledged > wire.WINDOW // 2:
            shim.agent.credit(wire.STDIN, unacknowledged)
            unacknowledged = 0
    assert (frame.type, frame.flags) == (wire.CLOSE, wire.STDIN)
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    feeder.join(DEADLINE_S)


def _feed(pipe, data):
    view = memoryview(data)
    while view:
        view = view[os.write(pipe[1], view) :]
    pipe.close(1)


def test_stdin_is_read_only_as_far_as_credit_goes(launch, pipe):
    shim = launch(stdio=(pipe[0], None, None)).running()
    os.set_blocking(pipe[1], False)
    got = 0
    while got < wire.WINDOW:
        with suppress(BlockingIOError):
            os.write(pipe[1], bytes(65536))
        got += len(shim.agent.expect(wire.DATA).payload)
    assert got == wire.WINDOW
    assert shim.agent.is_mute(0.2)
    shim.agent.credit(wire.STDIN, 10)
    assert len(shim.agent.expect(wire.DATA).payload) == 10


def test_stdin_is_not_read_before_start(launch, pipe):
    os.write(pipe[1], b"for whoever comes first")
    shim = launch(stdio=(pipe[0], None, None)).planned().commit()
    assert shim.agent.is_mute(0.2)
    assert os.read(pipe[0], 100) == b"for whoever comes first"


def test_stalled_stdout_delays_neither_stderr_nor_requests(launch, pipe):
    errors_read, errors_write = os.pipe()
    shim = launch(stdio=(None, pipe[1], errors_write)).running()
    os.close(errors_write)
    capacity = 65536
    for _ in range(wire.WINDOW // wire.PAYLOAD_MAX):
        shim.agent.output(bytes(wire.PAYLOAD_MAX))
    acknowledged = 0
    while acknowledged < capacity:
        acknowledged += struct.unpack("<I", shim.agent.expect(wire.CREDIT).payload)[0]
    assert acknowledged == capacity  # what the pipe holds, and not a byte that has not left
    assert shim.agent.is_mute(0.1)
    shim.agent.output(b"still here", wire.STDERR)
    assert os.read(errors_read, 100) == b"still here"
    assert shim.agent.expect(wire.CREDIT).flags == wire.STDERR
    client = shim.client()
    tag = client.post(wire.SIGNAL, struct.pack("<II", 1, 0), container=1)
    shim.agent.result(shim.agent.expect(wire.SIGNAL))
    assert client.wait(tag, DEADLINE_S).error == 0
    os.close(errors_read)


def test_more_data_than_credit_ends_the_vm(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    with suppress(BrokenPipeError):  # on a busy machine the shim has had enough before all is sent
        for _ in range(8):
            shim.agent.output(bytes(wire.PAYLOAD_MAX))
    reader = Reader(pipe[0])
    pipe.close(1)
    assert shim.wait() == 255
    assert shim.record()["reason"] == "agent"
    assert len(reader.result()) <= wire.WINDOW + 65536


def test_exit_waits_for_a_slow_reader(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    data = noise(wire.WINDOW)
    send_output(shim.agent, data)
    shim.agent.exited(0)
    assert shim.is_alive(2.5)  # longer than a killed container's output would be waited for
    reader = Reader(pipe[0])
    assert shim.wait() == 0
    assert reader.result() == data


def test_killed_container_does_not_wait_for_a_reader_that_stalls(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    send_output(shim.agent, bytes(wire.WINDOW))
    shim.agent.exited(signal.SIGTERM)
    assert shim.is_alive(0.3)
    client = shim.client()
    begun = time.monotonic()
    client.post(wire.SIGNAL, struct.pack("<II", signal.SIGKILL, 1), container=1)
    assert shim.wait() == 143
    assert time.monotonic() - begun >= PATIENCE_S
    record = shim.record()
    assert (record["reason"], record["status"]) == ("container", str(int(signal.SIGTERM)))


def test_stop_flushes_what_is_read(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    data = noise(wire.WINDOW)
    send_output(shim.agent, data)
    client = shim.client()
    shim.agent.heard()
    with shim.stopped():  # else its patience with us might be at its end
        client.post(wire.STOP)
        reader = Reader(pipe[0])
    assert shim.wait() == 137
    assert reader.result() == data


def test_output_before_qemus_death_is_not_lost(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    send_output(shim.agent, b"x" * wire.WINDOW)
    qemu = shim.qemu_pid()
    with shim.stopped():  # else its patience with us might be at its end
        os.kill(qemu, signal.SIGKILL)
        reader = Reader(pipe[0])
    assert shim.wait() == 137
    assert reader.result() == b"x" * wire.WINDOW


@pytest.mark.parametrize("end", ["qemu", "channel", "lie"])
def test_a_request_is_answered_when_the_agent_goes_while_output_waits_for_its_reader(launch, pipe, end):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    send_output(shim.agent, b"x" * wire.WINDOW)
    client = shim.client()
    client.wait_hello(DEADLINE_S)
    awaited = {wire.SIGNAL, wire.READ}
    tags = [client.post(kind, struct.pack("<II", signal.SIGTERM, 1), container=1) for kind in awaited]
    while awaited:
        awaited.discard(shim.agent.frame().type)  # there is credit between them
    if end == "qemu":
        os.kill(shim.qemu_pid(), signal.SIGKILL)
    elif end == "channel":
        shim.agent.socket.close()
    else:
        shim.agent.raw(b"\xff" * 64)
    for tag in tags:
        assert client.wait(tag, DEADLINE_S).error == errno.ECHILD
    assert shim.is_alive(0)
    client.post(wire.STOP)


def test_reader_gone_closes_the_stream_and_sends_no_signal(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    pipe.close(0)
    shim.agent.output(b"for nobody")
    frame = shim.agent.expect(wire.CLOSE)  # and not SIGNAL with SIGPIPE
    assert (frame.flags, frame.container) == (wire.STDOUT, 1)
    shim.agent.output(b"crossed our CLOSE")
    assert shim.agent.is_mute(0.1)
    shim.agent.exited(signal.SIGPIPE)
    assert shim.wait() == 141


def test_stdin_closed_by_the_guest_is_closed_for_its_writer(launch, pipe):
    shim = launch(stdio=(pipe[0], None, None)).running()
    pipe.close(0)
    shim.agent.send(wire.CLOSE, flags=wire.STDIN)
    with pytest.raises(BrokenPipeError):
        while True:
            os.write(pipe[1], b"is anybody there")
    assert shim.is_alive(0)


def test_closed_stdout_ends_for_its_reader_while_the_container_runs(launch, pipe):
    shim = launch(stdio=(None, pipe[1], None)).running()
    pipe.close(1)
    shim.agent.output(b"last")
    shim.agent.send(wire.CLOSE, flags=wire.STDOUT)
    assert Reader(pipe[0]).result() == b"last"
    assert shim.is_alive(0)


def test_files(launch, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(noise(100_000))
    target.write_bytes(b"kept ")
    with source.open("rb") as stdin, target.open("ab") as stdout:
        shim = launch(stdio=(stdin, stdout, stdout)).running()
    got = b""
    while (frame := shim.agent.frame()).type == wire.DATA:
        got += frame.payload
    assert (frame.type, got) == (wire.CLOSE, noise(100_000))
    shim.agent.output(b"one ", wire.STDOUT)
    shim.agent.output(b"two", wire.STDERR)
    shim.agent.exited(0)
    assert shim.wait() == 0
    assert sorted(target.read_bytes().split()) == [b"kept", b"one", b"two"]


def test_full_disk_closes_the_stream(launch):
    with open("/dev/full", "wb") as full:
        shim = launch(stdio=(None, full, None)).running()
    shim.agent.output(b"x")
    assert shim.agent.expect(wire.CLOSE).flags == wire.STDOUT


def test_sockets_keep_their_mode(launch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        shim = launch(stdio=(theirs, theirs, None)).running()
        ours.sendall(b"in")
        assert shim.agent.expect(wire.DATA).payload == b"in"
        reader = Reader(ours.fileno())
        send_output(shim.agent, noise(1 << 20))
        assert os.get_blocking(theirs.fileno())
        shim.agent.exited(0)
        assert shim.wait() == 0
        theirs.close()
        assert reader.result() == noise(1 << 20)


def test_terminal_is_never_made_non_blocking(launch):
    ours, theirs = pty.openpty()
    mode = termios.tcgetattr(theirs)
    mode[1] &= ~termios.OPOST
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    shim = launch(stdio=(theirs, theirs, theirs)).running()
    os.write(ours, b"typed\n")
    assert shim.agent.expect(wire.DATA).payload == b"typed\n"
    shim.agent.output(b"shown")
    assert os.read(ours, 100) == b"shown"
    assert os.get_blocking(theirs)
    assert os.readlink(f"/proc/{shim.pid}/fd/0") == "/dev/null"
    shim.agent.exited(0)
    assert shim.wait() == 0
    os.close(ours)
    os.close(theirs)


def test_pipes_of_the_caller_stay_blocking(launch, pipe):
    launch(stdio=(pipe[0], pipe[1], None)).running()
    assert os.get_blocking(pipe[0])
    assert os.get_blocking(pipe[1])


def test_fifo_whose_writer_has_gone_ends(launch, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reading, True)
    os.write(writing, b"all of it")
    os.close(writing)
    shim = launch(stdio=(reading, None, None))
    shim.running()
    assert shim.agent.expect(wire.DATA).payload == b"all of it"
    assert shim.agent.expect(wire.CLOSE).flags == wire.STDIN
    os.close(reading)


def test_output_without_reader_from_the_beginning(launch, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    os.close(reading)
    shim = launch(stdio=(None, writing, None)).planned().commit()
    os.close(writing)
    shim.channel.post(wire.START, container=1)
    assert {shim.agent.frame().type, shim.agent.frame().type} == {wire.START, wire.CLOSE}


def test_idle_shim_does_not_spin(launch, pipe):
    shim = launch(stdio=(pipe[0], pipe[1], None)).running()
    os.write(pipe[1], b"x")
    assert select.select([shim.agent.socket], [], [], DEADLINE_S)[0]
    before = _cpu_ticks(shim.pid)
    assert shim.is_alive(1.0)
    assert _cpu_ticks(shim.pid) - before <= 1


def _cpu_ticks(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])
