"""Rules on devices as eBPF: what the program decides is what the rules say, read one after the other."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.plan import device_filter
from rundctl.engine.plan.device_filter import BLOCK, CHARACTER, MKNOD, READ, WRITE, Rule
from rundctl.errors import ConfigError

INSTRUCTION = struct.Struct("<BBhi")
U32 = 0xFFFF_FFFF
DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}


def run(program: bytes, access: int, kind: int, major: int, minor: int) -> bool:  # noqa: C901 (a branch an instruction)
    """An interpreter of the few instructions there are, strict as the kernel's verifier: registers are set before they are read, jumps lead forward."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers: dict[int, int] = {}
    at = 0
    while True:
        code, pair, offset, immediate = INSTRUCTION.unpack_from(program, at * 8)
        destination, source = pair & 15, pair >> 4
        at += 1
        if code == 0x61:
            assert source == 1, "only the context is memory"
            registers[destination] = struct.unpack_from("<I", context, offset)[0]
        elif code == 0xBC:
            registers[destination] = registers[source]
        elif code == 0xB4:
            registers[destination] = immediate & U32
        elif code == 0x54:
            registers[destination] &= immediate & U32
        elif code == 0x74:
            registers[destination] >>= immediate
        elif code == 0x56:
            at += offset if registers[destination] != immediate & U32 else 0
        elif code == 0x46:
            at += offset if registers[destination] & immediate & U32 else 0
        elif code == 0x05:
            at += offset
        elif code == 0x95:
            return bool(registers[0])
        else:
            raise AssertionError(f"no such instruction: {code:#x}")
        assert offset >= 0


def says(rules: list[Rule], access: int, kind: int, major: int, minor: int) -> bool:
    """The same as cgroup v1 would have it, one kind of access after the other: a default, and a set of exceptions."""
    return all(_says(rules, bit, kind, major, minor) for bit in (MKNOD, READ, WRITE) if access & bit)


def _says(rules: list[Rule], bit: int, kind: int, major: int, minor: int) -> bool:
    default = False
    exceptions: set[tuple[int | None, int | None]] = set()
    for rule in rules:
        if rule.is_for_all:
            default, exceptions = rule.allow, set()
        elif rule.access & bit and rule.kind in (None, kind):
            numbers = {(rule.major, rule.minor)}
            exceptions = exceptions | numbers if rule.allow != default else exceptions - numbers
    named = any(wanted in (None, major) and other in (None, minor) for wanted, other in exceptions)
    return named != default


NUMBERS = st.sampled_from([0, 1, 3, 5, 10, 136, 229, 254, 4095, U32])
WILD = st.one_of(st.none(), st.just(-1), NUMBERS)
RULES = st.lists(
    st.fixed_dictionaries(
        {
            "allow": st.booleans(),
            "type": st.sampled_from(["a", "b", "c", ""]),
            "access": st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
            "major": WILD,
            "minor": WILD,
        }
    ),
    max_size=12,
)


@given(RULES, st.integers(1, 7), st.sampled_from([BLOCK, CHARACTER]), NUMBERS, NUMBERS)
def test_the_program_decides_what_the_rules_say(
    devices: list[dict[str, Any]], access: int, kind: int, major: int, minor: int
) -> None:
    try:
        program = device_filter.compile_filter(devices)
    except ConfigError:
        return  # a hole: see below
    expected = says(device_filter.rules(devices), access, kind, major, minor)
    assert (not program or run(program, access, kind, major, minor)) == expected


@pytest.mark.parametrize("devices", [[], [DENY_ALL]])
def test_denied_first_and_the_usual_devices_last(devices: list[dict[str, Any]]) -> None:
    program = device_filter.compile_filter(devices)
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200), (136, 7)):
        assert run(program, READ | WRITE, CHARACTER, major, minor), (major, minor)
    for kind, major, minor in ((CHARACTER, 10, 229), (CHARACTER, 5, 1), (BLOCK, 254, 0), (BLOCK, 1, 3)):
        assert not run(program, READ, kind, major, minor)
        assert run(program, MKNOD, kind, major, minor)
        assert not run(program, MKNOD | READ, kind, major, minor)


def test_all_allowed_needs_no_program() -> None:
    assert device_filter.compile_filter([DENY_ALL, ALLOW_ALL]) == b""
    assert device_filter.compile_filter([ALLOW_ALL, DENY_ALL]) != b""


def test_what_comes_before_a_rule_for_all_is_left_out() -> None:
    some = [{"allow": True, "type": "c", "major": number, "minor": 1, "access": "r"} for number in range(50)]
    assert device_filter.compile_filter([*some, DENY_ALL]) == device_filter.compile_filter([])


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"allow": True}, "[0].access: device access cannot be empty"),
        ({"allow": True, "access": "x"}, "[0].access: expected some of r, w, m, got 'x'"),
        ({"allow": True, "access": "r", "type": "p"}, "[0].type: expected one of a, b, c, u, got 'p'"),
    ],
)
def test_rules_that_make_no_sense(device: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        device_filter.compile_filter([device])
    assert words in caught.value.message


def test_as_many_rules_as_fit() -> None:
    some = [{"allow": True, "type": "a", "major": number, "minor": 1, "access": "r"} for number in range(251)]
    assert len(device_filter.compile_filter(some[:250])) // 8 <= 4096
    with pytest.raises(ConfigError, match="at most 250"):
        device_filter.compile_filter(some)


FUSE = {"type": "c", "major": 10, "minor": 229, "access": "rw"}


@pytest.mark.parametrize(
    "devices",
    [
        [{**FUSE, "allow": True, "minor": -1}, {**FUSE, "allow": False}],
        [ALLOW_ALL, {**FUSE, "allow": False, "major": -1}, {**FUSE, "allow": True}],
        [ALLOW_ALL, {"allow": False, "type": "c", "access": "rwm"}],  # the usual devices would be the hole
    ],
)
def test_holes_are_refused_as_by_runc(devices: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="would make a hole"):
        device_filter.compile_filter(devices)


def test_only_just_these_devices_are_taken_back() -> None:
    program = device_filter.compile_filter([{**FUSE, "allow": True}, {**FUSE, "allow": False, "minor": -1}])
    assert run(program, READ, CHARACTER, 10, 229)
    program = device_filter.compile_filter([{**FUSE, "allow": True}, {**FUSE, "allow": False, "access": "w"}])
    assert run(program, READ, CHARACTER, 10, 229)
    assert not run(program, READ | WRITE, CHARACTER, 10, 229)


def test_a_rule_for_both_kinds_is_not_one_for_all() -> None:
    program = device_filter.compile_filter([{"allow": True, "type": "a", "major": 7, "access": "r"}])
    assert run(program, READ, BLOCK, 7, 0)
    assert run(program, READ, CHARACTER, 7, 0)
    assert not run(program, READ, CHARACTER, 8, 0)
