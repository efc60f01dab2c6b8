"""``linux.resources.devices`` as an eBPF program for a cgroup of v2 (BPF_PROG_TYPE_CGROUP_DEVICE). Pure.

The kernel asks the program for every open and mknod(2) of a device by a process in the cgroup: what is wanted (read, write, mknod), of which kind,
of which number. The rules mean what they mean to runc, which is what they meant to cgroup v1: a rule for all devices decides, and forgets what was
before it; after it a rule of the other sense is an exception, and one of the same sense takes an exception of just these devices back. At first all is
denied. (Exceptions all say the same, so the program need not mind their order.)

Sources: linux/bpf.h (struct bpf_cgroup_dev_ctx), Documentation/bpf/standardization/instruction-set.rst, Documentation/admin-guide/cgroup-v1/devices.rst.
"""

from __future__ import annotations

import _struct as struct

from rundctl.oci.support import invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

MKNOD, READ, WRITE = 1, 2, 4  # BPF_DEVCG_ACC_*
BLOCK, CHARACTER = 1, 2  # BPF_DEVCG_DEV_*
_ACCESS = {"m": MKNOD, "r": READ, "w": WRITE}
_KINDS = {"a": None, "b": BLOCK, "c": CHARACTER, "u": CHARACTER}
_ALL = MKNOD | READ | WRITE
_Devices = tuple[int | None, int | None, int | None]
RULES_MAX = 250  # the kernel takes 4096 instructions of a program that is not privileged, and a rule has up to eight, or twice that for both kinds

_INSTRUCTION = struct.Struct("<BBhi")
# Opcodes: class, and operation or size.
_LOAD_WORD = 0x61  # LDX | MEM | W
_AND = 0x54  # ALU | AND | K, 32 bits
_SHIFT_RIGHT = 0x74  # ALU | RSH | K
_MOVE_REGISTER = 0xBC  # ALU | MOV | X
_MOVE = 0xB4  # ALU | MOV | K
_JUMP = 0x05  # JMP | JA
_JUMP_IF_NOT = 0x56  # JMP32 | JNE | K
_JUMP_IF_ANY = 0x46  # JMP32 | JSET | K
_EXIT = 0x95
# Registers.
_RESULT, _CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR = range(6)


class Rule:
    """One rule; None: any kind, any number."""

    __slots__ = ("access", "allow", "kind", "major", "minor")

    def __init__(self, kind: int | None, major: int | None, minor: int | None, access: int, *, allow: bool) -> None:
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access
        self.allow = allow

    @property
    def is_for_all(self) -> bool:
        """Whether it decides on every access to every device."""
        return (self.kind, self.major, self.minor, self.access) == (None, None, None, _ALL)

    def by_kind(self) -> Iterator[Rule]:
        """The same for one kind of device each."""
        for kind in (BLOCK, CHARACTER) if self.kind is None else (self.kind,):
            yield Rule(kind, self.major, self.minor, self.access, allow=self.allow)


# Allowed after all rules, as in runc: mknod of anything (a node alone opens nothing), and the devices that every container has.
ALWAYS: tuple[Rule, ...] = (
    Rule(CHARACTER, None, None, MKNOD, allow=True),
    Rule(BLOCK, None, None, MKNOD, allow=True),
    *(Rule(CHARACTER, 1, minor, _ALL, allow=True) for minor in (3, 5, 7, 8, 9)),  # null zero full random urandom
    Rule(CHARACTER, 5, 0, _ALL, allow=True),  # tty
    Rule(CHARACTER, 5, 2, _ALL, allow=True),  # ptmx
    Rule(CHARACTER, 10, 200, _ALL, allow=True),  # tun
    Rule(CHARACTER, 136, None, _ALL, allow=True),  # pts
)


def rules(devices: Sequence[dict[str, Any]]) -> list[Rule]:
    """The rules of a configuration and those that are always there. ConfigError naming the one that makes no sense."""
    if len(devices) > RULES_MAX:
        raise invalid("linux.resources.devices", f"{len(devices)} rules: at most {RULES_MAX} fit into one program")
    return [*(_rule(device, f"linux.resources.devices[{index}]") for index, device in enumerate(devices)), *ALWAYS]


def _rule(device: dict[str, Any], where: str) -> Rule:
    kind = device.get("type") or "a"
    if kind not in _KINDS:
        raise invalid(f"{where}.type", f"expected one of a, b, c, u, got {kind!r}")
    access = device.get("access", "")
    if not access:
        raise invalid(f"{where}.access", "device access cannot be empty")
    if set(access) - set(_ACCESS):
        raise invalid(f"{where}.access", f"expected some of r, w, m, got {access!r}")
    bits = 0
    for letter in access:
        bits |= _ACCESS[letter]
    return Rule(_KINDS[kind], _number(device, "major"), _number(device, "minor"), bits, allow=bool(device.get("allow")))


def _number(device: dict[str, Any], name: str) -> int | None:
    """-1, and nothing, is any number (config-linux, "Allowed Device list")."""
    number = device.get(name)
    return None if number is None or number < 0 else int(number)


class Verdict:
    """What rules come to: allowed or not, and the exceptions, by kind, major and minor number."""

    __slots__ = ("allow", "exceptions")

    def __init__(self, chosen: Sequence[Rule]) -> None:
        """ConfigError for a rule that would take back a part of an exception, as in runc."""
        self.allow = False
        self.exceptions: dict[_Devices, int] = {}
        for rule in chosen:
            if rule.is_for_all:
                self.allow, self.exceptions = rule.allow, {}
                continue
            for one in rule.by_kind():
                self._take(one)

    def _take(self, rule: Rule) -> None:
        devices = (rule.kind, rule.major, rule.minor)
        if rule.allow != self.allow:
            self.exceptions[devices] = self.exceptions.get(devices, 0) | rule.access
            return
        wider = ((rule.kind, None, rule.minor), (rule.kind, rule.major, None), (rule.kind, None, None))
        if any(other != devices and self.exceptions.get(other, 0) & rule.access for other in wider):
            raise invalid(
                "linux.resources.devices",
                f"a rule for {_words(devices)} would make a hole in a rule for more devices",
            )
        if devices in self.exceptions:
            self.exceptions[devices] &= ~rule.access


def _words(devices: _Devices) -> str:
    kind, *numbers = devices
    return f"{'b' if kind == BLOCK else 'c'} {':'.join('*' if number is None else str(number) for number in numbers)}"


def compile_filter(devices: Sequence[dict[str, Any]]) -> bytes:
    """The program; empty when everything is allowed, for then there is nothing to ask. ConfigError as from ``rules`` and `Verdict`."""
    verdict = Verdict(rules(devices))
    exceptions = [
        Rule(*numbers, access, allow=not verdict.allow) for numbers, access in verdict.exceptions.items() if access
    ]
    if verdict.allow and not exceptions:
        return b""
    return _prologue() + b"".join(map(_rule_code, exceptions)) + _return(allow=verdict.allow)


def _code(opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    signed = immediate - (1 << 32) if immediate >= 1 << 31 else immediate
    return _INSTRUCTION.pack(opcode, source << 4 | destination, offset, signed)


def _prologue() -> bytes:
    """The context's three words: access << 16 | kind, major, minor."""
    return (
        _code(_LOAD_WORD, _KIND, _CONTEXT, 0)
        + _code(_MOVE_REGISTER, _WANTED, _KIND)
        + _code(_SHIFT_RIGHT, _WANTED, immediate=16)
        + _code(_AND, _KIND, immediate=0xFFFF)
        + _code(_LOAD_WORD, _MAJOR, _CONTEXT, 4)
        + _code(_LOAD_WORD, _MINOR, _CONTEXT, 8)
    )


def _return(*, allow: bool) -> bytes:
    return _code(_MOVE, _RESULT, immediate=int(allow)) + _code(_EXIT)


def _rule_code(rule: Rule) -> bytes:
    """Skips itself unless it matches."""
    if max(rule.major or 0, rule.minor or 0) >= 1 << 32:
        return b""  # no device has such a number
    body = _allow_code(rule.access) if rule.allow else _deny_code(rule.access)
    left = len(body) // _INSTRUCTION.size
    for register, value in ((_MINOR, rule.minor), (_MAJOR, rule.major), (_KIND, rule.kind)):
        if value is not None:
            body = _code(_JUMP_IF_NOT, register, offset=left, immediate=value) + body
            left += 1
    return body


def _allow_code(access: int) -> bytes:
    """What it allows is wanted no more; if nothing is left, the answer is yes."""
    strike = _code(_AND, _WANTED, immediate=~access & 0xFFFF_FFFF)
    return strike + _code(_JUMP_IF_NOT, _WANTED, offset=2, immediate=0) + _return(allow=True)


def _deny_code(access: int) -> bytes:
    """If any of it is still wanted, the answer is no."""
    return _code(_JUMP_IF_ANY, _WANTED, offset=1, immediate=access) + _code(_JUMP, offset=2) + _return(allow=False)
