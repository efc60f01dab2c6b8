"""KVM or emulation: what decides it, what is remembered of it and for how long, and what a start says where it has fallen to emulation."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.engine import background
from rundctl.engine.settings import Settings
from rundctl.engine.template import inputs, kernel_template, trial
from rundctl.engine.template.inputs import Request
from rundctl.errors import ConfigError, GuestError, HostError
from rundctl.host import machine, patience
from rundctl.host.memo import Memo
from rundctl.types import Accelerator
from rundctl.vmm import accelerator, kvm
from rundctl.vmm.accelerator import Verdict
from rundctl.vmm.kvm import Kvm

if TYPE_CHECKING:
    from pathlib import Path

WORKS = Verdict(Accelerator.KVM, "a guest booted with it")
FAILS = Verdict(Accelerator.TCG, "KVM does not work here", has_fallen=True)


@pytest.fixture
def memo(tmp_path: Path) -> Memo:
    return Memo(str(tmp_path / "memo"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """CLOCK_BOOTTIME, in seconds, that goes on when it is told."""
    told = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(accelerator, "now_s", lambda: told.now)
    monkeypatch.setattr(kvm, "_now_s", lambda: told.now)
    return told


def test_settings_that_insist() -> None:
    assert accelerator.given("auto") is None
    for word in ("kvm", "tcg"):
        found = accelerator.given(word)
        assert found is not None
        assert (found.accelerator.value, found.has_fallen) == (word, False)
    with pytest.raises(ConfigError, match="expected one of auto, kvm, tcg"):
        accelerator.given("xen")


@pytest.mark.parametrize(
    ("found", "virtualises", "reason", "has_fallen"),
    [
        (Kvm(refusal="/dev/kvm is missing", is_there=False), True, "/dev/kvm is missing", False),
        (Kvm("1"), False, "neither vmx nor svm", False),
        (Kvm(refusal="/dev/kvm: permission denied"), True, "/dev/kvm: permission denied", True),
    ],
)
def test_where_there_is_no_kvm_to_be_tried(found: Kvm, virtualises: bool, reason: str, has_fallen: bool) -> None:
    verdict = accelerator.without(found, virtualises=virtualises)
    assert verdict is not None
    assert (verdict.accelerator, verdict.has_fallen) == (Accelerator.TCG, has_fallen)
    assert reason in verdict.reason
    assert accelerator.without(Kvm("1"), virtualises=True) is None


def test_that_kvm_works_holds_and_that_it_fails_holds_until_the_next_boot(
    memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator.remember(memo, "works", WORKS)
    accelerator.remember(memo, "fails", FAILS)

    def recalled() -> list[Accelerator | None]:
        verdicts = [accelerator.recall(memo, name) for name in ("works", "fails")]
        return [verdict.accelerator if verdict else None for verdict in verdicts]

    assert recalled() == [Accelerator.KVM, Accelerator.TCG]
    monkeypatch.setattr(accelerator, "boot_id", lambda: "another")
    assert recalled() == [Accelerator.KVM, None]


def test_kvm_that_fails_is_tried_again_ever_later(memo: Memo, clock: SimpleNamespace) -> None:
    waits = []
    for _ in range(10):
        accelerator.remember(memo, "here", FAILS)
        verdict = accelerator.recall(memo, "here")
        assert verdict is not None
        assert not verdict.is_due
        waits.append(verdict.retry_s - clock.now)
        clock.now = verdict.retry_s
        assert verdict.is_due
    assert waits[:3] == [900, 1800, 3600]
    assert waits[-1] == 86400
    accelerator.remember(memo, "here", WORKS)
    found = accelerator.recall(memo, "here")
    assert found is not None
    assert (found.accelerator, found.has_fallen, found.is_due) == (Accelerator.KVM, False, False)


def test_doubt_is_removed_by_a_boot_alone(memo: Memo) -> None:
    accelerator.remember(memo, "here", WORKS)
    accelerator.doubt(memo, "here")
    assert accelerator.recall(memo, "here") is None
    assert accelerator.is_doubted(memo, "here")
    accelerator.remember(memo, "here", WORKS)
    assert not accelerator.is_doubted(memo, "here")


def test_a_missing_device_needs_no_asking(memo: Memo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "kvm"))
    for found in (kvm.known(memo), kvm.ask(memo)):
        assert found is not None
        assert (found.is_there, found.refusal) == (False, f"{tmp_path}/kvm is missing")
        assert "modprobe" in found.hint


def test_a_refusal_is_believed_for_a_minute(
    memo: Memo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: SimpleNamespace
) -> None:
    """A file is no KVM: the kernel itself says so."""
    (tmp_path / "kvm").write_bytes(b"")
    monkeypatch.setattr(kvm, "DEVICE", str(tmp_path / "kvm"))
    assert kvm.known(memo) is None
    asked = kvm.ask(memo)
    assert asked.refusal == f"{tmp_path}/kvm: inappropriate ioctl for device"
    clock.now += 59
    known = kvm.known(memo)
    assert known is not None
    assert known.refusal == asked.refusal
    clock.now += 2
    assert kvm.known(memo) is None


def test_another_device_and_another_boot_are_asked_again(
    memo: Memo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The module that is loaded anew, perhaps with other parameters, makes another node."""
    device = tmp_path / "kvm"
    device.write_bytes(b"")
    monkeypatch.setattr(kvm, "DEVICE", str(device))
    monkeypatch.setattr(kvm, "_identity", lambda: "shown")
    kvm.ask(memo)
    known = kvm.known(memo)
    assert known is not None
    assert (known.identity, known.refusal) == ("shown", "")
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "other").rename(device)
    assert kvm.known(memo) is None
    kvm.ask(memo)
    monkeypatch.setattr(kvm, "boot_id", lambda: "another")
    assert kvm.known(memo) is None


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="there is no /dev/kvm")
def test_kvm_itself_says_the_same_again(memo: Memo) -> None:
    """Wherever it is asked: the numbers of processors are no part of it."""
    first = kvm.ask(memo)
    if first.refusal:
        pytest.skip(first.refusal)
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            assert kvm.ask(memo).identity == first.identity
    finally:
        os.sched_setaffinity(0, allowed)


def test_what_is_known_of_the_host_ends_with_its_boot(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = machine.examine(memo)
    assert machine.known(memo) == identity
    assert machine.virtualises(memo) == bool(machine.processor()[1] & {"vmx", "svm"})
    monkeypatch.setattr(machine, "boot_id", lambda: "another")
    assert machine.known(memo) is None


def _cpu(text: str) -> list[str]:
    return [f"{name}\t: {value}" for name, value in (pair.split("=") for pair in text.split(";"))]


CPU = "vendor_id=AuthenticAMD;cpu family=23;model=1;model name=EPYC;stepping=2;microcode=0x1;flags=svm;bugs=none;cpu MHz=2600.0"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("cpu MHz=2600.0", "cpu MHz=1200.0"), True),
        (("model=1", "model=2"), False),
        (("model name=EPYC", "model name=EPYC-v4"), False),
        (("stepping=2", "stepping=3"), False),
        (("microcode=0x1", "microcode=0x2"), False),
        (("flags=svm", "flags=svm avx2"), False),
        (("bugs=none", "bugs=srso"), False),
    ],
)
def test_another_processor_is_another_host(
    memo: Memo, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], same: bool
) -> None:
    monkeypatch.setattr(machine, "_first_processor", lambda: _cpu(CPU))
    before = machine.examine(memo)
    monkeypatch.setattr(machine, "_first_processor", lambda: _cpu(CPU.replace(*change)))
    assert (machine.examine(memo) == before) is same


@pytest.mark.parametrize("field", ["release", "version"])
def test_another_kernel_is_another_host(memo: Memo, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Debian's kernels have the same release from one security update to the next: the version tells them apart."""
    before = machine.examine(memo)
    names = {"release": os.uname().release, "version": os.uname().version, field: "another"}
    monkeypatch.setattr(machine.os, "uname", lambda: SimpleNamespace(**names))
    assert machine.examine(memo) != before


def _ingredients(found: Kvm, setting: str = "auto") -> Any:
    settings = Settings()
    settings.accelerator = setting
    return inputs.Ingredients(
        settings, Request(), SimpleNamespace(), SimpleNamespace(path="q", version=(7, 2), machine="m"), {"qemu": "1"},
        host="linux cpu", found_kvm=found,
    )  # type: ignore[arg-type]  # fmt: skip


def test_what_kvm_shows_is_in_the_key_of_its_templates_alone() -> None:
    keys = [{inputs.key_of(_ingredients(Kvm(shown)).shape(chosen)) for shown in ("1", "2")} for chosen in Accelerator]
    assert [len(each) for each in keys] == [2, 1]
    assert _ingredients(Kvm("1")).circumstances() != _ingredients(Kvm("2")).circumstances()


class Making:
    """In the place of the builder: boots take so long, or fail."""

    def __init__(self, **boot_s: float | GuestError) -> None:
        self._boot_s = boot_s
        self.made: list[tuple[str, float, bool]] = []

    def __call__(
        self, _: object, verdict: Verdict, *__: object, prove: bool = False, allowed_s: float = 0.0
    ) -> SimpleNamespace:
        name = verdict.accelerator.value
        self.made.append((name, allowed_s, prove))
        took = self._boot_s[name]
        if isinstance(took, GuestError):
            raise took
        if allowed_s and took > allowed_s:
            raise GuestError("the guest did not boot in time")
        return SimpleNamespace(name=name, manifest={"boot_s": took})


def _try(memo: Memo, making: Making) -> tuple[str, Verdict]:
    turns = SimpleNamespace(progress=lambda _: None)
    made, verdict = trial._try(_ingredients(Kvm("1")), memo, turns, making)  # type: ignore[arg-type]
    recalled = accelerator.recall(memo, _ingredients(Kvm("1")).circumstances())
    assert recalled is not None
    assert (recalled.accelerator, recalled.reason) == (verdict.accelerator, verdict.reason)
    return made.name, verdict  # type: ignore[attr-defined]


def test_kvm_that_boots_a_guest_is_taken(memo: Memo) -> None:
    making = Making(kvm=9.4)
    assert _try(memo, making)[0] == "kvm"
    assert making.made == [("kvm", 0.0, False)]


def test_kvm_that_is_slow_is_taken_where_emulation_is_slower(memo: Memo) -> None:
    making = Making(kvm=40.0, tcg=100.0)
    assert _try(memo, making)[0] == "kvm"
    assert making.made == [("kvm", 0.0, False), ("tcg", 40.0, False)]


def test_kvm_that_is_slower_than_emulation_is_not_taken(memo: Memo) -> None:
    name, verdict = _try(memo, Making(kvm=90.0, tcg=3.0))
    assert name == "tcg"
    assert verdict.has_fallen
    assert verdict.reason == "KVM is slower here than emulation: a guest took 90 s to boot by it"


def test_how_slow_is_suspicious_is_a_matter_of_patience(memo: Memo) -> None:
    patience.configured_by(lambda: 5)
    try:
        making = Making(kvm=40.0)
        assert _try(memo, making)[0] == "kvm"
    finally:
        patience.configured_by(lambda: 1)


def test_kvm_that_boots_no_guest_is_told_with_its_words(memo: Memo) -> None:
    name, verdict = _try(
        memo, Making(kvm=GuestError("build the template: the VM ended", hint="KVM internal error"), tcg=3.0)
    )
    assert name == "tcg"
    assert verdict.reason == "KVM does not work here: the VM ended (KVM internal error)"


def test_what_boots_by_nothing_is_no_verdict(memo: Memo) -> None:
    with pytest.raises(GuestError, match="no room"):
        _try(memo, Making(kvm=GuestError("no room"), tcg=GuestError("no room")))
    assert accelerator.recall(memo, _ingredients(Kvm("1")).circumstances()) is None


def test_a_doubt_is_proved_by_a_boot(memo: Memo) -> None:
    accelerator.doubt(memo, _ingredients(Kvm("1")).circumstances())
    making = Making(kvm=1.0)
    assert _try(memo, making)[0] == "kvm"
    assert making.made == [("kvm", 0.0, True)]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Jobs of the background."""
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr(background, "start", lambda _, job, *__, **___: jobs.append(job))
    monkeypatch.setattr(inputs, "discover", lambda *_: _ingredients(Kvm("1")))
    (tmp_path / "templates").mkdir()
    return jobs


def test_every_emulated_start_says_so_and_one_begins_a_trial(
    memo: Memo, tmp_path: Path, clock: SimpleNamespace, begun: list[dict[str, Any]]
) -> None:
    said: list[str] = []
    settings = Settings()
    settings.home = str(tmp_path)
    here = _ingredients(Kvm("1")).circumstances()
    accelerator.remember(memo, here, FAILS)

    def start() -> None:
        verdict = accelerator.recall(memo, here)
        assert verdict is not None
        kernel_template._tell(settings, memo, Request(root_device="pmem", root_mib=64), verdict, said.append)

    start()
    assert not begun
    clock.now += 901
    start()
    start()
    assert len(begun) == 1
    assert len(said) == 3
    assert said[0] == (
        "emulated, so many times slower: KVM does not work here "
        '(rundctl doctor; accelerator = "tcg" in config.toml accepts it)'
    )
    assert begun[0]["request"]["root_device"] == "pmem"
    assert begun[0]["settings"]["home"] == str(tmp_path)


def test_a_refusal_names_its_way_out() -> None:
    verdict = accelerator.without(Kvm(refusal="/dev/kvm: permission denied", hint="chmod"), virtualises=True)
    assert verdict is not None
    assert "/dev/kvm: permission denied (chmod; " in verdict.warning()


@pytest.mark.parametrize(
    ("setting", "found", "words", "told"),
    [
        ("auto", Kvm(refusal="/dev/kvm: busy", hint="end it"), "QEMU ended: kvm", ("start the VM by KVM: /dev/kvm: busy (end it; the next start is emulated)", False)),
        ("kvm", Kvm(refusal="/dev/kvm is missing", is_there=False), "QEMU ended", ('start the VM by KVM: /dev/kvm is missing (accelerator = "auto" emulates meanwhile)', False)),
        ("auto", Kvm("1"), "KVM internal error", ("/dev/kvm: KVM internal error (the next start finds out whether KVM still works)", True)),
        ("auto", Kvm("1"), "no space left", ("no space left", False)),
    ],
)  # fmt: skip
def test_a_clone_that_does_not_wake_up_by_kvm(
    memo: Memo, monkeypatch: pytest.MonkeyPatch, setting: str, found: Kvm, words: str, told: tuple[str, bool]
) -> None:
    monkeypatch.setattr(kvm, "ask", lambda _: found)
    monkeypatch.setattr(inputs, "discover", lambda *_: _ingredients(Kvm("1")))
    settings = Settings()
    settings.accelerator = setting
    said = str(trial.explain(settings, memo, GuestError(words)))
    assert (said, accelerator.is_doubted(memo, _ingredients(Kvm("1")).circumstances())) == told


def test_who_insists_on_a_kvm_that_refuses_is_refused(
    memo: Memo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Kvm(refusal="/dev/kvm: device or resource busy", hint="end the other hypervisor")
    monkeypatch.setattr(inputs, "discover", lambda *_: _ingredients(busy, "kvm"))
    settings = Settings()
    settings.home, settings.accelerator = str(tmp_path), "kvm"
    with pytest.raises(HostError, match='accelerator = "kvm": /dev/kvm: device or resource busy') as caught:
        kernel_template.ensure(settings, memo, lambda _: None)
    assert caught.value.hint == "end the other hypervisor"
