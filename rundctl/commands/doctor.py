"""``rundctl doctor``: what this host has, and how to mend what it lacks."""

from __future__ import annotations

import sys

from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.engine.doctor import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_WIDTHS = (5, 12)  # of level and subject


def examine(options: Options) -> int:
    """Print all findings; 1 if one of them keeps containers from starting."""
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
    flags=(Flag("--json", "Print the findings as JSON."),),
)
