"""``rundctl start``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Options, Verb


def run(options: Options) -> int:
    """Let a created container's process run."""
    from rundctl.engine.container import lifecycle

    lifecycle.start(engine.context(options), options.text("ID"))
    return 0


VERB = Verb("start", "Run the process of a created container.", run, arguments=engine.ARGUMENTS)
