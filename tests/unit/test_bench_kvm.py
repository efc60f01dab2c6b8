"""The guard of the counted figures can fail: it compares rightly, says what has grown, and does not compare what cannot be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import kvm
import kvm_figures
import kvm_inside
import kvm_perf
import kvm_plot

HUNG = kvm.kvm_machine._HUNG
RUN = {"interpreter": 40_000_000, "restore": 20_000_000, "start": 5_000_000, "rest": 30_000_000}


def _told(scale: float = 1.0, **stages: int) -> list[dict[str, Any]]:
    """Reports of a machine, of three calls of each kind; the third has met something."""
    run = {stage: int(scale * ns) for stage, ns in (RUN | stages).items()}
    odd = {stage: 2 * ns for stage, ns in run.items()}
    sides = {stage: {"host user": 3, "host kernel": 1} for stage in run}
    exits = {stage: {"npf": int(scale * 100), "hlt": 1} for stage in run}
    return [
        {"accelerator": {"name": "kvm", "reason": "a guest booted with it"}, "state_bytes": int(scale * 100_000)},
        *({"call": "nothing", "stages": {"call": 1_000_000}} for _ in range(3)),
        *({"call": "rundctl run", "stages": each} for each in (run, run, odd)),
        *({"call": "rundctl state", "stages": {"call": int(scale * 31_000_000)}} for _ in range(3)),
        *({"call": "runc run", "stages": {"call": int(scale * 61_000_000)}} for _ in range(3)),
        {"call": "rundctl run", "sides": sides},
        {"call": "rundctl run", "exits": exits},
        {"faults": {"minor": int(scale * 4000), "major": 0}},
        {"hang": "rundctl run"},
        {"done": True},
    ]


def _figures(scale: float = 1.0, **stages: int) -> kvm_figures.Figures:
    return kvm_figures.figures(_told(scale, **stages))


def test_figures_are_medians_without_what_measuring_costs() -> None:
    found = _figures()
    run = found["instructions"]["rundctl run"]
    assert run == {
        "interpreter": 40.0, "restore": 20.0, "start": 5.0, "rest": 29.0, "until started": 65.0, "whole call": 94.0,
    }  # fmt: skip
    assert found["instructions"]["rundctl state"] == {"call": 30.0, "whole call": 30.0}
    assert found["sides"]["rundctl run"]["interpreter"] == {"host user": 30, "host kernel": 10, "guest": 0, "idle": 0}
    assert found["sides"]["rundctl run"]["until started"]["host user"] == 48.75
    assert found["exits"]["rundctl run"]["all"] == 404
    assert found["exits"]["rundctl run"]["reasons"] == {"npf": 400, "hlt": 4}
    assert (found["faults"], found["state_bytes"], found["hangs"]) == ({"minor": 4000, "major": 0}, 100_000, 1)


def test_figures_of_an_emulated_guest_are_none() -> None:
    told = _told()
    told[0]["accelerator"] = {"name": "tcg", "reason": "KVM refused"}
    with pytest.raises(ValueError, match="KVM does not work in the machine: KVM refused"):
        kvm_figures.figures(told)


def test_the_same_is_no_change() -> None:
    assert kvm_figures.changes(_figures(), _figures()) == ([], [])


def test_a_stage_that_grows_is_told() -> None:
    worse, better = kvm_figures.changes(_figures(), _figures(interpreter=45_000_000))
    assert worse == ["rundctl run, interpreter: was 40, is 45 M (+12 %)"]
    assert better == []


def test_a_tenth_is_let_pass() -> None:
    assert kvm_figures.changes(_figures(), _figures(interpreter=44_000_000)) == ([], [])


def test_small_stages_may_grow_by_half_a_million() -> None:
    was = _figures(commit=300_000)
    assert kvm_figures.changes(was, _figures(commit=800_000))[0] == []
    assert kvm_figures.changes(was, _figures(commit=900_000))[0] == ["rundctl run, commit: was 0.3, is 0.9 M (+200 %)"]


def test_all_that_grows_is_told_and_runc_is_not_ours() -> None:
    worse, _ = kvm_figures.changes(_figures(), _figures(1.3))
    assert {line.partition(":")[0] for line in worse} == {
        "rundctl run, interpreter",
        "rundctl run, restore",
        "rundctl run, start + rest",
        "rundctl run, until started",
        "rundctl run, whole call",
        "rundctl run, exits",
        "rundctl state, call",
        "rundctl state, whole call",
        "page faults of a clone",
        "device state of a template",
    }


def test_what_became_less_is_told() -> None:
    worse, better = kvm_figures.changes(_figures(), _figures(interpreter=30_000_000))
    assert worse == []
    assert "rundctl run, interpreter: was 40, is 30 M (-25 %)" in better


def test_stages_that_run_at_once_are_one_figure() -> None:
    """On one processor whose turn it is decides which of them pays."""
    was, now = _figures(compile=5_000_000, shim=6_000_000), _figures(compile=10_500_000, shim=500_000)
    assert kvm_figures.changes(was, now) == ([], [])
    now = _figures(compile=10_000_000, shim=6_000_000)
    assert kvm_figures.changes(was, now)[0] == ["rundctl run, compile + shim + restore: was 31, is 36 M (+16 %)"]


def test_a_stage_that_is_new_or_gone_is_told() -> None:
    plain, more = _figures(), _figures(fetch=10)
    assert "rundctl run, fetch: is not recorded" in kvm_figures.changes(plain, more)[0]
    assert kvm_figures.changes(more, plain)[0] == ["rundctl run, fetch: there is no such figure any more"]


def test_another_environment_is_named() -> None:
    recorded = {"Python": "3.11.2", "QEMU": "7.2"}
    assert kvm_figures.differences(recorded, recorded) == []
    assert kvm_figures.differences(recorded, {"Python": "3.13.5"}) == [
        "Python: recorded with 3.11.2, here 3.13.5",
        "QEMU: recorded with 7.2, here none",
    ]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record in place of ours; what is measured is as recorded, until a test says otherwise."""
    path = tmp_path / "kvm.json"
    path.write_text(json.dumps({"environment": {"Python": "3"}, **_figures()}))
    monkeypatch.setattr(kvm, "RECORD", path)
    monkeypatch.setattr(kvm.kvm_machine, "environment", lambda: {"Python": "3"})
    monkeypatch.setattr(kvm.kvm_machine, "reports", lambda *_: _told())
    monkeypatch.chdir(tmp_path)
    return path


def test_the_guard_passes(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kvm.check() == 0
    assert capsys.readouterr().out == ""


def test_the_guard_fails_and_says_what_to_do(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kvm.kvm_machine, "reports", lambda *_: _told(interpreter=60_000_000))
    assert kvm.check() == 1
    said = capsys.readouterr().out
    assert "rundctl run, interpreter: was 40, is 60 M (+50 %)" in said
    assert "make bench-kvm RECORD=1" in said


def test_the_guard_asks_for_a_new_record(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kvm.kvm_machine, "reports", lambda *_: _told(0.5))
    assert kvm.check() == 0
    assert "these are less by more than a tenth: make bench-kvm RECORD=1" in capsys.readouterr().out


def test_the_guard_measures_nothing_where_it_cannot_compare(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kvm.kvm_machine, "environment", lambda: {"Python": "4"})
    monkeypatch.setattr(kvm.kvm_machine, "reports", lambda *_: 1 // 0)
    assert kvm.check() == kvm.INCOMPARABLE
    assert "Python: recorded with 3, here 4" in capsys.readouterr().out


def _machines(monkeypatch: pytest.MonkeyPatch, *ends: tuple[list[dict[str, Any]], str]) -> list[int]:
    """Machines that tell this; the seeds that they are made with."""
    seeds: list[int] = []
    left = iter(ends)
    monkeypatch.setattr(kvm.kvm_machine, "_one", lambda _, seed: seeds.append(seed) or next(left))
    return seeds


def test_a_machine_that_hangs_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another seed; what it told before is kept."""
    seeds = _machines(
        monkeypatch, ([{"a": 1}, {}], f"{HUNG} for 90 s"), ([{"b": 2}, {"done": True}], "QEMU ended with 0")
    )
    assert kvm.kvm_machine.reports(1, 0, 0) == [{"a": 1}, {"hang": 1}, {"b": 2}, {"done": True}]
    assert seeds == [1, 2]


def test_machines_that_all_hang_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _machines(monkeypatch, *[([], f"{HUNG} for 90 s")] * 4)
    with pytest.raises(kvm.kvm_machine.MachineError, match="4 counting machines hung"):
        kvm.kvm_machine.reports(1, 0, 0)


@pytest.mark.parametrize(
    ("told", "said", "words"),
    [
        ([{"failed": "CallError: rundctl run: status 1"}], "QEMU ended with 0", "rundctl run: status 1"),
        ([{"a": 1}], "QEMU ended with -9", "QEMU ended with -9"),
        ([], "QEMU ended with 1\nno room", "no room"),
    ],
)
def test_a_machine_that_fails_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, told: list[dict[str, Any]], said: str, words: str
) -> None:
    seeds = _machines(monkeypatch, (told, said))
    with pytest.raises(kvm.kvm_machine.MachineError, match=words):
        kvm.kvm_machine.reports(1, 1, 1)
    assert seeds == [1]


def test_silence_is_counted_in_the_machine_s_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes and tells nothing hangs; one that is not given the processor does not."""
    monkeypatch.setattr(kvm.kvm_machine, "_LOOK_S", 0.05)
    monkeypatch.setattr(kvm.kvm_machine, "_SILENCE_S", 0.2)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert kvm.kvm_machine._watch(busy, tmp_path / "none").startswith(HUNG)
    finally:
        busy.kill()
        busy.wait()
    idle = subprocess.Popen(["sleep", "1"])
    assert kvm.kvm_machine._watch(idle, tmp_path / "none") == "QEMU ended with 0"


def test_stages_of_a_call() -> None:
    """From the clock's tick on, which the process' start is told to; the rest is what it does not tell."""
    call = kvm_inside.Call(20_000_090, 60_000_000, "rundctl: timings: interpreter=15.0 start=5.5 total=20.5 ms\n")
    assert call.stages() == [("interpreter", 35_000_000), ("start", 40_500_000), ("rest", 60_000_000)]
    assert kvm_inside.Call(10, 20, "").stages() == [("call", 20)]


def test_events_belong_to_the_stage_in_which_they_are() -> None:
    events = iter([(5, "before"), (10, "a"), (19, "a"), (20, "b"), (30, "after")])
    found = kvm_perf.by_stage(events, [("one", 20), ("two", 30)], 10)
    assert found == {"one": Counter(a=2), "two": Counter(b=1)}


def test_the_document_has_the_recorded_figures() -> None:
    found = json.loads(kvm.RECORD.read_text())
    document = kvm.DOCUMENT.read_text()
    assert kvm_plot.with_table(document, found) == document
    assert kvm_plot.plot(found) == kvm.PICTURE.read_text()


def test_a_document_without_marks_is_not_written() -> None:
    with pytest.raises(ValueError, match="has no <!-- written by"):
        kvm_plot.with_table("words", json.loads(kvm.RECORD.read_text()))
