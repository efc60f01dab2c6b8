"""The table and the picture of `kvm.py`: Markdown for docs/performance.md, and bars as SVG, by hand."""

from __future__ import annotations

from typing import Any

from kvm_figures import SIDES, STARTED, WHOLE

_BEGIN, _END = "<!-- written by bench/kvm.py -->", "<!-- until here -->"
_COLOURS = {"host user": "#4477aa", "host kernel": "#ee6677", "guest": "#228833", "idle": "#cccccc"}
_TITLE = {"idle": "waiting"}
_RUN = "rundctl run"
_VERBS = ("create", "start", "state", "kill", "delete")


def table(found: dict[str, Any]) -> str:
    """All figures, a row a stage of ``run``, then a row a call."""
    counted, emulated = found["instructions"], found["native"]["emulated_ms"]
    lines = [
        "| million instructions | all | host user | host kernel | guest | waiting | exits | emulated, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    exits = found["exits"][_RUN]
    for stage, million in counted[_RUN].items():
        left = exits["all"] if stage == WHOLE else exits["stages"].get(stage, "")
        if stage == STARTED:
            left = exits["all"] - exits["stages"]["rest"]
        name = f"**`{_RUN}`, {stage}**" if stage in (STARTED, WHOLE) else stage
        lines.append(_row(name, million, found["sides"][_RUN].get(stage, {}), left, emulated.get(stage, "")))
    calls = [f"rundctl {verb}" for verb in _VERBS] + ["runc run"] + [f"runc {verb}" for verb in _VERBS]
    for call in [*calls, *(name for name in counted if name.partition(" ")[0] not in ("rundctl", "runc"))]:
        left = found["exits"].get(call, {}).get("all", "")
        sides = found["sides"].get(call, {}).get(WHOLE, {})
        lines.append(_row(f"`{call}`", counted[call][WHOLE], sides, left, ""))
    return "\n".join([*lines, "", *_words(found)])


def _row(name: str, million: float, sides: dict[str, float], exits: object, ms: object) -> str:
    cells = [f"{million:.1f}", *(f"{sides[side]:.1f}" if sides else "" for side in SIDES), str(exits or ""), str(ms)]
    return f"| {name} | {' | '.join(cells)} |"


def _words(found: dict[str, Any]) -> list[str]:
    reasons = ", ".join(f"{name} {count}" for name, count in found["exits"][_RUN]["reasons"].items())
    rates = ", ".join(f"`{name}` {rate}" for name, rate in found["million_per_ms"].items())
    native, calls, faults = found["native"], found["calls"], found["faults"]
    lines = [
        f"* Exits of one `{_RUN}` by KVM's reason: {reasons}.",
        f"* Page faults of a clone's QEMU until its container runs: {faults['minor']:.0f}, and {faults['major']:.0f} that read a disk.",
        f"* Device state of a template: {found['state_bytes']} bytes.",
        f"* Million instructions in a millisecond of the recording machine: {rates}.",
        f"* Recorded {found['date']}: {calls['undisturbed']} calls of each kind were counted, {calls['sampled']} sampled, {calls['traced']} traced.",
        f"* The middle half of the counted `{_RUN}` lies within {found['spread_percent'][_RUN]} % of their median.",
        f"* Emulated: the least of {native['runs']} starts, each stage by itself. The one-minute load was {native['load_before']} before them.",
    ]
    return [*lines, *(f"* {name}: {text}" for name, text in found["environment"].items())]


def with_table(document: str, found: dict[str, Any]) -> str:
    """A document with the table between its two marks. ValueError if it has none."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"docs/performance.md has no {_BEGIN} ... {_END}")
    return f"{before}{begin}\n{table(found)}\n{end}{after}"


def plot(found: dict[str, Any]) -> str:
    """Bars of the stages of ``run``, then of whole calls, each made of its sides; all on one scale."""
    sides = found["sides"]
    bars = {f"run: {stage}": each for stage, each in sides[_RUN].items() if stage not in (STARTED, WHOLE)}
    calls = [call for verb in ("run", *_VERBS) for call in (f"rundctl {verb}", f"runc {verb}")]
    bars |= {call: sides[call][WHOLE] for call in calls}
    bars |= {call: each[WHOLE] for call, each in sides.items() if call.partition(" ")[0] not in ("rundctl", "runc")}
    scale = 480 / max(sum(each.values()) for each in bars.values())
    shapes, y = [], 40
    for number, (side, colour) in enumerate(_COLOURS.items()):
        shapes.append(f'<rect x="{180 + 110 * number}" y="9" width="10" height="10" fill="{colour}"/>')
        shapes.append(f'<text x="{195 + 110 * number}" y="18">{_TITLE.get(side, side)}</text>')
    shapes.append('<text x="680" y="18">million instructions</text>')
    for name, each in bars.items():
        shapes.append(f'<text x="170" y="{y + 9}" text-anchor="end">{name}</text>')
        x = 180.0
        for side in SIDES:
            width = scale * each[side]
            shapes.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="11" fill="{_COLOURS[side]}"/>')
            x += width
        shapes.append(f'<text x="{x + 5:.1f}" y="{y + 9}">{sum(each.values()):.1f}</text>')
        y += 17
    style = 'font-family="sans-serif" font-size="11"'
    ground = f'<rect width="820" height="{y + 8}" fill="#fff"/>\n'
    body = "\n".join(shapes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="820" height="{y + 8}" {style}>{ground}{body}</svg>\n'
