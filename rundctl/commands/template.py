"""``rundctl template``: build, list, show and prune kernel templates."""

from __future__ import annotations

import json

from rundctl.commands.declare import Argument, Flag, Options, Verb
from rundctl.commands.output import columns, write


def build(options: Options) -> int:
    """Build the template unless it exists; its key is printed."""
    from rundctl.commands.progress import Progress
    from rundctl.engine import kernel_template, settings

    del options
    with Progress() as progress:
        template = kernel_template.ensure(settings.load(), progress.say)
    write(f"{template.key}\n")
    return 0


def list_(options: Options) -> int:
    """One line a template."""
    from rundctl.engine import settings, template_store

    del options
    entries = template_store.entries(settings.load().home)
    rows = [(entry.key, f"{entry.size_mib} MiB", "ok" if entry.intact else "damaged") for entry in entries]
    write(columns([("KEY", "SIZE", "STATE"), *rows]))
    return 0


def show(options: Options) -> int:
    """A template's manifest."""
    from rundctl.engine import settings, template_store

    entry = template_store.entry(settings.load().home, options.text("KEY"))
    write(json.dumps(entry.manifest, indent=2) + "\n")
    return 0


def prune(options: Options) -> int:
    """Remove what nothing current can use; the keys are printed."""
    from rundctl.engine import kernel_template, settings

    for key in kernel_template.prune(settings.load(), everything=options.on("all")):
        write(f"{key}\n")
    return 0


_ALL = Flag("--all", "Remove the current one as well.", short="-a")
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
        Verb("template prune", "Remove templates but the current one, and print their keys.", prune, flags=(_ALL,)),
    ),
)
