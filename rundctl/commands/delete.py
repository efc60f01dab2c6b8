"""``rundctl delete``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Flag, Options, Verb


def run(options: Options) -> int:
    """Remove what is left of a container."""
    from rundctl.engine.container import lifecycle

    lifecycle.delete(engine.context(options), options.text("ID"), force=options.on("force"))
    return 0


VERB = Verb(
    "delete",
    "Delete a container that has stopped.",
    run,
    arguments=engine.ARGUMENTS,
    flags=(Flag("--force", "Kill it first if it runs; an unknown container is no error.", short="-f"),),
)
