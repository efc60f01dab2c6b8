"""What the counting machine has told, as figures: medians by stage, and whether they have grown.

Figures are million instructions. What a figure has of the measuring itself (starting a process that does nothing, and waiting for it) is taken off.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

Figures = dict[str, Any]

SIDES = ("host user", "host kernel", "guest", "idle")
STARTED, WHOLE = "until started", "whole call"
RECORD = "make bench-kvm RECORD=1"
_NOTHING = "nothing"
# Several processes run at once in these, and the machine has one processor: whose turn it is when decides which of them pays. Together they repeat.
_TOGETHER = (("compile", "shim", "restore"), ("start", "rest"))
_LAST = ("rest", "call")  # the stage that has the measuring's own
_GROWTH = 0.10
# What a small figure may grow by beside that.
_SLACK = {"M": 0.5, "exits": 50, "faults": 50, "bytes": 4096}


def figures(told: list[dict[str, Any]]) -> Figures:
    """Of all reports of a machine. ValueError if a guest was not run by KVM."""
    facts = {key: value for report in told for key, value in report.items() if key in ("accelerator", "state_bytes")}
    if facts["accelerator"]["name"] != "kvm":
        raise ValueError(f"KVM does not work in the machine: {facts['accelerator']['reason']}")
    counted = _gathered(told, "stages")
    own = statistics.median(each["call"] for each in counted[_NOTHING]) / 1e6
    instructions = {call: _stages(rows, own) for call, rows in counted.items() if call != _NOTHING}
    return {
        "nothing": round(own, 2),
        "instructions": instructions,
        "spread_percent": {call: _spread(rows) for call, rows in counted.items()},
        "sides": {
            call: _sides(rows, instructions[call])
            for call, rows in _gathered(told, "sides").items()
            if call != _NOTHING
        },
        "exits": {call: _exits(rows) for call, rows in _gathered(told, "exits").items()},
        "faults": _median_of([report["faults"] for report in told if "faults" in report]),
        "state_bytes": facts["state_bytes"],
        "hangs": sum("hang" in report for report in told),
    }


def _gathered(told: list[dict[str, Any]], kind: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for report in told:
        if kind in report:
            found.setdefault(report["call"], []).append(report[kind])
    return found


def _median_of(rows: list[dict[str, int]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in (rows[0] if rows else ())}


def _stages(rows: list[dict[str, int]], own: float) -> dict[str, float]:
    """Medians of the stages, of their sum until the container runs, and of the whole."""
    found = {
        stage: round(statistics.median(row[stage] for row in rows) / 1e6 - (own if stage in _LAST else 0), 2)
        for stage in rows[0]
    }
    if "start" in found:
        found[STARTED] = round(statistics.median(sum(row.values()) - row["rest"] for row in rows) / 1e6, 2)
    found[WHOLE] = round(statistics.median(sum(row.values()) for row in rows) / 1e6 - own, 2)
    return found


def _spread(rows: list[dict[str, int]]) -> float:
    """How far the whole calls are from their median, the middle half of them, in percent of it."""
    wholes = sorted(sum(row.values()) for row in rows)
    middle = wholes[len(wholes) // 4 : len(wholes) - len(wholes) // 4]
    return round(100 * (middle[-1] - middle[0]) / statistics.median(wholes), 2)


def _sides(rows: list[dict[str, dict[str, int]]], instructions: dict[str, float]) -> dict[str, dict[str, float]]:
    """Each stage's instructions, shared out as its samples are; and the sum of all stages."""
    found: dict[str, dict[str, float]] = {}
    for stage in rows[0]:
        samples = sum((Counter(row[stage]) for row in rows), Counter())
        all_of_it = sum(samples.values()) or 1
        found[stage] = {side: round(instructions[stage] * samples[side] / all_of_it, 2) for side in SIDES}
    for name, stages in ((STARTED, [stage for stage in rows[0] if stage != "rest"]), (WHOLE, list(rows[0]))):
        if name in instructions:
            found[name] = {side: round(sum(found[stage][side] for stage in stages), 2) for side in SIDES}
    return found


def _exits(rows: list[dict[str, dict[str, int]]]) -> dict[str, Any]:
    """Of the run with the median of exits: by stage, and by reason."""
    row = sorted(rows, key=lambda row: sum(sum(stage.values()) for stage in row.values()))[len(rows) // 2]
    reasons = sum((Counter(stage) for stage in row.values()), Counter())
    return {
        "all": reasons.total(),
        "stages": {stage: sum(counts.values()) for stage, counts in row.items()},
        "reasons": dict(reasons.most_common()),
    }


def rows(found: Figures) -> dict[str, tuple[float, str]]:
    """The figures that are held: rundctl's own, by a name for people; each with its unit."""
    held = {
        f"{call}, {stage}": (million, "M")
        for call, stages in found["instructions"].items()
        if call.startswith("rundctl")
        for stage, million in _joined(stages).items()
    }
    held |= {f"{call}, exits": (exits["all"], "exits") for call, exits in found["exits"].items() if exits["all"]}
    held["page faults of a clone"] = (found["faults"]["minor"] + found["faults"]["major"], "faults")
    held["device state of a template"] = (found["state_bytes"], "bytes")
    return held


def _joined(stages: dict[str, float]) -> dict[str, float]:
    """With those in one that pay for each other."""
    found = dict(stages)
    for names in _TOGETHER:
        there = [name for name in names if name in found]
        if len(there) > 1:
            found[" + ".join(there)] = round(sum(found.pop(name) for name in there), 2)
    return found


def changes(recorded: Figures, found: Figures) -> tuple[list[str], list[str]]:
    """What is worse than recorded, or not comparable with it; and what is so much better that the record is out of date. A line each."""
    was, now = rows(recorded), rows(found)
    worse = [f"{name}: there is no such figure any more" for name in was if name not in now]
    worse += [f"{name}: is not recorded" for name in now if name not in was]
    better = []
    for name, (figure, unit) in now.items():
        if name not in was:
            continue
        before = was[name][0]
        line = f"{name}: was {before:g}, is {figure:g} {unit} ({_percent(before, figure)})"
        if figure > before * (1 + _GROWTH) + _SLACK[unit]:
            worse.append(line)
        elif figure < before * (1 - _GROWTH) - _SLACK[unit]:
            better.append(line)
    return worse, better


def _percent(before: float, now: float) -> str:
    return f"{100 * (now - before) / before:+.0f} %" if before else "new"


def differences(recorded: dict[str, str], here: dict[str, str]) -> list[str]:
    """What decides the figures and is another here than where they were recorded: a line each."""
    names = [*here, *(name for name in recorded if name not in here)]
    return [
        f"{name}: recorded with {recorded.get(name, 'none')}, here {here.get(name, 'none')}"
        for name in names
        if recorded.get(name) != here.get(name)
    ]
