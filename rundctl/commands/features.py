"""``rundctl features``."""

from __future__ import annotations

import json

from rundctl.commands.declare import Options, Verb
from rundctl.commands.output import write


def run(options: Options) -> int:
    """Print what is honoured, as the runtime-spec's features document."""
    from rundctl.oci import features

    del options
    write(json.dumps(features.document(), indent=2) + "\n")
    return 0


VERB = Verb("features", "Print the runtime features as JSON.", run)
