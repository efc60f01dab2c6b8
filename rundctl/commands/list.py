"""``rundctl list``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import columns, write
from rundctl.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")


def run(options: Options) -> int:
    """Print the containers of a root."""
    from rundctl.engine.container import states

    containers = states.list_(engine.context(options))
    if options.on("quiet"):
        write("".join(f"{container['id']}\n" for container in containers))
    elif options.text("format") == "json":
        write(json.dumps(containers or None) + "\n")  # runc prints null for none, and its callers know
    else:
        write(table(containers))
    return 0


def table(containers: Sequence[Mapping[str, object]]) -> str:
    """Columns under a headline."""
    headline = tuple(column.upper() for column in _COLUMNS)
    return columns([headline, *(tuple(str(container[column]) for column in _COLUMNS) for container in containers)])


VERB = Verb(
    "list",
    "List the containers.",
    run,
    flags=(
        Flag("--format", "Table or JSON.", short="-f", value="FORMAT", default="table", choices=("table", "json")),
        Flag("--quiet", "Only ids.", short="-q"),
    ),
)
