"""``rundctl resume``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Options, Verb


def run(options: Options) -> int:
    """Let a paused container's virtual machine go on."""
    from rundctl.engine.container import lifecycle

    lifecycle.resume(engine.context(options), options.text("ID"))
    return 0


VERB = Verb("resume", "Let a paused container go on.", run, arguments=engine.ARGUMENTS)
