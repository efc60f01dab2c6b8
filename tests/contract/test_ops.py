"""The opcode table of the C header and of Python are one, and the real agent refuses every malformed operation."""

from __future__ import annotations

import errno
import os
import re
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rundctl.guest import ops, wire

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "native"))
import build
from agent_rig import NAMESPACES, Rig

CHECKOUT = Path(__file__).resolve().parents[2]
HEADER = (CHECKOUT / "native/include/wire.h").read_text()
EXECUTOR = (CHECKOUT / "native/agent/plan.c").read_text()

EXAMPLES = [
    ops.mount("s", "/t", "tmpfs"),
    ops.bind("/s", "/t"),
    ops.remount("/t"),
    ops.propagation("/", 1),
    ops.root("/r"),
    ops.mkdir("/d"),
    ops.mknod("/n", 0o20666),
    ops.symlink("/l", "t"),
    ops.write("/w", "t"),
    ops.hostname("h"),
    ops.domainname("d"),
    ops.link_up("lo"),
    ops.pivot(),
    ops.mask("/m"),
    ops.readonly("/r"),
    ops.rlimit(1, 2, 3),
    ops.machine_id("/m", "i"),
    ops.keyring("k"),
    ops.umask(0),
    ops.no_new_privs(),
    ops.stdio_owner(0, 0),
    ops.bounding(0),
    ops.ids(1, 2, (3,)),
    ops.caps(1, 2, 3, 4),
    ops.seccomp(0, b"12345678"),
    ops.chdir("/", last=True),
    ops.env(("A=b",)),
    ops.home(0),
    ops.find("x"),
    ops.wait(),
    ops.exec_(("x", "y")),
    ops.device_filter("/c", b"12345678"),
    ops.device_filter_ready(b"12345678"),
    ops.streams(5, joined=True),
]
LETTERS = {str: "s", int: "u", bytes: "b"}


def header_table():
    """Opcode name to number and letters, as the comments of the header say them."""
    rows = re.findall(r"OP_(\w+) = (\d+),\s*/\*(.*?)\*/", HEADER, re.DOTALL)
    return {name: (int(number), _letters(comment)) for name, number, comment in rows}


def _letters(comment):
    return "".join(re.findall(r"(?:^|,)\s*([sub]) ", comment))


def test_same_numbers():
    assert {name: number for name, (number, _) in header_table().items()} == {
        code.name: int(code) for code in ops.Opcode
    }
    assert re.search(r"OP_LAST = OP_(\w+)", HEADER).group(1) == max(ops.Opcode).name


def test_every_opcode_has_a_function():
    assert {op.opcode for op in EXAMPLES} == set(ops.Opcode)


@pytest.mark.parametrize("operation", EXAMPLES, ids=lambda op: op.opcode.name)
def test_same_arguments(operation):
    _, documented = header_table()[operation.opcode.name]
    encoded = "".join(LETTERS[type(argument)] for argument in operation.arguments)
    executed = re.search(rf'\[OP_{operation.opcode.name}\] = {{"([sub*+]*)"', EXECUTOR).group(1)
    assert re.fullmatch(executed, encoded), "the agent would refuse what Python sends"
    assert encoded.startswith(
        documented.rstrip("u")
        if executed.endswith("*")
        else documented.rstrip("s")
        if executed.endswith("+")
        else documented
    )
    if executed[-1:] not in ("*", "+"):
        assert encoded == documented == executed


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return build.build(tmp_path_factory.mktemp("agent"), sanitize=True)["agent"]


@pytest.fixture(scope="module")
def rig(agent):
    with Rig(agent) as rig:
        yield rig


def container_plan(operation_bytes):
    """A plan whose operation 1 is given as bytes, and whose operation 0 could do no harm."""
    parts = [ops.umask(0).encode(), operation_bytes, ops.wait().encode(), ops.exec_(("true",)).encode()]
    return struct.pack("<QIIqq", NAMESPACES, len(parts), 0, 0, 0) + b"".join(parts)


def malformed(operation):
    """Encodings that come near to the operation's."""
    good = operation.encode()
    opcode, count, size = struct.unpack_from("<III", good)
    body = good[12:]

    def pack(opcode=opcode, count=count, size=size, body=body):
        return struct.pack("<III", opcode, count, size) + body

    text, number = b"\1\0\0\0x\0", b"\x08\0\0\0" + bytes(9)
    yield "one argument too many, not there", pack(count=count + 1)
    yield "65536 arguments too many", pack(count=count + 65536)
    yield "4294967295 arguments", pack(count=0xFFFFFFFF)
    yield "size beyond the plan", pack(size=0xFFFFFFFF)
    yield "size one more", pack(size=size + 1)
    yield "opcode 0", pack(opcode=0)
    yield "opcode kept free", pack(opcode=13)
    yield "opcode beyond the table", pack(opcode=max(ops.Opcode) + 1)
    yield "the opcode and 65536", pack(opcode=opcode + 65536)
    yield "opcode 4294967295", pack(opcode=0xFFFFFFFF)
    if operation.opcode not in (ops.Opcode.ENV, ops.Opcode.EXEC, ops.Opcode.IDS):
        yield "a string too many", pack(count=count + 1, size=size + len(text), body=body + text)
        yield "a number too many", pack(count=count + 1, size=size + len(number), body=body + number)
    if not body:
        return
    yield "no arguments", pack(count=0)
    if operation.opcode != ops.Opcode.ENV:
        yield "no arguments, no size", pack(count=0, size=0, body=b"")
    yield "bytes left over", pack(size=size + 1, body=body + b"\0")
    yield "cut", pack(size=size - 1, body=body[:-1])
    yield "length beyond the size", pack(body=b"\xff\xff\xff\xff" + body[4:])
    yield "length one more", pack(body=struct.pack("<I", struct.unpack_from("<I", body)[0] + 1) + body[4:])
    yield "length one less", pack(body=struct.pack("<I", struct.unpack_from("<I", body)[0] - 1) + body[4:])
    yield "no NUL at the end", pack(body=body[:-1] + b"\1")
    first = operation.arguments[0]
    if isinstance(first, bytes):
        return  # of any content
    if isinstance(first, str):
        yield "NUL within a string", pack(body=body[:4] + b"\0" * len(first) + body[4 + len(first) :])
        swapped = number
    else:
        swapped = text
    rest = body[4 + struct.unpack_from("<I", body)[0] + 1 :]
    yield "another type", pack(size=len(swapped + rest), body=swapped + rest)


CASES = [pytest.param(data, id=f"{op.opcode.name}: {name}") for op in EXAMPLES for name, data in malformed(op)]


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
@pytest.mark.parametrize("operation", CASES)
def test_malformed_operation_is_refused(rig, operation):
    result = rig.ask(wire.PLAN, container_plan(operation), container=1)
    assert (result.error, result.detail) == (errno.EPROTO, "malformed plan")
    assert result.index in (1, 2)  # where it, or what was taken for its successor, stands
    assert rig.children() == []


@pytest.mark.parametrize(
    "operation",
    [
        op
        for op in EXAMPLES
        if op.opcode
        in (
            ops.Opcode.ROOT,
            ops.Opcode.PIVOT,
            ops.Opcode.MASK,
            ops.Opcode.UMASK,
            ops.Opcode.IDS,
            ops.Opcode.CAPS,
            ops.Opcode.SECCOMP,
            ops.Opcode.CHDIR,
            ops.Opcode.NO_NEW_PRIVS,
            ops.Opcode.BOUNDING,
            ops.Opcode.ENV,
            ops.Opcode.HOME,
            ops.Opcode.FIND,
            ops.Opcode.WAIT,
            ops.Opcode.EXEC,
            ops.Opcode.RLIMIT,
            ops.Opcode.KEYRING,
            ops.Opcode.STDIO_OWNER,
            ops.Opcode.MACHINE_ID,
        )
    ],
    ids=lambda op: op.opcode.name,
)
def test_machine_plan_cannot_change_the_agent(rig, operation):
    assert rig.machine(operation).error == errno.EPROTO


@pytest.mark.parametrize(
    "order",
    [
        (),
        (ops.wait(),),
        (ops.exec_(("x",)),),
        (ops.exec_(("x",)), ops.wait()),
        (ops.wait(), ops.wait(), ops.exec_(("x",))),
        (ops.wait(), ops.exec_(("x",)), ops.umask(0)),
    ],
)
def test_a_container_waits_once_and_ends_with_exec(rig, order):
    assert rig.create(ops.Plan(NAMESPACES, order)).error == errno.EPROTO


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(31),
        struct.pack("<QIIqq", NAMESPACES, 1, 0, 0, 0),
        struct.pack("<QIIqq", NAMESPACES, 0xFFFFFFFF, 0, 0, 0),
        struct.pack("<QIIqq", NAMESPACES, 0, 1, 0, 0),
        struct.pack("<QIIqq", NAMESPACES, 0, 0, 0, 0) + b"x",
    ],
)
def test_malformed_heads(rig, head):
    for container in (0, 1):
        assert rig.ask(wire.PLAN, head, container=container).error == errno.EPROTO


# A plan that passes the check runs in namespaces of its own; one with WAIT missing never does. So: any bytes without a WAIT.
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 12))
def test_arbitrary_bytes(rig, data, count):
    payload = struct.pack("<QIIqq", NAMESPACES, count + 1, 0, 0, 0) + data
    assert rig.ask(wire.PLAN, payload, container=1).error == errno.EPROTO
