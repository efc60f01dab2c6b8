"""``rundctl ps``."""

from __future__ import annotations

import json
import sys

from rundctl.commands import engine, ps_table
from rundctl.commands.declare import ID, Argument, Flag, Options, Verb
from rundctl.commands.output import write


def run(options: Options) -> int:
    """Print the processes of a container."""
    from rundctl.engine.container import processes

    ctx = engine.context(options)
    if options.text("format") == "json":
        pids = processes.host_pids(ctx, options.text("ID"))
        write(json.dumps(pids or None, separators=(",", ":")) + "\n")  # runc prints null for none
        return 0
    columns = ps_table.columns_of(options.rest)
    write(_encodable(ps_table.table(columns, processes.listing(ctx, options.text("ID")))))
    return 0


def _encodable(text: str) -> str:
    """A name may have characters that stdout's encoding has not."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "replace").decode(encoding)


VERB = Verb(
    "ps",
    "List the processes of a container.",
    run,
    arguments=(ID, Argument("PSOPTION", "Options of ps: -e, -A, -f, -o COLUMN,... (default: -ef).", rest=True)),
    flags=(
        Flag(
            "--format",
            "A table of the container's processes, or the host's pids as JSON.",
            short="-f",
            value="FORMAT",
            default="table",
            choices=("table", "json"),
        ),
    ),
)
