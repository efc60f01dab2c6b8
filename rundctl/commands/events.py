"""``rundctl events``."""

from __future__ import annotations

import json

from rundctl.commands import duration, engine
from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import write
from rundctl.errors import RundctlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NS_PER_S = 10**9


def run(options: Options) -> int:
    """Print a line of JSON an event."""
    from rundctl.engine.container import events

    interval_ns = duration.parse(options.text("interval"), "--interval")
    if interval_ns <= 0:
        raise RundctlError("duration interval must be greater than 0")
    ctx = engine.context(options)
    if options.on("stats"):
        _print(events.stats(ctx, options.text("ID")))
    else:
        events.stream(ctx, options.text("ID"), interval_ns / _NS_PER_S, _print, options.info)
    return 0


def _print(event: Mapping[str, object]) -> None:
    write(json.dumps(event, separators=(",", ":")) + "\n")


VERB = Verb(
    "events",
    "Print a container's figures, and that it ran out of memory, as JSON.",
    run,
    arguments=engine.ARGUMENTS,
    flags=(
        Flag("--interval", "How often to print figures.", value="DURATION", default="5s"),
        Flag("--stats", "Print the figures of now and exit."),
    ),
)
