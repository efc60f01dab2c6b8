"""``rundctl list``."""

from __future__ import annotations

import json

from rundctl.commands import engine
from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")
_GAP = 3  # spaces between columns; at least this wide is a column, as in runc's table
_NARROWEST = 12


def run(options: Options) -> int:
    """Print the containers of a root."""
    from rundctl.engine import lifecycle

    containers = lifecycle.list_(engine.context(options))
    if options.on("quiet"):
        write("".join(f"{container['id']}\n" for container in containers))
    elif options.text("format") == "json":
        write(json.dumps(containers or None) + "\n")  # runc prints null for none, and its callers know
    else:
        write(table(containers))
    return 0


def table(containers: Sequence[Mapping[str, object]]) -> str:
    """Columns under a headline, as wide as their widest entry."""
    rows = [tuple(column.upper() for column in _COLUMNS)]
    rows += [tuple(str(container[column]) for column in _COLUMNS) for container in containers]
    widths = [max(_NARROWEST, *(len(row[column]) + _GAP for row in rows)) for column in range(len(_COLUMNS))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


VERB = Verb(
    "list",
    "List the containers.",
    run,
    flags=(
        Flag("--format", "Table or JSON.", short="-f", value="FORMAT", default="table", choices=("table", "json")),
        Flag("--quiet", "Only ids.", short="-q"),
    ),
)
