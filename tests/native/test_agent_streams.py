"""Streams: contents intact, credit kept, ends told in both directions; and a peer that breaks the rules."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import struct
import sys
from pathlib import Path

import pytest

from rundctl.guest import ops, wire

sys.path.insert(0, str(Path(__file__).resolve().parent))
from agent_rig import DEADLINE_S, Rig, exit_code, exit_status

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
MEGABYTE = 1 << 20


def pump(rig, data):
    """Send ``data`` as credit allows while the output is read with credit returned: output and wait status."""
    window, offset, closed, output = wire.WINDOW, 0, False, bytearray()
    while True:
        while window and offset < len(data):
            size = min(window, wire.PAYLOAD_MAX, len(data) - offset)
            rig.data(data[offset : offset + size])
            window -= size
            offset += size
        if offset == len(data) and not closed:
            rig.close_stream(wire.STDIN)
            closed = True
        frame = rig.frame()
        stream = frame.flags & wire.STREAM_MASK
        if frame.type == wire.CREDIT:
            assert stream == wire.STDIN
            window += struct.unpack("<I", frame.payload)[0]
            assert window <= wire.WINDOW
        elif frame.type == wire.DATA:
            output += frame.payload
            rig.credit(stream, len(frame.payload))
        elif frame.type == wire.EXITED:
            return bytes(output), exit_status(frame)


def test_megabytes_in_and_out(rig, bundle):
    data = random.Random(1).randbytes(6 * MEGABYTE + 12345)
    rig.create(bundle.plan("cat"))
    rig.start()
    output, status = pump(rig, data)
    assert (hashlib.sha256(output).digest(), exit_code(status)) == (hashlib.sha256(data).digest(), 0)


def test_input_before_start_and_in_small_pieces(rig, bundle):
    rig.create(bundle.plan("sha256sum"))
    digest = hashlib.sha256()
    for index in range(2000):
        piece = b"%d," % index
        digest.update(piece)
        rig.data(piece)
    rig.close_stream(wire.STDIN)
    rig.start()
    assert rig.finish()[1].split()[0] == digest.hexdigest()


def test_unread_output_stops_at_the_window_and_delays_nothing(rig, bundle):
    rig.create(bundle.shell("echo here >&2; cat /dev/zero; exit $?", before=(ops.mknod("/dev/zero", 0o20666, 1, 5),)))
    rig.start()
    received, errors = 0, b""
    while received < wire.WINDOW or not errors:
        frame = rig.frame()
        if frame.flags & wire.STREAM_MASK == wire.STDERR:
            errors += frame.payload
        else:
            received += len(frame.payload)
    assert received == wire.WINDOW
    assert rig.signal(0).error == 0  # the channel is free
    rig.credit(wire.STDOUT, 1000)
    more = 0
    while more < 1000:
        more += len(rig.frame().payload)
    assert more == 1000
    rig.close_stream(wire.STDOUT)  # nobody reads any more: SIGPIPE
    frame = rig.frame()
    while frame.type != wire.EXITED:
        assert frame.type == wire.CLOSE, frame.payload
        frame = rig.frame()
    assert exit_code(exit_status(frame)) == 128 + signal.SIGPIPE


def test_output_is_drained_after_exit(rig, bundle):
    rig.create(bundle.shell("head -c 300000 /dev/zero; echo end", before=(ops.mknod("/dev/zero", 0o20666, 1, 5),)))
    rig.start()
    received = bytearray()
    while len(received) < wire.WINDOW:
        received += rig.frame().payload
    rig.credit(wire.STDOUT, len(received))
    status, out, _ = rig.finish()
    assert exit_code(status) == 0
    assert len(received) + len(out) == 300000 + len("end\n")


def test_closed_stdin_is_told_once(rig, bundle):
    rig.create(
        bundle.shell("exec <&-; echo closed; while [ ! -e /mnt/told ]; do sleep 0.05; done; cat /proc/self/comm")
    )
    rig.start()
    kinds = []
    while True:
        frame = rig.frame()
        if frame.type == wire.EXITED:
            break
        kinds.append((frame.type, frame.flags))
        if frame.type == wire.CLOSE and frame.flags == wire.STDIN:
            rig.data(b"crossed on the way")
            (bundle.root / "mnt/told").touch()
    assert kinds.count((wire.CLOSE, wire.STDIN)) == 1
    assert (wire.CLOSE, wire.STDOUT) in kinds
    assert (wire.CLOSE, wire.STDERR) in kinds


def test_frames_about_unknown_processes_are_ignored(rig, bundle):
    rig.channel.notify(wire.DATA, b"x", container=9)
    rig.channel.notify(wire.CREDIT, struct.pack("<I", 5), container=9, flags=wire.STDOUT)
    rig.close_stream(wire.STDIN, 9)
    assert exit_code(rig.run(bundle.plan("true"))[0]) == 0


@pytest.mark.parametrize(
    ("kind", "flags", "payload"),
    [
        (wire.CREDIT, wire.STDOUT, struct.pack("<I", 1)),  # for nothing
        (wire.CREDIT, wire.STDOUT, b"abc"),
        (wire.CREDIT, wire.STDIN, struct.pack("<I", 1)),
        (wire.DATA, wire.STDOUT, b"x"),
        (wire.DATA, 3, b"x"),
        (wire.CLOSE, wire.STDIN, b"x"),
    ],
)
def test_bad_stream_frames_are_answered_and_survived(rig, bundle, kind, flags, payload):
    rig.create(bundle.plan("true"))
    rig.channel.notify(kind, payload, container=1, flags=flags)
    with pytest.raises(wire.GuestError, match=r"stream|credit"):
        rig.channel.next_frame(DEADLINE_S)
    rig.channel._frames.clear()
    assert rig.start().error == 0
    assert exit_code(rig.finish()[0]) == 0


def test_more_data_than_credit(rig, bundle):
    rig.create(bundle.plan("sleep", "100"))
    for _ in range(7):  # one over a pipe of 64 KiB and a window of 128
        rig.data(bytes(wire.PAYLOAD_MAX))
    with pytest.raises(wire.GuestError, match="without credit"):
        while True:
            rig.channel.next_frame(DEADLINE_S)
    rig.channel._frames.clear()
    assert rig.signal(signal.SIGKILL).error == 0


@pytest.mark.parametrize("kind", [0, 99, 0x80, 0xFF])
def test_unknown_requests(rig, kind):
    assert rig.ask(kind).error == (errno.EPROTO if kind < wire.IGNORABLE else errno.ENOSYS)
    rig.channel.notify(kind, b"whatever")
    assert rig.signal(0).error == errno.ESRCH


@pytest.mark.parametrize(
    "garbage",
    [
        wire.HEADER.pack(wire.PAYLOAD_MAX + 1, wire.SIGNAL, 0, 0, 0, 1),
        b"\xff" * 64,
        wire.HEADER.pack(0, wire.PLAN, wire.MORE, 1, 0, 1) + wire.HEADER.pack(0, wire.SIGNAL, 0, 1, 0, 2),
    ],
)
def test_broken_framing_ends_the_conversation_not_the_agent(sanitized, garbage):
    with Rig(sanitized["agent"]) as rig:
        assert rig.signal(0).error == errno.ESRCH
        rig.socket.sendall(garbage)
        with pytest.raises(wire.GuestError, match="violation"):
            rig.channel.next_frame(DEADLINE_S)
        rig.socket.sendall(b"more of it" * 100)
        assert rig.process.poll() is None


def test_wrong_version(sanitized):
    with Rig(sanitized["agent"]) as rig:
        rig.channel.hello(wire.ROLE_SHIM)  # a second HELLO, in a conversation that has begun
        with pytest.raises(wire.GuestError, match="violation"):
            rig.channel.next_frame(DEADLINE_S)


def test_one_pipe_for_both_outputs_keeps_their_order(rig, bundle):
    script = "for i in $(seq 300); do echo out$i; echo err$i >&2; done; [ /proc/$$/fd/1 -ef /proc/$$/fd/2 ] && echo one"
    status, out, err = rig.run(bundle.shell(script, after=(ops.streams(0, joined=True),)))
    assert status == 0
    assert out.split() == [*(f"{kind}{number}" for number in range(1, 301) for kind in ("out", "err")), "one"]
    assert err == ""


def test_what_is_null_is_the_containers_own_device_and_its_pipe_is_at_its_end(rig, bundle):
    plan = bundle.shell(
        "[ -c /proc/$$/fd/0 ] && [ ! -c /proc/$$/fd/1 ] && [ -c /proc/$$/fd/2 ] && echo lost >&2 && echo kept",
        after=(ops.streams(0b101, joined=False),),
    )
    assert rig.run(plan) == (0, "kept\n", "")


@pytest.mark.parametrize("there", [(), (ops.mkdir("/dev/null"),), (ops.symlink("/dev/null", "/etc/passwd"),)])
def test_without_such_a_device_the_pipes_stay(rig, bundle, there):
    (bundle.root / "etc/passwd").write_text("")
    after = (ops.mount("dev", "/dev", "tmpfs"), *there, ops.streams(0b111, joined=False))
    assert rig.run(bundle.shell("echo out; echo err >&2", after=after)) == (0, "out\n", "err\n")
    assert (bundle.root / "etc/passwd").read_text() == ""
