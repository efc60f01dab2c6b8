"""The protocol is written down three times: the C header, wire.py with ops.py, and PROTOCOL.md. They say the same."""

import errno
import re
import socket
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.container import vm
from rundctl.errors import GuestError
from rundctl.guest import ops, wire

DEADLINE_S = 60.0
# Bounds of enumerations, not values that travel.
NOT_IN_PYTHON = {"WIRE_STREAMS", "WIRE_HEADER_SIZE", "OP_LAST"}


@pytest.fixture(scope="session")
def constants(checkout, tmp_path_factory):
    """Every enumerator of wire.h with its value, as the compiler sees it."""
    text = (checkout / "native/include/wire.h").read_text()
    names = sorted(set(re.findall(r"^\s*(?:enum \w+ \{ )?((?:WIRE|OP)_[A-Z0-9_]+) =", text, re.MULTILINE)))
    names += re.findall(r"(WIRE_STD\w+) =", text)
    names += re.findall(r"(WIRE_ROLE_\w+) =", text)
    source = tmp_path_factory.mktemp("wire") / "constants.c"
    lines = "\n".join(f'printf("{name} %lld\\n", (long long){name});' for name in names)
    source.write_text(f'#include <stdio.h>\n#include "wire.h"\nint main(void)\n{{\n{lines}\nreturn 0;\n}}\n')
    subprocess.run(["cc", "-I", checkout / "native/include", "-o", source.with_suffix(""), source], check=True)
    output = subprocess.run([source.with_suffix("")], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_every_constant_of_the_header_is_in_wire_py(constants):
    expected = {
        name: value for name, value in constants.items() if name.startswith("WIRE_") and name not in NOT_IN_PYTHON
    }
    assert len(expected) > 20
    assert {name: getattr(wire, name.removeprefix("WIRE_")) for name in expected} == expected


def test_every_opcode_of_the_header_is_in_ops_py(constants):
    expected = {
        name.removeprefix("OP_"): value
        for name, value in constants.items()
        if name.startswith("OP_") and name not in NOT_IN_PYTHON
    }
    assert {op.name: op.value for op in ops.Opcode} == expected


def test_magic_and_header_layout(checkout, constants):
    assert f'#define WIRE_MAGIC "{wire.MAGIC.decode()}"' in (checkout / "native/include/wire.h").read_text()
    assert wire.HEADER.size == constants["WIRE_HEADER_SIZE"]


def test_every_message_is_in_the_reference(checkout, constants):
    text = (checkout / "native/PROTOCOL.md").read_text()
    types = re.search(r"enum wire_type \{(.*?)\n\};", (checkout / "native/include/wire.h").read_text(), re.DOTALL)
    names = re.findall(r"(WIRE_\w+) =", types.group(1))
    assert len(names) > 10
    for name in names:
        assert f"| {constants[name]} | {name.removeprefix('WIRE_')} |" in text


class Peer:
    """The other end of a Channel, byte by byte."""

    def __init__(self):
        near, self.socket = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        self.channel = wire.Channel(near)

    def greet(self, *, magic=wire.MAGIC, version=wire.VERSION):
        self.send(wire.HELLO, struct.pack("<4sHH", magic, version, wire.ROLE_SHIM))
        return self

    def send(self, kind, payload=b"", *, tag=0, container=0):
        self.socket.sendall(wire.HEADER.pack(len(payload), kind, 0, container, 0, tag) + payload)

    def receive(self, size):
        data = b""
        while len(data) < size:
            data += self.socket.recv(size - len(data))
        return data

    def close(self):
        self.channel.close()
        self.socket.close()


@pytest.fixture
def peer():
    made = Peer()
    yield made
    made.close()


def test_request_and_results_in_any_order(peer):
    peer.greet()
    first, second = peer.channel.post(wire.START, container=1), peer.channel.post(wire.SIGNAL, b"12345678", container=1)
    peer.send(wire.RESULT, struct.pack("<iI", 0, 0), tag=second)
    peer.send(wire.RESULT, struct.pack("<iI", errno.ENOENT, 4) + "Grüße".encode(), tag=first)
    result = peer.channel.wait(first, DEADLINE_S)
    assert (result.error, result.index, result.detail) == (errno.ENOENT, 4, "Grüße")
    assert peer.channel.wait(second, DEADLINE_S).error == 0


@given(st.integers(0, 70_000))
def test_messages_of_every_length_are_cut_into_frames_and_join_again(size):
    peer = Peer()
    payload = bytes(i % 251 for i in range(size))
    tag = peer.channel.post(wire.PLAN, payload, container=1)
    joined, more = b"", True
    while more:
        length, kind, flags, container, process, got_tag = wire.HEADER.unpack(peer.receive(wire.HEADER.size))
        assert (kind, container, process, got_tag) == (wire.PLAN, 1, 0, tag)
        assert length <= wire.PAYLOAD_MAX
        joined += peer.receive(length)
        more = bool(flags & wire.MORE)
        assert not more or length
    assert joined == payload
    peer.close()


def test_too_long_a_message_is_refused_here(peer):
    with pytest.raises(GuestError, match="over the protocol's"):
        peer.channel.post(wire.PLAN, bytes(wire.MESSAGE_MAX + 1))


def test_no_answer_in_time(peer):
    with pytest.raises(GuestError, match="did not answer in time"):
        peer.channel.wait(1, 0.01)


def test_end_of_the_peer(peer):
    peer.greet().socket.close()
    with pytest.raises(GuestError, match="the VM ended"):
        peer.channel.wait(1, DEADLINE_S)


def test_last_words_are_heard_although_sending_fails(peer):
    peer.greet()
    peer.send(wire.RESULT, struct.pack("<iI", errno.ECHILD, 0) + b"qemu exited with status 1")
    peer.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(GuestError, match="qemu exited with status 1"):
        peer.channel.post(wire.START)


def test_another_version_is_said(peer):
    peer.greet(version=7)
    with pytest.raises(GuestError, match=f"protocol version 7 at the other end, {wire.VERSION} here") as caught:
        peer.channel.wait(1, DEADLINE_S)
    assert "delete --force" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        wire.HEADER.pack(8, wire.RESULT, 0, 0, 0, 1) + bytes(8),
        wire.HEADER.pack(8, wire.HELLO, 0, 0, 0, 0) + struct.pack("<4sHH", b"HTTP", 1, 2),
        wire.HEADER.pack(3, wire.HELLO, 0, 0, 0, 0) + b"RUN",
        wire.HEADER.pack(wire.PAYLOAD_MAX + 1, wire.HELLO, 0, 0, 0, 0),
    ],
    ids=["no-hello", "magic", "short-hello", "huge-frame"],
)
def test_a_peer_that_does_not_speak_the_protocol(peer, data):
    peer.socket.sendall(data)
    with pytest.raises(GuestError, match="protocol violation"):
        peer.channel.wait(1, DEADLINE_S)


@given(st.binary(max_size=200))
def test_noise_ends_in_a_guest_error_and_nothing_else(noise):
    peer = Peer()
    peer.socket.sendall(noise)
    peer.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(GuestError):
        peer.channel.wait(1, DEADLINE_S)
    peer.close()


def test_pid_is_packed_as_the_header_has_it(checkout):
    fields = re.search(r"struct wire_pid \{(.*?)\};", (checkout / "native/include/wire.h").read_text(), re.DOTALL)
    assert re.findall(r"uint32_t (\w+);", fields.group(1)) == ["pid", "join_us", "clone_us"]
    assert vm._PID.format == "<III"


def test_pid_may_come_before_hello(peer):
    peer.send(wire.PID, vm._PID.pack(4711, 7, 8))
    peer.greet()
    assert vm._PID.unpack(peer.channel.wait_notice(wire.PID, DEADLINE_S)) == (4711, 7, 8)
