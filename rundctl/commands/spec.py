"""``rundctl spec``."""

from __future__ import annotations

import os

from rundctl.commands.declare import Flag, Options, Verb
from rundctl.errors import ConfigError

_DEFAULT = "default_config.json"  # beside this file; no terminal, because terminals come later


def run(options: Options) -> int:
    """Write the default config.json into a bundle that has none."""
    if options.on("rootless"):
        raise ConfigError("--rootless is not supported: rundctl needs root, and user namespaces come later")
    path = os.path.join(options.text("bundle") or ".", "config.json")
    with open(os.path.join(os.path.dirname(__file__), _DEFAULT), encoding="utf-8") as default:
        text = default.read()
    try:
        with open(path, "x", encoding="utf-8") as config:
            config.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists", hint="remove it first") from error
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
