"""``rundctl template``: build, list, show and prune kernel templates."""

from __future__ import annotations

import json

from rundctl.commands.declare import Argument, Options, Verb
from rundctl.commands.output import columns, write


def build(options: Options) -> int:
    """Build the template unless it exists; its key is printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import kernel_template, settings

    del options
    with Progress() as progress:
        template = kernel_template.ensure(settings.load(), progress=progress.say)
    write(f"{template.key}\n")
    return 0


def list_(options: Options) -> int:
    """One line a template."""
    from rundctl.engine import kernel_template, settings

    del options
    entries = kernel_template.list_(settings.load())
    rows = [(entry.key, f"{entry.size_mib} MiB", "ok" if entry.intact else "damaged") for entry in entries]
    write(columns([("KEY", "SIZE", "STATE"), *rows]))
    return 0


def show(options: Options) -> int:
    """A template's manifest."""
    from rundctl.engine import kernel_template, settings

    entry = kernel_template.show(settings.load(), options.text("KEY"))
    write(json.dumps(entry.manifest, indent=2) + "\n")
    return 0


def prune(options: Options) -> int:
    """Remove what nothing current can use; the keys are printed."""
    from rundctl.engine import kernel_template, settings

    del options
    for key in kernel_template.prune(settings.load()):
        write(f"{key}\n")
    return 0


VERB = Verb(
    "template",
    "Build, list, show and prune kernel templates.",
    verbs=(
        Verb("template build", "Build the template unless it exists, and print its key.", build),
        Verb("template list", "List the templates.", list_),
        Verb(
            "template show",
            "Print a template's manifest as JSON.",
            show,
            arguments=(Argument("KEY", "Key of the template, or how it begins."),),
        ),
        Verb("template prune", "Remove templates that are stale or damaged, and print their keys.", prune),
    ),
)
