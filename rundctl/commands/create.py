"""``rundctl create``."""

from __future__ import annotations

from rundctl.commands import engine
from rundctl.commands.declare import Options, Verb


def run(options: Options) -> int:
    """Create a container; it waits for ``start``."""
    from rundctl.engine.container import lifecycle

    lifecycle.create(engine.context(options), engine.create_options(options))
    return 0


VERB = Verb(
    "create",
    "Create a container from a bundle; start runs its process.",
    run,
    arguments=engine.ARGUMENTS,
    flags=engine.CREATE_FLAGS,
)
