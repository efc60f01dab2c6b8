"""When a guest's clock is right, when it is wrong, and when that cannot be told."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.template import boot, clock, trial
from rundctl.engine.template.clock import Figures, Reading
from rundctl.errors import GuestError
from rundctl.guest.wire import Result
from rundctl.host.memo import Memo
from rundctl.types import Accelerator

if TYPE_CHECKING:
    from pathlib import Path

    from rundctl.vmm.accelerator import Verdict

MS = 1_000_000
KHZ = 2_600_000


class Guest:
    """A guest on a host of which the test makes the time: a clock of some rate, a way there and back, and a kernel that measures for a while."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, rate: float = 1.0, there_ms: float = 1, back_ms: float = 1
    ) -> None:
        self.now_ns = 10**12
        self.rate = rate
        self.ways_ms = [(there_ms, back_ms)]
        self.measured_ms = 0.0
        self.looks = 0
        monkeypatch.setattr("time.monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr("time.monotonic", lambda: self.now_ns / 1e9)
        monkeypatch.setattr("time.sleep", self._pass)

    def _pass(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def ask(self) -> Result:
        there_ms, back_ms = self.ways_ms[min(self.looks, len(self.ways_ms) - 1)]
        self.looks += 1
        self._pass(there_ms / 1000)
        since_ns = self.now_ns - 10**12
        told = struct.pack("<QQ", round(since_ns * self.rate) + 5, since_ns * KHZ // MS)
        self._pass(back_ms / 1000)
        return Result(0, int(since_ns < self.measured_ms * MS), told)


@pytest.mark.parametrize("rate", [1, 0.99, 1.01])
def test_a_right_clock_and_what_its_kernel_takes_for_its_rate(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    guest = Guest(monkeypatch, rate=rate)
    found = clock.compare(guest.ask, 10)
    assert found.is_right
    assert found.least <= rate <= found.most
    assert found.tsc_khz == pytest.approx(KHZ / rate, rel=1e-4)
    assert guest.now_ns - 10**12 < 600 * MS


@pytest.mark.parametrize("rate", [75, 1.05, 0.95, 0.01])
def test_a_wrong_clock_and_what_its_rate_is_by_ours(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    found = clock.compare(Guest(monkeypatch, rate=rate).ask, 10)
    assert found.is_wrong
    assert found.tsc_khz == pytest.approx(KHZ, rel=0.001)
    assert found.describe().startswith(f"runs {rate:.3g}"[:6])


def test_what_the_next_boot_is_given_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a clock is 75 times too fast is seen at once, its true rate is not: here a look takes 90 ms, all of it one way."""
    guest = Guest(monkeypatch, rate=75, there_ms=0, back_ms=90)
    guest.ways_ms = [(0, 90), (90, 0)]
    found = clock.compare(guest.ask, 60)
    assert found.is_wrong
    assert found.tsc_khz == pytest.approx(KHZ, rel=clock.EXACT)
    late = Guest(monkeypatch, rate=75, there_ms=90, back_ms=90)
    assert clock.compare(late.ask, 2).is_wrong, "the next boot is better than none"


def test_a_long_way_is_no_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest got no processor for 300 ms, here on the way there, now on the way back; then the host was less busy."""
    guest = Guest(monkeypatch)
    guest.ways_ms = [(300, 0), (1, 300), (300, 1), (20, 20), (2, 2)]
    assert clock.compare(guest.ask, 10).is_right
    always = Guest(monkeypatch, there_ms=290, back_ms=10)
    found = clock.compare(always.ask, 60)
    assert found.is_right
    assert always.now_ns - 10**12 > 10_000 * MS, "the doubt of 300 ms is 2 % of no less"


def test_a_busy_host_is_no_reason_against_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that does not boot by KVM is booted by emulation; this one has booted, and answers slowly."""
    busy = Guest(monkeypatch, there_ms=290, back_ms=10)
    guest = SimpleNamespace(set_up=lambda _: None, boot_s=1.0, tell_time=busy.ask, last_words=str, clock=None)
    monkeypatch.setattr(boot, "Guest", lambda *_: nullcontext(guest))
    monkeypatch.setattr(boot, "_make_disk", lambda *_: None)
    recipe = boot.Recipe(SimpleNamespace(accelerator=Accelerator.KVM), SimpleNamespace(), "agent")  # type: ignore[arg-type]
    with boot.booted("nowhere", recipe, lambda _: None) as booted:
        assert booted.clock.is_right


def test_a_wrong_clock_is_no_reason_against_kvm() -> None:
    """A guest with a wrong clock has booted: the accelerator's verdict, which is remembered, is not about it."""
    tried = []

    def build(_: object, verdict: Verdict, *__: object, **___: object) -> None:
        tried.append(verdict.accelerator)
        raise clock.ClockError("the guest's clock runs 75 times as fast as the host's")

    memo = SimpleNamespace(remember=lambda *_: pytest.fail("remembered"), recall=lambda *_: None, save=lambda: None)
    ingredients = SimpleNamespace(circumstances=lambda: "here")
    with pytest.raises(clock.ClockError):
        trial._try(ingredients, memo, SimpleNamespace(), build)  # type: ignore[arg-type]
    assert tried == [Accelerator.KVM]


def test_who_cannot_be_compared_is_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch, there_ms=500, back_ms=500)
    with pytest.raises(GuestError, match=r"could not be compared with the host's within 10 s: it runs 1\.\d+ times"):
        clock.compare(guest.ask, 10)


def test_a_right_clock_is_waited_for_until_it_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(monkeypatch)
    guest.measured_ms = 1500
    assert clock.compare(guest.ask, 10).is_right
    assert guest.now_ns - 10**12 > 1500 * MS
    wrong = Guest(monkeypatch, rate=0.01)  # whose kernel takes 100 times as long
    wrong.measured_ms = 100_000
    assert clock.compare(wrong.ask, 10).is_wrong
    assert wrong.now_ns - 10**12 < 1000 * MS


def test_what_does_not_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Guest(monkeypatch)
    with pytest.raises(GuestError, match="ask the guest for the time: "):
        clock.compare(lambda: Result(95, 0), 10)


def test_readings_that_are_too_close_tell_nothing() -> None:
    readings = [Reading(at * MS, (at + 1) * MS, at * MS, at * KHZ, final=True) for at in (0, 100, 300, 400)]
    assert clock.judge(readings) is None
    readings.append(Reading(402 * MS, 403 * MS, 402 * MS, 402 * KHZ, final=True))
    assert clock.judge(readings) is not None


def test_a_rate_is_remembered_until_the_host_boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = Memo(f"{tmp_path}/memo.json")
    assert clock.remembered(memo) == 0
    clock.remember(memo, Figures(0.999, 1.001, KHZ))
    assert clock.remembered(memo) == KHZ
    monkeypatch.setattr("rundctl.engine.template.clock.boot_id", lambda: "another")
    assert clock.remembered(memo) == 0
