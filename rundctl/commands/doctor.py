"""``rundctl doctor``: what this host has, and how to mend what it lacks; with ``--bench``, what a start costs on it."""

from __future__ import annotations

import os
import sys

from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.engine.bench import Report, Times
    from rundctl.engine.doctor import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_WIDTHS = (5, 12)  # of level and subject


def examine(options: Options) -> int:
    """Print all findings; 1 if one of them keeps containers from starting. With ``--bench`` print what starts took."""
    if options.on("bench"):
        return _measure(as_json=options.on("json"))
    from rundctl.engine import doctor

    found = doctor.examine()
    failed = any(finding.level is doctor.Level.FAIL for finding in found)
    if options.on("json"):
        write(_json(found, ok=not failed))
    elif sys.stdout is not None and sys.stdout.isatty():
        _table(found)
    else:
        write("".join(_lines(found)))
    return 1 if failed else 0


def _measure(*, as_json: bool) -> int:
    from rundctl.commands.progress import Progress
    from rundctl.engine import bench, settings

    with Progress() as progress:
        report = bench.measure(settings.load(), _own_command(), progress.say)
    if as_json:
        import json

        write(json.dumps(report.facts(), indent=2) + "\n")
    else:
        write("".join(f"| {' | '.join(cells)} |\n" for cells in _rows(report)))
    return 0


def _own_command() -> list[str]:
    """What called us, so that its start is measured as callers have it; ``python -m rundctl`` has no file of its own."""
    path = os.path.abspath(sys.argv[0])
    return [path] if os.access(path, os.X_OK) else [sys.executable, "-m", "rundctl"]


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    """A table in Markdown: facts, and medians in milliseconds."""
    ours, theirs = report.rundctl, report.runc
    yield "rundctl doctor --bench", "", ""
    yield "---", "---", "---"
    for name, text in report.host.items():
        yield name, text.replace("|", "/"), ""
    yield f"**median of {report.starts}, ms**", "**rundctl run**", "**runc run**" if theirs else report.runc_failed
    for stage, ms in ours.stages_ms.items():
        yield "until started" if stage == "total" else stage, f"{ms:.1f}", ""
    yield "whole call", f"{ours.median_ms:.1f}", f"{theirs.median_ms:.1f}" if theirs else ""
    yield "least, most", _range(ours), _range(theirs)


def _range(times: Times | None) -> str:
    return f"{times.min_ms:.1f}, {times.max_ms:.1f}" if times else ""


def _json(found: list[Finding], *, ok: bool) -> str:
    import dataclasses
    import json

    return json.dumps({"ok": ok, "findings": [dataclasses.asdict(finding) for finding in found]}, indent=2) + "\n"


def _lines(found: list[Finding]) -> Iterator[str]:
    for finding in found:
        hint = f" ({finding.hint})" if finding.hint else ""
        yield f"{finding.level:{_WIDTHS[0]}}{finding.subject:{_WIDTHS[1]}}{finding.text}{hint}\n"


def _table(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("LEVEL", "SUBJECT", "FINDING"):
        table.add_column(heading, overflow="fold")
    for finding in found:
        text = Text(finding.text)
        if finding.hint:
            text.append(f"\n{finding.hint}", style="italic")
        table.add_row(Text(finding.level, style=_COLOURS[finding.level]), finding.subject, text)
    Console().print(table)


VERB = Verb(
    "doctor",
    "Check what this host has for running containers, and say how to mend what it lacks.",
    examine,
    flags=(
        Flag("--bench", "Run ten containers instead, and print how long they took, as a table to paste into a report."),
        Flag("--json", "Print the findings, or the figures, as JSON."),
    ),
)
