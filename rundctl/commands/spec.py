"""``rundctl spec``."""

from __future__ import annotations

from rundctl.commands.declare import Flag, Options, Verb
from rundctl.errors import ConfigError


def run(options: Options) -> int:
    """Write the default config.json into a bundle that has none."""
    from rundctl.oci import spec

    if options.on("rootless"):
        raise ConfigError("spec --rootless is not supported: rundctl needs root")
    spec.write(options.text("bundle") or ".")
    return 0


VERB = Verb(
    "spec",
    "Write a default config.json.",
    run,
    flags=(
        Flag("--bundle", "Directory to write it to (default: the current one).", short="-b", value="DIR"),
        Flag("--rootless", "Refused: rundctl needs root."),
    ),
)
