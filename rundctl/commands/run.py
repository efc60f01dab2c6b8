"""``rundctl run``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Flag, Options, Verb


def run(options: Options) -> int:
    """Create and start a container; in the foreground, exit as it exits."""
    from rundctl.engine.container import lifecycle

    asked = engine.create_options(options, detach=options.on("detach"), keep=options.on("keep"))
    return lifecycle.run(engine.context(options), asked)


VERB = Verb(
    "run",
    "Create and start a container, wait for it and exit with its code.",
    run,
    arguments=engine.ARGUMENTS,
    flags=(
        *engine.CREATE_FLAGS,
        Flag("--detach", "Do not wait for the container.", short="-d"),
        Flag("--keep", "Do not delete the container when it has exited."),
        Flag("--no-subreaper", "Accepted, no effect: rundctl never becomes a subreaper."),
    ),
)
