"""Inside the counting machine: samples of the processor, and KVM's exits, by perf_event_open(2). Needs nothing but the interpreter's own modules.

A recording is system-wide, of one processor (the machine has no more). Its times are those of the calls.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of samples: as many instructions. One costs some five thousand; and the more often a guest is interrupted, the sooner it hangs (`kvm_machine.reports`).
PERIOD_NS = 250_000
# linux/perf_event.h
_SYSCALL = 298
_SOFTWARE, _TRACEPOINT = 1, 2
_CPU_CLOCK = 0
_SAMPLE_TID, _SAMPLE_TIME, _SAMPLE_RAW = 1 << 1, 1 << 2, 1 << 10
_DISABLED, _USE_CLOCKID = 1 << 0, 1 << 25
_ENABLE, _DISABLE = 0x2400, 0x2401
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
_MODE = 7
_SIDES = {1: "host kernel", 2: "host user", 4: "guest", 5: "guest"}
_HEAD, _DATA = 1024, 4096  # in the ring's first page: where its end is; the data behind that page
_PAGES = 4096
_CLOCK_MONOTONIC = 1  # CLOCK_BOOTTIME, as long as nobody suspends the machine; that one is not for tracepoints
_TRACING = "/sys/kernel/tracing/events/kvm/kvm_exit"
_COMMON = 8  # bytes that every tracepoint begins with


class Recording:
    """What happened while it was on: `samples` or `exits`."""

    def __init__(self, kind: int, config: int, period: int, sample_type: int) -> None:
        flags = _DISABLED | _USE_CLOCKID
        attributes = struct.pack(
            "=IIQQQQQIIQQQQIiQIHH",
            kind, 112, config, period, sample_type | _SAMPLE_TIME | _SAMPLE_TID, 0, flags, 0, 0, 0, 0, 0, 0, 0, _CLOCK_MONOTONIC, 0, 0, 0, 0,
        )  # fmt: skip
        libc = ctypes.CDLL(None, use_errno=True)
        self._libc = libc
        self._fd = libc.syscall(_SYSCALL, ctypes.c_char_p(attributes), -1, 0, -1, 0)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open")
        self._ring = mmap.mmap(self._fd, (1 + _PAGES) * mmap.PAGESIZE)

    def start(self) -> None:
        """Record from here on."""
        self._control(_ENABLE)

    def stop(self) -> None:
        """Until here."""
        self._control(_DISABLE)

    def _control(self, request: int) -> None:
        if self._libc.ioctl(self._fd, request, 0) < 0:
            raise OSError(ctypes.get_errno(), "perf event")

    def records(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Mode, pid, time in ns, and what follows, of each sample; the recording ends. RuntimeError if some were lost."""
        (head,) = struct.unpack_from("<Q", self._ring, _HEAD)
        data = self._ring[_DATA : _DATA + head]
        self._ring.close()
        os.close(self._fd)
        if head > _PAGES * mmap.PAGESIZE:
            raise RuntimeError("the ring of samples was too small")
        at = 0
        while at < head:
            kind, misc, size = struct.unpack_from("<IHH", data, at)
            if kind == _RECORD_LOST:
                raise RuntimeError("samples were lost")
            if kind == _RECORD_SAMPLE:
                pid, _, time_ns = struct.unpack_from("<IIQ", data, at + 8)
                yield misc & _MODE, pid, time_ns, data[at + 24 : at + size]
            at += size


def sampler() -> Recording:
    """What the processor does, each `PERIOD_NS`."""
    return Recording(_SOFTWARE, _CPU_CLOCK, PERIOD_NS, 0)


def samples(recording: Recording) -> Iterator[tuple[int, str]]:
    """Time, and the side: host user, host kernel, guest, or idle."""
    for mode, pid, time_ns, _ in recording.records():
        side = _SIDES.get(mode, f"mode {mode}")
        yield time_ns, side if pid or side == "guest" else "idle"


def tracer() -> Recording:
    """Each exit of a guest to KVM."""
    with open(f"{_TRACING}/id", encoding="ascii") as file:
        return Recording(_TRACEPOINT, int(file.read()), 1, _SAMPLE_RAW)


def exits(recording: Recording) -> Iterator[tuple[int, str]]:
    """Time, and KVM's name of the reason."""
    offset, names = _format()
    for _, _, time_ns, rest in recording.records():
        (code,) = struct.unpack_from("<I", rest, 4 + offset)  # behind the length of the raw data
        yield time_ns, names.get(code, hex(code))


def _format() -> tuple[int, dict[int, str]]:
    """Where the reason is, and the names of SVM's, which the kernel lists last."""
    with open(f"{_TRACING}/format", encoding="ascii") as file:
        text = file.read()
    found = re.search(r"exit_reason;\s+offset:(\d+);", text)
    assert found is not None
    listed = text.rpartition("__print_symbolic")[2]
    return int(found[1]), {int(code, 16): name for code, name in re.findall(r'\{ (0x[0-9a-f]+), "([^"]*)" \}', listed)}


def by_stage(
    events: Iterator[tuple[int, str]], ends_ns: list[tuple[str, int]], began_ns: int
) -> dict[str, Counter[str]]:
    """Events of a call, counted by its stages: each has its name and its end."""
    found: dict[str, Counter[str]] = {name: Counter() for name, _ in ends_ns}
    for time_ns, what in events:
        if time_ns >= began_ns:
            stage = next((name for name, end_ns in ends_ns if time_ns < end_ns), None)
            if stage is not None:
                found[stage][what] += 1
    return found
