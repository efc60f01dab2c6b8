"""Whether a guest's clock runs as fast as the host's, before it is saved: a template's clock is that of all its clones, for ever. Cold.

A kernel measures its time stamp counter at boot, against a timer that runs whether the guest does or not. On a busy host an emulated guest stands still
for a while between two looks, and the measurement can be wrong by any factor: 34.5 MHz were seen for 2.6 GHz, and a clock 75 times too fast. The kernel
measures once more, over a second, but drops a second result that is more than 1 % off the first (`tsc_refine_calibration_work`,
arch/x86/kernel/tsc.c); and with ``tsc=reliable`` nobody compares the clocks of the guest later.

So the builder reads the guest's clock again and again, between two looks at its own, while the kernel measures: how long the way to the guest took can
then be told from how fast its clock runs. A clock that is not certainly right is not saved. And what was found right is given to the kernels that boot
later on this host, so that they need not measure (``tsc_early_khz=``), but are compared all the same.

What else a kernel measures: delay loops (lpj) are computed from the time stamp counter's rate; the local APIC's timer is measured against the ACPI PM
timer, and the agent sleeps by it before it settles. Under KVM the hypervisor tells all of these.
"""

from __future__ import annotations

import struct
import time

from rundctl.errors import GuestError
from rundctl.host.machine import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rundctl.guest.wire import Result
    from rundctl.host.memo import Memo

    Ask = Callable[[], Result]


class ClockError(GuestError):
    """A guest that boots and whose clock is wrong, or cannot be told: no reason against the accelerator that it booted with."""


COMPARED_S = 0.4  # at least so long: the kernel takes a second for its own measurement
TOLERANCE = 0.02  # of the host's rate; the kernel's second measurement corrects less than half of it
PATIENCE_S = (
    120.0  # of a guest that has booted: that its host is busy is no reason against KVM, which has 10 s to boot one
)
EXACT = 0.01  # of a rate that is to be given to the next boot, from the least to the most it may be
_PAUSE_S = 0.05  # between two looks
_FINAL_LOOKS = 2  # at a clock that is not measured any more, so that its final rate is seen
_NAME = "time stamp counter"  # in the memo
_TOLD = struct.Struct("<QQ")  # wire.h, struct wire_clock


class Reading:
    """The guest's clock and time stamp counter at some moment between ``sent_ns`` and ``received_ns`` (host's CLOCK_MONOTONIC).

    ``final``: its kernel measures no longer.
    """

    __slots__ = ("cycles", "final", "guest_ns", "received_ns", "sent_ns")

    def __init__(self, sent_ns: int, received_ns: int, guest_ns: int, cycles: int, *, final: bool) -> None:
        self.sent_ns = sent_ns
        self.received_ns = received_ns
        self.guest_ns = guest_ns
        self.cycles = cycles
        self.final = final


class Figures:
    """How fast a guest's clock runs: seconds of the guest in one of the host, at least and at most; and its time stamp counter, in kHz.

    ``tsc_khz`` is what the guest's kernel takes it for if the clock is right, and what we have measured if it is wrong.
    """

    __slots__ = ("least", "most", "tsc_khz")

    def __init__(self, least: float, most: float, tsc_khz: int) -> None:
        self.least = least
        self.most = most
        self.tsc_khz = tsc_khz

    @property
    def is_right(self) -> bool:
        """Certainly within `TOLERANCE`."""
        return self.least >= 1 - TOLERANCE and self.most <= 1 + TOLERANCE

    @property
    def is_wrong(self) -> bool:
        """Certainly outside of it."""
        return self.most < 1 - TOLERANCE or self.least > 1 + TOLERANCE

    @property
    def is_exact(self) -> bool:
        """Known well enough for the kernel to correct the rest: it drops a second measurement that is more than 1 % off what it was given."""
        return self.most - self.least <= EXACT * self.rate

    @property
    def rate(self) -> float:
        """The middle of what it may be."""
        return (self.least + self.most) / 2

    def describe(self) -> str:
        """For an error, after "the guest's clock"."""
        return f"runs {self.rate:.3g} times as fast as the host's"

    def facts(self) -> dict[str, float | int]:
        """For the manifest."""
        return {"rate_least": round(self.least, 5), "rate_most": round(self.most, 5), "tsc_khz": self.tsc_khz}


def compare(ask: Ask, timeout_s: float) -> Figures:
    """Look at a guest's clock until it is known whether it is right. ``ask`` sends a CLOCK request and waits for its result.

    ClockError if that cannot be told in time, which takes a host that leaves its guests no time at all.
    """
    deadline = time.monotonic() + timeout_s
    readings = [_read(ask)]
    while True:
        time.sleep(_PAUSE_S)  # the guest's kernel measures meanwhile
        readings.append(_read(ask))
        found = judge(readings)
        is_late = time.monotonic() > deadline
        if found is not None and (
            (found.is_wrong and (found.is_exact or is_late)) or (found.is_right and _is_final(readings))
        ):
            return found
        if is_late:
            seen = (
                f"it {found.describe()}, give or take {(found.most - found.least) / 2:.2g}"
                if found
                else "too few looks"
            )
            raise ClockError(f"the guest's clock could not be compared with the host's within {timeout_s:g} s: {seen}")


def judge(readings: list[Reading]) -> Figures | None:
    """What readings tell of the clock; None if they are not `COMPARED_S` apart yet. Of all that are, the two that leave the least doubt count."""
    last = readings[-1]
    pairs = [(first, last) for first in readings if last.sent_ns - first.received_ns >= COMPARED_S * 1e9]
    if not pairs:
        return None
    least, most, first = min(((*_bounds(*pair), pair[0]) for pair in pairs), key=lambda found: found[1] - found[0])
    found = Figures(least, most, 0)
    found.tsc_khz = _measured_khz(first, last) if found.is_wrong else _believed_khz(readings)
    return found


def remembered(memo: Memo) -> int:
    """kHz of the time stamp counter that a right clock had since this host booted, 0 if none is known."""
    kept = memo.recall(_NAME)
    return int(kept["khz"]) if isinstance(kept, dict) and kept.get("boot") == boot_id() else 0


def remember(memo: Memo, figures: Figures) -> None:
    """Keep it until the host boots: it may be another machine by then."""
    memo.remember(_NAME, {"boot": boot_id(), "khz": figures.tsc_khz})


def _read(ask: Ask) -> Reading:
    sent_ns = time.monotonic_ns()
    result = ask()
    received_ns = time.monotonic_ns()
    if result.error:
        raise GuestError(f"ask the guest for the time: {result.describe()}")
    guest_ns, cycles = _TOLD.unpack(result.data)
    return Reading(sent_ns, received_ns, guest_ns, cycles, final=result.index == 0)


def _is_final(readings: list[Reading]) -> bool:
    return all(reading.final for reading in readings[-_FINAL_LOOKS:])


def _bounds(first: Reading, last: Reading) -> tuple[float, float]:
    """The guest's clock went by so much, the host's by at least and at most so much."""
    went_ns = last.guest_ns - first.guest_ns
    return went_ns / (last.received_ns - first.sent_ns), went_ns / (last.sent_ns - first.received_ns)


def _measured_khz(first: Reading, last: Reading) -> int:
    """By the host's clock, taking the way there for as long as the way back."""
    host_ns = (last.sent_ns + last.received_ns - first.sent_ns - first.received_ns) // 2
    return round((last.cycles - first.cycles) * 1_000_000 / host_ns)


def _believed_khz(readings: list[Reading]) -> int:
    """By the guest's clock, of which each reading has both at once, since it is final if it can be."""
    finals = [reading for reading in readings if reading.final]
    first, last = (finals if len(finals) > 1 else readings)[0], readings[-1]
    went_ns = last.guest_ns - first.guest_ns
    return round((last.cycles - first.cycles) * 1_000_000 / went_ns) if went_ns > 0 else 0


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a template's manifest says of its clock."""
    found = manifest.get("clock", {})
    return found if isinstance(found, dict) else {}
