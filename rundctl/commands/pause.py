"""``rundctl pause``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Options, Verb


def run(options: Options) -> int:
    """Stop a container's virtual machine."""
    from rundctl.engine.container import lifecycle

    lifecycle.pause(engine.context(options), options.text("ID"))
    return 0


VERB = Verb("pause", "Stop all that a container does, until it is resumed.", run, arguments=engine.ARGUMENTS)
