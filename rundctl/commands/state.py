"""``rundctl state``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Options, Verb
from rundctl.commands.output import write
from rundctl.lean import json


def run(options: Options) -> int:
    """Print the state as the runtime-spec defines it, indented by two as runc prints it."""
    from rundctl.engine.container import states

    write(json.dumps(states.state(engine.context(options), options.text("ID")), indent=2) + "\n")
    return 0


VERB = Verb("state", "Print the state of a container as JSON.", run, arguments=engine.ARGUMENTS)
